"""The commands for operators: what runs, what was decided, and who stopped it. Each asks the hook on the host."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from rich.table import Table

    from pytest_imagefresh.core.evidence import HookReport
    from pytest_imagefresh.run import TargetRun

_Command = TypeVar("_Command", bound=Callable[..., Any])

_NO_BRANCH = "none"
"""No revision is asked for: what operators ask is not about a branch."""

_NEWEST = 100


def _asking(command: _Command) -> _Command:
    """Add the options that every command here takes."""
    repo = click.option("--repo", required=True, metavar="NAME", help="The repo whose targets are meant.")
    path = click.Path(path_type=Path)
    config = click.option(
        "--gate-config", default=None, metavar="FILE", type=path, help="Settings; default: imagefresh.toml here."
    )
    machine = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
    return repo(config(machine(command)))


@click.command()
@_asking
def status(repo: str, gate_config: Path | None, as_json: bool) -> None:
    """Show what runs in production and staging, whether it was proven, and whether production is frozen.

    Exit status: 0, also where something is not as it should be; 2 wrong usage, 11 could not find out.
    """
    from pytest_imagefresh.core.contract import status_variables

    with _reported(repo, gate_config) as targets:
        reports = [
            (run, run.operate("--status", status_variables(run.target, run.settings, run_id=run.run.run_id)))
            for run in targets
        ]
    if as_json:
        _print_json({run.target.name: _situation(report) for run, report in reports})
    else:
        _print_table(_status_table(reports))
        for run, report in reports:
            click.echo(f"{run.target.name}: {report.reason}")
    _end(reports)


@click.command()
@_asking
@click.option(
    "--limit", default=_NEWEST, type=click.IntRange(1, 1000), show_default=True, help="How many decisions at most."
)
def history(repo: str, gate_config: Path | None, as_json: bool, limit: int) -> None:
    """Show the last decisions on the host, the newest last.

    Exit status: 0, 2 wrong usage, 11 could not find out.
    """
    from pytest_imagefresh.core.contract import history_variables

    with _reported(repo, gate_config) as targets:
        reports = [
            (
                run,
                run.operate(
                    "--history", history_variables(run.target, run.settings, run_id=run.run.run_id, limit=limit)
                ),
            )
            for run in _one_per_folder(targets)
        ]
    if as_json:
        _print_json([_plain(entry) for _, report in reports for entry in report.history])
    else:
        for run, report in reports:
            _print_table(_history_table(run, report))
    _end(reports)


@click.command()
@_asking
@click.option("--reason", required=True, metavar="TEXT", help="Why; everybody who is refused gets to read it.")
def freeze(repo: str, gate_config: Path | None, as_json: bool, reason: str) -> None:
    """Let the hook refuse every promotion from now on.

    Exit status: the hook's own. 0 frozen, 2 wrong usage, 11 could not find out whether a promotion is still under way.
    """
    from pytest_imagefresh.core.contract import freeze_variables

    def variables(run: TargetRun) -> dict[str, str]:
        return freeze_variables(run.target, run.settings, run_id=run.run.run_id, reason=reason)

    _order("--freeze", variables, repo, gate_config, as_json=as_json)


@click.command()
@_asking
def unfreeze(repo: str, gate_config: Path | None, as_json: bool) -> None:
    """Allow promotions again.

    Exit status: the hook's own. 0 not frozen, 2 wrong usage, 11 could not find out.
    """
    from pytest_imagefresh.core.contract import lease_variables

    def variables(run: TargetRun) -> dict[str, str]:
        return lease_variables(run.target, run.settings, run_id=run.run.run_id)

    _order("--unfreeze", variables, repo, gate_config, as_json=as_json)


def _checked_image(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    from pytest_imagefresh.core.errors import EvidenceError
    from pytest_imagefresh.core.identity import ImageId

    try:
        return ImageId(value).digest
    except EvidenceError as error:
        raise click.BadParameter(str(error)) from error


@click.command("break-glass")
@_asking
@click.option("--target", "name", default=None, metavar="NAME", help="The target, where the repo has several.")
@click.option(
    "--image",
    required=True,
    metavar="ID",
    callback=_checked_image,
    help="The full image ID.",
)
@click.option("--reason", required=True, metavar="TEXT", help="Why; log, history and status tell everybody.")
def break_glass(repo: str, gate_config: Path | None, as_json: bool, name: str | None, image: str, reason: str) -> None:
    """Promote an image that nothing has proven, where the host's policy allows that.

    Exit status: the hook's own. 0 promoted, 1 refused, 2 wrong usage, 3 rolled back, 4 production needs a person,
    11 could not find out.
    """
    from pytest_imagefresh.core.contract import break_glass_variables
    from pytest_imagefresh.core.errors import ConfigError
    from pytest_imagefresh.core.identity import ImageId

    with _reported(repo, gate_config) as targets:
        chosen = [run for run in targets if name in (None, run.target.name)]
        if len(chosen) != 1:
            names = ", ".join(run.target.name for run in targets)
            raise ConfigError(f"expected one target, observed {name or names}; name one with --target: {names}")
        variables = break_glass_variables(
            chosen[0].target, chosen[0].settings, run_id=chosen[0].run.run_id, image=ImageId(image), reason=reason
        )
        reports = [(chosen[0], chosen[0].operate("--break-glass", variables))]
    _show_outcomes(reports, as_json=as_json)


def examine(repo: str, gate_config: Path | None) -> NoReturn:
    """Examine the host of a repo's targets, show a line for each answer, and exit."""
    from pytest_imagefresh.core.installation import Answer, exit_status
    from pytest_imagefresh.host_doctor import examine_host

    answers: list[Answer] = []
    with _reported(repo, gate_config) as targets:
        for run in targets:
            click.echo(f"{run.target.name} on {run.run.host.name}")
            for answer in examine_host(run):
                answers.append(answer)
                click.echo(
                    f"  {answer.word:7} {answer.subject} {answer.looked_at}: "
                    f"expected {answer.expected}; observed {answer.observed}"
                )
    counts = ", ".join(f"{sum(answer.word == word for answer in answers)} {word}" for word in ("ok", "no", "unknown"))
    click.echo(counts)
    sys.exit(exit_status(answers))


