"""A machine of its own for whoever installs something: this one, its changes kept in memory and then forgotten."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.support import Engine, clean_environment

_START = """
mount -t tmpfs tmpfs "$1"
for folder in /etc /usr/local /var /srv /root; do
  mkdir -p "$1$folder/upper" "$1$folder/work"
  mount -t overlay overlay -o "lowerdir=$folder,upperdir=$1$folder/upper,workdir=$1$folder/work" "$folder"
done
show() { mkdir -p "${2%/*}"; if [ -d "$1" ]; then mkdir -p "$2"; else : >"$2"; fi; mount --bind "$1" "$2"; }
show "$2" "$1/docker.sock"
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir /run/sshd
show "$1/docker.sock" /run/docker.sock
show "$3" /usr/local/lib/docker/cli-plugins/docker-compose
groupdel docker || :
groupadd --system --non-unique --gid "$(stat -c %g /run/docker.sock)" docker
shift 3
while [ "$#" -gt 0 ]; do show "$1" "$2"; shift 2; done
echo ready
exec cat
"""
"""FOLDER SOCKET COMPOSE-PLUGIN, and pairs of a folder and where the machine has it."""


class Machine:
    """A context manager: a mount namespace in which system folders may be changed.

    Engine and network are this machine's; `shared` maps folders of this machine to where the other one has them.
    """

    def __init__(self, engine: Engine, folder: Path, shared: Mapping[Path, str]) -> None:
        self._engine = engine
        self._folder = folder
        self._shared = shared
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Machine:
        self._folder.mkdir()
        plugin = Path(self._engine.docker_config, "cli-plugins", "docker-compose").resolve()
        pairs = [str(word) for pair in self._shared.items() for word in pair]
        unshare = ["unshare", "--mount", "--propagation", "private", "bash", "-euc", _START, "bash"]
        self._process = subprocess.Popen(
            [*unshare, str(self._folder), self._engine.socket, str(plugin), *pairs],
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("no mount namespace could be made; are you root?")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.communicate()

    @property
    def prefix(self) -> list[str]:
        """What a command is started through to run there."""
        assert self._process is not None
        return ["nsenter", f"--mount=/proc/{self._process.pid}/ns/mnt"]

    def run(self, script: str, *, user: str = "root", cwd: str = "/") -> subprocess.CompletedProcess[str]:
        """Run a script of bash there to its end, in a folder, as a user."""
        argv = [*self.prefix, "setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        return subprocess.run(
            [*argv, "bash", "-euo", "pipefail", "-c", f'cd "{cwd}"\n{script}'],
            env=clean_environment(HOME="/", PYTHONDONTWRITEBYTECODE="1"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def says(self, script: str) -> str:
        """Return what a script of root's prints there, stripped. Raises RuntimeError where it fails."""
        done = self.run(script)
        if done.returncode != 0:
            raise RuntimeError(f"{script}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()
