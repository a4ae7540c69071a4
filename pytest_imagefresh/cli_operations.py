"""The commands for operators: what runs, what was decided, and who stopped it. Each asks the hook on the host."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from pytest_imagefresh.cli_output import (
    history_table,
    outcome,
    plain,
    print_changes,
    print_json,
    print_table,
    print_warnings,
    situation,
    status_lines,
    status_table,
)

if TYPE_CHECKING:
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
    """Show what runs in production and staging, whether it was proven, what is kept, frozen or still open.

    Exit status: 0, also where something is not as it should be; 2 wrong usage, 11 could not find out.
    """
    from pytest_imagefresh.core.contract import status_variables

    with _reported(repo, gate_config) as targets:
        reports = [
            (run, run.operate("--status", status_variables(run.target, run.settings, run_id=run.run.run_id)))
            for run in targets
        ]
    if as_json:
        print_json({run.target.name: situation(run, report) for run, report in reports})
    else:
        print_table(status_table(reports))
        for run, report in reports:
            click.echo("\n".join(status_lines(run, report)))
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
        print_json([plain(run, entry) for run, report in reports for entry in report.history])
    else:
        for run, report in reports:
            print_table(history_table(run, report))
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


def _checked_image(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    from pytest_imagefresh.core.errors import EvidenceError
    from pytest_imagefresh.core.identity import ImageId

    try:
        return value if value is None else ImageId(value).digest
    except EvidenceError as error:
        raise click.BadParameter(str(error)) from error


_TARGET = click.option(
    "--name", "--target", "name", default=None, metavar="TARGET", help="The target, where the repo has several."
)


@click.command("break-glass")
@_asking
@_TARGET
@click.option("--image", required=True, metavar="ID", callback=_checked_image, help="The full image ID.")
@click.option("--reason", required=True, metavar="TEXT", help="Why; log, history and status tell everybody.")
def break_glass(repo: str, gate_config: Path | None, as_json: bool, name: str | None, image: str, reason: str) -> None:
    """Promote an image that nothing has proven, where the host's policy allows that.

    Exit status: the hook's own. 0 promoted, 1 refused, 2 wrong usage, 3 rolled back, 4 production needs a person,
    11 could not find out.
    """
    from pytest_imagefresh.core.contract import break_glass_variables
    from pytest_imagefresh.core.identity import ImageId

    def variables(run: TargetRun) -> dict[str, str]:
        return break_glass_variables(
            run.target, run.settings, run_id=run.run.run_id, image=ImageId(image), reason=reason
        )

    with _reported(repo, gate_config) as targets:
        run = _one_target(targets, name)
        reports = [(run, run.operate("--break-glass", variables(run)))]
    _show_outcomes(reports, as_json=as_json)


@click.command()
@_asking
@_TARGET
@click.option(
    "--to",
    "image",
    default=None,
    metavar="IMAGE_ID",
    callback=_checked_image,
    help="The full ID of an image that `imagefresh status` shows as kept; default: the previous one.",
)
def rollback(repo: str, gate_config: Path | None, as_json: bool, name: str | None, image: str | None) -> None:
    """Let production run the image again that it ran before. Code goes back, data does not.

    Exit status: the hook's own. 0 went back, 1 refused, 2 wrong usage, 3 the older image did not prove itself and
    production is as it was, 4 production needs a person (or no such image is kept), 11 could not find out.
    """
    from pytest_imagefresh.core.contract import rollback_variables
    from pytest_imagefresh.core.identity import ImageId

    chosen = None if image is None else ImageId(image)
    with _reported(repo, gate_config) as targets:
        run = _one_target(targets, name)
        variables = rollback_variables(run.target, run.settings, run_id=run.run.run_id, image=chosen)
        reports = [(run, run.operate("--rollback", variables))]
    _show_changes(reports, as_json=as_json)


@click.command()
@_asking
def recover(repo: str, gate_config: Path | None, as_json: bool) -> None:
    """Finish or undo a change of production that was interrupted; nothing to do is well done.

    Exit status: the hook's own. 0 done, 1 refused, 2 wrong usage, 3 rolled back, 4 production needs a person,
    11 could not find out.
    """
    from pytest_imagefresh.core.contract import recover_variables

    with _reported(repo, gate_config) as targets:
        reports = [
            (run, run.operate("--recover", recover_variables(run.target, run.settings, run_id=run.run.run_id)))
            for run in _one_per_folder(targets)
        ]
    _show_changes(reports, as_json=as_json)


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


COMMANDS = (rollback, recover, status, history, freeze, unfreeze, break_glass)
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
        print_json({run.target.name: outcome(run, report) for run, report in reports})
    else:
        for run, report in reports:
            click.echo(f"{run.settings.host.repo_path}: {run.run.mask(report.reason)}")
    _end(reports)


def _show_changes(reports: list[tuple[TargetRun, HookReport]], *, as_json: bool) -> None:
    for run, _ in reports:
        print_warnings(run)
    print_changes(reports, as_json=as_json)
    _end(reports)


def _one_target(targets: list[TargetRun], name: str | None) -> TargetRun:
    """Return the one target that is meant. Raises ConfigError unless there is exactly one."""
    from pytest_imagefresh.core.errors import ConfigError

    chosen = [run for run in targets if name in (None, run.target.name)]
    if len(chosen) != 1:
        names = ", ".join(run.target.name for run in targets)
        raise ConfigError(f"expected one target, observed {name or names}; name one with --name: {names}")
    return chosen[0]


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
