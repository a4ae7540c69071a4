"""What the host's compose file says of staging otherwise than the commit's: named, masked, and no noise."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_imagefresh.core.compose import (
    SAME,
    ComposeEvidence,
    Difference,
    compare_services,
    secret_variables,
    service_of,
)
from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.masking import Masker

MOUNT = {"type": "bind", "source": "./data", "target": "/data"}
SERVICE: dict[str, Any] = {
    "profiles": ["staging"],
    "image": "shop-staging",
    "command": None,
    "environment": {"ROLE": "staging", "API_TOKEN": "t0ken-of-host"},
    "volumes": [MOUNT],
    "build": {"context": "."},
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
SERVICES = st.dictionaries(st.text(st.characters(codec="ascii"), min_size=1, max_size=4), VALUES, max_size=5)


def told(host: dict[str, Any] | None, commit: dict[str, Any] | None) -> list[str]:
    """Return the lines on the differences, as the evidence has them."""
    evidence = ComposeEvidence("web", {}, "", "", tuple(compare_services(host, commit)))
    return evidence.lines(Masker(["token"]))[2:]


@given(SERVICES)
def test_a_service_is_its_own_equal(service: dict[str, Any]) -> None:
    assert compare_services(service, json.loads(json.dumps(service))) == []


@given(SERVICES, SERVICES)
def test_what_differs_is_found_from_both_sides(host: dict[str, Any], commit: dict[str, Any]) -> None:
    found = compare_services(host, commit)
    turned = compare_services(commit, host)
    if not host.get("env_file") and not commit.get("env_file"):
        assert [Difference(each.path, each.commit, each.host) for each in found] == turned


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"image": "other"}, 'services.web.image: host has "other", commit has "shop-staging"'),
        ({"command": ["sh"]}, 'services.web.command: host has ["sh"], commit has nothing'),
        ({"privileged": True}, "services.web.privileged: host has true, commit has nothing"),
        ({"profiles": ["b", "staging"]}, 'services.web.profiles: host has ["b", "staging"], commit has ["staging"]'),
        (
            {"environment": {"ROLE": "prod", "API_TOKEN": "t0ken-of-host"}},
            'services.web.environment.ROLE: host has "prod", commit has "staging"',
        ),
        (
            {"volumes": [MOUNT, {"type": "bind", "source": "/", "target": "/host"}]},
            'services.web.volumes: host has [{"source": "/", "target": "/host", "type": "bind"}], commit has nothing',
        ),
        ({"volumes": []}, f"services.web.volumes: host has nothing, commit has [{json.dumps(MOUNT, sort_keys=True)}]"),
        (
            {"networks": {"web": {"ipv4": "::"}}},
            'services.web.networks.web.ipv4: host has "::", commit has nothing',
        ),
    ],
    ids=str,
)
def test_each_difference_is_one_line(change: dict[str, Any], line: str) -> None:
    assert told({**SERVICE, **change}, SERVICE) == [line]


def test_a_secret_that_differs_is_named_and_not_told() -> None:
    host = {**SERVICE, "environment": {"ROLE": "staging", "API_TOKEN": "another-t0ken"}}
    line = 'services.web.environment.API_TOKEN: host has "***", commit has "***" (both secret, and not the same)'
    assert told(host, SERVICE) == [line]


@pytest.mark.parametrize(
    "change",
    [
        {"build": {"context": "/elsewhere"}},
        {"build": None},
        {"command": []},
        {"entrypoint": None, "labels": {}},
        {"x-more": 1},
    ],
    ids=str,
)
def test_what_says_nothing_makes_no_noise(change: dict[str, Any]) -> None:
    assert told({**SERVICE, **change}, SERVICE) == []


def test_what_an_env_file_adds_is_the_hosts_own() -> None:
    commit = {**SERVICE, "env_file": [{"path": "./more.env"}]}
    host = {**SERVICE, "environment": {**SERVICE["environment"], "MORE": "x"}}
    assert told(host, commit) == []
    assert len(told({**host, "environment": {"MORE": "x", "ROLE": "other"}}, commit)) == 2


def test_a_service_that_only_one_file_has_is_one_difference() -> None:
    assert told(None, None) == []
    [line] = told({"image": "a"}, None)
    assert line == 'services.web: host has {"image": "a"}, commit has nothing'
    evidence = ComposeEvidence("web", {}, "", "", tuple(compare_services(None, {"image": "a"})))
    assert evidence.sentence() == "service web of the host's file differs from the commit's: all of it"


def test_the_sentence_names_the_keys_and_the_lines_the_hash() -> None:
    host = {**SERVICE, "image": "x", "environment": {"ROLE": "a", "API_TOKEN": "bcde"}}
    evidence = ComposeEvidence("web", {}, "ab12", "", tuple(compare_services(host, SERVICE)))
    assert evidence.sentence() == "service web of the host's file differs from the commit's: environment, image"
    assert evidence.lines(Masker([]))[:2] == [
        "sha256 of the host's resolved configuration: ab12",
        evidence.sentence(),
    ]
    assert ComposeEvidence("web", {}, "ab12").sentence() == SAME
    assert ComposeEvidence("web", {}, "", "nobody knows").sentence() == "nobody knows"


def test_a_long_value_is_cut() -> None:
    [line] = told({**SERVICE, "image": "x" * 10000}, SERVICE)
    assert len(line) < 700


def test_the_project_folder_is_called_by_no_name() -> None:
    volumes = [{"source": "/srv/shop/data"}, {"source": "/srv/shop"}, {"source": "/srv/shopping"}]
    found = service_of({"services": {"web": {"volumes": volumes}}}, "web", "/srv/shop/")
    assert found == {"volumes": [{"source": "./data"}, {"source": "."}, {"source": "/srv/shopping"}]}
    assert service_of({}, "web", "/srv") is None
    assert service_of({"services": {"other": {}}}, "web", "/srv") is None


@pytest.mark.parametrize("services", [["x"], {"web": []}, "x"], ids=str)
def test_what_is_no_table_of_services_is_no_evidence(services: object) -> None:
    with pytest.raises(EvidenceError, match="as service web"):
        service_of({"services": services}, "web", "/srv")


def test_secrets_are_learned_from_every_service() -> None:
    services = {"web": SERVICE, "db": {"environment": {"DB_PASSWORD": "p"}}, "odd": {"environment": ["A=b"]}}
    assert secret_variables({"services": services}) == {**SERVICE["environment"], "DB_PASSWORD": "p"}
    assert secret_variables({}) == {}
