"""`--lease`: one run at a time, for as long as its caller lives and speaks, and its own modes pass through."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hook.harness import RUN_ID, Hook, Outcome, PretendedHost, changed

OTHER_RUN = "20270102T030405Z-00000000"
SECONDS = 30.0
START = Callable[..., "Mode"]


class Mode:
    """One running mode of the hook, as its caller sees it."""

    def __init__(self, hook: Hook, mode: str, variables: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [str(hook.path), mode],
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def say(self, word: str = "") -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Return the next line of standard output."""
        assert self.process.stdout
        line: dict[str, Any] = json.loads(self.process.stdout.readline())
        return line

    def ends(self) -> Outcome:
        """Hang up, and return how the mode ended."""
        stdout, stderr = self.process.communicate(timeout=SECONDS)
        return Outcome.of(subprocess.CompletedProcess([], self.process.returncode, stdout, stderr))

    def told(self, part: str) -> str:
        """Return the next line of standard error that has this in it."""
        assert self.process.stderr
        for line in self.process.stderr:
            if part in line.decode():
                return line.decode()
        raise AssertionError(f"the mode ended without a word of {part!r}")


@pytest.fixture
def start(pretended: PretendedHost) -> Iterator[START]:
    """A function that starts a mode; what still runs at the end of the test is ended."""
    modes = []

    def run(mode: str, variables: dict[str, str] | None = None, **changes: str | None) -> Mode:
        known = lease_variables(pretended) if variables is None else variables
        modes.append(Mode(pretended.hook, mode, changed(known, changes)))
        return modes[-1]

    yield run
    for mode in modes:
        mode.process.kill()
        mode.process.communicate()


def lease_variables(host: PretendedHost) -> dict[str, str]:
    return {"REPO": "shop", "RUN_ID": RUN_ID, "COMPOSE_DIR": str(host.compose_dir)}


def shorten(host: PretendedHost, **constants: int) -> None:
    """Set constants of the installed hook to a second or two."""
    text = host.hook.path.read_text()
    for name, value in constants.items():
        [before] = {word for word in text.split() if word.startswith(f"{name}=") and word[-1].isdigit()}
        text = text.replace(before, f"{name}={value}")
    host.hook.path.write_text(text)


def await_call(host: PretendedHost, part: str) -> None:
    give_up = time.monotonic() + SECONDS
    while not any(part in call for call in host.calls):
        assert time.monotonic() < give_up
        time.sleep(0.02)


def is_free(host: PretendedHost, name: str = "lock") -> bool:
    with (host.compose_dir / ".imagefresh" / name).open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


# --- holding ----------------------------------------------------------------------------------------------------------


def test_it_is_held_until_it_is_given_back(pretended: PretendedHost, start: START) -> None:
    lease = start("--lease")
    first = lease.answer()
    assert set(first) == {"lease", "held"}
    assert len(bytes.fromhex(first["lease"])) == 32
    assert not is_free(pretended)
    for word in ("", "anything", "held"):
        lease.say(word)
    again = lease.answer()
    assert again["lease"] == first["lease"]
    assert again["held"] >= first["held"]
    lease.say("release")
    assert lease.ends().verdict == (0, "released")
    assert is_free(pretended)
    assert pretended.calls == []


def test_two_tokens_are_never_alike_and_none_is_kept(pretended: PretendedHost, start: START) -> None:
    tokens = []
    for _ in range(2):
        lease = start("--lease")
        tokens.append(lease.answer()["lease"])
        kept = (pretended.compose_dir / ".imagefresh/lease").read_text()
        assert kept == f"{RUN_ID} {hashlib.sha256(tokens[-1].encode()).hexdigest()}\n"
        lease.say("release")
        lease.ends()
    assert tokens[0] != tokens[1]


def test_the_files_of_the_locks_are_never_replaced(pretended: PretendedHost, start: START) -> None:
    def inodes() -> dict[str, int]:
        state = pretended.compose_dir / ".imagefresh"
        return {name: (state / name).stat().st_ino for name in ("lock", "turn", "lease")}

    lease = start("--lease")
    pretended.staging(LEASE=lease.answer()["lease"])
    before = inodes()
    lease.ends()
    lease = start("--lease", RUN_ID=OTHER_RUN)
    pretended.promote(RUN_ID=OTHER_RUN, LEASE=lease.answer()["lease"])
    assert inodes() == before


def test_a_caller_who_hangs_up_frees_it(pretended: PretendedHost, start: START) -> None:
    lease = start("--lease")
    lease.answer()
    assert lease.ends().verdict == (11, "lease-lost")
    assert is_free(pretended)


def test_a_caller_without_standard_input_gets_none(pretended: PretendedHost) -> None:
    argv = ["bash", "-c", 'exec "$0" --lease <&-', str(pretended.hook.path)]
    done = subprocess.run(argv, env=lease_variables(pretended), capture_output=True, check=False, timeout=SECONDS)
    assert done.returncode == 11
    assert is_free(pretended)


