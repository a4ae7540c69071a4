"""What operators ask and order: history, status, freezing."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_imagefresh.core.contract import encode_list
from tests.hook.harness import PROD_ID, REVISION, RUN_ID, SCRIPT, STAGING_ID, Outcome, PretendedHost

OTHER_ID = "sha256:" + "7" * 64
LOOKS = ["--status", "--history"]


def state_folder(host: PretendedHost) -> Path:
    folder = host.compose_dir / ".imagefresh"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def situation(outcome: Outcome) -> dict[str, Any]:
    assert outcome.verdict == (0, "status")
    found = outcome.line["status"]
    assert isinstance(found, dict)
    return found


def told(outcome: Outcome) -> list[dict[str, str]]:
    assert outcome.verdict == (0, "history")
    found = outcome.line["history"]
    assert isinstance(found, list)
    return found


# --- history ----------------------------------------------------------------------------------------------------------


def test_history_tells_decisions_in_their_order(pretended: PretendedHost) -> None:
    pretended.staging()
    pretended.promote(EXPECTED_REVISION=pretended.clone.revision, EXPECTED_IMAGE_ID=None)
    pretended.promote()
    assert [(each["mode"], each["cause"]) for each in told(pretended.history())] == [
        ("--build-staging", "built"),
        ("--promote", "promoted"),
        ("--promote", "image-id-mismatch"),
    ]
    assert [each["cause"] for each in told(pretended.history(HISTORY_LIMIT="1"))] == ["image-id-mismatch"]


def test_history_needs_no_engine_and_no_lock(pretended: PretendedHost) -> None:
    pretended.promote()
    pretended.fail("docker", stderr="down\n")
    with (state_folder(pretended) / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert len(told(pretended.history())) == 1


def test_history_goes_on_into_the_file_that_was_rotated_away(pretended: PretendedHost) -> None:
    pretended.promote()
    (state_folder(pretended) / "history").rename(state_folder(pretended) / "history.1")
    pretended.freeze()
    assert [each["cause"] for each in told(pretended.history())] == ["promoted", "frozen"]
    assert situation(pretended.status())["verified"] is True


@pytest.mark.parametrize("mode", LOOKS)
def test_looking_back_creates_nothing(pretended: PretendedHost, mode: str) -> None:
    outcome = pretended.history() if mode == "--history" else pretended.status()
    assert outcome.status == 0
    assert [each.name for each in pretended.compose_dir.iterdir()] == ["compose.yaml"]
    assert pretended.changes() == []


def test_lines_that_are_no_entries_are_counted_and_never_told(pretended: PretendedHost) -> None:
    pretended.promote()
    path = state_folder(pretended) / "history"
    good = path.read_text()
    odd = ['{"time":"2026', '{"time":"2026"} , {"x":1}', good.strip() + "]", '{"time":"1","a":"\\u0000"}', "\x01", "[]"]
    path.write_text("\n".join([*odd, "", good]))
    outcome = pretended.history()
    assert [each["cause"] for each in told(outcome)] == ["promoted"]
    assert f"warning: {len(odd)} lines of" in outcome.stderr


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "a[$(id)]", "1 2", "", "1\n"])
def test_a_bad_limit_is_wrong_usage(pretended: PretendedHost, limit: str) -> None:
    assert pretended.history(HISTORY_LIMIT=limit).verdict == (2, "variable-malformed")


# --- freezing ---------------------------------------------------------------------------------------------------------


def test_a_frozen_production_is_not_promoted_and_says_who_froze_it_and_why(pretended: PretendedHost) -> None:
    assert pretended.freeze("the database is being moved").verdict == (0, "frozen")
    for outcome in (pretended.verify(), pretended.promote()):
        assert outcome.verdict == (1, "frozen")
        assert f" by uid:{os.getuid()}" in outcome.reason
        assert ": the database is being moved; " in outcome.reason
    assert pretended.changes() == []
    assert pretended.unfreeze().verdict == (0, "unfrozen")
    assert pretended.promote().verdict == (0, "promoted")


def test_whether_production_is_frozen_is_decided_last(pretended: PretendedHost) -> None:
    pretended.freeze()
    assert pretended.verify(EXPECTED_REVISION="2" * 40).cause == "revision-mismatch"
    assert pretended.verify(EXPECTED_IMAGE_ID=OTHER_ID).cause == "image-id-mismatch"
    assert pretended.verify(PROD_SERVICE="other").cause == "service-missing"
    assert pretended.verify(PROD_PORT="x").cause == "variable-malformed"
    frozen = pretended.verify()
    assert (frozen.cause, frozen.image_id, frozen.line["revision"]) == ("frozen", STAGING_ID, REVISION)


def test_a_frozen_production_holds_up_neither_staging_nor_the_self_test(pretended: PretendedHost) -> None:
    pretended.freeze()
    assert pretended.staging().verdict == (0, "built")
    assert pretended.self_test().verdict == (0, "self-tested")


def test_freezing_twice_keeps_the_first_reason_and_unfreezing_twice_is_once(pretended: PretendedHost) -> None:
    pretended.freeze("first")
    again = pretended.freeze("second")
    assert again.verdict == (0, "frozen")
    assert again.reason.startswith("production is frozen: second; it was already, since ")
    assert ": first; " in pretended.verify().reason
    assert pretended.unfreeze().status == pretended.unfreeze().status == 0
    assert pretended.verify().verdict == (0, "verified")
    assert [each["cause"] for each in told(pretended.history())] == ["frozen", "frozen", "unfrozen", "unfrozen"]


def test_freezing_needs_no_engine_and_leaves_one_file(pretended: PretendedHost) -> None:
    pretended.fail("docker", stderr="down\n")
    assert pretended.freeze().status == 0
    names = sorted(path.name for path in state_folder(pretended).iterdir())
    assert names == ["frozen", "history", "lock", "turn"]
    assert pretended.calls == []


@pytest.mark.parametrize("content", ["", "one\n", "\x01\x02", None], ids=["empty", "word", "binary", "link"])
def test_whatever_lies_there_freezes(pretended: PretendedHost, content: str | None) -> None:
    path = state_folder(pretended) / "frozen"
    path.symlink_to("nowhere") if content is None else path.write_text(content)
    assert pretended.verify().verdict == (1, "frozen")
    assert situation(pretended.status())["frozen"]["who"] == "unknown"
    assert pretended.unfreeze().status == 0
    assert not path.is_symlink()
    assert not path.exists()


def test_a_freeze_is_in_force_before_it_has_the_lock(pretended: PretendedHost) -> None:
    state = state_folder(pretended)
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done: list[Outcome] = []
        thread = threading.Thread(target=lambda: done.append(pretended.freeze()))
        thread.start()
        deadline = time.monotonic() + 20
        while not (state / "frozen").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert pretended.verify().verdict == (1, "frozen")
        assert thread.is_alive()
        # Somebody who ends an older freeze right now must not end this one with it.
        (state / "frozen").unlink()
        fcntl.flock(lock, fcntl.LOCK_UN)
    thread.join(30)
    assert done[0].verdict == (0, "frozen")
    assert pretended.verify().verdict == (1, "frozen")


@pytest.mark.parametrize(
    "reason",
    [None, "", "why not", encode_list([""]), encode_list([" \t"]), encode_list(["a", "b"]), encode_list(["a"])[:-2]],
    ids=["unset", "empty", "plain", "empty text", "blank text", "two texts", "cut off"],
)
def test_a_freeze_without_a_reason_is_wrong_usage(pretended: PretendedHost, reason: str | None) -> None:
    outcome = pretended.freeze(REASON=reason)
    assert outcome.status == 2
    assert not (pretended.compose_dir / ".imagefresh").exists()


def test_a_reason_executes_nothing_and_shows_no_secret(pretended: PretendedHost, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    pretended.freeze(f'$(touch {mark}) `touch {mark}` "; touch {mark}\n password=hunter2 \x1b[31m')
    reason = situation(pretended.status())["frozen"]["reason"]
    assert not mark.exists()
    assert reason == f'$(touch {mark}) `touch {mark}` "; touch {mark} password=***'


# --- breaking the glass -----------------------------------------------------------------------------------------------


@pytest.fixture
def lenient(pretended: PretendedHost) -> PretendedHost:
    """A pretended host whose policy allows break-glass; the staging image bears no revision."""
    pretended.policy(BREAK_GLASS="yes", REQUIRE="revision image_id")
    pretended.set(labels={**pretended.state["labels"], STAGING_ID: ""})
    return pretended


@pytest.mark.root
def test_break_glass_promotes_what_nothing_has_proven_and_says_so_everywhere(lenient: PretendedHost) -> None:
    assert lenient.promote().verdict == (1, "revision-missing")
    outcome = lenient.break_glass()
    assert outcome.verdict == (0, "broke-glass"), outcome.stderr
    assert "WARNING: BREAK-GLASS" in outcome.stderr
    assert "WHICH NOTHING HAS PROVEN" in outcome.reason
    assert lenient.production == [STAGING_ID]
    assert lenient.state["images"]["shop-shop:imagefresh-previous"] == PROD_ID
    entry = told(lenient.history())[-1]
    assert (entry["mode"], entry["image_id"], entry["previous"]) == ("--break-glass", STAGING_ID, PROD_ID)
    assert entry["reason"] == f"all is lost: production runs {STAGING_ID}, WHICH NOTHING HAS PROVEN"


@pytest.mark.root
def test_status_warns_of_break_glass_until_the_next_regular_promotion(lenient: PretendedHost) -> None:
    lenient.break_glass()
    outcome = lenient.status()
    assert situation(outcome)["verified"] is False
    assert situation(outcome)["break_glass"].startswith("production was promoted by break-glass")
    assert "WARNING: production was promoted by break-glass" in outcome.stderr
    assert "production was promoted by break-glass" in outcome.reason
    lenient.promote()  # refused: it does not end the warning
    assert situation(lenient.status())["break_glass"]
    lenient.set(labels={**lenient.state["labels"], STAGING_ID: json.dumps(REVISION)})
    assert lenient.promote().verdict == (0, "promoted")
    assert (situation(lenient.status())["verified"], situation(lenient.status())["break_glass"]) == (True, "")


@pytest.mark.root
@pytest.mark.parametrize("word", ["no", None, "", "YES", "yes "], ids=str)
def test_break_glass_needs_a_policy_that_says_yes(pretended: PretendedHost, word: str | None) -> None:
    pretended.policy(BREAK_GLASS=word, REQUIRE="revision image_id")
    outcome = pretended.break_glass()
    assert outcome.status == 1
    assert outcome.cause in {"break-glass-forbidden", "policy-invalid"}
    assert pretended.changes() == []


def test_break_glass_without_any_policy_is_forbidden(pretended: PretendedHost) -> None:
    assert pretended.break_glass().verdict == (1, "break-glass-forbidden")
    assert pretended.changes() == []


@pytest.mark.root
@pytest.mark.parametrize(
    "change",
    [
        {"SOURCE_IMAGE": "shop-shop-staging"},
        {"SOURCE_IMAGE": STAGING_ID[:19]},
        {"SOURCE_IMAGE": None},
        {"REASON": None},
        {"REASON": encode_list([" "])},
        {"EXPECTED_REVISION": REVISION},
        {"EXPECTED_IMAGE_ID": STAGING_ID},
    ],
    ids=str,
)
def test_break_glass_takes_an_image_id_and_a_reason_and_no_proof(
    lenient: PretendedHost, change: dict[str, str | None]
) -> None:
    assert lenient.break_glass(**change).status == 2
    assert lenient.changes() == []


@pytest.mark.root
def test_break_glass_still_needs_an_image_and_rolls_back(lenient: PretendedHost) -> None:
    assert lenient.break_glass(SOURCE_IMAGE=OTHER_ID).verdict == (1, "image-missing")
    lenient.set(answer_of={STAGING_ID: "500"})
    assert lenient.break_glass(HEALTH_TIMEOUT="0.2").verdict == (3, "unhealthy")
    assert lenient.production == [PROD_ID]
    assert situation(lenient.status())["break_glass"] == ""


@pytest.mark.root
def test_a_freeze_does_not_hold_up_break_glass_and_outlives_it(lenient: PretendedHost) -> None:
    lenient.freeze()
    assert lenient.break_glass().verdict == (0, "broke-glass")
    assert situation(lenient.status())["frozen"]


# --- status -----------------------------------------------------------------------------------------------------------


def test_status_tells_what_runs_since_when_and_from_which_revision(pretended: PretendedHost) -> None:
    built = pretended.staging()
    pretended.promote(SOURCE_IMAGE=STAGING_ID)
    found = situation(pretended.status())
    [production], [staging] = found["production"], found["staging"]
    assert (production["image_id"], production["revision"]) == (STAGING_ID, REVISION)
    assert (staging["image_id"], staging["revision"]) == (built.image_id, pretended.clone.revision)
    assert staging["container_id"] == built.line["container_id"]
    assert (production["state"], production["since"]) == ("running", "2026-01-02T03:04:05Z")
    assert (found["prod_tag"], found["previous_tag"], found["staging_tag"]) == (STAGING_ID, PROD_ID, built.image_id)
    assert (found["verified"], found["frozen"], found["break_glass"]) == (True, None, "")
    assert (found["promoted"]["run_id"], found["promoted"]["image_id"]) == (RUN_ID, STAGING_ID)


def test_status_without_staging_does_not_look_for_it(pretended: PretendedHost) -> None:
    found = situation(pretended.status(TARGET_IMAGE=None, TARGET_SERVICE=None))
    assert (found["staging"], found["staging_tag"]) == ([], "")


def test_production_that_nobody_promoted_is_not_verified(pretended: PretendedHost) -> None:
    outcome = pretended.status()
    assert situation(outcome)["verified"] is False
    assert situation(outcome)["promoted"] is None
    assert "the history knows of no promotion of shop" in outcome.reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": OTHER_ID}, f"runs {OTHER_ID}, but {STAGING_ID} was promoted last"),
        ({"status": "exited"}, "production does not run"),
    ],
    ids=["another image", "stopped"],
)
def test_production_that_is_not_what_was_promoted_is_not_verified(
    pretended: PretendedHost, change: dict[str, str], words: str
) -> None:
    pretended.promote()
    pretended.set(
        containers=[{**each, **change} for each in pretended.state["containers"]],
        labels={**pretended.state["labels"], OTHER_ID: ""},
    )
    outcome = pretended.status()
    assert situation(outcome)["verified"] is False
    assert words in outcome.reason


def test_a_second_container_of_production_is_told_and_not_verified(pretended: PretendedHost) -> None:
    pretended.promote()
    stranger = {**pretended.state["containers"][-1], "id": "9" * 64, "name": "shop-2", "image": PROD_ID}
    pretended.set(containers=[pretended.state["containers"][-1], stranger])
    found = situation(pretended.status())
    assert [each["name"] for each in found["production"]] == ["shop", "shop-2"]
    assert found["verified"] is False


def test_after_a_rollback_the_promotion_before_still_counts(pretended: PretendedHost) -> None:
    pretended.promote()
    pretended.set(labels={**pretended.state["labels"], OTHER_ID: json.dumps(REVISION)}, answer_of={OTHER_ID: "500"})
    assert pretended.promote(SOURCE_IMAGE=OTHER_ID, EXPECTED_IMAGE_ID=OTHER_ID, HEALTH_TIMEOUT="0.2").status == 3
    assert situation(pretended.status())["verified"] is True


def test_the_promotion_of_another_service_proves_nothing(pretended: PretendedHost) -> None:
    pretended.promote()
    path = state_folder(pretended) / "history"
    forged = 'x","service":"shop","revision":"'
    path.write_text(path.read_text().replace('"service":"shop"', '"service":"shop2"'))
    pretended.freeze(forged)
    assert situation(pretended.status())["promoted"] is None


def test_status_tells_of_an_engine_that_does_not_answer(pretended: PretendedHost) -> None:
    pretended.fail("docker info", stderr="down\n")
    assert pretended.status().verdict == (11, "engine-down")


@pytest.mark.root
def test_a_user_who_may_not_look_is_not_told_that_production_is_not_frozen() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "state").mkdir(mode=0o700)
        shutil.copy(SCRIPT, folder / "hook.sh")
        program = f"source {folder}/hook.sh; set -e; reset_state; PHASE=before; exec 3>&1 4>&2; MODE=--verify; "
        program += f"STATE={folder}/state; FROZEN_FILE=$STATE/frozen; read_frozen; echo passed"
        argv = ["setpriv", "--reuid=65534", "--clear-groups", "bash", "-c", program]
        done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
    assert Outcome.of(done).verdict == (11, "state-unsafe")
