"""docs/install-host.md from its first command to its last, each as it stands there, on a machine of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.machine import Machine
from tests.e2e.pipeline import Pipeline
from tests.sshd import Sshd
from tests.support import ROOT, run

pytestmark = [pytest.mark.root, pytest.mark.fault]

HOOK = "/usr/local/lib/imagefresh/deploy-hook.sh"
COMPOSE_DIR, DESK, REPOS = "/srv/orchestrator", "/srv/desk", "/srv/repos"
ROTATE = "logrotate --state /var/lib/logrotate-of-this-test"


class Installation:
    """A host without anything of ours, whoever installs it, and the pipeline behind ssh."""

    def __init__(self, pipeline: Pipeline, machine: Machine, desk: Path) -> None:
        self.pipeline = pipeline
        self.machine = machine
        self.desk = desk
        text = (ROOT / "docs" / "install-host.md").read_text()
        chapters = re.split(r"(?m)^## (\d)\. .*$", text)[1:]
        self.blocks = {
            int(number): [self._with_own_names(block) for block in re.findall(r"```sh\n(.*?)```", chapter, re.DOTALL)]
            for number, chapter in zip(chapters[::2], chapters[1::2], strict=True)
        }

    def _with_own_names(self, text: str) -> str:
        """Do what the reader does: put one's own names in place of the example's."""
        copy = self.pipeline.copy
        names = {"shop/shop": f"{copy.project}/orchestrator", "shop-shop": copy.prod_image, "8500": str(copy.prod_port)}
        for theirs, ours in {**names, "shop": "orchestrator"}.items():
            text = text.replace(theirs, ours)
        return text

    def follow(self, chapter: int, *, user: str = "root") -> str:
        """Run every command of one chapter; return what they said."""
        said = ""
        for block in self.blocks[chapter]:
            done = self.machine.run(block, user=user, cwd=DESK)
            assert done.returncode == 0, f"{block}{done.stdout}{done.stderr}"
            said += done.stdout
        return said

    def come_with(self, sshd: Sshd, key: str) -> None:
        """Let the pipeline log in with one of the keys from now on."""
        sshd.user_key = self.desk / key
        sshd.write_config()
        self.pipeline.sshd = sshd
        self.pipeline.configure(
            host={"hook": HOOK, "repo_path": COMPOSE_DIR, "restricted": True},
            host_repos_dir="-",
            signing={"key": str(self.desk / "verdict_key"), "principal": "gate@ci"},
        )

    def read(self, command: str) -> Any:
        """Return the JSON document of a command of the pipeline."""
        argv = [*self.pipeline.imagefresh_command(command, "--repo", "orchestrator", "--json")]
        return json.loads(run(argv, cwd=self.pipeline.folder, env=self.pipeline.environment).stdout)

    def fingerprint(self, key: str) -> str:
        return run(["ssh-keygen", "-lf", self.desk / f"{key}.pub"]).stdout.split()[1]


@pytest.fixture
def installation(pipeline: Pipeline, tmp_path: Path) -> Iterator[Installation]:
    """Production and staging run something older, and nothing is installed yet."""
    pipeline.deploy()
    desk = tmp_path / "desk"
    desk.mkdir()
    (desk / "hooks").symlink_to(ROOT / "hooks")
    pipeline.configure(host={"hook": HOOK, "repo_path": COMPOSE_DIR, "ssh": "local"}, repos_dir=REPOS)
    (desk / "imagefresh.toml").write_text((pipeline.folder / "imagefresh.toml").read_text())
    shared = {pipeline.copy.compose_dir: COMPOSE_DIR, desk: DESK, pipeline.copy.repos_dir: REPOS}
    with Machine(pipeline.copy.engine, tmp_path / "machine", shared) as machine:
        yield Installation(pipeline, machine, desk)


@pytest.fixture
def sshd(installation: Installation, tmp_path: Path) -> Iterator[Sshd]:
    """The host's sshd, as strict as it usually is; not started yet: nobody comes in before the end of chapter 5."""
    server = Sshd(tmp_path / "sshd", options=["StrictModes yes", "AuthorizedKeysFile .ssh/authorized_keys"])
    server.user = "imagefresh"
    server.prefix = installation.machine.prefix
    yield server
    server.stop()


