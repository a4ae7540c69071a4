"""`--observe` against a real engine: the engine's own words, and nothing changed but the moment of the pause proof."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
from typing import Any

import pytest

from pytest_imagefresh.core.contract import encode_list
from tests.hook.harness import Outcome, PretendedHost, RealHost, changed
from tests.support import foreign_server

WORDS = ["engine", "image", "container", "production", "owners", "changes", "answer", "log"]


def asked(host: RealHost, words: str, **changes: str | None) -> Outcome:
    unused = dict.fromkeys(["GIT_SHA", "BUILD_CONTEXT", "STAGING_CHECK_PATH", "BUILD_TIMEOUT", "CHECK_TIMEOUT"])
    prod = {name: value for name, value in host.promotion_variables().items() if name in ("PROD_IMAGE", "PROD_PORT")}
    variables = {**host.staging_variables(), **prod, "PROD_SERVICE": "orchestrator", "OBSERVE": words}
    return host.hook.call("--observe", changed(variables, {**unused, **changes}))


def observed(host: RealHost, words: str, **changes: str | None) -> dict[str, bytes]:
    outcome = asked(host, words, **changes)
    assert outcome.verdict == (0, "observed"), outcome.stderr
    found: Any = outcome.line["observed"]
    return {name: base64.b64decode(value) for name, value in found.items()}


def api(host: RealHost, kind: str, name: str) -> Any:
    return json.loads(host.engine.docker(kind, "inspect", name))[0]


@pytest.fixture
def running(real: RealHost) -> RealHost:
    """A host on which staging and production run."""
    image = real.copy.build_image(f"{real.copy.project}-by-hand")
    real.copy.start_prod(image)
    assert real.staging().verdict == (0, "built")
    return real


def test_the_engines_own_words_come_back(running: RealHost) -> None:
    copy, before = running.copy, running.production()
    found = {name: json.loads(data) for name, data in observed(running, ",".join(WORDS[:-1])).items()}
    assert found["engine"]["ID"] == running.engine.docker("info", "--format", "{{.ID}}")
    assert found["engine"]["SystemTime"].startswith("20")
    assert found["image"]["Id"] == running.image_of(copy.staging_image)
    assert found["container"] == [api(running, "container", copy.staging_container)]
    assert [each["Names"] for each in found["owners"]] == [[f"/{copy.staging_container}"]]
    assert found["answer"] == {"url": f"http://127.0.0.1:{copy.staging_port}/health", "answer": "200"}
    assert found["changes"] is None or isinstance(found["changes"], list)
    assert found["production_image"]["Id"] == running.image_of(copy.prod_image)
    assert running.production() == before
    assert observed(running, "log")["log"] != b""


def test_production_comes_without_its_environment(running: RealHost) -> None:
    text = observed(running, "production")["production"]
    whole = api(running, "container", running.copy.prod_container)
    ours = [each for each in json.loads(text) if each["Id"] == whole["Id"]]
    assert len(ours) == 1
    assert ours[0]["Config"]["Labels"] == whole["Config"]["Labels"]
    assert ours[0]["State"]["StartedAt"] == whole["State"]["StartedAt"]
    assert "Env" not in ours[0]["Config"]
    assert b"PYTHON" not in text


def test_what_is_not_there_is_null(running: RealHost) -> None:
    assert observed(running, "image", OBSERVE_IMAGE="sha256:" + "1" * 64)["image"] == b"null"
    running.copy.compose("rm", "--stop", "--force", "orchestrator-staging")
    assert observed(running, "container")["container"] == b"[]"
    assert asked(running, "answer").verdict == (1, "container-count")


def test_files_come_out_of_the_image_and_nothing_stays(running: RealHost) -> None:
    image = running.image_of(running.copy.staging_image)
    paths = encode_list(["/app", "/app/src", "/nowhere"])
    places = json.loads(observed(running, "places", OBSERVE_IMAGE=image, OBSERVE_PATHS=paths)["places"])
    assert [json.loads(base64.b64decode(each))["name"] for each in places[:2]] == ["app", "src"]
    assert places[2] == ""
    archive = observed(running, "archive", OBSERVE_IMAGE=image, OBSERVE_PATHS=encode_list(["/app/src"]))["archive"]
    assert b"src/orchestrator/" in archive
    assert json.loads(observed(running, "places", OBSERVE_PATHS=paths)["places"])[2] == ""
    assert running.engine.docker("ps", "--all", "--quiet", "--filter", "label=imagefresh.content") == ""


def test_files_of_no_other_image_are_told(running: RealHost) -> None:
    """Of what staging runs, and of what its service names, and of nothing else: production's image least of all."""
    staged, production = running.image_of(running.copy.staging_image), running.image_of(running.copy.prod_image)
    for words in ("places", "archive"):
        outcome = asked(running, words, OBSERVE_IMAGE=production, OBSERVE_PATHS=encode_list(["/app/src"]))
        assert outcome.verdict == (1, "image-not-staged")
    assert running.engine.docker("ps", "--all", "--quiet", "--filter", "label=imagefresh.content") == ""
    running.engine.docker("tag", production, running.copy.staging_image)
    for image in (staged, production):
        found = observed(running, "places", OBSERVE_IMAGE=image, OBSERVE_PATHS=encode_list(["/app"]))
        assert found["places"] != b'[""]'


