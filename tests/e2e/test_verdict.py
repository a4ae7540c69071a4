"""Signed verdicts on a real host whose policy requires them: what is promoted, what is not, and what people see."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_imagefresh.core.statement import parse_statement
from tests.e2e.pipeline import PRINCIPAL, Pipeline
from tests.hook.verdicts import make_key
from tests.support import run

pytestmark = pytest.mark.root  # a policy is root's


@pytest.fixture
def signing(each_pipeline: Pipeline, tmp_path: Path) -> Pipeline:
    """A pipeline that signs, and a host that requires it; production runs something older."""
    key = make_key(tmp_path / "gate_key")
    each_pipeline.deploy()
    each_pipeline.write_policy(key)
    each_pipeline.configure(signing={"key": str(key), "principal": PRINCIPAL})
    return each_pipeline


def gate(pipeline: Pipeline, text: str) -> str:
    """Commit and gate; return the revision."""
    revision = pipeline.copy.commit({"src/orchestrator/NEWS": text})
    done = pipeline.gate()
    assert done.status == 0, done.output
    return revision


def verdicts(pipeline: Pipeline) -> list[Path]:
    return sorted(pipeline.folder.glob(".imagefresh/orchestrator/*/orchestrator/verdict.json"))


@pytest.mark.fault
def test_only_the_verdict_of_what_production_is_ready_for_promotes_and_once(signing: Pipeline) -> None:
    first = gate(signing, "first")
    second = gate(signing, "second")
    old, new = verdicts(signing)

    promoted = signing.promote()
    assert promoted.status == 0, promoted.output
    assert signing.prod == second
    again = signing.promote("--verdict", str(new))
    assert again.status == 1, again.output
    assert again.says("verdict")

    # An unused verdict of a green gate, and all that it names is there again: it would roll production back.
    signing.copy.git("reset", "--quiet", "--hard", first)
    image = parse_statement(old.read_bytes()).image_id
    signing.copy.engine.docker("image", "tag", image.digest, signing.copy.staging_image)
    refused = signing.promote("--verdict", str(old))
    assert refused.status == 1, refused.output
    assert refused.says("VERDICT: expected one for runs"), refused.output
    assert signing.prod == second

    shown = signing.imagefresh("verify", str(new), "--allowed-signers", str(signing.policies / "allowed_signers"))
    assert shown.status == 0, shown.output
    assert shown.says(second)
    assert shown.says(f"holds, of {PRINCIPAL}")


@pytest.mark.fault
def test_a_callers_own_ssh_gets_the_verdict_too(signing: Pipeline) -> None:
    revision = gate(signing, "new")
    command = signing.api("build_deploy_command", "orchestrator", signing.copy.branch)
    assert isinstance(command, list)
    deployed = run(command, check=False)
    assert deployed.returncode == 0, deployed.stderr
    assert signing.prod == revision


@pytest.mark.fault
def test_a_gate_whose_key_the_host_does_not_allow_does_not_pass(signing: Pipeline, tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")
    signing.configure(signing={"key": str(stranger), "principal": PRINCIPAL})
    before = signing.prod
    signing.copy.commit({"src/orchestrator/NEWS": "new"})
    done = signing.gate()
    assert done.status == 1, done.output
    assert done.says("^REFUSED: the host does not accept the verdict")
    assert verdicts(signing) == []
    assert signing.promote().status == 1
    assert signing.prod == before


@pytest.mark.fault
def test_what_was_edited_after_the_gate_is_refused(signing: Pipeline) -> None:
    gate(signing, "new")
    [path] = verdicts(signing)
    text = path.read_bytes()
    before = signing.prod
    path.write_bytes(text.replace(b'"run_id":"2', b'"run_id":"3'))
    refused = signing.promote()
    assert refused.status == 1, refused.output
    assert signing.prod == before
    path.write_bytes(text)
    path.with_name("verdict.json.sig").unlink()
    assert signing.promote().status == 11
    assert signing.prod == before
