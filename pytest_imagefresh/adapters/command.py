"""Run one program on this machine. The only module that imports subprocess."""

from __future__ import annotations

import contextlib
import mmap
import os
import selectors
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Literal

from pytest_imagefresh.core.errors import EvidenceError

HELD_SECONDS = 5.0
"""How long a program that has ended may leave its output open, without a byte coming, before that is an error."""

Sent = bytes | mmap.mmap
"""What a program is given as its standard input: bytes, or a mapped file of any size."""

_TERM_GRACE_SECONDS = 2.0
_POLL_SECONDS = 0.05
_CHUNK = 65536
_INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MESSAGE_LIMIT = 200

_INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "SSH_AUTH_SOCK",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
)
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Completed:
    """How one program ended, and everything it wrote."""

    argv: tuple[str, ...]
    status: int
    """Exit status; -N where signal N ended it."""
    stdout: bytes
    stderr: bytes


class LineFeed:
    """Cut a stream of bytes into lines and hand each one on as soon as it is complete.

    Lines are decoded as UTF-8 with replacement characters and come without their line end.
    """

    def __init__(self, on_line: Callable[[str], None] | None) -> None:
        self._on_line = on_line
        self._rest = bytearray()

    def feed(self, data: bytes) -> None:
        """Take the next bytes; call `on_line` for every line that they complete."""
        if self._on_line is None:
            return
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._hand_on(bytes(self._rest) + line)
            self._rest.clear()
        self._rest += rest

    def finish(self) -> None:
        """Hand on a last line that has no line end."""
        if self._rest:
            self._hand_on(bytes(self._rest))
            self._rest.clear()

    def _hand_on(self, line: bytes) -> None:
        if self._on_line is not None:
            self._on_line(line.rstrip(b"\r").decode("utf-8", "replace"))


def clean_environment() -> dict[str, str]:
    """Return the environment for a program whose answer the caller's shell must not bend.

    Holds the caller's PATH, HOME, user, ssh-agent and runtime folder, a fixed locale, and nothing else: no GIT_*,
    DOCKER_* or COMPOSE_* variable of the caller reaches the program.
    """
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {"PATH": _DEFAULT_PATH, **kept, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


def describe(argv: Sequence[str]) -> str:
    """Return a command as one short line for a message."""
    line = " ".join(shlex.join(argv).split())
    return line if len(line) <= _MESSAGE_LIMIT else f"{line[:_MESSAGE_LIMIT]}..."


def last_line(output: bytes) -> str:
    """Return the last line of some output that is not blank, shortened for a message, or ""."""
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:_MESSAGE_LIMIT] if lines else ""


def timeout_message(argv: Sequence[str], timeout: float, stderr: bytes, where: str = "") -> str:
    """Return the one line that says a command took too long. `where` names a host, ` on staging`."""
    said = last_line(stderr)
    last = f"its last words were {said!r}" if said else "it said nothing"
    return f"'{describe(argv)}'{where} was expected to end within {timeout:g} s and did not; {last}; it was stopped"


