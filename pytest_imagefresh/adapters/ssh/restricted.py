"""A Docker host whose key reaches the deploy hook and nothing else: `--ssh` as its forced command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from pytest_imagefresh.adapters.command import describe
from pytest_imagefresh.adapters.ssh.session import SshHost
from pytest_imagefresh.core.errors import Refused

_LOOPBACK = "127.0.0.1"


class RestrictedHost(SshHost):
    """An ssh host that takes modes of the hook, and neither programs nor files, forwards no port and no engine."""

    def engine_socket(self) -> str:
        """Raise Refused: the engine is out of reach."""
        raise self._refused("the engine")

    def reach(self, port: int, address: str = _LOOPBACK) -> tuple[str, int]:
        """Raise Refused: no port is forwarded."""
        raise self._refused(f"port {port} at {address}")

    @contextlib.contextmanager
    def put(self, content: bytes, *, timeout: float) -> Iterator[str]:  # noqa: ARG002
        """Raise Refused: no file is taken."""
        raise self._refused("a place for a file")
        yield ""

    def _command_line(self, argv: Sequence[str]) -> str:
        """Return a mode and its variables as the hook reads them: joined by blanks, nothing quoted."""
        if not argv[0].startswith("--"):
            raise self._refused(f"'{describe(argv)}'")
        return " ".join(argv)

    def _refused(self, what: str) -> Refused:
        return Refused(
            f"ssh host {self.name}: {what} is out of reach, because host.restricted is true: this key may ask the hook "
            "only; leave out what needs more, or use a key that may do more"
        )
