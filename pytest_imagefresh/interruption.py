"""A session that is ended from outside: it ends in an orderly way, and says what it leaves behind."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Collection
from types import FrameType

import pytest

from pytest_imagefresh.core.chain import Ledger, Link

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """A signal asked this process to end. Unwinds like Ctrl-C, so that everything that was started is ended."""


class _Handler:
    """Raises once: what a second signal would interrupt is the tidying up after the first."""

    def __init__(self) -> None:
        self._raised = False

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if not self._raised:
            self._raised = True
            raise Terminated(signal.Signals(number).name)


def end_orderly_on_signals(config: pytest.Config) -> None:
    """Turn SIGTERM and SIGHUP into Terminated until the session is unconfigured.

    Only where the process would otherwise die at once and orphan what it started: a handler of someone else's, or a
    signal that is ignored (nohup), stays. Outside of the main thread Python allows no handler, and nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    handler = _Handler()
    for number in _SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, handler)
            config.add_cleanup(functools.partial(_restore, number, handler))


def _restore(number: signal.Signals, handler: _Handler) -> None:
    if signal.getsignal(number) is handler:
        signal.signal(number, signal.SIG_DFL)


class Interruption:
    """Whether a session was interrupted, as a plugin of it, and what it leaves behind then."""

    def __init__(self, ledger: Ledger, begun: Collection[str]) -> None:
        """`begun` names the targets whose rebuild has begun; it may grow."""
        self._ledger = ledger
        self._begun = begun
        self._happened = False

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
