"""`--verify` and `--promote` against a real engine, with the example service."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.hook.harness import Outcome, RealHost
from tests.support import COPY_LABEL, ask

PINNED = "${ORCHESTRATOR_PROD_IMAGE:-unpromoted:run-deploy-hook}"


def both_refuse(host: RealHost, cause: str, **variables: str | None) -> Outcome:
    """Expect both modes to refuse alike and production to be as it was."""
    before = host.production()
    outcome = host.verify(**variables)
    assert outcome.verdict == (1, cause), outcome.stderr
    assert host.promote(**variables).verdict == (1, cause)
    assert host.production() == before
    return outcome


@pytest.fixture
def serving(real: RealHost) -> RealHost:
    """Production serves the first commit, promoted; staging's tag points to an image of a second one."""
    copy = real.copy
    copy.build_image(copy.staging_image)
    assert real.promote().verdict == (0, "promoted")
    copy.commit({"src/orchestrator/more.py": "MORE = 1\n"})
    copy.build_image(copy.staging_image)
    return real


def test_production_serves_what_was_promoted(serving: RealHost) -> None:
    copy = serving.copy
    old, new = serving.image_of(copy.prod_image), serving.image_of(copy.staging_image)
    assert old != new
    assert serving.verify(EXPECTED_IMAGE_ID=new).verdict == (0, "verified")
    assert serving.image_of(copy.prod_image) == old
    outcome = serving.promote(EXPECTED_IMAGE_ID=new)
    assert (outcome.verdict, outcome.image_id) == ((0, "promoted"), new)
    assert serving.container(copy.prod_container, ".Image") == new == serving.image_of(copy.prod_image)
    assert serving.container(copy.prod_container, ".Id") == outcome.line["container_id"]
    assert serving.image_of(f"{copy.prod_image}:imagefresh-previous") == old
    assert ask(copy.prod_port, "/version")["revision"] == copy.revision
    assert copy.env_file.read_text().count(f"{copy.pin}=") == 1
    assert copy.env_file.read_text().endswith(f"{copy.pin}={new}\n")


def test_a_later_plain_up_restarts_nothing(serving: RealHost) -> None:
    serving.promote()
    before = serving.production()
    serving.copy.compose("up", "--detach", "orchestrator")
    assert serving.production() == before


def test_a_stale_staging_image_is_refused(serving: RealHost) -> None:
    serving.copy.commit({"src/orchestrator/more.py": "MORE = 2\n"})
    outcome = both_refuse(serving, "revision-mismatch")
    assert serving.copy.revision in outcome.reason
    assert serving.copy.git("rev-parse", "HEAD~1") in outcome.reason


@pytest.mark.parametrize("expected", ["", "*", "abc1234"])
@pytest.mark.fault
def test_a_value_that_is_no_revision_is_refused(serving: RealHost, expected: str) -> None:
    both_refuse(serving, "revision-malformed" if expected else "revision-empty", EXPECTED_REVISION=expected)


@pytest.mark.fault
def test_an_image_without_a_label_is_refused(serving: RealHost, tmp_path: Path) -> None:
    image = f"{serving.copy.project}-unlabelled"
    lines = [f"FROM {serving.engine.base_image}", f"LABEL {COPY_LABEL}={serving.copy.project}", ""]
    (tmp_path / "Dockerfile").write_text("\n".join(lines))
    serving.engine.docker("build", "--quiet", "--tag", image, tmp_path)
    both_refuse(serving, "revision-missing", SOURCE_IMAGE=image)


def test_another_image_with_the_right_label_is_refused(serving: RealHost) -> None:
    copy = serving.copy
    tested = serving.image_of(copy.staging_image)
    (copy.worktree / "src/orchestrator/more.py").write_text("EVIL = 1\n")
    assert copy.build_image(copy.staging_image) != tested
    both_refuse(serving, "image-id-mismatch", EXPECTED_IMAGE_ID=tested)


def test_an_image_that_was_pruned_is_refused(serving: RealHost) -> None:
    tested = serving.image_of(serving.copy.staging_image)
    serving.engine.docker("image", "rm", serving.copy.staging_image)
    both_refuse(serving, "image-missing", EXPECTED_IMAGE_ID=tested)
    both_refuse(serving, "image-missing", SOURCE_IMAGE=tested)


@pytest.mark.fault
def test_a_compose_file_that_pins_another_image_is_refused(serving: RealHost) -> None:
    path = serving.copy.compose_dir / "compose.yaml"
    path.write_text(path.read_text().replace(PINNED, "other:1"))
    both_refuse(serving, "pin-unused")


