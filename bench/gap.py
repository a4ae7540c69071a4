"""How long production does not answer while it is changed, asked 100 times a second."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from tests.crowd import Crowd, crowd
from tests.hook.harness import RealHost


class Gap:
    """A production that goes to and fro between two proven images."""

    def __init__(self, host: RealHost) -> None:
        copy = self._copy = host.copy
        self._host = host
        made = []
        for number in range(2):
            copy.commit({"src/orchestrator/NEWS": f"{number}"})
            made.append((copy.build_image(f"{copy.project}-gap-{number}"), copy.revision))
        self._turns = itertools.cycle(made)
        self._promote(*next(self._turns))

    def promotion(self) -> float:
        """Promote the other image by the hook; return for how many seconds nothing answered."""
        return _gap(self._watched(self._promote))

    def failures(self) -> float:
        """The same; return how many requests failed."""
        return len(self._watched(self._promote).failed)

    def compose(self) -> float:
        """Write the other image to `.env` and recreate production by hand; return the same."""
        return _gap(self._watched(lambda image, _revision: self._recreate(image)))

    def _promote(self, image: str, revision: str) -> None:
        ended = self._host.promote(SOURCE_IMAGE=image, EXPECTED_REVISION=revision, EXPECTED_IMAGE_ID=image, SETTLE="0")
        if ended.verdict != (0, "promoted"):
            raise RuntimeError(f"the hook: expected to promote, observed {ended}")

    def _recreate(self, image: str) -> None:
        env = self._copy.env_file
        lines = [line for line in env.read_text().splitlines() if not line.startswith(f"{self._copy.pin}=")]
        env.write_text("\n".join([*lines, f"{self._copy.pin}={image}", ""]))
        self._copy.compose("up", "--detach", "--force-recreate", "--no-deps", "orchestrator")

    def _watched(self, change: Callable[[str, str], None]) -> Crowd:
        with crowd(self._copy.prod_port) as seen:
            change(*next(self._turns))
            changed = time.perf_counter()
            while not any(moment > changed for moment in list(seen.answered)):
                time.sleep(0.01)
        return seen


def _gap(seen: Crowd) -> float:
    return max(later - earlier for earlier, later in itertools.pairwise(sorted(seen.answered)))
