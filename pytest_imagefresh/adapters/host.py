"""The Docker host, local or over ssh, behind one interface."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from pytest_imagefresh.adapters import command
from pytest_imagefresh.adapters.command import Completed, Sent
from pytest_imagefresh.adapters.dialogue import Dialogue
from pytest_imagefresh.core import settings
from pytest_imagefresh.core.errors import ConfigError, EvidenceError

LOOPBACK = "127.0.0.1"

_SCHEME = "unix://"


class Host(Protocol):
    """Where engine, compose folder and hook are. Everything above treats a local and a remote one alike."""

    @property
    def name(self) -> str:
        """`local`, or the ssh target, for messages."""
        ...

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: Sent = b"",
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """Run a program on the host to its end; `timeout` is in seconds.

        Raises EvidenceError where it cannot be known how it ended.
        """
        ...

    def start(self, argv: Sequence[str]) -> Dialogue:
        """Start a program on the host that goes on while others run, and return what is said to it and by it.

        Raises EvidenceError where it cannot be started.
        """
        ...

    def engine_socket(self) -> str:
        """Return the path of a unix socket on this machine that reaches the host's engine."""
        ...

    def reach(self, port: int, address: str = LOOPBACK) -> tuple[str, int]:
        """Return address and port on this machine that reach `port` at an address of the host, its own by default."""
        ...

    def under_way(self) -> int:
        """Return how many connections to what `reach` returned have still to come to their ends, or to fail."""
        ...

    def require_reached(self) -> None:
        """Raise EvidenceError where a connection to what `reach` returned never came as far as its end.

        Without this, a port behind something that forbids the way would be taken for one at which nobody is.
        """
        ...

    def put(self, content: bytes, *, timeout: float) -> AbstractContextManager[str]:
        """Send an executable file into a private folder on the host; yield its path there; remove it afterwards."""
        ...

    def close(self) -> None:
        """End everything that this object holds. Twice is once."""
        ...


class LocalHost:
    """This machine as the Docker host."""

    name = "local"

    def __init__(self, host: settings.Host) -> None:
        self._engine_socket = socket_path(host.docker_host)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: Sent = b"",
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """Run a program on this machine, in a clean environment."""
        return command.run(argv, timeout=timeout, stdin=stdin, on_line=on_line)

    def start(self, argv: Sequence[str]) -> Dialogue:
        """Start a program on this machine, in a clean environment."""
        return Dialogue(command.Spoken(argv))

    def engine_socket(self) -> str:
        """Return the engine's own socket."""
        return self._engine_socket

    def reach(self, port: int, address: str = LOOPBACK) -> tuple[str, int]:
        """Return the port itself."""
        return address, port

    def under_way(self) -> int:
        """Return 0: nothing lies between."""
        return 0

    def require_reached(self) -> None:
        """Do nothing: nothing lies between."""

    @contextmanager
    def put(self, content: bytes, *, timeout: float) -> Iterator[str]:  # noqa: ARG002
        """Write an executable file into a private temporary folder; yield its path; remove both afterwards."""
        try:
            folder = tempfile.mkdtemp(prefix="imagefresh-")
        except OSError as error:
            raise EvidenceError(f"no temporary folder on this machine: {error}; free or create one (TMPDIR)") from error
        try:
            yield _write_executable(Path(folder) / "file", content)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Do nothing: a local host holds nothing."""


def _write_executable(path: Path, content: bytes) -> str:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError as error:
        raise EvidenceError(f"{path} could not be written: {error.strerror}; is the disk full?") from error
    return str(path)


def socket_path(docker_host: str) -> str:
    """Return the path in `unix:///path`. Raises ConfigError for anything else: it must be the host's own engine."""
    path = docker_host.removeprefix(_SCHEME)
    if not docker_host.startswith(_SCHEME) or not path.startswith("/"):
        raise ConfigError(f"host.docker_host is {docker_host!r}, expected unix:///path/docker.sock; correct it")
    return path


def connect(host: settings.Host, timeouts: settings.Timeouts) -> Host:
    """Return the Docker host that the settings name, connected.

    Raises ConfigError for settings that cannot be right, Refused for an unknown or changed host key, EvidenceError
    where the host cannot be reached or does not let us in.
    """
    if host.is_local:
        return LocalHost(host)
    socket_path(host.docker_host)
    # paramiko costs 150 ms; a local run never pays for it.
    from pytest_imagefresh.adapters.ssh import RestrictedHost, SshHost

    return (RestrictedHost if host.restricted else SshHost)(host, timeouts)
