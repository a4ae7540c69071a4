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

from tests.crash.matrix import Matrix, ProxiedMatrix, Record, Row
from tests.hook.crash import Point
from tests.hook.harness import RealHost
from tests.hook.proxied import ProxiedHost
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
def archive(engine: Engine, tmp_path: Path) -> Path:
    """The images that production needs, as a file: the network of that engine leads nowhere."""
    nginx = run([ROOT / "scripts/nginx-image.sh"], env=engine.env, timeout=600).stdout.strip()
    path = tmp_path / "images.tar"
    engine.docker("image", "save", "--output", str(path), engine.base_image, nginx)
    return path


@pytest.fixture
def own_network(archive: Path) -> Iterator[None]:
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
        env = clean_environment(ENGINE_SOCKET=f"unix://{folder}/no-engine.sock")
        run([folder / "scripts/engine.sh", "up"], env=env, timeout=600)
        yield folder
        run([folder / "scripts/engine.sh", "down"], env=env, timeout=600)


@pytest.fixture
def own_copy(
    engine: Engine, archive: Path, own_folder: Path, free_port: Callable[[], int], tmp_path: Path
) -> Orchestrator:
    """The example service on that engine."""
    host = f"unix://{own_folder}/.engine/docker.sock"
    config = str(own_folder / ".engine/config")
    own = Engine(docker_host=host, docker_config=config, base_image=engine.base_image)
    own.docker("image", "load", "--input", str(archive))
    return Orchestrator(
        own,
        tmp_path / "copy",
        branch="feature/x",
        unique=f"if-{secrets.token_hex(4)}",
        staging_port=free_port(),
        prod_port=free_port(),
    )


@pytest.fixture
def own_matrix(own_copy: Orchestrator, tmp_path: Path) -> Matrix:
    """Production on that engine."""
    return Matrix(RealHost(own_copy, tmp_path / "hook"), tmp_path / "crashing", pinned=True)


@pytest.fixture
def own_proxied(own_copy: Orchestrator, tmp_path: Path) -> ProxiedMatrix:
    """Production on that engine, behind nginx."""
    return ProxiedMatrix(ProxiedHost(own_copy, tmp_path / "hook"), tmp_path / "crashing")


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
    own_matrix: Matrix, own_folder: Path, record: Record, command: str, moment: str
) -> None:
    point = Point(moment=moment, action=restart_engine(own_folder), command=command)
    record(iter([killed_engine(own_matrix, "--promote", point, (0, 3))]))


@pytest.mark.parametrize("moment", ["before", "during", "after"])
@pytest.mark.parametrize(
    "command", ["--scale", "nginx -s reload", "container stop"], ids=["beside", "leading", "stopping"]
)
def test_an_engine_that_is_killed_behind_a_proxy(
    own_proxied: ProxiedMatrix, own_folder: Path, record: Record, command: str, moment: str
) -> None:
    point = Point(moment=moment, action=restart_engine(own_folder), command=command)
    ends = (0, 1, 11) if command == "--scale" else (0, 3)  # beside what serves, production is not touched yet
    record(iter([killed_engine(own_proxied, "--promote behind a proxy", point, ends)]))


def killed_engine(matrix: Matrix, name: str, point: Point, ends: tuple[int, ...]) -> Row:
    """Promote while the engine is killed and started again; it must end with one of some statuses, and well."""
    outcome = matrix.crashing.call("--promote", matrix.variables, point)
    assert matrix.crashing.acted
    assert outcome is not None
    assert outcome.status in ends, outcome.stderr
    if outcome.status not in (0, 3):  # a production that nobody touched: this engine takes it for stopped by a person
        matrix.foreign("start")
    seen = matrix.judge(outcome, foreign=False)
    return Row(f"{name}: the engine killed and started again", point.moment, matrix.shown, seen)


def test_the_previous_image_outlives_a_prune(own_matrix: Matrix) -> None:
    own_matrix.promote_by_hand()
    own_matrix.host.engine.docker("image", "prune", "--all", "--force")
    assert own_matrix.host.image_of(own_matrix.old) == own_matrix.old
    own_matrix.reset()
    own_matrix.assert_whole()
