"""The table of faults: what was expected, what was seen, how long it took."""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import make_pipeline as make_pipeline
from tests.faults.report import Row, render
from tests.support import ROOT

TABLE = ROOT / ".faults"


def pytest_configure(config: pytest.Config) -> None:
    """Gather rows in the process that sees all reports."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(), "fault-table")


class Table:
    """One row per fault test."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take over what a fault test recorded; a failure in any phase, of its end too, is the row's outcome."""
        told = dict(report.user_properties)
        if "fault" not in told:
            return
        row = self._rows.setdefault(report.nodeid, Row.of(told))
        row.seen = str(told.get("seen", row.seen))
        row.seconds += report.duration
        row.ok = row.ok and report.passed

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table and keep it."""
        if not self._rows:
            return
        rows = sorted(self._rows.values(), key=Row.place)
        terminalreporter.section("faults")
        terminalreporter.write(render(rows, terminalreporter._tw.fullwidth))
        TABLE.mkdir(exist_ok=True)
        (TABLE / "faults.txt").write_text(render(rows, 200))
        (TABLE / "faults.json").write_text(json.dumps([vars(row) for row in rows], indent=2) + "\n")
