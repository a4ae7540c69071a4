"""What a decision leaves behind: a line in the system log, and an entry in the history of its compose folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hook.harness import PROD_ID, REVISION, RUN_ID, SCRIPT, STAGING_ID, PretendedHost

KEYS = [
    "time",
    "mode",
    "kind",
    "cause",
    "run_id",
    "repo",
    "who",
    "service",
    "revision",
    "image_id",
    "previous",
    "reason",
]


@pytest.fixture
def host(pretended: PretendedHost) -> PretendedHost:
    """A pretended host with a state folder and a system log."""
    (pretended.compose_dir / ".imagefresh").mkdir(mode=0o700)
    log = shlex.quote(str(pretended.compose_dir.parent / "log"))
    logger = pretended.tools / "logger"
    logger.write_text(f'#!/bin/bash\n{{ printf "%s|" "$@"; echo; }} >>{log}\n')
    logger.chmod(0o755)
    return pretended


def logged(host: PretendedHost) -> list[str]:
    """The system log: options and text of each line."""
    path = host.compose_dir.parent / "log"
    return path.read_text().splitlines() if path.exists() else []


def history_file(host: PretendedHost) -> Path:
    return host.compose_dir / ".imagefresh/history"


def entries(host: PretendedHost) -> list[dict[str, str]]:
    """The history as it lies on the disk; an empty line is none."""
    path = history_file(host)
    return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []


# --- what is written --------------------------------------------------------------------------------------------------


def test_a_promotion_leaves_one_entry_and_one_line_in_the_log(host: PretendedHost) -> None:
    assert host.promote().verdict == (0, "promoted")
    [entry] = entries(host)
    assert list(entry) == KEYS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", entry.pop("time"))
    assert re.fullmatch(rf"uid:{os.getuid()}(\([a-z0-9_-]+\))?", entry.pop("who"))
    assert entry == {
        "mode": "--promote",
        "kind": "done",
        "cause": "promoted",
        "run_id": RUN_ID,
        "repo": "shop",
        "service": "shop",
        "revision": REVISION,
        "image_id": STAGING_ID,
        "previous": PROD_ID,
        "reason": f"production runs {STAGING_ID}",
    }
    assert history_file(host).stat().st_mode & 0o777 == 0o600
    [line] = logged(host)
    assert line.startswith("-t|imagefresh|-p|user.notice|--|--promote done promoted who=uid:")
    assert f"image={STAGING_ID} previous={PROD_ID}: production runs" in line


Break = Callable[[PretendedHost], object]


@pytest.mark.parametrize(
    ("broken", "kind", "cause"),
    [
        (lambda host: host.set(labels={**host.state["labels"], STAGING_ID: ""}), "refused", "revision-missing"),
        (lambda host: host.fail("docker info", stderr="gone"), "unknown", "engine-down"),
        (lambda host: host.set(answer_of={STAGING_ID: "500"}), "rolled-back", "unhealthy"),
        (lambda host: host.set(after_up={"": {"status": "exited"}}), "broken", "unhealthy"),
    ],
    ids=["refused", "unknown", "rolled-back", "broken"],
)
def test_every_end_of_a_promotion_is_written_down(host: PretendedHost, broken: Break, kind: str, cause: str) -> None:
    broken(host)
    outcome = host.promote(HEALTH_TIMEOUT="0.3")
    [entry] = entries(host)
    assert (outcome.line["kind"], entry["mode"], entry["kind"], entry["cause"]) == (kind, "--promote", kind, cause)
    [line] = logged(host)
    assert f"user.warning|--|--promote {kind} {cause} " in line


def test_a_staging_build_is_written_down_too(host: PretendedHost) -> None:
    outcome = host.staging()
    [entry] = entries(host)
    assert (entry["mode"], entry["cause"], entry["service"]) == ("--build-staging", "built", "shop-staging")
    assert (entry["revision"], entry["image_id"], entry["previous"]) == (host.clone.revision, outcome.image_id, "")


def test_verify_is_logged_quietly_and_its_self_test_cases_are_not(host: PretendedHost) -> None:
    host.verify()
    host.verify(EXPECTED_REVISION="2" * 40)
    assert host.self_test().status == 0
    assert entries(host) == []
    assert [line.split("|")[3] + " " + " ".join(line.split("|")[5].split()[:3]) for line in logged(host)] == [
        "user.info --verify done verified",
        "user.warning --verify refused revision-mismatch",
        "user.info --self-test done self-tested",
    ]


def test_wrong_usage_reaches_the_log_alone(host: PretendedHost) -> None:
    assert host.promote(PROD_PORT="x").verdict == (2, "variable-malformed")
    assert entries(host) == []
    [line] = logged(host)
    assert "user.warning|--|--promote usage variable-malformed" in line


def test_whoever_tries_an_unknown_mode_is_logged(host: PretendedHost) -> None:
    assert host.hook.call("--shell\n", {"REPO": "shop"}).verdict == (2, "mode-unknown")
    assert entries(host) == []
    [line] = logged(host)
    assert "user.warning|--| usage mode-unknown who=uid:" in line


def test_looking_is_not_logged(host: PretendedHost) -> None:
    host.status()
    host.history()
    assert (entries(host), logged(host)) == ([], [])


def test_a_refusal_makes_no_state_folder_in_a_place_that_a_caller_chose(pretended: PretendedHost) -> None:
    assert pretended.promote(EXPECTED_REVISION="").verdict == (1, "revision-empty")
    assert sorted(path.name for path in pretended.compose_dir.iterdir()) == ["compose.yaml"]


def test_who_asks_is_not_taken_from_the_environment(host: PretendedHost) -> None:
    lies = dict.fromkeys(["WHO", "USER", "LOGNAME", "SUDO_USER", "UID", "EUID", "STATE", "UNRECORDED"], "mallory")
    assert host.promote(**lies).status == 0
    assert "mallory" not in history_file(host).read_text() + "".join(logged(host))


def test_a_caller_who_exports_a_user_id_changes_nothing(host: PretendedHost) -> None:
    assert host.staging(EUID="5", UID="5").verdict == (0, "built")


def test_a_reason_is_masked_bounded_and_one_line(host: PretendedHost) -> None:
    words = 'postgres://shop:hunter2@db "quoted" \\back\x1b[31m password=s3cr3t caf\u00e9 '
    host.fail(" up ", stderr=words + "x" * 9000 + "\n")
    host.promote()
    text = history_file(host).read_text()
    assert "hunter2" not in text
    assert "s3cr3t" not in text
    assert len(text) < 2000
    [entry] = entries(host)
    assert '"quoted" \\back password=*** caf\u00e9' in entry["reason"]


def test_what_a_label_says_is_masked_too(host: PretendedHost) -> None:
    host.set(labels={**host.state["labels"], STAGING_ID: '"password=hunter2"'})
    assert host.promote().verdict == (1, "revision-mismatch")
    assert "hunter2" not in history_file(host).read_text() + "".join(logged(host))


# --- when it cannot be written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "link", "fifo"])
def test_an_unsafe_history_refuses_before_production_changes(host: PretendedHost, tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        history_file(host).mkdir()
    elif kind == "fifo":
        os.mkfifo(history_file(host))
    else:
        history_file(host).symlink_to(tmp_path / "elsewhere")
    outcome = host.promote()
    assert outcome.verdict == (1, "state-unsafe")
    assert "AND THIS IS NOT IN THE HISTORY" in outcome.reason
    assert [call for call in host.changes() if "imagefresh-previous" not in call] == []
    assert not (tmp_path / "elsewhere").exists()


def test_a_history_that_is_lost_during_the_promotion_is_told_loudly_and_undoes_nothing(host: PretendedHost) -> None:
    path = shlex.quote(str(history_file(host)))
    (host.tools / "sync").write_text(f"#!/bin/bash\nrm -rf {path}\nmkdir -p {path}\n")
    (host.tools / "sync").chmod(0o755)
    outcome = host.promote()
    assert outcome.verdict == (0, "promoted")
    assert "AND THIS IS NOT IN THE HISTORY" in outcome.reason
    assert "WARNING" in outcome.stderr
    assert host.production == [STAGING_ID]


@pytest.mark.parametrize("program", ["exit 1", "sleep 60", None], ids=["fails", "hangs", "absent"])
def test_the_system_log_is_never_fatal(host: PretendedHost, program: str | None) -> None:
    logger = host.tools / "logger"
    if program is None:
        logger.unlink()
        text = host.hook.path.read_text()
        host.hook.path.write_text(text.replace("type -P logger", "type -P no-logger-here"))
    else:
        logger.write_text(f"#!/bin/bash\n{program}\n")
    assert host.promote().verdict == (0, "promoted")
    assert len(entries(host)) == 1


def test_an_entry_that_was_cut_off_does_not_swallow_the_next(host: PretendedHost) -> None:
    history_file(host).write_text('{"time":"2026')
    host.promote()
    lines = history_file(host).read_text().splitlines()
    assert lines[0] == '{"time":"2026'
    assert json.loads(lines[1])["cause"] == "promoted"


def test_entries_of_many_runs_at_once_never_mix(host: PretendedHost) -> None:
    program = (
        f"source {shlex.quote(str(SCRIPT))}; reset_state; MODE=--build-staging; STATE=$1; PREVIOUS_ID=$2; WHO=$2;"
        'exec 4>&2; for i in {1..50}; do history_entry done built "$2$2$2$2$2$2"; ENTRY=${REPLY}; write_history; done'
    )

    def write(number: int) -> int:
        filler = str(number % 10) * 60
        argv = ["bash", "-c", program, "bash", str(host.compose_dir / ".imagefresh"), filler]
        return subprocess.run(argv, check=False, timeout=60).returncode

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write, range(8))) == [0] * 8
    assert len(entries(host)) == 400
    assert all(len(set(entry["reason"])) == 1 for entry in entries(host))


def test_one_entry_is_one_write(host: PretendedHost, tmp_path: Path) -> None:
    strace = "/usr/bin/strace"
    if not Path(strace).exists():
        pytest.skip("no strace here")
    quotes = '"' * 400
    program = (
        f"source {shlex.quote(str(SCRIPT))}; reset_state; MODE=--build-staging; STATE=$1; exec 4>&2;"
        "REPO=$(printf %0100d 0); TARGET_SERVICE=$(printf %0128d 0); WHO=$REPO; "
        f"history_entry done built '{quotes}'; ENTRY=${{REPLY}}; write_history"
    )
    trace = tmp_path / "trace"
    argv = [strace, "-f", "-e", "trace=write", "-o", str(trace), "bash", "-c", program, "bash"]
    done = subprocess.run([*argv, str(host.compose_dir / ".imagefresh")], capture_output=True, check=False, timeout=60)
    if b"ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    writes = [line for line in trace.read_text().splitlines() if '{\\"time\\"' in line]
    assert len(writes) == 1
    assert 1300 < len(history_file(host).read_text()) < 4096
