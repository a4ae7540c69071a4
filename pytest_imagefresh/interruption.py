"""A session that is ended from outside: it ends in an orderly way, and says what it leaves behind."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Collection, Generator
from types import FrameType
from typing import TypeAlias

import pytest

from pytest_imagefresh.core.chain import Ledger, Link

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_Before: TypeAlias = "Callable[[int, FrameType | None], object] | int | None"


class Terminated(KeyboardInterrupt):
    """A signal asked this process to end. Unwinds like Ctrl-C, so that everything that was started is ended."""


class Signals:
    """The handler of the signals that ask this process to end. `came` says whether one has come.

    SIGTERM and SIGHUP raise once: what a second one would interrupt is the tidying up after the first. A person who
    presses Ctrl-C again does not want to wait for that.
    """

    def __init__(self) -> None:
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raise the interruption, in the main thread, wherever that is."""
        first, self.came = not self.came, True
        if number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        if first:
            raise Terminated(signal.Signals(number).name)

    def handle(self, at_the_end: Callable[[Callable[[], None]], object]) -> None:
        """Turn SIGTERM and SIGHUP into Terminated, and hear of SIGINT, until what `at_the_end` is given is called.

        Only where the process would otherwise die at once and orphan what it started, or Python's own handler is in
        place: one of someone else's, or a signal that is ignored (nohup), stays. Outside of the main thread Python
        allows no handler, and nothing is done.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if before in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, self)
                at_the_end(functools.partial(self._restore, number, before))

    def _restore(self, number: signal.Signals, before: _Before) -> None:
        if signal.getsignal(number) is self:
            signal.signal(number, before)


class Interruption:
    """Whether a session was interrupted, as a plugin of it, and what it leaves behind then."""

    def __init__(self, ledger: Ledger, begun: Collection[str]) -> None:
        """`begun` names the targets whose rebuild has begun; it may grow."""
        self._ledger = ledger
        self._begun = begun
        self._happened = False
        self.signals = Signals()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        """End the session after this test where a signal has come and what it raised was lost on its way.

        An error in somebody's tidying up takes its place, and pytest would go on with the next test.
        """
        result = yield
        if self.signals.came:
            raise Terminated("the session was asked to end")
        return result

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Keep in mind that the session was interrupted; pytest also calls its own early ends so."""
        self._happened = not isinstance(excinfo.value, pytest.Session.Interrupted)

    def show(self, terminal: pytest.TerminalReporter) -> bool:
        """Say what an interrupted session leaves behind; False, and not a word, where it was not interrupted."""
        if self._happened:
            terminal.write_line(self._sentence(), red=True, bold=True)
        return self._happened

    def _sentence(self) -> str:
        proofs = self._ledger.proofs
        half = [name for name in self._ledger.targets if name in self._begun and (name, Link.REBUILT) not in proofs]
        left = f"{', '.join(half)}: staging may be half rebuilt" if half else "no rebuild was under way"
        return f"INTERRUPTED: {left}; run the gate again"
