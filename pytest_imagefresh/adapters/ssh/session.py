"""The Docker host over ssh: one connection, over which programs run and the engine and ports are reached."""

from __future__ import annotations

import atexit
import contextlib
import functools
import re
import shlex
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import paramiko

from pytest_imagefresh.adapters.command import (
    Completed,
    LineFeed,
    Sent,
    describe,
    held_message,
    last_line,
    timeout_message,
)
from pytest_imagefresh.adapters.dialogue import Dialogue
from pytest_imagefresh.adapters.ssh import login
from pytest_imagefresh.adapters.ssh.connection import FOREIGN_ERRORS, Connection, close, reason, watched
from pytest_imagefresh.adapters.ssh.execute import Exchange, Problem, Spoken, close_channel
from pytest_imagefresh.adapters.ssh.forward import Dial, FarEnd, Forward, OneRequest, answer_unavailable, plain, reset
from pytest_imagefresh.adapters.ssh.known_hosts import read_known_hosts
from pytest_imagefresh.adapters.ssh.route import resolve
from pytest_imagefresh.core import settings
from pytest_imagefresh.core.errors import EvidenceError

# sshd allows 10 sessions per connection (MaxSessions) and refuses further ones; ours wait instead.
# One more is for the lease, as long as the run lasts.
_ENGINE_SESSIONS = 6
_RUN_SESSIONS = 3
_POLL_SECONDS = 0.1
_RETRY_SECONDS = 0.02
_CONNECT_FAILED = 2
"""Source: RFC 4254, 5.1: the reason for which a channel is not opened."""
_FREED_SECONDS = 2.0
_LEAST_SECONDS = 5.0
"""A host that merely is slow to start a program does not lose its connection before this."""
_SOCKET_PATH_LIMIT = 100
"""sockaddr_un holds 108 bytes, on some systems 104."""

_RECEIVE = (
    "umask 077; folder=$(mktemp -d /tmp/imagefresh-XXXXXXXXXX) || exit 1; "
    'if cat >"$folder/file" && [ "$(wc -c <"$folder/file")" -eq "$1" ] && chmod 0700 "$folder/file"; then '
    'printf "%s\\n" "$folder"; else rm -rf -- "$folder"; exit 1; fi'
)
_LOOPBACK = "127.0.0.1"
_FOLDER = re.compile(r"/tmp/imagefresh-[A-Za-z0-9]{10}")  # noqa: S108


