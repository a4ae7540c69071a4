"""The engine is killed while production changes, and comes back; it is one of its own, on a network of its own."""

from __future__ import annotations

import ctypes
import os
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.matrix import Matrix, Row
from tests.hook.crash import Point
from tests.hook.harness import RealHost
from tests.support import ROOT, Engine, Orchestrator, clean_environment, run

pytestmark = [pytest.mark.crash, pytest.mark.root, pytest.mark.docker, pytest.mark.timeout(1200)]

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET of sched.h


def enter_network(path: Path) -> None:
    """Let this thread, and what it starts from now on, live on another network."""
    with path.open() as file:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(file.fileno(), _NEW_NETWORK) != 0:
            raise OSError(ctypes.get_errno(), f"{path}: could not be entered")


@pytest.fixture
def own_network() -> Iterator[None]:
    """Live on a network with nothing in it, until the test ends."""
    name = f"if-{secrets.token_hex(4)}"
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    run(["ip", "netns", "add", name])
    run(["ip", "-n", name, "link", "set", "lo", "up"])
    enter_network(Path("/run/netns", name))
    yield
    enter_network(Path(f"/proc/self/fd/{home}"))
    os.close(home)
    run(["ip", "netns", "delete", name])


@pytest.fixture
def own_folder(own_network: None) -> Iterator[Path]:
    """A copy of the scripts, with an engine that they started; the folder's path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="if-") as name:
        folder = Path(name)
        shutil.copytree(ROOT / "scripts", folder / "scripts")
        (folder / ".cache").symlink_to(ROOT / ".cache")
        env = clean_environment(ENGINE_SOCKET=f"unix://{folder}/no-engine.sock")
        run([folder / "scripts/engine.sh", "up"], env=env, timeout=600)
        yield folder
        run([folder / "scripts/engine.sh", "down"], env=env, timeout=600)


@pytest.fixture
def own_matrix(own_folder: Path, free_port: Callable[[], int], tmp_path: Path) -> Matrix:
    """Production on that engine."""
    host = f"unix://{own_folder}/.engine/docker.sock"
    config = str(own_folder / ".engine/config")
    env = clean_environment(DOCKER_HOST=host, DOCKER_CONFIG=config)
    base_image = run([own_folder / "scripts/base-image.sh"], env=env, timeout=600).stdout.strip()
    engine = Engine(docker_host=host, docker_config=config, base_image=base_image)
    copy = Orchestrator(
        engine,
        tmp_path / "copy",
        branch="feature/x",
        unique=f"if-{secrets.token_hex(4)}",
        staging_port=free_port(),
        prod_port=free_port(),
    )
    return Matrix(RealHost(copy, tmp_path / "hook"), tmp_path / "crashing", pinned=True)


def restart_engine(folder: Path) -> str:
    """Return a script that kills the engine, and starts it again as it was started."""
    pid = (folder / ".engine/pid").read_text().strip()
    argv = Path("/proc", pid, "cmdline").read_text().rstrip("\0").split("\0")
    again = f"setsid {shlex.join(argv)} </dev/null >>{folder}/.engine/log 2>&1 9>&- &"
    # Processes that nobody has reaped yet would count as running by these files.
    files = f"{folder}/.engine/pid {folder}/.engine/exec/containerd/containerd.pid"
    return f"kill -KILL {pid}\nsleep 1\nrm -f {files}\n{again}\n"


@pytest.mark.parametrize("moment", ["before", "during", "after"])
@pytest.mark.parametrize("command", [" up ", "image tag .*prod-image $"], ids=["recreating", "tagging"])
def test_an_engine_that_is_killed(
    own_matrix: Matrix, own_folder: Path, record: Callable[[Iterator[Row]], None], command: str, moment: str
) -> None:
    point = Point(moment=moment, action=restart_engine(own_folder), command=command)
    outcome = own_matrix.crashing.call("--promote", own_matrix.variables, point)
    assert own_matrix.crashing.acted
    assert outcome is not None
    assert outcome.status in (0, 3), outcome.stderr
    seen = own_matrix.judge(outcome, foreign=False)
    record(iter([Row("--promote: the engine killed and started again", moment, own_matrix.shown, seen)]))


def test_the_previous_image_outlives_a_prune(own_matrix: Matrix) -> None:
    own_matrix.promote_by_hand()
    own_matrix.host.engine.docker("image", "prune", "--all", "--force")
    assert own_matrix.host.image_of(own_matrix.old) == own_matrix.old
    own_matrix.reset()
    own_matrix.assert_whole()
