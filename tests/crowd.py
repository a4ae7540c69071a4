"""Visitors of a service who come all the time, and what becomes of each of their requests."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

RATE = 100
"""Requests a second."""
_PATIENCE = 5.0
# Asked in vain, some requests wait: enough hands for all that begin meanwhile.
_HANDS = int(RATE * _PATIENCE)
_CALM = 0.3


@dataclass
class Crowd:
    """What became of the requests so far."""

    answered: list[float] = field(default_factory=list)
    """The moments in which an answer with status 200 was whole, by time.perf_counter()."""
    failed: list[str] = field(default_factory=list)
    """Why, for each request that got no such answer."""

    def visit(self, port: int, path: str) -> None:
        """Ask 127.0.0.1 once, on a connection of its own."""
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)) as connection:
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.failed.append(f"{path}: {error!r}")
            return
        if answer.status == 200:
            self.answered.append(time.perf_counter())
        else:
            self.failed.append(f"{path}: status {answer.status}")


@contextmanager
def crowd(port: int, *, lingering: str = "") -> Iterator[Crowd]:
    """Ask a port for /health in the background, RATE times a second; for the path `lingering` one after the other."""
    seen, over = Crowd(), threading.Event()

    def come() -> None:
        with ThreadPoolExecutor(_HANDS) as hands:
            due = time.perf_counter()
            while not over.is_set():
                hands.submit(seen.visit, port, "/health")
                due += 1 / RATE
                over.wait(max(0.0, due - time.perf_counter()))

    def linger() -> None:
        while not over.is_set():
            seen.visit(port, lingering)

    visitors = [threading.Thread(target=each, daemon=True) for each in ([come, linger] if lingering else [come])]
    for each in visitors:
        each.start()
    time.sleep(_CALM)
    try:
        yield seen
        time.sleep(_CALM)
    finally:
        over.set()
        for each in visitors:
            each.join()
