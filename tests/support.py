"""What the tests share: a real engine, free ports, and copies of the example service that run side by side."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "orchestrator"
SAFE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PUBLIC_BASE = "python:3.12-slim"
COPY_LABEL = "imagefresh.test.copy"
"""Borne by every image, failed build and container of one copy of the example service."""

GIT_IDENTITY = {
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}


def clean_environment(**more: str) -> dict[str, str]:
    """Return an environment that holds only PATH (this Python's own folder first), HOME and what is given."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {"PATH": path, "HOME": os.environ.get("HOME", "/root"), **more}


def safe_path() -> str:
    """Return the SAFE_PATH of an installed hook: the system's folders, and first the one of these tests' own docker."""
    docker = shutil.which("docker")
    return SAFE_PATH if docker is None else f"{Path(docker).parent}:{SAFE_PATH}"


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, without standard input. Where `check` and it fails: RuntimeError with its output."""
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env=clean_environment() if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"{argv[0]} {argv[1:]}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def await_true(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Return whether a condition came true before a bound that is far beyond what it needs."""
    give_up = time.monotonic() + seconds
    while not condition() and time.monotonic() < give_up:
        time.sleep(0.02)
    return condition()


def ask(port: int, path: str, *, timeout: float = 5) -> dict[str, object]:
    """Return the JSON object that a service on 127.0.0.1 answers to one GET. OSError for anything but success."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout) as answer:
        body: dict[str, object] = json.load(answer)
        return body


# --- the engine -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Engine:
    """A Docker engine that answers, and how to reach it."""

    docker_host: str
    """Its address, `unix:///...`."""
    docker_config: str
    """The DOCKER_CONFIG folder under which `docker compose` works."""
    base_image: str
    """The reference of a small image with python3, sh and the usual small commands."""

    @property
    def socket(self) -> str:
        """The path of its socket."""
        return self.docker_host.removeprefix("unix://")

    @property
    def env(self) -> dict[str, str]:
        """A clean environment in which `docker` and `docker compose` reach this engine."""
        return clean_environment(DOCKER_HOST=self.docker_host, DOCKER_CONFIG=self.docker_config)

    def run(
        self, *argv: str | Path, cwd: Path | None = None, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run the docker command line against this engine."""
        return run(["docker", *argv], cwd=cwd, env=self.env, check=check, timeout=timeout)

    def docker(self, *argv: str | Path, cwd: Path | None = None) -> str:
        """Return what a docker command prints, stripped. Raises RuntimeError where it fails."""
        return self.run(*argv, cwd=cwd).stdout.strip()


def start_engine() -> Engine:
    """Return the engine of scripts/engine.sh, started where none answers. RuntimeError where none can be had.

    Safe to call from several processes at once: the script holds a lock. The engine stays up for the next run;
    `scripts/engine.sh down` or `make clean` ends it.
    """
    names = ("DOCKER_HOST", "DOCKER_CONFIG", "ENGINE_FLAGS", "ENGINE_SOCKET")
    given = {name: os.environ[name] for name in names if name in os.environ}
    env = clean_environment(**given)
    run([ROOT / "scripts/engine.sh", "up"], env=env, timeout=900)
    # The shell that wrote the quoting also reads it; nothing here has to know its rules.
    script = 'eval "$("$1" env)" && printf "%s\\n" "$DOCKER_HOST" "$DOCKER_CONFIG"'
    lines = run(["bash", "-c", script, "bash", ROOT / "scripts/engine.sh"], env=env).stdout.splitlines()
    base_image = run([ROOT / "scripts/base-image.sh"], env=env, timeout=900).stdout.strip()
    return Engine(docker_host=lines[0], docker_config=lines[1], base_image=base_image)


# --- ports ------------------------------------------------------------------------------------------------------------


class Ports:
    """Hands out unused TCP ports, each only once among all the test processes of this machine."""

    # Below the range from which the kernel takes the near end of outgoing connections.
    RANGE = range(20000, 30000)

    def __init__(self) -> None:
        self._claims: list[socket.socket] = []

    def claim(self) -> int:
        """Return a port on which nothing listens, ours until `release`."""
        for port in random.SystemRandom().sample(self.RANGE, 500):
            if self._claim(port) and _is_unused(port):
                return port
        raise RuntimeError(f"no unused port found in {self.RANGE}; end what listens there")

    def release(self) -> None:
        """Give every port back."""
        while self._claims:
            self._claims.pop().close()

    def _claim(self, port: int) -> bool:
        # A name in the kernel's abstract space: it belongs to one process at a time and vanishes with it.
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0imagefresh-test-port-{port}")
        except OSError:
            claim.close()
            return False
        self._claims.append(claim)
        return True


def _is_unused(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


class _Foreign(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def foreign_server(address: str, port: int) -> Iterator[int]:
    """Serve HTTP 200 on a port that is not its own, 0 for any; yield the port."""
    with ThreadingHTTPServer((address, port), _Foreign) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


# --- the example service ----------------------------------------------------------------------------------------------


class Orchestrator:
    """A copy of the example service of its own: git repo, worktree of a branch, compose folder, names and ports.

    Nothing runs until a test says so. `remove` takes away every container, network and image that bears one of this
    copy's names or was built from one of its commits, and nothing else.
    """

    name = "orchestrator"
    """The name of the repo, for --repo."""

    def __init__(self, engine: Engine, folder: Path, *, branch: str, unique: str, staging_port: int, prod_port: int):
        self.engine = engine
        self.branch = branch
        self.project = unique
        self.staging_port = staging_port
        self.prod_port = prod_port
        self.staging_image = f"{unique}-staging-image"
        self.prod_image = f"{unique}-prod-image"
        self.staging_container = f"{unique}-staging"
        self.prod_container = f"{unique}-prod"
        self.repos_dir = folder / "repos"
        self.worktrees_dir = folder / "worktrees"
        self.repo = self.repos_dir / self.name
        self.worktree = self.worktrees_dir / self.name / branch.replace("/", "-")
        self.compose_dir = folder / "host"
        self.pin = "ORCHESTRATOR_PROD_IMAGE"
        self._commits: list[str] = []
        self._make_repo()
        self._make_compose_dir()

    # -- the repo

    def git(self, *argv: str, cwd: Path | None = None) -> str:
        """Return what git prints in the worktree (or `cwd`), stripped; same identity and time for every commit."""
        return run(["git", *argv], cwd=cwd or self.worktree, env=clean_environment(**GIT_IDENTITY)).stdout.strip()

    def commit(self, files: Mapping[str, str], message: str = "a change") -> str:
        """Write files into the worktree, commit them on the branch, and return the full commit ID.

        Paths are relative to the worktree. An empty mapping makes an empty commit.
        """
        for path, content in files.items():
            (self.worktree / path).parent.mkdir(parents=True, exist_ok=True)
            (self.worktree / path).write_text(content)
        self.git("add", "--all", "--force", "--", *(files or ["."]))
        return self._commit(message, self.worktree)

    @property
    def revision(self) -> str:
        """The full commit ID at HEAD of the worktree."""
        return self.git("rev-parse", "HEAD")

    def _commit(self, message: str, cwd: Path) -> str:
        # The project's name makes every commit ID unique to this copy, however alike the files are.
        self.git("commit", "--quiet", "--allow-empty", "--message", f"{message} ({self.project})", cwd=cwd)
        self._commits.append(self.git("rev-parse", "HEAD", cwd=cwd))
        return self._commits[-1]

    def _make_repo(self) -> None:
        shutil.copytree(EXAMPLE, self.repo, ignore=shutil.ignore_patterns("__pycache__", ".*_cache", ".env"))
        for name in ("Dockerfile", "compose.yaml"):
            path = self.repo / name
            path.write_text(path.read_text().replace(PUBLIC_BASE, self.engine.base_image))
        # Right after FROM: no two copies share a cached layer, which one could remove while the other builds on it.
        dockerfile = self.repo / "Dockerfile"
        first = "FROM ${BASE}\n"
        dockerfile.write_text(dockerfile.read_text().replace(first, f'{first}LABEL {COPY_LABEL}="{self.project}"\n'))
        self.git("init", "--quiet", "--initial-branch", "main", cwd=self.repo)
        self.git("add", "--all", cwd=self.repo)
        self._commit("the example", self.repo)
        self.git("worktree", "add", "--quiet", "-b", self.branch, str(self.worktree), cwd=self.repo)

    # -- the compose folder

    def _make_compose_dir(self) -> None:
        self.compose_dir.mkdir(parents=True)
        shutil.copy(self.repo / "compose.yaml", self.compose_dir)
        values = {
            "COMPOSE_PROJECT_NAME": self.project,
            "STAGING_NAME": self.staging_container,
            "STAGING_IMAGE": self.staging_image,
            "STAGING_PORT": self.staging_port,
            "PROD_NAME": self.prod_container,
            "PROD_PORT": self.prod_port,
        }
        self.env_file.write_text("".join(f"{key}={value}\n" for key, value in values.items()))

    @property
    def env_file(self) -> Path:
        """The `.env` of the compose folder."""
        return self.compose_dir / ".env"

    def compose(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `docker compose` in the compose folder."""
        return self.engine.run("compose", *argv, cwd=self.compose_dir, check=check)

    def build_image(self, reference: str, revision: str | None = None, *, context: Path | None = None) -> str:
        """Build a folder (default: the worktree as it is) with a revision (default: HEAD) and return the image ID."""
        argument = f"GIT_SHA={self.revision if revision is None else revision}"
        build = ["docker", "build", "--quiet", "--build-arg", argument, "--tag", reference]
        run([*build, context or self.worktree], env={**self.engine.env, "DOCKER_BUILDKIT": "0"})
        return self.engine.docker("image", "inspect", "--format", "{{.Id}}", reference)

    def start_staging(self, image: str) -> None:
        """Let staging run this image by hand, as a person would: tag it, recreate the container."""
        self.engine.docker("tag", image, self.staging_image)
        self.compose("up", "--detach", "--no-deps", "--no-build", "--force-recreate", "orchestrator-staging")

    def start_prod(self, image: str) -> None:
        """Let production run this image by hand: pin it in `.env`, tag it, recreate the container."""
        lines = [line for line in self.env_file.read_text().splitlines() if not line.startswith(f"{self.pin}=")]
        self.env_file.write_text("\n".join([*lines, f"{self.pin}={image}", ""]))
        self.engine.docker("tag", image, self.prod_image)
        self.compose("up", "--detach", "--no-deps", "--force-recreate", "orchestrator")

    # -- settings

    def settings(self, **changes: object) -> dict[str, object]:
        """Return the settings of this copy, `changes` merged into them key by key, however deep; None removes one."""
        target = {
            "image": self.staging_image,
            "prod_image": self.prod_image,
            "staging": {"container": self.staging_container, "port": self.staging_port},
            "prod": {"port": self.prod_port, "pin": self.pin},
        }
        base: dict[str, object] = {
            "repos_dir": str(self.repos_dir),
            "worktrees_dir": str(self.worktrees_dir),
            "settle": 0.5,
            "host": {
                "repo_path": str(self.compose_dir),
                "hook": str(ROOT / "hooks/deploy-hook.sh"),
                "docker_host": self.engine.docker_host,
                "docker_config": self.engine.docker_config,
            },
            "targets": {self.name: target},
        }
        return merged(base, changes)

    def settings_toml(self, **changes: object) -> str:
        """Return an imagefresh.toml for this copy; for `changes` see `settings`."""
        return to_toml(self.settings(**changes))

    # -- the end

    def remove(self) -> None:
        """Remove every container, network and image of this copy. Raises RuntimeError where something stays."""
        before: dict[str, list[str]] = {}
        # The images of a build's steps go one after the other, where the engine shows them at all.
        while (left := self.leftovers()) != before:
            before = left
            for kind, ids in left.items():
                if ids:
                    self.engine.run(kind, "rm", *(["--force"] if kind != "network" else []), *ids, check=False)
        found = {kind: ids for kind, ids in left.items() if ids}
        if found:
            raise RuntimeError(f"{self.project}: expected nothing left on the engine, observed {found}")

    def leftovers(self) -> dict[str, list[str]]:
        """Return the IDs of this copy's containers, networks and images, in the order in which they can be removed."""
        copy, project = f"label={COPY_LABEL}={self.project}", f"label=com.docker.compose.project={self.project}"
        revisions = [[f"label=org.opencontainers.image.revision={each}"] for each in self._commits]
        images = self._ids(
            "image", [copy], *revisions, [f"reference={self.project}-*"], [f"reference={self.project}-*:*"]
        )
        # Of several ancestors the engine wants one.
        users = [f"ancestor={each}" for each in images]
        containers = self._ids("container", [copy], [project], [f"name=^/{self.project}-"], users)
        networks = self._ids("network", [project])
        return {"container": sorted(containers), "network": sorted(networks), "image": sorted(images)}

    def _ids(self, kind: str, *choices: list[str]) -> set[str]:
        """Return the IDs that match all filters of any choice: the engine itself would want all labels at once."""
        listing = [kind, "ls", "--quiet", "--no-trunc", *(["--all"] if kind != "network" else [])]
        queries = [[word for each in filters for word in ("--filter", each)] for filters in choices if filters]
        return set("\n".join(self.engine.docker(*listing, *query) for query in queries).split())


def merged(base: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """Return `base` with `changes` put into it key by key, however deep; None removes a key."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(old, Mapping):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def to_toml(settings: Mapping[str, object]) -> str:
    """Return a nested mapping of texts, numbers, booleans, lists and mappings as TOML."""
    return "".join(f"{_toml_key(key)} = {_toml_value(value)}\n" for key, value in settings.items())


def _toml_key(key: object) -> str:
    # A TOML basic string reads the escapes of a JSON one.
    return json.dumps(str(key))


def _toml_value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(each) for each in value) + "]"
    return json.dumps(value if isinstance(value, (bool, int, float)) else str(value))