def test_a_caller_who_falls_silent_frees_it(pretended: PretendedHost, start: START) -> None:
    shorten(pretended, SILENCE=1)
    lease = start("--lease")
    lease.answer()
    for _ in range(8):
        time.sleep(0.25)
        lease.say()
    assert lease.process.poll() is None
    assert lease.told("observed none for 1 s")
    assert lease.process.wait(SECONDS) == 11
    assert is_free(pretended)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_a_lease_that_is_ended_frees_it_at_once(pretended: PretendedHost, start: START, number: signal.Signals) -> None:
    lease = start("--lease")
    lease.answer()
    lease.process.send_signal(number)
    assert lease.process.wait(SECONDS) == (-9 if number == signal.SIGKILL else 11)
    assert is_free(pretended)


# --- waiting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["--lease", "--build-staging", "--promote"])
def test_another_run_waits_and_is_told_who_holds_it(pretended: PretendedHost, start: START, mode: str) -> None:
    first = start("--lease")
    first.answer()
    variables = {"--lease": None, "--build-staging": pretended.staging_variables()}
    second = start(mode, variables.get(mode, pretended.promotion_variables()), RUN_ID=OTHER_RUN)
    assert f"another run holds the lock: {RUN_ID} --lease since 2" in second.told("step: another")
    assert pretended.changes() == []
    first.say("release")
    assert first.ends().status == 0
    if mode == "--lease":
        assert second.answer()["lease"]
        second.say("release")
    assert second.ends().status == 0


@pytest.mark.parametrize("name", ["some run", ""])
def test_a_holder_that_has_only_just_come_is_named_a_little_later(
    pretended: PretendedHost, start: START, name: str
) -> None:
    lock = pretended.compose_dir / ".imagefresh/lock"
    lock.parent.mkdir(mode=0o700)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        second = start("--lease")
        time.sleep(0.5)
        file.write(name)
        file.flush()
        assert f"another run holds the lock: {name or 'it does not say which one'};" in second.told("step: another")
    assert second.answer()["lease"]
    second.say("release")
    assert second.ends().status == 0


def test_a_lock_that_stays_taken_is_no_decision(pretended: PretendedHost, start: START) -> None:
    shorten(pretended, BUILD_WAIT=1)
    first = start("--lease")
    first.answer()
    second = start("--lease", RUN_ID=OTHER_RUN)
    outcome = second.ends() if second.process.wait(SECONDS) else None
    assert outcome
    assert outcome.verdict == (11, "locked")
    assert f"another run holds the lock: {RUN_ID} --lease since 2" in outcome.reason


def test_a_caller_who_hangs_up_while_waiting_waits_no_longer(pretended: PretendedHost, start: START) -> None:
    shorten(pretended, SLICE=1)
    first = start("--lease")
    first.answer()
    second = start("--lease", RUN_ID=OTHER_RUN)
    second.told("another run holds the lock")
    assert second.ends().verdict == (11, "lease-lost")
    first.say("held")
    assert first.answer()["lease"]


# --- passing through --------------------------------------------------------------------------------------------------


def test_its_own_modes_pass_through(pretended: PretendedHost, start: START) -> None:
    lease = start("--lease")
    token = lease.answer()["lease"]
    assert pretended.staging(LEASE=token).verdict == (0, "built")
    pretended.set(images={**pretended.state["images"], "shop-shop-staging:latest": "sha256:" + "5" * 64})
    for call, verdict in (
        (pretended.verify, "verified"),
        (pretended.self_test, "self-tested"),
        (pretended.promote, "promoted"),
    ):
        lease.say("held")
        assert lease.answer()["lease"] == token
        assert call(LEASE=token).verdict == (0, verdict)
    assert not is_free(pretended)
    assert is_free(pretended, "turn")
    lease.say("release")
    assert lease.ends().verdict == (0, "released")


MODES = ["--build-staging", "--verify", "--promote", "--self-test"]


def variables_of(host: PretendedHost, mode: str) -> dict[str, str]:
    return host.staging_variables() if mode == "--build-staging" else host.promotion_variables()


@pytest.mark.parametrize("mode", MODES)
def test_no_other_token_passes(pretended: PretendedHost, start: START, mode: str) -> None:
    lease = start("--lease")
    token = lease.answer()["lease"]
    variables = variables_of(pretended, mode)
    digest = (pretended.compose_dir / ".imagefresh/lease").read_text().split()[1]
    for changes in (
        {"LEASE": "0" * 64},
        {"LEASE": digest},
        {"LEASE": token, "RUN_ID": OTHER_RUN},
        {"LEASE": token[:-1] + ("0" if token[-1] != "0" else "1")},
    ):
        outcome = pretended.hook.call(mode, {**variables, **changes})
        assert outcome.verdict == (11, "lease-lost"), changes
    assert pretended.changes() == []
    lease.say("held")
    assert lease.answer()["lease"] == token


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", ["released", "killed", "replaced", "never"])
def test_the_token_of_a_lease_that_ended_does_not_pass(
    pretended: PretendedHost, start: START, mode: str, end: str
) -> None:
    token = "1" * 64
    if end != "never":
        lease = start("--lease")
        token = lease.answer()["lease"]
        lease.say("release" if end != "killed" else "")
        if end == "killed":
            lease.process.kill()
        lease.process.wait(SECONDS)
    if end == "replaced":
        start("--lease", RUN_ID=OTHER_RUN).answer()
    outcome = pretended.hook.call(mode, {**variables_of(pretended, mode), "LEASE": token})
    assert outcome.verdict == (11, "lease-lost")
    assert pretended.changes() == []


