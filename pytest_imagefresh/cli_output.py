"""What the commands print: tables and lines for people, one JSON document for machines; secrets masked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from pytest_imagefresh.core.evidence import HookReport
    from pytest_imagefresh.run import TargetRun

Reports = Sequence[tuple["TargetRun", "HookReport"]]

_WARNING = "imagefresh: warning"


def outcome(run: TargetRun, report: HookReport) -> dict[str, Any]:
    """Return one report of the hook for machines."""
    return {
        "ok": report.ok,
        "kind": report.kind,
        "cause": report.cause,
        "reason": run.run.mask(report.reason),
        "revision": report.revision,
        "image_id": report.image_id,
        "prod_runs": report.prod_runs,
        "seconds": dict(report.seconds),
    }


def situation(run: TargetRun, report: HookReport) -> dict[str, Any]:
    """Return the report of `--status` for machines."""
    return {**outcome(run, report), **plain(run, report.situation)}


def plain(run: TargetRun, value: object) -> Any:
    """Return a struct as JSON-like data."""
    import msgspec

    return run.run.mask.deep(msgspec.to_builtins(value))


def print_json(document: object) -> None:
    """Print one JSON document."""
    import json

    click.echo(json.dumps(document, indent=2))


def print_table(table: Table) -> None:
    """Print a table on standard output."""
    from rich.console import Console

    Console().print(table)


def print_changes(reports: Reports, *, as_json: bool) -> None:
    """Print how changes of production ended."""
    if as_json:
        print_json({run.target.name: outcome(run, report) for run, report in reports})
        return
    if reports:
        print_table(changes_table(reports))
    # A line each: a table cuts what is wider than the terminal, and IDs are.
    for run, report in reports:
        click.echo(f"{run.target.name}: {run.run.mask(report.reason)}")


def print_warnings(run: TargetRun) -> None:
    """Print what the hook warned of, on standard error: live progress and a log show none of it for long."""
    for line in run.hook_log:
        if line.lower().startswith(_WARNING):
            click.echo(line, err=True)


def changes_table(reports: Reports) -> Table:
    """Return a row for each report."""
    from rich.table import Column, Table

    names = ("target", "outcome", "revision", "image ID", "seconds")
    table = Table(*(Column(name, overflow="fold") for name in names))  # nothing of an outcome is cut off
    for run, report in reports:
        cells = (
            run.target.name,
            ending(report.kind, report.cause),
            report.revision[:12],
            short(report.image_id),
        )
        table.add_row(*cells, f"{sum(report.seconds.values()):.1f}")
    return table


def status_table(reports: Reports) -> Table:
    """Return a row for each container of production, of the proxy before it, and of staging."""
    from rich.table import Table
    from rich.text import Text

    table = Table("target", "where", "container", "image ID", "revision", "state", "since", "verified", "frozen")
    for run, report in reports:
        seen = report.situation
        verified = "by break-glass" if seen.break_glass else "yes" if seen.verified else "NO"
        frozen = f"by {seen.frozen.who}" if seen.frozen else "no"
        proxy = (("proxy", seen.proxy),) if run.target.prod.is_proxied else ()
        for where, containers in (("production", seen.production), *proxy, ("staging", seen.staging)):
            last = (verified, frozen) if where == "production" else ("", "")
            rows = [
                (
                    each.name,
                    short(each.image_id),
                    each.revision[:12],
                    f"{each.state} {each.health}".strip(),
                    each.since[:19],
                )
                for each in containers
            ]
            for row in rows or [("none", "", "", "", "")]:
                # Text, never markup: what a host says must not colour or hide anything.
                table.add_row(*(Text(cell) for cell in (run.target.name, where, *row, *last)))
    return table


def status_lines(run: TargetRun, report: HookReport) -> list[str]:
    """Return what does not fit into the table: the proof, the way back, and what is under way, as whole lines."""
    name, seen = run.target.name, report.situation
    lines = [f"{name}: {run.run.mask(report.reason)}"]
    lines += [f"{name}: kept {each.image_id} since {each.since[:19]}, left by: {each.left_by}" for each in seen.kept]
    if seen.open is not None:
        change = f"from {seen.open.old or 'nothing'} to {seen.open.new}"
        repo = run.target.repo
        lines.append(f"{name}: OPEN {change}; when nothing works on it any more: imagefresh recover --repo {repo}")
    return lines


def history_table(run: TargetRun, report: HookReport) -> Table:
    """Return a row for each decision."""
    from rich.table import Table
    from rich.text import Text

    title = f"decisions in {run.settings.host.repo_path or run.target.name}"
    table = Table("time", "mode", "outcome", "service", "revision", "image ID", "who", "reason", title=Text(title))
    for each in report.history:
        ended = ending(each.kind, each.cause)
        cells = (each.time, each.mode.removeprefix("--"), ended, each.service, each.revision[:12])
        reason = run.run.mask(each.reason)
        table.add_row(*(Text(cell) for cell in (*cells, short(each.image_id), each.who, reason)))
    return table


def ending(kind: str, cause: str) -> str:
    """Return in a few words how a mode ended."""
    return cause if kind == "done" else f"{kind}: {cause}"


def short(image_id: str) -> str:
    """Return the beginning of an image ID, as engines show it."""
    return image_id.removeprefix("sha256:")[:12]
