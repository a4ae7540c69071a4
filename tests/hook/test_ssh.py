"""`--ssh`: what a key that is bound to one target may ask for, and everything that it may not."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_imagefresh.core.contract import encode_list
from tests.hook.harness import RUN_ID, Outcome, PretendedHost, changed
from tests.sshd import Sshd

pytestmark = pytest.mark.root  # a policy must be root's

GATE_ONLY = ["--build-staging", "--self-test"]
PROMOTE_ONLY = ["--promote"]
BOTH = ["--verify", "--lease", "--status", "--history", "--contract"]


class BoundHost(PretendedHost):
    """A pretended host with a policy for its production, and keys that are bound to it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.bind()

    def bind(self, named: str = "shop", **changes: str | None) -> None:
        """Write the policy that keys are bound to; None leaves a line out."""
        own = {"REQUIRE": "revision image_id", "REPOS_DIR": str(self.clone.path.parent), "ALLOWED_SIGNERS": None}
        self.policy(named, **{**own, **changes})

    def ask(
        self,
        request: str | bytes | None,
        *,
        allow: str = "gate",
        target: str = "shop",
        stdin: bytes = b"",
        **environment: str,
    ) -> subprocess.CompletedProcess[bytes]:
        """Log in with a key of the target and let it ask for something; None is a login without a command."""
        env: dict[bytes, bytes] = {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}
        if request is not None:
            env[b"SSH_ORIGINAL_COMMAND"] = os.fsencode(request)
        argv = [str(self.hook.path), "--ssh", "--target", target, "--allow", allow]
        return subprocess.run(argv, env=env, input=stdin, capture_output=True, timeout=120, check=False)

    def asked(self, request: str | bytes | None, **more: str) -> Outcome:
        """The same, its outcome read; nothing may have been left behind."""
        outcome = Outcome.of(self.ask(request, **more))  # type: ignore[arg-type]
        assert list(self.hook.temp_dir.iterdir()) == []
        return outcome


@pytest.fixture
def bound(tmp_path: Path) -> BoundHost:
    """A pretended host on which every login is bound to one target."""
    return BoundHost(tmp_path)


def words(mode: str, variables: Mapping[str, str]) -> str:
    return " ".join([mode, *(f"{name}={value}" for name, value in variables.items())])


# --- what passes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allow", ["gate", "promote"])
def test_both_keys_may_ask_for_a_decision(bound: BoundHost, allow: str) -> None:
    outcome = bound.asked(words("--verify", bound.promotion_variables()), allow=allow)
    assert (outcome.verdict, outcome.line["mode"]) == ((0, "verified"), "--verify")


def test_the_gate_key_builds_and_the_policy_fills_in_production(bound: BoundHost) -> None:
    variables = {**bound.staging_variables(), "STAGING_CHECK_COMMAND": encode_list(["true", "a b; $(id)"])}
    assert bound.asked(words("--build-staging", variables)).verdict == (0, "built")
    other = {**variables, "TARGET_IMAGE": "shop-shop"}
    assert bound.asked(words("--build-staging", other)).verdict == (1, "image-is-prod")


def test_the_promote_key_promotes(bound: BoundHost) -> None:
    assert bound.asked(words("--promote", bound.promotion_variables()), allow="promote").verdict == (0, "promoted")


@pytest.mark.parametrize("allow", ["gate", "promote"])
def test_both_keys_are_told_the_contract(bound: BoundHost, allow: str) -> None:
    done = bound.ask("--contract", allow=allow)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1\n", b"")


def test_the_gate_key_may_ask_for_the_self_test(bound: BoundHost) -> None:
    unused = dict.fromkeys(["SOURCE_IMAGE", "EXPECTED_REVISION", "EXPECTED_IMAGE_ID"])
    request = words("--self-test", changed(bound.promotion_variables(), unused))
    assert bound.asked(request).verdict == (0, "self-tested")


def test_standard_input_reaches_the_lease(bound: BoundHost) -> None:
    done = bound.ask(f"--lease REPO=shop RUN_ID={RUN_ID}", stdin=b"\nrelease\n")
    grant, _, line = done.stdout.partition(b"\n")
    assert grant.startswith(b'{"lease":"')
    assert Outcome.of(subprocess.CompletedProcess([], done.returncode, line, done.stderr)).cause == "released"