def held_message(argv: Sequence[str], where: str = "") -> str:
    """Return the one line that says a command ended and left its output open, so that it may not be complete."""
    return (
        f"'{describe(argv)}'{where} ended, but something it started still holds its output open, expected its end "
        f"within {HELD_SECONDS:g} s; start what outlives the command with its output redirected"
    )


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    stdin: Sent = b"",
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run a program to its end and return its exit status, whatever it is, and its output.

    `timeout` is in seconds. `env` None means `clean_environment()`. `on_line` gets each line of standard error as it
    comes. The program runs in a session of its own; when it takes too long, or anything interrupts this call, its whole
    process group is ended. What it leaves behind with its output redirected is left alone, as a shell would leave it.
    Raises EvidenceError when the program cannot be started, does not end in time, or leaves its output open.
    """
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        with _signals_held():
            process = _start(argv, cwd, clean_environment() if env is None else env, bool(stdin))
            stack.enter_context(_ended_when_interrupted(process))
        exchange = _Exchange(process, stdin, LineFeed(on_line))
        problem = exchange.run(deadline)
        if problem == "timeout":
            raise EvidenceError(timeout_message(argv, timeout, bytes(exchange.stderr)))
        if problem == "held":
            raise EvidenceError(held_message(argv))
        return Completed(tuple(argv), process.returncode, bytes(exchange.stdout), bytes(exchange.stderr))


def _start(argv: Sequence[str], cwd: str | None, env: Mapping[str, str], with_stdin: bool) -> subprocess.Popen[bytes]:
    try:
        # A list, never a shell; callers build it from values that were parsed before.
        return subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.PIPE if with_stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        # ValueError: a NUL byte in an argument, which no program can be given.
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        place = f" in {cwd}" if cwd else ""
        raise EvidenceError(f"'{describe(argv)}' could not be started{place}: {reason}; is it installed?") from error


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Hold back what a signal handler would raise until a program that was just started is in safe hands.

    Python runs handlers in its main thread only. They are replaced, not masked: a program would inherit the mask.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in _INTERRUPTIONS}
    held = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in held:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
        for number, handler in held.items():
            signal.signal(number, handler)
        for each in came:
            signal.raise_signal(each)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _ended_when_interrupted(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Close the pipes in any case; end the whole process group unless the body ran to its end."""
    try:
        yield
    except BaseException:
        _end_group(process)
        raise
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                # Closing flushes, and the reader may be gone.
                with contextlib.suppress(OSError):
                    pipe.close()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End every process of the group: TERM, a short grace, KILL. Reaps the leader."""
    _signal_group(process, signal.SIGTERM)
    give_up = time.monotonic() + _TERM_GRACE_SECONDS
    while _group_lives(process) and time.monotonic() < give_up:
        time.sleep(_POLL_SECONDS)
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    """Whether any process of the group is left. The leader is reaped first: a zombie would count as one."""
    process.poll()
    return _signal_group(process, 0)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to the group, whose ID is the leader's pid; False when there is no such group."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


class Spoken:
    """A program of this machine with an open standard input, in a session of its own; see `dialogue.Program`."""

    def __init__(self, argv: Sequence[str]) -> None:
        """Start it in a clean environment. Raises EvidenceError when it cannot be started."""
        self._argv = tuple(argv)
        self._ended = False
        with _signals_held():
            self._process = _start(argv, None, clean_environment(), with_stdin=True)

    def read_stdout(self) -> bytes:
        """Wait for output, and return it."""
        return _read(self._process.stdout)

    def read_stderr(self) -> bytes:
        """Wait for output, and return it."""
        return _read(self._process.stderr)

    def write(self, data: bytes) -> None:
        """Write to its standard input. Raises EvidenceError where it does not take it."""
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(data)
                self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise EvidenceError(f"'{describe(self._argv)}' no longer listens: {error}") from error

    def hang_up(self) -> None:
        """Close its standard input."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()

    def wait(self, seconds: float) -> int | None:
        """Return its exit status; None where none has come after that time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def end(self) -> None:
        """End its whole process group; what reads its output finds the end of it. Twice is once."""
        self.hang_up()
        if not self._ended:
            self._ended = True
            _end_group(self._process)


def _read(pipe: IO[bytes] | None) -> bytes:
    return os.read(pipe.fileno(), _CHUNK) if pipe is not None else b""


class _Exchange:
    """Feed standard input and read both outputs at the same time, so that neither side can block the other."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: Sent, lines: LineFeed) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._process = process
        self._unsent = memoryview(stdin)
        self._lines = lines

    def run(self, deadline: float) -> Literal["", "timeout", "held"]:
        """Return "" when the program has ended and everything it wrote is read, else what went wrong."""
        with selectors.DefaultSelector() as selector:
            self._register(selector)
            problem = self._pump(selector, deadline)
        if problem:
            return problem
        self._lines.finish()
        try:
            # A program may close its outputs long before it ends.
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return "timeout"
        return ""

    def _register(self, selector: selectors.BaseSelector) -> None:
        process = self._process
        for pipe, take in ((process.stdout, self._take_stdout), (process.stderr, self._take_stderr)):
            if pipe is not None:
                selector.register(pipe, selectors.EVENT_READ, take)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)

    def _pump(self, selector: selectors.BaseSelector, deadline: float) -> Literal["", "timeout", "held"]:
        """Move bytes until every pipe is closed."""
        alive = time.monotonic()
        while selector.get_map():
            now = time.monotonic()
            if now >= deadline:
                return "timeout"
            if now - alive >= HELD_SECONDS:
                return "held"
            events = selector.select(min(_POLL_SECONDS, deadline - now))
            for key, _ in events:
                self._move(selector, key)
            if events or self._process.poll() is None:
                alive = time.monotonic()
        return ""

    def _move(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        """Read or write once; let go of the pipe at its end."""
        if key.data is not None:
            data = os.read(key.fd, _CHUNK)
            key.data(data)
            if not data:
                selector.unregister(key.fileobj)
        elif not self._write(key.fd):
            selector.unregister(key.fileobj)
            if self._process.stdin is not None:
                self._process.stdin.close()

    def _write(self, fd: int) -> bool:
        """Write once; False when there is nothing more to write, or nobody to read it."""
        try:
            written = os.write(fd, self._unsent[:_CHUNK])
        except BrokenPipeError:
            # The program does not want the rest; its exit status tells whether that was right.
            return False
        self._unsent = self._unsent[written:]
        return bool(self._unsent)

    def _take_stdout(self, data: bytes) -> None:
        self.stdout += data

    def _take_stderr(self, data: bytes) -> None:
        self.stderr += data
        self._lines.feed(data)
