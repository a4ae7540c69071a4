"""Where a fault is injected: a pipeline whose staging and production run one commit while the branch has the next."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, TypeVar

from tests.e2e.pipeline import Pipeline, wait_until
from tests.faults.proxy import Proxy
from tests.gate_folder import Ended
from tests.sshd import Sshd
from tests.support import Orchestrator, merged, run

Value = TypeVar("Value")

_BEGIN_SECONDS = 60.0
_SILENCE_SECONDS = 60.0
"""A lease ends after 20 s of silence; then the hook still has to tidy up."""

NEWS = "src/orchestrator/NEWS"
ONCE = 'if [[ "$1" == {mode} && ! -e {flag} ]]; then : >{flag}; {{ {action}; }} >/dev/null 2>&1; fi'


class Scene:
    """A pipeline, what may go wrong around it, and what can be seen afterwards."""

    def __init__(self, pipeline: Pipeline, servers: ExitStack) -> None:
        self.pipeline = pipeline
        self.copy: Orchestrator = pipeline.copy
        self.old = ""
        """The revision that staging and production run beforehand."""
        self.new = self.copy.revision
        """The revision to be gated."""
        self._servers = servers
        self._settings: dict[str, Any] = {}
        self._flag = pipeline.folder / "injected"

    @property
    def worktree(self) -> Path:
        """The worktree of the branch."""
        return self.copy.worktree

    # -- before the gate

    def deploy(self) -> None:
        """Let staging and production run the old revision, and commit a new one."""
        self.old = self.pipeline.deploy("old")
        self.commit({NEWS: "new"})

    def commit(self, files: dict[str, str]) -> None:
        """Commit files on the branch; that is the revision to be gated."""
        self.new = self.copy.commit(files)

    def replace(self, path: str, old: str, new: str) -> None:
        """Commit one file of the branch with a piece of text replaced."""
        text = (self.worktree / path).read_text()
        assert old in text, f"{path} does not hold {old!r}"
        self.commit({path: text.replace(old, new)})

    def configure(self, **changes: object) -> None:
        """Change settings, in addition to what was changed before."""
        self._settings = merged(self._settings, changes)
        self.pipeline.configure(**self._settings)

    def configure_staging(self, **changes: object) -> None:
        """Change settings of the staging target."""
        self.configure(targets={self.copy.name: {"staging": changes}})

    def edit_compose(self, old: str, new: str) -> None:
        """Replace a piece of text in the host's own compose file."""
        path = self.copy.compose_dir / "compose.yaml"
        text = path.read_text()
        assert old in text, f"{path} does not hold {old!r}"
        path.write_text(text.replace(old, new))

    def override_staging(self, lines: str) -> None:
        """Let the host's own compose files say more about the staging service: YAML, indented by nothing."""
        body = "".join(f"    {line}\n" for line in lines.strip().splitlines())
        path = self.copy.compose_dir / "compose.override.yaml"
        path.write_text(f"services:\n  orchestrator-staging:\n{body}")

    # -- while the gate runs

    def during(self, action: str, mode: str = "--verify") -> None:
        """Let a shell command run once, when the hook is first called in a mode; --verify comes after the rebuild."""
        self.pipeline.wrap_hook(ONCE.format(mode=mode, flag=self._flag, action=action))
        self.configure(host={"hook": str(self.pipeline.hook.with_name("wrapped.sh"))})

    def engine_proxy(self) -> Proxy:
        """Put a proxy in front of the engine, for hook and plugin alike."""
        path = self.pipeline.folder.parent / "engine.sock"
        proxy = self.enter(Proxy.unix(path, self.copy.engine.socket))
        self.pipeline.install_hook(engine=f"unix://{path}")
        self.configure(host={"docker_host": f"unix://{path}"})
        return proxy

    def ssh_proxy(self) -> Proxy:
        """Put a proxy in front of sshd, under the same host key."""
        proxy = self.enter(Proxy.tcp(self.sshd.port))
        self.trust_port(proxy.port)
        return proxy

    def trust_port(self, port: int) -> None:
        """Reach the ssh host at another port, where it shows the same host key."""
        sshd = self.sshd
        kind, blob = sshd.public_host_key().split()[:2]
        with sshd.known_hosts.open("a") as file:
            file.write(f"[{sshd.host}]:{port} {kind} {blob}\n")
        self.configure(host={"ssh": f"{sshd.user}@{sshd.host}:{port}"})

    @property
    def sshd(self) -> Sshd:
        """The sshd of a pipeline whose host is behind ssh."""
        assert self.pipeline.sshd is not None
        return self.pipeline.sshd

    def replace_in_hook(self, old: str, new: str) -> None:
        """Replace a piece of text in the installed hook, as an administrator may with its constants."""
        text = self.pipeline.hook.read_text()
        assert old in text, f"the hook does not hold {old!r}"
        self.pipeline.hook.write_text(text.replace(old, new))

    def forget_records(self) -> None:
        """Remove what earlier gates of this scene recorded."""
        for folder in self.pipeline.folder.glob(".imagefresh/*/*"):
            shutil.rmtree(folder)

    def into_a_network_of_its_own(self) -> Callable[[], None]:
        """Move sshd and pipeline into a network namespace; return what drops every packet between them from then on.

        The engine's socket is a file, and stays within reach; the ports of containers do not.
        """
        name = f"{self.copy.project}-net"
        inside = ["nsenter", f"--net=/run/netns/{name}"]
        run(["ip", "netns", "add", name])
        self.later(lambda: run(["ip", "netns", "delete", name]))
        run(["ip", "-n", name, "link", "set", "lo", "up"])
        self.sshd.stop()
        self.sshd.prefix = self.pipeline.prefix = inside
        self.sshd.start()
        # sshd leaves before its namespace does.
        self.later(self.sshd.stop)

        def drop() -> None:
            run([*inside, "iptables", "--append", "INPUT", "--jump", "DROP"])

        return drop

    def redirect_port(self, port: int, to: int) -> str:
        """Let a rule of the kernel lead one more address of this machine, at a port, to another port; return it."""
        # 198.18.0.0/15 is kept for tests (RFC 2544); the port makes it this scene's own.
        address = f"198.18.{port >> 8}.{port & 255}"
        rule = ["OUTPUT", "--destination", address, "--protocol", "tcp", "--dport", str(port)]
        rule += ["--jump", "REDIRECT", "--to-ports", str(to)]
        run(["ip", "address", "add", f"{address}/32", "dev", "lo"])
        self.later(lambda: run(["ip", "address", "delete", f"{address}/32", "dev", "lo"]))
        run(["iptables", "--wait", "--table", "nat", "--insert", *rule])
        self.later(lambda: run(["iptables", "--wait", "--table", "nat", "--delete", *rule]))
        return address

    def enter(self, server: AbstractContextManager[Value]) -> Value:
        """Keep something open until the test ends, and return what it yields."""
        return self._servers.enter_context(server)

    def give_away(self, folder: Path) -> None:
        """Let everything below a folder belong to another user."""
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, 65534, 65534, follow_symlinks=False)

    def later(self, close: Callable[[], object]) -> None:
        """Undo something when the test ends."""
        self._servers.callback(close)

    # -- the gate, and what can be seen afterwards

    def gate(self, *options: str, **names: str) -> Ended:
        """Run the gate to its end."""
        return self.pipeline.gate(*options, **names)

    def run_and_stop(self, argv: Sequence[str], stopped: threading.Event) -> Ended:
        """Run a command of ours, and stop its process once the event is set; it goes on when the lock is free."""
        with subprocess.Popen(
            argv,
            cwd=self.pipeline.folder,
            env=self.pipeline.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert stopped.wait(_BEGIN_SECONDS)
            process.send_signal(signal.SIGSTOP)
            freed = wait_until(lambda: not self.pipeline.is_locked(), _SILENCE_SECONDS)
            process.send_signal(signal.SIGCONT)
            output, _ = process.communicate(timeout=240)
        assert freed, "a client that was stopped kept the lock"
        return Ended(process.returncode, output)

    @property
    def staging(self) -> str:
        """What staging serves: the `old` revision, the `new` one, a `third` one, something `unnamed`, or `nothing`."""
        revision = self.pipeline.staging
        names = {self.new: "new", self.old: "old"}
        if revision:
            return names.get(revision, "third")
        return "unnamed" if self.pipeline.answers(self.copy.staging_port) else "nothing"

    def production(self) -> dict[str, str]:
        """By what a touched production would be seen: container, image, start, restarts; tag; pin; its answer."""
        fields = "{{.Id}} {{.Image}} {{.State.StartedAt}} {{.RestartCount}} {{.State.Status}}"
        engine, copy = self.copy.engine, self.copy
        return {
            "container": engine.run("inspect", "--format", fields, copy.prod_container, check=False).stdout.strip(),
            "tag": engine.run("image", "inspect", "--format", "{{.Id}}", copy.prod_image, check=False).stdout.strip(),
            "pin": "".join(line for line in copy.env_file.read_text().splitlines() if line.startswith(copy.pin)),
            "serves": self.pipeline.prod,
        }

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all gates of this scene."""
        return [json.loads(path.read_text()) for path in self.pipeline.folder.glob(".imagefresh/*/*/*/chain.json")]

    def recorded(self) -> bool:
        """Whether there is a complete record of the new revision."""
        return any(record["complete"] and record["revision"] == self.new for record in self.records())

    def staging_tag(self) -> str:
        """Return the ID to which the staging reference points, "" for none."""
        argv = ["image", "inspect", "--format", "{{.Id}}", self.copy.staging_image]
        return self.copy.engine.run(*argv, check=False).stdout.strip()

    def label_of(self, image: str) -> str:
        """Return the revision label of an image."""
        template = '{{index .Config.Labels "org.opencontainers.image.revision"}}'
        return self.copy.engine.docker("image", "inspect", "--format", template, image)

    def remove_run_tags(self) -> None:
        """Take away the tags of this scene's runs, which an engine keeps that was gone when a run ended."""
        for tag in self.pipeline.run_tags():
            self.copy.engine.docker("image", "rm", "--force", "--no-prune", tag)
