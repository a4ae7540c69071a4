"""The lease as its caller holds it: heartbeats, questions, loss; the installed hook, on this machine and over ssh."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_imagefresh.adapters import hook as hook_adapter
from pytest_imagefresh.adapters.dialogue import Dialogue
from pytest_imagefresh.adapters.hook import InstalledHook, Lease, bundled_hook
from pytest_imagefresh.adapters.host import Host, LocalHost, connect
from pytest_imagefresh.core import settings
from pytest_imagefresh.core.errors import EvidenceError, Refused
from tests.hook.harness import RUN_ID, install
from tests.sshd import Sshd
from tests.support import ROOT, await_true

OTHER_RUN = "20270102T030405Z-00000000"
BOUND = settings.Timeouts(inspect=20)
GRANT = '{"lease":"' + "1" * 64 + '","held":0.5}'


@pytest.fixture(params=["local", "ssh"])
def host(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """This machine as the Docker host, once as itself and once behind ssh."""
    if request.param == "local":
        yield LocalHost(settings.Host())
        return
    with Sshd(tmp_path / "sshd") as sshd:
        monkeypatch.setenv("HOME", str(sshd.home))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        over = connect(settings.Host(ssh=sshd.target, known_hosts=str(sshd.known_hosts)), BOUND)
        yield over
        over.close()


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """What `--lease` is told of a compose folder."""
    (tmp_path / "compose").mkdir()
    return {"REPO": "shop", "RUN_ID": RUN_ID, "COMPOSE_DIR": str(tmp_path / "compose")}


@pytest.fixture
def installed(host: Host, tmp_path: Path) -> InstalledHook:
    """The hook, installed on the host."""
    return InstalledHook(host, str(install(tmp_path / "hook").path), ours="/ours/deploy-hook.sh")


def write_script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/bash -p\n{text}\n")
    path.chmod(0o755)
    return str(path)


def holder(folder: str) -> int:
    """Return the process that holds the lease of a compose folder."""
    found = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _has_open(entry, f"{folder}/.imagefresh/lease")
    ]
    return min(found)


def _has_open(entry: Path, path: str) -> bool:
    try:
        return path in {os.readlink(each) for each in (entry / "fd").iterdir()}
    except OSError:
        return False


# --- a real hook ------------------------------------------------------------------------------------------------------


def test_a_lease_is_granted_answered_for_and_given_back(installed: InstalledHook, variables: dict[str, str]) -> None:
    lease = installed.lease(variables, patience=60)
    lease.await_grant()
    assert len(lease.token) == 64
    tenure = lease.tenure(timeout=20)
    assert 0 <= tenure.needed <= tenure.held + 1
    lease.close()
    lease.close()
    again = installed.lease({**variables, "RUN_ID": OTHER_RUN}, patience=60)
    again.await_grant()
    assert len(again.token) == 64
    again.close()


def test_a_second_run_hears_who_holds_it_and_gets_it_next(installed: InstalledHook, variables: dict[str, str]) -> None:
    first = installed.lease(variables, patience=60)
    first.await_grant()
    second = installed.lease({**variables, "RUN_ID": OTHER_RUN}, patience=60)
    heard: list[str] = []

    def on_line(line: str) -> None:
        heard.append(line)
        first.close()

    second.await_grant(on_line=on_line)
    assert heard[0].startswith(f"imagefresh: step: another run holds the lock: {RUN_ID} --lease since 2")
    second.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_holder_that_is_gone_is_a_lost_lease(
    installed: InstalledHook, variables: dict[str, str], number: signal.Signals
) -> None:
    lease = installed.lease(variables, patience=60)
    lease.await_grant()
    os.kill(holder(variables["COMPOSE_DIR"]), number)
    with pytest.raises(EvidenceError, match="the lease of this run was lost"):
        lease.tenure(timeout=20)
    assert await_true(lambda: _is_lost(lease))
    lease.close()


def _is_lost(lease: Lease) -> bool:
    try:
        return not lease.token
    except EvidenceError:
        return True


def test_a_holder_that_stopped_is_not_taken_for_one_that_holds(
    installed: InstalledHook, variables: dict[str, str]
) -> None:
    lease = installed.lease(variables, patience=60)
    lease.await_grant()
    pid = holder(variables["COMPOSE_DIR"])
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(EvidenceError, match=r"was lost: expected an answer within 0\.3 s"):
            lease.tenure(timeout=0.3)
    finally:
        os.kill(pid, signal.SIGCONT)
        lease.close()


def test_a_call_that_goes_astray_ends_the_lease_and_the_call(
    installed: InstalledHook, host: Host, variables: dict[str, str], tmp_path: Path
) -> None:
    lease = installed.lease(variables, patience=60)
    lease.await_grant()
    script = write_script(tmp_path / "slow", "sleep 60")
    with pytest.raises(EvidenceError, match="was expected to end within 1 s"):
        InstalledHook(host, script).call("--verify", variables, timeout=1, lease=lease)
    with pytest.raises(EvidenceError, match="it was given up"):
        _ = lease.token
    again = installed.lease({**variables, "RUN_ID": OTHER_RUN}, patience=60)
    again.await_grant()
    again.close()


def test_a_connection_that_breaks_frees_the_lock(
    tmp_path: Path, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(install(tmp_path / "hook").path)
    with Sshd(tmp_path / "sshd") as sshd:
        monkeypatch.setenv("HOME", str(sshd.home))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        over = connect(settings.Host(ssh=sshd.target, known_hosts=str(sshd.known_hosts)), BOUND)
        lease = InstalledHook(over, path).lease(variables, patience=60)
        lease.await_grant()
        sshd.kill_sessions()
        following = InstalledHook(LocalHost(settings.Host()), path).lease(
            {**variables, "RUN_ID": OTHER_RUN}, patience=60
        )
        following.await_grant()
        assert await_true(lambda: _is_lost(lease))
        following.close()
        lease.close()
        over.close()


# --- heartbeats -------------------------------------------------------------------------------------------------------


class Listener:
    """A program in memory: grants at once, and keeps what is said to it."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self._ended = threading.Event()
        self._output = [f"{GRANT}\n".encode()]

    def read_stdout(self) -> bytes:
        return self._output.pop() if self._output else self._wait()

    def read_stderr(self) -> bytes:
        return self._wait()

    def _wait(self) -> bytes:
        self._ended.wait()
        return b""

    def write(self, data: bytes) -> None:
        self.said.append(data)

    def hang_up(self) -> None:
        self._ended.set()

    def wait(self, seconds: float) -> int | None:
        return 0

    def end(self) -> None:
        self._ended.set()


