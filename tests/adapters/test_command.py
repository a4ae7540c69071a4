"""Running one program: what comes back, what is bounded, and what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_imagefresh.adapters import command
from pytest_imagefresh.core.errors import EvidenceError
from tests.support import await_true


def lives(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def read_pid(path: Path) -> int:
    """Return the pid that a program writes into a file, once it is there."""
    assert await_true(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def test_returns_status_and_both_outputs() -> None:
    done = command.run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=20)
    assert done == command.Completed(("sh", "-c", "echo out; echo err >&2; exit 3"), 3, b"out\n", b"err\n")


def test_a_signal_is_a_negative_status() -> None:
    assert command.run(["sh", "-c", "kill -KILL $$"], timeout=20).status == -signal.SIGKILL


def test_standard_input_is_empty_unless_given() -> None:
    assert command.run(["cat"], timeout=20).stdout == b""
    assert command.run(["cat"], timeout=20, stdin=b"a\0b").stdout == b"a\0b"


def test_much_data_goes_both_ways_at_once() -> None:
    data = os.urandom(5_000_000)
    done = command.run(["sh", "-c", "tee /dev/stderr"], timeout=60, stdin=data)
    assert (done.status, done.stdout, done.stderr) == (0, data, data)


def test_a_program_may_ignore_its_input() -> None:
    done = command.run(["sh", "-c", "exec <&-; echo done"], timeout=20, stdin=b"x" * 5_000_000)
    assert (done.status, done.stdout) == (0, b"done\n")


def test_arguments_reach_the_program_as_they_are() -> None:
    nasty = ["", "a b", "$(id)", "`id`", "'", '"', "\\", "*", "-x", "ä\n", ";|&<>"]
    done = command.run([sys.executable, "-c", "import sys; print(sys.argv[1:])", *nasty], timeout=20)
    assert done.stdout.decode() == f"{nasty}\n"


def test_the_folder_is_the_one_asked_for(tmp_path: Path) -> None:
    assert command.run(["pwd", "-P"], timeout=20, cwd=str(tmp_path)).stdout.decode() == f"{tmp_path.resolve()}\n"


@pytest.mark.parametrize(
    "name", ["GIT_DIR", "GIT_INDEX_FILE", "DOCKER_HOST", "DOCKER_CONTEXT", "COMPOSE_FILE", "LD_PRELOAD", "BASH_ENV"]
)
def test_the_callers_variables_have_no_say(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "/elsewhere")
    assert name.encode() not in command.run(["env"], timeout=20).stdout


def test_the_clean_environment_can_find_programs_and_the_ssh_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/agent")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    environment = command.clean_environment()
    assert (environment["SSH_AUTH_SOCK"], environment["LC_ALL"]) == ("/agent", "C.UTF-8")
    assert environment["PATH"] == os.environ["PATH"]
    monkeypatch.delenv("PATH")
    assert "/usr/bin" in command.clean_environment()["PATH"]


def test_a_given_environment_is_the_whole_one() -> None:
    assert command.run(["/usr/bin/env"], timeout=20, env={"A": "b"}).stdout == b"A=b\n"


def test_lines_of_standard_error_come_while_the_program_runs(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        flag.touch()

    script = f"echo first >&2; until [ -e {flag} ]; do sleep 0.05; done; printf 'b\\377d\\r\\n\\nlast' >&2"
    done = command.run(["sh", "-c", script], timeout=20, on_line=on_line)
    assert lines == ["first", "b\ufffdd", "", "last"]
    assert done.stderr == b"first\nb\xffd\r\n\nlast"


@pytest.mark.parametrize(
    ("argv", "cwd"),
    [
        (["/does/not/exist"], None),
        (["no-such-program-here"], None),
        (["true"], "/does/not/exist"),
        (["echo", "a\0b"], None),
    ],
    ids=["path", "name", "folder", "nul"],
)
def test_a_program_that_cannot_be_started_is_an_evidence_error(argv: list[str], cwd: str | None) -> None:
    with pytest.raises(EvidenceError, match="could not be started") as caught:
        command.run(argv, timeout=20, cwd=cwd)
    assert "\n" not in str(caught.value)


def test_a_timeout_ends_the_whole_process_group(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pid}; echo 'step 2 of 3' >&2; wait"
    with pytest.raises(EvidenceError, match=r"expected to end within 1 s and did not.*'step 2 of 3'"):
        command.run(["sh", "-c", script], timeout=1)
    child = read_pid(pid)
    assert await_true(lambda: not lives(child))


def test_a_program_that_ignores_term_is_killed(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"trap '' TERM; echo $$ > {pid}; while :; do sleep 0.1; done"
    with pytest.raises(EvidenceError, match="it said nothing"):
        command.run(["sh", "-c", script], timeout=0.5)
    assert not lives(read_pid(pid))


def test_a_program_that_closed_its_outputs_is_still_bounded() -> None:
    with pytest.raises(EvidenceError, match="did not"):
        command.run(["sh", "-c", "exec >&- 2>&-; sleep 600"], timeout=0.5)


def test_input_that_nobody_reads_is_bounded() -> None:
    with pytest.raises(EvidenceError, match="did not"):
        command.run(["sleep", "600"], timeout=0.5, stdin=b"x" * 1_000_000)


def test_an_exception_of_the_callback_ends_the_process_group(tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    def on_line(line: str) -> None:
        raise RuntimeError(line)

    with pytest.raises(RuntimeError, match="stop"):
        command.run(["sh", "-c", f"sleep 600 & echo $! > {pid}; echo stop >&2; wait"], timeout=60, on_line=on_line)
    child = read_pid(pid)
    assert await_true(lambda: not lives(child))


def test_an_interrupt_of_the_caller_ends_the_process_group(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pid}; wait"
    code = f"from pytest_imagefresh.adapters import command; command.run(['sh', '-c', {script!r}], timeout=300)"
    environment = {**os.environ, "PYTHONPATH": str(Path(command.__file__).parents[2])}
    caller = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)
    try:
        child = read_pid(pid)
        caller.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in caller.communicate(timeout=60)[1]
        assert await_true(lambda: not lives(child))
    finally:
        caller.kill()
        caller.wait()


def test_what_outlives_the_program_with_its_output_redirected_is_left_alone(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"sleep 600 >/dev/null 2>&1 & echo $! > {pid}; echo done"
    done = command.run(["sh", "-c", script], timeout=60)
    child = read_pid(pid)
    try:
        assert (done.status, done.stdout, lives(child)) == (0, b"done\n", True)
    finally:
        os.kill(child, signal.SIGKILL)


def test_output_that_something_else_holds_open_is_not_taken_for_complete(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(EvidenceError, match="still holds its output open"):
        command.run(["sh", "-c", f"sleep 600 & echo $! > {pid}; echo done"], timeout=60)
    child = read_pid(pid)
    assert await_true(lambda: not lives(child))


def test_no_file_descriptor_stays_open() -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    for _ in range(20):
        command.run(["true"], timeout=20, stdin=b"x")
    assert count() <= before


def test_a_message_is_one_short_line() -> None:
    assert command.describe(["echo", "a\nb", "c d"]) == "echo 'a b' 'c d'"
    assert len(command.describe(["x" * 5000])) < 250
    assert command.last_line(b"one\n two \n\n") == "two"
    assert command.last_line(b"\n") == ""


def test_a_signal_in_the_moment_of_the_start_orphans_nothing(tmp_path: Path) -> None:
    def ended(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, ended)
    script = f'echo $$ >"$0"; kill -TERM {os.getpid()}; exec sleep 300'
    try:
        for number in range(40):
            pid_file = tmp_path / str(number)
            with pytest.raises(KeyboardInterrupt):
                command.run(["/bin/sh", "-c", script, str(pid_file)], timeout=20)
            if pid_file.exists():
                with pytest.raises(ProcessLookupError):
                    os.kill(int(pid_file.read_text()), 0)
    finally:
        signal.signal(signal.SIGTERM, before)
