"""What the tests of the hook share: an installed copy, one call of it, and the outcome of that call."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_imagefresh.core.contract import encode_list, render_hook
from tests.support import GIT_IDENTITY, Orchestrator, clean_environment, safe_path

SCRIPT = Path(__file__).resolve().parents[2] / "hooks" / "deploy-hook.sh"
RUN_ID = "20260102T030405Z-89abcdef"
KEYS = {
    "mode",
    "ok",
    "kind",
    "cause",
    "reason",
    "revision",
    "tree",
    "image_id",
    "container_id",
    "engine_id",
    "prod_runs",
    "compose_sha256",
    "verdict",
    "seconds",
    "check_status",
    "check_output",
    "cases",
    "history",
    "status",
    "observed",
}
STATUS_OF_KIND = {"done": 0, "refused": 1, "usage": 2, "rolled-back": 3, "broken": 4, "unknown": 11}


@dataclass(frozen=True)
class Outcome:
    """The end of one call of the hook. `of` has already checked what holds for every call."""

    status: int
    line: dict[str, object]
    """The JSON line."""
    stderr: str

    @property
    def cause(self) -> str:
        return str(self.line["cause"])

    @property
    def reason(self) -> str:
        return str(self.line["reason"])

    @property
    def image_id(self) -> str:
        return str(self.line["image_id"])

    @property
    def verdict(self) -> tuple[int, str]:
        """Exit status and cause together: what most tests compare."""
        return self.status, self.cause

    @staticmethod
    def of(done: subprocess.CompletedProcess[bytes]) -> Outcome:
        """Read one ended call. AssertionError unless it printed exactly one well-formed line that fits its status."""
        stderr = done.stderr.decode(errors="replace")
        lines = done.stdout.decode().split("\n")
        assert len(lines) == 2, f"expected one line of JSON, observed {done.stdout!r}\n{stderr}"
        assert lines[1] == ""
        line = json.loads(lines[0], object_pairs_hook=_unique)
        assert set(line) == KEYS
        assert STATUS_OF_KIND[line["kind"]] == done.returncode, stderr
        assert line["ok"] is (done.returncode == 0)
        assert line["cause"]
        assert line["reason"]
        assert "\n" not in line["reason"]
        return Outcome(done.returncode, line, stderr)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    assert len({key for key, _value in pairs}) == len(pairs), f"a key twice: {pairs}"
    return dict(pairs)


@dataclass(frozen=True)
class Hook:
    """One installed copy: the constants at its top are its own."""

    path: Path
    temp_dir: Path

    def run(
        self, mode: str | None, variables: Mapping[str, str], *, timeout: float = 120, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run one mode (None: no argument) with exactly these variables as its environment."""
        argv = [str(self.path)] if mode is None else [str(self.path), mode]
        return subprocess.run(argv, env=dict(variables), input=stdin, capture_output=True, timeout=timeout, check=False)

    def call(
        self, mode: str | None, variables: Mapping[str, str], *, timeout: float = 120, stdin: bytes = b""
    ) -> Outcome:
        """Run one mode, read its outcome, and check that no temporary file is left."""
        outcome = Outcome.of(self.run(mode, variables, timeout=timeout, stdin=stdin))
        assert list(self.temp_dir.iterdir()) == []
        return outcome


def install(
    folder: Path, *, engine: str = "unix:///nowhere.sock", docker_config: str = "", tools: Path | None = None
) -> Hook:
    """Install a copy below `folder`, bound to an engine, with `tools` first on its path; its policies in `policies`."""
    folder.mkdir(parents=True, exist_ok=True)
    temp_dir = folder / "temp"
    temp_dir.mkdir()
    constants = {
        "ENGINE": engine,
        "DOCKER_CONFIG_DIR": docker_config,
        "SAFE_PATH": safe_path() if tools is None else f"{tools}:{safe_path()}",
        "TEMP_DIR": str(temp_dir),
        "POLICY_DIR": str(folder / "policies"),
    }
    path = folder / "deploy-hook.sh"
    path.write_text(render_hook(SCRIPT.read_text(), constants))
    path.chmod(0o755)
    return Hook(path, temp_dir)


# --- a pretended host -------------------------------------------------------------------------------------------------

