"""A change of production that was interrupted: whatever was killed at whichever command, `--recover` ends it well."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hook.crash import KILL_HOOK, KILL_SESSION, Crashing, Point
from tests.hook.harness import PROD_ID, RUN_ID, STAGING_ID, PretendedHost
from tests.hook.test_operations import situation, told
from tests.hook.verdicts import GATE_RUN, Signed

COMMIT = r"mv .*/\.env $"


def journal(host: PretendedHost) -> Path:
    return host.compose_dir / ".imagefresh" / "journal"


def count(crashing: Crashing, mode: str, variables: dict[str, str]) -> int:
    """How many commands of one whole call change the host."""
    outcome = crashing.call(mode, variables, Point(0))
    assert outcome is not None
    assert outcome.status == 0, outcome.stderr
    return len(crashing.calls)


def assert_consistent(host: PretendedHost) -> str:
    """Production runs one image, and its pin and its tag say the same; nothing is left of the interruption."""
    (image,) = host.production
    assert image in (PROD_ID, STAGING_ID)
    assert host.state["images"]["shop-shop:latest"] == image
    env = host.compose_dir / ".env"
    assert (env.read_text() if env.exists() else "") in ("A=1\n", f"A=1\nPIN={image}\n")
    assert sorted(each.name for each in host.compose_dir.iterdir()) == [".env", ".imagefresh", "compose.yaml"]
    assert not journal(host).exists()
    return image


@pytest.mark.crash
@pytest.mark.parametrize(
    ("moment", "action"),
    [
        ("after", KILL_SESSION),
        ("before", KILL_SESSION),
        ("before", KILL_HOOK),
    ],
    ids=["after", "before", "hook alone"],
)
def test_a_promotion_killed_at_any_command_is_finished_or_undone(
    pretended: PretendedHost, crashing: Crashing, moment: str, action: str
) -> None:
    state, seen = pretended.state, set()
    (pretended.compose_dir / ".env").write_text("A=1\n")
    variables = pretended.promotion_variables()
    for number in range(1, count(crashing, "--promote", variables) + 1):
        pretended.set(**state)
        (pretended.compose_dir / ".env").write_text("A=1\n")
        crashing.call("--promote", variables, Point(number, moment, action))
        assert crashing.acted, number
        outcome = pretended.recover()  # a step that the hook has left behind keeps the lock
        assert outcome.status == 0, (number, outcome.stderr)
        seen.add(assert_consistent(pretended))
        assert situation(pretended.status())["open"] is None
    assert seen == {PROD_ID, STAGING_ID}


@pytest.mark.crash
def test_a_recovery_killed_at_any_command_is_recovered_itself(pretended: PretendedHost, crashing: Crashing) -> None:
    (pretended.compose_dir / ".env").write_text("A=1\n")
    variables = pretended.promotion_variables()
    crashing.call("--promote", variables, Point(moment="after", command=" up "))
    broken, text = pretended.state, journal(pretended).read_text()
    recovery = {"COMPOSE_DIR": str(pretended.compose_dir)}
    for number in range(1, count(crashing, "--recover", recovery) + 1):
        for moment in ("before", "after"):
            pretended.set(**broken)
            journal(pretended).write_text(text)
            crashing.call("--recover", recovery, Point(number, moment))
            assert pretended.recover().status == 0
            assert_consistent(pretended)


def interrupt(pretended: PretendedHost, crashing: Crashing, call: str) -> None:
    """Promote, and be killed at the first command in which a pattern is found."""
    (pretended.compose_dir / ".env").write_text(f"A=1\nPIN={PROD_ID}\n")
    crashing.call("--promote", pretended.promotion_variables(), Point(moment="after", command=call))
    assert journal(pretended).exists()


def test_before_the_commit_point_it_is_undone_and_told(pretended: PretendedHost, crashing: Crashing) -> None:
    interrupt(pretended, crashing, " up ")
    assert pretended.production == [STAGING_ID]
    status = pretended.status()
    found = situation(status)["open"]
    assert (found["run_id"], found["service"], found["from"], found["to"]) == (RUN_ID, "shop", PROD_ID, STAGING_ID)
    assert "was interrupted" in status.reason
    outcome = pretended.recover()
    assert outcome.verdict == (0, "undone")
    assert pretended.production == [PROD_ID]
    entry = told(pretended.history())[-1]
    assert (entry["mode"], entry["cause"], entry["image_id"]) == ("--recover", "undone", PROD_ID)


def test_past_the_commit_point_it_is_finished_and_counts_as_promoted(
    pretended: PretendedHost, crashing: Crashing
) -> None:
    interrupt(pretended, crashing, COMMIT)
    interrupted = pretended.state["images"]["shop-shop:latest"]
    assert interrupted == PROD_ID
    assert pretended.recover().verdict == (0, "promoted")
    assert pretended.state["images"]["shop-shop:latest"] == STAGING_ID
    assert situation(pretended.status())["verified"] is True


def test_past_the_commit_point_an_image_that_has_died_is_rolled_back(
    pretended: PretendedHost, crashing: Crashing
) -> None:
    interrupt(pretended, crashing, COMMIT)
    pretended.set(after_up={STAGING_ID: {"status": "exited"}})
    pretended.set(containers=[{**each, "status": "exited"} for each in pretended.state["containers"]])
    assert pretended.recover().verdict == (3, "unhealthy")
    assert pretended.production == [PROD_ID]
    assert (pretended.compose_dir / ".env").read_text() == f"A=1\nPIN={PROD_ID}\n"
    assert not journal(pretended).exists()


def test_a_foreign_compose_up_between_the_proof_and_the_commit_point_is_seen(
    pretended: PretendedHost, crashing: Crashing
) -> None:
    (pretended.compose_dir / ".env").write_text(f"A=1\nPIN={PROD_ID}\n")
    up = f"cd {pretended.compose_dir} && {pretended.tools}/docker compose up --detach shop\n"
    outcome = crashing.call("--promote", pretended.promotion_variables(), Point(command=COMMIT, action=up))
    assert outcome is not None
    assert outcome.verdict == (3, "container-replaced"), outcome.stderr
    assert assert_consistent(pretended) == PROD_ID


def test_the_next_promotion_recovers_first(pretended: PretendedHost, crashing: Crashing) -> None:
    interrupt(pretended, crashing, " up ")
    assert pretended.verify().verdict == (1, "promotion-open")
    outcome = pretended.promote()
    assert outcome.verdict == (0, "promoted"), outcome.stderr
    assert "recovering it first" in outcome.stderr
    assert [each["cause"] for each in told(pretended.history())][-2:] == ["undone", "promoted"]
    assert outcome.line["prod_runs"] == PROD_ID


def test_what_cannot_be_recovered_stops_the_next_promotion(pretended: PretendedHost, crashing: Crashing) -> None:
    interrupt(pretended, crashing, " up ")
    pretended.set(after_up={"": {"status": "exited"}}, containers=[])
    assert pretended.promote().verdict == (1, "promotion-open")
    outcome = pretended.recover()
    assert outcome.status == 4
    assert f"PIN={PROD_ID} docker compose up -d" in outcome.reason
    assert journal(pretended).exists()


def test_an_interrupted_first_promotion_leaves_nothing_running(pretended: PretendedHost, crashing: Crashing) -> None:
    pretended.set(containers=[], images={"shop-shop-staging:latest": STAGING_ID})
    crashing.call("--promote", pretended.promotion_variables(), Point(moment="after", command=" up "))
    assert pretended.production == [STAGING_ID]
    assert pretended.recover().verdict == (0, "undone")
    assert [each["status"] for each in pretended.state["containers"]] == ["exited"]
    assert situation(pretended.status())["verified"] is False


def test_an_interrupted_break_glass_stays_unproven(pretended: PretendedHost, crashing: Crashing) -> None:
    interrupt(pretended, crashing, COMMIT)
    text = journal(pretended).read_text()
    journal(pretended).write_text(text.replace("cause=promoted", "cause=broke-glass"))
    assert pretended.recover().verdict == (0, "broke-glass")
    assert situation(pretended.status())["verified"] is False


def test_nothing_to_recover_takes_no_lock_and_leaves_no_trace(pretended: PretendedHost) -> None:
    assert pretended.recover().verdict == (0, "nothing-open")
    assert not (pretended.compose_dir / ".imagefresh").exists()
    assert pretended.calls == []


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("new=sha256:", "new=sha256:x"),
        lambda text: text.replace("service=shop\n", ""),
        lambda text: text + "service=shop\n",
        lambda text: text + "other=1\n",
        lambda text: text.replace("port=43100", "port=$(touch canary)"),
        lambda _text: "",
        lambda _text: json.dumps({"new": STAGING_ID}),
    ],
)
def test_a_journal_that_is_none_needs_a_person(
    pretended: PretendedHost, crashing: Crashing, edit: Callable[[str], str]
) -> None:
    interrupt(pretended, crashing, " up ")
    journal(pretended).write_text(edit(journal(pretended).read_text()))
    pretended.set(calls=[])
    outcome = pretended.recover()
    assert outcome.verdict == (4, "journal-malformed")
    assert "then remove that file" in outcome.reason
    assert pretended.promote().verdict == (1, "promotion-open")
    assert pretended.changes() == []
    assert journal(pretended).exists()


def test_a_state_folder_that_takes_no_journal_is_refused_before_anything_changes(pretended: PretendedHost) -> None:
    pretended.promote()
    journal(pretended).with_name("journal.draft").mkdir()
    pretended.set(calls=[])
    assert pretended.promote().verdict == (1, "state-unsafe")
    assert pretended.changes() == []


# --- the verdict of a promotion that was interrupted ------------------------------------------------------------------


@pytest.mark.root
def test_a_verdict_that_was_not_used_yet_still_works_after_the_recovery(
    pretended: PretendedHost, crashing: Crashing, tmp_path: Path
) -> None:
    signed = Signed(pretended, tmp_path)
    verdict = signed.verdict()
    interrupt_signed(pretended, crashing, verdict, "container create")
    assert list(signed.ledger.iterdir()) == []
    assert pretended.recover().verdict == (0, "undone")
    assert pretended.promote(VERDICT=verdict).verdict == (0, "promoted")


@pytest.mark.root
def test_a_verdict_that_was_used_stays_used_although_its_promotion_was_undone(
    pretended: PretendedHost, crashing: Crashing, tmp_path: Path
) -> None:
    signed = Signed(pretended, tmp_path)
    verdict = signed.verdict()
    interrupt_signed(pretended, crashing, verdict, "sync .*/verdicts")
    assert [path.name for path in signed.ledger.iterdir()] == [GATE_RUN]
    assert pretended.production == [PROD_ID]
    assert pretended.recover().verdict == (0, "undone")
    assert pretended.promote(VERDICT=verdict).verdict == (1, "verdict-used")


def interrupt_signed(pretended: PretendedHost, crashing: Crashing, verdict: str, command: str) -> None:
    """Promote with a verdict, under the same policies, and be killed right after a command."""
    if not crashing.policies.exists():
        shutil.copytree(pretended.policies, crashing.policies)
    variables = {**pretended.promotion_variables(), "VERDICT": verdict}
    assert crashing.call("--promote", variables, Point(moment="after", command=command)) is None
    assert crashing.acted


def test_a_timer_that_meets_a_change_at_work_leaves_no_trace(pretended: PretendedHost, crashing: Crashing) -> None:
    interrupt(pretended, crashing, " up ")
    entries = told(pretended.history())
    text = pretended.hook.path.read_text()
    pretended.hook.path.write_text(text.replace("PROMOTE_WAIT=120", "PROMOTE_WAIT=1"))
    with journal(pretended).with_name("lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert pretended.recover().verdict == (11, "locked")
    assert told(pretended.history()) == entries
    assert journal(pretended).exists()