def lease_on(listener: Listener, patience: float) -> Lease:
    def report(status: int | None, lines: list[str]) -> None:
        raise AssertionError(f"not expected to end: {status} {lines}")

    lease = Lease(Dialogue(listener), report, patience=patience)  # type: ignore[arg-type]
    lease.await_grant()
    return lease


def test_a_session_that_hangs_sends_no_heartbeat_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_adapter, "HEARTBEAT_SECONDS", 0.05)
    listener = Listener()
    lease = lease_on(listener, patience=0.5)
    assert await_true(lambda: len(listener.said) >= 3)
    lease.keep()
    time.sleep(1.5)
    count = len(listener.said)
    time.sleep(0.5)
    assert len(listener.said) == count
    lease.close()


def test_heartbeats_end_with_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_adapter, "HEARTBEAT_SECONDS", 0.05)
    listener = Listener()
    lease = lease_on(listener, patience=60)
    lease.close()
    assert listener.said[-1] == b"release\n"
    time.sleep(0.3)
    assert listener.said[-1] == b"release\n"
    assert not [each for each in threading.enumerate() if each.name == "imagefresh-lease"]


def test_no_lease_is_used_before_it_is_granted() -> None:
    def report(status: int | None, lines: list[str]) -> None:
        raise AssertionError(f"not expected to end: {status} {lines}")

    lease = Lease(Dialogue(Listener()), report, patience=60)  # type: ignore[arg-type]
    with pytest.raises(EvidenceError, match="lost"):
        _ = lease.token
    lease.close()


# --- a hook that is something else ------------------------------------------------------------------------------------

OLD = """
printf '{"mode":"","ok":false,"kind":"usage","cause":"mode-unknown","reason":"mode: expected"}\\n'
exit 2
"""


@pytest.mark.parametrize("mode", ["--lease", "--self-test"])
def test_a_hook_that_does_not_know_the_mode_is_older_than_the_plugin(host: Host, tmp_path: Path, mode: str) -> None:
    hook = InstalledHook(host, write_script(tmp_path / "old", OLD), ours="/ours/deploy-hook.sh")
    with pytest.raises(Refused, match=f"does not know {mode}: it is older than this plugin; install /ours/deploy-hook"):
        hook.lease({}, patience=60).await_grant() if mode == "--lease" else hook.call(mode, {}, timeout=20)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("exit 0", EvidenceError, "printed 0 lines"),
        ("echo nonsense; exit 0", EvidenceError, "printed no valid report"),
        ("kill -KILL $$", EvidenceError, "brought no exit status|ended with -9"),
        ("exit 127", EvidenceError, "no runnable hook at"),
        ('echo \'{"lease":"short","held":1}\'', EvidenceError, "printed no valid report"),
    ],
    ids=str,
)
def test_nonsense_grants_nothing(host: Host, tmp_path: Path, text: str, kind: type[Exception], words: str) -> None:
    hook = InstalledHook(host, write_script(tmp_path / "other", text))
    with pytest.raises(kind, match=words):
        hook.lease({}, patience=60).await_grant()


def test_an_answer_of_another_lease_is_none(host: Host, tmp_path: Path) -> None:
    other = GRANT.replace("1" * 64, "2" * 64)
    script = write_script(tmp_path / "other", f"echo '{GRANT}'; read -r word; echo '{other}'; cat")
    lease = InstalledHook(host, script).lease({}, patience=60)
    lease.await_grant()
    with pytest.raises(EvidenceError, match="its holder answers"):
        lease.tenure(timeout=20)
    lease.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("0", "it is older than this plugin, or no deploy hook: install /ours/deploy-hook.sh there"),
        ("", "it is older than this plugin, or no deploy hook: install"),
        ("one", "it is older than this plugin, or no deploy hook: install"),
        ("99", "it is newer than this plugin: update pytest-imagefresh here"),
    ],
)
def test_another_contract_is_refused_with_what_to_do(tmp_path: Path, answer: str, words: str) -> None:
    script = write_script(tmp_path / "hook", f"echo {answer}")
    with pytest.raises(Refused, match=words):
        InstalledHook(LocalHost(settings.Host()), script, ours="/ours/deploy-hook.sh").check_contract()


# --- a host with a policy ---------------------------------------------------------------------------------------------


def test_a_host_with_a_policy_takes_no_bundled_hook(host: Host, tmp_path: Path) -> None:
    script = ROOT / "hooks" / "deploy-hook.sh"
    (tmp_path / "policy").mkdir()
    with (
        pytest.raises(Refused, match=r'has a policy in .*/policy, which host\.hook = "bundled" would pass by'),
        bundled_hook(host, script, settings.Host(), timeout=20, policy=str(tmp_path / "policy")),
    ):
        raise AssertionError("it was sent")
    with bundled_hook(host, script, settings.Host(), timeout=20, policy=str(tmp_path / "none")) as path:
        assert Path(path).exists()
