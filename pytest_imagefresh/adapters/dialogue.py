"""A program on the host that is talked to, line by line, while other things happen."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from pytest_imagefresh.adapters.command import LineFeed
from pytest_imagefresh.core.errors import EvidenceError

_POLL_SECONDS = 0.1
_JOIN_SECONDS = 2.0


class Program(Protocol):
    """A running program and its pipes. What a read brings is b"" at the end of the output, whatever ended it."""

    def read_stdout(self) -> bytes:
        """Wait for output, and return it."""
        ...

    def read_stderr(self) -> bytes:
        """Wait for output, and return it."""
        ...

    def write(self, data: bytes) -> None:
        """Write to its standard input. Raises EvidenceError where it does not take it."""
        ...

    def hang_up(self) -> None:
        """Close its standard input."""
        ...

    def wait(self, seconds: float) -> int | None:
        """Return its exit status; None where none has come after that time."""
        ...

    def end(self) -> None:
        """End it, and whatever it started. Twice is once."""
        ...


class Dialogue:
    """What is said to a program and what it answers. Its output is read all the time, so that it is never blocked."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._saying = threading.Lock()
        self._heard: queue.Queue[tuple[bool, bytes]] = queue.Queue()
        self._silent = threading.Event()
        self._answers: deque[str] = deque()
        self._answer_feed = LineFeed(self._answers.append)
        self._open = 2
        self._threads = [
            threading.Thread(target=self._pump, args=(read, is_answer), name="imagefresh-dialogue", daemon=True)
            for read, is_answer in ((program.read_stdout, True), (program.read_stderr, False))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def over(self) -> bool:
        """Whether the program has closed its standard output: there will be no further answer."""
        return self._silent.is_set()

    def say(self, word: str) -> None:
        """Send one line. From any thread. Raises EvidenceError where the program does not take it."""
        with self._saying:
            self._program.write(f"{word}\n".encode())

    def answer(self, *, timeout: float, on_line: Callable[[str], None] | None = None) -> str | None:
        """Return the next line of standard output; None where there will be none.

        `timeout` is in seconds. `on_line` gets the lines of standard error that have come, in the caller's thread.
        Raises EvidenceError when no line comes in time.
        """
        deadline = time.monotonic() + timeout
        feed = LineFeed(on_line)
        while not self._answers and self._open:
            left = deadline - time.monotonic()
            if left <= 0:
                raise EvidenceError(f"expected an answer within {timeout:g} s, observed none")
            self._hear(feed, min(left, _POLL_SECONDS))
        feed.finish()
        return self._answers.popleft() if self._answers else None

    def finish(self, *, timeout: float) -> tuple[int | None, list[str]]:
        """Hang up, and return the exit status and the answers that were not taken yet; the status None for no end.

        `timeout` is in seconds; afterwards the program is ended.
        """
        deadline = time.monotonic() + timeout
        self._program.hang_up()
        while self._open and time.monotonic() < deadline:
            self._hear(LineFeed(None), _POLL_SECONDS)
        status = self._program.wait(max(0.0, deadline - time.monotonic()))
        self.end()
        return status, [*self._answers]

    def end(self) -> None:
        """End the program at once. Twice is once."""
        self._program.end()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)

    def _hear(self, feed: LineFeed, seconds: float) -> None:
        try:
            is_answer, data = self._heard.get(timeout=seconds)
        except queue.Empty:
            return
        self._open -= not data
        (self._answer_feed if is_answer else feed).feed(data)

    def _pump(self, read: Callable[[], bytes], is_answer: bool) -> None:
        data = b"first"
        while data:
            data = read()
            self._heard.put((is_answer, data))
        if is_answer:
            self._silent.set()