@pytest.mark.fault
def test_a_port_of_a_stranger_is_refused(serving: RealHost) -> None:
    copy = serving.copy
    serving.engine.docker("stop", copy.prod_container)
    name = serving.start_stranger(copy.prod_port)
    assert name in both_refuse(serving, "port-taken").reason


SILENT = "trap 'exit 0' TERM; sleep 99 & wait"


def break_staging(host: RealHost, command: str) -> str:
    """Commit another start command, build staging's tag from it, and return the image ID."""
    head, _, _ = (host.copy.worktree / "Dockerfile").read_text().rpartition("CMD ")
    host.copy.commit({"Dockerfile": f'{head}CMD ["sh", "-c", "{command}"]\n'})
    return host.copy.build_image(host.copy.staging_image)


@pytest.mark.parametrize(
    "command", ["exit 1", SILENT, "python3 -m orchestrator & sleep 1; exit 1"], ids=["dies", "silent", "crashes"]
)
@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "override"])
@pytest.mark.fault
def test_an_unhealthy_image_is_rolled_back(serving: RealHost, command: str, pinned: bool) -> None:
    copy = serving.copy
    if not pinned:
        unpin(serving)
    old, env = serving.image_of(copy.prod_image), copy.env_file.read_text()
    first = ask(copy.prod_port, "/version")
    bad = break_staging(serving, command)
    changes = {} if pinned else {"PROD_PIN": ""}
    outcome = serving.promote(HEALTH_TIMEOUT="3", SETTLE="3", **changes)
    assert outcome.verdict == (3, "unhealthy"), outcome.stderr
    assert outcome.image_id == bad
    assert serving.container(copy.prod_container, ".Image") == old == serving.image_of(copy.prod_image)
    assert serving.container(copy.prod_container, ".Id") == outcome.line["container_id"]
    assert ask(copy.prod_port, "/version") == first
    assert copy.env_file.read_text() == env
    assert serving.image_of(f"{copy.prod_image}:imagefresh-previous") == old
    copy.compose("up", "--detach", "orchestrator")
    assert serving.container(copy.prod_container, ".Image") == old


def unpin(host: RealHost) -> None:
    """Let production name its image by tag, and promote the running one that way."""
    path = host.copy.compose_dir / "compose.yaml"
    path.write_text(path.read_text().replace(PINNED, host.copy.prod_image))


def test_without_a_pin_the_tag_carries_the_promotion(serving: RealHost) -> None:
    unpin(serving)
    new = serving.image_of(serving.copy.staging_image)
    env = serving.copy.env_file.read_text()
    assert serving.promote(PROD_PIN="").verdict == (0, "promoted")
    assert serving.container(serving.copy.prod_container, ".Image") == new == serving.image_of(serving.copy.prod_image)
    assert serving.copy.env_file.read_text() == env
    serving.copy.compose("up", "--detach", "orchestrator")  # recreates the container, from the promoted image
    assert serving.container(serving.copy.prod_container, ".Image") == new


def test_a_first_promotion_that_fails_leaves_nothing_running(real: RealHost) -> None:
    break_staging(real, SILENT)
    outcome = real.promote(HEALTH_TIMEOUT="1")
    assert outcome.verdict == (4, "unhealthy")
    assert real.container(real.copy.prod_container, ".State.Status") == "exited"
    assert real.copy.pin not in real.copy.env_file.read_text()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
@pytest.mark.fault
def test_signals_to_the_whole_group_during_the_swap_do_not_stop_it(serving: RealHost, number: signal.Signals) -> None:
    copy = serving.copy
    old, new = serving.image_of(copy.prod_image), serving.image_of(copy.staging_image)
    variables = {**serving.promotion_variables(), "SETTLE": "1"}
    argv = [str(serving.hook.path), "--promote"]
    process = subprocess.Popen(
        argv, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stderr
    for line in process.stderr:
        if b"step: recreating" in line:
            break
    process.stderr.close()
    while process.poll() is None:
        os.killpg(process.pid, number)
        time.sleep(0.05)
    assert process.stdout
    outcome = Outcome.of(subprocess.CompletedProcess(argv, process.returncode, process.stdout.read(), b""))
    assert outcome.status in (0, 3)
    assert serving.container(copy.prod_container, ".Image") == (new if outcome.status == 0 else old)
    assert serving.image_of(copy.prod_image) == (new if outcome.status == 0 else old)
    assert ask(copy.prod_port, "/health")
