"""What people see of a gate session: header, chain, last line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pytest_imagefresh.core.chain import ExitStatus, Ledger, Link
from pytest_imagefresh.core.compose import SAME
from pytest_imagefresh.core.layers import Configuration
from pytest_imagefresh.run import GateRun

_WORDS: dict[int, str] = {
    ExitStatus.PROVEN: "GATE PASSED",
    ExitStatus.REFUSED: "REFUSED",
    ExitStatus.INCOMPLETE: "INCOMPLETE",
    ExitStatus.UNKNOWN: "COULD NOT FIND OUT",
}


def header(
    run: GateRun, configuration: Configuration, ledger: Ledger, off: Mapping[str, str], partial: bool
) -> list[str]:
    """Return the lines that name what is gated, where, and which settings are not the defaults."""
    gated = ", ".join(ledger.targets) or "nothing"
    mode = " PARTIAL" if partial else ""
    host = configuration.settings.host.ssh
    chosen = [f"{key} ({source})" for key, source in sorted(configuration.sources.items()) if source != "default"]
    return [
        f"imagefresh:{mode} run {run.run_id}, branch {run.branch}, host {host}, gating {gated}",
        *(f"imagefresh: NOT GATED: {reason}" for reason in off.values()),
        f"imagefresh: settings: {', '.join(chosen) or 'all defaults'}",
    ]


def show_off(terminal: pytest.TerminalReporter, off: Mapping[str, str]) -> None:
    """Say loudly what was not gated."""
    for reason in off.values():
        terminal.write_line(f"NOT GATED: {reason}", yellow=True, bold=True)


def show_chain(terminal: pytest.TerminalReporter, ledger: Ledger, target: str, evidence: Path) -> None:
    """Show which links of one target were proven."""
    facts = ledger.facts.get(target, {})
    terminal.write_line(f"{target}: commit {facts.get('revision', '?')}, image {facts.get('image_id', '?')}", bold=True)
    for link in Link:
        state, reason = ledger.state(target, link)
        proven = state == "proven"
        detail = "" if proven or state == "not proven" else f": {reason}"
        terminal.write_line(f"  {state:10}  {link.value}{detail}", green=proven, red=not proven)
    compose = facts.get("compose", SAME)
    if compose != SAME:
        terminal.write_line(f"  compose: {compose}; see compose-differences.txt", yellow=True, bold=True)
    terminal.write_line(f"  evidence: {evidence}")


def show_end(terminal: pytest.TerminalReporter, ledger: Ledger, status: int, *, partial: bool) -> None:
    """Say in the last line what this session says, and what is missing where that is the reason."""
    word = _WORDS.get(status, f"ENDED WITH {status}")
    if partial:
        word = f"PARTIAL: no verdict; {'the tests that ran passed' if status == 0 else word}"
    terminal.write_line(
        word, bold=True, green=status == 0 and not partial, red=status != 0, yellow=status == 0 and partial
    )
    for line in _missing(ledger, status):
        terminal.write_line(f"  not proven: {line}", red=True)


def _missing(ledger: Ledger, status: int) -> Iterator[str]:
    return iter(ledger.missing() if status == ExitStatus.INCOMPLETE else [])
