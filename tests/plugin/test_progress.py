"""Progress as people see it: on a terminal, in a log, and from the workers of pytest-xdist."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fcntl import ioctl

import pyte
import pytest

from pytest_imagefresh.progress import Follower, Stream
from tests.gate_folder import Ended, GateFolder
from tests.support import ROOT

SLOW = """
import time
import pytest
from pytest_imagefresh.plugin import GATE
from tests.fakes import FakeHook

SAYS = [
    ("imagefresh: step: building shop", 0.0),
    ("#5 preparing", 0.4),
    ("\\x1b[2J\\x1b[1;1H\\x1b[31m#6 compiling\\x1b[0m\\x07 " + 300 * "x", 0.4),
    ("   ", 0.3),
    ("imagefresh: step: recreating shop-staging", 0.3),
]


class SlowHook(FakeHook):
    def call(self, mode, variables, *, timeout, on_line=None, **more):
        for line, seconds in SAYS if mode == "--build-staging" else []:
            on_line(line)
            time.sleep(seconds)
        quiet = on_line if mode != "--build-staging" else None
        return super().call(mode, variables, timeout=timeout, on_line=quiet, **more)


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    gate = session.config.stash.get(GATE, None)
    if gate is not None and gate.targets:
        gate.run.hook = SlowHook(gate.run.hook.world)
        gate.progress.heartbeat = 0.05