def test_standard_input_reaches_the_build(bound: BoundHost) -> None:
    request = words("--build-staging", {**bound.staging_variables(), "BUILD_CONTEXT": "-"})
    objects = bound.clone.git("rev-list", "--objects", "--no-walk", bound.clone.revision)
    names = "\n".join(line.split()[0] for line in objects.splitlines())
    argv = ["git", "-C", str(bound.clone.path), "pack-objects", "--stdout", "-q"]
    pack = subprocess.run(argv, input=names.encode(), capture_output=True, check=True).stdout
    outcome = Outcome.of(bound.ask(request, stdin=pack))
    assert outcome.verdict == (0, "built"), outcome.stderr


def test_an_empty_expectation_arrives_as_one(bound: BoundHost) -> None:
    request = words("--verify", {**bound.promotion_variables(), "EXPECTED_REVISION": ""})
    assert bound.asked(request).verdict == (1, "revision-empty")


def test_the_longest_request_passes(bound: BoundHost) -> None:
    request = words("--verify", {**bound.promotion_variables(), "BUILD_SUBDIR": ""})
    assert bound.asked(request + "x" * (8192 - len(request))).verdict == (0, "verified")
    assert bound.asked(request + "x" * (8193 - len(request))).verdict == (2, "request-malformed")


# --- what does not ----------------------------------------------------------------------------------------------------

GOOD = f"--lease REPO=shop RUN_ID={RUN_ID}"
MARK = "pwned"

MALFORMED: dict[str, str | bytes | None] = {
    "no command": None,
    "empty": "",
    "a blank": " ",
    "a blank first": f" {GOOD}",
    "a blank last": f"{GOOD} ",
    "two blanks": GOOD.replace(" ", "  ", 1),
    "a tab": GOOD.replace(" ", "\t", 1),
    "a newline last": f"{GOOD}\n",
    "a second line": f"{GOOD}\n--promote",
    "a second line first": f"--contract\n{GOOD}",
    "a carriage return": f"{GOOD}\r",
    "a vertical tab": f"{GOOD}\v",
    "an escape": f"{GOOD}\x1b[0m",
    "no UTF-8": GOOD.encode() + b"\xff\xfe",
    "UTF-8": f"{GOOD}é",
    "a semicolon": f"{GOOD};touch {MARK}",
    "a semicolon as a word": f"{GOOD} ; touch {MARK}",
    "a pipe": f"{GOOD}|touch {MARK}",
    "a redirection": f"{GOOD}>{MARK}",
    "an input": f"{GOOD}</etc/passwd",
    "a substitution": f"{GOOD} LEASE=$(touch {MARK})",
    "backquotes": f"{GOOD} LEASE=`touch {MARK}`",
    "a variable": f"{GOOD} LEASE=$HOME",
    "an index": f"{GOOD} a[$(touch {MARK})]=1",
    "an index as value": f"{GOOD} PROD_PORT=a[$(touch${{IFS}}{MARK})]",
    "an index without a command": f"{GOOD} REPO[0]=x",
    "braces": f"{GOOD} LEASE={{a,b}}",
    "a star": f"{GOOD} LEASE=*",
    "quotes": f"{GOOD} 'LEASE'=x",
    "double quotes": f'{GOOD} LEASE="x"',
    "a backslash": f"{GOOD} LEASE=\\x",
    "a comment": f"{GOOD} # x",
    "history": f"{GOOD} LEASE=!!",
    "a caret": f"{GOOD} LEASE=^x",
    "a word without value": f"{GOOD} LEASE",
    "a second mode": f"{GOOD} --promote",
    "no name": f"{GOOD} =x",
    "twice the same": f"{GOOD} REPO=shop",
    "twice, once otherwise": f"{GOOD} REPO=other",
    "an appended value": f"{GOOD} REPO+=x",
    "a lower-case name": f"{GOOD} repo=x",
    "a name of the shell": f"{GOOD} IFS=x",
    "a path": f"{GOOD} PATH=/tmp",
    "a preloaded library": f"{GOOD} LD_PRELOAD=/tmp/x.so",
    "a startup file": f"{GOOD} BASH_ENV=/tmp/x",
    "a locale": f"{GOOD} LC_ALL=x",
    "a constant of the hook": f"{GOOD} ENGINE=unix:///tmp/x",
    "a policy": f"{GOOD} POLICY=x",
    "the policies' folder": f"{GOOD} POLICY_DIR=/tmp",
    "the state of the hook": f"{GOOD} PHASE=swapping",
    "what nobody knows": f"{GOOD} NOBODY=x",
    "8193 bytes": f"{GOOD} LEASE=".ljust(8193, "a"),
    "a megabyte of blanks": " " * 100_000,
}


