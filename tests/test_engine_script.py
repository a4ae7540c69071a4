"""scripts/engine.sh and its helpers, each private engine in a network namespace of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import ROOT, Engine, clean_environment, run


class Project:
    """A copy of the project's scripts in a folder and on a network of its own."""

    def __init__(self, folder: Path, network: str) -> None:
        self.folder = folder
        self.network = network
        self.state = folder / ".engine"
        shutil.copytree(ROOT / "scripts", folder / "scripts")

    def inside(self, *argv: str | Path, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the project's network."""
        enter = ["nsenter", f"--net=/run/netns/{self.network}"]
        # The machine may have an engine on the default socket, which these tests must not find.
        env = clean_environment(**{"ENGINE_SOCKET": f"unix://{self.folder}/no-engine.sock", **env})
        return run([*enter, *argv], cwd=self.folder, env=env, check=check)

    def engine(self, command: str, *, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Run scripts/engine.sh with one command."""
        return self.inside(self.folder / "scripts/engine.sh", command, check=check, **env)

    def docker(self, *argv: str) -> str:
        """Return what the docker command line prints with the environment that `env` gave."""
        script = 'eval "$("$0" env)" && exec docker "$@"'
        done = self.inside("bash", "-c", script, self.folder / "scripts/engine.sh", *argv)
        return done.stdout.strip()

    def pid(self) -> int:
        """Return the pid of the private engine."""
        return int((self.state / "pid").read_text())

    def start_container(self) -> str:
        """Start a container that published a port; returns the host's pid of its process."""
        context = self.folder / "image"
        context.mkdir(exist_ok=True)
        shutil.copy("/bin/busybox", context)
        (context / "Dockerfile").write_text('FROM scratch\nCOPY busybox /busybox\nCMD ["/busybox", "sleep", "3600"]\n')
        self.inside("tar", "--create", "--file", "image.tar", "--directory", context, "busybox")
        self.docker("import", "--change", 'CMD ["/busybox", "sleep", "3600"]', "image.tar", "sleeper")
        self.docker("network", "create", "inner")
        container = self.docker("run", "--detach", "--network", "inner", "--publish", "127.0.0.1:7000:80", "sleeper")
        return self.docker("container", "inspect", "--format", "{{.State.Pid}}", container)

    def traces(self) -> dict[str, list[str]]:
        """Return everything of this machine that an engine of this project could leave behind."""
        mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(self.folder) in line]
        links = [line.split(":")[1] for line in self.inside("ip", "-oneline", "link").stdout.splitlines()]
        rules = [self.inside("iptables", "--table", table, "--list-rules").stdout for table in ("filter", "nat")]
        state = [str(self.state)] if self.state.exists() else []
        processes = processes_below(self.state)
        return {"processes": processes, "mounts": mounts, "links": links, "rules": rules, "state": state}


def processes_below(folder: Path) -> list[str]:
    """Return the command lines that name a path below a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{folder}/" in command:
            found.append(command)
    return found


def wait_for_end(pid: str) -> bool:
    """Return whether a process ends soon."""
    deadline = time.monotonic() + 30
    while Path("/proc", pid).exists():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def network() -> Iterator[str]:
    """The name of a network namespace with nothing in it."""
    name = f"if-{secrets.token_hex(4)}"
    run(["ip", "netns", "add", name])
    run(["ip", "-n", name, "link", "set", "lo", "up"])
    yield name
    run(["ip", "netns", "delete", name])


@pytest.fixture
def project(network: str) -> Iterator[Project]:
    """A project without an engine, in a folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="if-") as folder:
        made = Project(Path(folder) / "project", network)
        yield made
        made.engine("down")


@pytest.mark.docker
@pytest.mark.root
def test_from_nothing_to_an_engine_and_back(project: Project) -> None:
    before = project.traces()
    assert project.engine("status", check=False).returncode == 1
    assert project.engine("env", check=False).stderr == "engine: no engine answers; run 'scripts/engine.sh up'\n"
    project.engine("up")
    assert project.engine("status").stdout == f"unix://{project.state}/docker.sock answers\n"
    assert project.docker("compose", "version", "--short")
    held = project.start_container()
    project.engine("down")
    assert wait_for_end(held)
    assert project.traces() == before


@pytest.mark.docker
@pytest.mark.root
def test_another_folder_is_another_engine(project: Project) -> None:
    before = project.traces()
    folder = project.folder / "other"
    project.engine("up", ENGINE_STATE=str(folder))
    assert project.engine("status", ENGINE_STATE=str(folder)).stdout == f"unix://{folder}/docker.sock answers\n"
    assert project.engine("status", check=False).returncode == 1
    project.engine("down", ENGINE_STATE=str(folder))
    assert not folder.exists()
    assert processes_below(folder) == []
    assert project.traces() == before


@pytest.mark.docker
@pytest.mark.root
def test_env_is_four_export_lines(project: Project) -> None:
    project.engine("up")
    lines = project.engine("env").stdout.splitlines()
    host, config = f"unix://{project.state}/docker.sock", lines[1].partition("=")[2]
    assert lines == [
        f"export DOCKER_HOST={host}",
        f"export DOCKER_CONFIG={config}",
        f"export IMAGEFRESH_HOST__DOCKER_HOST={host}",
        f"export IMAGEFRESH_HOST__DOCKER_CONFIG={config}",
    ]


