"""The engine behind the hook: the engine's own answers are read as ever, everything else is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pytest_imagefresh.core.content import Place
from pytest_imagefresh.core.errors import EvidenceError, Refused
from pytest_imagefresh.core.evidence import Answer, Change, HookReport, PortOwner
from pytest_imagefresh.core.identity import ContainerId, ImageId, RunId
from pytest_imagefresh.core.settings import default_target
from pytest_imagefresh.observed_engine import ObservedEngine

TARGET = default_target("shop", "shop")
CONTAINER, OTHER = ContainerId("c" * 64), ContainerId("d" * 64)
IMAGE = ImageId("sha256:" + "1" * 64)
RUN = RunId("20260102T030405Z-89abcdef")


def container(container_id: ContainerId, name: str) -> dict[str, Any]:
    """Return an inspect JSON that says the least."""
    return {
        "Id": container_id.hex,
        "Name": f"/{name}",
        "Image": IMAGE.digest,
        "Path": "python3",
        "Args": [],
        "RestartCount": 0,
        "State": {"Status": "running", "StartedAt": "2026-01-02T03:04:05Z", "Health": None},
        "Config": {"Labels": {"com.docker.compose.service": "shop"}},
        "HostConfig": {"NetworkMode": "n"},
        "Mounts": [],
        "NetworkSettings": {"Ports": {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8500"}]}, "Networks": {}},
    }


ANSWERS: dict[str, object] = {
    "engine": {"ID": "ENGINE:ONE", "SystemTime": "2026-01-02T03:05:00Z"},
    "image": {"Id": IMAGE.digest, "RepoTags": ["shop-shop-staging:latest"], "Config": {}},
    "container": [container(CONTAINER, "shop-staging")],
    "production": [container(OTHER, "shop")],
    "production_image": None,
    "owners": [
        {
            "Id": CONTAINER.hex,
            "Names": ["/shop-staging"],
            "Ports": [{"PublicPort": 8501, "Type": "tcp", "IP": "127.0.0.1"}],
        }
    ],
    "changes": [{"Path": "/tmp", "Kind": 0}],
    "places": [base64.b64encode(json.dumps({"mode": 1 << 31, "linkTarget": ""}).encode()).decode()],
    "answer": {"url": "http://127.0.0.1:8501/health", "answer": "200"},
}


class Hook:
    """Answers `--observe`; `changes` replace what it says, and None leaves it out."""

    def __init__(self, container_id: str = CONTAINER.hex, /, **changes: bytes | None) -> None:
        told = {name: json.dumps(value).encode() for name, value in ANSWERS.items()}
        told |= {"log": b"one\ntwo\nthree\n", "archive": b"tar"}
        self.told = {name: value for name, value in {**told, **changes}.items() if value is not None}
        self.container_id = container_id
        self.asked: list[tuple[str, ImageId | None, tuple[str, ...]]] = []

    def __call__(
        self, word: str, *, image: ImageId | None = None, paths: Sequence[str] = (), timeout: float | None = None
    ) -> HookReport:
        self.asked.append((word, image, tuple(paths)))
        names = {word, f"{word}_image"} & set(self.told)
        observed = {name: self.told[name] for name in names}
        return HookReport(
            "--observe", 0, True, "done", "observed", "", container_id=self.container_id, observed=observed
        )


def engine(container_id: str = CONTAINER.hex, /, **changes: bytes | None) -> ObservedEngine:
    return ObservedEngine(Hook(container_id, **changes), TARGET, "host")


def test_the_engines_answers_become_the_same_values() -> None:
    seen = engine()
    assert (seen.id, seen.read_clock()) == ("ENGINE:ONE", "2026-01-02T03:05:00Z")
    image, staging = seen.read_image(TARGET.image), seen.read_container("shop-staging")
    assert image is not None
    assert staging is not None
    assert (image.id, staging.id, staging.image_id) == (IMAGE, CONTAINER, IMAGE)
    assert seen.read_container(CONTAINER.hex) == staging
    assert seen.read_container("shop") is seen.read_container(OTHER.hex) is None
    assert seen.read_port_owners(8501) == (PortOwner(CONTAINER, "shop-staging", "127.0.0.1"),)
    assert seen.read_changes(CONTAINER) == (Change("/tmp", "changed"),)
    assert seen.read_answer(CONTAINER) == Answer("http://127.0.0.1:8501/health", 200)
    assert seen.logs_tail(CONTAINER, 2) == b"two\nthree\n"


def test_production_is_judged_as_ever() -> None:
    production = engine().read_production(TARGET.prod, TARGET.prod_image, "/srv/shop")
    assert [each.id for each in production.containers] == [OTHER]
    assert production.image_id is None
    stopped = json.dumps([container(OTHER, "stranger") | {"NetworkSettings": {"Ports": {}, "Networks": {}}}]).encode()
    assert engine(production=stopped).read_production(TARGET.prod, TARGET.prod_image, "/srv/shop").containers == ()


def test_what_is_not_there_is_none() -> None:
    assert engine(image=b"null").read_image(IMAGE.digest) is None
    assert engine(container=b"[]").read_container("shop-staging") is None
    assert engine(places=b'[""]').read_place(CONTAINER, "/x") == Place("")


def test_files_of_an_image_are_asked_for_by_its_id() -> None:
    hook = Hook("")
    seen = ObservedEngine(hook, TARGET, "host")
    with seen.scratch_container(IMAGE, RUN) as stand_in:
        assert seen.read_place(stand_in, "/app") == Place("folder")
        assert b"".join(seen.read_archive(stand_in, "/app", timeout=1)) == b"tar"
    assert hook.asked[1:] == [("places", IMAGE, ("/app",)), ("archive", IMAGE, ("/app",))]


ABOUT_STAGING: dict[str, Callable[[ObservedEngine], object]] = {
    "changes": lambda seen: seen.read_changes(CONTAINER),
    "log": lambda seen: seen.logs_tail(CONTAINER, 1),
    "answer": lambda seen: seen.read_answer(CONTAINER),
    "places": lambda seen: seen.read_place(CONTAINER, "/x"),
}


@pytest.mark.parametrize("word", ABOUT_STAGING)
@pytest.mark.parametrize("told", [OTHER.hex, "", CONTAINER.hex[:12]])
def test_another_container_than_ours_is_no_evidence(word: str, told: str) -> None:
    with pytest.raises(EvidenceError, match="the hook observed container"):
        ABOUT_STAGING[word](engine(told))


EVERY: dict[str, Callable[[ObservedEngine], object]] = {
    **ABOUT_STAGING,
    "image": lambda seen: seen.read_image(IMAGE.digest),
    "container": lambda seen: seen.read_container("shop-staging"),
    "production": lambda seen: seen.read_production(TARGET.prod, TARGET.prod_image, "/srv/shop"),
    "production_image": lambda seen: seen.read_production(TARGET.prod, TARGET.prod_image, "/srv/shop"),
    "owners": lambda seen: seen.read_port_owners(8501),
    "engine": lambda seen: seen.read_clock(),
}


@pytest.mark.parametrize("word", EVERY)
@pytest.mark.parametrize("told", [None, b"", b"{", b"7", b'"x"', b"[7]", b'{"a":1}'], ids=str)
def test_a_strange_answer_is_no_evidence(word: str, told: bytes | None) -> None:
    if word == "log" and told is not None:
        return  # any bytes are a log
    with pytest.raises(EvidenceError):
        EVERY[word](ObservedEngine(Hook(CONTAINER.hex, **{word: told}), TARGET, "host"))


def test_an_engine_that_answers_for_another_image_is_no_evidence() -> None:
    with pytest.raises(EvidenceError, match="the engine answers with"):
        engine().read_image("sha256:" + "2" * 64)


def test_what_needs_the_engine_is_refused_in_one_line() -> None:
    seen = engine()
    for ask in (
        lambda: seen.client,
        lambda: seen.run_in_container(CONTAINER, ["true"], timeout=1),
        lambda: seen.unlabelled_image("a:b").__enter__(),
        lambda: seen.paused(CONTAINER).__enter__(),
    ):
        with pytest.raises(Refused, match="out of reach") as refusal:
            ask()
        assert "\n" not in str(refusal.value)
