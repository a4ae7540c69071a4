"""Live progress of long steps: one line that is redrawn on a terminal, sparse whole lines everywhere else."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Generator
from io import FileIO
from types import TracebackType
from typing import Any, Protocol, TextIO

import pytest

from pytest_imagefresh.core.moment import Moment, printable, shows_live

HEARTBEAT_SECONDS = 30.0
"""How often a log hears that a step still lasts."""

_REDRAW_SECONDS = 0.2
_JOIN_SECONDS = 2.0
_DEFAULT_COLUMNS = 80
_CHANNEL = "imagefresh_progress"
_BLANK_LINE = "\r\x1b[K"
"""Back to the first column, and erase what stands there."""


class Output(Protocol):
    """Where progress is told. Whoever tells holds the lock."""

    lock: threading.RLock
    live: bool
    """Whether a line can be redrawn."""

    def make_room(self) -> None:
        """Prepare for lines, where others write too."""

    def show(self, line: str) -> None:
        """Write one whole line, which stays."""

    def draw(self, moment: Moment) -> None:
        """Show a moment in one line that the next one replaces. Only where `live`."""


class Stream:
    """A duplicate of a stream: what is written to it passes whatever captures the stream itself."""

    def __init__(self, stream: TextIO) -> None:
        self.lock = threading.RLock()
        self._stream = stream
        self._own: FileIO | None = None
        # Where there is no file behind it, someone keeps the text in memory.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            self._own = os.fdopen(os.dup(stream.fileno()), "wb", buffering=0)
        self.live = self._own is not None and shows_live(self._own.isatty(), os.environ)

    def make_room(self) -> None:
        """Do nothing: here nobody leaves a line open."""

    def show(self, line: str) -> None:
        """Write one whole line, which stays."""
        self._write(f"{_BLANK_LINE if self.live else ''}{line}\n")

    def draw(self, moment: Moment) -> None:
        """Show a moment in the line where the cursor is."""
        self._write(f"\r{moment.live(self._columns())}\x1b[K")

    def close(self) -> None:
        """Give the duplicate back. Whatever comes afterwards is dropped."""
        if self._own is not None:
            self._own.close()

    def _columns(self) -> int:
        """Return how many columns a live line may use: the last one stays free, so that no terminal wraps."""
        try:
            found = os.get_terminal_size(self._own.fileno()).columns if self._own is not None else 0
        except OSError:
            found = 0
        return (found or _DEFAULT_COLUMNS) - 1

    def _write(self, text: str) -> None:
        # A reader who has gone must not change how a gate ends.
        with contextlib.suppress(OSError, ValueError):
            if self._own is None:
                self._stream.write(text)
                self._stream.flush()
            else:
                self._own.write(text.encode(getattr(self._stream, "encoding", None) or "utf-8", "replace"))


class _Reporter(Stream):
    """The terminal of a pytest session."""

    def __init__(self, config: pytest.Config) -> None:
        # While plugins are configured nothing is captured: this is the real standard output.
        super().__init__(sys.stdout)
        self._config = config

    def make_room(self) -> None:
        """End the line that pytest has begun, past its capture."""
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None:
            return
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture is not None else contextlib.nullcontext():
            terminal.ensure_newline()
            writer = self._config.get_terminal_writer()
            if writer.width_of_current_line:  # the dots of pytest-xdist
                writer.line()
            terminal.flush()

    def _write(self, text: str) -> None:
        # A session without a terminal reporter (-p no:terminal) is a silent one.
        if self._config.pluginmanager.has_plugin("terminalreporter"):
            super()._write(text)


class _Upstream:
    """The controller of pytest-xdist, as its worker sees it: it writes the lines for all workers."""

    def __init__(self, channel: Any, target: str) -> None:
        self.lock = threading.RLock()
        self.live = False
        self._channel = channel
        self._target = target
        """What has begun; "" for nothing."""

    def show(self, line: str) -> None:
        """Send one line to the controller, which may have gone."""
        with contextlib.suppress(OSError):
            self._channel.send((self._target, line))

    def make_room(self) -> None:
        """Leave that to the controller."""

    def draw(self, moment: Moment) -> None:
        """Draw nothing: a worker has no line of its own."""


class Follower:
    """Tells of the steps of one call of the hook. A context manager: at its end no thread of it is left."""

    def __init__(self, output: Output, *, begun: float, label: str, heartbeat: float) -> None:
        self._output = output
        self._changed = threading.Condition(output.lock)
        self._begun = begun
        self._label = label
        self._interval = _REDRAW_SECONDS if output.live else heartbeat
        self._step = self._line = ""
        self._step_begun = 0.0
        self._over = False
        self._thread: threading.Thread | None = None

    def step(self, text: str) -> None:
        """Tell that a step starts; the one before it is over."""
        with self._changed:
            self._end_step(broken_off=False)
            self._step, self._line, self._step_begun = printable(text), "", time.monotonic()
            if self._thread is None:
                self._output.make_room()
            self._show_start()
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._tell, name="imagefresh-progress", daemon=True)
                self._thread.start()

    def line(self, text: str) -> None:
        """Take one line of output of the current step."""
        # Lines come by the thousand: only those that are shown are made printable.
        if text and not text.isspace():
            self._line = text

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        with self._changed:
            self._end_step(broken_off=kind is not None)
            self._changed.notify()
        # One whose start was interrupted cannot be joined, and ends by itself.
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(_JOIN_SECONDS)

    def _show_start(self) -> None:
        if self._output.live:
            self._output.draw(self._moment())
        else:
            self._output.show(self._moment().started())

    def _end_step(self, *, broken_off: bool) -> None:
        """A terminal keeps one line of each step; a log has its line already, and hears of what was broken off."""
        if self._step and (self._output.live or broken_off):
            self._output.show(self._moment().ended(broken_off=broken_off))
        self._step = ""

    def _tell(self) -> None:
        """Tell at every interval in which nothing else was told."""
        with self._changed:
            while not self._over:
                if self._changed.wait(self._interval) or not self._step:
                    continue
                if self._output.live:
                    self._output.draw(self._moment())
                else:
                    self._output.show(self._moment().lasts())

    def _moment(self) -> Moment:
        now = time.monotonic()
        return Moment(self._label, now - self._begun, self._step, now - self._step_begun, printable(self._line))


class EchoProgress:
    """Progress on standard error, for the command line."""

    def __init__(self) -> None:
        self.heartbeat = HEARTBEAT_SECONDS
        self._begun = time.monotonic()
        self._output = Stream(sys.stderr)

    def follow(self, target: str, *, begins: bool = True) -> Follower:  # noqa: ARG002  # one target after the other
        """Follow one call of the hook."""
        return Follower(self._output, begun=self._begun, label="", heartbeat=self.heartbeat)


class TerminalProgress:
    """Progress of a pytest session. With pytest-xdist the workers send whole lines, and the controller writes them."""

    def __init__(self, config: pytest.Config) -> None:
        self.heartbeat = HEARTBEAT_SECONDS
        self.begun: set[str] = set()
        """The targets of which some call that may change them was followed, in this process or in a worker."""
        self._config = config
        self._started = time.monotonic()
        self._upstream = getattr(config, "workerinput", {}).get(_CHANNEL)
        self._output = _Reporter(config)
        self._channels: list[Any] = []
        config.add_cleanup(self._output.close)

    def follow(self, target: str, *, begins: bool = True) -> Follower:
        """Follow one call of the hook; `begins` says whether it may change the target."""
        begun = target if begins else ""
        self.begun.add(begun)
        worker = self._upstream is not None
        output: Output = _Upstream(self._upstream, begun) if worker else self._output
        return Follower(output, begun=self._started, label=target if worker else "", heartbeat=self.heartbeat)

    def listen(self, node: Any) -> None:
        """Let a worker of pytest-xdist that is about to start send its lines here."""
        if not self._channels:
            self._config.pluginmanager.register(self, "imagefresh-progress")
        channel = node.gateway.newchannel()
        # Kept: a channel that nobody holds is closed.
        self._channels.append(channel)
        channel.setcallback(self._receive)
        node.workerinput[_CHANNEL] = channel

    def _receive(self, message: tuple[str, str]) -> None:
        """Write the line of a worker. Runs in a thread of pytest-xdist's."""
        target, line = message
        with self._output.lock:
            self.begun.add(target)
            self._output.make_room()
            self._output.show(line)

    # While pytest itself writes about a test, no line of a worker comes between.

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logstart(self) -> Generator[None, object, object]:
        """Hold the lock."""
        with self._output.lock:
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self) -> Generator[None, object, object]:
        """Hold the lock."""
        with self._output.lock:
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logfinish(self) -> Generator[None, object, object]:
        """Hold the lock."""
        with self._output.lock:
            return (yield)
