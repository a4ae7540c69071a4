"""What production ran before: kept, found again, and let go of; and whose compose file could replace it."""

from __future__ import annotations

import json

import pytest

from tests.hook.harness import PROD_ID, REVISION, STAGING_ID, PretendedHost
from tests.hook.test_operations import situation, told

FIRST, SECOND, THIRD = PROD_ID, STAGING_ID, "sha256:" + "7" * 64


def promote(host: PretendedHost, image: str) -> None:
    """Let staging's name point to an image, and promote it."""
    state = host.state
    labels = {**state["labels"], image: json.dumps(REVISION)}
    host.set(labels=labels, images={**state["images"], "shop-shop-staging:latest": image})
    outcome = host.promote(EXPECTED_IMAGE_ID=image)
    assert outcome.verdict == (0, "promoted"), outcome.stderr


def kept(host: PretendedHost) -> list[str]:
    """The images that are kept, in the order in which they were."""
    return [
        each["image"] for each in host.state["containers"] if each["status" if "status" in each else "id"] == "created"
    ]


def test_the_previous_image_comes_back_and_the_regretted_one_is_kept(pretended: PretendedHost) -> None:
    promote(pretended, SECOND)
    outcome = pretended.rollback()
    assert outcome.verdict == (0, "restored"), outcome.stderr
    assert pretended.production == [FIRST]
    assert pretended.state["images"]["shop-shop:latest"] == FIRST
    assert (pretended.compose_dir / ".env").read_text() == f"PIN={FIRST}\n"
    assert sorted(kept(pretended)) == sorted([FIRST, SECOND])
    assert "code goes back and data does not" in outcome.stderr
    assert "code goes back and data does not" in outcome.reason


def test_no_precheck_holds_up_the_way_back(pretended: PretendedHost) -> None:
    promote(pretended, SECOND)
    pretended.fail(r" run -d .*imagefresh-precheck")
    assert pretended.rollback(PRECHECK="yes").verdict == (0, "restored")
    assert pretended.production == [FIRST]


def test_rolling_back_twice_goes_further_back_and_never_to_what_was_regretted(pretended: PretendedHost) -> None:
    promote(pretended, SECOND)
    promote(pretended, THIRD)
    assert pretended.rollback().image_id == SECOND
    assert pretended.rollback().image_id == FIRST
    last = pretended.rollback()
    assert last.verdict == (4, "no-previous")
    assert pretended.production == [FIRST]
    assert "docker compose" in last.reason
    assert pretended.rollback(SOURCE_IMAGE=THIRD).verdict == (0, "restored")


def test_an_image_that_is_not_kept_is_no_way_back(pretended: PretendedHost) -> None:
    promote(pretended, SECOND)
    pretended.set(labels={**pretended.state["labels"], THIRD: ""}, calls=[])
    assert pretended.rollback(SOURCE_IMAGE=THIRD).verdict == (4, "no-previous")
    assert pretended.changes() == []


@pytest.mark.parametrize("change", [{"SOURCE_IMAGE": "shop-shop"}, {"EXPECTED_REVISION": REVISION}, {"VERDICT": "x"}])
def test_a_rollback_takes_no_names_and_no_proofs(pretended: PretendedHost, change: dict[str, str]) -> None:
    promote(pretended, SECOND)
    assert pretended.rollback(**change).status == 2
    assert pretended.production == [SECOND]


def test_a_rollback_that_does_not_get_healthy_is_itself_rolled_back(pretended: PretendedHost) -> None:
    promote(pretended, SECOND)
    pretended.set(answer_of={FIRST: "500"})
    outcome = pretended.rollback(HEALTH_TIMEOUT="0.3")
    assert outcome.verdict == (3, "unhealthy")
    assert pretended.production == [SECOND]
    assert (pretended.compose_dir / ".env").read_text() == f"PIN={SECOND}\n"


def test_a_freeze_does_not_hold_up_a_rollback(pretended: PretendedHost) -> None:
    promote(pretended, SECOND)
    pretended.freeze()
    assert pretended.rollback().verdict == (0, "restored")


def test_status_and_history_tell_a_rollback(pretended: PretendedHost) -> None:
    promote(pretended, SECOND)
    promote(pretended, THIRD)
    pretended.rollback()
    found = situation(pretended.status())
    assert (found["verified"], found["proof"]) == (True, f"production runs {SECOND}, as promoted")
    entry = told(pretended.history())[-1]
    assert (entry["mode"], entry["cause"], entry["image_id"], entry["previous"]) == (
        "--rollback",
        "restored",
        SECOND,
        THIRD,
    )
    pretended.rollback()  # to an image that ran before this history began
    assert situation(pretended.status())["verified"] is False


def test_only_the_newest_previous_images_are_kept_and_older_ones_go(pretended: PretendedHost) -> None:
    images = [f"sha256:{digit * 64}" for digit in "abcdef"]
    for image in images:
        promote(pretended, image)
    assert sorted(kept(pretended)) == images[2:5]
    state = pretended.state
    assert images[1] not in state["labels"], "an image that nobody names and nobody keeps any more is removed"
    assert images[5] in state["labels"]


def test_an_older_image_that_has_a_name_is_let_go_of_and_stays(pretended: PretendedHost) -> None:
    images = [f"sha256:{digit * 64}" for digit in "abcdef"]
    for image in images:
        promote(pretended, image)
        if image == images[0]:
            pretended.set(images={**pretended.state["images"], "shop:of-somebody": image})
    assert images[0] not in kept(pretended)
    assert pretended.state["images"]["shop:of-somebody"] == images[0]
    assert images[0] in pretended.state["labels"]


@pytest.mark.root
def test_the_policy_says_how_many_are_kept(pretended: PretendedHost) -> None:
    pretended.policy(KEEP="1", REQUIRE="revision")
    for digit in "abc":
        promote(pretended, f"sha256:{digit * 64}")
    assert kept(pretended) == ["sha256:" + "b" * 64]


def test_the_first_promotion_is_announced_as_such(pretended: PretendedHost) -> None:
    pretended.set(containers=[], images={"shop-shop-staging:latest": STAGING_ID})
    outcome = pretended.promote()
    assert "this is the first promotion of shop on this host" in outcome.stderr
    assert kept(pretended) == []


@pytest.mark.parametrize(
    ("change", "cause", "line"),
    [
        ({"build": {"context": "/srv"}}, "production-builds", "remove build: of shop"),
        ({"pull_policy": None}, "production-pulls", "write pull_policy: never below shop"),
        ({"pull_policy": "always"}, "production-pulls", "observed always"),
        ({"pull_policy": "build"}, "production-pulls", "observed build"),
    ],
)
@pytest.mark.parametrize("pin", ["PIN", ""], ids=["pinned", "override"])
def test_a_production_that_compose_could_replace_is_refused_with_the_line_to_change(
    pretended: PretendedHost, change: dict[str, object], cause: str, line: str, pin: str
) -> None:
    pretended.service("shop", **change, **({} if pin else {"image": "shop-shop"}))
    for outcome in (pretended.verify(PROD_PIN=pin), pretended.promote(PROD_PIN=pin)):
        assert outcome.verdict == (1, cause)
        assert line in outcome.reason
    assert pretended.changes() == []
