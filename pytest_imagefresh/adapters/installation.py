"""Look at what is installed on a Docker host, over the connection that everything else takes. Nothing is changed."""

from __future__ import annotations

from pytest_imagefresh.adapters.host import Host
from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.installation import Seen, Text

_LARGEST = 1 << 20


class HostFiles:
    """Questions to one host. What cannot be found out becomes a `problem` of the answer; nothing raises."""

    def __init__(self, host: Host, *, timeout: float) -> None:
        """`timeout` is in seconds, for each question."""
        self._host = host
        self._timeout = timeout

    def stat(self, path: str) -> Seen:
        """Return what is at a path, symlinks not followed."""
        answer, status = self._ask(["env", "LC_ALL=C", "stat", "-c", "%F|%u|%a", "--", path])
        if status != 0:
            return Seen(path, problem="" if "No such file or directory" in answer.problem else answer.problem)
        kind, _, rest = answer.text.strip().rpartition("\n")[2].partition("|")
        uid, _, mode = rest.partition("|")
        if not (uid.isdecimal() and mode.isdecimal()):
            return Seen(path, problem=f"stat answers {answer.text[:80]!r}")
        return Seen(path, kind, int(uid), int(mode, 8))

    def read(self, path: str) -> Text:
        """Return the first mebibyte of a file."""
        return self._ask(["env", "LC_ALL=C", "head", "-c", str(_LARGEST), "--", path])[0]

    def names(self, folder: str, pattern: str) -> list[str] | None:
        """Return the files of a folder whose names match, sorted; None where that cannot be found out."""
        answer, status = self._ask(["find", folder, "-maxdepth", "1", "-name", pattern, "-type", "f"])
        return sorted(answer.text.splitlines()) if status == 0 else None

    def run(self, argv: list[str]) -> tuple[Text, bool]:
        """Return what a command prints, and whether it is known not to be there."""
        answer, status = self._ask(argv)
        return answer, status == 127

    def _ask(self, argv: list[str]) -> tuple[Text, int]:
        """Return what a command printed, a problem unless it ended with 0, and its status; -1 where it has none."""
        try:
            done = self._host.run(argv, timeout=self._timeout)
        except EvidenceError as error:
            return Text(problem=str(error)), -1
        text = done.stdout.decode(errors="replace")
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        problem = "" if done.status == 0 else lines[-1][:200] if lines else f"{argv[0]} ended with {done.status}"
        return Text(text, problem), done.status
