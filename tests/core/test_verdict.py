"""Every accept with its table of one-change refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_imagefresh.core.errors import EvidenceError, Refused
from pytest_imagefresh.core.evidence import Anchor, CheckResult, Container, HookReport, Image, Port, Production, Tenure
from pytest_imagefresh.core.identity import BranchName, ContainerId, ImageId, Revision, TreeId
from pytest_imagefresh.core.tap import read_tap
from pytest_imagefresh.core.verdict import (
    Verdict,
    all_of,
    check_accepted,
    check_anchor,
    check_container,
    check_label,
    check_lease,
    check_production_untouched,
    check_provenance,
    check_rebuilt,
    check_refused,
    check_same_container,
    check_staging_check,
)

REVISION, OTHER_REVISION = Revision("1" * 40), Revision("2" * 40)
TREE = TreeId("3" * 40)
IMAGE_ID, OTHER_IMAGE_ID = ImageId("sha256:" + "4" * 64), ImageId("sha256:" + "5" * 64)
ANCHOR = Anchor("shop", BranchName("main"), "/wt", REVISION, TREE)
IMAGE = Image(IMAGE_ID, REVISION.hex)
CONTAINER = Container(
    id=ContainerId("6" * 64),
    name="shop-staging",
    image_id=IMAGE_ID,
    status="running",
    health="",
    started_at="2026-01-02T03:04:05Z",
    restart_count=0,
    network_mode="shop_default",
    ports=(Port("8000/tcp", "127.0.0.1", 8501),),
)
REPORT = HookReport(
    mode="--build-staging",
    exit_status=0,
    ok=True,
    kind="done",
    cause="",
    reason="built",
    revision=REVISION.hex,
    tree=TREE.hex,
    image_id=IMAGE_ID.digest,
    container_id=CONTAINER.id.hex,
    engine_id="ENGINE",
)
REFUSAL = replace(REPORT, mode="--verify", exit_status=1, ok=False, kind="refused", cause="revision-mismatch")
PRODUCTION = Production((replace(CONTAINER, id=ContainerId("7" * 64), name="shop"),), OTHER_IMAGE_ID)

UP: dict[str, Any] = {"clock": "2026-01-02T03:04:10Z", "settle": 5}

Change = dict[str, Any]


def test_empty_verdict_is_a_refusal() -> None:
    with pytest.raises(Refused, match="because"):
        Verdict("because").require()


def test_nothing_checked_is_refused() -> None:
    assert not all_of([])


def test_verdicts_on_different_subjects_are_refused() -> None:
    assert not all_of([Verdict("a", IMAGE_ID), Verdict("b", OTHER_IMAGE_ID)])


def test_one_refusal_refuses_all() -> None:
    assert not all_of([Verdict("a", IMAGE_ID), Verdict("no")])


def test_verdicts_on_one_subject_are_accepted() -> None:
    assert all_of([Verdict("a", IMAGE_ID), Verdict("b", IMAGE_ID)]).subject == IMAGE_ID


def test_equal_full_revisions_are_accepted() -> None:
    assert check_provenance(REVISION.hex, REVISION.hex).ok


@pytest.mark.parametrize(
    "other", ["", "*", "1" * 39, "1" * 41, " " + "1" * 40, "1" * 40 + "\n", "A" * 40, "2" * 40, "HEAD"]
)
def test_any_other_revision_is_refused(other: str) -> None:
    assert not check_provenance(REVISION.hex, other).ok
    assert not check_provenance(other, REVISION.hex).ok


@pytest.mark.parametrize("both", ["", "*", "1" * 39, "main"])
def test_equal_but_not_full_revisions_are_refused(both: str) -> None:
    assert not check_provenance(both, both).ok


def test_a_branch_that_stayed_is_accepted() -> None:
    assert check_anchor(ANCHOR, replace(ANCHOR)).ok


def test_a_branch_that_moved_is_refused() -> None:
    verdict = check_anchor(ANCHOR, replace(ANCHOR, revision=OTHER_REVISION))
    assert not verdict.ok
    assert "moved" in verdict.reason


def test_a_rebuild_of_the_anchor_is_accepted() -> None:
    old = replace(CONTAINER, id=ContainerId("8" * 64))
    assert check_rebuilt(REPORT, ANCHOR, IMAGE, old, "ENGINE").ok
    assert check_rebuilt(REPORT, ANCHOR, IMAGE, None, "ENGINE").ok


@pytest.mark.parametrize(
    "change",
    [
        {"ok": False, "kind": "refused"},
        {"revision": OTHER_REVISION.hex},
        {"revision": ""},
        {"tree": "9" * 40},
        {"tree": ""},
        {"image_id": OTHER_IMAGE_ID.digest},
        {"image_id": ""},
        {"engine_id": "ANOTHER"},
        {"engine_id": ""},
        {"container_id": "8" * 64},
    ],
    ids=str,
)
def test_a_rebuild_with_any_single_difference_is_refused(change: Change) -> None:
    old = replace(CONTAINER, id=ContainerId("8" * 64))
    assert not check_rebuilt(replace(REPORT, **change), ANCHOR, IMAGE, old, "ENGINE").ok


def test_no_rebuild_is_refused() -> None:
    assert not check_rebuilt(None, ANCHOR, IMAGE, None, "ENGINE").ok


def test_the_validated_label_is_accepted() -> None:
    assert check_label(IMAGE, REVISION).subject == IMAGE_ID


@pytest.mark.parametrize(
    "label", ["", OTHER_REVISION.hex, REVISION.hex[:12], REVISION.hex + "\n", f"{REVISION.hex}-dirty"]
)
def test_any_other_label_is_refused(label: str) -> None:
    assert not check_label(replace(IMAGE, revision_label=label), REVISION).ok


def test_a_container_of_the_built_image_is_accepted() -> None:
    assert check_container(CONTAINER, IMAGE_ID).ok
    assert check_container(replace(CONTAINER, health="healthy"), IMAGE_ID).ok
    assert check_same_container(CONTAINER, CONTAINER, IMAGE_ID, **UP).ok


CONTAINER_CHANGES: list[Change] = [
    {"image_id": OTHER_IMAGE_ID},
    {"status": "paused"},
    {"status": "exited"},
    {"status": "restarting"},
    {"restart_count": 1},
    {"health": "unhealthy"},
]


@pytest.mark.parametrize("change", CONTAINER_CHANGES, ids=str)
def test_a_container_with_any_single_difference_is_refused(change: Change) -> None:
    assert not check_container(replace(CONTAINER, **change), IMAGE_ID).ok


@pytest.mark.parametrize(
    "change", [*CONTAINER_CHANGES, {"id": ContainerId("8" * 64)}, {"started_at": "2026-01-02T03:05:05Z"}], ids=str
)
def test_a_container_that_changed_during_the_run_is_refused(change: Change) -> None:
    assert not check_same_container(CONTAINER, replace(CONTAINER, **change), IMAGE_ID, **UP).ok


def test_no_container_is_refused() -> None:
    assert not check_container(None, IMAGE_ID).ok
    assert not check_same_container(CONTAINER, None, IMAGE_ID, **UP).ok


@pytest.mark.parametrize(
    ("clock", "settle", "accepted"),
    [
        ("2026-01-02T03:04:10Z", 5, True),
        ("2026-01-02T05:04:10.123456789+02:00", 5, True),
        ("2026-01-02T03:04:09.999999Z", 5, False),
        ("2026-01-02T03:04:05Z", 0, True),
        ("2026-01-02T03:04:04Z", 0, False),
    ],
)
def test_a_container_must_be_up_long_enough_by_the_engine_s_clock(clock: str, settle: float, accepted: bool) -> None:
    assert check_same_container(CONTAINER, CONTAINER, IMAGE_ID, clock=clock, settle=settle).ok is accepted


@pytest.mark.parametrize("clock", ["", "now", "2026-01-02", "2026-01-02T03:04:05", "2026-01-02 03:04:05Z"])
def test_a_clock_that_shows_no_time_is_no_evidence(clock: str) -> None:
    with pytest.raises(EvidenceError, match="the engine's time is"):
        check_same_container(CONTAINER, CONTAINER, IMAGE_ID, clock=clock, settle=5)


def test_a_check_that_ends_with_0_is_accepted() -> None:
    assert check_staging_check(CheckResult(0, b"fine"), None, IMAGE_ID).ok
    tap = b"TAP version 13\n1..2\nok 1 - a\nok 2 - b\n"
    assert check_staging_check(CheckResult(0, tap), read_tap(tap), IMAGE_ID).ok


def test_a_check_that_failed_or_never_ran_is_refused() -> None:
    assert not check_staging_check(None, None, IMAGE_ID).ok
    assert "it said: no" in check_staging_check(CheckResult(1, b"PASS\nno\n"), None, IMAGE_ID).reason


@pytest.mark.parametrize(
    "tap",
    [
        b"TAP version 14\n1..1\n# Subtest: till\n    1..1\n    not ok 1 - the till\nok 1 - till\n",
        b"TAP version 14\n1..1\n    Bail out! no power\nok 1 - till\n",
        b"",
        b"PASS\n",
        b"ok 1\n",
        b"1..0 # skip nothing to do\n",
        b"1..2\nok 1\n",
        b"1..1\nok 1\nok 2\n",
        b"1..2\nok 1\nok 1\n",
        b"1..2\nok 2\nok 1\n",
        b"1..1\nnot ok 1 - x\n",
        b"1..1\nok 1 - x # SKIP later\n",
        b"1..1\nok 1 - x # TODO later\n",
        b"1..1\nok 1\nBail out! disk full\n",
        b"1..1\nok 1\n1..1\n",
    ],
    ids=str,
)
def test_tap_that_does_not_prove_everything_is_refused(tap: bytes) -> None:
    assert not check_staging_check(CheckResult(0, tap), read_tap(tap), IMAGE_ID).ok


@pytest.mark.parametrize(
    "output",
    [
        b"fine\nnot ok 2 - the till\n",
        b"TAP version 13\n1..2\nok 1\nnot ok 2 - the till\n",
        b"ok 1\nBail out! no database\n",
        b"1..0 # SKIP nothing to do\n",
        b"ok 1 # SKIP later\nok 2 # SKIP later\n",
    ],
    ids=str,
)
def test_an_exit_status_of_0_that_the_output_contradicts_is_refused(output: bytes) -> None:
    assert "its output says: " in check_staging_check(CheckResult(0, output), None, IMAGE_ID).reason


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"1.20 seconds\n12345 rows\nokay\n",
        b"it is not ok to say so in the middle\n",
        b"ok 1\nok 2 # SKIP later\n",
        b"ok 1\nnot ok 2 # TODO not yet\n",
        b"1..3\nok 1\n",
        b"TAP version 12\nok 1\n",
        b"\xff\xfe\0",
    ],
    ids=str,
)
def test_an_exit_status_decides_where_the_output_does_not_contradict(output: bytes) -> None:
    assert check_staging_check(CheckResult(0, output), None, IMAGE_ID).ok


@pytest.mark.parametrize("tap", [b"TAP version 12\n1..1\nok 1\n", b"1.." + b"9" * 5000 + b"\nok 1\n"], ids=len)
def test_what_is_no_tap_is_refused(tap: bytes) -> None:
    assert read_tap(tap).problem.startswith("it is no TAP: ")


def test_a_number_in_the_output_is_no_second_plan() -> None:
    assert read_tap(b"1..1\n12345 rows\n1.20 s\nok 1\n").problem == ""


def test_tap_without_numbers_counts_in_order() -> None:
    assert read_tap(b"ok - a\nok - b\n1..2\n").problem == ""


def test_untouched_production_is_accepted() -> None:
    assert check_production_untouched(PRODUCTION, PRODUCTION, IMAGE_ID).ok
    starting = Production((replace(PRODUCTION.containers[0], health="starting"),), OTHER_IMAGE_ID)
    healthy = Production((replace(PRODUCTION.containers[0], health="healthy"),), OTHER_IMAGE_ID)
    ill = Production((replace(PRODUCTION.containers[0], health="unhealthy"),), OTHER_IMAGE_ID)
    assert check_production_untouched(starting, healthy, IMAGE_ID).ok
    assert check_production_untouched(ill, ill, IMAGE_ID).ok
    nothing = Production((), None)
    assert "no container" in check_production_untouched(nothing, nothing, IMAGE_ID).reason


@pytest.mark.parametrize(
    "after",
    [
        Production((), OTHER_IMAGE_ID),
        Production(PRODUCTION.containers, IMAGE_ID),
        Production(PRODUCTION.containers, None),
        Production((replace(PRODUCTION.containers[0], started_at="later"),), OTHER_IMAGE_ID),
        Production((replace(PRODUCTION.containers[0], restart_count=1),), OTHER_IMAGE_ID),
        Production((*PRODUCTION.containers, CONTAINER), OTHER_IMAGE_ID),
        Production((replace(PRODUCTION.containers[0], status="paused"),), OTHER_IMAGE_ID),
        Production((replace(PRODUCTION.containers[0], name="renamed"),), OTHER_IMAGE_ID),
        Production((replace(PRODUCTION.containers[0], networks=("other 1",)),), OTHER_IMAGE_ID),
        Production((replace(PRODUCTION.containers[0], made_as="9" * 64),), OTHER_IMAGE_ID),
        Production((replace(PRODUCTION.containers[0], health="unhealthy"),), OTHER_IMAGE_ID),
    ],
    ids=[
        *("gone", "tag moved", "tag gone", "restarted", "crashed", "one more"),
        *("paused", "renamed", "on another network", "updated", "unhealthy"),
    ],
)
def test_touched_production_is_refused(after: Production) -> None:
    assert not check_production_untouched(PRODUCTION, after, IMAGE_ID).ok


def test_an_accepting_hook_is_accepted() -> None:
    assert check_accepted(REPORT, IMAGE_ID).ok


FROZEN = replace(REPORT, ok=False, kind="refused", cause="frozen", exit_status=1)


def test_a_hook_that_would_promote_once_production_is_not_frozen_is_accepted() -> None:
    assert check_accepted(FROZEN, IMAGE_ID).ok


@pytest.mark.parametrize(
    "change", [{"image_id": OTHER_IMAGE_ID.digest}, {"image_id": ""}, {"kind": "unknown"}, {"cause": "thawed"}], ids=str
)
def test_frozen_production_accepts_nothing_else(change: Change) -> None:
    assert not check_accepted(replace(FROZEN, **change), IMAGE_ID).ok


@pytest.mark.parametrize("change", [{"ok": False}, {"image_id": OTHER_IMAGE_ID.digest}, {"image_id": ""}], ids=str)
def test_a_hook_that_would_promote_something_else_is_refused(change: Change) -> None:
    assert not check_accepted(replace(REPORT, **change), IMAGE_ID).ok


def test_a_refusing_hook_is_accepted() -> None:
    assert check_refused(REFUSAL, "a wrong revision", {"revision-mismatch"}, IMAGE_ID).ok


@pytest.mark.parametrize(
    "change",
    [
        {"ok": True},
        {"exit_status": 0},
        {"exit_status": 2},
        {"kind": "usage"},
        {"cause": "image-missing"},
        {"cause": ""},
    ],
    ids=str,
)
def test_a_hook_that_refuses_otherwise_is_refused(change: Change) -> None:
    assert not check_refused(replace(REFUSAL, **change), "a wrong revision", {"revision-mismatch"}, IMAGE_ID).ok


@pytest.mark.parametrize("held", [12.0, 11.5, 40.0])
def test_a_lease_held_from_first_to_last_is_accepted(held: float) -> None:
    assert check_lease(Tenure(held=held, needed=12.0), IMAGE_ID).require() == IMAGE_ID


@pytest.mark.parametrize("held", [0.0, 3.0, 10.9])
def test_a_lease_that_began_anew_meanwhile_is_refused(held: float) -> None:
    verdict = check_lease(Tenure(held=held, needed=12.0), IMAGE_ID)
    assert not verdict
    assert "another run may have come between" in verdict.reason
