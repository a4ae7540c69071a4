"""What the installed hook receives from a gate, recorded by a hook in front of the real one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pytest_imagefresh.core.contract import encode_list
from tests.e2e.pipeline import Pipeline
from tests.support import run

IDENTITY = {"REPO", "RUN_ID", "COMPOSE_DIR"}
COMMON = IDENTITY | {"HEALTH_PATH", "HEALTH_TIMEOUT", "SETTLE"}
STAGING = {
    *("GIT_SHA", "BUILD_CONTEXT", "BUILD_SUBDIR", "BUILD_DOCKERFILE", "BUILD_TARGET", "BUILD_ARGS", "BUILD_TIMEOUT"),
    *("TARGET_IMAGE", "TARGET_SERVICE", "TARGET_PORT", "COMPOSE_PROFILE", "STAGING_CONTAINER", "CHECK_TIMEOUT"),
    *("STAGING_CHECK_PATH", "STAGING_CHECK_MODE", "STAGING_CHECK_COMMAND"),
}
OF_THE_IMAGE = ("SOURCE_IMAGE", "EXPECTED_REVISION", "EXPECTED_IMAGE_ID")
PROMOTION = {
    *OF_THE_IMAGE,
    *("PROD_IMAGE", "PROD_SERVICE", "PROD_PORT", "PROD_PROFILE", "PROD_PIN", "PRECHECK"),
}
MEDDLING = {
    "DOCKER_HOST": "unix:///nowhere.sock",
    "DOCKER_CONTEXT": "elsewhere",
    "COMPOSE_FILE": "/nowhere.yaml",
    "COMPOSE_PROJECT_NAME": "elsewhere",
    "GIT_DIR": "/nowhere",
    "PROD_IMAGE": "from-the-caller",
    "TARGET_PORT": "1",
    "EXPECTED_REVISION": "0" * 40,
    "BASH_ENV": "/nowhere",
    "SECRET": "hunter2",
}
"""What a caller's shell may hold. None of it may reach the hook."""


class Call(NamedTuple):
    """One call of the hook."""

    mode: str
    variables: dict[str, str]


def record_calls(pipeline: Pipeline) -> Path:
    """Let a hook write down everything it is given, before the real one gets it; return the folder of its records."""
    folder = pipeline.folder.parent / "calls"
    folder.mkdir()
    # A shell's own environment holds variables of its making; what it was started with is in /proc. Source: proc(5).
    record = f'file={folder}/$(date +%s%N)\nprintf "%s\\0" "$*" >"$file"\ncat "/proc/$$/environ" >>"$file"'
    pipeline.wrap_hook(record)
    return folder


def read_calls(folder: Path) -> list[Call]:
    calls = []
    for path in sorted(folder.iterdir()):
        mode, *pairs = path.read_bytes().decode().removesuffix("\0").split("\0")
        calls.append(Call(mode, dict(pair.split("=", 1) for pair in pairs)))
    return calls


def test_the_hook_receives_its_target_in_full_and_nothing_else(each_pipeline: Pipeline) -> None:
    pipeline, copy = each_pipeline, each_pipeline.copy
    folder = record_calls(pipeline)
    pipeline.more_environment = MEDDLING
    gate = pipeline.gate()
    assert gate.status == 0, gate.output
    contract, lease, build, *verifications = read_calls(folder)
    assert contract == ("--contract", {})
    assert lease.mode == "--lease"
    assert set(lease.variables) == IDENTITY
    assert build.mode == "--build-staging"
    assert set(build.variables) == COMMON | STAGING | {"LEASE"}
    told = {name: value for name, value in build.variables.items() if name not in {"RUN_ID", "BUILD_ARGS", "LEASE"}}
    clone = "clones-on-host" if pipeline.sshd else "repos"
    assert told == {
        "REPO": "orchestrator",
        "COMPOSE_DIR": str(copy.compose_dir),
        "GIT_SHA": copy.revision,
        "BUILD_CONTEXT": str(copy.repos_dir.parent / clone / "orchestrator"),
        "BUILD_SUBDIR": ".",
        "BUILD_DOCKERFILE": "Dockerfile",
        "BUILD_TARGET": "",
        "TARGET_IMAGE": copy.staging_image,
        "TARGET_SERVICE": "orchestrator-staging",
        "TARGET_PORT": str(copy.staging_port),
        "COMPOSE_PROFILE": "staging",
        "STAGING_CONTAINER": copy.staging_container,
        "STAGING_CHECK_PATH": "scripts/staging_check.py",
        "STAGING_CHECK_MODE": "stub",
        "STAGING_CHECK_COMMAND": encode_list(["python3", "scripts/staging_check.py", "--mode", "stub"]),
        "HEALTH_PATH": "/health",
        "HEALTH_TIMEOUT": "10",
        "BUILD_TIMEOUT": "120",
        "CHECK_TIMEOUT": "20",
        "SETTLE": "0",
    }
    assert build.variables["BUILD_ARGS"] == encode_list([f"BASE={copy.engine.base_image}"])
    assert {call.variables["LEASE"] for call in verifications} == {build.variables["LEASE"]}
    check_verifications(pipeline, verifications, build.variables["RUN_ID"])
    check_promotion(pipeline, folder)