REVISION = "1" * 40
STAGING_ID = "sha256:" + "5" * 64
PROD_ID = "sha256:" + "8" * 64
_HERE = Path(__file__).parent


def image_id(*arguments: str) -> str:
    """Return the ID that the pretended builder gives to an image with these build arguments."""
    return "sha256:" + hashlib.sha256(json.dumps(list(arguments)).encode()).hexdigest()


class PretendedHost:
    """A host whose docker and curl only pretend: staging and production of the repo `shop`, production running."""

    def __init__(self, folder: Path) -> None:
        self.compose_dir = folder / "compose"
        self.compose_dir.mkdir()
        (self.compose_dir / "compose.yaml").write_text("# the pretended compose answers by itself\n")
        self._folder = folder
        self.context = folder / "context"
        """What the builder was given, copied at the moment of the build."""
        self._state = folder / "state.json"
        tools = folder / "tools"
        tools.mkdir()
        for tool in ("docker", "curl"):
            program = f"import sys; sys.path.insert(0, {str(_HERE)!r}); from fake_engine import main; "
            program += f"sys.exit(main({tool!r}, {str(self._state)!r}, sys.argv[1:]))"
            (tools / tool).write_text(f'#!/bin/bash -p\nexec "{sys.executable}" -IS -c "{program}" "$@"\n')
            (tools / tool).chmod(0o755)
        self.tools = tools
        self.hook = install(folder / "hook", tools=tools)
        self._state.write_text(json.dumps(_pretended_state(self.context)))

    @cached_property
    def clone(self) -> Clone:
        """The clone of the repo on this host, made when a test first asks for it."""
        return Clone(self._folder / "clone")

    @property
    def policies(self) -> Path:
        """Where this host keeps its policies; no such folder unless a test makes it."""
        return self._folder / "hook" / "policies"

    def policy(self, named: str | None = "shop", **changes: str | None) -> Path:
        """Write the policy of production, which requires everything, but for `changes`; None leaves a key out."""
        keys = {
            "PROD_IMAGE": "shop-shop",
            "PROD_SERVICE": "shop",
            "PROD_PORT": "43100",
            "COMPOSE_DIR": str(self.compose_dir),
            "REQUIRE": "revision image_id verdict",
            "ALLOWED_SIGNERS": str(self.policies / "allowed_signers"),
        }
        self.policies.mkdir(mode=0o755, exist_ok=True)
        path = self.policies / f"{named}.conf"
        path.write_text("".join(f"{key}={value}\n" for key, value in changed(keys, changes).items()))
        path.chmod(0o644)
        return path

    @property
    def state(self) -> dict[str, Any]:
        """What is on the host now; for the keys see `_pretended_state`."""
        with self._state.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            state: dict[str, Any] = json.load(file)
        return state

    def set(self, **changes: object) -> None:
        """Change what is on the host."""
        self._state.write_text(json.dumps({**self.state, **changes}))

    def service(self, name: str, **changes: object) -> None:
        """Change one service of the compose file; None removes a key."""
        compose = self.state["compose"]
        section = {**compose["services"].get(name, {}), **changes}
        compose["services"][name] = {key: value for key, value in section.items() if value is not None}
        self.set(compose=compose)

    def fail(self, match: str, **fault: object) -> None:
        """Let calls that match a pattern fail: `status`, `stderr`, `sleep` seconds, `after` and `times` calls."""
        self.set(faults=[*self.state["faults"], {"match": match, **fault}])

    @property
    def production(self) -> list[str]:
        """The images that the containers of production have, whether or not they run."""
        return [str(each["image"]) for each in self.state["containers"] if each["service"] == "shop"]

    @property
    def calls(self) -> list[str]:
        """Every call of docker and curl so far, joined by spaces."""
        return [" ".join(call["argv"]) for call in self.state["calls"]]

    def changes(self) -> list[str]:
        """The calls that change a host, but for what becomes of a run's own tag."""
        pattern = r" up |docker (build --|image tag (?!.* imagefresh-run:)|container (stop|restart|create|rm))"
        return [call for call in self.calls if re.search(pattern, call)]

    def staging(self, **changes: str | None) -> Outcome:
        """Call `--build-staging` with changed variables; None leaves one out."""
        return self.hook.call("--build-staging", changed(self.staging_variables(), changes))

    def sent(self, pack: bytes, **changes: str | None) -> Outcome:
        """The same, the host without a clone: everything comes as a pack on standard input."""
        variables = {**self.staging_variables(), "BUILD_CONTEXT": "-"}
        return self.hook.call("--build-staging", changed(variables, changes), stdin=pack)

    def verify(self, **changes: str | None) -> Outcome:
        return self.hook.call("--verify", changed(self.promotion_variables(), changes))

    def promote(self, **changes: str | None) -> Outcome:
        return self.hook.call("--promote", changed(self.promotion_variables(), changes))

    def status(self, **changes: str | None) -> Outcome:
        """Call `--status` with changed variables; None leaves one out."""
        names = [*self._common(), "PROD_IMAGE", "PROD_SERVICE", "PROD_PORT", "PROD_PIN"]
        variables = {name: value for name, value in self.promotion_variables().items() if name in names}
        staging = {"TARGET_IMAGE": "shop-shop-staging", "TARGET_SERVICE": "shop-staging"}
        return self.hook.call("--status", changed({**variables, **staging}, changes))

    def rollback(self, **changes: str | None) -> Outcome:
        """Call `--rollback` with changed variables; None leaves one out."""
        proofs = dict.fromkeys(["SOURCE_IMAGE", "EXPECTED_REVISION", "EXPECTED_IMAGE_ID"])
        return self.hook.call("--rollback", changed(self.promotion_variables(), {**proofs, **changes}))

    def recover(self) -> Outcome:
        """Call `--recover` as a timer does."""
        return self.hook.call("--recover", {"COMPOSE_DIR": str(self.compose_dir)})

    def history(self, **changes: str | None) -> Outcome:
        return self.hook.call("--history", changed(self._common(), changes))

    def freeze(self, reason: str = "a database is being moved", **changes: str | None) -> Outcome:
        variables = {**self._common(), "REASON": encode_list([reason])}
        return self.hook.call("--freeze", changed(variables, changes))

    def unfreeze(self, **changes: str | None) -> Outcome:
        return self.hook.call("--unfreeze", changed(self._common(), changes))

    def break_glass(self, **changes: str | None) -> Outcome:
        """Call `--break-glass` for the staging image, with changed variables; None leaves one out."""
        variables = {**self.promotion_variables(), "SOURCE_IMAGE": STAGING_ID, "REASON": encode_list(["all is lost"])}
        proofs = dict.fromkeys(["EXPECTED_REVISION", "EXPECTED_IMAGE_ID"])
        return self.hook.call("--break-glass", changed(variables, {**proofs, **changes}))

    def self_test(self, **changes: str | None) -> Outcome:
        """Call `--self-test` with changed variables; None leaves one out."""
        unused = dict.fromkeys(["SOURCE_IMAGE", "EXPECTED_REVISION", "EXPECTED_IMAGE_ID"])
        return self.hook.call("--self-test", changed(self.promotion_variables(), {**unused, **changes}))

    def staging_variables(self) -> dict[str, str]:
        return {
            **self._common(),
            "GIT_SHA": self.clone.revision,
            "BUILD_CONTEXT": str(self.clone.path),
            "TARGET_IMAGE": "shop-shop-staging",
            "TARGET_SERVICE": "shop-staging",
            "TARGET_PORT": "43101",
            "COMPOSE_PROFILE": "staging",
            "STAGING_CONTAINER": "shop-staging",
            "STAGING_CHECK_PATH": "scripts/check.py",
            "BUILD_TIMEOUT": "60",
            "CHECK_TIMEOUT": "20",
        }

    def promotion_variables(self) -> dict[str, str]:
        return {
            **self._common(),
            "SOURCE_IMAGE": "shop-shop-staging",
            "EXPECTED_REVISION": REVISION,
            "EXPECTED_IMAGE_ID": STAGING_ID,
            "PROD_IMAGE": "shop-shop",
            "PROD_SERVICE": "shop",
            "PROD_PORT": "43100",
            "PROD_PIN": "PIN",
        }

    def _common(self) -> dict[str, str]:
        return {
            "REPO": "shop",
            "RUN_ID": RUN_ID,
            "COMPOSE_DIR": str(self.compose_dir),
            "HEALTH_PATH": "/health",
            "HEALTH_TIMEOUT": "5",
            "SETTLE": "0",
        }