def test_every_command_of_the_page_does_what_it_says(installation: Installation, sshd: Sshd) -> None:
    pipeline, machine = installation.pipeline, installation.machine
    for chapter in range(1, 7):
        installation.follow(chapter)
    assert_all_ok(installation.follow(7, user="imagefresh"))

    sshd.start()
    before = pipeline.prod
    revision = pipeline.copy.commit({"src/orchestrator/NEWS": "new"})
    installation.come_with(sshd, "gate_key")
    gate = pipeline.gate()
    assert gate.status == 0, gate.output
    assert pipeline.promote().status != 0
    assert (pipeline.staging, pipeline.prod) == (revision, before)
    assert words_of_doctor(installation) == ["ok", "ok", "ok", "ok", "unknown"]
    installation.come_with(sshd, "promote_key")
    assert words_of_doctor(installation) == ["ok", "ok", "ok", "unknown", "unknown"]
    promoted = pipeline.promote()
    assert promoted.status == 0, promoted.output
    assert pipeline.prod == revision
    assert_all_ok(installation.follow(7, user="imagefresh"))
    found = installation.read("history")
    assert [each["who"] for each in found] == [installation.fingerprint(key) for key in ("gate_key", "promote_key")]

    rotate(installation, found)

    sshd.stop()
    installation.follow(8)
    assert_gone(machine)
    kept = f"label=imagefresh.production={pipeline.copy.project}/orchestrator"
    assert pipeline.copy.engine.docker("container", "ls", "--all", "--quiet", "--filter", kept) == ""
    assert (
        pipeline.copy.engine.docker("image", "ls", "--quiet", f"{pipeline.copy.prod_image}:imagefresh-previous") == ""
    )
    assert pipeline.prod == revision
    assert f"{pipeline.copy.pin}=sha256:" in pipeline.copy.env_file.read_text()


def assert_all_ok(said: str) -> None:
    lines = said.splitlines()
    assert len(lines) > 20, said
    assert [line for line in lines[1:-1] if not line.startswith("  ok ")] == []
    assert lines[-1].endswith(" ok, 0 no, 0 unknown")


def words_of_doctor(installation: Installation) -> list[str]:
    """Return what the doctor says of contract, status, history, self-test and files through a key that is bound."""
    done = installation.pipeline.imagefresh("doctor", "--host", "--repo", "orchestrator")
    assert done.status == 11, done.output
    return [line.split()[0] for line in done.output.splitlines() if line.startswith("  ")]


def rotate(installation: Installation, before: list[dict[str, str]]) -> None:
    """Chapter 6 went by without a word; what it wrote must rotate, and lose nothing that anybody asks for."""
    pipeline, machine = installation.pipeline, installation.machine
    history = f"{COMPOSE_DIR}/.imagefresh/history"
    tried = machine.run("logrotate --debug /etc/logrotate.d/imagefresh")
    assert "error" not in tried.stderr.lower(), tried.stderr
    machine.says(f"{ROTATE} /etc/logrotate.d/imagefresh; test -e {history}; test ! -e {history}.1")
    machine.says(f"{ROTATE} --force /etc/logrotate.d/imagefresh; test ! -e {history}; test -e {history}.1")
    assert installation.read("history") == before
    assert installation.read("status")["orchestrator"]["verified"] is True

    assert pipeline.promote().status == 1  # the verdict is used up
    assert machine.says(f"stat -c '%U %a' {history} {history}.1").split("\n") == ["imagefresh 600"] * 2
    after = installation.read("history")
    assert after[:-1] == before
    assert after[-1]["kind"] == "refused"
    machine.says(f"{ROTATE} --force /etc/logrotate.d/imagefresh")
    assert json.loads(machine.says(f"zcat {history}.2.gz").splitlines()[-1]) == before[-1]


def assert_gone(machine: Machine) -> None:
    """Nothing bears our name any more but the history that was put aside."""
    assert machine.run("getent passwd imagefresh").returncode != 0
    assert machine.run("getent group imagefresh").returncode != 0
    found = machine.says("find /etc /usr/local /var /srv -xdev -name '*imagefresh*' -not -path '/srv/desk*'")
    assert found == "/var/backups/imagefresh"
    assert machine.says("ls /var/backups/imagefresh").split() == ["history.1", "history.2.gz"]
    owners = "/var/backups/imagefresh /var/backups/imagefresh/* /srv/orchestrator /srv/orchestrator/.[!.]*"
    assert set(machine.says(f"stat -c %U {owners}").split()) == {"root"}
