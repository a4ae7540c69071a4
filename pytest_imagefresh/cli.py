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
from pytest_imagefresh.cli_output import print_changes, print_table, print_warnings

if TYPE_CHECKING:
    from pytest_imagefresh.core.evidence import HookReport
    from pytest_imagefresh.core.identity import ImageId
    from pytest_imagefresh.core.layers import Configuration
    from pytest_imagefresh.core.settings import Target
    from pytest_imagefresh.core.statement import Statement
    from pytest_imagefresh.run import GateRun, TargetRun

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
@click.option(
    "--verdict",
    "verdict_file",
    default=None,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The verdict of one gate, its signature in FILE.sig; default: that of the newest complete one.",
)
@click.option("--dry-run", is_flag=True, help="Ask the hook for every decision (its --verify), and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def promote(
    repo: str,
    branch: str,
    gate_revision: str | None,
    gate_config: Path | None,
    verdict_file: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Promote the image that the newest complete gate of this revision proved.

    Exit status: the hook's own. 0 promoted (with --dry-run: would be), 1 refused, 2 wrong usage, 3 rolled back,
    4 production needs a person, 11 could not find out.
    """
    reports: list[tuple[TargetRun, HookReport]] = []
    with _told_in_one_line(), _open_run(branch, gate_revision, gate_config) as (run, _):
        try:
            for each in _promote_targets(run, repo, verdict_file, dry_run=dry_run):
                reports.append(each)
        finally:  # of several targets, some may be in production already
            for promoted, _report in reports:
                print_warnings(promoted)
            print_changes(reports, as_json=as_json)
    sys.exit(max(report.exit_status for _, report in reports))


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--allowed-signers",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Who may sign, as ssh-keygen has it: the file that ALLOWED_SIGNERS of the host's policy names.",
)
def verify(file: Path, allowed_signers: Path) -> None:
    """Show what a verdict says, and whether one who may has signed it; the signature lies in FILE.sig.

    Only the host can say whether it would be accepted now. Exit status: 0 signed, 1 not, 2 no verdict, 11 could not
    find out.
    """
    from pytest_imagefresh.adapters.records import read_verdict
    from pytest_imagefresh.adapters.signing import check_signature
    from pytest_imagefresh.core.errors import ConfigError
    from pytest_imagefresh.core.settings import Timeouts
    from pytest_imagefresh.core.statement import parse_statement

    with _told_in_one_line():
        signed = read_verdict(file)
        if signed is None:
            raise ConfigError(f"no verdict at {file}, expected verdict.json of a complete gate")
        statement = parse_statement(signed[0])
        bound = Timeouts().inspect
        problem = check_signature(*signed, statement.principal, allowed_signers, timeout=bound)
    _show_statement(statement)
    click.echo(f"signature: {problem or f'holds, of {statement.principal}'}")
    sys.exit(1 if problem else 0)


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
    from pytest_imagefresh.run import TargetRun

    if of_host:
        examine(repo, gate_config)
    if branch is None:
        raise click.UsageError("Missing option '--branch'.")
    with _told_in_one_line(), _open_run(branch, gate_revision, gate_config) as (run, configuration):
        _show_settings(configuration)
        click.echo(f"anchor   {run.anchor(repo).revision} in {run.anchor(repo).worktree}")
        click.echo(f"targets  {', '.join(target.name for target in _targets(run, repo))}")
        click.echo(f"host     {run.host.name}")
        click.echo(f"engine   {TargetRun(run, _targets(run, repo)[0]).engine.id}")
        click.echo(f"hook     {run.hook.path}")


def _promote_targets(
    run: GateRun, repo: str, verdict_file: Path | None, *, dry_run: bool
) -> Iterator[tuple[TargetRun, HookReport]]:
    """Promote the targets of a repo in turn, up to the first that is not promoted."""
    from pytest_imagefresh.core.errors import ConfigError
    from pytest_imagefresh.run import TargetRun

    targets = _targets(run, repo)
    if verdict_file is not None and len(targets) != 1:
        raise ConfigError(f"--verdict: expected a repo with one target, observed {len(targets)}; leave it out")
    for target in targets:
        promotion = TargetRun(run, target)
        report = promotion.promote(*_proven_image(run, target, verdict_file), dry_run=dry_run)
        yield promotion, report
        if not report.ok and not dry_run:
            return


def _proven_image(run: GateRun, target: Target, verdict_file: Path | None) -> tuple[ImageId, str]:
    """Return the image of the validated revision that a complete gate proved, and its packed verdict, "" for none.

    Raises Refused where there is no such gate.
    """
    from pytest_imagefresh.adapters.records import VERDICT, find_proven, read_verdict
    from pytest_imagefresh.core.errors import Refused
    from pytest_imagefresh.core.statement import pack_verdict, parse_statement

    revision = run.anchor(target.repo).revision
    again = f"run: pytest gates/ --repo {target.repo} --branch {run.branch}"
    if verdict_file is not None:
        signed = read_verdict(verdict_file)
        if signed is None:
            raise Refused(f"no verdict at {verdict_file}, expected one of {target.name} at {revision}; {again}")
        return parse_statement(signed[0]).image_id, pack_verdict(*signed)
    proven = find_proven(run.rootdir, target.repo, target.name, revision)
    if proven is None:
        raise Refused(f"no complete gate of {target.name} at {revision}; {again}")
    signed = read_verdict(proven.folder / VERDICT)
    if signed is None and run.settings.signing is not None:
        raise Refused(f"no verdict in {proven.folder}, expected one, since the settings have [signing]; {again}")
    return proven.image_id, pack_verdict(*signed) if signed else ""


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


def _show_statement(statement: Statement) -> None:
    from rich.table import Table

    table = Table("what", "says", title="verdict of a complete gate")
    rows = {
        "image": statement.image_id,
        "commit": f"{statement.revision} of {statement.repo}",
        "for": f"{statement.prod_image}, service {statement.prod_service}, port {statement.prod_port}",
        "engine": statement.engine_id,
        "production ran": statement.prod_runs or "nothing",
        "compose SHA-256": statement.compose_sha256,
        "gate run": statement.run_id,
        "time": statement.time,
        "by": statement.principal,
    }
    for what, says in rows.items():
        table.add_row(what, str(says), end_section=what == "for")
    print_table(table)


def _show_settings(configuration: Configuration) -> None:
    from rich.table import Table

    table = Table("setting", "source", title="settings that are not the default")
    for key, source in sorted(configuration.sources.items()):
        if source != "default":
            table.add_row(key, source)
    print_table(table)


for _command in COMMANDS:
    main.add_command(_command)
