"""A gate session in a process of its own, over a host that exists only in memory and a repo that is real."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.forks import Forks
from tests.support import GIT_IDENTITY, ROOT, clean_environment, run

FAKE_HOST = """
import os
from pytest_imagefresh.plugin import GATE


def pytest_sessionstart(session):
    config = session.config
    gate = config.stash.get(GATE, None)
    if gate is None or not gate.targets:
        return
    from pytest_imagefresh.core import port as silence
    from tests.fakes import FakeEngine, FakeHook, FakeHost, World, image, serving
    # Hundreds of sessions, and nothing here is further away than memory.
    silence.LEAST_SECONDS = 0.02
    server = serving()
    port = server.__enter__()
    config.add_cleanup(lambda: server.__exit__(None, None, None))
    world = World(port=port, tree=os.environ["FAKE_TREE"], faults=frozenset(os.environ.get("FAKE_FAULTS", "").split()))
    world.start("shop", world.add(image("0" * 40), "shop-shop"), 8500)
    world.start("shop-staging", world.add(image("1" * 40), "shop-shop-staging"), 8501)
    gate.run.engine, gate.run.host, gate.run.hook = FakeEngine(world), FakeHost(world), FakeHook(world)
"""


class GateFolder:
    """A folder with settings, a real repo on branch `work`, and the fake host."""

    def __init__(self, path: Path, forks: Forks | None) -> None:
        """Sessions are forked from `forks`, or each is a fresh process where that is None."""
        self.path = path
        self.forks = forks
        self.repo = path / "repos" / "shop"
        self.repo.mkdir(parents=True)
        self.git("init", "-q", "-b", "work")
        self.revision = self.commit("one")
        (path / "imagefresh.toml").write_text(
            'self_hosting_repo = "shop"\nrepos_dir = "repos"\nsettle = 0\n'
            '[host]\nssh = "local"\nrepo_path = "/srv/shop"\n'
        )
        (path / "fake_host.py").write_text(FAKE_HOST)
        (path / "pytest.ini").write_text("[pytest]\n")

    def git(self, *argv: str) -> str:
        """Return what git prints in the repo, stripped."""
        return run(["git", *argv], cwd=self.repo, env=clean_environment(**GIT_IDENTITY)).stdout.strip()

    def commit(self, text: str) -> str:
        """Commit a file with that text; return the full commit ID."""
        (self.repo / "file").write_text(text)
        self.git("add", "file")
        self.git("commit", "-qm", text)
        return self.git("rev-parse", "HEAD")

    def gate(
        self,
        *options: str,
        faults: Sequence[str] = (),
        tests: Sequence[str] = (str(ROOT / "gates"),),
        addopts: str = "",
    ) -> Ended:
        """Run a gate session of repo shop on branch work."""
        return self.pytest(
            *tests, "--rootdir=.", "--repo", "shop", "--branch", "work", *options, faults=faults, addopts=addopts
        )

    def pytest(self, *options: str, faults: Sequence[str] = (), addopts: str = "") -> Ended:
        """Run pytest in this folder."""
        command, environment = self.command(*options, faults=faults, addopts=addopts)
        if self.forks is not None:
            [_python, _m, _pytest, *argv] = command
            return Ended(*self.forks.run(argv, cwd=self.path, env=environment))
        done = run(command, cwd=self.path, env=environment, check=False)
        return Ended(done.returncode, done.stdout + done.stderr)

    def command(self, *options: str, faults: Sequence[str] = (), addopts: str = "") -> tuple[list[str], dict[str, str]]:
        """Return argv and environment that run pytest in this folder."""
        environment = clean_environment(
            HOME=str(self.path),
            PYTHONPATH=str(ROOT),
            PYTHONDONTWRITEBYTECODE="1",
            FAKE_TREE=self.git("rev-parse", "HEAD^{tree}"),
            FAKE_FAULTS=" ".join(faults),
            **({"PYTEST_ADDOPTS": addopts} if addopts else {}),
        )
        own = ["-p", "no:cacheprovider", "-c", "pytest.ini", "-p", "fake_host"]
        return [sys.executable, "-m", "pytest", *own, *options], environment


class Ended:
    """How a session ended, and what it said."""

    def __init__(self, status: int, output: str) -> None:
        self.status = status
        self.output = output

    def says(self, pattern: str) -> bool:
        """Whether one line of the output matches."""
        return re.search(pattern, self.output, re.MULTILINE) is not None

    def __repr__(self) -> str:
        return f"exit {self.status}\n{self.output}"
