"""The command line: promote what the gate proved, and look at what is configured."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_imagefresh.cli_operations import COMMANDS, examine

if TYPE_CHECKING:
    from pytest_imagefresh.core.evidence import HookReport
    from pytest_imagefresh.core.layers import Configuration
    from pytest_imagefresh.core.settings import Target
    from pytest_imagefresh.run import GateRun

_REPO = click.option("--repo", required=True, metavar="NAME", help="The repo whose targets are meant.")
_BRANCH = click.option("--branch", required=True, metavar="NAME", help="The branch whose worktree HEAD was validated.")
_REVISION = click.option(
    "--gate-revision",
    default=None,
    metavar="SHA",
    help="The full commit ID that was validated; must equal the branch's.",
)
_CONFIG = click.option(
    "--gate-config",
    default=None,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Settings; default: imagefresh.toml here.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pytest-imagefresh")
def main() -> None:
    """Promote exactly what was tested."""


@main.command()
@_REPO
@_BRANCH
@_REVISION
@_CONFIG
def promote(repo: str, branch: str, gate_revision: str | None, gate_config: Path | None) -> None:
    """Promote the image that the newest complete gate of this revision proved.

    Exit status: the hook's own. 0 promoted, 1 refused, 2 wrong usage, 3 rolled back, 4 production needs a person,
    11 could not find out.
    """
    with _told_in_one_line(), _open_run(branch, gate_revision, gate_config) as (run, _):
        reports = list(_promote_targets(run, repo))
    _show_reports(reports)
    sys.exit(reports[-1][1].exit_status)


@main.command()
@_REPO
@click.option("--branch", default=None, metavar="NAME", help="The branch to be validated; not for --host.")
@_REVISION
@_CONFIG
@click.option("--host", "of_host", is_flag=True, help="Examine the installation on the Docker host instead.")
def doctor(repo: str, branch: str | None, gate_revision: str | None, gate_config: Path | None, of_host: bool) -> None:
    """Show the settings with their sources, and try each thing that a gate needs; nothing is changed.

    With --host: one line for each thing that docs/install-host.md asks for. Exit status: 0 all is well, 1 something is
    wrong, 11 something could not be found out.
    """
    if of_host:
        examine(repo, gate_config)
    if branch is None:
        raise click.UsageError("Missing option '--branch'.")
    with _told_in_one_line(), _open_run(branch, gate_revision, gate_config) as (run, configuration):
        _show_settings(configuration)
        click.echo(f"anchor   {run.anchor(repo).revision} in {run.anchor(repo).worktree}")
        click.echo(f"targets  {', '.join(target.name for target in _targets(run, repo))}")
        click.echo(f"host     {run.host.name}")
        click.echo(f"engine   {run.engine.id}")
        click.echo(f"hook     {run.hook.path}")


def _promote_targets(run: GateRun, repo: str) -> Iterator[tuple[Target, HookReport]]:
    """Promote the targets of a repo in turn, up to the first that is not promoted."""
    for target in _targets(run, repo):
        report = _promote_target(run, target)
        yield target, report
        if not report.ok:
            return


def _promote_target(run: GateRun, target: Target) -> HookReport:
    """Promote one target. Raises Refused where no complete gate proved an image of the validated revision."""
    from pytest_imagefresh.adapters.records import find_proven_image
    from pytest_imagefresh.core.errors import Refused
    from pytest_imagefresh.run import TargetRun

    revision = run.anchor(target.repo).revision
    image = find_proven_image(run.rootdir, target.repo, target.name, revision)
    if image is None:
        raise Refused(
            f"no complete gate of {target.name} at {revision}; "
            f"run: pytest gates/ --repo {target.repo} --branch {run.branch}"
        )
    return TargetRun(run, target).promote(image)


def _targets(run: GateRun, repo: str) -> tuple[Target, ...]:
    from pytest_imagefresh.core.settings import targets_for

    run.clone(repo)
    return targets_for(run.settings, repo)


@contextmanager
def _open_run(
    branch: str, gate_revision: str | None, gate_config: Path | None
) -> Iterator[tuple[GateRun, Configuration]]:
    from pytest_imagefresh.adapters.configuration import load_configuration
    from pytest_imagefresh.progress import EchoProgress
    from pytest_imagefresh.run import GateRun

    configuration = load_configuration(Path.cwd(), gate_config, os.environ, {})
    run = GateRun(
        configuration.settings, rootdir=Path.cwd(), branch=branch, gate_revision=gate_revision, progress=EchoProgress()
    )
    try:
        yield run, configuration
    finally:
        run.close()


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    """End with the hook's exit status for the kind of error, and its one line."""
    from pytest_imagefresh.core.errors import ConfigError, EvidenceError, ImagefreshError

    try:
        yield
    except ImagefreshError as error:
        click.echo(f"imagefresh: {error}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 11 if isinstance(error, EvidenceError) else 1)


def _show_reports(reports: list[tuple[Target, HookReport]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("target", "outcome", "revision", "image ID")
    for target, report in reports:
        outcome = "promoted" if report.ok else report.kind
        table.add_row(target.name, outcome, report.revision[:12], report.image_id.removeprefix("sha256:")[:12])
    Console().print(table)
    # A line each: a table cuts what is wider than the terminal, and IDs are.
    for target, report in reports:
        click.echo(f"{target.name}: {report.reason}")


def _show_settings(configuration: Configuration) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("setting", "source", title="settings that are not the default")
    for key, source in sorted(configuration.sources.items()):
        if source != "default":
            table.add_row(key, source)
    Console().print(table)


for _command in COMMANDS:
    main.add_command(_command)
