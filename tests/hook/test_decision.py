"""What `--verify` and `--promote` decide, and that both decide alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.hook.harness import PROD_ID, REVISION, RUN_ID, STAGING_ID, Outcome, PretendedHost

OTHER = "2" * 40
OTHER_ID = "sha256:" + "7" * 64


def both(host: PretendedHost, **variables: str | None) -> Outcome:
    """Let `--verify` and `--promote` decide; they must agree, and a refusal must change nothing."""
    before = host.state["containers"], host.state["images"]
    verified = host.verify(**variables)
    assert (host.state["containers"], host.state["images"]) == before
    assert host.changes() == []
    promoted = host.promote(**variables)
    if verified.status == 0:
        assert promoted.verdict == (0, "promoted")
    else:
        assert promoted.verdict == verified.verdict
        assert promoted.reason == verified.reason
        assert (host.state["containers"], host.state["images"]) == before
        assert host.changes() == []
        assert not (host.compose_dir / ".env").exists()
    return verified


def test_the_validated_image_is_promoted(pretended: PretendedHost) -> None:
    outcome = both(pretended)
    assert outcome.verdict == (0, "verified")
    assert (outcome.image_id, outcome.line["revision"]) == (STAGING_ID, REVISION)
    assert pretended.state["images"] == {
        "shop-shop-staging:latest": STAGING_ID,
        "shop-shop:latest": STAGING_ID,
        "shop-shop:imagefresh-previous": PROD_ID,
    }
    assert pretended.production == [STAGING_ID]
    assert (pretended.compose_dir / ".env").read_text() == f"PIN={STAGING_ID}\n"


@pytest.mark.parametrize(
    ("expected", "cause"),
    [
        ("", "revision-empty"),
        (REVISION[:12], "revision-malformed"),
        (REVISION[:39], "revision-malformed"),
        (REVISION + "1", "revision-malformed"),
        ("A" * 40, "revision-malformed"),
        ("*", "revision-malformed"),
        ("?" * 40, "revision-malformed"),
        ("[0-9a-f]" * 5, "revision-malformed"),
        (" " + REVISION, "revision-malformed"),
        (REVISION + " ", "revision-malformed"),
        (REVISION + "\n", "revision-malformed"),
        (f"{REVISION}\n{REVISION}", "revision-malformed"),
        ("HEAD", "revision-malformed"),
        ("main", "revision-malformed"),
        ("$(id)", "revision-malformed"),
        (OTHER, "revision-mismatch"),
        ("0" * 40, "revision-mismatch"),
    ],
    ids=repr,
)
def test_any_other_expected_revision_is_refused(pretended: PretendedHost, expected: str, cause: str) -> None:
    assert both(pretended, EXPECTED_REVISION=expected).verdict == (1, cause)


@pytest.mark.parametrize(
    ("label", "cause"),
    [
        ("", "revision-missing"),
        ('""', "revision-missing"),
        ("null", "revision-missing"),
        ('"null"', "revision-mismatch"),
        (json.dumps(OTHER), "revision-mismatch"),
        (json.dumps(REVISION[:12]), "revision-mismatch"),
        (json.dumps(REVISION + " "), "revision-mismatch"),
        (json.dumps(REVISION + "\n"), "revision-mismatch"),
        (json.dumps(" " + REVISION), "revision-mismatch"),
        (json.dumps("*"), "revision-mismatch"),
        (json.dumps(REVISION + '"'), "revision-mismatch"),
    ],
    ids=repr,
)
def test_any_other_label_is_refused(pretended: PretendedHost, label: str, cause: str) -> None:
    pretended.set(labels={**pretended.state["labels"], STAGING_ID: label})
    assert both(pretended).verdict == (1, cause)


@pytest.mark.parametrize("label", ["", '""'])
def test_nothing_expected_and_nothing_observed_is_refused(pretended: PretendedHost, label: str) -> None:
    pretended.set(labels={**pretended.state["labels"], STAGING_ID: label})
    assert both(pretended, EXPECTED_REVISION="").verdict == (1, "revision-empty")


@pytest.mark.parametrize(
    ("expected", "cause"),
    [
        ("", "image-id-empty"),
        ("5" * 64, "image-id-malformed"),
        ("sha256:" + "5" * 12, "image-id-malformed"),
        (STAGING_ID.upper(), "image-id-malformed"),
        (STAGING_ID + " ", "image-id-malformed"),
        (STAGING_ID + "\n", "image-id-malformed"),
        ("*", "image-id-malformed"),
        ("shop-shop-staging", "image-id-malformed"),
        (OTHER_ID, "image-id-mismatch"),
        (PROD_ID, "image-id-mismatch"),
    ],
    ids=repr,
)
def test_any_other_expected_image_is_refused(pretended: PretendedHost, expected: str, cause: str) -> None:
    assert both(pretended, EXPECTED_IMAGE_ID=expected).verdict == (1, cause)


def test_a_tag_that_moved_after_the_gate_is_refused(pretended: PretendedHost) -> None:
    pretended.set(
        images={**pretended.state["images"], "shop-shop-staging:latest": OTHER_ID},
        labels={**pretended.state["labels"], OTHER_ID: json.dumps(REVISION)},
    )
    outcome = both(pretended)
    assert outcome.verdict == (1, "image-id-mismatch")
    assert "the tag moved after the gate" in outcome.reason


def test_the_image_can_be_named_by_its_id(pretended: PretendedHost) -> None:
    assert both(pretended, SOURCE_IMAGE=STAGING_ID).verdict == (0, "verified")


def test_a_name_is_never_read_as_the_start_of_an_id(pretended: PretendedHost) -> None:
    both(pretended, SOURCE_IMAGE="abcdef123456")
    looked_at = {call.split()[-1] for call in pretended.calls if "image inspect" in call}
    assert looked_at == {"abcdef123456:latest"}


def test_an_image_that_is_not_there_is_refused(pretended: PretendedHost) -> None:
    assert both(pretended, SOURCE_IMAGE="gone").verdict == (1, "image-missing")


def test_without_expectations_it_promotes_with_a_loud_warning(pretended: PretendedHost) -> None:
    outcome = both(pretended, EXPECTED_REVISION=None, EXPECTED_IMAGE_ID=None)
    assert outcome.verdict == (0, "verified")
    assert "WARNING: EXPECTED_REVISION is not set" in outcome.stderr
    assert "WARNING: EXPECTED_IMAGE_ID is not set" in outcome.stderr


def test_with_expectations_there_is_no_warning(pretended: PretendedHost) -> None:
    assert "WARNING" not in pretended.verify().stderr


def test_expectations_are_decided_even_without_an_engine(pretended: PretendedHost) -> None:
    pretended.fail("docker info")
    assert pretended.verify(EXPECTED_REVISION="").verdict == (1, "revision-empty")


# --- production as compose tells it -----------------------------------------------------------------------------------


def test_a_service_that_is_not_there_is_refused(pretended: PretendedHost) -> None:
    assert both(pretended, PROD_SERVICE="nobody").verdict == (1, "service-missing")


def test_a_service_of_another_profile_is_refused(pretended: PretendedHost) -> None:
    pretended.service("shop", profiles=["prod"])
    assert both(pretended).verdict == (1, "service-not-in-profile")
    assert both(pretended, PROD_PROFILE="staging").verdict == (1, "service-not-in-profile")
    assert both(pretended, PROD_PROFILE="prod").verdict == (0, "verified")


def test_a_compose_file_that_ignores_the_pin_is_refused_with_the_line_to_write(pretended: PretendedHost) -> None:
    pretended.service("shop", image="shop-shop:latest")
    outcome = both(pretended)
    assert outcome.verdict == (1, "pin-unused")
    assert "write image: ${PIN:-unpromoted:run-deploy-hook}" in outcome.reason


def test_a_port_of_a_stranger_is_refused(pretended: PretendedHost) -> None:
    stranger = {"id": "3" * 64, "name": "x", "image": PROD_ID, "project": "", "service": ""}
    pretended.set(containers=[{**stranger, "ports": [["80/tcp", "", "43100"]]}])
    assert both(pretended).verdict == (1, "port-taken")


def test_two_containers_of_production_are_refused(pretended: PretendedHost) -> None:
    first = pretended.state["containers"][0]
    pretended.set(containers=[first, {**first, "id": "4" * 64}])
    assert both(pretended).verdict == (1, "container-count")


@pytest.mark.parametrize("text", ["PIN=a\nPIN=b\n", "PIN=a\nexport PIN=b\n", "PIN=a\n  PIN = b\n"])
def test_a_pin_that_is_set_twice_is_refused(pretended: PretendedHost, text: str) -> None:
    path = pretended.compose_dir / ".env"
    path.write_text(text)
    assert pretended.verify().verdict == (1, "pin-ambiguous")
    assert pretended.promote().verdict == (1, "pin-ambiguous")
    assert path.read_text() == text
    assert pretended.changes() == []


# --- how it promotes --------------------------------------------------------------------------------------------------


def test_production_is_recreated_by_id_and_the_tag_moves_last(pretended: PretendedHost) -> None:
    pretended.promote()
    up = next(call for call in pretended.state["calls"] if "up" in call["argv"])
    assert " ".join(up["argv"]) == "docker compose up -d --force-recreate --no-deps --no-build --pull never shop"
    assert up["env"]["PIN"] == STAGING_ID
    changes = pretended.changes()
    assert [call.split()[-1] for call in changes] == ["shop-shop:imagefresh-previous", PROD_ID, "shop", "shop-shop"]


def test_without_a_pin_an_override_names_the_image(pretended: PretendedHost) -> None:
    pretended.service("shop", image="shop-shop")
    assert both(pretended, PROD_PIN="").verdict == (0, "verified")
    assert not (pretended.compose_dir / ".env").exists()
    up = next(call for call in pretended.calls if " up " in call)
    assert "compose.json -f " in up
    assert "override.yaml up -d --force-recreate --no-deps --no-build --pull never shop" in up


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "PIN={}\n"),
        ("", "PIN={}\n"),
        ("A=1\n", "A=1\nPIN={}\n"),
        ("A=1", "A=1\nPIN={}\n"),
        ("PIN=old", "PIN={}"),
        ("# PIN=x\nA=1\nPIN=old\n\nB='two words' # kept\r\n", "# PIN=x\nA=1\nPIN={}\n\nB='two words' # kept\r\n"),
        ("export PIN = 'old'\nMY_PIN=x\nPIN2=y\n", "PIN={}\nMY_PIN=x\nPIN2=y\n"),
    ],
    ids=repr,
)
def test_exactly_the_line_of_the_pin_changes(pretended: PretendedHost, before: str | None, after: str) -> None:
    path = pretended.compose_dir / ".env"
    if before is not None:
        path.write_bytes(before.encode())
    assert pretended.promote().verdict == (0, "promoted")
    assert path.read_bytes() == after.format(STAGING_ID).encode()
    assert sorted(each.name for each in pretended.compose_dir.iterdir()) == [".env", ".imagefresh", "compose.yaml"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_the_pin_file_keeps_mode_and_place(pretended: PretendedHost, tmp_path: Path, mode: int) -> None:
    real = tmp_path / "real.env"
    real.write_text("PIN=old\n")
    real.chmod(mode)
    (pretended.compose_dir / ".env").symlink_to(real)
    assert pretended.promote().verdict == (0, "promoted")
    assert (pretended.compose_dir / ".env").is_symlink()
    assert real.read_text() == f"PIN={STAGING_ID}\n"
    assert real.stat().st_mode & 0o777 == mode


def test_a_pin_file_whose_owner_and_mode_cannot_be_kept_is_refused_in_time(pretended: PretendedHost) -> None:
    (pretended.tools / "cp").write_text('#!/bin/sh\n[ "$1" != -p ] || shift\nexec /bin/cp "$@"\n')
    (pretended.tools / "cp").chmod(0o755)
    path = pretended.compose_dir / ".env"
    path.write_text("PIN=old\n")
    path.chmod(0o646)
    assert pretended.promote().verdict == (1, "pin-file")
    assert path.read_text() == "PIN=old\n"
    assert pretended.changes() == []


def test_promoting_the_same_image_again_keeps_the_real_previous_one(pretended: PretendedHost) -> None:
    pretended.promote()
    assert pretended.promote().verdict == (0, "promoted")
    assert pretended.state["images"]["shop-shop:imagefresh-previous"] == PROD_ID


def test_the_first_promotion_needs_no_previous_image(pretended: PretendedHost) -> None:
    pretended.set(containers=[], images={"shop-shop-staging:latest": STAGING_ID})
    assert pretended.promote().verdict == (0, "promoted")
    assert "shop-shop:imagefresh-previous" not in pretended.state["images"]


# --- rolling back -----------------------------------------------------------------------------------------------------

BAD_CONTAINERS: list[dict[str, Any]] = [
    {"status": "exited", "exit": 1},
    {"restarts": 2},
    {"health": "unhealthy"},
    {"ports": []},
    {"image": OTHER_ID},
]


@pytest.mark.parametrize("after_up", BAD_CONTAINERS, ids=str)
def test_an_image_that_does_not_prove_itself_is_rolled_back(pretended: PretendedHost, after_up: dict[str, Any]) -> None:
    pretended.set(after_up={STAGING_ID: after_up})
    (pretended.compose_dir / ".env").write_text(f"PIN={PROD_ID}\n")
    outcome = pretended.promote()
    assert outcome.status == 3
    assert f"production runs the previous image {PROD_ID} again" in outcome.reason
    assert pretended.production == [PROD_ID]
    assert pretended.state["images"]["shop-shop:latest"] == PROD_ID
    assert (pretended.compose_dir / ".env").read_text() == f"PIN={PROD_ID}\n"
    assert sorted(each.name for each in pretended.compose_dir.iterdir()) == [".env", ".imagefresh", "compose.yaml"]


@pytest.mark.parametrize(
    ("after_up", "cause"),
    [
        ({"command": ["sh"]}, "container-start"),
        ({"entrypoint": ["sh"]}, "container-start"),
        ({"user": "0"}, "container-start"),
        ({"mounts": ["/volume", "/app"]}, "container-mounts"),
    ],
    ids=str,
)
def test_a_container_that_starts_something_else_than_its_image_is_rolled_back(
    pretended: PretendedHost, after_up: dict[str, Any], cause: str
) -> None:
    pretended.set(after_up={STAGING_ID: after_up})
    assert pretended.promote().verdict == (3, cause)
    assert pretended.production == [PROD_ID]


@pytest.mark.parametrize(
    ("says", "after_up"),
    [
        ({"command": ["sh"]}, {"command": ["sh"]}),
        ({"entrypoint": ["sh"]}, {"entrypoint": ["sh"], "command": None}),
        ({"user": "0"}, {"user": "0"}),
        ({"volumes": [{"type": "bind", "source": "/srv", "target": "/data"}]}, {"mounts": ["/volume", "/data"]}),
        ({"secrets": [{"source": "key"}]}, {"mounts": ["/run/secrets/key"]}),
        ({"configs": [{"source": "a", "target": "/etc/a"}]}, {"mounts": ["/etc/a"]}),
    ],
    ids=str,
)
def test_what_the_host_s_compose_file_says_otherwise_is_right(
    pretended: PretendedHost, says: dict[str, object], after_up: dict[str, Any]
) -> None:
    pretended.service("shop", **says)
    pretended.set(after_up={STAGING_ID: after_up})
    outcome = pretended.promote()
    assert outcome.verdict == (0, "promoted"), outcome.stderr


def test_an_image_that_never_gets_healthy_is_rolled_back(pretended: PretendedHost) -> None:
    pretended.set(answer_of={STAGING_ID: "500"})
    outcome = pretended.promote(HEALTH_TIMEOUT="0.3")
    assert outcome.verdict == (3, "unhealthy")
    assert "observed 500" in outcome.reason


@pytest.mark.parametrize("call", [" up ", "image tag sha256:5.* shop-shop$", "config --format json"])
def test_a_command_that_fails_after_the_swap_began_is_rolled_back(pretended: PretendedHost, call: str) -> None:
    after = 1 if "config" in call else 0
    pretended.fail(call, times=1, after=after, stderr="it broke\n")
    (pretended.compose_dir / ".env").write_text(f"A=1\nPIN={PROD_ID}\n")
    outcome = pretended.promote()
    assert outcome.status == 3
    assert "it broke" in outcome.reason
    assert pretended.production == [PROD_ID]
    assert pretended.state["images"]["shop-shop:latest"] == PROD_ID
    assert (pretended.compose_dir / ".env").read_text() == f"A=1\nPIN={PROD_ID}\n"


def test_a_tag_that_moved_before_the_failure_is_moved_back(pretended: PretendedHost) -> None:
    pretended.fail("image inspect .*-- shop-shop$", after=1, times=1, stderr="something else\n")
    assert pretended.promote().verdict == (3, "engine-answer")
    assert pretended.state["images"]["shop-shop:latest"] == PROD_ID


def test_an_engine_that_restarts_during_the_swap_is_waited_for(pretended: PretendedHost) -> None:
    pretended.fail(" up ", times=1, stderr="error during connect\n")
    pretended.fail("docker info", after=1, times=3, stderr="Cannot connect\n")
    outcome = pretended.promote()
    assert (outcome.status, outcome.cause) == (3, "engine-down")
    assert "the engine does not answer (1 of 30)" in outcome.stderr


def test_a_rollback_that_fails_needs_a_person(pretended: PretendedHost) -> None:
    pretended.set(after_up={"": {"status": "exited"}})
    outcome = pretended.promote()
    assert outcome.verdict == (4, "unhealthy")
    assert "the rollback failed too" in outcome.reason


def test_without_a_previous_image_what_did_not_prove_itself_is_stopped(pretended: PretendedHost) -> None:
    pretended.set(containers=[], images={"shop-shop-staging:latest": STAGING_ID}, answers=["500"])
    outcome = pretended.promote(HEALTH_TIMEOUT="0.3")
    assert outcome.verdict == (4, "unhealthy")
    assert [each["status"] for each in pretended.state["containers"]] == ["exited"]
    assert not (pretended.compose_dir / ".env").exists()


def test_a_folder_that_cannot_hold_the_new_pin_file_is_refused_in_time(pretended: PretendedHost) -> None:
    (pretended.compose_dir / f".env.imagefresh-{RUN_ID}").mkdir()
    outcome = pretended.promote()
    assert outcome.verdict == (1, "pin-file")
    assert pretended.changes() == []
