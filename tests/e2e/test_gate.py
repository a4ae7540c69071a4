"""The main job: gate a commit, promote it, see anything else refused."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from pytest_imagefresh.core.chain import Link
from tests.e2e.pipeline import Pipeline, wait_until
from tests.support import run


def deploy_command(pipeline: Pipeline) -> list[str]:
    """Return what the API gives to a caller who brings his own ssh."""
    command = pipeline.api("build_deploy_command", "orchestrator", pipeline.copy.branch)
    assert isinstance(command, list)
    return command


def promote(pipeline: Pipeline) -> None:
    promotion = pipeline.promote()
    assert promotion.status == 0, promotion.output
    assert promotion.says("promoted")


def test_promotes_what_was_gated_and_nothing_else(each_pipeline: Pipeline) -> None:
    pipeline = each_pipeline
    first = pipeline.copy.commit({"src/orchestrator/NEWS": "one"})
    gate = pipeline.gate()
    assert gate.status == 0, gate.output
    assert gate.says("^GATE PASSED$")
    cases = pipeline.cases()
    assert len([name for name in cases if name.startswith("test_")]) == len(Link)
    assert set(cases.values()) == {"passed"}
    assert (pipeline.staging, pipeline.prod) == (first, "")
    promote(pipeline)
    runs = pipeline.copy.engine.docker("container", "inspect", "--format", "{{.Image}}", pipeline.copy.prod_container)
    proven = pipeline.properties()
    assert (proven["orchestrator.revision"], proven["orchestrator.image_id"]) == (first, runs)
    assert pipeline.prod == first
    pipeline.assert_clean()

    second = pipeline.copy.commit({"src/orchestrator/NEWS": "two"})
    refused = pipeline.promote()
    assert refused.status == 1, refused.output
    assert refused.says(f"^imagefresh: no complete gate of orchestrator at {second}; run: pytest gates/")
    deployed = run(deploy_command(pipeline), check=False)
    assert deployed.returncode == 1
    assert json.loads(deployed.stdout)["cause"] == "revision-mismatch"
    assert (pipeline.staging, pipeline.prod) == (first, first)

    gate = pipeline.gate()
    assert gate.status == 0, gate.output
    assert (pipeline.staging, pipeline.prod) == (second, first)
    promote(pipeline)
    assert (pipeline.staging, pipeline.prod) == (second, second)


def sent_hooks() -> set[Path]:
    """Return the bundled hook's copies and working folders on this machine, of whatever run."""
    folders = [Path(tempfile.gettempdir()).glob("imagefresh-*"), Path("/tmp").glob("imagefresh-*")]
    return {path for found in [*folders, Path("/var/tmp").glob("imagefresh.*")] for path in found}


def test_the_bundled_hook_gates_and_promotes(each_pipeline: Pipeline) -> None:
    pipeline = each_pipeline
    pipeline.configure(host={"hook": "bundled"})
    revision = pipeline.copy.revision
    before = sent_hooks()
    gate = pipeline.gate()
    assert gate.status == 0, gate.output
    assert (pipeline.staging, pipeline.prod) == (revision, "")
    promote(pipeline)
    assert (pipeline.staging, pipeline.prod) == (revision, revision)
    added = sent_hooks() - before
    assert wait_until(lambda: not added & sent_hooks()), added


def test_an_image_that_took_the_staging_tag_since_is_not_promoted(pipeline: Pipeline) -> None:
    revision = pipeline.copy.revision
    gate = pipeline.gate()
    assert gate.status == 0, gate.output
    other = pipeline.copy.build_image(f"{pipeline.copy.project}-other")
    pipeline.copy.engine.docker("tag", other, pipeline.copy.staging_image)
    refused = pipeline.promote()
    assert refused.status == 1, refused.output
    assert refused.says(f"expected {pipeline.properties()['orchestrator.image_id']}, observed {other}")
    assert (pipeline.staging, pipeline.prod) == (revision, "")
