"""A way to a server that can be watched, stalled and cut."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

_CHUNK = 65536
_TAIL = 512
_JOIN_SECONDS = 5.0

Address = str | tuple[str, int]
"""The path of a unix socket, or host and port."""


class Proxy:
    """A context manager: a listener whose connections are passed on to a server, both directions at once."""

    def __init__(self, listener: socket.socket, server: Address) -> None:
        self._listener = listener
        self._server = server
        self._flowing = threading.Event()
        self._flowing.set()
        self._lock = threading.Lock()
        self._watched: list[tuple[re.Pattern[bytes], Callable[[], object]]] = []
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @classmethod
    def unix(cls, path: Path, server: str) -> Proxy:
        """A proxy at a path, in front of a unix socket."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen()
        return cls(listener, server)

    @classmethod
    def tcp(cls, port: int) -> Proxy:
        """A proxy on a free port of 127.0.0.1, in front of another port there."""
        return cls(socket.create_server(("127.0.0.1", 0)), ("127.0.0.1", port))

    @property
    def port(self) -> int:
        """The port of a proxy made by `tcp`."""
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)

    def when(self, pattern: bytes, action: Callable[[], object]) -> None:
        """Call `action` once, just before bytes of a client that match are passed on."""
        self._watched.append((re.compile(pattern), action))

    def stall(self) -> None:
        """From now on nothing is passed on; connections stay open and new ones are taken."""
        self._flowing.clear()

    def cut(self) -> None:
        """Break every connection and take no more."""
        with self._lock:
            sockets = [self._listener, *self._sockets]
        for each in sockets:
            # A shutdown also wakes up whoever waits in accept or recv.
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._flowing.set()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                family = socket.AF_UNIX if isinstance(self._server, str) else socket.AF_INET
                server = socket.socket(family, socket.SOCK_STREAM)
                with self._lock:
                    self._sockets += [client, server]
                server.connect(self._server)
                self._start(self._pass_on, client, server, True)
                self._start(self._pass_on, server, client, False)

    def _pass_on(self, source: socket.socket, sink: socket.socket, watched: bool) -> None:
        tail = b""
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                if watched:
                    self._look(tail + data)
                    tail = data[-_TAIL:]
                self._flowing.wait()
                sink.sendall(data)
            self._flowing.wait()
            sink.shutdown(socket.SHUT_WR)

    def _look(self, data: bytes) -> None:
        with self._lock:
            due = [pair for pair in self._watched if pair[0].search(data)]
            self._watched = [pair for pair in self._watched if pair not in due]
        for _, action in due:
            action()
