"""A listener on this machine whose connections are piped over ssh."""

from __future__ import annotations

import contextlib
import errno
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import paramiko

from pytest_imagefresh.adapters.ssh.connection import FOREIGN_ERRORS
from pytest_imagefresh.core.errors import EvidenceError

_CHUNK = 32768
_BACKLOG = 128
_HEAD_LIMIT = 65536
_POLL_SECONDS = 0.1
_JOIN_SECONDS = 2.0


def plain(data: bytes) -> bytes:
    """Return what a client sends as it is."""
    return data


class OneRequest:
    """Edits what a client of the engine's API sends so that its connection ends with the first answer.

    docker-py keeps an idle connection for every address that it ever asked for; where connections are few, it would
    soon wait for itself. A request that turns its connection into a stream of its own (Upgrade) is left as it is.
    """

    def __init__(self) -> None:
        self._head = bytearray()
        self._passed = False

    def __call__(self, data: bytes) -> bytes:
        """Return what to send on: nothing until the head of the request is complete."""
        if self._passed:
            return data
        self._head += data
        head, end, _ = bytes(self._head).partition(b"\r\n\r\n")
        if not end and len(head) < _HEAD_LIMIT:
            return b""
        self._passed = True
        if b"\r\nupgrade:" in head.lower():
            return bytes(self._head)
        return bytes(self._head).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


@dataclass(frozen=True)
class FarEnd:
    """The far end of one connection."""

    channel: paramiko.Channel
    edit: Callable[[bytes], bytes]
    """Is given everything that the client sends, and returns what is sent on."""


Dial = Callable[[], AbstractContextManager[FarEnd]]
"""Opens the far end of one connection; raises EvidenceError where it cannot."""
Complain = Callable[[socket.socket, str], None]
"""Tells a client on this machine why it gets no answer."""


