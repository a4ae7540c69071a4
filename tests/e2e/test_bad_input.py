"""What cannot be gated ends at once: the right exit status, one clear line, nothing touched, nothing left behind."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.conftest import MakePipeline
from tests.e2e.pipeline import Pipeline
from tests.gate_folder import Ended
from tests.sshd import Sshd, make_key


def check(ended: Ended, status: int, line: str) -> None:
    assert ended.status == status, ended.output
    assert ended.says(line), ended.output


def test_the_operator_s_mistakes_end_with_4(pipeline: Pipeline) -> None:
    usage = "^ERROR: imagefresh: "
    check(pipeline.gate(repo="no-such-repo"), 4, f"{usage}unknown repo no-such-repo: expected its clone at ")
    check(pipeline.gate(repo="../orchestrator"), 4, f"{usage}.*'../orchestrator'")
    check(pipeline.gate(branch=""), 4, f"{usage}.*branch")
    check(pipeline.gate(branch="../x"), 4, f"{usage}.*'../x'")
    check(pipeline.gate("--gate-revision", "abc"), 4, f"{usage}--gate-revision is 'abc', expected a full commit ID")
    check(pipeline.gate("--gate-config", "nowhere.toml"), 4, f"{usage}nowhere.toml: cannot be read: No such file")
    pipeline.more_environment = {"IMAGEFRESH_SETLE": "1"}
    check(pipeline.gate(), 4, f"{usage}IMAGEFRESH_SETLE")
    pipeline.more_environment = {}
    pipeline.configure(setle=1)
    check(pipeline.gate(), 4, f"{usage}.*setle")
    pipeline.configure(repos=["another"])
    check(pipeline.gate(), 4, f"{usage}targets.orchestrator: declared target that is not enabled")
    assert (pipeline.staging, pipeline.prod) == ("", "")
    assert not pipeline.copy.leftovers()["container"]


def test_a_branch_that_is_not_checked_out_is_refused(pipeline: Pipeline) -> None:
    pipeline.copy.git("branch", "elsewhere")
    check(pipeline.gate(branch="elsewhere"), 1, "branch elsewhere of orchestrator is not checked out in any worktree")
    check(pipeline.gate(branch="nowhere"), 1, "branch nowhere of orchestrator does not exist in ")
    other = f"--gate-revision={'0' * 40}"
    check(pipeline.gate(other), 1, "--gate-revision 0{40} names no commit in ")
    assert (pipeline.staging, pipeline.prod) == ("", "")


def test_a_host_without_hook_is_an_unknown(each_pipeline: Pipeline) -> None:
    missing = each_pipeline.hook.with_name("missing.sh")
    each_pipeline.configure(host={"hook": str(missing)})
    check(each_pipeline.gate(), 11, rf"no runnable hook at {missing} on .*; install .*deploy-hook\.sh there")
    assert (each_pipeline.staging, each_pipeline.prod) == ("", "")


def test_a_missing_compose_folder_is_refused(each_pipeline: Pipeline) -> None:
    gone = each_pipeline.copy.compose_dir / "gone"
    each_pipeline.configure(host={"repo_path": str(gone)})
    check(each_pipeline.gate(), 1, f"COMPOSE_DIR: expected a folder that exists on this host, observed '{gone}'")
    gone.mkdir()
    check(each_pipeline.gate(), 1, f"{gone}: expected a compose file, observed none")
    shutil.rmtree(gone)
    assert (each_pipeline.staging, each_pipeline.prod) == ("", "")


def test_no_engine_is_an_unknown(each_pipeline: Pipeline) -> None:
    each_pipeline.configure(host={"docker_host": "unix:///nowhere/docker.sock"}, timeouts={"inspect": 3600})
    check(each_pipeline.gate(), 11, "engine .* was asked for its version and did not answer as expected")
    assert (each_pipeline.staging, each_pipeline.prod) == ("", "")


def test_another_engine_than_the_named_one_is_refused(pipeline: Pipeline) -> None:
    pipeline.configure(host={"engine_id": "AAAA:BBBB"})
    check(pipeline.gate(), 1, "the engine is .*, expected AAAA:BBBB; correct host.ssh or host.engine_id")
    assert (pipeline.staging, pipeline.prod) == ("", "")


@contextlib.contextmanager
def foreign_process(port: int) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", port)):
        yield


@contextlib.contextmanager
def foreign_container(pipeline: Pipeline, port: int) -> Iterator[None]:
    engine, name = pipeline.copy.engine, f"{pipeline.copy.project}-foreign"
    publish = ["--publish", f"127.0.0.1:{port}:8000", "--name", name]
    engine.docker("run", "--detach", "--rm", *publish, engine.base_image, "sleep", "3600")
    try:
        yield
    finally:
        engine.docker("rm", "--force", name)


@pytest.mark.fault
def test_a_staging_port_that_somebody_else_owns_is_refused(pipeline: Pipeline) -> None:
    port = pipeline.copy.staging_port
    with foreign_process(port):
        check(pipeline.gate(), 1, f"service orchestrator-staging: expected compose to recreate it, observed: .*{port}")
    with foreign_container(pipeline, port):
        name = f"{pipeline.copy.project}-foreign"
        check(
            pipeline.gate(),
            1,
            f"port {port}: expected nobody or service orchestrator-staging, observed container {name}",
        )
    assert (pipeline.staging, pipeline.prod) == ("", "")


@pytest.fixture
def ssh(make_pipeline: MakePipeline) -> Pipeline:
    """A pipeline whose Docker host is behind ssh."""
    return make_pipeline("ssh")


def server(pipeline: Pipeline) -> Sshd:
    assert pipeline.sshd is not None
    return pipeline.sshd


def without_key(sshd: Sshd) -> None:
    sshd.user_key.unlink()


def with_another_key(sshd: Sshd) -> None:
    other = sshd.folder / "other_key"
    make_key(other)
    sshd.authorize(key=other)


def without_known_host(sshd: Sshd) -> None:
    sshd.known_hosts.write_text("")


PROBLEMS: dict[str, tuple[Callable[[Sshd], None], int, str]] = {
    "key file is missing": (without_key, 11, "was not let in, expected one of our keys to be accepted; tried no key"),
    "key is not accepted": (with_another_key, 11, "was not let in, expected one of our keys to be accepted; tried /"),
    "host key is unknown": (without_known_host, 1, "host key"),
    "host key has changed": (Sshd.replace_host_key, 1, "host key"),
    "server is down": (Sshd.stop, 11, "cannot be reached"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_host_that_cannot_be_trusted_or_reached(ssh: Pipeline, name: str) -> None:
    cause, status, line = PROBLEMS[name]
    cause(server(ssh))
    check(ssh.gate(), status, line)
    assert (ssh.staging, ssh.prod) == ("", "")
    assert not ssh.copy.leftovers()["container"]
