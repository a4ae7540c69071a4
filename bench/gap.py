"""How long production does not answer while it is changed, asked 100 times a second."""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from tests.hook.harness import RealHost
from tests.support import Orchestrator

RATE = 100
"""Requests a second."""
_PATIENCE = 2.0
# Asked in vain, some requests wait: enough hands for all that begin meanwhile.
_HANDS = int(RATE * _PATIENCE)
_CALM = 0.3


class Gap:
    """A production that goes to and fro between two proven images."""

    def __init__(self, copy: Orchestrator, folder: Path) -> None:
        self._copy = copy
        self._host = RealHost(copy, folder / "hook")
        made = []
        for number in range(2):
            copy.commit({"src/orchestrator/NEWS": f"{number}"})
            made.append((copy.build_image(f"{copy.project}-gap-{number}"), copy.revision))
        self._turns = itertools.cycle(made)
        self._promote(*next(self._turns))

    def promotion(self) -> float:
        """Promote the other image by the hook; return for how many seconds nothing answered."""
        return self._watched(self._promote)

    def compose(self) -> float:
        """Write the other image to `.env` and recreate production by hand; return the same."""
        return self._watched(lambda image, _revision: self._recreate(image))

    def _promote(self, image: str, revision: str) -> None:
        ended = self._host.promote(SOURCE_IMAGE=image, EXPECTED_REVISION=revision, EXPECTED_IMAGE_ID=image, SETTLE="0")
        if ended.verdict != (0, "promoted"):
            raise RuntimeError(f"the hook: expected to promote, observed {ended}")

    def _recreate(self, image: str) -> None:
        env = self._copy.env_file
        lines = [line for line in env.read_text().splitlines() if not line.startswith(f"{self._copy.pin}=")]
        env.write_text("\n".join([*lines, f"{self._copy.pin}={image}", ""]))
        self._copy.compose("up", "--detach", "--force-recreate", "--no-deps", "orchestrator")

    def _watched(self, change: Callable[[str, str], None]) -> float:
        with visitors(self._copy.prod_port) as answered:
            change(*next(self._turns))
            changed = time.perf_counter()
            while not any(moment > changed for moment in list(answered)):
                time.sleep(0.01)
        moments = sorted(answered)
        return max(later - earlier for earlier, later in itertools.pairwise(moments))


@contextmanager
def visitors(port: int) -> Iterator[list[float]]:
    """Ask a port of 127.0.0.1 in the background; the list fills with the moments in which an answer was whole."""
    answered: list[float] = []
    over = threading.Event()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
        with closing(connection), suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                answered.append(time.perf_counter())

    def come() -> None:
        with ThreadPoolExecutor(_HANDS) as hands:
            due = time.perf_counter()
            while not over.is_set():
                hands.submit(ask)
                due += 1 / RATE
                over.wait(max(0.0, due - time.perf_counter()))

    crowd = threading.Thread(target=come, daemon=True)
    crowd.start()
    time.sleep(_CALM)
    try:
        yield answered
        time.sleep(_CALM)
    finally:
        over.set()
        crowd.join()