def test_a_paused_container_is_silent_and_runs_again(running: RealHost) -> None:
    before = running.container(running.copy.staging_container, ".State.StartedAt")
    silence = json.loads(observed(running, "silence")["silence"])
    assert (silence["addresses"][0], silence["heard"], silence["state"]) == ("127.0.0.1", [], "paused")
    assert silence["answer"] == "200"
    assert 300 <= silence["seconds"] < silence["elapsed"] < 3000
    assert running.container(running.copy.staging_container, ".State.StartedAt") == before


def test_somebody_else_on_the_port_is_heard(running: RealHost) -> None:
    with foreign_server("127.0.0.2", running.copy.staging_port):
        silence = json.loads(observed(running, "silence")["silence"])
    assert silence["heard"] == ["127.0.0.2"]


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"TARGET_SERVICE": "orchestrator"}, "service-is-repo"),
        ({"PROD_SERVICE": "orchestrator-staging"}, "service-is-prod"),
        ({"COMPOSE_PROFILE": "other"}, "service-not-in-profile"),
    ],
    ids=str,
)
def test_nothing_but_staging_is_paused_or_told_of(running: RealHost, changes: dict[str, str], cause: str) -> None:
    for word in ("silence", "container", "log"):
        assert asked(running, word, **changes).verdict == (1, cause)


def test_production_is_never_paused_whatever_its_name(running: RealHost) -> None:
    running.copy.start_staging(running.image_of(running.copy.staging_image))
    outcome = asked(running, "silence", PROD_PORT=str(running.copy.staging_port), TARGET_PORT="1")
    assert outcome.verdict == (1, "port-is-prod"), outcome.reason


BAD: dict[str, list[str | None]] = {
    "OBSERVE": ["", "all", "image,", ",image", "image image", "image;id", "a[$(id)]", "silence,production\n", None],
    "OBSERVE_IMAGE": ["x", "sha256:1", "sha256:" + "A" * 64, "shop-shop", "../x"],
    "OBSERVE_PATHS": ["", "x", "$(id)", encode_list(["relative"]), None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_malformed_question_is_wrong_usage(pretended: PretendedHost, name: str, value: str | None) -> None:
    variables = {**pretended.staging_variables(), **pretended.promotion_variables(), "OBSERVE": "places"}
    outcome = pretended.hook.call("--observe", changed(variables, {"OBSERVE_PATHS": encode_list(["/"]), name: value}))
    assert outcome.status == 2, outcome.reason


def test_a_pause_ends_although_the_hook_is_killed_in_it(running: RealHost) -> None:
    name = running.copy.staging_container
    variables = {**running.staging_variables(), **running.promotion_variables(), "OBSERVE": "silence"}
    hook = subprocess.Popen(
        [running.hook.path, "--observe"], env=variables, stdout=-3, stderr=-3, start_new_session=True
    )
    while (status := running.container(name, ".State.Status")) == "running" and hook.poll() is None:
        pass
    os.killpg(hook.pid, signal.SIGKILL)
    hook.wait()
    assert status == "paused"
    give_up = time.monotonic() + 10
    while running.container(name, ".State.Status") == "paused" and time.monotonic() < give_up:
        time.sleep(0.1)
    assert running.container(name, ".State.Status") == "running"