@pytest.mark.parametrize("allow", ["gate", "promote"])
@pytest.mark.parametrize("request_", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_is_wrong_usage(
    bound: BoundHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_: str | bytes | None, allow: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = bound.asked(request_, allow=allow)
    assert outcome.verdict == (2, "request-malformed"), outcome.stderr
    assert not (tmp_path / MARK).exists()
    assert bound.calls == []


UNKNOWN = ["ls", "bash", "sh", "/bin/sh", "scp", "rsync", "internal-sftp", "/usr/lib/openssh/sftp-server", "--ssh"]
UNKNOWN += [
    "--help",
    "--Verify",
    "--verify=",
    "verify",
    "-v",
    "--",
    "--v",
    "env",
    "REPO=shop",
    "--status-x",
    "--lease,",
]


@pytest.mark.parametrize("mode", UNKNOWN)
def test_an_unknown_mode_is_wrong_usage(bound: BoundHost, mode: str) -> None:
    for request in (mode, f"{mode} REPO=shop RUN_ID={RUN_ID}"):
        assert bound.asked(request).verdict == (2, "mode-unknown")
    assert bound.calls == []


@pytest.mark.parametrize(
    ("allow", "mode"),
    [*(("promote", mode) for mode in GATE_ONLY), *(("gate", mode) for mode in PROMOTE_ONLY)],
)
def test_a_mode_of_the_other_key_is_wrong_usage(bound: BoundHost, allow: str, mode: str) -> None:
    request = words(mode, bound.promotion_variables())
    assert bound.asked(request, allow=allow).verdict == (2, "mode-forbidden")
    assert bound.calls == []


@pytest.mark.parametrize(
    "argv",
    [
        ["--ssh"],
        ["--ssh", "--target", "shop"],
        ["--ssh", "--target", "shop", "--allow", "both"],
        ["--ssh", "--target", "shop", "--allow", ""],
        ["--ssh", "--target", "shop", "--allow", "gate promote"],
        ["--ssh", "--target", "", "--allow", "gate"],
        ["--ssh", "--target", "../shop", "--allow", "gate"],
        ["--ssh", "--target", "shop other", "--allow", "gate"],
        ["--ssh", "--target", "*", "--allow", "gate"],
        ["--ssh", "--allow", "gate", "--target", "shop"],
        ["--ssh", "--target", "shop", "--allow", "gate", "--promote"],
    ],
    ids=" ".join,
)
def test_a_key_that_is_bound_to_nothing_is_wrong_usage(bound: BoundHost, argv: list[str]) -> None:
    env = {"SSH_ORIGINAL_COMMAND": GOOD}
    done = subprocess.run([str(bound.hook.path), *argv], env=env, capture_output=True, check=False)
    assert Outcome.of(done).verdict == (2, "arguments")


# --- the environment has no say ---------------------------------------------------------------------------------------


def test_no_variable_of_the_environment_counts(bound: BoundHost) -> None:
    variables = bound.promotion_variables()
    outcome = bound.asked(f"--verify REPO=shop RUN_ID={RUN_ID}", **variables)
    assert outcome.verdict == (2, "variable-missing"), outcome.reason
    # Not even where leaving it out means something: without it the provenance would not be checked.
    rest = words("--verify", {name: value for name, value in variables.items() if name != "EXPECTED_REVISION"})
    assert "WARNING: EXPECTED_REVISION is not set" in bound.asked(rest, EXPECTED_REVISION="1" * 40).stderr
    assert bound.asked(words("--verify", variables), LEASE="", PROD_PROFILE="x").verdict == (0, "verified")


def test_nothing_of_the_environment_is_executed_or_used(bound: BoundHost, tmp_path: Path) -> None:
    mark, folder = tmp_path / MARK, tmp_path / "evil"
    folder.mkdir()
    for tool in ("docker", "curl", "git", "stat", "readlink", "mktemp", "timeout", "env", "sed"):
        (folder / tool).write_text(f"#!/bin/sh\ntouch {mark}\n")
        (folder / tool).chmod(0o755)
    (folder / "startup").write_text(f"touch {mark}\n")
    hostile = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "BASH_ENV": str(folder / "startup"),
        "ENV": str(folder / "startup"),
        "LD_PRELOAD": str(folder / "none.so"),
        "LC_ALL": "tr_TR.UTF-8",
        "LC_CTYPE": "C.UTF-8",
        "LANG": "C.UTF-8",
        "IFS": "=",
        "SHELLOPTS": "braceexpand:xtrace",
        "BASHOPTS": "extglob:nocasematch",
        "PS4": f"$(touch {mark})",
        "PROMPT_COMMAND": f"touch {mark}",
        "POSIXLY_CORRECT": "1",
        "GLOBIGNORE": "*",
        "CDPATH": str(folder),
        "HOME": str(folder),
        "DOCKER_HOST": "tcp://evil:1",
        "POLICY_DIR": str(folder),
        "name": "x",
        "names": "x",
        "word": "x",
        "rest": "x",
        "modes": "--promote",
        "GATE_MODES": "--promote",
        "BASH_FUNC_docker%%": f"() {{ touch {mark}; }}",
        "BASH_FUNC_printf%%": f"() {{ touch {mark}; }}",
        "BASH_FUNC_refuse%%": f"() {{ touch {mark}; }}",
    }
    outcome = bound.asked(words("--verify", bound.promotion_variables()), **hostile)
    assert outcome.verdict == (0, "verified"), outcome.stderr
    assert bound.asked(words("--promote", bound.promotion_variables()), **hostile).verdict == (2, "mode-forbidden")
    assert bound.asked(GOOD.replace("--lease", "--LEASE"), **hostile).verdict == (2, "mode-unknown")
    assert not mark.exists()


# --- the policy binds -------------------------------------------------------------------------------------------------


def test_without_a_policy_nothing_is_done(bound: BoundHost) -> None:
    request = words("--verify", bound.promotion_variables())
    assert bound.asked(request, target="other").verdict == (1, "policy-missing")
    assert bound.asked("--contract", target="other").verdict == (1, "policy-missing")
    bound.bind(REQUIRE=None)
    assert bound.asked(request).verdict == (1, "policy-invalid")
    (bound.policies / "shop.conf").unlink()
    assert bound.asked(request).verdict == (1, "policy-missing")
    bound.policies.rmdir()
    assert bound.asked(request).verdict == (1, "policy-missing")
    assert bound.calls == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("PROD_IMAGE", "other"), ("PROD_SERVICE", "other"), ("PROD_PORT", "1"), ("COMPOSE_DIR", "/"), ("PROD_PORT", "")],
)
@pytest.mark.parametrize("mode", ["--verify", "--build-staging"])
def test_another_production_than_the_policys_is_refused(bound: BoundHost, mode: str, name: str, value: str) -> None:
    variables = bound.promotion_variables() if mode == "--verify" else bound.staging_variables()
    outcome = bound.asked(words(mode, {**variables, name: value}))
    assert (outcome.verdict, name in outcome.reason) == ((1, "policy-mismatch"), True)
    assert bound.calls == []


