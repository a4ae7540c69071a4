"""One ssh connection: what paramiko lacks, and bounds on what it waits for."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence

import paramiko

FOREIGN_ERRORS = (paramiko.SSHException, OSError, EOFError)
"""What paramiko raises when a connection does not do what it should."""

_JOIN_SECONDS = 2.0

# Every failure is reported as an error of our own; paramiko's tracebacks in logs and reports would only bury it.
_LOG = "pytest_imagefresh.ssh"
logging.getLogger(_LOG).setLevel(logging.CRITICAL)


class Connection(paramiko.Transport):
    """A paramiko transport that can also reach unix sockets of the host."""

    def __init__(self, stream: paramiko.transport._SocketLike) -> None:
        super().__init__(stream)
        self.set_log_channel(_LOG)
        self._unix = threading.local()

    def open_unix(self, path: str, *, timeout: float) -> paramiko.Channel:
        """Return a channel to a unix socket of the host. Raises what paramiko raises.

        Not a session: sshd's MaxSessions does not count it. Source: OpenSSH's PROTOCOL file, section 2.4.
        """
        self._unix.path = path
        try:
            return self.open_channel("direct-streamlocal@openssh.com", timeout=timeout)
        finally:
            self._unix.path = None

    def _send_user_message(self, data: paramiko.Message) -> None:
        # paramiko knows no kind of channel that names a socket: the path, and two reserved fields, are still missing.
        path = getattr(self._unix, "path", None)
        if path is not None:
            data.add_string(path)
            data.add_string("")
            data.add_int(0)
            self._unix.path = None
        super()._send_user_message(data)  # type: ignore[misc]


def close(connections: Sequence[Connection]) -> None:
    """Close connections, the innermost first, and wait for their threads."""
    for connection in reversed(connections):
        with contextlib.suppress(*FOREIGN_ERRORS):
            connection.close()
        if connection.is_alive():
            connection.join(_JOIN_SECONDS)


@contextlib.contextmanager
def watched(connection: paramiko.Transport, seconds: float) -> Iterator[None]:
    """Close the connection when the body takes longer.

    paramiko waits without bound for some answers, and in a write to a peer that stopped reading. Such a connection is
    of no more use, and closing it is the one thing that always wakes the body up.
    """
    watchdog = threading.Timer(seconds, connection.close)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def reason(error: BaseException) -> str:
    """Return what a foreign error says, in one line."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, EOFError):
        return "the connection was closed"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())