class Forward:
    """Accepts connections until closed; each one is piped to a channel of its own, both directions at once."""

    def __init__(self, listener: socket.socket, dial: Dial, complain: Complain) -> None:
        """Take over a bound listener."""
        self._listener = listener
        self.lost = ""
        """Why a client was not led to its far end, where this machine had no file descriptor or thread left for it."""
        self._dial = dial
        self._complain = complain
        self._wake, self._woken = socket.socketpair()
        self._lock = threading.Lock()
        self._closed = False
        self._connecting = 0
        self._threads: set[threading.Thread] = set()
        self._pipes: set[_Pipe] = set()
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        self._acceptor = threading.Thread(target=self._accept, name="imagefresh-forward", daemon=True)
        self._acceptor.start()

    def connecting(self) -> int:
        """Return how many clients wait for their far ends, which are neither open nor known not to be.

        Those that are still to be accepted count as one.
        """
        # In this order: a client that waits to be accepted is counted before it no longer does.
        waiting = select.poll()
        waiting.register(self._listener, select.POLLIN)
        return len(waiting.poll(0)) + self._connecting

    def stop(self) -> None:
        """Accept no more and cut what is piped; returns at once."""
        with self._lock:
            self._closed = True
            pipes = list(self._pipes)
        with contextlib.suppress(OSError):
            self._wake.send(b"x")
        for pipe in pipes:
            pipe.cut()

    def join(self) -> None:
        """Wait for the threads to end, after `stop` and after the connection was closed."""
        self._acceptor.join(_JOIN_SECONDS)
        for thread in list(self._threads):
            thread.join(_JOIN_SECONDS)
        for end in (self._listener, self._wake, self._woken):
            end.close()

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while not self._closed:
            poll.poll()
            self._count(1)
            try:
                client, _ = self._listener.accept()
                client.setblocking(True)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):  # these: nobody there any more
                    self.lost = str(error)  # the client waits in the backlog
                self._count(-1)
                time.sleep(_POLL_SECONDS)
            else:
                self._start(client)

    def _start(self, client: socket.socket) -> None:
        thread = threading.Thread(target=self._serve, args=(client,), name="imagefresh-forward-client", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:
            self.lost = str(error)
            self._threads.discard(thread)
            self._count(-1)
            client.close()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                self._pipe(client)
        except RuntimeError as error:  # no thread for its requests
            self.lost = str(error)
        finally:
            self._threads.discard(threading.current_thread())

    def _count(self, more: int) -> None:
        with self._lock:
            self._connecting += more

    @contextlib.contextmanager
    def _far_end(self) -> Iterator[FarEnd]:
        """Open the far end of a client that was counted, and count it no longer, whatever came of it."""
        with contextlib.ExitStack() as stack:
            try:
                far = stack.enter_context(self._dial())
            finally:
                self._count(-1)
            yield far

    def _pipe(self, client: socket.socket) -> None:
        try:
            with self._far_end() as far:
                pipe = _Pipe(client, far)
                if not self._add(pipe):
                    return
                try:
                    pipe.run()
                finally:
                    self._pipes.discard(pipe)
                problem = "" if pipe.answered or self._closed else _problem(far.channel)
        except EvidenceError as error:
            problem = str(error)
        except FOREIGN_ERRORS as error:
            problem = str(error) or type(error).__name__
        if problem:
            with contextlib.suppress(OSError):
                self._complain(client, problem)

    def _add(self, pipe: _Pipe) -> bool:
        with self._lock:
            if not self._closed:
                self._pipes.add(pipe)
            return not self._closed


def _problem(channel: paramiko.Channel) -> str:
    """Return why the far end ended without an answer: what the program there said, or ""."""
    if not channel.eof_received:
        return "the ssh connection was lost"
    said = b""
    while channel.recv_stderr_ready():
        said += channel.recv_stderr(_CHUNK)
    return " ".join(said.decode("utf-8", "replace").split())


class _Pipe:
    """One client and one channel. A direction that ends is half-closed, so that the other one can still finish."""

    def __init__(self, client: socket.socket, far: FarEnd) -> None:
        self.answered = False
        """Whether a byte came from the far end."""
        self._client = client
        self._channel = far.channel
        self._edit = far.edit
        self._answers_ended = threading.Event()
        self._over = threading.Event()

    def run(self) -> None:
        """Return when both directions have ended. The channel may stay open: who opened it closes it."""
        requests = threading.Thread(target=self._requests, name="imagefresh-forward-requests", daemon=True)
        requests.start()
        try:
            self._answers()
            self._answers_ended.set()
            # The client may go on sending after the last answer, as long as the far end listens.
            while requests.is_alive() and not self._channel.closed:
                requests.join(_POLL_SECONDS)
        finally:
            self._over.set()
            requests.join()

    def cut(self) -> None:
        """End both directions from outside. Only the client's side: the channel ends with its connection."""
        self._over.set()
        _shutdown(self._client, socket.SHUT_RDWR)

    def _answers(self) -> None:
        """Far end to client, until the far end has no more."""
        with contextlib.suppress(*FOREIGN_ERRORS):
            while data := self._channel.recv(_CHUNK):
                self.answered = True
                self._client.sendall(data)
        if self.answered:
            _shutdown(self._client, socket.SHUT_WR)

    def _requests(self) -> None:
        """Client to far end, until the client has no more."""
        poll = select.poll()
        poll.register(self._client, select.POLLIN)
        with contextlib.suppress(*FOREIGN_ERRORS):
            while not self._over.is_set():
                if not poll.poll(_POLL_SECONDS * 1000):
                    continue
                data = self._client.recv(_CHUNK)
                if not data:
                    self._channel.shutdown_write()
                    self._await_answers()
                    return
                self._channel.sendall(self._edit(data))

    def _await_answers(self) -> None:
        """Let the far end go on answering after the last request, as long as the client is there."""
        poll = select.poll()
        poll.register(self._client, 0)
        while not self._answers_ended.wait(_POLL_SECONDS):
            if poll.poll(0):
                # POLLHUP: the client is gone altogether; an answer that never comes must not hold the channel.
                self._channel.close()
                return


def _shutdown(connection: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(how)


def reset(client: socket.socket, problem: str) -> None:  # noqa: ARG001
    """Close a TCP client's connection so that it looks refused, not like an empty answer."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def answer_unavailable(client: socket.socket, problem: str) -> None:
    """Answer a client of the engine's API with status 503 and the reason, which docker and docker-py both show."""
    body = json.dumps({"message": problem}).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    client.sendall(head.encode("ascii") + body)
    client.shutdown(socket.SHUT_WR)
    # A close with the request still unread would take the answer away from the client.
    client.settimeout(1.0)
    while client.recv(_CHUNK):
        pass