def test_what_the_caller_leaves_out_is_the_policys(bound: BoundHost) -> None:
    unsaid = dict.fromkeys(["PROD_IMAGE", "PROD_SERVICE", "PROD_PORT", "COMPOSE_DIR"])
    request = words("--verify", changed(bound.promotion_variables(), unsaid))
    assert bound.asked(request).verdict == (0, "verified")


def test_a_key_speaks_for_the_proxy_of_its_policy_alone(bound: BoundHost) -> None:
    bound.bind(PROD_PROXY="shop-proxy")
    variables = {**bound.promotion_variables(), "PROD_PROXY": "other", "PROD_PROXY_PORT": "8000"}
    outcome = bound.asked(words("--verify", variables))
    assert (outcome.verdict, "PROD_PROXY: expected shop-proxy" in outcome.reason) == ((1, "policy-mismatch"), True)
    del variables["PROD_PROXY"]
    assert bound.asked(words("--verify", variables)).verdict == (1, "proxy-missing")


def test_a_key_speaks_for_the_repo_of_its_policy_alone(bound: BoundHost) -> None:
    bound.bind(REPO="shop")
    for mode, variables in (("--verify", bound.promotion_variables()), ("--build-staging", bound.staging_variables())):
        outcome = bound.asked(words(mode, {**variables, "REPO": "shop2"}))
        assert (outcome.verdict, "REPO: expected shop" in outcome.reason) == ((1, "policy-mismatch"), True)
    assert bound.calls == []
    assert bound.ask("--contract").stdout == b"1\n"
    unsaid = changed(bound.promotion_variables(), {"REPO": None})
    assert bound.asked(words("--verify", unsaid)).verdict == (0, "verified")


