"""`--build-staging` against a real engine, with the example service."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from pytest_imagefresh.core.contract import encode_list
from tests.hook.harness import Outcome, RealHost

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


def test_a_container_that_dies_at_start_is_reported_with_its_log(real: RealHost) -> None:
    start_command(real, "echo cannot open the database >&2; exit 7")
    outcome = refused(real, "unhealthy", HEALTH_TIMEOUT="60")
    assert "exited (exit status 7)" in outcome.reason
    assert "cannot open the database" in outcome.reason


def test_a_container_that_dies_after_its_first_good_answer_is_refused(real: RealHost) -> None:
    start_command(real, "python3 -m orchestrator & sleep 2; echo gone by itself; exit 5")
    outcome = refused(real, "unhealthy", SETTLE="20", STAGING_CHECK_COMMAND=encode_list(["true"]))
    assert "gone by itself" in outcome.reason


def test_a_path_that_does_not_answer_200_is_unhealthy(real: RealHost) -> None:
    outcome = refused(real, "unhealthy", HEALTH_PATH="/nowhere", HEALTH_TIMEOUT="1")
    assert "observed 404" in outcome.reason


def test_a_check_that_says_ok_and_fails_is_refused(real: RealHost) -> None:
    words = ["sh", "-c", "echo ok 1; echo PASS; exit 3"]
    outcome = refused(real, "check-failed", STAGING_CHECK_COMMAND=encode_list(words))
    assert outcome.line["check_status"] == 3
    assert base64.b64decode(str(outcome.line["check_output"])) == b"ok 1\nPASS\n"


def test_a_check_that_is_missing_is_refused(real: RealHost) -> None:
    outcome = refused(real, "check-failed", STAGING_CHECK_COMMAND=encode_list(["/no/such/check"]))
    assert outcome.line["check_status"] in (126, 127)


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
    assert real.copy.leftovers()["container"] == []
