"""The hook is killed, told to end, or disturbed at each of its commands that change the host."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeOrchestrator
from tests.crash.matrix import MOST, SERVICE, Matrix, ProxiedMatrix, Record, Row
from tests.hook.crash import KILL_HOOK, KILL_SESSION, MOMENTS, Point, send
from tests.hook.harness import Outcome
from tests.hook.proxied import ProxiedHost
from tests.support import run

pytestmark = [pytest.mark.crash, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("mode", ["--promote", "--rollback"])
@pytest.mark.parametrize("victim", ["hook", "session"])
def test_killed(matrix: Matrix, record: Record, mode: str, victim: str) -> None:
    action = KILL_HOOK if victim == "hook" else KILL_SESSION
    matrix.prepare(mode)
    name = f"{mode}, {'pin' if matrix.pinned else 'override'}: {victim} killed"
    record(matrix.points(name, mode, {"killed": action}, MOMENTS if victim == "session" else ("before", "after")))


def test_killed_behind_a_proxy(orchestrator: MakeOrchestrator, record: Record, tmp_path: Path) -> None:
    matrix = ProxiedMatrix(ProxiedHost(orchestrator(), tmp_path / "hook"), tmp_path / "crashing")
    record(matrix.points("--promote behind a proxy: session killed", "--promote", {"killed": KILL_SESSION}, MOMENTS))


@pytest.mark.parametrize("signal", ["TERM", "HUP", "PIPE", "INT"])
@pytest.mark.parametrize("matrix", [True], ids=["pinned"], indirect=True)
def test_told_to_end(matrix: Matrix, record: Record, signal: str) -> None:
    record(matrix.points(f"--promote: SIG{signal}", "--promote", {f"SIG{signal}": send(signal)}, ("during",)))


FOREIGN = ["up --detach", "up --detach --build", "up --detach --pull always", "pull", "restart"]


@pytest.mark.parametrize("words", FOREIGN)
def test_somebody_else_calls_compose(matrix: Matrix, record: Record, words: str) -> None:
    command = f"cd {matrix.copy.compose_dir} && docker compose {words} {SERVICE}\nexit 0\n"
    address = f"export DOCKER_HOST={matrix.host.engine.docker_host} DOCKER_CONFIG={matrix.host.engine.docker_config}\n"
    name = f"--promote, {'pin' if matrix.pinned else 'override'}: a foreign compose {words}"
    record(matrix.points(name, "--promote", {"called": address + command}, ("before",)))


@pytest.mark.parametrize("at", ["before its commit point", "past its commit point"])
def test_a_recovery_that_is_killed(matrix: Matrix, record: Record, at: str) -> None:
    record(interrupted_recoveries(matrix, at))


def interrupted_recoveries(matrix: Matrix, at: str) -> Iterator[Row]:
    """Kill a promotion, and then its recovery at each command; a second recovery must end it well."""
    command = "image tag .*prod-image $" if at.startswith("past") else " up "
    for moment in ("before", "after"):
        for number in range(1, MOST):
            assert matrix.crashing.call("--promote", matrix.variables, Point(command=command, moment=moment)) is None
            outcome = matrix.crashing.call("--recover", matrix.variables_of("--recover"), Point(number, moment))
            if not matrix.crashing.acted:
                break
            seen = matrix.judge(outcome, foreign=number % 2 == 0)
            yield Row(f"--recover {at}", f"killed {moment}", matrix.shown, seen)
            matrix.reset()
        assert number > 1
        matrix.reset()


@pytest.mark.root
@pytest.mark.parametrize("matrix", [True], ids=["pinned"], indirect=True)
@pytest.mark.parametrize("options", ["size=64k", "ro"], ids=["full", "read-only"])
def test_a_state_folder_that_takes_nothing_is_refused_before_production_changes(matrix: Matrix, options: str) -> None:
    before = matrix.host.production()
    with tmpfs(matrix.journal.parent, options):
        outcome = Outcome.of(matrix.host.hook.run("--promote", matrix.variables))
        if options != "ro":
            assert matrix.recover().verdict == (0, "nothing-open")
    assert outcome.verdict == (1, "state-unsafe"), outcome.stderr
    assert matrix.host.production() == before
    matrix.assert_whole()


@pytest.mark.root
@pytest.mark.parametrize("matrix", [True], ids=["pinned"], indirect=True)
def test_a_state_folder_that_gets_full_on_the_way_is_told_loudly_and_stops_nothing(matrix: Matrix) -> None:
    folder = matrix.journal.parent
    with tmpfs(folder, "size=64k", fill=False):
        history = folder / "history"
        history.write_text(f"{history.read_text()}{'x' * (4095 - history.stat().st_size % 4096)}\n")  # no page has room
        fill = f"head -c 1M /dev/zero >{folder}/filled\n"
        outcome = matrix.crashing.call("--promote", matrix.variables, Point(action=fill, command=" up "))
        assert outcome is not None
        assert outcome.verdict == (0, "promoted"), outcome.stderr
        assert "AND THIS IS NOT IN THE HISTORY" in outcome.reason
        assert not matrix.journal.exists()
        assert matrix.running() == [matrix.new]


@pytest.mark.root
@pytest.mark.parametrize("matrix", [True], ids=["pinned"], indirect=True)
def test_a_full_state_folder_does_not_keep_a_recovery_from_its_work(matrix: Matrix) -> None:
    folder = matrix.journal.parent
    with tmpfs(folder, "size=64k", fill=False):
        assert matrix.crashing.call("--promote", matrix.variables, Point(moment="after", command=" up ")) is None
        run(["sh", "-c", 'head -c 1M /dev/zero >"$1/filled" 2>/dev/null || :', "sh", folder])
        assert matrix.recover().verdict == (0, "undone")
        assert matrix.running() == [matrix.old]
        assert not matrix.journal.exists()


@contextlib.contextmanager
def tmpfs(folder: Path, options: str, *, fill: bool = True) -> Iterator[None]:
    """Put a small filesystem with the same content in place of a folder; full, or read-only, unless told otherwise."""
    content = folder.with_name("content")
    shutil.copytree(folder, content)
    run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "state", folder])
    try:
        shutil.copytree(content, folder, dirs_exist_ok=True)
        if options == "ro":
            run(["mount", "-o", "remount,ro", folder])
        elif fill:
            run(["sh", "-c", 'head -c 1M /dev/zero >"$1/filled" 2>/dev/null || :', "sh", folder])
        yield
    finally:
        run(["umount", folder])
        shutil.rmtree(content)
