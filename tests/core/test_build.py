"""A build stays inside its commit, or it is refused."""

from __future__ import annotations

import pytest

from pytest_imagefresh.core.build import (
    ComposeFile,
    check_build,
    check_build_table,
    check_reach,
    find_compose_files,
)
from pytest_imagefresh.core.errors import ConfigError, EvidenceError, Refused
from pytest_imagefresh.core.settings import Build

ROOT = "/tmp/x/shop"
GOOD: dict[str, object] = {
    "context": f"{ROOT}/app",
    "dockerfile": "docker/Dockerfile",
    "target": "run",
    "args": {"BASE": "python:3.12", "EMPTY": "", "GIT_SHA": "0" * 40},
}


def test_takes_context_dockerfile_target_and_arguments() -> None:
    expected = Build(
        context="app", dockerfile="docker/Dockerfile", target="run", args={"BASE": "python:3.12", "EMPTY": ""}
    )
    assert check_build(GOOD, ROOT, service="s") == expected


def test_says_what_compose_says_where_keys_are_missing() -> None:
    assert check_build({}, ROOT, service="s") == Build(context=".", dockerfile="Dockerfile", target="", args={})


@pytest.mark.parametrize(
    ("context", "expected"),
    [(ROOT, "."), (f"{ROOT}/", "."), (f"{ROOT}/a/../b", "b"), (f"{ROOT}/..a", "..a"), (f"{ROOT}/~/x", "~/x")],
)
def test_gives_the_context_relative_to_the_tree(context: str, expected: str) -> None:
    assert check_build({"context": context}, ROOT, service="s").context == expected


@pytest.mark.parametrize(
    ("dockerfile", "expected"),
    [("Dockerfile.gate", "Dockerfile.gate"), ("./a//b", "a/b"), (f"{ROOT}/app/b", "b"), ("a/../b", "b")],
)
def test_gives_the_dockerfile_relative_to_the_context(dockerfile: str, expected: str) -> None:
    assert check_build({**GOOD, "dockerfile": dockerfile}, ROOT, service="s").dockerfile == expected


REACHING: dict[str, list[object]] = {
    "context": [
        "/",
        "/etc",
        "/tmp/x",
        "/tmp/x/shopping",
        f"{ROOT}/../other",
        f"//{ROOT}/../other",
        "https://example.org/x.git",
        "git@example.org:x.git",
        "ssh://example.org/x",
        "github.com/x/y",
        "docker-image://alpine",
        "service:other",
        "app",
        "../x",
        f"{ROOT}/a\nb",
    ],
    "dockerfile": ["/etc/passwd", "../Dockerfile", "../../x", "a/../../x", ".", f"{ROOT}/Dockerfile", "a\nb"],
    "target": ["--network=host", "a b", "a\nb"],
    "args": [{"N": None}, {"A-B": "1"}, {"A=B": "1"}, {"": "1"}, {"A\n": "1"}, {"A": "x\0y"}, {"A": 1}],
    "dockerfile_inline": ["FROM scratch"],
    "additional_contexts": [{"host": "/etc"}, ["host=/etc"]],
    "secrets": [[{"source": "s"}]],
    "ssh": [["default"]],
    "network": ["host", "none", "container:x"],
    "privileged": [True, "true"],
    "entitlements": [["network.host"]],
    "isolation": ["hyperv"],
    "extra_hosts": [["a=1.2.3.4"]],
    "ulimits": [{"nofile": 3}],
    "shm_size": ["1073741824"],
    "platforms": [["linux/arm64"]],
    "unheard_of": ["x", False, [], ""],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in REACHING.items() for value in values], ids=repr
)
def test_refuses_any_single_difference(key: str, value: object) -> None:
    with pytest.raises(Refused) as refusal:
        check_build({**GOOD, key: value}, ROOT, service="web")
    message = str(refusal.value)
    assert "service web" in message
    assert key in message
    assert "expected" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "harmless",
    [
        {"privileged": False},
        {"network": "default"},
        {"network": ""},
        {"isolation": "default"},
        {"secrets": []},
        {"secrets": None},
        {"ssh": []},
        {"tags": ["shop-shop:latest"]},
        {"labels": {"a": "b"}},
        {"labels": {"org.opencontainers.image.revision": "forged"}},
        {"cache_from": ["x"]},
        {"cache_to": ["x"]},
        {"no_cache": True},
        {"pull": True},
        {"provenance": "true"},
        {"sbom": "true"},
        {"x-note": {"a": 1}},
        {"args": {"BASE": "python:3.12", "EMPTY": "", "GIT_SHA": None}},
        {"args": {"BASE": "python:3.12", "EMPTY": "", "GIT_SHA": "forged"}},
    ],
    ids=str,
)
def test_keys_without_effect_on_what_runs_change_nothing(harmless: dict[str, object]) -> None:
    assert check_build({**GOOD, **harmless}, ROOT, service="s") == check_build(GOOD, ROOT, service="s")


@pytest.mark.parametrize("strange", [{"args": ["A=1"]}, {"context": 3}, {"target": ["x"]}], ids=str)
def test_a_shape_that_is_not_compose_s_own_is_no_evidence(strange: dict[str, object]) -> None:
    with pytest.raises(EvidenceError, match="check the version of compose"):
        check_build({**GOOD, **strange}, ROOT, service="s")


