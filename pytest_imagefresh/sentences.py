"""Errors that say themselves what is wrong are shown as one sentence."""

from __future__ import annotations

import pytest
from _pytest._code.code import ReprFileLocation, TerminalRepr
from _pytest._io import TerminalWriter

from pytest_imagefresh.core.errors import EvidenceError, ImagefreshError
from pytest_imagefresh.core.masking import Masker


class Sentence(TerminalRepr):
    """One sentence instead of a traceback: for errors that say themselves what is wrong."""

    def __init__(self, text: str, path: str) -> None:
        self.text = text
        self.reprcrash = ReprFileLocation(path, 0, text)

    def __str__(self) -> str:
        return self.text

    def toterminal(self, tw: TerminalWriter) -> None:
        """Write the sentence."""
        tw.line(self.text, red=True)


def present(report: pytest.TestReport, error: ImagefreshError, mask: Masker) -> None:
    """Report a refusal as a failure and an evidence error as an error, wherever in the test it was raised."""
    report.longrepr = Sentence(mask(str(error)), report.location[0])
    unknown = isinstance(error, EvidenceError)
    report.when = "setup" if unknown else "call"
    report.imagefresh_unknown = unknown  # type: ignore[attr-defined]


def first_line(report: pytest.TestReport) -> str:
    """Return the first line of what a report says is wrong, 300 characters at most."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = getattr(crash, "message", None) or str(report.longrepr or "")
    return text.strip().partition("\n")[0][:300]
