"""A hook that lies: it ends with 0 and prints perfect reports, and proves nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import pytest

from tests.e2e.conftest import MakePipeline
from tests.e2e.pipeline import Pipeline

FAKE = """#!{python}
import itertools, json, os, subprocess, sys

mode = sys.argv[1]
if mode == "--contract":
    print({contract!r})
    sys.exit(0)
if mode == "--lease" and {grants!r}:
    for line in itertools.chain(["held\\n"], iter(sys.stdin.readline, "")):
        if line == "held\\n":
            print(json.dumps(dict(lease="1" * 64, held=99)), flush=True)
        elif line == "release\\n":
            break
claim = dict(mode=mode, ok=True, kind="done", cause="built", reason="all is well", seconds={{}})
claim.update(revision=os.environ.get("GIT_SHA", ""), check_status=0, check_output="")
claim.update({claims!r})
{act}
if mode == "--verify":
    claim.update(image_id=os.environ.get("EXPECTED_IMAGE_ID", ""), revision=os.environ.get("EXPECTED_REVISION", ""))
if {speaks!r}:
    print(json.dumps(claim))
sys.exit({status!r})
"""

RECREATE = """
if mode == "--build-staging":
    compose = ["docker", "compose", "up", "--detach", "--no-deps", "--no-build", "--force-recreate"]
    subprocess.run([*compose, "orchestrator-staging"], cwd={folder!r}, env={env!r}, check=True, capture_output=True)
    asked = ["docker", "container", "inspect", "--format", "{{{{.Id}}}}", {container!r}]
    done = subprocess.run(asked, env={env!r}, check=True, capture_output=True, text=True)
    claim["container_id"] = done.stdout.strip()
"""
"""A real new container, of the image that the staging reference still points to."""


def install_fake(
    pipeline: Pipeline,
    claims: Mapping[str, object],
    *,
    act: str = "",
    contract: str = "1",
    speaks: bool = True,
    grants: bool = True,
    status: int = 0,
) -> None:
    text = FAKE.format(
        python=sys.executable,
        contract=contract,
        act=act,
        claims=dict(claims),
        speaks=speaks,
        grants=grants,
        status=status,
    )
    pipeline.configure(host={"hook": str(pipeline.write_hook("fake.py", text))})


@pytest.fixture
def stale(pipeline: Pipeline) -> Pipeline:
    """Staging and production run a commit, and the branch has moved on."""
    pipeline.deploy()
    pipeline.copy.commit({"src/orchestrator/NEWS": "newer"})
    return pipeline


def perfect_claims(pipeline: Pipeline) -> dict[str, object]:
    """What an honest hook would say, but for image and container: those run already."""
    copy = pipeline.copy
    inspect = copy.engine.docker("container", "inspect", "--format", "{{.Image}} {{.Id}}", copy.staging_container)
    image, container = inspect.split()
    engine = copy.engine.docker("info", "--format", "{{.ID}}")
    tree = copy.git("rev-parse", "HEAD^{tree}")
    return {"image_id": image, "container_id": container, "engine_id": engine, "tree": tree}


FAKES: dict[str, tuple[dict[str, object], int, str]] = {
    "names the stale image and the container that runs": ({}, 1, "was not recreated; expected a new container"),
    "names an image that does not exist": ({"image_id": "sha256:" + "5" * 64}, 1, "the engine has no image sha256:5"),
    "names a container that does not exist": ({"container_id": "5" * 64}, 1, "the engine has no container 55555"),
    "names another engine": ({"engine_id": "OTHER", "container_id": "5" * 64}, 1, "engine"),
    "contradicts itself": ({"ok": False}, 11, "the hook's --build-staging contradicts itself"),
}


def test_a_perfect_report_of_what_already_ran_proves_nothing(stale: Pipeline) -> None:
    before, perfect = stale.staging, perfect_claims(stale)
    for name, (lie, status, reason) in FAKES.items():
        install_fake(stale, {**perfect, **lie})
        gate = stale.gate()
        assert gate.status == status, (name, gate.output)
        assert gate.says(reason), (name, gate.output)
    assert stale.promote().status == 1
    assert (stale.staging, stale.prod) == (before, before)


@pytest.mark.fault
def test_a_new_container_of_the_stale_image_proves_nothing(stale: Pipeline) -> None:
    before, perfect = stale.staging, perfect_claims(stale)
    copy = stale.copy
    act = RECREATE.format(folder=str(copy.compose_dir), env=copy.engine.env, container=copy.staging_container)
    install_fake(stale, perfect, act=act)
    gate = stale.gate()
    assert gate.status == 1, gate.output
    assert gate.says(f"revision label of sha256:[0-9a-f]+ is {before}, expected {stale.copy.revision}")
    assert gate.says("the hook would promote a wrong revision; expected a refusal")
    assert stale.promote().status == 1
    assert (stale.staging, stale.prod) == (before, before)


@pytest.mark.parametrize(
    ("fake", "status", "reason"),
    [
        ({"contract": ""}, 1, "answers --contract with '' .exit 0., expected '1'"),
        ({"grants": False}, 1, "the hook grants no lease: all is well"),
        ({"speaks": False}, 11, "the hook's --build-staging ended with 0 and printed 0 lines"),
        ({"status": 1}, 11, "contradicts itself"),
        ({"status": 137, "speaks": False}, 11, "ended with 137 and printed 0 lines"),
    ],
    ids=str,
)
@pytest.mark.fault
def test_silence_and_nonsense_are_no_evidence(
    pipeline: Pipeline, fake: dict[str, object], status: int, reason: str
) -> None:
    install_fake(pipeline, {}, **fake)  # type: ignore[arg-type]
    gate = pipeline.gate()
    assert gate.status == status, gate.output
    assert gate.says(reason), gate.output
    assert (pipeline.staging, pipeline.prod) == ("", "")


@pytest.mark.fault
def test_a_hook_that_always_refuses_fails_the_gate(stale: Pipeline) -> None:
    before = stale.staging
    install_fake(stale, {"ok": False, "kind": "refused", "cause": "revision-mismatch"}, status=1)
    gate = stale.gate()
    assert gate.status == 1, gate.output
    assert gate.says("staging was not rebuilt: all is well")
    assert (stale.staging, stale.prod) == (before, before)


@pytest.mark.parametrize("command", ["true", "cat", "echo 1"])
@pytest.mark.fault
def test_a_host_that_answers_everything_with_success_proves_nothing(make_pipeline: MakePipeline, command: str) -> None:
    pipeline = make_pipeline("ssh")
    assert pipeline.sshd is not None
    pipeline.sshd.authorize(f'command="{command}"')
    gate = pipeline.gate()
    assert gate.status in (1, 11), gate.output
    assert gate.says("the hook at .* answers --contract with|the hook's --lease (ended|printed)"), gate.output
    assert pipeline.promote().status == 1
    assert (pipeline.staging, pipeline.prod) == ("", "")
