"""`--build-staging` against a real engine, with the example service."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pytest_imagefresh.core.contract import encode_list
from tests.hook.harness import Outcome, RealHost
from tests.support import await_true

CLIENTS = [path for path in ("/usr/local/bin/docker", "/usr/bin/docker") if Path(path).exists()]


def built(host: RealHost, **variables: str | None) -> Outcome:
    """Build staging, and compare what the engine says with what the hook says."""
    outcome = host.staging(**variables)
    assert outcome.verdict == (0, "built"), outcome.stderr
    name = host.copy.staging_container
    assert host.container(name, ".Id") == outcome.line["container_id"]
    assert host.container(name, ".Image") == outcome.image_id == host.image_of(host.copy.staging_image)
    assert host.run_tag() == ""
    return outcome


def refused(host: RealHost, cause: str, **variables: str | None) -> Outcome:
    """Expect a refusal; the staging tag must not move and no tag of the run may stay."""
    before = host.image_of(host.copy.staging_image)
    outcome = host.staging(**variables)
    assert outcome.verdict == (1, cause), outcome.stderr
    assert host.image_of(host.copy.staging_image) == before
    assert host.run_tag() == ""
    return outcome


@pytest.mark.parametrize("client", CLIENTS)
def test_staging_runs_what_was_built_from_the_commit(real: RealHost, client: str) -> None:
    real.install("with-client", client=client)
    copy = real.copy
    (copy.worktree / "src/orchestrator/uncommitted.py").write_text("")
    first = built(real)
    assert first.line["revision"] == copy.revision
    assert first.line["tree"] == copy.git("rev-parse", "HEAD^{tree}")
    assert first.line["engine_id"] == real.engine.docker("info", "--format", "{{.ID}}")
    assert base64.b64decode(str(first.line["check_output"])).startswith(b"TAP version 13\n1..")
    assert "imagefresh: check: ok 1 " in first.stderr
    files = real.engine.docker("exec", copy.staging_container, "ls", "/app/src/orchestrator")
    assert "uncommitted.py" not in files
    label = '{{index .Config.Labels "org.opencontainers.image.revision"}}'
    assert real.engine.docker("image", "inspect", "--format", label, first.image_id) == copy.revision


def test_staging_is_recreated_every_time_even_when_paused(real: RealHost) -> None:
    first = built(real)
    real.engine.docker("pause", real.copy.staging_container)
    second = built(real)
    assert first.image_id == second.image_id
    assert first.line["container_id"] != second.line["container_id"]


def test_a_dockerfile_that_knows_no_revision_is_stamped(real: RealHost) -> None:
    text = (real.copy.worktree / "Dockerfile").read_text()
    kept = [line for line in text.splitlines() if "GIT_SHA" not in line]
    real.copy.commit({"Dockerfile": "\n".join(kept)})
    outcome = real.staging(STAGING_CHECK_COMMAND=encode_list(["true"]))
    assert outcome.verdict == (0, "built"), outcome.stderr


def test_production_is_untouched_although_staging_depends_on_it(real: RealHost) -> None:
    copy = real.copy
    copy.start_prod(copy.build_image(copy.prod_image))
    text = (copy.compose_dir / "compose.yaml").read_text()
    # A plain `up` of staging would recreate production now, and would remove what it does not know.
    text = text.replace("ROLE: production", "ROLE: production\n      CHANGED: really")
    text = text.replace("profiles: [staging]", "profiles: [staging]\n    depends_on: [orchestrator]")
    (copy.compose_dir / "compose.yaml").write_text(text)
    copy.env_file.write_text(copy.env_file.read_text() + "COMPOSE_REMOVE_ORPHANS=true\n")
    before = real.production()
    built(real)
    copy.git("commit", "--quiet", "--allow-empty", "--message", "another")
    built(real)
    assert real.production() == before


@pytest.mark.parametrize(
    ("variables", "cause"),
    [
        ({"TARGET_SERVICE": "orchestrator"}, "service-is-repo"),
        ({"REPO": "shop", "TARGET_SERVICE": "orchestrator"}, "service-not-in-profile"),
        ({"TARGET_IMAGE": "unpromoted:run-deploy-hook"}, "image-of-other-service"),
        ({"STAGING_CONTAINER": "prod"}, "container-name"),
        ({"TARGET_PORT": "prod"}, "port-of-other-service"),
    ],
    ids=str,
)
def test_production_cannot_be_named_as_staging(real: RealHost, variables: dict[str, str], cause: str) -> None:
    copy = real.copy
    copy.env_file.write_text(copy.env_file.read_text() + "COMPOSE_PROFILES=\n")
    names = {"STAGING_CONTAINER": copy.prod_container, "TARGET_PORT": str(copy.prod_port)}
    chosen = {key: names[key] if value == "prod" else value for key, value in variables.items()}
    refused(real, cause, **chosen)
    assert copy.leftovers()["container"] == []


def test_a_profile_that_is_always_on_is_refused(real: RealHost) -> None:
    real.copy.env_file.write_text(real.copy.env_file.read_text() + "COMPOSE_PROFILES=staging\n")
    refused(real, "service-without-profile")


def test_a_port_that_a_stranger_holds_is_refused(real: RealHost) -> None:
    name = real.start_stranger(real.copy.staging_port)
    assert name in refused(real, "port-taken").reason


def test_the_host_s_own_compose_file_is_kept_to_the_letter(real: RealHost) -> None:
    copy = real.copy
    text = (copy.compose_dir / "compose.yaml").read_text()
    odd = '      ODD: "a$$b $${c} \\" # x"\n      MANY: |\n        one\n        image: two\n'
    (copy.compose_dir / "compose.yaml").write_text(text.replace("      ROLE: staging\n", "      ROLE: staging\n" + odd))
    built(real)
    program = "import os; print(os.environ['ODD'], os.environ['MANY'], sep='/')"
    values = copy.engine.docker("exec", copy.staging_container, "python3", "-c", program)
    assert values == 'a$b ${c} " # x/one\nimage: two'


# --- what fails -------------------------------------------------------------------------------------------------------


@pytest.mark.fault
@pytest.mark.parametrize("client", CLIENTS)
def test_a_failed_build_names_its_error_line(real: RealHost, client: str) -> None:
    real.install("with-client", client=client)
    text = (real.copy.worktree / "Dockerfile").read_text()
    step = "RUN echo many words; echo the very cause: no such header >&2; echo more words; exit 3\n"
    real.copy.commit({"Dockerfile": text.replace("USER ", step + "USER ")})
    outcome = refused(real, "build-failed")
    assert "the very cause: no such header" in outcome.reason
    assert "exit code: 3" in outcome.reason or "non-zero code: 3" in outcome.reason
    assert real.copy.leftovers()["container"] == []


@pytest.mark.fault
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("COPY nothing /nothing\n", "nothing"),
        ("FRUM scratch\n", "FRUM"),
        ("FROM nowhere.invalid/x\n", "nowhere.invalid"),
    ],
)
def test_a_dockerfile_that_cannot_be_built_is_named(real: RealHost, client: str, line: str, expected: str) -> None:
    real.install("with-client", client=client)
    real.copy.commit({"Dockerfile": (real.copy.worktree / "Dockerfile").read_text() + line})
    assert expected in refused(real, "build-failed").reason


def start_command(host: RealHost, command: str) -> None:
    """Commit another start command for the service."""
    text = (host.copy.worktree / "Dockerfile").read_text()
    head, _, _ = text.rpartition("CMD ")
    host.copy.commit({"Dockerfile": f'{head}CMD ["sh", "-c", "{command}"]\n'})


@pytest.mark.fault
def test_a_container_that_dies_at_start_is_reported_with_its_log(real: RealHost) -> None:
    start_command(real, "echo cannot open the database >&2; exit 7")
    outcome = refused(real, "unhealthy", HEALTH_TIMEOUT="60")
    assert "exited (exit status 7)" in outcome.reason
    assert "cannot open the database" in outcome.reason


@pytest.mark.fault
def test_a_container_that_dies_after_its_first_good_answer_is_refused(real: RealHost) -> None:
    start_command(real, "python3 -m orchestrator & sleep 2; echo gone by itself; exit 5")
    outcome = refused(real, "unhealthy", SETTLE="20", STAGING_CHECK_COMMAND=encode_list(["true"]))
    assert "gone by itself" in outcome.reason


@pytest.mark.fault
def test_a_path_that_does_not_answer_200_is_unhealthy(real: RealHost) -> None:
    outcome = refused(real, "unhealthy", HEALTH_PATH="/nowhere", HEALTH_TIMEOUT="1")
    assert "observed 404" in outcome.reason


@pytest.mark.fault
def test_a_check_that_says_ok_and_fails_is_refused(real: RealHost) -> None:
    words = ["sh", "-c", "echo ok 1; echo PASS; exit 3"]
    outcome = refused(real, "check-failed", STAGING_CHECK_COMMAND=encode_list(words))
    assert outcome.line["check_status"] == 3
    assert base64.b64decode(str(outcome.line["check_output"])) == b"ok 1\nPASS\n"


@pytest.mark.fault
def test_a_check_that_is_missing_is_refused(real: RealHost) -> None:
    outcome = refused(real, "check-failed", STAGING_CHECK_COMMAND=encode_list(["/no/such/check"]))
    assert outcome.line["check_status"] in (126, 127)


@pytest.mark.fault
def test_a_check_that_hangs_leaves_no_process_in_the_container(real: RealHost) -> None:
    words = ["sh", "-c", "trap '' TERM; sleep 31415 & wait"]
    refused(real, "check-timeout", STAGING_CHECK_COMMAND=encode_list(words), CHECK_TIMEOUT="1")
    assert "31415" not in real.engine.docker("top", real.copy.staging_container, "-eo", "pid,args")


def test_the_output_of_a_check_is_kept_to_one_mebibyte(real: RealHost) -> None:
    words = ["python3", "-c", "print('x' * 3000000); print('the end')"]
    outcome = built(real, STAGING_CHECK_COMMAND=encode_list(words))
    assert base64.b64decode(str(outcome.line["check_output"])) == b"x" * 1048576


def test_an_engine_that_is_not_there_is_no_decision(real: RealHost, tmp_path: Path) -> None:
    hook = real.install("lost", engine=f"unix://{tmp_path}/no.sock")
    assert hook.call("--build-staging", real.staging_variables()).verdict == (11, "engine-down")
    assert hook.call("--promote", real.promotion_variables()).verdict == (11, "engine-down")


def test_a_caller_that_goes_away_during_the_build_leaves_nothing(real: RealHost) -> None:
    text = (real.copy.worktree / "Dockerfile").read_text()
    real.copy.commit({"Dockerfile": text.replace("USER ", "RUN echo now sleeping; sleep 60\nUSER ")})
    variables = real.staging_variables()
    argv = [str(real.hook.path), "--build-staging"]
    with subprocess.Popen(argv, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr
        for line in process.stderr:
            if line.rstrip().endswith(b"now sleeping"):
                break
        process.terminate()
        stdout, stderr = process.communicate(timeout=60)
    outcome = Outcome.of(subprocess.CompletedProcess(argv, process.returncode, stdout, stderr))
    assert outcome.verdict == (11, "interrupted")
    assert list(real.hook.temp_dir.iterdir()) == []
    assert real.run_tag() == ""
    # The engine itself ends a build whose client is gone, in its own time.
    assert await_true(lambda: real.copy.leftovers()["container"] == [])


# --- what runs leave on the engine ------------------------------------------------------------------------------------


def failed(host: RealHost) -> str:
    """Commit something new, build it, and let its check fail; return the image ID."""
    host.copy.commit({"src/orchestrator/NEWS": str(time.monotonic_ns())})
    return refused(host, "check-failed", STAGING_CHECK_COMMAND=encode_list(["false"])).image_id


def killed(host: RealHost) -> str:
    """Commit something new, build it, and kill the whole run in its check; return the image ID."""
    host.copy.commit({"src/orchestrator/NEWS": str(time.monotonic_ns())})
    variables = {**host.staging_variables(), "STAGING_CHECK_COMMAND": encode_list(["sh", "-c", "echo here; sleep 60"])}
    argv = [str(host.hook.path), "--build-staging"]
    with subprocess.Popen(
        argv, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stderr
        assert any(line.endswith(b"check: here\n") for line in process.stderr)
        os.killpg(process.pid, signal.SIGKILL)
        # What `timeout` runs is a process group of its own.
        host.engine.docker("container", "stop", "--time", "0", host.copy.staging_container)
    shutil.rmtree(host.hook.temp_dir)
    host.hook.temp_dir.mkdir()
    return host.run_tag()


def kept(host: RealHost, *images: str) -> list[bool]:
    """Whether each image is still there."""
    return [host.image_of(image) == image for image in images]


def notes(host: RealHost) -> list[Path]:
    return list((host.copy.compose_dir / ".imagefresh/.runs").iterdir())


def another_run(host: RealHost) -> None:
    host.run_id = f"20260102T030406Z-{host.run_id.rpartition('-')[2]}"


@pytest.mark.fault
def test_images_of_failed_runs_stay_no_longer_than_staging_runs_them(real: RealHost) -> None:
    first = built(real).image_id
    one = failed(real)
    assert kept(real, first, one) == [True, True]
    two = failed(real)
    assert kept(real, first, one, two) == [True, False, True]
    real.copy.commit({"src/orchestrator/NEWS": "good"})
    good = built(real).image_id
    assert kept(real, first, one, two, good) == [True, False, False, True]
    assert notes(real) == []


@pytest.mark.fault
def test_what_a_killed_run_left_is_removed_by_a_later_one(real: RealHost) -> None:
    image = killed(real)
    assert image
    another_run(real)
    real.copy.commit({"src/orchestrator/NEWS": "good"})
    good = built(real).image_id
    assert kept(real, image, good) == [False, True]
    assert real.image_of(f"imagefresh-run:{real.run_id.lower()}".replace("0406z", "0405z")) == ""
    assert notes(real) == []


@pytest.mark.fault
def test_an_image_that_has_a_name_or_a_container_by_now_is_left_alone(real: RealHost) -> None:
    named = failed(real)
    real.engine.docker("image", "tag", named, f"{real.copy.project}-by-hand")
    used = failed(real)
    container = f"{real.copy.project}-unused"
    real.engine.docker("container", "create", "--name", container, used)
    last = failed(real)
    assert kept(real, named, used, last) == [True, True, True]
    real.engine.docker("container", "rm", container)
    failed(real)
    assert kept(real, named, used, last) == [True, False, False]


@pytest.mark.fault
def test_an_image_that_was_proven_before_outlives_a_later_run_that_fails(real: RealHost) -> None:
    proven, revision = built(real).image_id, real.copy.revision
    real.copy.commit({"src/orchestrator/NEWS": "newer"})
    newer = built(real).image_id
    words = encode_list(["false"])
    again = refused(real, "check-failed", GIT_SHA=revision, STAGING_CHECK_COMMAND=words).image_id
    assert again == proven
    built(real)
    assert kept(real, proven, newer) == [True, True]


@pytest.mark.fault
def test_a_run_that_fails_takes_no_image_from_a_container_that_does_not_run(real: RealHost) -> None:
    # As production's former images are kept.
    image = built(real).image_id
    container = f"{real.copy.project}-kept"
    real.engine.docker("container", "create", "--name", container, image)
    real.engine.docker("image", "rm", "--force", real.copy.staging_image)
    override = "services:\n  orchestrator-staging:\n    command: [sh, -c, exit 3]\n"
    (real.copy.compose_dir / "compose.override.yaml").write_text(override)
    assert refused(real, "unhealthy").image_id == image
    assert kept(real, image) == [True]
    assert real.engine.docker("container", "inspect", "--format", "{{.Image}}", container) == image