@pytest.mark.parametrize("context", ["/", "/etc", "{top}", "{top}/../{last}x", "{top}/../..", "{top}x", "relative", ""])
def test_a_clone_lies_where_the_policy_says(bound: BoundHost, context: str) -> None:
    top = bound.clone.path.parent
    path = context.format(top=top, last=top.name)
    request = words("--build-staging", {**bound.staging_variables(), "BUILD_CONTEXT": path})
    assert bound.asked(request).verdict == (1, "clone-outside")
    assert bound.calls == []


def test_without_a_folder_of_clones_only_a_pack_is_taken(bound: BoundHost) -> None:
    bound.bind(REPOS_DIR=None)
    variables = bound.staging_variables()
    assert bound.asked(words("--build-staging", variables)).verdict == (1, "clone-outside")
    assert bound.asked(words("--build-staging", {**variables, "BUILD_CONTEXT": "-"})).verdict == (1, "pack-broken")


def test_what_another_policy_claims_is_neither_paused_nor_told_of(bound: BoundHost) -> None:
    unused = dict.fromkeys(["GIT_SHA", "BUILD_CONTEXT", "STAGING_CHECK_PATH", "BUILD_TIMEOUT", "CHECK_TIMEOUT"])
    variables = changed(bound.staging_variables(), unused)
    bound.bind("other", PROD_IMAGE="other", PROD_SERVICE="shop-staging", PROD_PORT="1")
    for word in ("silence", "container", "log", "changes", "answer"):
        assert bound.asked(words("--observe", {**variables, "OBSERVE": word})).verdict == (1, "staging-is-claimed")
    assert bound.calls == []


# --- fuzzed -----------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [*"abcXYZ019 ._/:@%+=,~?&-;$`'\"\\|<>(){}[]*!#^\n\t\r", "--verify", "--lease", "REPO=shop", "é"]
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECES, max_size=30).map("".join))
def test_no_text_at_all_gets_through(bound: BoundHost, text: str) -> None:
    outcome = bound.asked(text)
    assert outcome.status in (1, 2)
    assert bound.calls == []


# --- a real sshd ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(bound: BoundHost, tmp_path: Path) -> Iterator[Sshd]:
    """A real sshd that lets one key in, restricted to the gate of the target `shop`."""
    with Sshd(tmp_path / "sshd", options=["AcceptEnv *"]) as sshd:
        command = f"{bound.hook.path} --ssh --target shop --allow gate"
        sshd.authorize(f'restrict,command="{command}"')
        yield sshd