"""

TWO_TARGETS = """
[targets.shop]
[targets.other]
repo = "shop"
image = "shop-other-staging"
prod_image = "shop-other"
staging = { service = "other-staging", container = "other-staging", port = 8511 }
prod = { service = "other", port = 8510 }
"""

LINE = re.compile(
    r"imagefresh +\d+\.\d s  (?P<target>\w+: )?(?P<step>building shop|recreating shop-staging)"
    r"(?P<lasts>  \(\d+\.\d s so far\)(  (?P<output>#5 preparing|#6 compiling x+))?)?"
)
DONE = re.compile(r"imagefresh +\d+\.\d s  (building shop|recreating shop-staging)  \(\d+\.\d s\)")
LIVE = re.compile(r"imagefresh +\d+\.\d s  (building shop|recreating shop-staging)  \(\d+\.\d s\)(  #[56] .*)?")


@pytest.fixture
def slow_folder(gate_folder: GateFolder) -> GateFolder:
    """A gate folder whose hook takes its time."""
    (gate_folder.path / "slow.py").write_text(SLOW)
    return gate_folder


PERSON = {"TERM": "xterm"}


class Terminal:
    """What a person saw of a session on a terminal of so many columns."""

    def __init__(
        self, folder: GateFolder, *options: str, columns: int = 100, environment: Mapping[str, str] = PERSON
    ) -> None:
        self.screen = pyte.Screen(columns, 100)
        self.raw = b""
        self.seen: list[list[str]] = []
        """The rows with progress on them, whenever they changed."""
        argv, base = folder.command(
            str(ROOT / "gates"), "--rootdir=.", "--repo", "shop", "--branch", "work", "-p", "slow", *options
        )
        master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 100, columns, 0, 0))
        process = subprocess.Popen(
            argv, cwd=folder.path, env={**base, **environment}, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave
        )
        os.close(slave)
        try:
            self._watch(master)
            self.status = process.wait(60)
        finally:
            process.kill()
            process.wait()
            os.close(master)

    def _watch(self, master: int) -> None:
        stream = pyte.ByteStream(self.screen)
        while select.select([master], [], [], 60)[0]:
            try:
                data = os.read(master, 65536)
            except OSError:  # EIO: the session has closed its side
                return
            self.raw += data
            stream.feed(data)
            rows = self.rows()
            if not self.seen or self.seen[-1] != rows:
                self.seen.append(rows)

    def rows(self) -> list[str]:
        """Return the rows on which progress is shown now."""
        return [row.rstrip() for row in self.screen.display if "imagefresh  " in row or "compiling" in row]


@pytest.mark.parametrize("options", [[], ["-v"], ["-s"]], ids=str)
def test_a_terminal_shows_one_live_line_that_becomes_one_plain_line(
    slow_folder: GateFolder, options: list[str]
) -> None:
    terminal = Terminal(slow_folder, *options)
    assert terminal.status == 0, terminal.raw
    assert len(terminal.rows()) == 2
    assert all(DONE.fullmatch(row) for row in terminal.rows()), terminal.rows()
    live = {row for rows in terminal.seen for row in rows if LIVE.fullmatch(row)}
    assert any(row.endswith("#5 preparing") for row in live)
    assert any("#6 compiling xxx" in row for row in live)
    assert len({row.split("  #6")[0] for row in live if "#6" in row}) > 1, "the time does not run on"
    assert all(len(rows) <= 2 for rows in terminal.seen)
    assert "GATE PASSED" in "\n".join(terminal.screen.display)
    assert not any(sent in terminal.raw for sent in (b"\x1b[2J", b"\x07")), "build output reached the terminal"
    assert "test session starts" in terminal.screen.display[0]


@pytest.mark.parametrize("columns", [20, 45, 81])
def test_a_live_line_never_wraps(slow_folder: GateFolder, columns: int) -> None:
    terminal = Terminal(slow_folder, columns=columns)
    assert terminal.status == 0, terminal.raw
    frames = re.findall(rb"\r(imagefresh [^\r\n]*)\x1b\[K", terminal.raw)
    assert len(frames) > 3
    assert max(len(frame) for frame in frames) == columns - 1


@pytest.mark.parametrize(
    "environment",
    [{"TERM": "xterm", "CI": "true"}, {"TERM": "dumb"}, {}],
    ids=str,
)
def test_a_terminal_without_a_person_or_a_cursor_gets_plain_lines(
    slow_folder: GateFolder, environment: dict[str, str]
) -> None:
    terminal = Terminal(slow_folder, environment=environment)
    assert terminal.status == 0, terminal.raw
    assert b"\x1b[K" not in terminal.raw
    assert "so far" in "\n".join(terminal.rows())


def lines_of(ended: Ended) -> list[re.Match[str]]:
    """Return the progress lines of a log, each of which must be whole."""
    lines = [line for line in ended.output.splitlines() if "imagefresh  " in line or "so far" in line]
    found = [LINE.fullmatch(line) for line in lines]
    assert None not in found, lines
    return [match for match in found if match is not None]


def test_a_log_gets_one_line_per_step_and_a_heartbeat(slow_folder: GateFolder) -> None:
    ended = slow_folder.gate("-p", "slow")
    assert ended.status == 0, ended
    assert not set("\r\x1b\x07") & set(ended.output)
    assert "verifying" not in ended.output, "a quick call of the hook is not worth a line"
    lines = lines_of(ended)
    starts = [line["step"] for line in lines if not line["lasts"]]
    assert starts == ["building shop", "recreating shop-staging"]
    outputs = [line["output"] for line in lines if line["lasts"] and line["step"] == "building shop"]
    assert outputs.count("#5 preparing") >= 2
    assert sum(str(each).startswith("#6") for each in outputs) >= 2
    assert all(line["output"] is None for line in lines if line["lasts"] and line["step"] != "building shop")


def test_a_result_stands_beside_the_name_of_its_test(slow_folder: GateFolder) -> None:
    ended = slow_folder.gate("-p", "slow", "-v")
    assert len(lines_of(ended)) > 8
    assert ended.says(r"::test_staging_is_rebuilt_from_validated_revision\[shop\] PASSED "), ended


def test_a_silent_session_is_silent(slow_folder: GateFolder) -> None:
    assert "imagefresh  " not in slow_folder.gate("-p", "slow", "-p", "no:terminal").output


@pytest.mark.parametrize("options", [[], ["-v"]], ids=str)
def test_lines_of_workers_are_whole_and_name_their_target(slow_folder: GateFolder, options: list[str]) -> None:
    settings = slow_folder.path / "imagefresh.toml"
    settings.write_text(settings.read_text() + TWO_TARGETS)
    (slow_folder.path / "test_dots.py").write_text(
        "import pytest, time\n@pytest.mark.parametrize('n', range(100))\ndef test_dot(n): time.sleep(0.005)\n"
    )
    ended = slow_folder.gate("-p", "slow", "-n", "2", *options, tests=["test_dots.py", str(ROOT / "gates")])
    assert ended.status == 0, ended
    lines = lines_of(ended)
    starts = sorted(f"{line['target']}{line['step']}" for line in lines if not line["lasts"])
    steps = ["building shop", "recreating shop-staging"]
    assert starts == [f"{target}: {step}" for target in ("other", "shop") for step in steps], ended
    assert all(line["target"] for line in lines)
    assert len([line for line in lines if line["lasts"]]) > 8


def test_no_line_of_a_worker_comes_between_what_pytest_says_of_a_test(slow_folder: GateFolder) -> None:
    (slow_folder.path / "halves.py").write_text(
        "import time\n"
        "class Halves:\n"
        "    def __init__(self, terminal): self.terminal = terminal\n"
        "    def pytest_runtest_logreport(self):\n"
        "        self.terminal.write('<half>', flush=True)\n"
        "        time.sleep(0.05)\n"
        "        self.terminal.write('<whole>', flush=True)\n"
        "def pytest_sessionstart(session):\n"
        "    terminal = session.config.pluginmanager.get_plugin('terminalreporter')\n"
        "    if terminal: session.config.pluginmanager.register(Halves(terminal))\n"
    )
    (slow_folder.path / "test_dots.py").write_text(
        "import pytest\n@pytest.mark.parametrize('n', range(20))\ndef test_dot(n): pass\n"
    )
    ended = slow_folder.gate("-p", "slow", "-p", "halves", "-n", "2", tests=["test_dots.py", str(ROOT / "gates")])
    assert ended.status == 0, ended
    assert len(lines_of(ended)) > 8
    assert ended.output.count("<half>") == ended.output.count("<half><whole>") > 60


def test_lines_of_workers_are_whole_on_a_terminal_too(slow_folder: GateFolder) -> None:
    terminal = Terminal(slow_folder, "-n", "1", columns=200)
    assert terminal.status == 0, terminal.raw
    assert len(terminal.rows()) > 8
    assert all(LINE.match(row) for row in terminal.rows()), terminal.rows()


# --- the thread behind it ---------------------------------------------------------------------------------------------


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "imagefresh-progress"]


@contextmanager
def following(kept: io.StringIO) -> Iterator[Follower]:
    with Follower(Stream(kept), begun=time.monotonic(), label="", heartbeat=0.01) as follower:
        yield follower


def test_a_thread_runs_only_while_a_step_does() -> None:
    kept = io.StringIO()
    with following(kept) as follower:
        assert ours() == []
        follower.step("one")
        assert len(ours()) == 1
        follower.step("two")
        assert len(ours()) == 1
    assert ours() == []
    told = kept.getvalue()
    time.sleep(0.05)
    assert kept.getvalue() == told


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_whatever_ends_a_call_ends_the_thread_and_is_told(kind: type[BaseException]) -> None:
    kept = io.StringIO()

    def fail() -> None:
        with following(kept) as follower:
            follower.step("one")
            raise kind

    with pytest.raises(kind):
        fail()
    assert ours() == []
    assert re.search(r"one  \(0\.\d s, broken off\)\n$", kept.getvalue())


def test_an_interruption_while_the_thread_starts_is_told_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), following(io.StringIO()) as follower:
        follower.step("one")


def test_a_heartbeat_counts_from_the_start_of_its_step() -> None:
    kept = io.StringIO()
    with Follower(Stream(kept), begun=time.monotonic(), label="", heartbeat=1.0) as follower:
        follower.step("one")
        time.sleep(0.7)
        follower.step("two")
        time.sleep(0.6)
    assert "so far" not in kept.getvalue()


def test_a_reader_who_has_gone_changes_nothing() -> None:
    ends = os.pipe()
    os.close(ends[0])
    with open(ends[1], "w") as broken:
        stream = Stream(broken)
    with Follower(stream, begun=0, label="", heartbeat=0.01) as follower:
        follower.step("one")
        time.sleep(0.05)
        follower.step("two")
    stream.close()
    assert ours() == []
