"""A pipeline around one copy of the example service: settings, an installed hook, and the commands that it runs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pytest_imagefresh.core.chain import Link
from pytest_imagefresh.core.contract import render_hook
from tests.gate_folder import Ended
from tests.sshd import Sshd
from tests.support import ROOT, Orchestrator, ask, clean_environment, merged, run, safe_path, to_toml

HOOK = ROOT / "hooks" / "deploy-hook.sh"
FAST = {"settle": 0, "timeouts": {"inspect": 20, "build": 120, "health": 10, "check": 20}}
"""Short steps; a broken service is a matter of seconds then."""

PRINCIPAL = "gate@orchestrator"
"""The name under which the host allows the gate's key."""

_END_SECONDS = 30.0


class Pipeline:
    """The folder in which a pipeline runs pytest and imagefresh, and what it needs to reach the Docker host.

    With an sshd the host is behind ssh: a home of its own, a strict known_hosts, and the clones under another path.
    """

    def __init__(self, copy: Orchestrator, folder: Path, sshd: Sshd | None = None) -> None:
        self.copy = copy
        self.folder = folder
        self.sshd = sshd
        self.junit = folder / "gate.xml"
        self._temporary = folder.parent / "tmp"
        self._hook_temporary = folder.parent / "hook-tmp"
        self.policies = folder.parent / "policies"
        """Where the host's policies are; no such folder unless a test writes one."""
        for path in (folder, self._temporary, self._hook_temporary):
            path.mkdir()
        (folder / "pytest.ini").write_text("[pytest]\n")
        self.hook = self.install_hook()
        self.more_environment: dict[str, str] = {}
        """Further variables of the caller, which are to have no say."""
        self.prefix: list[str] = []
        """What every command is started through, such as nsenter."""
        self.configure()

    # -- what is written before anything runs

    def install_hook(self, engine: str = "") -> Path:
        """Install the hook as an administrator does: a copy bound to the engine, with a temporary folder of its own.

        `engine` is another address of it, `unix:///...`.
        """
        constants = {
            "SAFE_PATH": safe_path(),
            "ENGINE": engine or self.copy.engine.docker_host,
            "DOCKER_CONFIG_DIR": self.copy.engine.docker_config,
            "TEMP_DIR": str(self._hook_temporary),
            "POLICY_DIR": str(self.policies),
        }
        return self.write_hook("deploy-hook.sh", render_hook(HOOK.read_text(), constants))

    def write_hook(self, name: str, text: str) -> Path:
        """Write an executable script beside the compose folder; return its path."""
        path = self.folder.parent / "lib" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def configure(self, **changes: object) -> None:
        """Write imagefresh.toml: the copy's settings, fast, the installed hook, this host; then `changes`."""
        host: dict[str, object] = {"hook": str(self.hook)}
        if self.sshd is not None:
            host |= {"ssh": self.sshd.target, "known_hosts": str(self.sshd.known_hosts)}
            changes.setdefault("host_repos_dir", str(self.clones_on_host()))
        own = self.copy.settings(**{**FAST, "host": host})
        (self.folder / "imagefresh.toml").write_text(to_toml(merged(own, changes)))

    def write_policy(self, signer: Path | None = None) -> None:
        """Write the policy of the copy's production; with a signer it requires verdicts of that key."""
        self.policies.mkdir(mode=0o755, exist_ok=True)
        lines = {
            "PROD_IMAGE": self.copy.prod_image,
            "PROD_SERVICE": "orchestrator",
            "PROD_PORT": self.copy.prod_port,
            "COMPOSE_DIR": self.copy.compose_dir,
            "REPOS_DIR": self.copy.repos_dir if self.sshd is None else self.clones_on_host(),
            "REQUIRE": "revision image_id",
        }
        if signer is not None:
            lines |= {"REQUIRE": "revision image_id verdict", "ALLOWED_SIGNERS": self._allow(signer)}
        text = "".join(f"{key}={value}\n" for key, value in lines.items())
        self._write(self.policies / "orchestrator.conf", text)

    def _allow(self, signer: Path) -> Path:
        """Install who may sign, and the ledger."""
        path = self.policies / "allowed_signers"
        self._write(path, f'{PRINCIPAL} namespaces="imagefresh" {signer.with_suffix(".pub").read_text()}')
        for folder in (self.copy.compose_dir / ".imagefresh", self.copy.compose_dir / ".imagefresh/verdicts"):
            folder.mkdir(mode=0o700, exist_ok=True)
        return path

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o644)

    def clones_on_host(self) -> Path:
        """Return the folder of the clones as the host has them: elsewhere, bare, and always up to date."""
        folder = self.copy.repos_dir.parent / "clones-on-host"
        for repo in self.copy.repos_dir.iterdir():
            if not (folder / repo.name).exists():
                self.copy.git("clone", "--quiet", "--bare", "--shared", str(repo), str(folder / repo.name), cwd=repo)
        return folder

    def wrap_hook(self, before: str) -> None:
        """Install a hook in front of the real one: a piece of bash, then the real one with everything it was given."""
        self.write_hook("wrapped.sh", f'#!/bin/bash -p\nset -eu\n{before}\nexec {self.hook} "$@"\n')
        self.configure(host={"hook": str(self.hook.with_name("wrapped.sh"))})

    def deploy(self, text: str = "before") -> str:
        """Commit, and let production and staging run that by hand; return the revision."""
        revision = self.copy.commit({"src/orchestrator/NEWS": text})
        image = self.copy.build_image(f"{self.copy.project}-by-hand")
        self.copy.start_prod(image)
        self.copy.start_staging(image)
        assert wait_until(lambda: self.prod == self.staging == revision), self.copy.compose("ps", "--all").stdout
        return revision

    def override(self, service: Mapping[str, object], **more: object) -> None:
        """Let the host's compose folder say something else about staging, and start it so, by hand."""
        document = {"services": {"orchestrator-staging": service}, **more}
        # JSON is YAML.
        (self.copy.compose_dir / "compose.override.yaml").write_text(json.dumps(document))
        self.recreate_staging()

    def recreate_staging(self) -> None:
        """Start staging by hand, from the image that its reference points to."""
        self.copy.compose("up", "--detach", "--no-deps", "--no-build", "--force-recreate", "orchestrator-staging")

    def stage(self) -> str:
        """Build the worktree by hand and let staging run it; return the image ID."""
        image = self.copy.build_image(f"{self.copy.project}-by-hand")
        self.copy.start_staging(image)
        return image

    # -- what a pipeline runs

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every command: nothing of the caller's, and a temporary folder of its own."""
        home = {"HOME": str(self.sshd.home)} if self.sshd else {}
        # This very checkout is what is tested, whichever one the environment of this Python has installed.
        own = {"TMPDIR": str(self._temporary), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        return clean_environment(**{**own, **home, **self.more_environment})

    def gate(self, *options: str, repo: str | None = None, branch: str | None = None) -> Ended:
        """Run the gate to its end: the checkout's gates; repo and branch are the copy's where nothing else is said."""
        return self.run(*self.gate_command(*options, repo=repo, branch=branch))

    def gate_command(self, *options: str, repo: str | None = None, branch: str | None = None) -> list[str]:
        """Return the gate as argv, as `gate` runs it."""
        pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "pytest.ini", str(ROOT / "gates")]
        named = [self.copy.name if repo is None else repo, self.copy.branch if branch is None else branch]
        return [*pytest, "--repo", named[0], "--branch", named[1], f"--junitxml={self.junit}", *options]

    def reuse(self, test: str) -> Ended:
        """Run the gate tests of which the name holds a word, on what runs now."""
        return self.gate("--gate-reuse", "-k", test)

    def reason(self, link: Link) -> str:
        """Return what the newest run says of a link."""
        newest = max(self.folder.glob(".imagefresh/*/*/*/chain.txt"), key=lambda path: path.stat().st_mtime)
        rows = [line for line in newest.read_text().splitlines() if line.startswith(f"{link.value} ")]
        return rows[0].removeprefix(link.value).strip()

    def build_log(self) -> str:
        """Return what the builder said in the newest run."""
        logs = self.folder.glob(".imagefresh/*/*/*/build.log")
        return max(logs, key=lambda path: path.stat().st_mtime).read_text()

    def promote(self, *options: str) -> Ended:
        """Promote what the newest complete gate of the branch's commit proved."""
        return self.imagefresh("promote", "--repo", self.copy.name, "--branch", self.copy.branch, *options)

    def imagefresh(self, *argv: str) -> Ended:
        """Run the command line."""
        return self.run(*self.imagefresh_command(*argv))

    def read(self, command: str) -> Any:
        """Return the one JSON document of a command that ends with 0, whatever is said beside it."""
        done = self.imagefresh(command, "--repo", self.copy.name, "--json")
        assert done.status == 0, done.output
        lines = done.output.splitlines()
        first = next(index for index, line in enumerate(lines) if line in ("{", "["))
        return json.JSONDecoder().raw_decode("\n".join(lines[first:]))[0]

    @staticmethod
    def imagefresh_command(*argv: str) -> list[str]:
        """Return the command line as argv, as `imagefresh` runs it."""
        return [str(Path(sys.executable).with_name("imagefresh")), *argv]

    def api(self, function: str, *arguments: str) -> object:
        """Return what a function of the Python API answers in this folder."""
        script = "import json, sys, pytest_imagefresh as api; name, *rest = sys.argv[1:]; "
        argv = [sys.executable, "-c", f"{script}print(json.dumps(getattr(api, name)(*rest)))", function, *arguments]
        return json.loads(run(argv, cwd=self.folder, env=self.environment, timeout=240).stdout)

    def run(self, *argv: str) -> Ended:
        """Run any command of the pipeline to its end."""
        done = run([*self.prefix, *argv], cwd=self.folder, env=self.environment, check=False, timeout=240)
        return Ended(done.returncode, done.stdout + done.stderr)

    # -- what can be seen afterwards

    def serves(self, port: int) -> str:
        """Return the revision that a service on a port says it runs; "" where nothing answers."""
        try:
            return str(ask(port, "/version")["revision"])
        except OSError:
            return ""

    def answers(self, port: int) -> bool:
        """Whether a service on a port answers at all."""
        try:
            return bool(ask(port, "/version"))
        except OSError:
            return False

    @property
    def staging(self) -> str:
        """The revision that staging serves; "" for none."""
        return self.serves(self.copy.staging_port)

    @property
    def prod(self) -> str:
        """The revision that production serves; "" for none."""
        return self.serves(self.copy.prod_port)

    def cases(self) -> dict[str, str]:
        """Return the JUnit report's cases: test ID -> passed, failure, error or skipped."""
        tree = ElementTree.parse(self.junit)
        return {case.attrib["name"]: case[0].tag if len(case) else "passed" for case in tree.iter("testcase")}

    def properties(self) -> dict[str, str]:
        """Return the suite properties of the JUnit report."""
        tree = ElementTree.parse(self.junit)
        return {str(each.get("name")): str(each.get("value")) for each in tree.iter("property")}

    def leftovers(self) -> list[str]:
        """Return what a run must not leave behind: temporary files, run tags, held locks, drafts, processes."""
        own = [path for path in self._temporary.iterdir() if not path.name.startswith("pytest-of-")]
        files = [*own, *self._hook_temporary.iterdir()]
        files += self.folder.rglob("*.new")
        files += self.copy.compose_dir.glob(".env.*")
        locks = [self.copy.compose_dir / ".imagefresh" / name for name in ("lock", "turn", "lease")]
        held = [f"{path.name} is held" for path in locks if _is_locked(path)]
        return [*map(str, files), *held, *self.run_tags(), *self._containers(), *_processes(self.copy.project)]

    def sweep(self) -> None:
        """Remove the temporary folders that a killed session could not remove itself."""
        for path in self._temporary.glob("imagefresh-*"):
            shutil.rmtree(path)

    def is_locked(self) -> bool:
        """Whether somebody holds the lock of the compose folder."""
        return _is_locked(self.copy.compose_dir / ".imagefresh/lock")

    def assert_clean(self) -> None:
        """Fail unless nothing is left behind, a moment after the end of the run at the latest."""
        assert wait_until(lambda: not self.leftovers()), self.leftovers()

    def run_tags(self) -> list[str]:
        """Return tags that only a run needs: those of this copy's builds, and those named after our run IDs."""
        ours = f"label=imagefresh.test.copy={self.copy.project}"
        listing = ["image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "--filter"]
        tags = self.copy.engine.docker(*listing, "reference=imagefresh-run", "--filter", ours).split()
        scratch = self.copy.engine.docker(*listing, "reference=imagefresh-unlabelled").split()
        scratch += self.copy.engine.docker(*listing, "reference=imagefresh-self-test").split()
        # The tag begins with the run's ID.
        runs = tuple(path.name.lower() for path in self.folder.glob(".imagefresh/*/*"))
        return [*tags, *(tag for tag in scratch if tag.partition(":")[2].startswith(runs))]

    def _containers(self) -> list[str]:
        """Return containers of this copy's images that neither a service nor a kept image owns: what a build left."""
        ours = f"label=imagefresh.test.copy={self.copy.project}"
        rows = self.copy.engine.docker(
            "container",
            "ls",
            "--all",
            "--filter",
            ours,
            "--format",
            '{{.Names}} {{.Label "com.docker.compose.service"}}{{.Label "imagefresh.production"}}',
        )
        return [row for row in rows.splitlines() if len(row.split()) < 2]


def _is_locked(path: Path) -> bool:
    """Whether somebody holds a lock on a file."""
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _processes(word: str) -> list[str]:
    """Return the processes of this machine that name a word in their command line or run in a folder named so."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if word in line or word in os.readlink(entry / "cwd"):
                    found.append(f"process {entry.name}: {line}")
    return found


def wait_until(condition: Callable[[], bool], seconds: float = _END_SECONDS) -> bool:
    """Return whether a condition holds, as soon as it does."""
    give_up = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < give_up:
        time.sleep(0.05)
    return holds
