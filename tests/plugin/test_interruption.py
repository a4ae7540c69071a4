"""A session that is ended from outside leaves no process, no verdict, and a word about staging."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pytest_imagefresh.core.contract import VERSION
from tests.gate_folder import Ended, GateFolder
from tests.support import ROOT

REAL_HOOK = """
import pytest
from pytest_imagefresh.plugin import GATE


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    gate = session.config.stash.get(GATE, None)
    if gate is not None and gate.targets:
        del gate.run.hook, gate.run.host
"""

GRANT = json.dumps({"lease": "1" * 64, "held": 0.0})
HALF = "INTERRUPTED: shop: staging may be half rebuilt; run the gate again"
NOTHING = "INTERRUPTED: no rebuild was under way; run the gate again"


class Interrupted:
    """A gate folder whose hook is a real script that never comes to its end."""

    def __init__(self, folder: GateFolder, on_term: str) -> None:
        self.folder = folder
        self.pids = folder.path / "pids"
        hook = folder.path / "hook.sh"
        hook.write_text(
            "#!/bin/bash\n"
            f"if [[ $1 == --contract ]]; then echo {VERSION}; exit; fi\n"
            f"if [[ $1 == --lease ]]; then echo '{GRANT}'; cat >/dev/null; exit; fi\n"
            f"trap '{on_term}' TERM\n"
            "sleep 300 &\n"
            f"echo $$ $! >{self.pids}\n"
            "echo 'imagefresh: step: building shop' >&2\n"
            "while true; do wait; done\n"
        )
        hook.chmod(0o755)
        (folder.path / "real_hook.py").write_text(REAL_HOOK)
        settings = folder.path / "imagefresh.toml"
        settings.write_text(settings.read_text() + f'hook = "{hook}"\n')

    def run(self, signals: list[signal.Signals], *options: str) -> Ended:
        """Run the gate, send the session these signals while the hook works, and return how it ended."""
        given = ["--rootdir=.", "--repo", "shop", "--branch", "work", "-p", "real_hook", "-p", "no:faulthandler"]
        argv, environment = self.folder.command(str(ROOT / "gates"), *given, *options)
        process = subprocess.Popen(
            argv,
            cwd=self.folder.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output = self._until_the_hook_works(process)
            for number in signals:
                process.send_signal(number)
                time.sleep(0.3)
            output += process.communicate(timeout=60)[0]
        finally:
            process.kill()
            process.wait()
        return Ended(process.returncode, output)

    def _until_the_hook_works(self, process: subprocess.Popen[str]) -> str:
        """Return what the session said until it had heard of the hook's first step."""
        said = ""
        while "building shop" not in said:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, f"the session ended early: {said}"
            said += line
        return said

    def left(self) -> list[int]:
        """Return which processes of the hook still live, and end them."""
        found = [pid for pid in map(int, self.pids.read_text().split()) if lives(pid)]
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return found

    def record(self) -> dict[str, object]:
        """Return the record of the run."""
        found: dict[str, object] = json.loads(
            next(self.folder.path.glob(".imagefresh/shop/*/shop/chain.json")).read_text()
        )
        return found


def lives(pid: int) -> bool:
    """Whether a process runs: one that has ended and that nobody reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("signals", "on_term"),
    [
        ([signal.SIGTERM], "exit 1"),
        ([signal.SIGINT], "exit 1"),
        ([signal.SIGHUP], "exit 1"),
        ([signal.SIGTERM], ""),
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGHUP], ""),
    ],
    ids=["TERM", "INT", "HUP", "TERM and a hook that ignores it", "signals while it tidies up"],
)
def test_an_interrupted_session_ends_the_hook_and_says_so(
    gate_folder: GateFolder, signals: list[signal.Signals], on_term: str
) -> None:
    interrupted = Interrupted(gate_folder, on_term)
    ended = interrupted.run(signals, "--junitxml=gate.xml")
    assert interrupted.left() == [], ended
    assert ended.status == 2, ended
    assert ended.says(f"^{HALF}$"), ended
    assert ended.says(r"building shop  \(\d+\.\d s, broken off\)$"), ended
    assert interrupted.record()["complete"] is False


LOST = """
from pytest_imagefresh.progress import Follower


