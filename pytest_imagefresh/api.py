"""The public API: the one place where errors become values. On doubt, the answer under which nothing is promoted."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from pytest_imagefresh import shipped
from pytest_imagefresh.adapters import command
from pytest_imagefresh.adapters.configuration import load_configuration
from pytest_imagefresh.adapters.engine import connect_engine
from pytest_imagefresh.adapters.host import connect
from pytest_imagefresh.adapters.records import VERDICT, find_proven, read_verdict
from pytest_imagefresh.core.contract import deploy_command, request_command
from pytest_imagefresh.core.errors import ImagefreshError, Refused
from pytest_imagefresh.core.identity import RepoName, Revision
from pytest_imagefresh.core.settings import Host, Settings, Target, applies, targets_for
from pytest_imagefresh.core.statement import pack_verdict
from pytest_imagefresh.core.verdict import check_provenance
from pytest_imagefresh.run import GateRun, TargetRun, gate_bound

_LAST_LINES = 15


def image_freshness_applies(repo: str) -> bool:
    """Say whether the gate applies to a repo, by the settings of the current folder. On doubt True."""
    try:
        return applies(_settings(), repo).applies
    except Exception:
        return True


def validated_revision(repo: str, branch: str) -> str:
    """Return the full commit ID at HEAD of the branch's worktree, or "" where it cannot be had without doubt."""
    try:
        with _run(branch) as run:
            return run.anchor(repo).revision.hex
    except Exception:
        return ""


def expected_revision(repo: str, branch: str) -> str:
    """Return the validated revision where the gate applies to the repo, else ""."""
    return validated_revision(repo, branch) if image_freshness_applies(repo) else ""


def provenance_verdict(expected: str, observed: str) -> tuple[bool, str]:
    """Say whether two revisions are both full commit IDs and equal, and why."""
    try:
        verdict = check_provenance(expected, observed)
    except Exception as error:
        return False, _sentence(error)
    return verdict.ok, verdict.reason


def image_revision(image: str, ssh_target: str | None = None) -> str:
    """Return an image's revision label, or "". `ssh_target` names another Docker host than the settings do."""
    try:
        settings = _settings()
        target = settings.host if ssh_target is None else msgspec.structs.replace(settings.host, ssh=ssh_target)
        bound = settings.timeouts.inspect
        with (
            closing(connect(target, settings.timeouts)) as host,
            closing(connect_engine(host.engine_socket(), timeout=bound)) as engine,
        ):
            found = engine.read_image(image)
        return Revision(found.revision_label).hex if found else ""
    except Exception:
        return ""


def rebuild_staging_image(repo: str, branch: str, revision: str) -> tuple[bool, str]:
    """Rebuild staging from `revision`, which must be the branch's validated one; say whether that worked, and why."""
    try:
        with _run(branch) as run:
            expected = run.anchor(repo).revision
            if revision != expected.hex:
                raise Refused(f"branch {branch} of {repo} is at {expected}, expected {revision!r}; nothing was built")
            reports = [TargetRun(run, target).rebuild for target in _targets(run, repo)]
    except Exception as error:
        return False, _sentence(error)
    refusals = [report.reason for report in reports if not report.ok]
    return bool(reports) and not refusals, "; ".join(refusals or [report.reason for report in reports])


def check_staging_image_fresh(repo: str, work_item_id: str, branch: str) -> tuple[bool, str]:
    """Run the complete gate as a pytest session of its own; say whether it passed, and with which last words.

    The JUnit report is `.imagefresh/<repo>/<work_item_id>.xml` below the current folder.
    """
    try:
        report = Path.cwd() / ".imagefresh" / RepoName(repo).name / f"{RepoName(work_item_id)}.xml"
        with _run(branch) as run:
            bound = sum(gate_bound(run.settings) for _ in _targets(run, repo))
        argv = [sys.executable, "-m", "pytest", str(shipped.gates_folder()), "-c", os.devnull]
        argv += ["--rootdir", str(Path.cwd()), "--repo", repo, "--branch", branch, f"--junitxml={report}"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        done = command.run(argv, timeout=bound, env=environment)
    except Exception as error:
        return False, _sentence(error)
    words = (done.stdout + done.stderr).decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
    return done.status == 0, "\n".join([f"gate of {repo} ended with {done.status}, report {report}", *words])


def build_deploy_command(repo: str, branch: str) -> list[str]:
    """Return the promote call of the installed hook as argv, for a caller's own ssh, with the signed verdict if any.

    Where the gate applies and the revision cannot be resolved, EXPECTED_REVISION is set but empty, which
    the hook refuses.
    """
    revision = expected_revision(repo, branch)
    expected = revision if image_freshness_applies(repo) else None
    try:
        with _run(branch) as run:
            targets = _targets(run, repo)
            if len(targets) != 1:
                raise Refused(f"repo {repo} has {len(targets)} targets; promote each with: imagefresh promote")
            variables = TargetRun(run, targets[0]).promotion(expected or "")
            if expected:
                variables |= _verdict(run, targets[0], Revision(expected))
            if run.settings.host.restricted and expected is not None:
                return request_command("--promote", variables)
            return deploy_command(run.settings.host.hook, variables, expected)
    except Exception:
        return deploy_command(Host().hook, {}, "")


def _verdict(run: GateRun, target: Target, revision: Revision) -> dict[str, str]:
    """Return the variables that bring the newest signed verdict of a revision; none where there is none."""
    proven = find_proven(run.rootdir, target.repo, target.name, revision)
    signed = read_verdict(proven.folder / VERDICT) if proven else None
    if proven is None or signed is None:
        return {}
    return {"EXPECTED_IMAGE_ID": proven.image_id.digest, "VERDICT": pack_verdict(*signed)}


def _settings() -> Settings:
    return load_configuration(Path.cwd(), None, os.environ, {}).settings


@contextmanager
def _run(branch: str) -> Iterator[GateRun]:
    run = GateRun(_settings(), rootdir=Path.cwd(), branch=branch)
    try:
        yield run
    finally:
        run.close()


def _targets(run: GateRun, repo: str) -> tuple[Target, ...]:
    run.clone(repo)
    return targets_for(run.settings, repo)


def _sentence(error: Exception) -> str:
    if isinstance(error, ImagefreshError):
        return str(error)
    return f"unexpected {type(error).__name__}: {error}; nothing was promoted"
