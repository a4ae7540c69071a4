"""`--build-staging` cannot reach production, whatever it is given: a good call, and tables of one-change refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.hook.harness import PROD_ID, PretendedHost


def refused(host: PretendedHost, cause: str, **variables: str | None) -> str:
    """Call `--build-staging`, expect this refusal and an untouched host, and return the reason."""
    before = host.state["containers"], host.state["images"]
    outcome = host.staging(**variables)
    assert outcome.verdict == (1, cause), outcome.reason
    assert host.changes() == []
    assert (host.state["containers"], host.state["images"]) == before
    assert f"imagefresh: refused: {outcome.reason}" in outcome.stderr
    return outcome.reason


def test_the_good_call_builds_and_leaves_production_alone(pretended: PretendedHost) -> None:
    outcome = pretended.staging(PROD_IMAGE="shop-shop", PROD_SERVICE="shop", PROD_PORT="43100")
    assert outcome.verdict == (0, "built")
    production = next(each for each in pretended.state["containers"] if each["service"] == "shop")
    assert (production["id"], production["image"]) == ("8" * 64, PROD_ID)
    assert pretended.state["images"]["shop-shop:latest"] == PROD_ID
    recreated = [call for call in pretended.calls if " up " in call]
    assert [call.split()[-1] for call in recreated] == ["shop-staging"]
    assert "--force-recreate --no-deps --no-build --pull never" in recreated[0]


@pytest.mark.parametrize(
    ("variables", "cause"),
    [
        ({"TARGET_SERVICE": "shop"}, "service-is-repo"),
        ({"TARGET_SERVICE": "Shop"}, "service-is-repo"),
        ({"TARGET_IMAGE": "shop-shop"}, "image-is-prod"),
        ({"TARGET_IMAGE": "shop-shop:latest"}, "image-is-prod"),
        ({"TARGET_IMAGE": "docker.io/library/shop-shop"}, "image-is-prod"),
        ({"TARGET_IMAGE": "index.docker.io/library/shop-shop:latest"}, "image-is-prod"),
        ({"REPO": "SHOP", "TARGET_IMAGE": "shop-shop"}, "image-is-prod"),
        ({"PROD_SERVICE": "shop-staging"}, "service-is-prod"),
        ({"PROD_IMAGE": "docker.io/library/shop-shop-staging:latest"}, "image-is-prod"),
        ({"PROD_PORT": "43101"}, "port-is-prod"),
        ({"TARGET_SERVICE": "unknown"}, "service-missing"),
        ({"COMPOSE_PROFILE": "other"}, "service-not-in-profile"),
        ({"STAGING_CONTAINER": "shop"}, "container-name"),
        ({"TARGET_IMAGE": "db:1"}, "image-of-other-service"),
    ],
    ids=str,
)
def test_names_of_production_are_refused(pretended: PretendedHost, variables: dict[str, str], cause: str) -> None:
    refused(pretended, cause, **variables)


def test_production_of_another_name_is_refused_as_a_target(pretended: PretendedHost) -> None:
    pretended.service("web", image="web", ports=[{"published": "43109"}])
    pretended.set(always=["shop", "web"])
    reason = refused(pretended, "service-not-in-profile", TARGET_SERVICE="web")
    assert "observed profiles: none" in reason


def test_a_staging_service_that_a_plain_up_starts_is_refused(pretended: PretendedHost) -> None:
    pretended.set(always=["shop", "shop-staging"])
    reason = refused(pretended, "service-without-profile")
    assert "COMPOSE_PROFILES" in reason


@pytest.mark.parametrize("image", ["shop-shop-staging", "shop-shop-staging:latest", "docker.io/shop-shop-staging"])
def test_an_image_that_another_service_runs_is_refused(pretended: PretendedHost, image: str) -> None:
    pretended.service("shop", image=image)
    assert "the image of service shop" in refused(pretended, "image-of-other-service")


def test_the_image_that_compose_names_by_itself_is_refused(pretended: PretendedHost) -> None:
    pretended.service("shop", image=None, build={"context": "/srv"})
    refused(pretended, "image-of-other-service", TARGET_IMAGE="project-shop")


def test_a_port_of_a_service_outside_the_profile_is_refused(pretended: PretendedHost) -> None:
    pretended.service("shop", ports=[{"published": "43101"}])
    assert "a port of shop" in refused(pretended, "port-of-other-service")


@pytest.mark.parametrize(
    "owner",
    [{"project": "", "service": ""}, {"project": "other"}, {"service": "shop"}, {"oneoff": "True"}],
    ids=str,
)
def test_a_port_that_another_container_publishes_is_refused(pretended: PretendedHost, owner: dict[str, str]) -> None:
    stranger = {
        "id": "3" * 64,
        "name": "stranger",
        "image": PROD_ID,
        "project": "project",
        "service": "shop-staging",
        "ports": [["80/tcp", "0.0.0.0", "43101"]],
    }
    pretended.set(containers=[*pretended.state["containers"], {**stranger, **owner}])
    assert "observed container stranger" in refused(pretended, "port-taken")


@pytest.mark.parametrize("owner", [{"project": "", "service": ""}, {"project": "other"}, {"service": "shop"}], ids=str)
def test_a_container_of_the_name_that_belongs_to_another_is_refused(
    pretended: PretendedHost, owner: dict[str, str]
) -> None:
    ours = {"project": "project", "service": "shop-staging"}
    stranger = {"id": "3" * 64, "name": "shop-staging", "image": PROD_ID, "ports": [], **ours, **owner}
    pretended.set(containers=[*pretended.state["containers"], stranger])
    refused(pretended, "container-foreign")


def test_a_container_name_is_compared_as_text_and_not_as_a_pattern(pretended: PretendedHost) -> None:
    stranger = {"id": "3" * 64, "name": "shopXstaging", "image": PROD_ID, "project": "x", "service": "y", "ports": []}
    pretended.set(containers=[*pretended.state["containers"], stranger])
    pretended.service("shop-staging", container_name="shop.staging")
    assert pretended.staging(STAGING_CONTAINER="shop.staging").verdict == (0, "built")


@pytest.mark.parametrize(
    ("variables", "cause"),
    [
        ({}, "service-was-promoted"),
        ({"TARGET_SERVICE": "other"}, "port-was-promoted"),
        ({"TARGET_SERVICE": "other", "TARGET_PORT": "43105"}, "image-was-promoted"),
    ],
    ids=["service", "port", "image"],
)
def test_what_was_once_promoted_is_production_for_good(
    pretended: PretendedHost, variables: dict[str, str], cause: str
) -> None:
    pretended.service("shop-staging", image="${PIN}", profiles=None, pull_policy="never", build=None)
    production = {"PROD_SERVICE": "shop-staging", "PROD_PORT": "43101", "PROD_IMAGE": "docker.io/shop-shop-staging"}
    assert pretended.promote(**production, PROD_PIN=None).verdict == (0, "promoted")
    pretended.set(calls=[])
    assert "promoted; name staging's own" in refused(pretended, cause, **variables)


# --- the compose folder -----------------------------------------------------------------------------------------------


def test_a_folder_without_a_compose_file_is_refused_before_compose_looks_upwards(pretended: PretendedHost) -> None:
    inner = pretended.compose_dir / "inner"
    inner.mkdir()
    refused(pretended, "compose-missing", COMPOSE_DIR=str(inner))
    assert not [call for call in pretended.calls if call.startswith("docker compose ")]


@pytest.mark.parametrize("name", ["compose.yml", "docker-compose.yml", "docker-compose.yaml", ".env"])
def test_every_name_of_a_compose_file_is_known(pretended: PretendedHost, name: str) -> None:
    (pretended.compose_dir / "compose.yaml").rename(pretended.compose_dir / name)
    (pretended.compose_dir / name).write_text("COMPOSE_FILE=deploy/x.yaml\n")
    assert pretended.staging().verdict == (0, "built")


def test_text_in_a_compose_file_cannot_pass_for_a_service(pretended: PretendedHost) -> None:
    spoof = '      "image": "x"\n    "evil": {\n      "profiles": [\n        "staging"'
    pretended.service("shop-staging", environment={"A": spoof, "image": "evil"}, labels={"profiles": "evil"})
    assert pretended.staging().verdict == (0, "built")
    refused_again = pretended.staging(TARGET_SERVICE="evil", STAGING_CONTAINER="project-evil-1")
    assert refused_again.cause == "service-missing"


# --- what runs afterwards ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after_up", "cause"),
    [
        ({"image": PROD_ID}, "container-image"),
        ({"name": "another"}, "container-name"),
        ({"ports": []}, "port-not-published"),
        ({"ports": [["8000/tcp", "127.0.0.1", "43102"]]}, "port-not-published"),
        ({"ports": [["8000/udp", "127.0.0.1", "43101"]]}, "port-not-published"),
        ({"status": "exited", "exit": 3}, "unhealthy"),
        ({"status": "restarting"}, "unhealthy"),
        ({"status": "paused"}, "unhealthy"),
        ({"restarts": 1}, "unhealthy"),
        ({"health": "unhealthy"}, "unhealthy"),
    ],
    ids=str,
)
def test_what_runs_is_not_what_was_built(pretended: PretendedHost, after_up: dict[str, Any], cause: str) -> None:
    pretended.set(after_up={"": after_up})
    outcome = pretended.staging()
    assert outcome.verdict == (1, cause)
    assert pretended.state["images"]["shop-shop-staging:latest"] == "sha256:" + "5" * 64  # the tag has not moved
    assert "imagefresh-run:20260102t030405z-89abcdef" not in json.dumps(pretended.state["images"])


def test_a_second_container_of_the_service_is_refused(pretended: PretendedHost) -> None:
    second = {
        "id": "4" * 64,
        "name": "x",
        "image": PROD_ID,
        "project": "project",
        "service": "shop-staging",
        "ports": [],
    }
    pretended.set(left_behind=[second])
    assert pretended.staging().verdict == (1, "container-count")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "", "::"])
def test_health_is_asked_where_the_container_publishes(pretended: PretendedHost, host: str) -> None:
    pretended.set(after_up={"": {"ports": [["8000/tcp", host, "43101"]]}})
    assert pretended.staging().verdict == (0, "built")
    assert any(call.endswith("http://127.0.0.1:43101/health") for call in pretended.calls)


@pytest.mark.parametrize(("host", "url"), [("192.0.2.7", "192.0.2.7:43101"), ("2001:db8::1", "[2001:db8::1]:43101")])
def test_health_is_asked_at_the_address_that_the_container_names(pretended: PretendedHost, host: str, url: str) -> None:
    pretended.set(after_up={"": {"ports": [["9/tcp", "", "43109"], ["8000/tcp", host, "43101"]]}})
    assert pretended.staging().verdict == (0, "built")
    assert any(call.endswith(f"http://{url}/health") for call in pretended.calls)


def test_host_networking_counts_as_owning_the_port(pretended: PretendedHost) -> None:
    pretended.set(after_up={"": {"ports": [], "network": "host"}})
    assert pretended.staging().verdict == (0, "built")


@pytest.mark.parametrize("answers", [["302"], ["500"], ["204"], ["000"], ["404", "503"], ["2000"]], ids=str)
def test_only_200_is_healthy(pretended: PretendedHost, answers: list[str]) -> None:
    pretended.set(answers=answers)
    outcome = pretended.staging(HEALTH_TIMEOUT="0.5")
    assert outcome.verdict == (1, "unhealthy")
    assert any(f"observed {answer} for" in outcome.reason for answer in answers)
    assert "the log of the container" in outcome.reason


def test_health_may_take_its_time(pretended: PretendedHost) -> None:
    pretended.set(answers=["000", "503", "302", "200"])
    assert pretended.staging(HEALTH_TIMEOUT="30").verdict == (0, "built")


# --- the staging check ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [1, 2, 124, 126, 127, 137])
def test_a_check_that_does_not_end_with_0_refuses(pretended: PretendedHost, status: int) -> None:
    pretended.set(check={"status": status, "output": "ok 1\nPASS"})
    outcome = pretended.staging()
    assert outcome.verdict == (1, "check-failed")
    assert outcome.line["check_status"] == status
    assert "it ended with: PASS" in outcome.reason


def test_a_check_that_hangs_is_ended_in_the_container_too(pretended: PretendedHost) -> None:
    pretended.set(check={"sleep": 60})
    outcome = pretended.staging(CHECK_TIMEOUT="1")
    assert outcome.verdict == (1, "check-timeout")
    assert outcome.line["check_status"] is None
    assert f"docker container restart -t 2 {outcome.line['container_id']}" in pretended.calls


def test_the_check_runs_once_and_by_the_full_id(pretended: PretendedHost) -> None:
    outcome = pretended.staging()
    checks = [call for call in pretended.calls if "container exec" in call]
    assert checks == [f"docker container exec {outcome.line['container_id']} python3 scripts/check.py --mode stub"]


# --- what the builder says --------------------------------------------------------------------------------------------


def test_a_builder_that_names_another_image_is_refused(pretended: PretendedHost) -> None:
    pretended.set(iid=PROD_ID)
    assert pretended.staging().verdict == (1, "image-id-mismatch")


@pytest.mark.parametrize("label", ["", '""', '"unknown"', json.dumps("2" * 40), json.dumps(" " + "1" * 40)])
def test_an_image_without_the_label_of_this_build_is_refused(pretended: PretendedHost, label: str) -> None:
    pretended.set(stamped=label)
    assert pretended.staging().verdict == (1, "revision-mismatch")
    assert not [call for call in pretended.calls if " up " in call]


@pytest.mark.parametrize(
    ("client", "buildx", "buildkit"), [("20.10.24+dfsg1", False, "1"), ("28.2.2", True, "1"), ("28.2.2", False, "0")]
)
def test_buildkit_is_used_where_the_host_has_it(
    pretended: PretendedHost, client: str, buildx: bool, buildkit: str
) -> None:
    pretended.set(client=client, buildx=buildx)
    assert pretended.staging().status == 0
    build = next(call for call in pretended.state["calls"] if call["argv"][1] == "build")
    assert build["env"]["DOCKER_BUILDKIT"] == buildkit
    assert not {"--secret", "--ssh", "--network", "--allow", "--privileged"} & set(build["argv"])


def test_a_build_that_takes_too_long_is_no_decision(pretended: PretendedHost) -> None:
    pretended.fail("docker build --iidfile", sleep=60)
    assert pretended.staging(BUILD_TIMEOUT="1").verdict == (11, "timeout")
    assert "imagefresh-run" not in json.dumps(pretended.state["images"])
