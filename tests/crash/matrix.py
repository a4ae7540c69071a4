"""A real host on which production goes to and fro between two proven images, and is interrupted on the way."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hook.crash import Crashing, Point
from tests.hook.harness import Outcome, RealHost, changed
from tests.support import ask

PINNED = "${ORCHESTRATOR_PROD_IMAGE:-unpromoted:run-deploy-hook}"
SERVICE = "orchestrator"
# After that many commands that change the host no call can still be on its way.
MOST = 40


@dataclass(frozen=True)
class Row:
    """What became of one interruption."""

    scenario: str
    point: str
    command: str
    """The command of the hook at which it happened."""
    seen: str
    """How the call ended, and how its recovery did."""


Record = Callable[[Iterator[Row]], None]
"""Takes rows as they come."""


class Matrix:
    """Production runs `old`, and is on its way to `new`; both are proven images of one service."""

    def __init__(self, host: RealHost, folder: Path, *, pinned: bool = True) -> None:
        self.host = host
        self.copy = host.copy
        self.pinned = pinned
        if not pinned:
            path = self.copy.compose_dir / "compose.yaml"
            path.write_text(path.read_text().replace(PINNED, self.copy.prod_image))
        docker = shutil.which("docker")
        assert docker
        real = {"docker": Path(docker), **{tool: Path("/usr/bin", tool) for tool in ("mv", "rm", "sync")}}
        self.crashing = Crashing(folder, real, engine=host.engine.docker_host, docker_config=host.engine.docker_config)
        self.revisions: dict[str, str] = {}
        self.copy.build_image(self.copy.staging_image)
        self.old = self._know(self.copy.staging_image)
        self.promote_by_hand()
        self.copy.commit({"src/orchestrator/more.py": "MORE = 1\n"})
        self.copy.build_image(self.copy.staging_image)
        self.new = self._know(self.copy.staging_image)
        # Once to and fro, so that every later way is the same one.
        self.promote_by_hand()
        self.reset()

    def _know(self, reference: str) -> str:
        image = self.host.image_of(reference)
        self.revisions[image] = self.copy.revision
        return image

    # -- what is called

    @property
    def variables(self) -> dict[str, str]:
        """Those of a promotion of `new`."""
        pin = {} if self.pinned else {"PROD_PIN": ""}
        return {**self.host.promotion_variables(), "HEALTH_TIMEOUT": "10", "SETTLE": "0", **pin}

    def variables_of(self, mode: str) -> dict[str, str]:
        """Those of one mode."""
        if mode == "--rollback":
            proofs = dict.fromkeys(["SOURCE_IMAGE", "EXPECTED_REVISION", "EXPECTED_IMAGE_ID"])
            return changed(self.variables, {**proofs, "SOURCE_IMAGE": self.old})
        return {"COMPOSE_DIR": str(self.copy.compose_dir)} if mode == "--recover" else self.variables

    def promote_by_hand(self) -> None:
        """Promote staging's image, undisturbed."""
        outcome = self.host.hook.call("--promote", self.variables)
        assert outcome.verdict == (0, "promoted"), outcome.stderr

    def recover(self) -> Outcome:
        """Call `--recover` as a timer does."""
        return Outcome.of(self.host.hook.run("--recover", self.variables_of("--recover")))

    def status(self) -> dict[str, Any]:
        """What `--status` tells."""
        names = ("PROD_IMAGE", "PROD_SERVICE", "PROD_PORT", "PROD_PIN", "REPO", "RUN_ID", "COMPOSE_DIR")
        outcome = self.host.hook.call("--status", {name: self.variables[name] for name in names})
        assert outcome.verdict == (0, "status"), outcome.stderr
        told = outcome.line["status"]
        assert isinstance(told, dict)
        return told

    def reset(self) -> None:
        """Let production run `old` again."""
        if self.running() != [self.old]:
            outcome = self.host.hook.call("--rollback", self.variables_of("--rollback"))
            assert outcome.verdict == (0, "restored"), outcome.stderr

    # -- what is interrupted

    def points(self, scenario: str, mode: str, actions: dict[str, str], moments: tuple[str, ...]) -> Iterator[Row]:
        """Interrupt one mode at every command, in every way, and judge what is left each time."""
        for name, action in actions.items():
            for moment in moments:
                for number in range(1, MOST):
                    outcome = self.crashing.call(mode, self.variables_of(mode), Point(number, moment, action))
                    if not self.crashing.acted:
                        assert outcome is not None
                        assert outcome.status == 0, outcome.stderr
                        break
                    seen = self.judge(outcome, foreign=number % 2 == 0)
                    yield Row(scenario, f"{name} {moment}", self.shown, seen)
                    self.prepare(mode)
                assert number > 5, f"{mode} changed the host {number - 1} times only: {self.crashing.said}"
                self.prepare(mode)

    def prepare(self, mode: str) -> None:
        """Production as it is before the mode is called."""
        self.reset()
        if mode == "--rollback":
            self.promote_by_hand()

    @property
    def shown(self) -> str:
        """The command at which it happened, as short as a person needs it."""
        line = re.sub(r"sha256:([0-9a-f]{6})[0-9a-f]*", r"\1", self.crashing.acted)
        line = (
            line.replace(f"{self.copy.compose_dir}/", "").replace(self.copy.project, "").replace(self.host.run_id, "")
        )
        line = re.sub(r" --?(label|entrypoint|network|pull|f|profile|project-\S+) \S+| -d\b| --no-\S+", "", line)
        return re.sub(r"([0-9a-f]{12})[0-9a-f]{52}| --(?= )", r"\1", line)[:70]

    # -- what must hold afterwards

    def judge(self, outcome: Outcome | None, *, foreign: bool) -> str:
        """Look at what an interruption left, let a stranger call compose, recover, and look again."""
        told = self.status()
        assert (told["open"] is not None) == self.journal.exists()
        if outcome is not None:
            assert outcome.status in (0, 1, 3, 11), outcome.stderr
            assert self.journal.exists() is False
        if outcome is not None and outcome.status == 0:  # before a stranger's call could make it true
            assert self.running() == [outcome.image_id], outcome.stderr
        if foreign:
            self.foreign("up", "--detach", SERVICE)
            assert set(self.running()) <= {self.old, self.new}
        recovered = self.recover()
        assert recovered.status == 0, recovered.stderr
        self.assert_whole()
        ended = "killed" if outcome is None else outcome.cause
        return f"{ended}, then {recovered.cause}; serves {'new' if self.running() == [self.new] else 'old'}"

    def assert_whole(self) -> None:
        """Production answers with one of the two images, everything says the same, and nothing is left behind."""
        (image,) = self.running()
        assert image in (self.old, self.new)
        assert self.answer()["revision"] == self.revisions[image]
        assert self.host.image_of(self.copy.prod_image) == image
        if self.pinned:
            assert f"{self.copy.pin}={image}\n" in self.copy.env_file.read_text()
        told = self.status()
        assert (told["open"], told["verified"]) == (None, True), told
        assert sorted(path.name for path in self.copy.compose_dir.glob(".env*")) == [".env"]
        assert not self.journal.exists()
        self.assert_unlocked()
        other = self.new if image == self.old else self.old
        assert self.host.image_of(other) == other
        if image == self.new:
            assert other in self.kept()
        self.assert_undisturbed()

    def answer(self) -> dict[str, object]:
        """What production answers, as soon as it does: a stranger may just have started it anew."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return ask(self.copy.prod_port, "/version")
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def assert_undisturbed(self) -> None:
        """A stranger's plain `up` restarts nothing where a pin says what runs; else it finds the same image."""
        before = self.host.production()
        self.foreign("up", "--detach", SERVICE)
        if self.pinned:
            assert self.host.production() == before
        assert self.running() == [before[1]]

    def assert_unlocked(self) -> None:
        with (self.journal.with_name("lock")).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    @property
    def journal(self) -> Path:
        return self.copy.compose_dir / ".imagefresh" / "journal"

    def foreign(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Call compose as somebody who knows nothing of the hook, whether or not it works."""
        return self.host.engine.run("compose", *words, cwd=self.copy.compose_dir, check=False)

    def containers(self) -> list[dict[str, Any]]:
        """Every container of production."""
        labels = [f"com.docker.compose.project={self.copy.project}", f"com.docker.compose.service={SERVICE}"]
        filters = [word for label in labels for word in ("--filter", f"label={label}")]
        ids = self.host.engine.docker("container", "ls", "--all", "--quiet", *filters).split()
        return list(json.loads(self.host.engine.docker("container", "inspect", *ids))) if ids else []

    def running(self) -> list[str]:
        """The images that production runs."""
        return [each["Image"] for each in self.containers() if each["State"]["Running"]]

    def kept(self) -> list[str]:
        """The images that are kept from pruning for production."""
        label = f"label=imagefresh.production={self.copy.project}/{SERVICE}"
        ids = self.host.engine.docker("container", "ls", "--all", "--quiet", "--filter", label).split()
        return [self.host.container(each, ".Image") for each in ids]


class ProxiedMatrix(Matrix):
    """The same behind nginx: nothing stays of the container that does not serve, whether or not it runs."""

    def assert_whole(self) -> None:
        super().assert_whole()
        assert len(self.containers()) == 1
