"""Whoever a policy wants to be told: of each outcome, with nothing but the entry, and without a say in it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_imagefresh.core.contract import encode_list
from tests.hook.crash import Crashing
from tests.hook.harness import PROD_ID, STAGING_ID, PretendedHost
from tests.hook.test_operations import told
from tests.hook.test_recovery import COMMIT, interrupt, journal
from tests.support import safe_path

pytestmark = pytest.mark.root  # a policy is root's, and so is the command that it names

LENIENT = {"REQUIRE": "revision image_id", "BREAK_GLASS": "yes"}


class Notified:
    """A host whose policy names a command. `script` is its text; what it was told is in `lines`."""

    def __init__(self, host: PretendedHost, folder: Path) -> None:
        self.host = host
        self.folder = folder / "notified"
        self.folder.mkdir(mode=0o755)
        self.command = self.folder / "command"
        self.script(f"cat >>{self.folder}/lines")
        host.policy(**LENIENT, NOTIFY=str(self.command))

    def script(self, text: str) -> None:
        self.command.write_text(f"#!/bin/bash\n{text}\n")
        self.command.chmod(0o755)

    @property
    def lines(self) -> list[dict[str, Any]]:
        path = self.folder / "lines"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def notified(pretended: PretendedHost, tmp_path: Path) -> Notified:
    return Notified(pretended, tmp_path)


def test_each_outcome_is_told_as_the_history_has_it(notified: Notified) -> None:
    host = notified.host
    host.promote(EXPECTED_REVISION="2" * 40)
    host.promote()
    host.rollback()
    host.freeze()
    host.unfreeze()
    host.break_glass()
    assert [each["cause"] for each in notified.lines] == [
        "revision-mismatch",
        "promoted",
        "restored",
        "frozen",
        "unfrozen",
        "broke-glass",
    ]
    assert notified.lines == told(host.history())


def test_what_only_looks_builds_or_is_wrong_usage_is_told_to_nobody(notified: Notified) -> None:
    host = notified.host
    host.verify()
    host.status()
    host.history()
    host.self_test()
    host.staging()
    host.promote(PROD_PORT="x")
    assert host.recover().verdict == (0, "nothing-open")
    assert notified.lines == []


def test_a_recovery_is_told_by_the_policy_of_the_journals_production(notified: Notified, crashing: Crashing) -> None:
    interrupt(notified.host, crashing, COMMIT)
    notified.host.policy("other", PROD_IMAGE="o", PROD_SERVICE="o", PROD_PORT="2", **LENIENT, NOTIFY="/nowhere/at/all")
    outcome = notified.host.recover()
    assert outcome.verdict == (0, "promoted")
    assert "/nowhere" not in outcome.stderr
    assert [(each["mode"], each["image_id"]) for each in notified.lines] == [("--recover", STAGING_ID)]


def test_a_journal_that_is_none_is_told_by_the_folder(notified: Notified, crashing: Crashing) -> None:
    interrupt(notified.host, crashing, " up ")
    journal(notified.host).write_text("")
    assert notified.host.recover().verdict == (4, "journal-malformed")
    assert [each["cause"] for each in notified.lines] == ["journal-malformed"]


def test_one_policy_of_a_folder_does_not_silence_another(notified: Notified) -> None:
    bad = {"PROD_IMAGE": "a", "PROD_SERVICE": "a", "PROD_PORT": "2", "NOTIFY": "/nowhere/at/all"}
    notified.host.policy("a-bad-one", **LENIENT, **bad)
    outcome = notified.host.freeze()
    assert outcome.verdict == (0, "frozen")
    assert "warning: nobody is notified: /nowhere/at: expected" in outcome.stderr
    assert [each["cause"] for each in notified.lines] == ["frozen"]


def test_it_gets_the_entry_a_path_and_nothing_else(notified: Notified) -> None:
    notified.script(
        f"exec 3>{notified.folder}/seen; env >&3; echo arguments=$# >&3; exec 3>&-\n"
        f"for each in /proc/self/fd/*; do readlink $each; done >{notified.folder}/open\n"
        f"flock --nonblock --conflict-exit-code 7 {notified.host.compose_dir}/.imagefresh/lock true\n"
        f"echo $? >{notified.folder}/held; echo noise; echo noise >&2; cat >>{notified.folder}/lines"
    )
    environment = {"SECRET": "hunter2", "LD_LIBRARY_PATH": "/x", "PATH": "/x"}
    outcome = notified.host.promote(**environment)
    assert outcome.verdict == (0, "promoted")
    assert "noise" not in outcome.stderr
    seen = set((notified.folder / "seen").read_text().split())
    path = f"PATH={notified.host.tools}:{safe_path()}"
    assert seen - {"SHLVL=0", "SHLVL=1", f"PWD={notified.host.compose_dir}", "_=/usr/bin/env"} == {path, "arguments=0"}
    assert ".imagefresh/" not in (notified.folder / "open").read_text()
    assert (notified.folder / "held").read_text() == "7\n", "the hook itself still holds the lock"
    assert len(notified.lines) == 1


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 7", "observed 7"),
        ("kill -KILL $$", "observed 137"),
        ("kill -TERM $$", "observed 143"),
        ("kill -KILL 0", "observed 137"),
        ("exec <&- >&- 2>&-; exit 1", "observed 1"),
        ("no-such-program-anywhere", "observed 127"),
    ],
)
def test_one_that_fails_or_dies_costs_a_warning_and_nothing_else(notified: Notified, script: str, status: str) -> None:
    notified.script(script)
    outcome = notified.host.promote()
    assert outcome.verdict == (0, "promoted")
    assert f"warning: {notified.command}: expected status 0 within 10 s, {status}; " in outcome.stderr
    assert not journal(notified.host).exists()
    assert notified.host.promote(EXPECTED_REVISION="2" * 40).verdict == (1, "revision-mismatch")


def test_one_that_hangs_is_ended_with_all_that_it_started(notified: Notified) -> None:
    notified.script(f"sleep 60 & echo $! >{notified.folder}/child; sleep 60")
    start = time.monotonic()
    outcome = notified.host.promote()
    assert outcome.verdict == (0, "promoted")
    assert "observed 124; " in outcome.stderr
    assert time.monotonic() - start < 55, "it waited for the end of the command"
    child = int((notified.folder / "child").read_text())
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_one_that_goes_on_in_the_background_keeps_no_lock(notified: Notified) -> None:
    notified.script(f"setsid sleep 60 & echo $! >{notified.folder}/child")
    assert notified.host.promote().verdict == (0, "promoted")
    try:
        start = time.monotonic()
        assert notified.host.unfreeze().verdict == (0, "unfrozen")
        assert time.monotonic() - start < 55
    finally:
        os.kill(int((notified.folder / "child").read_text()), 9)


@pytest.mark.parametrize(
    ("spoil", "observed"),
    [
        (lambda command: os.chown(command, 1, 0), "regular file, 1, 755"),
        (lambda command: command.chmod(0o775), "regular file, 0, 775"),
        (lambda command: command.chmod(0o644), "observed none"),
        (lambda command: command.unlink(), "observed nothing"),
        (lambda command: command.rename(command.with_name("x")) and command.symlink_to("x"), "observed symbolic link"),
        (lambda command: command.parent.chmod(0o777), "directory, 0, 777"),
        (lambda command: os.chown(command.parent, 1, 0), "directory, 1, 755"),
    ],
)
def test_a_command_that_others_have_a_say_in_is_refused_before_anything_changes(
    notified: Notified, spoil: Callable[[Path], object], observed: str
) -> None:
    host = notified.host
    host.promote()
    host.set(calls=[])
    ran = len(notified.lines)
    spoil(notified.command)
    for outcome in (host.verify(), host.promote(), host.rollback(), host.break_glass()):
        assert outcome.verdict == (1, "notify-unsafe")
        assert observed in outcome.reason
    assert host.changes() == []
    for outcome in (host.freeze(), host.unfreeze()):
        assert outcome.status == 0
        assert "warning: nobody is notified: " in outcome.stderr
    assert len(notified.lines) == ran, "it must not run"


def test_a_bad_command_does_not_hold_up_a_recovery(notified: Notified, crashing: Crashing) -> None:
    interrupt(notified.host, crashing, " up ")
    notified.command.chmod(0o777)
    outcome = notified.host.recover()
    assert outcome.verdict == (0, "undone")
    assert "warning: nobody is notified: " in outcome.stderr
    assert notified.host.production == [PROD_ID]
    assert notified.lines == []


@pytest.mark.parametrize("value", ["notify", "", "/bin/tell me\tnow", "../x"])
def test_a_policy_names_an_absolute_path(notified: Notified, value: str) -> None:
    notified.host.policy(**LENIENT, NOTIFY=value)
    assert notified.host.promote().verdict == (1, "policy-invalid")


def test_secrets_in_a_reason_are_masked_and_nothing_of_it_is_executed(notified: Notified) -> None:
    mark = notified.folder / "executed"
    notified.host.break_glass(REASON=encode_list([f'$(touch {mark}) "; touch {mark} password=hunter2']))
    (line,) = notified.lines
    assert "password=***" in line["reason"]
    assert "hunter2" not in json.dumps(line)
    assert not mark.exists()


def test_it_runs_once_after_the_history_and_the_journal_and_before_the_report(notified: Notified) -> None:
    state, folder = notified.host.compose_dir / ".imagefresh", notified.folder
    notified.script(f"cat {state}/history {folder}/report >>{folder}/seen; ls {state} >{folder}/state")
    with (folder / "report").open("wb") as report:
        argv = [str(notified.host.hook.path), "--promote"]
        subprocess.run(argv, env=notified.host.promotion_variables(), stdout=report, timeout=120, check=True)
    assert json.loads((folder / "report").read_text())["cause"] == "promoted"
    assert (folder / "seen").read_text() == (state / "history").read_text()
    assert "journal" not in (folder / "state").read_text().split()