def test_an_argument_from_the_caller_s_environment_is_refused_with_what_to_write() -> None:
    with pytest.raises(Refused, match=r"args\.BASE has no value .* write its value, or \$\{BASE:-default\}"):
        check_build({"args": {"BASE": None}}, ROOT, service="s")


def test_a_long_value_is_shortened_in_the_reason() -> None:
    with pytest.raises(Refused) as refusal:
        check_build({"dockerfile_inline": "RUN x\n" * 1000}, ROOT, service="s")
    assert len(str(refusal.value)) < 300


def test_accepts_a_build_table_within_the_commit() -> None:
    table = Build(context="./app/", dockerfile="docker/Dockerfile", target="run", args={"A": "1", "GIT_SHA": "x"})
    expected = Build(context="app", dockerfile="docker/Dockerfile", target="run", args={"A": "1"})
    assert check_build_table(table, target="shop") == expected


@pytest.mark.parametrize(
    ("table", "key"),
    [
        (Build(context="/"), "context"),
        (Build(context="/srv"), "context"),
        (Build(context=".."), "context"),
        (Build(context="a/../../b"), "context"),
        (Build(context="https://example.org/x.git"), "context"),
        (Build(context="a\nb"), "context"),
        (Build(dockerfile="/etc/passwd"), "dockerfile"),
        (Build(dockerfile="../Dockerfile"), "dockerfile"),
        (Build(context="a", dockerfile="../Dockerfile"), "dockerfile"),
        (Build(dockerfile="."), "dockerfile"),
        (Build(dockerfile="a\0b"), "dockerfile"),
        (Build(target="-x"), "target"),
        (Build(args={"A B": "1"}), "args"),
        (Build(args={"A": "\0"}), "args"),
    ],
    ids=repr,
)
def test_refuses_a_build_table_that_leaves_the_commit(table: Build, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"targets\.shop\.build: {key}.*expected"):
        check_build_table(table, target="shop")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], ()),
        (["sub/compose.yaml", "my-compose.yaml"], ()),
        (["compose.override.yaml"], ()),
        (["docker-compose.yml"], ("docker-compose.yml",)),
        (["docker-compose.yaml", "compose.yml", "compose.yaml"], ("compose.yaml",)),
        (["compose.yaml", "compose.override.yaml"], ("compose.yaml", "compose.override.yaml")),
        (
            ["docker-compose.yaml", "docker-compose.override.yml"],
            ("docker-compose.yaml", "docker-compose.override.yml"),
        ),
    ],
    ids=str,
)
def test_finds_the_compose_files_at_the_root(paths: list[str], expected: tuple[str, ...]) -> None:
    assert find_compose_files(paths) == expected


SOURCE = ComposeFile("deploy/compose.yaml", "deploy")


def reached(document: object) -> list[str]:
    return [file.path for file in check_reach(document, SOURCE)]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (None, []),
        ("text", []),
        ({}, []),
        ({"include": None, "services": None}, []),
        ({"services": {"a": None, "b": {"extends": "a"}, "c": {"extends": {"service": "a"}}}}, []),
        ({"include": "a.yaml"}, ["deploy/a.yaml"]),
        ({"include": ["a.yaml", "../b.yaml"]}, ["deploy/a.yaml", "b.yaml"]),
        ({"include": [{"path": ["a.yaml", "x/b.yaml"], "env_file": "a.env"}]}, ["deploy/a.yaml", "deploy/x/b.yaml"]),
        ({"services": {"a": {"extends": {"file": "x/b.yaml", "service": "s"}}}}, ["deploy/x/b.yaml"]),
        ({"services": {"a": {"label_file": ["labels.env"]}}}, []),
    ],
    ids=str,
)
def test_follows_include_and_extends_within_the_commit(document: object, expected: list[str]) -> None:
    assert reached(document) == expected


def test_relative_paths_start_where_compose_lets_them_start() -> None:
    files = check_reach({"include": [{"path": ["x/a.yaml", "y/b.yaml"]}]}, ComposeFile("compose.yaml", ""))
    assert files == [ComposeFile("x/a.yaml", "x"), ComposeFile("y/b.yaml", "x")]


OUTSIDE = ["/etc/x", "../../x", "~/x", "${HOME}/x", "$X", "https://x/y", "oci://x", "git@x:y", "", 3, "a\nb"]


@pytest.mark.parametrize("word", OUTSIDE, ids=repr)
@pytest.mark.parametrize("key", ["include", "include.path", "include.env_file", "extends.file", "label_file"])
def test_refuses_to_read_what_is_not_in_the_commit(key: str, word: object) -> None:
    documents: dict[str, object] = {
        "include": {"include": [word]},
        "include.path": {"include": [{"path": ["a.yaml", word]}]},
        "include.env_file": {"include": [{"path": "a.yaml", "env_file": [word]}]},
        "extends.file": {"services": {"a": {"extends": {"file": word, "service": "s"}}}},
        "label_file": {"services": {"a": {"label_file": [word]}}},
    }
    with pytest.raises(Refused, match=r"deploy/compose.yaml: .*expected a plain relative path within the commit"):
        reached(documents[key])


def test_refuses_to_move_the_start_of_relative_paths() -> None:
    with pytest.raises(Refused, match="project_directory"):
        reached({"include": [{"path": "a.yaml", "project_directory": "x"}]})
