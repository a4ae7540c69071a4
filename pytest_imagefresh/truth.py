"""How a gate test truly ended. Hooks of others may rewrite a report; what was raised is seen before they can."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from pytest_imagefresh.core.chain import Outcome
from pytest_imagefresh.core.errors import EvidenceError

_RAISED: pytest.StashKey[BaseException | None] = pytest.StashKey()
"""What the test's body raised, until a report of it is made."""

_FAILED: pytest.StashKey[bool] = pytest.StashKey()
"""Whether any phase or try of the test has failed."""

_NO_FAILURES = (pytest.skip.Exception, pytest.xfail.Exception)


class Witness:
    """Sees what the body of a test raises, before anything can swallow it."""

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, object, object]:
        """Keep what was raised. As the innermost wrapper this is next to the call itself."""
        try:
            return (yield)
        except BaseException as error:
            pyfuncitem.stash[_RAISED] = error
            raise


def true_outcome(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> tuple[Outcome, str]:
    """Return how one phase of a gate test ended, and what the report conceals of it, in one sentence.

    A phase that raised has not passed, whatever its report says; nor has a test of which an earlier try failed.
    """
    raised = _raised(item, call)
    lied = report.passed and raised is not None and not isinstance(raised, _NO_FAILURES)
    failed = report.failed or lied
    before, item.stash[_FAILED] = item.stash.get(_FAILED, False), failed or item.stash.get(_FAILED, False)
    concealed = f"reported as passed, but it raised {type(raised).__name__}: {raised}" if lied else ""
    if failed:
        return Outcome.UNKNOWN if isinstance(raised, EvidenceError) else Outcome.REFUSED, concealed
    clean = report.passed and not hasattr(report, "wasxfail") and raised is None and not before
    return (Outcome.PASSED if clean else Outcome.LEFT_OUT), ""


def _raised(item: pytest.Item, call: pytest.CallInfo[None]) -> BaseException | None:
    swallowed = item.stash.get(_RAISED, None) if call.when == "call" else None
    if call.when == "call":
        item.stash[_RAISED] = None
    return call.excinfo.value if call.excinfo is not None else swallowed


def logged_outcome(report: pytest.TestReport, recorded: Outcome) -> Outcome:
    """Return how a phase ended: as recorded when its report was made, or worse if the report now says so."""
    if report.outcome not in ("passed", "failed", "skipped"):
        return Outcome.LEFT_OUT  # tried again: what the last try says is not how the first one ended
    return max(recorded, reported_outcome(report), key=Outcome.severity)


def reported_outcome(report: pytest.TestReport) -> Outcome:
    """Return what a report says."""
    if report.failed:
        return Outcome.UNKNOWN if getattr(report, "imagefresh_unknown", False) else Outcome.REFUSED
    return Outcome.PASSED if report.passed and not hasattr(report, "wasxfail") else Outcome.LEFT_OUT