def test_two_modes_of_one_run_work_in_turn(pretended: PretendedHost, start: START) -> None:
    pretended.fail("docker build --iidfile", sleep=1.5, status=1)
    token = start("--lease").answer()["lease"]
    first = start("--build-staging", pretended.staging_variables(), LEASE=token)
    await_call(pretended, "docker build --iidfile")
    second = start("--promote", pretended.promotion_variables(), LEASE=token)
    assert f"a mode that was let through still works: {RUN_ID} --build-staging since 2" in second.told("still works")
    assert first.process.poll() is not None or pretended.changes() == pretended.changes()[:1]
    assert first.ends().verdict == (1, "build-failed")
    assert second.ends().verdict == (0, "promoted")


# --- losing it --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["hung up", "killed"])
@pytest.mark.parametrize("call", ["docker build --iidfile", " up ", "container exec", " shop-shop-staging"])
def test_the_end_of_the_lease_ends_the_work(pretended: PretendedHost, start: START, end: str, call: str) -> None:
    pretended.fail(call, sleep=60)
    lease = start("--lease")
    mode = start("--build-staging", pretended.staging_variables(), LEASE=lease.answer()["lease"])
    await_call(pretended, call)
    lease.process.kill() if end == "killed" else lease.ends()
    changes = pretended.changes()
    assert mode.ends().verdict == (11, "lease-lost")
    assert [each for each in pretended.changes()[len(changes) :] if "container restart" not in each] == []
    assert list(pretended.hook.temp_dir.iterdir()) == []
    assert is_free(pretended, "turn")


def test_the_end_of_the_lease_stops_a_promotion_before_production_changes(
    pretended: PretendedHost, start: START
) -> None:
    before = pretended.state["containers"], pretended.state["images"]
    pretended.fail("config --format json", sleep=60)
    lease = start("--lease")
    mode = start("--promote", pretended.promotion_variables(), LEASE=lease.answer()["lease"])
    await_call(pretended, "config --format json")
    lease.process.kill()
    assert mode.ends().verdict == (11, "lease-lost")
    assert (pretended.state["containers"], pretended.state["images"]) == before
    assert pretended.changes() == []


def test_a_watcher_that_is_gone_counts_as_a_lost_lease(pretended: PretendedHost, start: START) -> None:
    pretended.fail("config --format json", sleep=1, status=1, times=1)
    lease = start("--lease")
    mode = start("--build-staging", pretended.staging_variables(), LEASE=lease.answer()["lease"])
    await_call(pretended, "config --format json")
    [watcher] = watchers(mode.process.pid)
    os.kill(watcher, signal.SIGKILL)
    pretended.set(faults=[])
    outcome = mode.ends()
    assert outcome.status in (1, 11)
    assert pretended.changes() == []


def watchers(parent: int) -> list[int]:
    """Return the processes that wait for the end of the lease on behalf of a mode."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat, line = (entry / "stat").read_text(), (entry / "cmdline").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == parent and "--shared" in line:
                found.append(int(entry.name))
    return found


def test_a_swap_of_production_does_not_listen_to_the_lease(pretended: PretendedHost, start: START) -> None:
    pretended.set(answers=["000"] * 8 + ["200"])
    lease = start("--lease")
    mode = start("--promote", pretended.promotion_variables(), LEASE=lease.answer()["lease"])
    await_call(pretended, " up ")
    lease.process.kill()
    lease.process.wait()
    assert mode.ends().verdict == (0, "promoted")


def test_a_next_run_waits_for_a_command_that_outlived_its_mode(pretended: PretendedHost, start: START) -> None:
    pretended.fail(" up ", sleep=2, status=1)
    lease = start("--lease")
    mode = start("--build-staging", pretended.staging_variables(), LEASE=lease.answer()["lease"])
    await_call(pretended, " up ")
    mode.process.kill()
    lease.process.kill()
    lease.process.wait()
    assert is_free(pretended, "lock")
    assert not is_free(pretended, "turn")
    following = start("--lease", RUN_ID=OTHER_RUN)
    assert f"still works: {RUN_ID} --build-staging since 2" in following.told("step: a mode")
    assert following.answer()["lease"]
    assert is_free(pretended, "turn")


def test_a_mode_leaves_no_watcher_behind(pretended: PretendedHost, start: START) -> None:
    token = start("--lease").answer()["lease"]
    assert pretended.staging(LEASE=token).status == 0
    lock = str(pretended.compose_dir / ".imagefresh/lease")
    lines = [path.read_bytes().decode() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in lines if lock in line]
