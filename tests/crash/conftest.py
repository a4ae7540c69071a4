"""The table of interruptions: what happened when, and how it ended."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from tests.conftest import MakeOrchestrator
from tests.crash.matrix import Matrix, Record, Row
from tests.hook.harness import RealHost
from tests.support import ROOT

FOLDER = ROOT / ".crash"


def pytest_configure(config: pytest.Config) -> None:
    """Gather rows in the process that sees all reports."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(CrashTable(), "crash-table")


class CrashTable:
    """The rows that tests recorded."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take over what a test recorded, also one that failed."""
        if report.when == "call":
            self._rows += [Row(**json.loads(str(value))) for name, value in report.user_properties if name == "point"]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table and keep it."""
        if not self._rows:
            return
        terminalreporter.section("interruptions")
        terminalreporter.write(_render(self._rows, max(terminalreporter._tw.fullwidth, 140)))
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / "crash.txt").write_text(_render(self._rows, 180))
        (FOLDER / "crash.json").write_text(json.dumps([asdict(row) for row in self._rows], indent=2) + "\n")


def _render(rows: list[Row], width: int) -> str:
    table = Table("when", "command", "seen")
    scenarios = dict.fromkeys(row.scenario for row in rows)
    for scenario in scenarios:
        table.add_section()
        table.add_row(f"[bold]{scenario}[/bold]")
        for row in rows:
            if row.scenario == scenario:
                table.add_row(row.point, row.command, row.seen)
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=True)
    console.print(table)
    console.print(f"{len(rows)} interruptions, each of which left production with a proven image")
    return str(console.file.getvalue())  # type: ignore[attr-defined]


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Record:
    """A function that takes rows as they come, and keeps each for the table."""

    def take(rows: Iterator[Row]) -> None:
        for row in rows:
            record_property("point", json.dumps(asdict(row)))

    return take


@pytest.fixture(params=[True, False], ids=["pinned", "override"])
def matrix(request: pytest.FixtureRequest, orchestrator: MakeOrchestrator, tmp_path: Path) -> Matrix:
    """Production with and without a pin."""
    return Matrix(RealHost(orchestrator(), tmp_path / "hook"), tmp_path / "crashing", pinned=request.param)
