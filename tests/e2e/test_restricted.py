"""A key that reaches the hook and nothing else: the whole gate still closes the chain, and sees what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_imagefresh.core.chain import Link
from tests.e2e.conftest import MakePipeline
from tests.e2e.pipeline import PRINCIPAL, Pipeline
from tests.sshd import make_key
from tests.support import foreign_server

pytestmark = pytest.mark.root  # a policy must be root's

CONTENT: dict[str, object] = {"targets": {"orchestrator": {"content": {"/app/src": "src"}}}}


def restrict(pipeline: Pipeline, allow: str = "gate", *, signer: Path | None = None) -> None:
    """Let the pipeline's key reach the hook only, bound to the policy of its target.

    With a signer the policy requires verdicts of that key, and the pipeline issues them.
    """
    pipeline.write_policy(signer)
    signing = {} if signer is None else {"signing": {"key": str(signer), "principal": PRINCIPAL}}
    assert pipeline.sshd is not None
    command = f"{pipeline.hook} --ssh --target orchestrator --allow {allow}"
    pipeline.sshd.authorize(f'restrict,command="{command}"')
    pipeline.configure(host={"restricted": True}, **CONTENT, **signing)


@pytest.fixture
def restricted(make_pipeline: MakePipeline) -> Pipeline:
    """A pipeline whose key is restricted to gating; production and staging run something older."""
    pipeline = make_pipeline("ssh")
    pipeline.deploy()
    restrict(pipeline)
    return pipeline


def test_the_whole_gate_passes_and_only_the_other_key_promotes(restricted: Pipeline) -> None:
    before = restricted.prod
    revision = restricted.copy.commit({"src/orchestrator/NEWS": "new"})
    done = restricted.gate()
    assert done.status == 0, done.output
    assert restricted.staging == revision
    assert restricted.prod == before
    assert set(restricted.cases().values()) == {"passed"}
    assert "silenced" in restricted.reason(Link.SILENCE)
    refused = restricted.promote()
    assert refused.status != 0
    assert restricted.prod == before
    restrict(restricted, "promote")
    promoted = restricted.promote()
    assert promoted.status == 0, promoted.output
    assert restricted.prod == revision


def test_a_verdict_goes_the_same_way_and_works_once(restricted: Pipeline, tmp_path: Path) -> None:
    make_key(tmp_path / "signer")
    restrict(restricted, signer=tmp_path / "signer")
    before = restricted.prod
    revision = restricted.copy.commit({"src/orchestrator/NEWS": "new"})
    done = restricted.gate()
    assert done.status == 0, done.output
    assert restricted.prod == before
    restrict(restricted, "promote", signer=tmp_path / "signer")
    promoted = restricted.promote()
    assert promoted.status == 0, promoted.output
    assert restricted.prod == revision
    assert restricted.promote().status == 1


@pytest.mark.fault
def test_a_stale_image_does_not_pass(restricted: Pipeline) -> None:
    """What runs is not what the branch says: the label, the content and the hook all say so."""
    restricted.copy.commit({"src/orchestrator/NEWS": "newer than staging"})
    done = restricted.gate("--gate-reuse")
    assert done.status == 1, done.output
    assert "revision" in restricted.reason(Link.LABEL)
    assert restricted.reason(Link.LABEL).startswith("refused")
    assert restricted.reason(Link.CONTENT).startswith("refused")
    assert restricted.reason(Link.ACCEPTS).startswith("refused")


@pytest.mark.fault
def test_a_hook_that_only_says_it_built_does_not_pass(restricted: Pipeline) -> None:
    """The tag and the container stay old while the hook's report claims the new revision."""
    restricted.copy.commit({"src/orchestrator/NEWS": "never built"})
    real = restricted.hook.with_name("real.sh")
    restricted.hook.rename(real)
    revision = restricted.copy.revision
    parent = f"$(git -C {restricted.clones_on_host()}/orchestrator rev-parse {revision}^)"
    lie = f's/"revision":"[0-9a-f]*"/"revision":"{revision}"/'
    lines = [
        "#!/bin/bash",
        f'[[ $SSH_ORIGINAL_COMMAND == --build-staging* ]] || exec "{real}" "$@"',
        f"export SSH_ORIGINAL_COMMAND=${{SSH_ORIGINAL_COMMAND/{revision}/{parent}}}",
        f'"{real}" "$@" | sed \'{lie}\'',
        'exit "${PIPESTATUS[0]}"',
    ]
    restricted.write_hook("deploy-hook.sh", "\n".join([*lines, ""]))
    done = restricted.gate()
    assert done.status == 1, done.output
    assert restricted.reason(Link.LABEL).startswith("refused")


@pytest.mark.fault
def test_somebody_else_on_the_port_is_heard(restricted: Pipeline) -> None:
    restricted.copy.commit({"src/orchestrator/NEWS": "new"})
    with foreign_server("127.0.0.2", restricted.copy.staging_port):
        done = restricted.gate()
    assert done.status == 1, done.output
    assert "127.0.0.2" in restricted.reason(Link.SILENCE)


@pytest.mark.fault
def test_what_needs_the_engine_says_so_in_one_line(restricted: Pipeline, tmp_path: Path) -> None:
    checks = tmp_path / "checks"
    checks.mkdir()
    (checks / "test_own.py").write_text(
        "import pytest\n\n\n@pytest.mark.gate\n"
        '@pytest.mark.parametrize("name", ["docker_client", "staging_url", "docker_ip"])\n'
        "def test_own(request, staging_container, name):\n    request.getfixturevalue(name)\n\n\n"
        "@pytest.mark.gate\ndef test_exec(staging_exec):\n    staging_exec(['true'])\n"
    )
    done = restricted.gate("--gate-reuse", "-k", "own or exec", str(checks))
    assert done.status == 1, done.output
    assert done.output.count("out of reach") >= 4, done.output