@pytest.mark.docker
@pytest.mark.root
def test_up_again_and_at_once_is_one_engine(project: Project) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: project.engine("up"), range(4)))
    assert sum("starting a private engine" in each.stderr for each in done) == 1
    pid = project.pid()
    project.engine("up")
    assert project.pid() == pid
    assert len([each for each in processes_below(project.state) if each.startswith("dockerd ")]) == 1


@pytest.mark.docker
@pytest.mark.root
def test_down_twice_and_without_up_does_nothing(project: Project) -> None:
    assert project.engine("down").stderr == ""
    project.engine("up")
    assert project.engine("down").stderr == "engine: the private engine is gone\n"
    assert project.engine("down").stderr == ""


@pytest.mark.docker
@pytest.mark.root
def test_a_stale_pid_file_ends_no_stranger(project: Project) -> None:
    project.state.mkdir()
    stranger = subprocess.Popen(["sleep", "3600"])
    try:
        (project.state / "pid").write_text(f"{stranger.pid}\n")
        project.engine("down")
        assert not project.state.exists()
        project.state.mkdir()
        (project.state / "pid").write_text(f"{stranger.pid}\n")
        project.engine("up")
        assert project.pid() != stranger.pid
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.docker
@pytest.mark.root
@pytest.mark.parametrize("command", ["up", "down"])
def test_what_a_killed_engine_left_is_ended(project: Project, command: str) -> None:
    before = project.traces()
    project.engine("up")
    held, pid = project.start_container(), project.pid()
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(str(pid))
    assert Path("/proc", held).exists()
    project.engine(command)
    assert wait_for_end(held)
    project.engine("down")
    left = project.traces()
    for kind in ("processes", "mounts", "state"):
        assert left[kind] == before[kind]


@pytest.mark.docker
@pytest.mark.root
def test_a_long_project_path_gets_a_short_socket(tmp_path: Path, network: str) -> None:
    project = Project(tmp_path / ("long-" * 20) / "project", network)
    project.engine("up")
    try:
        socket = Path(project.engine("status").stdout.split()[0].removeprefix("unix://"))
        assert len(str(socket)) <= 107
        stale = {"DOCKER_HOST": f"unix://{socket}"}
    finally:
        project.engine("down")
    assert not socket.parent.exists()
    # What `env` printed for an engine that is gone is no mistake of the caller.
    assert "DOCKER_HOST" not in project.engine("status", check=False, **stale).stderr


@pytest.mark.docker
@pytest.mark.root
def test_a_second_engine_on_one_network_is_refused(project: Project, tmp_path: Path) -> None:
    project.engine("up")
    second = Project(tmp_path / "second", project.network)
    try:
        done = second.engine("up", check=False)
    finally:
        made = second.state.exists()
        second.engine("down")
    assert done.returncode == 1
    assert f"a dockerd (pid {project.pid()}) runs on this machine; set DOCKER_HOST to its socket" in done.stderr
    assert not made
    assert project.engine("status").returncode == 0


@pytest.mark.docker
@pytest.mark.root
def test_an_engine_that_cannot_start_is_reported_and_leaves_nothing(project: Project) -> None:
    before = project.traces()
    done = project.engine("up", check=False, ENGINE_FLAGS="--no-such-flag")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("engine: dockerd did not get ready: ")
    assert "no-such-flag" in done.stderr.splitlines()[-1]
    assert project.traces() == before


def test_an_engine_that_was_there_is_used_and_left_alone(engine: Engine, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    script = tmp_path / "scripts/engine.sh"
    assert run([script, "up"], env=engine.env).stderr == f"engine: {engine.docker_host} answers\n"
    assert f"export DOCKER_HOST={engine.docker_host}" in run([script, "env"], env=engine.env).stdout
    run([script, "down"], env=engine.env)
    assert engine.docker("version", "--format", "{{.Server.Version}}")
    assert not (tmp_path / ".engine" / "pid").exists()


def test_a_dead_docker_host_is_never_replaced(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    env = clean_environment(DOCKER_HOST=f"unix://{tmp_path}/nothing.sock")
    done = run([tmp_path / "scripts/engine.sh", "up"], env=env, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"engine: DOCKER_HOST=unix://{tmp_path}/nothing.sock does not answer; ")


def test_an_unknown_command_is_refused() -> None:
    done = run([ROOT / "scripts/engine.sh", "restart"], check=False)
    assert (done.returncode, done.stderr) == (1, "engine: usage: scripts/engine.sh up|down|status|env\n")


def test_what_is_missing_is_named_where_it_cannot_be_installed(tmp_path: Path) -> None:
    for command in ("bash", "id", "sort", "env"):
        (tmp_path / command).symlink_to(str(shutil.which(command)))
    wanted = ["no-such-command=no-such-package", "bash=bash", "other-command=other-package"]
    done = run([ROOT / "scripts/need.sh", *wanted], env={"PATH": str(tmp_path)}, check=False)
    expected = "missing: install no-such-package other-package (or what provides it here), then run this again\n"
    assert (done.returncode, done.stderr) == (1, expected)


def test_what_is_there_is_not_installed() -> None:
    done = run([ROOT / "scripts/need.sh", "bash=no-such-package"])
    assert (done.stdout, done.stderr) == ("", "")


def test_the_base_image_has_what_the_example_needs(engine: Engine) -> None:
    modules = "import http.server, json, urllib.request, ssl, hashlib, subprocess, argparse"
    engine.docker("run", "--rm", "--network", "none", engine.base_image, "python3", "-c", modules)
    engine.docker("run", "--rm", "--network", "none", engine.base_image, "sh", "-c", "timeout 5 sleep 0 && kill -0 1")