def changed(variables: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Return variables with changes; None leaves one out."""
    return {name: value for name, value in {**variables, **changes}.items() if value is not None}


def _pretended_state(context: Path) -> dict[str, object]:
    return {
        "calls": [],
        "faults": [],
        "engine_id": "ENGINE:ONE",
        "log_drivers": "[awslogs journald json-file local syslog]",
        "client": "28.2.2",
        "buildx": False,
        "driver_status": "[[Backing Filesystem extfs]]",
        "compose_program": "",
        "meddling": {},
        "images": {"shop-shop-staging:latest": STAGING_ID, "shop-shop:latest": PROD_ID},
        # The JSON text of the revision label by image ID, "" for none.
        "labels": {STAGING_ID: json.dumps(REVISION), PROD_ID: ""},
        "containers": [_production()],
        "compose": {"name": "project", "services": _services()},
        # What a plain compose up would start.
        "always": ["shop"],
        "count": 0,
        # How a container is after `up`, by image ("" for any).
        "after_up": {},
        # How a container is that `run` started, where that is not as usual.
        "beside": {},
        # Containers that nobody asked for, there after every `up`.
        "left_behind": [],
        # What curl gets: one after the other, the last for ever; by image, always the same.
        "answers": ["200"],
        "answer_of": {},
        "check": {},
        # What the builder says and stamps; null: the truth.
        "iid": None,
        "told": None,
        # What else buildx writes down.
        "metadata": {},
        "stamped": None,
        "context": str(context),
        "dockerfile": "",
    }


def _production() -> dict[str, object]:
    ports = [["8000/tcp", "127.0.0.1", "43100"]]
    return {
        "id": "8" * 64,
        "name": "shop",
        "image": PROD_ID,
        "project": "project",
        "service": "shop",
        "ports": ports,
    }


def _services() -> dict[str, object]:
    return {
        "shop": {
            "container_name": "shop",
            "image": "${PIN}",
            "pull_policy": "never",
            "ports": [{"mode": "ingress", "target": 8000, "published": "43100", "protocol": "tcp"}],
        },
        "shop-staging": {
            "profiles": ["staging"],
            "build": {"context": "/srv/shop"},
            "container_name": "shop-staging",
            "depends_on": {"db": {"condition": "service_started"}},
            "image": "shop-shop-staging",
            "ports": [{"mode": "ingress", "target": 8000, "published": "43101", "protocol": "tcp"}],
        },
        "db": {"profiles": ["staging"], "image": "db:1"},
    }


# --- real git ---------------------------------------------------------------------------------------------------------


class Clone:
    """A git repo with one commit, ready for more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch", "main")
        self.commit({"Dockerfile": b"FROM scratch\n", "README": b"hello\n"})

    def git(self, *argv: str, stdin: bytes = b"") -> str:
        """Return what git prints in this repo, stripped."""
        env = clean_environment(**GIT_IDENTITY, GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="protocol.file.allow")
        done = subprocess.run(
            ["git", *argv],
            cwd=self.path,
            env={**env, "GIT_CONFIG_VALUE_0": "always"},
            input=stdin,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.decode(errors="surrogateescape").strip()

    def commit(self, files: Mapping[str, bytes]) -> str:
        """Write files, commit everything, and return the commit ID."""
        for name, content in files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(content)
        self.git("add", "--all", "--force")
        self.git("commit", "--quiet", "--allow-empty", "--message", "a change")
        return self.revision

    def commit_bytes(self, files: Mapping[str, bytes]) -> str:
        """Commit exactly these files and bytes, past every attribute and filter, and return the commit ID."""
        self.git("read-tree", "--empty")
        for name, content in files.items():
            blob = self.git("hash-object", "-w", "--stdin", stdin=content)
            self.git("update-index", "--add", "--cacheinfo", f"100644,{blob},{name}")
        commit = self.git("commit-tree", "-m", "exact bytes", self.git("write-tree"))
        self.git("update-ref", "refs/heads/main", commit)
        return commit

    @property
    def revision(self) -> str:
        return self.git("rev-parse", "HEAD")


# --- a real host ------------------------------------------------------------------------------------------------------


class RealHost:
    """A copy of the example service on a real engine, and a hook installed for that engine."""

    def __init__(self, copy: Orchestrator, folder: Path) -> None:
        self.copy = copy
        self.engine = copy.engine
        self.run_id = f"20260102T030405Z-{copy.project.removeprefix('if-')}"
        self._folder = folder
        self.hook = self.install("first")

    def install(self, name: str, *, client: str | None = None, engine: str | None = None) -> Hook:
        """Install another copy of the hook, for another docker client or engine, and use it from now on."""
        tools = self._folder / f"{name}-tools"
        tools.mkdir(parents=True)
        if client:
            (tools / "docker").symlink_to(client)
        address = engine or self.engine.docker_host
        self.hook = install(self._folder / name, engine=address, docker_config=self.engine.docker_config, tools=tools)
        return self.hook

    def staging(self, **changes: str | None) -> Outcome:
        return self.hook.call("--build-staging", changed(self.staging_variables(), changes))

    def verify(self, **changes: str | None) -> Outcome:
        return self.hook.call("--verify", changed(self.promotion_variables(), changes))

    def promote(self, **changes: str | None) -> Outcome:
        return self.hook.call("--promote", changed(self.promotion_variables(), changes))

    def staging_variables(self) -> dict[str, str]:
        return {
            **self._common(),
            "GIT_SHA": self.copy.revision,
            "BUILD_CONTEXT": str(self.copy.repo),
            "TARGET_IMAGE": self.copy.staging_image,
            "TARGET_SERVICE": "orchestrator-staging",
            "TARGET_PORT": str(self.copy.staging_port),
            "COMPOSE_PROFILE": "staging",
            "STAGING_CONTAINER": self.copy.staging_container,
            "STAGING_CHECK_PATH": "scripts/staging_check.py",
            "BUILD_TIMEOUT": "120",
            "CHECK_TIMEOUT": "30",
        }

    def promotion_variables(self) -> dict[str, str]:
        return {
            **self._common(),
            "SOURCE_IMAGE": self.copy.staging_image,
            "EXPECTED_REVISION": self.copy.revision,
            "PROD_IMAGE": self.copy.prod_image,
            "PROD_SERVICE": "orchestrator",
            "PROD_PORT": str(self.copy.prod_port),
            "PROD_PIN": self.copy.pin,
        }

    def _common(self) -> dict[str, str]:
        return {
            "REPO": "orchestrator",
            "RUN_ID": self.run_id,
            "COMPOSE_DIR": str(self.copy.compose_dir),
            "HEALTH_PATH": "/health",
            "HEALTH_TIMEOUT": "30",
            "SETTLE": "0.2",
        }

    def image_of(self, reference: str) -> str:
        """Return the ID that a reference points to, "" where nothing bears it."""
        return self.engine.run("image", "inspect", "--format", "{{.Id}}", reference, check=False).stdout.strip()

    def container(self, name: str, field: str) -> str:
        """Return one field of a container, as an inspect template names it."""
        return self.engine.docker("container", "inspect", "--format", "{{" + field + "}}", name)

    def production(self) -> list[str]:
        """By what a touched production would be seen: container, image, start, restarts; the tag; the pin file."""
        name = self.copy.prod_container
        fields = [self.container(name, field) for field in (".Id", ".Image", ".State.StartedAt", ".RestartCount")]
        return [*fields, self.image_of(self.copy.prod_image), self.copy.env_file.read_text()]

    def start_stranger(self, port: int) -> str:
        """Let a container of nobody's publish a port, and return its name."""
        name = f"{self.copy.project}-stranger"
        publish = ["--publish", f"127.0.0.1:{port}:80"]
        self.engine.docker("run", "--detach", "--init", "--name", name, *publish, self.engine.base_image, "sleep", "99")
        return name

    def run_tag(self) -> str:
        """What the tag of the run points to, "" where it is gone."""
        return self.image_of(f"imagefresh-run:{self.run_id.lower()}")
