"""Live progress of long steps, past pytest's capture."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext

import pytest


class TerminalProgress:
    """Writes one line per step to the terminal as it starts, with the time since the run began."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._begun = time.monotonic()

    def step(self, text: str) -> None:
        """Announce a step."""
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None:
            return
        elapsed = time.monotonic() - self._begun
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture is not None else nullcontext():
            terminal.ensure_newline()
            terminal.write_line(f"imagefresh {elapsed:7.1f} s  {text}")

    def line(self, text: str) -> None:
        """Keep quiet about single lines of output: the hook log has them."""


class EchoProgress:
    """Writes one line per step to standard error, for the command line."""

    def __init__(self) -> None:
        self._begun = time.monotonic()

    def step(self, text: str) -> None:
        """Announce a step."""
        sys.stderr.write(f"imagefresh {time.monotonic() - self._begun:7.1f} s  {text}\n")
        sys.stderr.flush()

    def line(self, text: str) -> None:
        """Keep quiet about single lines of output."""