def ssh(server: Sshd, *argv: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the ssh client with its private configuration; options come first, then the host, then the command."""
    options = ["-F", str(server.config), "-o", f"UserKnownHostsFile={server.known_hosts}", "-o", "BatchMode=yes"]
    options += ["-p", str(server.port), "-l", server.user]
    env = {"PATH": os.environ["PATH"], "HOME": str(server.home), **environment}
    return subprocess.run(["ssh", *options, *argv], env=env, input=stdin, capture_output=True, timeout=60, check=False)


def test_sshd_lets_a_mode_through(bound: BoundHost, server: Sshd) -> None:
    request = words("--verify", bound.promotion_variables())
    assert Outcome.of(ssh(server, server.host, "--", request)).verdict == (0, "verified")
    hostile = {"BASH_ENV": "/tmp/x", "LD_PRELOAD": "/tmp/x.so", "EXPECTED_REVISION": "", "LC_ALL": "x", "PATH_X": "y"}
    sent = [word for name in hostile for word in ("-o", f"SendEnv={name}")]
    assert Outcome.of(ssh(server, *sent, server.host, "--", request, stdin=b"", **hostile)).verdict == (0, "verified")
    assert ssh(server, server.host, "--", "--contract").stdout == b"1\n"
    done = ssh(server, server.host, "--", GOOD, stdin=b"release\n")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [[], ["id"], ["bash", "-i"], ["--contract;id"], ["--promote REPO=shop"]], ids=str)
def test_sshd_gives_no_shell_and_no_other_mode(bound: BoundHost, server: Sshd, command: list[str]) -> None:
    done = ssh(server, server.host, *(["--", *command] if command else []))
    assert Outcome.of(done).status == 2, done.stderr
    assert b"uid=" not in done.stdout + done.stderr
    assert bound.calls == []


def test_sshd_gives_no_files(server: Sshd, tmp_path: Path) -> None:
    done = ssh(server, "-s", server.host, "sftp", stdin=b"\0\0\0\5\1\0\0\0\3")
    assert done.returncode != 0
    assert b"\0\0\0" not in done.stdout
    (tmp_path / "sent").write_text("x")
    argv = ["scp", "-O", "-F", str(server.config), "-o", f"UserKnownHostsFile={server.known_hosts}"]
    argv += [
        "-o",
        "BatchMode=yes",
        "-P",
        str(server.port),
        str(tmp_path / "sent"),
        f"{server.user}@{server.host}:/tmp/x",
    ]
    env = {"PATH": os.environ["PATH"], "HOME": str(server.home)}
    assert subprocess.run(argv, env=env, capture_output=True, timeout=60, check=False).returncode != 0


def test_sshd_forwards_nothing(server: Sshd, tmp_path: Path) -> None:
    done = ssh(server, "-W", f"{server.host}:{server.port}", server.host)
    assert b"SSH-" not in done.stdout
    assert b"administratively prohibited" in done.stderr, done.stderr
    far = ["-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:9", server.host, "--", "--contract"]
    assert ssh(server, *far).returncode == 255
    unix = ["-o", "ExitOnForwardFailure=yes", "-R", f"{tmp_path}/far.sock:{tmp_path}/near.sock"]
    assert ssh(server, *unix, server.host, "--", "--contract").returncode == 255


def test_sshd_gives_neither_a_terminal_nor_an_agent(server: Sshd, tmp_path: Path) -> None:
    script = tmp_path / "look.sh"
    script.write_text('#!/bin/sh\ntty\necho "agent=$SSH_AUTH_SOCK"\n')
    script.chmod(0o755)
    server.authorize(f'restrict,command="{script}"')
    agent = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True).stdout
    found = dict(part.split("=", 1) for part in agent.replace("\n", ";").split(";") if part.startswith("SSH_A"))
    pid = agent.split("SSH_AGENT_PID=")[1].split(";")[0]
    try:
        done = ssh(server, "-A", server.host, SSH_AUTH_SOCK=found["SSH_AUTH_SOCK"])
    finally:
        os.kill(int(pid), signal.SIGTERM)
    assert done.stdout == b"not a tty\nagent=\n", (done.stdout, done.stderr)
    assert b"PTY allocation request failed" in ssh(server, "-tt", server.host).stderr


def test_the_tests_of_this_file_see_a_shell_where_there_is_one(server: Sshd) -> None:
    """The counter-proof: without the restriction every one of these ways is open."""
    server.authorize("")
    assert b"uid=" in ssh(server, server.host, "id").stdout
    assert b"SSH-" in ssh(server, "-W", f"{server.host}:{server.port}", server.host).stdout
