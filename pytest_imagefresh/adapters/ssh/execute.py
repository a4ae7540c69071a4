"""One program on the host: feed it, read it, and know how it ended."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal

import paramiko

from pytest_imagefresh.adapters.command import HELD_SECONDS, LineFeed, Sent
from pytest_imagefresh.adapters.ssh.connection import FOREIGN_ERRORS, reason, watched
from pytest_imagefresh.core.errors import EvidenceError

_CHUNK = 65536
_SEND_CHUNK = 32768
_POLL_SECONDS = 0.1
_CLOSE_SECONDS = 5.0
_JOIN_SECONDS = 2.0

Problem = Literal["", "timeout", "held", "lost"]


def close_channel(channel: paramiko.Channel) -> None:
    """Close a channel. A peer that does not even take the farewell loses the whole connection."""
    with contextlib.suppress(*FOREIGN_ERRORS), watched(channel.get_transport(), _CLOSE_SECONDS):
        channel.close()


class Spoken:
    """A program on the host with an open standard input; see `dialogue.Program`.

    Its end is not ours to make: it loses its input and its outputs, and must take that for its end.
    """

    def __init__(self, channel: paramiko.Channel, name: str) -> None:
        """`name` names program and host, for messages."""
        self._channel = channel
        self._name = name

    def read_stdout(self) -> bytes:
        """Wait for output, and return it."""
        return _read(self._channel.recv)

    def read_stderr(self) -> bytes:
        """Wait for output, and return it."""
        return _read(self._channel.recv_stderr)

    def write(self, data: bytes) -> None:
        """Write to its standard input. Raises EvidenceError where it does not take it."""
        try:
            self._channel.sendall(data)
        except FOREIGN_ERRORS as error:
            raise EvidenceError(f"{self._name} no longer listens: {reason(error)}") from error

    def hang_up(self) -> None:
        """Close its standard input."""
        with contextlib.suppress(*FOREIGN_ERRORS):
            self._channel.shutdown_write()

    def wait(self, seconds: float) -> int | None:
        """Return its exit status; None where none has come after that time."""
        came = self._channel.status_event.wait(seconds)
        return self._channel.exit_status if came and self._channel.exit_status != -1 else None

    def end(self) -> None:
        """Close the channel. Twice is once."""
        close_channel(self._channel)


def _read(receive: Callable[[int], bytes]) -> bytes:
    with contextlib.suppress(*FOREIGN_ERRORS):
        return receive(_CHUNK)
    return b""


class Exchange:
    """Feed standard input and read both outputs at the same time; a thread each, as neither may block the other.

    A context manager: the channel is closed and the threads are gone at its end. Lines are handed on in the caller's
    thread, so that an exception there, or a KeyboardInterrupt, ends the exchange.
    """

    def __init__(self, channel: paramiko.Channel, stdin: Sent, lines: LineFeed) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._channel = channel
        self._lines = lines
        self._read: queue.Queue[tuple[bytearray, bytes]] = queue.Queue()
        self._threads = [
            self._thread(self._pump, channel.recv, self.stdout),
            self._thread(self._pump, channel.recv_stderr, self.stderr),
            self._thread(self._send, stdin),
        ]

    def __enter__(self) -> Exchange:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        close_channel(self._channel)
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)

    def run(self, deadline: float) -> Problem:
        """Return "" when the program has ended and everything it wrote is here, else what went wrong."""
        problem = self._collect(deadline)
        if problem:
            return problem
        self._lines.finish()
        # A program may close its outputs long before it ends.
        if not self._channel.status_event.wait(max(0.0, deadline - time.monotonic())):
            return "timeout"
        # A connection that breaks ends the outputs too, without an end-of-file, and even after the exit status came.
        return "" if self._channel.eof_received and self._ended() else "lost"

    @property
    def status(self) -> int:
        """The exit status, once `run` has returned ""."""
        return self._channel.exit_status

    def _ended(self) -> bool:
        """Whether an exit status came. paramiko has -1 where none did: lost, or ended by a signal."""
        return self._channel.status_event.is_set() and self._channel.exit_status != -1

    def _collect(self, deadline: float) -> Problem:
        """Gather what the readers bring until both outputs have ended."""
        alive = time.monotonic()
        still_open = 2
        while still_open:
            now = time.monotonic()
            if now >= deadline:
                return "timeout"
            if now - alive >= HELD_SECONDS:
                return "held"
            try:
                output, data = self._read.get(timeout=min(_POLL_SECONDS, deadline - now))
            except queue.Empty:
                alive = alive if self._ended() else time.monotonic()
                continue
            alive = time.monotonic()
            still_open -= not data
            self._take(output, data)
        return ""

    def _take(self, output: bytearray, data: bytes) -> None:
        output += data
        if output is self.stderr:
            self._lines.feed(data)

    @staticmethod
    def _thread(target: Callable[..., None], *arguments: object) -> threading.Thread:
        return threading.Thread(target=target, args=arguments, name="imagefresh-run", daemon=True)

    def _pump(self, receive: Callable[[int], bytes], output: bytearray) -> None:
        data = b"first"
        while data:
            data = _read(receive)
            self._read.put((output, data))

    def _send(self, stdin: Sent) -> None:
        # Fails where the program ends without reading everything; its exit status tells whether that was right.
        with contextlib.suppress(*FOREIGN_ERRORS):
            view = memoryview(stdin)
            for start in range(0, len(view), _SEND_CHUNK):
                self._channel.sendall(view[start : start + _SEND_CHUNK].tobytes())
            self._channel.shutdown_write()