class SshHost:
    """A Docker host behind ssh. One connection for everything; `close` ends it, and so does the end of the process."""

    def __init__(self, host: settings.Host, timeouts: settings.Timeouts) -> None:
        """Connect. Raises ConfigError, Refused for a host key that is not the known one, EvidenceError otherwise."""
        self.name = host.ssh
        self._bound = timeouts.inspect
        self._engine_path = host.docker_host.removeprefix("unix://")
        self._engine_argv = _dial_stdio(host)
        known = read_known_hosts(host.known_hosts, named=host.known_hosts != settings.Host().known_hosts)
        hops = resolve(host.ssh, timeout=self._bound)
        self._lock = threading.Lock()
        self._closed = False
        self._folder = ""
        self._engine: Forward | None = None
        self._ports: dict[tuple[str, int], tuple[Forward, int]] = {}
        self._untried: list[tuple[str, int]] = []
        self._engine_slots = threading.Semaphore(_ENGINE_SESSIONS)
        self._run_slots = threading.Semaphore(_RUN_SESSIONS)
        self._connections = login.connect(hops, known, timeout=self._bound)
        atexit.register(self.close)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: Sent = b"",
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """Run a program on the host to its end and return its exit status, whatever it is, and its output.

        `timeout` is in seconds; when it is over the program loses its input and outputs, and the host decides what
        becomes of it; a mode of the hook that a lease lets through ends with the lease. Raises EvidenceError where it
        cannot be known how the program ended, lost connections included.
        """
        deadline = time.monotonic() + timeout
        with self._slot(self._run_slots, min(timeout, self._bound)):
            channel = self._open_session(argv, min(timeout, self._bound))
            with Exchange(channel, stdin, LineFeed(on_line)) as exchange:
                problem = exchange.run(deadline)
                stderr = bytes(exchange.stderr)
                if problem:
                    raise EvidenceError(self._explain(problem, argv, timeout, stderr))
                return Completed(tuple(argv), exchange.status, bytes(exchange.stdout), stderr)

    def start(self, argv: Sequence[str]) -> Dialogue:
        """Start a program on the host that goes on while others run, and return what is said to it and by it.

        It takes a session of its own, beside those for `run` and for the engine. Raises EvidenceError where it cannot
        be started.
        """
        name = f"'{describe(argv)}' on {self.name}"
        return Dialogue(Spoken(self._open_session(argv, self._bound), name))

    def engine_socket(self) -> str:
        """Return the path of a unix socket on this machine whose connections reach the host's engine.

        A client whose connection cannot be made gets the reason as an answer with HTTP status 503.
        """
        with self._lock:
            self._require_open()
            path = str(Path(self._folder or self._make_folder(), "engine.sock"))
            if self._engine is None:
                listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                listener.bind(path)
                self._engine = Forward(listener, self._engine_channel, answer_unavailable)
        return path

    def reach(self, port: int, address: str = _LOOPBACK) -> tuple[str, int]:
        """Return address and port on this machine whose connections reach `port` at an address of the host.

        Where nothing listens there, a connection is made and then reset.
        """
        with self._lock:
            self._require_open()
            if (address, port) not in self._ports:
                listener = socket.create_server((_LOOPBACK, 0))
                dial: Dial = functools.partial(self._port_channel, address, port)
                local = int(listener.getsockname()[1])
                self._ports[address, port] = (Forward(listener, dial, reset), local)
            return _LOOPBACK, self._ports[address, port][1]

    def under_way(self) -> int:
        """Return how many connections to what `reach` returned have still to come to their ends, or to fail."""
        return sum(forward.connecting() for forward, _ in self._ports.values())

    def require_reached(self) -> None:
        """Raise EvidenceError where a connection to what `reach` returned never came as far as its end.

        Each of them is tried once more by itself: of several that fail at once paramiko loses why.
        """
        for forward, _ in self._ports.values():
            if forward.lost:
                raise EvidenceError(
                    f"ssh host {self.name}: expected every connection to come as far as its port, observed that this "
                    f"machine could not lead one there ({forward.lost}); raise its limits of open files and threads"
                )
        for address, port in dict.fromkeys(self._untried):
            try:
                close_channel(self._open_port(address, port))
            except FOREIGN_ERRORS as error:
                if not _is_refused(error):
                    raise EvidenceError(
                        f"ssh host {self.name}: expected every connection to come as far as its port, observed that "
                        f"{address}:{port} was not even tried ({error}); allow it there: AllowTcpForwarding, PermitOpen"
                    ) from error

    def _open_port(self, address: str, port: int) -> paramiko.Channel:
        return self._connections[-1].open_channel("direct-tcpip", (address, port), (_LOOPBACK, 0), timeout=self._bound)

    @contextlib.contextmanager
    def put(self, content: bytes, *, timeout: float) -> Iterator[str]:
        """Send an executable file into a private folder on the host; yield its path there; remove both afterwards."""
        argv = ["sh", "-c", _RECEIVE, "sh", str(len(content))]
        done = self.run(argv, timeout=timeout, stdin=content)
        folder = done.stdout.decode("utf-8", "replace").strip()
        if done.status != 0 or not _FOLDER.fullmatch(folder):
            said = last_line(done.stderr) or f"exit status {done.status}, output {folder[:100]!r}"
            raise EvidenceError(f"ssh host {self.name}: a file could not be sent into /tmp: {said}; free space there")
        try:
            yield f"{folder}/file"
        finally:
            # A host that is gone keeps its copy in /tmp; what the caller did with it counts more than that.
            with contextlib.suppress(EvidenceError):
                self.run(["rm", "-rf", "--", folder], timeout=timeout)

    def close(self) -> None:
        """End the connection, its threads, sockets and folder. Twice is once."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            forwards = [forward for forward, _ in self._ports.values()]
            forwards += [self._engine] if self._engine else []
        atexit.unregister(self.close)
        for forward in forwards:
            forward.stop()
        close(self._connections)
        for forward in forwards:
            forward.join()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _require_open(self) -> None:
        if self._closed:
            raise EvidenceError(f"ssh host {self.name}: the connection was closed; connect again")

    def _make_folder(self) -> str:
        """Make the private folder of the engine's socket, where its path is short enough for one."""
        inside = None if len(tempfile.gettempdir()) < _SOCKET_PATH_LIMIT // 2 else "/tmp"  # noqa: S108
        self._folder = tempfile.mkdtemp(prefix="imagefresh-", dir=inside)
        return self._folder

    @contextlib.contextmanager
    def _slot(self, slots: threading.Semaphore, seconds: float) -> Iterator[None]:
        """Hold one of the sessions that the host allows us, once one is free."""
        deadline = time.monotonic() + seconds
        while not slots.acquire(timeout=_POLL_SECONDS):
            self._require_open()
            if time.monotonic() >= deadline:
                raise EvidenceError(
                    f"ssh host {self.name}: every session is in use, expected a free one within {seconds:g} s; "
                    "close clients that are not needed"
                )
        try:
            yield
        finally:
            slots.release()

    def _open_session(self, argv: Sequence[str], seconds: float) -> paramiko.Channel:
        """Start a program on the host and return the channel to it."""
        line = self._command_line(argv)
        self._require_open()
        if "\0" in line:
            raise EvidenceError(
                f"ssh host {self.name}: '{describe(argv)}' holds a NUL byte, which no program can be given"
            )
        try:
            return _start_patiently(self._connections[-1], line, seconds)
        except FOREIGN_ERRORS as error:
            raise EvidenceError(
                f"ssh host {self.name}: '{describe(argv)}' could not be started within {seconds:g} s: "
                f"{reason(error)}; check the connection, and MaxSessions in sshd_config"
            ) from error

    def _command_line(self, argv: Sequence[str]) -> str:
        """Return a program and its arguments as the host's login shell reads them."""
        return shlex.join(argv)

    def _explain(self, problem: Problem, argv: Sequence[str], timeout: float, stderr: bytes) -> str:
        where = f" on {self.name}"
        if problem == "timeout":
            return timeout_message(argv, timeout, stderr, where)
        if problem == "held":
            return held_message(argv, where)
        said = f", its last words were {last_line(stderr)!r}" if stderr else ""
        if self._connections[-1].is_active():
            return (
                f"'{describe(argv)}'{where} brought no exit status{said}; a signal ended it, look into the host's log"
            )
        return (
            f"ssh host {self.name}: the connection was lost while '{describe(argv)}' ran{said}; whether it finished "
            "there is unknown, look on the host before trying again"
        )

    @contextlib.contextmanager
    def _engine_channel(self) -> Iterator[FarEnd]:
        """Open one channel to the engine: straight to its socket, else through the docker command there.

        sshd may forbid the first (AllowStreamLocalForwarding); the second takes one of the few sessions, and longer, so
        that it serves one request. Where the socket itself is at fault, the command also says what is wrong with it.
        """
        channel = self._open_engine_socket()
        with contextlib.nullcontext() if channel else self._slot(self._engine_slots, self._bound):
            edit = plain if channel else OneRequest()
            channel = channel or self._open_session(self._engine_argv, self._bound)
            try:
                yield FarEnd(channel, edit)
            finally:
                close_channel(channel)

    def _open_engine_socket(self) -> paramiko.Channel | None:
        """Return a channel straight to the engine's socket, or None where that way is closed."""
        with contextlib.suppress(paramiko.SSHException):
            return self._connections[-1].open_unix(self._engine_path, timeout=self._bound)
        return None

    @contextlib.contextmanager
    def _port_channel(self, address: str, port: int) -> Iterator[FarEnd]:
        # No watchdog: a port that does not even refuse must not cost us the connection.
        try:
            channel = self._open_port(address, port)
        except BaseException as error:
            if not _is_refused(error):
                self._untried.append((address, port))
            raise
        try:
            yield FarEnd(channel, plain)
        finally:
            close_channel(channel)


