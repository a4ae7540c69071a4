"""Modes, variables and the JSON line: what is settled before the hook looks at anything."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pytest_imagefresh.core.contract import encode_list
from tests.hook.harness import RUN_ID, SCRIPT, Hook, Outcome, PretendedHost, changed, image_id, install
from tests.support import safe_path

FOREVER = "a" * 5000
EVERY_MODE = ["REPO", "RUN_ID", "COMPOSE_DIR"]
ALWAYS = [*EVERY_MODE, "HEALTH_PATH", "HEALTH_TIMEOUT", "SETTLE"]
STAGING_ONLY = [
    *["GIT_SHA", "BUILD_CONTEXT", "BUILD_TIMEOUT", "TARGET_IMAGE", "TARGET_SERVICE", "TARGET_PORT", "COMPOSE_PROFILE"],
    *["STAGING_CONTAINER", "STAGING_CHECK_PATH", "CHECK_TIMEOUT"],
]
PROMOTION_ONLY = ["SOURCE_IMAGE", "PROD_IMAGE", "PROD_SERVICE", "PROD_PORT"]


# --- modes ------------------------------------------------------------------------------------------------------------


def test_contract_prints_its_version_and_nothing_else(pretended: PretendedHost) -> None:
    done = pretended.hook.run("--contract", {})
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1\n", b"")


def test_help_names_every_mode_and_variable(pretended: PretendedHost) -> None:
    done = pretended.hook.run("--help", {})
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    modes = ["--build-staging", "--observe", "--verify", "--promote", "--lease", "--self-test", "--contract", "--help"]
    optional = ["LEASE", "BUILD_ARGS", "STAGING_CHECK_COMMAND", "EXPECTED_REVISION", "EXPECTED_IMAGE_ID", "PROD_PIN"]
    assert [word for word in [*modes, *ALWAYS, *STAGING_ONLY, *PROMOTION_ONLY, *optional] if word not in text] == []


@pytest.mark.parametrize("mode", ["", "promote", "--Promote", "--observe ", "--verify ", "-h", "--promote\n", "$(id)"])
def test_an_unknown_mode_is_wrong_usage(pretended: PretendedHost, mode: str) -> None:
    assert pretended.hook.call(mode, pretended.promotion_variables()).verdict == (2, "mode-unknown")
    assert pretended.calls == []


def test_a_second_argument_is_wrong_usage(pretended: PretendedHost) -> None:
    argv = [str(pretended.hook.path), "--verify", "--force"]
    done = subprocess.run(argv, env=pretended.promotion_variables(), capture_output=True, check=False)
    assert Outcome.of(done).verdict == (2, "arguments")
    assert pretended.calls == []


def test_no_argument_promotes(pretended: PretendedHost) -> None:
    outcome = pretended.hook.call(None, pretended.promotion_variables())
    assert (outcome.verdict, outcome.line["mode"]) == ((0, "promoted"), "--promote")


# --- variables --------------------------------------------------------------------------------------------------------

NAMES = ["", " ", "a b", "-a", "../a", "a/b", "a\n", "a;id", "$(id)", "`id`", "a'b", 'a"b', "*", "é", FOREVER]
COUNTS = ["", "0", "00", "-1", "+1", "1e3", "1,5", " 1", "1\n", "x", "1 2", "a[$(touch pwned)]", "$(id)", "9" * 30]
IMAGES = ["", "A", "a b", "-a", "a:", "a@sha256:" + "1" * 64, "sha256:" + "1" * 63, "a:b:c", "a//b", "$(id)", "a\n"]
HEXES = ["", "1" * 39, "1" * 41, "A" * 40, "g" * 40, " " + "1" * 40, "1" * 40 + "\n", "*", "HEAD", "1" * 40 + " --x"]
PATHS = ["", "relative", "./x", "/x\n", "/x\x07"]
INSIDE = ["", "/etc", "..", "../x", "x/..", "x/../../y", "x\ny"]
BAD: dict[str, list[str]] = {
    "REPO": [*NAMES, "a..b", "a.git", ".a"],
    "RUN_ID": ["", RUN_ID.upper(), RUN_ID[:-1], RUN_ID + "0", RUN_ID + "\n", "x", RUN_ID.replace("T", " ")],
    "COMPOSE_DIR": [*PATHS, "/nowhere/at/all", "/etc/passwd"],
    "LEASE": ["", "x", "a" * 63, "A" * 64, "a" * 64 + "\n", "*", "$(id)"],
    "HEALTH_PATH": ["", "health", "/a b", "/a\n", "/$(id)", "/a'b", "/a#b", "/{a}", "@evil/", FOREVER],
    "HEALTH_TIMEOUT": COUNTS,
    "SETTLE": [each for each in COUNTS if each not in ("0", "00")],
    "GIT_SHA": HEXES,
    "BUILD_CONTEXT": PATHS,
    "BUILD_SUBDIR": INSIDE,
    "BUILD_DOCKERFILE": INSIDE,
    "BUILD_TARGET": [each for each in NAMES if each],
    "TARGET_IMAGE": [*IMAGES, "1" * 64, "a:imagefresh-previous", "imagefresh-run:x"],
    "TARGET_SERVICE": NAMES,
    "TARGET_PORT": [*COUNTS, "65536", "99999", "8501/tcp", "08501", "8501-8502"],
    "COMPOSE_PROFILE": NAMES,
    "STAGING_CONTAINER": NAMES,
    "STAGING_CHECK_PATH": ["", "-c", "a\nb"],
    "STAGING_CHECK_MODE": NAMES,
    "STAGING_CHECK_COMMAND": ["", "?", "YQ==", "YQA", "YQA=\n", base64.b64encode(b"\0").decode(), "YQB" + "="],
    "BUILD_TIMEOUT": COUNTS,
    "CHECK_TIMEOUT": COUNTS,
    "SOURCE_IMAGE": [*IMAGES, "sha256:" + "G" * 64, "1" * 64],
    "PROD_IMAGE": IMAGES,
    "PROD_SERVICE": NAMES,
    "PROD_PORT": [*COUNTS, "65536"],
    "PROD_PROFILE": [each for each in NAMES if each],
    "PROD_PIN": ["1A", "A-B", "A B", "A=B", "A[$(id)]", "PATH", "home", "LD_PRELOAD", "DOCKER_HOST", "A\n"],
    "PRECHECK": ["Yes", "true", "1", "yes\n", "$(id)"],
    "PROD_PROXY": [each for each in NAMES if each],
    "PROD_PROXY_PORT": [*COUNTS, "65536"],
    "PROD_DRAIN": [*(each for each in COUNTS if each), "0.5"],
}
PROXIED = {"PROD_PROXY": "shop-proxy", "PROD_PROXY_PORT": "8000"}
PROMOTION = {*PROMOTION_ONLY, *PROXIED, "PROD_PROFILE", "PROD_PIN", "PRECHECK", "PROD_DRAIN"}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_malformed_variable_is_wrong_usage_and_nothing_happens(pretended: PretendedHost, name: str) -> None:
    mode = "--promote" if name in PROMOTION else "--build-staging"
    variables = pretended.promotion_variables() if name in PROMOTION else pretended.staging_variables()
    if name in (*PROXIED, "PROD_DRAIN"):
        variables.update(PROXIED)
    before = sorted(pretended.compose_dir.rglob("*"))
    for value in BAD[name]:
        outcome = pretended.hook.call(mode, {**variables, name: value})
        assert outcome.verdict == (2, "variable-malformed"), repr(value)
        assert outcome.reason.startswith(f"{name}: expected ")
        assert ", observed " in outcome.reason
    assert pretended.calls == []
    assert sorted(pretended.compose_dir.rglob("*")) == before


@pytest.mark.parametrize("name", ALWAYS)
@pytest.mark.parametrize("mode", ["--build-staging", "--verify", "--promote", "--self-test"])
def test_a_variable_of_every_mode_must_be_set(pretended: PretendedHost, mode: str, name: str) -> None:
    variables = {**pretended.staging_variables(), **pretended.promotion_variables()}
    outcome = pretended.hook.call(mode, changed(variables, {name: None}))
    assert outcome.verdict == (2, "variable-missing")
    assert outcome.reason.startswith(f"{name}: ")


@pytest.mark.parametrize("name", EVERY_MODE)
def test_a_lease_needs_these_variables_only(pretended: PretendedHost, name: str) -> None:
    variables = {name: pretended.promotion_variables()[name] for name in EVERY_MODE}
    outcome = pretended.hook.call("--lease", changed(variables, {name: None}))
    assert (outcome.verdict, outcome.reason.split(":")[0]) == ((2, "variable-missing"), name)


@pytest.mark.parametrize("name", STAGING_ONLY)
def test_staging_must_be_named_in_full(pretended: PretendedHost, name: str) -> None:
    outcome = pretended.staging(**{name: None})
    assert (outcome.verdict, outcome.reason.split(":")[0]) == ((2, "variable-missing"), name)


@pytest.mark.parametrize("name", PROMOTION_ONLY)
def test_production_must_be_named_in_full(pretended: PretendedHost, name: str) -> None:
    outcome = pretended.promote(**{name: None})
    assert (outcome.verdict, outcome.reason.split(":")[0]) == ((2, "variable-missing"), name)


@pytest.mark.parametrize(
    "items",
    [
        ["1A=x"],
        ["A-B=x"],
        ["A"],
        ["=x"],
        ["A B=x"],
        ["A[$(touch pwned)]=x"],
        ["--secret=x"],
        ["A=1", "A=2"],
        ["GIT_SHA=x"],
        ["git_sha=x"],
        ["HTTP_PROXY=x"],
        ["https_proxy=x"],
        ["BUILDKIT_SYNTAX=x"],
    ],
    ids=str,
)
def test_a_build_argument_that_is_none_or_is_reserved_is_refused(pretended: PretendedHost, items: list[str]) -> None:
    outcome = pretended.staging(BUILD_ARGS=encode_list(items))
    assert (outcome.verdict, outcome.reason.split(":")[0]) == ((2, "variable-malformed"), "BUILD_ARGS")
    assert pretended.calls == []


def test_arguments_target_and_check_reach_docker_word_for_word(pretended: PretendedHost) -> None:
    nasty = "a b'c\"d $(touch pwned) `id` \\ \n é *"
    outcome = pretended.staging(
        BUILD_ARGS=encode_list([f"NASTY={nasty}", "EMPTY="]),
        BUILD_TARGET="run-time",
        STAGING_CHECK_COMMAND=encode_list(["sh", "-c", nasty, ""]),
    )
    assert outcome.verdict == (0, "built")
    calls = [call["argv"] for call in pretended.state["calls"]]
    build = next(argv for argv in calls if argv[1] == "build")
    revision = pretended.clone.revision
    given = [build[index + 1] for index, word in enumerate(build) if word == "--build-arg"]
    assert given == [f"GIT_SHA={revision}", f"NASTY={nasty}", "EMPTY="]
    assert build[build.index("--target") + 1] == "run-time"
    assert outcome.image_id == image_id(*given)
    check = next(argv for argv in calls if argv[1:3] == ["container", "exec"])
    assert check[4:] == ["sh", "-c", nasty, ""]


@pytest.mark.parametrize(
    ("changes", "argv"),
    [
        ({}, ["python3", "scripts/check.py", "--mode", "stub"]),
        ({"STAGING_CHECK_MODE": "full"}, ["python3", "scripts/check.py", "--mode", "full"]),
        ({"STAGING_CHECK_COMMAND": encode_list(["./run", "it"])}, ["./run", "it"]),
    ],
    ids=["default", "mode", "command"],
)
def test_the_check_is_the_command_or_python_with_path_and_mode(
    pretended: PretendedHost, changes: dict[str, str], argv: list[str]
) -> None:
    pretended.staging(**changes)
    check = next(call["argv"] for call in pretended.state["calls"] if call["argv"][1:3] == ["container", "exec"])
    assert check[4:] == argv


@pytest.mark.parametrize("value", ["1", "0.001", "999999", "5.25"])
def test_seconds_may_have_decimals(pretended: PretendedHost, value: str) -> None:
    assert pretended.verify(HEALTH_TIMEOUT=value, SETTLE="0.0").verdict == (0, "verified")


# --- the caller's environment -----------------------------------------------------------------------------------------

HOSTILE = {
    "PATH": "/nowhere",
    "HOME": "/nowhere",
    "DOCKER_HOST": "tcp://evil:1",
    "DOCKER_CONTEXT": "evil",
    "DOCKER_CONFIG": "/nowhere",
    "DOCKER_TLS_VERIFY": "1",
    "COMPOSE_FILE": "evil.yaml",
    "COMPOSE_PROJECT_NAME": "evil",
    "COMPOSE_PROFILES": "prod",
    "COMPOSE_REMOVE_ORPHANS": "true",
    "GIT_DIR": "/nowhere",
    "GIT_WORK_TREE": "/nowhere",
    "GIT_INDEX_FILE": "/nowhere",
    "GIT_OBJECT_DIRECTORY": "/nowhere",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "core.autocrlf",
    "GIT_CONFIG_VALUE_0": "true",
    "SHELLOPTS": "xtrace",
    "BASHOPTS": "nocasematch",
    "POSIXLY_CORRECT": "1",
    "PS4": "$(touch pwned)",
    "IFS": "x/",
    "CDPATH": "/",
    "GLOBIGNORE": "*",
    "TMPDIR": "/nowhere",
    "LC_ALL": "de_DE.UTF-8",
    "LANG": "de_DE.UTF-8",
    "LD_LIBRARY_PATH": "/nowhere",
    "http_proxy": "http://evil",
    "BUILDKIT_SYNTAX": "evil",
    "BUILDX_BUILDER": "evil",
    "SAFE_PATH": "/nowhere",
    "ENGINE": "tcp://evil:1",
    "TEMP_DIR": "/nowhere",
    "MODE": "x",
    "WORK": "/nowhere",
    "PHASE": "rolling-back",
    "CHILD": "1",
    "RUN_TAG": "evil",
    "STATE": "/nowhere",
    "REPLY": "x",
    "an-odd.name": "x",
    "BASH_FUNC_docker%%": "() { touch pwned; }",
    "BASH_FUNC_exit%%": "() { touch pwned; }",
}


@pytest.mark.parametrize("mode", ["--build-staging", "--promote"])
def test_the_caller_s_environment_has_no_say(pretended: PretendedHost, tmp_path: Path, mode: str) -> None:
    (tmp_path / "startup").write_text(f"touch {pretended.compose_dir}/pwned\n")
    startup = {"BASH_ENV": str(tmp_path / "startup"), "ENV": str(tmp_path / "startup")}
    variables = {**pretended.staging_variables(), **pretended.promotion_variables()}
    if mode == "--build-staging":
        variables = pretended.staging_variables()
    assert pretended.hook.call(mode, {**HOSTILE, **startup, **variables}).status == 0
    allowed = {"PATH", "HOME", "LC_ALL", "DOCKER_HOST", "DOCKER_CONFIG"}
    chosen = {
        "COMPOSE_REMOVE_ORPHANS",
        "COMPOSE_IGNORE_ORPHANS",
        "DOCKER_BUILDKIT",
        "BUILDX_NO_DEFAULT_ATTESTATIONS",
        "PIN",
    }
    for call in pretended.state["calls"]:
        env = call["env"]
        assert set(env) - {"PWD", "_", "SHLVL", "OLDPWD", "LC_CTYPE"} <= allowed | chosen, call["argv"]
        assert (env["DOCKER_HOST"], env["LC_ALL"]) == ("unix:///nowhere.sock", "C")
        assert env["PATH"].startswith(str(pretended.tools))
        assert env["COMPOSE_REMOVE_ORPHANS"] == "false"
        assert "/nowhere" not in (env["HOME"], env["DOCKER_CONFIG"])
    assert not list(pretended.compose_dir.rglob("pwned"))


def test_a_docker_configuration_of_the_installer_is_used(pretended: PretendedHost, tmp_path: Path) -> None:
    hook = install(tmp_path / "second", docker_config="/etc/imagefresh/docker", tools=pretended.tools)
    hook.call("--verify", pretended.promotion_variables())
    assert {call["env"]["DOCKER_CONFIG"] for call in pretended.state["calls"]} == {"/etc/imagefresh/docker"}


def test_an_expectation_is_not_taken_from_a_variable_of_another_case(pretended: PretendedHost) -> None:
    outcome = pretended.verify(EXPECTED_REVISION="", expected_revision="1" * 40)
    assert outcome.verdict == (1, "revision-empty")


# --- the JSON line ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('a"b\\c/d', 'a"b\\c/d'),
        ("tab\there", "tabhere"),
        ("\x1b[31mred\x07\x7f", "[31mred"),
        ("größe € 😀", "größe € 😀"),
        (b"a\xffb\xc3(c\xe2\x82", "ab(c"),
        (b"\xc0\xaf\xed\xa0\x80\xf5\x80\x80\x80z", "z"),
        ("&\\&$&", "&\\&$&"),
        ("", ""),
    ],
    ids=repr,
)
def test_a_text_becomes_valid_json_whatever_it_holds(text: str | bytes, left: str) -> None:
    program = f'source "{SCRIPT}"; LC_ALL=C; json_pair key "$1"; printf "{{%s}}" "$REPLY"'
    argv: list[str | bytes] = ["bash", "-c", program, "bash", text]
    done = subprocess.run(argv, capture_output=True, check=True)
    assert json.loads(done.stdout.decode()) == {"key": left}


def test_a_closed_standard_output_changes_no_exit_status(pretended: PretendedHost) -> None:
    for changes, status in [({}, 0), ({"EXPECTED_REVISION": ""}, 1), ({"REPO": ""}, 2)]:
        variables = {**pretended.promotion_variables(), **changes}
        argv = ["bash", "-c", 'exec "$0" --verify >&-', str(pretended.hook.path)]
        done = subprocess.run(argv, env=variables, capture_output=True, check=False)
        assert done.returncode == status
        reader = subprocess.run(
            ["bash", "-c", 'set -o pipefail; "$0" --verify | true', str(pretended.hook.path)],
            env={"PATH": os.environ["PATH"], **variables},
            capture_output=True,
            check=False,
        )
        assert reader.returncode == status


def test_a_closed_standard_error_and_input_do_no_harm(pretended: PretendedHost) -> None:
    argv = ["bash", "-c", 'exec "$0" --verify 2>&- <&-', str(pretended.hook.path)]
    done = subprocess.run(argv, env=pretended.promotion_variables(), capture_output=True, check=False)
    assert Outcome.of(done).verdict == (0, "verified")


def test_it_runs_from_standard_input_and_nothing_eats_it(pretended: PretendedHost) -> None:
    with pretended.hook.path.open("rb") as script:
        argv = ["/bin/bash", "-p", "-s", "--", "--verify"]
        done = subprocess.run(argv, stdin=script, env=pretended.promotion_variables(), capture_output=True, check=False)
    assert Outcome.of(done).verdict == (0, "verified")


# --- losing the caller ------------------------------------------------------------------------------------------------


def start(hook: Hook, mode: str, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(hook.path), mode], env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def await_call(pretended: PretendedHost, part: str) -> None:
    deadline = time.monotonic() + 30
    while not any(part in call for call in pretended.calls):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE])
def test_a_signal_during_the_build_ends_it_at_once_and_tidily(pretended: PretendedHost, number: signal.Signals) -> None:
    pretended.fail("docker build --iidfile", sleep=60)
    process = start(pretended.hook, "--build-staging", pretended.staging_variables())
    await_call(pretended, "docker build --iidfile")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    outcome = Outcome.of(subprocess.CompletedProcess([], process.returncode, stdout, stderr))
    assert outcome.verdict == (11, "interrupted")
    assert "imagefresh: unknown: " in outcome.stderr
    assert list(pretended.hook.temp_dir.iterdir()) == []
    assert "docker image inspect --format {{.Id}} -- imagefresh-run:20260102t030405z-89abcdef" in pretended.calls
    assert not [call for call in pretended.changes() if "docker build " not in call]
    assert (pretended.compose_dir / ".imagefresh/lock").read_text() == ""
    assert pretended.staging(GIT_SHA="0" * 40).cause == "commit-missing"  # the lock is free


def test_a_caller_that_is_gone_stops_the_run_before_production_changes(pretended: PretendedHost) -> None:
    pretended.fail("image inspect", sleep=0.5, status=1, stderr="No such image")
    process = start(pretended.hook, "--promote", pretended.promotion_variables())
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=30) in (1, 11)
    assert pretended.changes() == []


def test_a_signal_while_production_changes_is_not_listened_to(pretended: PretendedHost) -> None:
    pretended.set(answers=["000"] * 8 + ["200"])
    process = start(pretended.hook, "--promote", pretended.promotion_variables())
    await_call(pretended, " up ")
    assert process.stderr
    process.stderr.close()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        process.send_signal(number)
    assert process.wait(timeout=30) == 0
    assert process.stdout
    assert json.loads(process.stdout.read())["cause"] == "promoted"


# --- the lock ---------------------------------------------------------------------------------------------------------


def test_a_second_run_waits_and_is_told_who_holds_the_lock(pretended: PretendedHost) -> None:
    pretended.fail("docker build --iidfile", sleep=1, status=1)
    first = start(pretended.hook, "--build-staging", pretended.staging_variables())
    await_call(pretended, "docker build --iidfile")
    second = pretended.hook.run("--promote", {**pretended.promotion_variables(), "RUN_ID": "20270102T030405Z-00000000"})
    first.communicate(timeout=30)
    assert f"another run holds the lock: {RUN_ID} --build-staging since 2" in second.stderr.decode()
    assert (second.returncode, json.loads(second.stdout)["cause"]) == (0, "promoted")


def test_a_lock_that_stays_taken_is_no_decision(pretended: PretendedHost) -> None:
    text = pretended.hook.path.read_text()
    assert "PROMOTE_WAIT=120" in text
    pretended.hook.path.write_text(text.replace("PROMOTE_WAIT=120", "PROMOTE_WAIT=1"))
    lock = pretended.compose_dir / ".imagefresh/lock"
    lock.parent.mkdir(mode=0o700)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert pretended.promote().verdict == (11, "locked")
        assert pretended.changes() == []
        assert pretended.verify().verdict == (0, "verified")  # it takes no lock


def test_verify_creates_nothing_in_the_compose_folder(pretended: PretendedHost) -> None:
    pretended.verify()
    assert sorted(path.name for path in pretended.compose_dir.iterdir()) == ["compose.yaml"]
    assert pretended.changes() == []


@pytest.mark.parametrize("kind", ["file", "link", "lock"])
def test_a_state_folder_that_is_not_ours_is_refused(pretended: PretendedHost, tmp_path: Path, kind: str) -> None:
    state = pretended.compose_dir / ".imagefresh"
    if kind == "file":
        state.write_text("")
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        state.symlink_to(tmp_path / "elsewhere")
    else:
        (state / "lock").mkdir(parents=True)
    assert pretended.promote().verdict == (1, "state-unsafe")
    assert pretended.changes() == []


def test_the_state_folder_is_closed_to_others_and_the_lock_file_stays(pretended: PretendedHost) -> None:
    state = pretended.compose_dir / ".imagefresh"
    state.mkdir(mode=0o755)
    assert pretended.promote().status == 0
    assert state.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in state.iterdir()) == ["history", "lock", "promoted", "turn"]


# --- the engine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["--build-staging", "--verify", "--promote"])
def test_an_engine_that_does_not_answer_is_no_decision(pretended: PretendedHost, mode: str) -> None:
    pretended.fail("docker info", stderr="Cannot connect to the Docker daemon\n")
    variables = pretended.staging_variables() if mode == "--build-staging" else pretended.promotion_variables()
    outcome = pretended.hook.call(mode, variables)
    assert outcome.verdict == (11, "engine-down")
    assert "Cannot connect to the Docker daemon" in outcome.reason


@pytest.mark.parametrize(
    "call", ["container ls .*publish", "container ls .*name=", "docker build ", " up ", "config --format", "image tag"]
)
def test_an_engine_that_goes_away_in_the_middle_is_no_decision(pretended: PretendedHost, call: str) -> None:
    pretended.fail(call, stderr="error during connect\n")
    pretended.fail("docker info", after=1, stderr="Cannot connect to the Docker daemon\n")
    assert pretended.staging().verdict == (11, "engine-down")


@pytest.mark.parametrize(
    ("call", "cause"),
    [
        ("container ls .*publish", "container-list"),
        ("docker build ", "build-failed"),
        (" up ", "recreate-failed"),
        ("config --format", "compose-invalid"),
        ("image tag", "tag-failed"),
    ],
)
def test_a_command_that_fails_while_the_engine_answers_is_a_no(pretended: PretendedHost, call: str, cause: str) -> None:
    pretended.fail(call, stderr="first line\nthe very cause\n")
    outcome = pretended.staging()
    assert outcome.verdict == (1, cause)
    assert "the very cause" in outcome.reason


@pytest.mark.parametrize("call", ["image inspect", "container inspect"])
def test_an_inspect_that_fails_without_saying_that_nothing_is_there_is_no_decision(
    pretended: PretendedHost, call: str
) -> None:
    pretended.fail(call, stderr="Error response from daemon: something else\n")
    assert pretended.staging().verdict == (11, "engine-answer")


def test_a_command_that_hangs_is_ended_and_is_no_decision(pretended: PretendedHost) -> None:
    text = pretended.hook.path.read_text()
    assert "QUICK=30" in text
    pretended.hook.path.write_text(text.replace("QUICK=30", "QUICK=1"))
    pretended.fail("image inspect", sleep=60)
    outcome = pretended.verify()
    assert outcome.verdict == (11, "timeout")
    assert "docker image inspect" in outcome.reason


def test_a_host_without_a_tool_is_no_decision(pretended: PretendedHost, tmp_path: Path) -> None:
    tools = tmp_path / "few"
    tools.mkdir()
    for tool in ["bash", "sed", "mktemp", "rm", "mkdir"]:
        (tools / tool).symlink_to(f"/bin/{tool}")
    text = pretended.hook.path.read_text()
    assert f"{pretended.tools}:{safe_path()}" in text
    pretended.hook.path.write_text(text.replace(f"{pretended.tools}:{safe_path()}", str(tools)))
    assert pretended.verify().verdict == (11, "tool-missing")


def test_what_a_killed_run_left_is_removed_an_hour_later(pretended: PretendedHost) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    names = {
        "killed": f"imagefresh.{gone.pid}.AAAAAAAAAA",
        "just killed": f"imagefresh.{gone.pid}.BBBBBBBBBB",
        "running": f"imagefresh.{os.getpid()}.CCCCCCCCCC",
        "foreign": "imagefresh.notes",
    }
    for name in names.values():
        (pretended.hook.temp_dir / name / "docker").mkdir(parents=True)
        if name != names["just killed"]:
            os.utime(pretended.hook.temp_dir / name, (0, 0))
    assert Outcome.of(pretended.hook.run("--verify", pretended.promotion_variables())).verdict == (0, "verified")
    left = {path.name for path in pretended.hook.temp_dir.iterdir()}
    assert left == set(names.values()) - {names["killed"]}


def test_compose_s_own_program_is_asked_and_docker_changes(pretended: PretendedHost, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    program = tmp_path / "cli plugins" / "docker-compose"
    program.parent.mkdir()
    program.write_text(f'#!/bin/bash -p\nprintf "%s\\n" "$*" >>{asked}\nexec docker compose "$@"\n')
    program.chmod(0o755)
    pretended.set(compose_program=str(program))
    assert pretended.promote().verdict == (0, "promoted")
    assert pretended.staging().verdict == (0, "built")
    questions = asked.read_text().splitlines()
    configs = [call for call in pretended.calls if call.startswith("docker compose ") and " config " in call]
    assert sorted(questions) == sorted(call.removeprefix("docker compose ") for call in configs)
    assert set(questions) == {"--profile * config --format json", "config --services"}
    assert len([call for call in pretended.calls if " up " in call]) == 2


@pytest.mark.parametrize("program", ["", "docker-compose", "/nowhere/docker-compose", "/etc"])
def test_docker_is_asked_where_it_names_no_program_of_compose(pretended: PretendedHost, program: str) -> None:
    pretended.set(compose_program=program)
    assert pretended.verify().verdict == (0, "verified")
    assert [call for call in pretended.calls if call.startswith("docker compose --profile * config ")]