COMMANDS = (status, history, freeze, unfreeze, break_glass)
"""What `imagefresh` adds to itself."""


def _order(
    mode: str, variables: Callable[[TargetRun], dict[str, str]], repo: str, gate_config: Path | None, *, as_json: bool
) -> None:
    """Call a mode once for each compose folder of a repo, and end with the worst of the exit statuses."""
    with _reported(repo, gate_config) as targets:
        reports = [(run, run.operate(mode, variables(run))) for run in _one_per_folder(targets)]
    _show_outcomes(reports, as_json=as_json)


def _show_outcomes(reports: list[tuple[TargetRun, HookReport]], *, as_json: bool) -> None:
    if as_json:
        _print_json({run.target.name: _outcome(report) for run, report in reports})
    else:
        for run, report in reports:
            click.echo(f"{run.settings.host.repo_path}: {report.reason}")
    _end(reports)


@contextmanager
def _reported(repo: str, gate_config: Path | None) -> Iterator[list[TargetRun]]:
    """Open the targets of a repo; end with the hook's exit status for the kind of error, and its one line."""
    from pytest_imagefresh.adapters.configuration import load_configuration
    from pytest_imagefresh.core.errors import ConfigError, EvidenceError, ImagefreshError
    from pytest_imagefresh.core.settings import targets_for
    from pytest_imagefresh.progress import EchoProgress
    from pytest_imagefresh.run import GateRun, TargetRun

    try:
        settings = load_configuration(Path.cwd(), gate_config, os.environ, {}).settings
        run = GateRun(settings, rootdir=Path.cwd(), branch=_NO_BRANCH, progress=EchoProgress())
        try:
            run.clone(repo)
            yield [TargetRun(run, target) for target in targets_for(settings, repo)]
        finally:
            run.close()
    except ImagefreshError as error:
        click.echo(f"imagefresh: {error}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 11 if isinstance(error, EvidenceError) else 1)


def _one_per_folder(targets: list[TargetRun]) -> list[TargetRun]:
    """Return one target for each compose folder: history and freeze belong to the folder."""
    return list({run.settings.host.repo_path: run for run in reversed(targets)}.values())[::-1]


def _end(reports: list[tuple[TargetRun, HookReport]]) -> None:
    sys.exit(max((report.exit_status for _, report in reports), default=2))


def _plain(value: object) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


def _situation(report: HookReport) -> dict[str, Any]:
    return {**_outcome(report), **_plain(report.situation)}


def _outcome(report: HookReport) -> dict[str, Any]:
    return {"ok": report.ok, "kind": report.kind, "cause": report.cause, "reason": report.reason}


def _print_json(document: object) -> None:
    import json

    click.echo(json.dumps(document, indent=2))


def _print_table(table: Table) -> None:
    from rich.console import Console

    Console().print(table)


def _status_table(reports: list[tuple[TargetRun, HookReport]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("target", "where", "container", "image ID", "revision", "state", "since", "verified", "frozen")
    for run, report in reports:
        seen = report.situation
        verified = "by break-glass" if seen.break_glass else "yes" if seen.verified else "NO"
        frozen = f"by {seen.frozen.who}" if seen.frozen else "no"
        for where, containers in (("production", seen.production), ("staging", seen.staging)):
            last = (verified, frozen) if where == "production" else ("", "")
            rows = [
                (
                    each.name,
                    _short(each.image_id),
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


def _history_table(run: TargetRun, report: HookReport) -> Table:
    from rich.table import Table
    from rich.text import Text

    title = f"decisions in {run.settings.host.repo_path or run.target.name}"
    table = Table("time", "mode", "outcome", "service", "revision", "image ID", "who", "reason", title=Text(title))
    for each in report.history:
        outcome = each.cause if each.kind == "done" else f"{each.kind}: {each.cause}"
        cells = (each.time, each.mode.removeprefix("--"), outcome, each.service, each.revision[:12])
        table.add_row(*(Text(cell) for cell in (*cells, _short(each.image_id), each.who, each.reason)))
    return table


def _short(image_id: str) -> str:
    return image_id.removeprefix("sha256:")[:12]