def _is_refused(error: BaseException) -> bool:
    """Say whether the port itself refused, which is an answer; sshd that does, or silence, says nothing of the port."""
    return isinstance(error, paramiko.ChannelException) and error.code == _CONNECT_FAILED


def _start_patiently(connection: Connection, line: str, seconds: float) -> paramiko.Channel:
    """Start a command; where every session is in use, wait a moment: sshd frees one only after we know of its end."""
    give_up = time.monotonic() + min(seconds, _FREED_SECONDS)
    while True:
        try:
            return _start(connection, line, seconds)
        except paramiko.ChannelException:
            if time.monotonic() >= give_up:
                raise
            time.sleep(_RETRY_SECONDS)


def _start(connection: Connection, line: str, seconds: float) -> paramiko.Channel:
    """Start a command line on the host. Raises what paramiko raises."""
    with watched(connection, max(seconds, _LEAST_SECONDS)):
        channel = connection.open_session(timeout=seconds)
        try:
            channel.exec_command(line)
        except BaseException:
            close_channel(channel)
            raise
    return channel


def _dial_stdio(host: settings.Host) -> list[str]:
    """Return the command that pipes its standard input and output to the host's engine."""
    environment = ["env", f"DOCKER_CONFIG={host.docker_config}"] if host.docker_config else []
    return [*environment, "docker", "-H", host.docker_host, "system", "dial-stdio"]
