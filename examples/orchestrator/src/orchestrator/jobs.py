"""Jobs: accepted at once, run one after the other by a single worker thread."""

from __future__ import annotations

import itertools
import queue
import threading
from dataclasses import dataclass, field


@dataclass
class Job:
    """A list of steps and how far it has got."""

    id: int
    steps: list[str]
    done: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """Return the job as the service shows it: `state` is `running` or `finished`."""
        state = "finished" if len(self.done) == len(self.steps) else "running"
        return {"id": self.id, "state": state, "done": list(self.done)}


class Runner:
    """Runs jobs in the order in which they came in."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._waiting: queue.Queue[Job] = queue.Queue()

    def start(self) -> None:
        """Start the worker thread, which ends with the process."""
        threading.Thread(target=self._work, name="runner", daemon=True).start()

    def submit(self, steps: list[str]) -> Job:
        """Accept a job and return it at once."""
        job = Job(next(self._numbers), steps)
        self._jobs[job.id] = job
        self._waiting.put(job)
        return job

    def find(self, number: int) -> Job | None:
        """Return the job of this number, or None."""
        return self._jobs.get(number)

    def _work(self) -> None:
        while True:
            job = self._waiting.get()
            for step in job.steps:
                job.done.append(step)
