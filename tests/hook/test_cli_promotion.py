"""Promoting, going back and recovering from the command line, with the hook's own exit statuses."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from contextlib import suppress

import pytest

from tests.hook.crash import Crashing
from tests.hook.desk import IMAGEFRESH, Desk
from tests.hook.harness import PROD_ID, STAGING_ID
from tests.hook.test_recovery import interrupt, journal
from tests.support import clean_environment

PROMOTE = ("promote", "--branch", "main")
STEP = r"(?m)^imagefresh +\d+\.\d s  {step}"


@pytest.fixture
def gated(desk: Desk) -> Desk:
    """A desk with a complete gate of the branch main."""
    desk.gate()
    return desk


def test_a_dry_run_takes_every_decision_and_changes_nothing(gated: Desk) -> None:
    ended = gated.imagefresh(*PROMOTE, "--dry-run")
    assert ended.status == 0
    assert "would be promoted" in ended.output
    gated.host.freeze()
    status, document = gated.answer(*PROMOTE, "--dry-run")
    assert (status, document["shop"]["cause"], document["shop"]["ok"]) == (1, "frozen", False)
    assert gated.host.changes() == []
    assert gated.host.production == [PROD_ID]


def test_a_promotion_shows_its_steps_and_how_it_ended(gated: Desk) -> None:
    ended = gated.imagefresh(*PROMOTE)
    assert ended.status == 0
    for step in ("taking the lock", "recreating service shop", "waiting for /health", "tagging shop-shop"):
        assert re.search(STEP.format(step=step), ended.output), ended.output
    assert "\x1b" not in ended.output, "a log gets whole lines"
    assert f"shop: production runs {STAGING_ID}" in ended.output
    assert re.search(r"shop .* promoted .* 5{12} .* \d+\.\d", ended.output), ended.output


def test_a_promotion_tells_machines_how_it_ended(gated: Desk) -> None:
    found = gated.read(*PROMOTE)["shop"]
    assert (found["ok"], found["kind"], found["cause"]) == (True, "done", "promoted")
    assert (found["image_id"], found["prod_runs"], found["revision"]) == (STAGING_ID, PROD_ID, gated.clone.revision)
    assert found["seconds"]["recreate"] >= 0


def test_a_terminal_shows_the_step_under_way_in_one_line(gated: Desk) -> None:
    mine, its = pty.openpty()
    environment = clean_environment(TERM="xterm", COLUMNS="80")
    environment.pop("CI", None)
    argv = [IMAGEFRESH, *PROMOTE, "--repo", "shop"]
    with subprocess.Popen(argv, cwd=gated.folder, env=environment, stdout=its, stderr=its, stdin=its) as process:
        os.close(its)
        shown = b""
        with suppress(OSError):  # the other end is closed
            while piece := os.read(mine, 65536):
                shown += piece
    os.close(mine)
    assert process.returncode == 0
    assert re.search(rb"\rimagefresh +\d+\.\d s  recreating service shop .*\x1b\[K", shown)


def test_going_back_and_what_is_kept(gated: Desk) -> None:
    gated.imagefresh(*PROMOTE)
    (kept,) = gated.read("status")["shop"]["kept"]
    assert (kept["image_id"], kept["left_by"]) == (PROD_ID, "promoted")
    assert re.match(r"\d{4}-\d\d-\d\dT", kept["since"])
    assert f"shop: kept {PROD_ID} since {kept['since'][:19]}, left by: promoted" in gated.imagefresh("status").output
    ended = gated.imagefresh("rollback")
    assert ended.status == 0
    assert re.search(r"shop .* restored .* 8{12} .* \d+\.\d", ended.output), ended.output
    assert "WARNING: code goes back and data does not" in ended.output
    assert gated.host.production == [PROD_ID]
    assert gated.read("rollback", "--to", STAGING_ID, "--name", "shop")["shop"]["image_id"] == STAGING_ID
    assert gated.host.production == [STAGING_ID]


def test_each_end_of_a_change_has_the_exit_status_of_the_hook(gated: Desk) -> None:
    assert gated.answer("rollback")[0] == 4, "nothing is kept"
    gated.host.set(answer_of={STAGING_ID: "500"})
    text = (gated.folder / "imagefresh.toml").read_text()
    (gated.folder / "imagefresh.toml").write_text(text + "[timeouts]\nhealth = 0.2\n")
    status, document = gated.answer(*PROMOTE)
    assert (status, document["shop"]["kind"]) == (3, "rolled-back")
    gated.host.service("shop", pull_policy=None)
    status, document = gated.answer(*PROMOTE)
    assert (status, document["shop"]["cause"]) == (1, "production-pulls")
    gated.host.fail("docker info", stderr="down\n")
    assert gated.imagefresh("rollback").status == gated.imagefresh(*PROMOTE).status == 11
    assert gated.host.production == [PROD_ID]


@pytest.mark.parametrize(
    "argv",
    [
        ["rollback", "--to", "shop-shop"],
        ["rollback", "--to", STAGING_ID[:19]],
        ["rollback", "--name", "other"],
        ["rollback", "--branch", "main"],
        ["recover", "--to", STAGING_ID],
        ["promote"],
    ],
    ids=str,
)
def test_wrong_usage_ends_with_2_before_anything_is_asked(desk: Desk, argv: list[str]) -> None:
    assert desk.imagefresh(*argv).status == 2
    assert desk.host.calls == []


def test_without_a_gate_nothing_is_promoted_and_a_machine_gets_its_document(desk: Desk) -> None:
    assert desk.answer(*PROMOTE) == (1, {})
    assert "no complete gate of shop" in desk.imagefresh(*PROMOTE).output
    assert desk.host.calls == []


def test_an_interrupted_change_is_shown_and_recovered(gated: Desk, crashing: Crashing) -> None:
    gated.host.set(labels={**gated.host.state["labels"], STAGING_ID: f'"{"1" * 40}"'})
    interrupt(gated.host, crashing, " up ")
    shown = gated.imagefresh("status")
    assert shown.status == 0
    assert f"OPEN from {PROD_ID} to {STAGING_ID}" in shown.output
    assert "imagefresh recover --repo shop" in shown.output
    found = gated.read("status")["shop"]["open"]
    assert (found["from"], found["to"], found["service"]) == (PROD_ID, STAGING_ID, "shop")
    ended = gated.imagefresh("recover")
    assert ended.status == 0
    assert "is undone now" in ended.output
    assert not journal(gated.host).exists()
    assert gated.read("status")["shop"]["open"] is None
    assert gated.read("recover")["shop"]["cause"] == "nothing-open"


def test_a_journal_that_needs_a_person_ends_with_4(gated: Desk) -> None:
    gated.imagefresh(*PROMOTE)
    journal(gated.host).write_text("")
    status, document = gated.answer("recover")
    assert (status, document["shop"]["cause"]) == (4, "journal-malformed")


def test_secrets_of_this_machine_appear_in_no_argument_and_in_no_output(gated: Desk) -> None:
    secret = {"DEPLOY_TOKEN": "hunter2-of-the-pipeline"}
    gated.host.freeze("hunter2-of-the-pipeline ends here")
    status, document = gated.answer(*PROMOTE, **secret)
    assert (status, document["shop"]["cause"]) == (1, "frozen")
    assert "hunter2" not in str(document)
    for command in ("status", "history"):
        assert "hunter2" not in str(gated.answer(command, **secret))
    assert "hunter2" not in str(gated.host.state["calls"])
