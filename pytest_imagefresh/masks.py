"""Secrets in test reports: whatever pytest prints or writes of a gate test passes here first."""

from __future__ import annotations

from typing import Any

import pytest
from _pytest._code.code import TerminalRepr

from pytest_imagefresh.core.masking import Masker


def mask_report(report: pytest.TestReport | pytest.CollectReport, mask: Masker) -> None:
    """Mask the secrets in captured output, sections and tracebacks of one report, in place."""
    report.sections = [(mask(title), mask(text)) for title, text in report.sections]
    if isinstance(report, pytest.TestReport):
        report.user_properties = [
            (name, mask(value) if isinstance(value, str) else value) for name, value in report.user_properties
        ]
        if hasattr(report, "wasxfail"):
            report.wasxfail = mask(report.wasxfail)
    if isinstance(report.longrepr, str):
        report.longrepr = mask(report.longrepr)
    elif isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        report.longrepr = path, line, mask(reason)
    elif isinstance(report.longrepr, TerminalRepr):
        _mask_parts(report.longrepr, mask, set())


def _mask_parts(part: Any, mask: Masker, seen: set[int]) -> Any:
    """Mask every text in pytest's tree of a traceback. Its nodes are plain objects that hold texts, lists and nodes."""
    if isinstance(part, str):
        return mask(part)
    if isinstance(part, (list, tuple)):
        return type(part)(_mask_parts(each, mask, seen) for each in part)
    if isinstance(part, TerminalRepr) and id(part) not in seen:
        seen.add(id(part))
        for name, value in vars(part).items():
            # Frozen or not: these are presentation objects, and nobody compares them.
            object.__setattr__(part, name, _mask_parts(value, mask, seen))
    return part
