"""`PRECHECK=yes`: the candidate runs beside production before that is touched, and never stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hook.crash import KILL_SESSION, Crashing, Point, send
from tests.hook.harness import PROD_ID, STAGING_ID, Outcome, PretendedHost, RealHost
from tests.hook.test_real_promotion import SILENT, break_staging

STARTED = " run -d "


def left(host: PretendedHost) -> list[str]:
    """The containers that a precheck has left behind."""
    return [each["name"] for each in host.state["containers"] if "precheck" in each]


@pytest.mark.parametrize("pin", ["PIN", ""], ids=["pinned", "override"])
def test_the_candidate_runs_beside_production_first(pretended: PretendedHost, pin: str) -> None:
    if not pin:
        pretended.service("shop", image="shop-shop")
    assert pretended.promote(PRECHECK="yes", PROD_PIN=pin).verdict == (0, "promoted")
    calls = pretended.calls
    (beside,) = [number for number, call in enumerate(calls) if STARTED in call]
    (recreated,) = [number for number, call in enumerate(calls) if " up " in call]
    asked = [number for number, call in enumerate(calls) if "127.0.0.1:49153/health" in call]
    assert beside < asked[0] < recreated
    assert left(pretended) == []


@pytest.mark.parametrize("value", [None, "", "no"])
def test_nobody_who_did_not_ask_gets_one(pretended: PretendedHost, value: str | None) -> None:
    assert pretended.promote(PRECHECK=value).verdict == (0, "promoted")
    assert [call for call in pretended.calls if STARTED in call] == []


@pytest.mark.parametrize(
    ("beside", "cause"),
    [
        ({"image": PROD_ID}, "container-image"),
        ({"status": "exited", "exit": 1}, "unhealthy"),
        ({"restarts": 1}, "unhealthy"),
        ({"command": ["other"]}, "container-start"),
        ({"ports": []}, "port-not-published"),
        ({"ports": [["8000/tcp", "0.0.0.0", "49153"]]}, "port-not-published"),
    ],
    ids=str,
)
def test_any_single_difference_refuses(pretended: PretendedHost, beside: dict[str, object], cause: str) -> None:
    before = pretended.state["containers"]
    pretended.set(beside=beside)
    assert pretended.promote(PRECHECK="yes").verdict == (1, f"precheck-{cause}")
    assert pretended.state["containers"] == before
    assert [call for call in pretended.calls if " up " in call] == []


def test_one_that_does_not_answer_refuses(pretended: PretendedHost) -> None:
    pretended.set(answer_of={STAGING_ID: "503"})
    assert pretended.promote(PRECHECK="yes", HEALTH_TIMEOUT="0.2").verdict == (1, "precheck-unhealthy")
    assert (left(pretended), pretended.production) == ([], [PROD_ID])


def test_one_that_does_not_start_refuses(pretended: PretendedHost) -> None:
    pretended.fail(STARTED, stderr="the address is in use\n")
    outcome = pretended.promote(PRECHECK="yes")
    assert outcome.verdict == (1, "precheck-start-failed")
    assert "the address is in use" in outcome.reason


def interrupted(host: PretendedHost, folder: Path, action: str) -> Outcome | None:
    """Let something happen to the hook once the candidate was started beside production."""
    crashing = Crashing(folder, {name: host.tools / name for name in ("docker", "curl")}, engine="unix:///nowhere.sock")
    variables = {**host.promotion_variables(), "PRECHECK": "yes"}
    outcome = crashing.call("--promote", variables, Point(moment="after", command=STARTED, action=action))
    assert crashing.acted
    return outcome


@pytest.mark.parametrize("signal", ["HUP", "INT", "TERM"])
def test_a_signal_leaves_nothing_behind(pretended: PretendedHost, tmp_path: Path, signal: str) -> None:
    outcome = interrupted(pretended, tmp_path / "crashing", send(signal))
    assert outcome is not None
    assert outcome.verdict == (11, "interrupted")
    assert (left(pretended), pretended.production) == ([], [PROD_ID])


def test_what_a_killed_run_left_is_removed(pretended: PretendedHost, tmp_path: Path) -> None:
    assert interrupted(pretended, tmp_path / "crashing", KILL_SESSION) is None
    assert len(left(pretended)) == 1
    assert pretended.recover().status == 0
    assert (left(pretended), pretended.production) == ([], [PROD_ID])


@pytest.mark.docker
def test_on_a_real_engine_a_silent_image_never_reaches_production(real: RealHost) -> None:
    copy = real.copy
    good = copy.build_image(copy.staging_image)
    outcome = real.promote(PRECHECK="yes")
    assert outcome.verdict == (0, "promoted"), outcome.stderr
    assert real.container(copy.prod_container, ".Image") == good
    before = real.production()
    break_staging(real, SILENT)
    outcome = real.promote(PRECHECK="yes", HEALTH_TIMEOUT="1")
    assert outcome.verdict == (1, "precheck-unhealthy"), json.dumps(outcome.line)
    assert real.production() == before
    names = real.engine.docker(
        "container", "ls", "--all", "--format", "{{.Names}}", "--filter", "label=imagefresh.precheck"
    )
    assert copy.project not in names