def leave(self, kind, error, trace):
    if kind is not None:
        raise RuntimeError("something else went wrong")


Follower.__exit__ = leave
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_an_error_in_the_tidying_up_does_not_swallow_an_interruption(
    gate_folder: GateFolder, number: signal.Signals
) -> None:
    interrupted = Interrupted(gate_folder, "exit 1")
    (gate_folder.path / "lost.py").write_text(LOST)
    ended = interrupted.run([number], "-p", "lost")
    assert interrupted.left() == [], ended
    assert ended.status == 2, ended
    assert ended.says("RuntimeError: something else went wrong"), ended
    assert ended.says(f"^{HALF}$"), ended


def test_an_interrupted_session_with_workers_ends_the_hook_and_says_so(gate_folder: GateFolder) -> None:
    interrupted = Interrupted(gate_folder, "exit 1")
    ended = interrupted.run([signal.SIGTERM], "-n", "1")
    assert interrupted.left() == [], ended
    assert ended.status == 2, ended
    assert ended.says(f"^{HALF}$"), ended
    assert interrupted.record()["complete"] is False


def test_an_interruption_before_the_rebuild_says_that_nothing_happened(gate_folder: GateFolder) -> None:
    (gate_folder.path / "early.py").write_text("def pytest_runtestloop(): raise KeyboardInterrupt\n")
    ended = gate_folder.gate("-p", "early")
    assert ended.status == 2, ended
    assert ended.says(f"^{NOTHING}$"), ended


def test_an_interruption_after_the_rebuild_says_that_staging_is_whole(gate_folder: GateFolder) -> None:
    (gate_folder.path / "late.py").write_text(
        "def pytest_runtest_setup(item):\n    if 'production' in item.name: raise KeyboardInterrupt\n"
    )
    ended = gate_folder.gate("-p", "late")
    assert ended.status == 2, ended
    assert ended.says(f"^{NOTHING}$"), ended


def test_an_early_end_of_pytests_own_is_no_interruption(gate_folder: GateFolder) -> None:
    (gate_folder.path / "enough.py").write_text("def pytest_runtest_setup(item): item.session.shouldstop = 'enough'\n")
    ended = gate_folder.gate("-p", "enough")
    assert ended.status == 2, ended
    assert "INTERRUPTED: " not in ended.output


def test_handlers_are_installed_only_where_the_signal_would_kill_and_are_taken_back(gate_folder: GateFolder) -> None:
    (gate_folder.path / "test_handlers.py").write_text(
        "import signal\n"
        "from pytest_imagefresh.interruption import Signals\n"
        "class Config:\n"
        "    def __init__(self): self.cleanups = []\n"
        "    def add_cleanup(self, one): self.cleanups.append(one)\n"
        "def test_it():\n"
        "    signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "    config = Config()\n"
        "    signals = Signals()\n"
        "    signals.handle(config.add_cleanup)\n"
        "    assert signal.getsignal(signal.SIGTERM) is signals\n"
        "    assert signal.getsignal(signal.SIGINT) is signals\n"
        "    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN\n"
        "    for one in config.cleanups: one()\n"
        "    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
        "    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    ended = gate_folder.pytest("test_handlers.py")
    assert ended.status == 0, ended


def test_without_repo_no_handler_is_installed(gate_folder: GateFolder) -> None:
    (gate_folder.path / "test_handlers.py").write_text(
        "import signal\n"
        "def test_it():\n"
        "    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
        "    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL\n"
    )
    ended = gate_folder.pytest("test_handlers.py")
    assert ended.status == 0, ended