def check_verifications(pipeline: Pipeline, calls: list[Call], run_id: str) -> None:
    """The right image once, then the three that must be refused, all told in full."""
    copy = pipeline.copy
    image = pipeline.properties()["orchestrator.image_id"]
    assert [call.mode for call in calls] == ["--verify"] * 4 + ["--self-test"]
    *calls, self_test = calls
    assert set(self_test.variables) == COMMON | PROMOTION - {*OF_THE_IMAGE} | {"LEASE"}
    for call in calls:
        assert set(call.variables) == COMMON | PROMOTION | {"LEASE"}
        assert call.variables["RUN_ID"] == run_id == pipeline.properties()["run_id"]
        prod = [call.variables[name] for name in ("PROD_IMAGE", "PROD_SERVICE", "PROD_PORT", "PROD_PIN")]
        assert prod == [copy.prod_image, "orchestrator", str(copy.prod_port), copy.pin]
    right, wrong, empty, unlabelled = (call.variables for call in calls)
    expected = (right["EXPECTED_REVISION"], right["EXPECTED_IMAGE_ID"], right["SOURCE_IMAGE"])
    assert expected == (copy.revision, image, copy.staging_image)
    assert wrong == {**right, "EXPECTED_REVISION": wrong["EXPECTED_REVISION"]}
    assert wrong["EXPECTED_REVISION"] != copy.revision
    assert empty == {**right, "EXPECTED_REVISION": ""}
    assert unlabelled["SOURCE_IMAGE"] == unlabelled["EXPECTED_IMAGE_ID"] != image


def check_promotion(pipeline: Pipeline, folder: Path) -> None:
    """The proven image, by its ID."""
    known = len(read_calls(folder))
    promotion = pipeline.promote()
    assert promotion.status == 0, promotion.output
    contract, promote = read_calls(folder)[known:]
    assert contract == ("--contract", {})
    assert promote.mode == "--promote"
    assert set(promote.variables) == COMMON | PROMOTION
    assert promote.variables["EXPECTED_REVISION"] == pipeline.copy.revision == pipeline.prod
    assert promote.variables["EXPECTED_IMAGE_ID"] == pipeline.properties()["orchestrator.image_id"]


def test_a_deploy_command_passes_the_validated_revision_set_but_empty_on_doubt(each_pipeline: Pipeline) -> None:
    pipeline = each_pipeline
    folder = record_calls(pipeline)
    for branch in (pipeline.copy.branch, "no-such-branch"):
        command = pipeline.api("build_deploy_command", "orchestrator", branch)
        assert isinstance(command, list)
        assert run(command, check=False).returncode != 0
    known, doubtful = (call.variables for call in read_calls(folder))
    assert set(known) == COMMON | PROMOTION - {"EXPECTED_IMAGE_ID"}
    assert known["EXPECTED_REVISION"] == pipeline.copy.revision
    assert doubtful["EXPECTED_REVISION"] == ""
    assert pipeline.prod == ""
