"""A user's own gate tests, and the Python API: both use what the shipped gates use."""

from __future__ import annotations

import pytest

from tests.e2e.pipeline import Pipeline

OWN_CHECKS = """
import json
import urllib.request

import pytest

pytestmark = pytest.mark.gate


def get(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def test_the_forwarded_port_answers(docker_ip, docker_services, validated_revision):
    port = docker_services.port_for("orchestrator-staging", 8000)
    assert get(f"http://{docker_ip}:{port}/version")["revision"] == validated_revision.hex
    with open("port", "w") as file:
        file.write(str(port))


def test_the_url_answers(staging_url):
    assert get(f"{staging_url}/health") == {"status": "ok"}


def test_a_command_runs_inside(staging_exec):
    done = staging_exec(["cat", "/app/src/orchestrator/NEWS"])
    assert (done.exit_status, done.output) == (0, b"own checks")


def test_the_client_sees_the_container(docker_client, staging_container, staging_image, target):
    container = docker_client.containers.get(staging_container.id.hex)
    assert container.image.id == staging_image.id.digest
    assert container.name == target.staging.container
"""
FAILING_CHECK = """
import pytest


@pytest.mark.gate
def test_the_till(staging_exec):
    assert staging_exec(["cat", "/app/till"]).exit_status == 0, "the till is empty"
"""


def test_own_checks_belong_to_the_gate_and_leave_staging_running(each_pipeline: Pipeline) -> None:
    pipeline, copy = each_pipeline, each_pipeline.copy
    revision = copy.commit({"src/orchestrator/NEWS": "own checks"})
    (pipeline.folder / "checks").mkdir()
    (pipeline.folder / "checks/test_own.py").write_text(OWN_CHECKS)
    gate = pipeline.gate("checks")
    assert gate.status == 0, gate.output
    own = [name for name in pipeline.cases() if "answers[" in name or "runs_inside[" in name or "sees_the" in name]
    assert len(own) == 4, own
    port = int((pipeline.folder / "port").read_text())
    assert (port == copy.staging_port) is (pipeline.sshd is None)
    state = copy.engine.docker("container", "inspect", "--format", "{{.State.Status}} {{.Id}}", copy.staging_container)
    assert state == f"running {pipeline.properties()['orchestrator.container_id']}"

    (pipeline.folder / "checks/test_failing.py").write_text(FAILING_CHECK)
    gate = pipeline.gate("checks")
    assert gate.status == 1, gate.output
    assert gate.says("the till is empty")
    assert (pipeline.staging, pipeline.prod) == (revision, "")


@pytest.mark.fault
def test_the_python_api_works_for_real(each_pipeline: Pipeline) -> None:
    pipeline, copy = each_pipeline, each_pipeline.copy
    first, branch = copy.revision, copy.branch
    assert pipeline.api("validated_revision", "orchestrator", branch) == first
    assert pipeline.api("image_revision", copy.staging_image) == ""
    rebuilt = pipeline.api("rebuild_staging_image", "orchestrator", branch, first)
    assert rebuilt == [True, f"staging runs {staging_image_id(pipeline)}, built from {first}"]
    assert pipeline.api("image_revision", copy.staging_image) == first
    assert pipeline.staging == first

    second = copy.commit({"src/orchestrator/NEWS": "newer"})
    refused = pipeline.api("rebuild_staging_image", "orchestrator", branch, first)
    assert refused == [False, f"branch {branch} of orchestrator is at {second}, expected '{first}'; nothing was built"]
    assert pipeline.staging == first
    passed, said = answer(pipeline.api("check_staging_image_fresh", "orchestrator", "ticket-42", branch))
    assert passed, said
    assert "GATE PASSED" in said
    pipeline.junit = pipeline.folder / ".imagefresh/orchestrator/ticket-42.xml"
    assert set(pipeline.cases().values()) == {"passed"}
    assert (pipeline.staging, pipeline.prod) == (second, "")
    promotion = pipeline.promote()
    assert promotion.status == 0, promotion.output
    assert pipeline.prod == second


def answer(value: object) -> tuple[bool, str]:
    assert isinstance(value, list)
    return bool(value[0]), str(value[1])


def staging_image_id(pipeline: Pipeline) -> str:
    return pipeline.copy.engine.docker("image", "inspect", "--format", "{{.Id}}", pipeline.copy.staging_image)
