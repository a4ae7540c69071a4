"""What operators ask and order, on a real host: status, history, freezing, breaking the glass."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.pipeline import Pipeline
from tests.gate_folder import Ended

pytestmark = pytest.mark.root  # a policy is root's

FREEZE, NIGHT = "the database is being moved", "the night shift knows why"


@pytest.fixture
def deployed(pipeline: Pipeline) -> Pipeline:
    """A pipeline whose production and staging run something that nobody has promoted, on a host with a policy."""
    pipeline.deploy()
    pipeline.write_policy()
    return pipeline


def order(pipeline: Pipeline, command: str, *options: str) -> Ended:
    return pipeline.imagefresh(command, "--repo", pipeline.copy.name, *options)


def situation(pipeline: Pipeline) -> Any:
    return pipeline.read("status")["orchestrator"]


def runs(pipeline: Pipeline, container: str) -> tuple[str, str]:
    """Return image ID and start of a container, in the engine's own words."""
    image, since = pipeline.copy.engine.docker(
        "container", "inspect", "--format", "{{.Image}} {{.State.StartedAt}}", container
    ).split()
    return image, since


def told(found: Any) -> tuple[str, str]:
    return found["image_id"], found["since"]


def test_operators_see_what_runs_stop_it_and_let_it_go_on(deployed: Pipeline) -> None:
    old = deployed.prod
    found = situation(deployed)
    [production], [staging] = found["production"], found["staging"]
    assert production["revision"] == staging["revision"] == old
    assert told(production) == runs(deployed, deployed.copy.prod_container)
    assert told(staging) == runs(deployed, deployed.copy.staging_container)
    assert (found["verified"], found["frozen"], found["promoted"]) == (False, None, None)
    assert "the history knows of no promotion of orchestrator" in found["proof"]

    new = deployed.copy.commit({"src/orchestrator/NEWS": "new"})
    assert order(deployed, "freeze", "--reason", FREEZE).status == 0
    gate = deployed.gate()
    assert gate.status == 0, gate.output
    refused = deployed.promote()
    assert refused.status == 1, refused.output
    assert refused.says(f"expected it not to be frozen, observed that it is, since .* by uid:0.*: {FREEZE}")
    assert (deployed.prod, deployed.staging) == (old, new)
    frozen = situation(deployed)["frozen"]
    assert frozen["reason"] == FREEZE
    assert order(deployed, "status").says(f"frozen since .* by uid:0.*: {FREEZE}")

    assert order(deployed, "unfreeze").says(f"it was frozen since .*: {FREEZE}")
    promoted = deployed.promote()
    assert promoted.status == 0, promoted.output
    found = situation(deployed)
    [production] = found["production"]
    assert (found["verified"], found["frozen"], production["revision"]) == (True, None, new)
    assert told(production) == runs(deployed, deployed.copy.prod_container)
    assert found["promoted"]["revision"] == deployed.prod == new

    history = deployed.read("history")
    assert [(each["mode"], each["cause"]) for each in history] == [
        ("--freeze", "frozen"),
        ("--build-staging", "built"),
        ("--promote", "frozen"),
        ("--unfreeze", "unfrozen"),
        ("--promote", "promoted"),
    ]
    assert [each["time"] for each in history] == sorted(each["time"] for each in history)
    assert {each["who"] for each in history} == {frozen["who"]}


def test_the_glass_breaks_only_where_the_policy_says_so_and_loudly(deployed: Pipeline) -> None:
    before = runs(deployed, deployed.copy.prod_container)
    revision = deployed.copy.commit({"src/orchestrator/NEWS": "nobody has tried this"})
    image = deployed.copy.build_image(f"{deployed.copy.project}-unproven")
    options = ("--image", image, "--reason", NIGHT)
    refused = order(deployed, "break-glass", *options)
    assert refused.status == 1, refused.output
    assert refused.says("expected BREAK_GLASS=yes in a policy of this host")
    assert runs(deployed, deployed.copy.prod_container) == before

    policy = deployed.policies / "orchestrator.conf"
    policy.write_text(policy.read_text() + "BREAK_GLASS=yes\n")
    broken = order(deployed, "break-glass", *options)
    assert broken.status == 0, broken.output
    assert broken.says("WHICH NOTHING HAS PROVEN")
    assert deployed.prod == revision

    found = situation(deployed)
    assert (found["verified"], found["previous_tag"]) == (False, before[0])
    assert found["break_glass"].startswith("production was promoted by break-glass, past every proof")
    assert order(deployed, "status").says("by break-glass")
    last = deployed.read("history")[-1]
    assert (last["mode"], last["image_id"], last["previous"]) == ("--break-glass", image, before[0])
    assert last["reason"].startswith(f"{NIGHT}: ")


@pytest.mark.fault
def test_a_regretted_promotion_is_taken_back(deployed: Pipeline) -> None:
    old, before = deployed.prod, runs(deployed, deployed.copy.prod_container)[0]
    new = deployed.copy.commit({"src/orchestrator/NEWS": "to be regretted"})
    for ended in (deployed.gate(), deployed.promote()):
        assert ended.status == 0, ended.output
    image = runs(deployed, deployed.copy.prod_container)[0]
    assert (deployed.prod, [each["image_id"] for each in situation(deployed)["kept"]]) == (new, [before])

    back = order(deployed, "rollback")
    assert back.status == 0, back.output
    assert back.says("code goes back and data does not")
    assert (deployed.prod, runs(deployed, deployed.copy.prod_container)[0]) == (old, before)
    assert situation(deployed)["open"] is None

    nowhere = order(deployed, "rollback")
    assert nowhere.status == 4, nowhere.output
    assert nowhere.says(f"expected a previous image among those that are kept for it.*observed .*{image}")
    assert deployed.prod == old

    forth = order(deployed, "rollback", "--to", image)
    assert forth.status == 0, forth.output
    assert (deployed.prod, runs(deployed, deployed.copy.prod_container)[0]) == (new, image)
    causes = [each["cause"] for each in deployed.read("history")]
    assert causes == ["built", "promoted", "restored", "no-previous", "restored"]
