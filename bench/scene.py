"""What is measured, and the one copy of the example service on which it is."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from tests.e2e.pipeline import Pipeline
from tests.hook.harness import RealHost
from tests.sshd import Sshd
from tests.support import ROOT, Orchestrator, clean_environment, run

BARE = """
set -euo pipefail
rm -rf "$TREE"; mkdir "$TREE"
git -C "$REPO" archive HEAD | tar -x -C "$TREE"
revision=$(git -C "$REPO" rev-parse HEAD)
docker build --quiet --build-arg "GIT_SHA=$revision" --build-arg "BASE=$BASE" --tag "$IMAGE" "$TREE"
cd "$COMPOSE_DIR"
docker compose --profile staging up -d --no-deps --no-build --force-recreate orchestrator-staging
until curl -fs -o /dev/null "http://127.0.0.1:$PORT/health"; do sleep 0.05; done
docker exec "$CONTAINER" python3 scripts/staging_check.py --mode stub
"""
"""What a person does who trusts everything."""

WITHOUT_OURS = ("-p", "no:hypothesispytest")
"""Leaves out what only our own tests need: at the end of every session it imports the whole of hypothesis."""

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *WITHOUT_OURS, "-c", "pytest.ini")

LARGE_MB, SMALL_MB = 500, 50
_FILE_KB = 100
_FILES_PER_FOLDER = 100


class Scene:
    """Pipelines around one copy: local and over ssh, with and without the pause proof."""

    def __init__(self, copy: Orchestrator, folder: Path, sshd: Sshd) -> None:
        self._copy = copy
        self._folder = folder
        self._numbers = itertools.count()
        self._pipelines = {
            "local": self._pipeline("local", None, pause=True),
            "local-unpaused": self._pipeline("local-unpaused", None, pause=False),
            "ssh": self._pipeline("ssh", sshd, pause=True),
            "ssh-unpaused": self._pipeline("ssh-unpaused", sshd, pause=False),
        }
        self._empty = folder / "empty"
        self._empty.mkdir()
        (self._empty / "test_empty.py").write_text("def test_nothing(): pass\n")
        (self._empty / "pytest.ini").write_text("[pytest]\n")

    def bare(self) -> None:
        """Rebuild and try staging by hand, from a commit of its own."""
        self._commit()
        copy = self._copy
        values = {
            "REPO": copy.worktree,
            "TREE": self._folder / "tree",
            "BASE": copy.engine.base_image,
            "IMAGE": copy.staging_image,
            "COMPOSE_DIR": copy.compose_dir,
            "PORT": copy.staging_port,
            "CONTAINER": copy.staging_container,
        }
        run(["bash", "-c", BARE], env={**copy.engine.env, **{name: str(value) for name, value in values.items()}})

    def gate(self, name: str) -> Callable[[], None]:
        """Return what gates a commit of its own, in one process of pytest."""

        def gate() -> None:
            self._commit()
            ended = self._pipelines[name].gate("-q", *WITHOUT_OURS)
            if ended.status != 0:
                raise RuntimeError(f"gate {name}: expected exit 0, observed {ended}")

        return gate

    def again(self, name: str) -> Callable[[], None]:
        """Return what runs one gate test again on what runs now, in one process of pytest."""
        test = f"{ROOT}/gates/test_provenance.py"

        def again() -> None:
            words = [*PYTEST, test, "-k", "carries"]
            named = ["--repo", self._copy.name, "--branch", self._copy.branch, "--gate-reuse"]
            ended = self._pipelines[name].run(sys.executable, *words, *named)
            if ended.status != 0:
                raise RuntimeError(f"{name}, one test again: expected exit 0, observed {ended}")

        return again

    def without(self) -> None:
        """Run an empty test with the plugin left out."""
        self._empty_test("-p", "no:imagefresh")

    def unused(self) -> None:
        """Run an empty test with the plugin installed."""
        self._empty_test()

    def _empty_test(self, *options: str) -> None:
        run([sys.executable, *PYTEST, *options], cwd=self._empty, env=clean_environment())

    def _commit(self) -> None:
        # One changed file, as usual: its layer is built, those before it are there.
        self._copy.commit({"src/orchestrator/NEWS": f"{next(self._numbers)}"})

    def _pipeline(self, name: str, sshd: Sshd | None, *, pause: bool) -> Pipeline:
        (self._folder / name).mkdir()
        pipeline = Pipeline(self._copy, self._folder / name / "pipeline", sshd)
        # Compiled modules are kept, as in daily life.
        pipeline.more_environment = {"PYTHONDONTWRITEBYTECODE": ""}
        if not pause:
            pipeline.configure(targets={self._copy.name: {"staging": {"pause_proof": False}}})
        return pipeline


def buildkit_client() -> str:
    """Return a docker client of this machine that can use BuildKit: built into those before 23, a plugin since."""
    clients = [path for path in (shutil.which("docker"), "/usr/bin/docker") if path and Path(path).exists()]
    for client in clients:
        major = run([client, "--version"]).stdout.removeprefix("Docker version ").partition(".")[0]
        if int(major) < 23 or run([client, "buildx", "version"], check=False).returncode == 0:
            return client
    raise RuntimeError(f"docker clients {clients}: expected one with BuildKit, observed none; install docker-buildx")


class Context:
    """A copy with many files, of which one changes from build to build: a hook on its host, and a plain build."""

    def __init__(self, copy: Orchestrator, folder: Path, megabytes: int) -> None:
        self._copy = copy
        self._client = buildkit_client()
        named = '{{range .ClientInfo.Plugins}}{{if eq .Name "compose"}}{{.Path}}{{end}}{{end}}'
        program = copy.engine.run("info", "--format", named).stdout.strip()
        self._compose = [program] if program else [self._client, "compose"]
        self._host = RealHost(copy, folder / "hook")
        self._host.install("with-buildkit", client=self._client)
        self._numbers = itertools.count()
        for number in range(megabytes * 1000 // _FILE_KB):
            path = copy.worktree / "assets" / f"{number // _FILES_PER_FOLDER}" / f"{number}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(_FILE_KB * 1000))
        dockerfile, ignored = ((copy.worktree / name).read_text() for name in ("Dockerfile", ".dockerignore"))
        copied = "COPY assets /app/assets\nCOPY src /app/src\n"
        copy.commit(
            {
                "Dockerfile": dockerfile.replace("COPY src /app/src\n", copied),
                ".dockerignore": f"{ignored}!assets\n",
                "assets/README": "Bytes that no builder can compress.\n",
            }
        )
        copy.git("add", "assets")
        copy.commit({})

    def bare(self) -> None:
        """Build from the worktree as it lies there."""
        self._commit()
        build = [self._client, "build", "--quiet", "--build-arg", f"GIT_SHA={self._copy.revision}"]
        run([*build, self._copy.worktree], env={**self._copy.engine.env, "DOCKER_BUILDKIT": "1"})

    def hook(self, *steps: str, afresh: bool = False) -> Callable[[], float]:
        """Return what lets the hook build staging, and sums up how long some of its steps took, in seconds.

        `afresh`: no checkout is left of the run before, so that every file is written and hashed before the build.
        """

        def build() -> float:
            self._commit()
            if afresh:
                shutil.rmtree(self._copy.compose_dir / ".imagefresh" / ".checkout", ignore_errors=True)
            ended = self._host.staging(SETTLE="0", BUILD_TIMEOUT="600")
            if ended.verdict != (0, "built"):
                raise RuntimeError(f"the hook: expected to build, observed {ended}")
            seconds = cast("dict[str, float]", ended.line["seconds"])
            return sum(seconds.get(step, 0.0) for step in steps)

        return build

    def hook_beside_compose(self, *steps: str) -> Callable[[], float]:
        """Return the same of all steps up to the build, less what compose and the engine take alone."""
        build = self.hook("list", "compose", "export", "build", *steps)
        return lambda: build() - self._ask_compose()

    def _ask_compose(self) -> float:
        """Ask the same programs what the hook asks of compose and the engine before a build; return the seconds."""
        listing = [self._client, "container", "ls", "--all", "--no-trunc", "--filter"]
        ask = functools.partial(run, cwd=self._copy.compose_dir, env=self._copy.engine.env)
        began = time.perf_counter()
        ask([*self._compose, "--profile", "*", "config", "--format", "json"])
        ask([*self._compose, "config", "--services"])
        for filtered in (f"publish={self._copy.staging_port}", f"name={self._copy.staging_container}"):
            ask([*listing, filtered])
        return time.perf_counter() - began

    def _commit(self) -> None:
        self._copy.commit({"src/orchestrator/NEWS": f"{next(self._numbers)}"})
