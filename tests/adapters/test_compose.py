"""The commit's own build section, as the real compose resolves it."""

from __future__ import annotations

import itertools
import json
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from pytest_imagefresh.adapters.compose import read_build, read_service
from pytest_imagefresh.core.build import BASE_FILES, OVERRIDE_FILES, find_compose_files
from pytest_imagefresh.core.errors import ConfigError, EvidenceError, Refused
from pytest_imagefresh.core.identity import Revision
from pytest_imagefresh.core.settings import Build, Prod, Staging, Target

REVISION = Revision("0123456789abcdef0123456789abcdef01234567")
TABLE = Build(context="from/table", dockerfile="Dockerfile.table")
BINARY = Path(sys.executable).parent / "docker-compose"


def target(build: Build = TABLE) -> Target:
    staging = Staging(
        service="web",
        container="web",
        port=8501,
        profile="staging",
        health_path="/health",
        check_path="check.py",
        check_mode="stub",
        check_command=("python3", "{path}"),
        check_format="exit",
    )
    prod = Prod(service="shop", port=8500, profile="", health_path="/health", pin="")
    return Target(
        name="shop", repo="shop", image="shop-staging", prod_image="shop", staging=staging, prod=prod, build=build
    )


def read(files: Mapping[str, str] | str, *, timeout: float = 30) -> Build:
    """Read the build of a commit that holds these files; a text alone is its compose.yaml."""
    texts = {"compose.yaml": files} if isinstance(files, str) else files
    contents = {path: textwrap.dedent(text).encode() for path, text in texts.items()}
    return read_build(contents, target(), REVISION, timeout=timeout)


def section(build: str) -> str:
    """Return a compose file whose service web has this build section, one key per line."""
    return "services:\n  web:\n    profiles: [staging]\n    build:\n" + textwrap.indent(textwrap.dedent(build), " " * 6)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("services: {web: {build: .}}", Build()),
        ("services: {web: {build: {}}}", Build()),
        ("services: {web: {build: ./app, profiles: [staging]}}", Build(context="app")),
        ("services: {web: {build: app, profiles: [other]}}", Build(context="app")),
        ("---\n# a comment\nservices: {web: {build: app}}", Build(context="app")),
        ("\ufeffservices: {web: {build: app}}", Build(context="app")),
        (
            section("context: a/b\ndockerfile: docker/Dockerfile\ntarget: run\nargs: {A: 1, B: true, C: 'x y'}"),
            Build(
                context="a/b", dockerfile="docker/Dockerfile", target="run", args={"A": "1", "B": "true", "C": "x y"}
            ),
        ),
        (section("args: [A=1, GIT_SHA]"), Build(args={"A": "1"})),
        (section("args: {A: '$$x $${y}', GIT_SHA: '${GIT_SHA:-}'}"), Build(args={"A": "$x ${y}"})),
        (section("args: {A: '${A:-one}', B: '${B-}', C: 'at-${GIT_SHA}'}"), None),
        (section('args: {A: "two\\nlines"}'), Build(args={"A": "two\nlines"})),
        (section("args: {A: '${COMPOSE_PROJECT_NAME}'}"), Build(args={"A": "shop"})),
        (section("labels: {a: b}\ntags: ['shop:latest']\npull: true\nno_cache: true"), Build()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_returns_what_compose_resolves(files: str, expected: Build | None) -> None:
    arguments = {"A": "one", "B": "", "C": f"at-{REVISION}"}
    assert read(files) == (expected or Build(args=arguments))


def test_arguments_come_from_the_env_file_of_the_commit() -> None:
    files = {"compose.yaml": section("args: {BASE: '${BASE}', OTHER: '${OTHER:-x}'}"), ".env": "BASE=python:3.12\n"}
    assert read(files).args == {"BASE": "python:3.12", "OTHER": "x"}


def test_anchors_and_merge_keys() -> None:
    text = """
        x-build: &build {context: app, args: {A: one}}
        services:
          web: {profiles: [staging], build: {<<: *build, target: run}}
    """
    assert read(text) == Build(context="app", target="run", args={"A": "one"})


def test_the_override_file_is_merged_over_the_base() -> None:
    files = {
        "docker-compose.yml": section("context: app\nargs: {A: one, B: two}"),
        "compose.override.yml": "services: {web: {build: {args: {A: other}, target: run}}}",
    }
    assert read(files) == Build(context="app", target="run", args={"A": "other", "B": "two"})


def test_the_env_file_of_the_commit_may_name_the_compose_files() -> None:
    files = {
        "one.yaml": section("context: app"),
        "two.yaml": section("target: run"),
        "compose.yaml": section("context: never"),
        ".env": "COMPOSE_FILE=one.yaml:./two.yaml\n",
    }
    assert read(files) == Build(context="app", target="run")


@pytest.mark.parametrize("named", ["/etc/x.yaml", "sub/one.yaml", "../one.yaml", "gone.yaml", "${HOME}/x.yaml"])
def test_compose_files_that_are_not_at_the_root_of_the_commit_are_refused(named: str) -> None:
    files = {
        "compose.yaml": section("context: ."),
        "sub/one.yaml": section("context: ."),
        ".env": f"COMPOSE_FILE={named}",
    }
    with pytest.raises(Refused, match=r"\.env: COMPOSE_FILE names .*expected a file at the root of the commit"):
        read(files)


def test_include_and_extends_within_the_commit() -> None:
    files = {
        "compose.yaml": "include: [parts/more.yaml]\nservices: {web: {extends: {file: parts/base.yaml, service: b}}}",
        "parts/more.yaml": "services: {db: {image: db, extends: {file: ../common.yaml, service: all}}}",
        "parts/base.yaml": "services: {b: {build: {context: app, args: {A: one}}}}",
        "common.yaml": "services: {all: {labels: {a: b}}}",
    }
    assert read(files) == Build(context="parts/app", args={"A": "one"})


def test_only_the_staging_service_counts() -> None:
    text = "services: {shop: {build: /etc, privileged: true}, web: {build: app, profiles: [staging]}}"
    assert read(text) == Build(context="app")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"sub/compose.yaml": "services: {web: {build: .}}"},
        {"compose.override.yaml": "services: {web: {build: .}}"},
        {"compose.yaml": "services: {web: {image: x}}"},
        {"compose.yaml": "services: {shop: {build: .}}"},
    ],
    ids=str,
)
def test_without_a_build_section_the_table_of_the_target_counts(files: dict[str, str]) -> None:
    assert read(files) == TABLE


def test_the_table_is_held_to_the_same_standard() -> None:
    with pytest.raises(ConfigError, match=r"targets\.shop\.build: context"):
        read_build({}, target(Build(context="../x")), REVISION, timeout=1)


@pytest.mark.parametrize(
    ("build", "key"),
    [
        ("context: /", "context"),
        ("context: ../x", "context is '../x'"),
        ("context: a/../../x", "context is '../x'"),
        ("context: ~/x", "context"),
        ("context: https://example.org/x.git", "context"),
        ("context: 'git@example.org:x.git'", "context"),
        ("context: github.com/x/y", "context"),
        ("context: docker-image://alpine", "context"),
        ("dockerfile: ../Dockerfile", "dockerfile"),
        ("dockerfile: /etc/passwd", "dockerfile"),
        ("dockerfile_inline: FROM scratch", "dockerfile_inline"),
        ("additional_contexts: {host: /etc}", "additional_contexts"),
        ("ssh: [default]", "ssh"),
        ("network: host", "network"),
        ("network: none", "network"),
        ("privileged: true", "privileged"),
        ("entitlements: [security.insecure]", "entitlements"),
        ("isolation: hyperv", "isolation"),
        ("extra_hosts: ['a:1.2.3.4']", "extra_hosts"),
        ("ulimits: {nofile: 3}", "ulimits"),
        ("shm_size: 1gb", "shm_size"),
        ("platforms: [linux/arm64]", "platforms"),
        ("args: [FROM_OUTSIDE]", "args.FROM_OUTSIDE has no value"),
        ("args: {FROM_OUTSIDE: null}", "args.FROM_OUTSIDE has no value"),
        ("args: {A: '${HOSTNAME}'}", "needs the variable HOSTNAME"),
        ("args: {A: '${B:-$HOSTNAME}'}", "needs the variable HOSTNAME"),
        ("args: {A: '${HOSTNAME:?needed}'}", "needs the variable HOSTNAME"),
        ("context: $WHERE", "needs the variable WHERE"),
    ],
    ids=str,
)
def test_refuses_a_section_that_reaches_out_of_the_commit(
    build: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_OUTSIDE", "secret")
    monkeypatch.setenv("HOSTNAME", "secret")
    with pytest.raises(Refused) as refusal:
        read(section(build))
    message = str(refusal.value)
    assert message.startswith("build section of compose service web: ")
    assert key in message
    assert "expected" in message
    assert "secret" not in message


def test_refuses_host_files_as_secrets() -> None:
    with pytest.raises(Refused, match="web: secrets"):
        read(section("secrets: [key]") + "\nsecrets: {key: {file: /etc/hostname}}")


@pytest.mark.parametrize(
    "elsewhere",
    [
        "image: '${PROD_IMAGE:?run deploy}'",
        "environment: {A: '${PASSWORD:?set it}', B: '${OTHER:?and it}', C: '${THIRD}'}",
        "ports: ['${ADDRESS}:${PORT:-80}:80']",
        "env_file: [only-on-the-host.env]",
        "env_file: /etc/only-on-the-host.env",
    ],
)
def test_what_the_host_sets_elsewhere_in_the_file_stays_open(elsewhere: str) -> None:
    text = f"services:\n  web: {{build: app}}\n  shop:\n    image: x\n    {elsewhere}\n"
    assert read(text.replace("    image: x\n", "") if elsewhere.startswith("image") else text) == Build(context="app")


@pytest.mark.parametrize(
    ("files", "line"),
    [
        ("services: {web: {build: .", "compose.yaml of the commit does not resolve: "),
        ("[]", "compose.yaml of the commit does not resolve: "),
        ("services: {web: {build: {context: ., unheard_of: 1}}}", "unheard_of"),
        ("services: {web: {build: ., depends_on: [gone]}}", "gone"),
        ({"compose.yaml": "include: [gone.yaml]\nservices: {web: {build: .}}"}, "gone.yaml"),
        ({"compose.yaml": "services: {web: {extends: {file: gone.yaml, service: x}}}"}, "gone.yaml"),
        ({"compose.yaml": "services: {web: {extends: gone}}"}, "gone"),
        ({"compose.yaml": "include: [github.com/x/y]\nservices: {}"}, "git remote resource is disabled"),
        ({"compose.yaml": "services: {web: {build: .}}", "compose.override.yaml": "{"}, "compose.override.yaml"),
    ],
    ids=str,
)
def test_compose_s_own_error_is_the_reason(files: dict[str, str] | str, line: str) -> None:
    with pytest.raises(Refused) as refusal:
        read(files)
    message = str(refusal.value)
    assert line in message
    assert "\n" not in message
    assert "imagefresh-compose-" not in message


def outside_file(tmp_path: Path) -> str:
    """Write a compose file outside the commit, whose content must never reach a build."""
    outside = tmp_path / "outside.yaml"
    outside.write_text("services: {other: {build: {args: {STOLEN: '1'}}}}\n", encoding="utf-8")
    return str(outside)


DISGUISES = [
    "services: {web: {build: ., extends: {file: OUTSIDE, service: other}}}",
    "services: {web: {build: ., extends: {file: /proc/self/root/OUTSIDE, service: other}}}",
    "services: {web: {build: ., 'extends': {\"file\": 'OUTSIDE', service: other}}}",
    'services: {web: {build: ., "ext\\u0065nds": {file: OUTSIDE, service: other}}}',
    "services: {web: {build: ., ? !!binary ZXh0ZW5kcw== : {file: OUTSIDE, service: other}}}",
    "x-a: &a {extends: {file: OUTSIDE, service: other}}\nservices: {web: {build: ., <<: *a}}",
    "x-k: &k extends\nservices: {web: {build: ., *k : {file: OUTSIDE, service: other}}}",
    "services: {web: {build: .}}\ninclude: [OUTSIDE]",
    "services: {web: {build: .}}\ninclude: [{path: parts/a.yaml, env_file: OUTSIDE}]",
    "services: {web: {build: .}}\ninclude: [parts/deep.yaml]",
    "services: {web: {build: ., label_file: OUTSIDE}}",
    "services: {web: {build: .}}\n---\ninclude: [OUTSIDE]",
    "services: {web: {build: .}}\u2028include: [OUTSIDE]",
    "services: {web: {build: .}}\rinclude: [OUTSIDE]",
    "%TAG !y! tag:yaml.org,2002:\n---\nservices: {web: {build: .}}\ninclude: [OUTSIDE]",
    "include: ['${A:-OUTSIDE}']\nservices: {web: {build: .}}",
]


@pytest.mark.parametrize("text", DISGUISES)
def test_never_reads_a_file_of_the_machine(text: str, tmp_path: Path) -> None:
    outside = outside_file(tmp_path)
    files = {
        "compose.yaml": text.replace("OUTSIDE", outside),
        "parts/a.yaml": "services: {}",
        "parts/deep.yaml": "include: [deeper.yaml]",
        "parts/deeper.yaml": f"services: {{x: {{extends: {{file: {outside}, service: other}}}}}}",
    }
    with pytest.raises(Refused, match="expected"):
        read(files)


def test_never_reads_what_an_env_file_of_the_commit_points_to(tmp_path: Path) -> None:
    stolen = tmp_path / "stolen.env"
    stolen.write_text("SECRET=stolen\n", encoding="utf-8")
    files = {"compose.yaml": section("args: {A: '${SECRET:-clean}'}"), ".env": f"COMPOSE_ENV_FILES={stolen}\n"}
    assert read(files).args == {"A": "clean"}


@pytest.mark.parametrize("path", ["../x.yaml", "/x.yaml", "a/../../x.yaml"])
def test_writes_nothing_outside_its_private_folder(path: str) -> None:
    with pytest.raises(Refused, match="expected one below its root"):
        read({"compose.yaml": "services: {web: {build: .}}", path: "x"})


def test_the_caller_s_environment_has_no_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("services: {web: {build: /}}", encoding="utf-8")
    monkeypatch.setenv("COMPOSE_FILE", str(tmp_path / "other.yaml"))
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "other")
    monkeypatch.setenv("COMPOSE_ENV_FILES", str(tmp_path / "gone.env"))
    monkeypatch.setenv("GIT_SHA", "forged")
    monkeypatch.setenv("A", "forged")
    text = section("args: {A: '${A:-clean}', B: '${GIT_SHA}', C: '${COMPOSE_PROJECT_NAME}'}")
    assert read(text).args == {"A": "clean", "B": REVISION.hex, "C": "shop"}


def test_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert read("services: {web: {build: app}}") == Build(context="app")
    with pytest.raises(Refused):
        read("services: {web: {build: /}}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "present", list(itertools.product(itertools.combinations(BASE_FILES, 2), OVERRIDE_FILES)), ids=str
)
def test_compose_finds_the_same_files_by_itself(present: tuple[tuple[str, ...], str], tmp_path: Path) -> None:
    """The files are named to compose; which ones must be what it takes when it is left alone."""
    bases, override = present
    for name in (*bases, override):
        (tmp_path / name).write_text(f"services: {{web: {{build: {{args: {{'{name}': '1'}}}}}}}}", encoding="utf-8")
    argv = [str(BINARY), "config", "--format", "json", "--no-normalize"]
    env = {"PATH": os.environ["PATH"]}
    alone = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    for name in (*bases, override):
        assert (f'"{name}"' in alone) == (name in find_compose_files([*bases, override]))


def program(folder: Path, script: str) -> None:
    """Write an executable docker-compose into a folder."""
    folder.mkdir(exist_ok=True)
    path = folder / "docker-compose"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any Compose; the folder is the only one on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "config"))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python" / "python3"))
    monkeypatch.setattr("pytest_imagefresh.adapters.compose._PLUGIN_FOLDERS", ())
    return folder


@pytest.mark.usefixtures("alone")
def test_without_compose_only_a_commit_with_a_compose_file_is_an_error() -> None:
    assert read({}) == TABLE
    with pytest.raises(ConfigError, match=r"expected Docker Compose .* observed none; install"):
        read("services: {web: {build: .}}")


@pytest.mark.parametrize("speech", ["unknown flag: --no-normalize", "Usage:\\n  docker-compose config [options]"])
def test_a_compose_that_is_too_old_is_named(alone: Path, speech: str) -> None:
    program(alone, f"printf '{speech}\\n' >&2; exit 1")
    with pytest.raises(ConfigError, match=r"observed only .*/docker-compose, too old; install"):
        read("services: {web: {build: .}}")


def test_the_plugin_serves_where_the_first_compose_is_too_old(alone: Path, tmp_path: Path) -> None:
    program(alone, "echo 'Usage: docker-compose [options]' >&2; exit 1")
    (tmp_path / "config").mkdir()
    program(tmp_path / "config" / "cli-plugins", f'exec {BINARY} "$@"')
    assert read("services: {web: {build: app}}") == Build(context="app")


def test_a_compose_without_the_newest_flag_serves(alone: Path) -> None:
    refuse = 'for word in "$@"; do case $word in --no-env-res*) echo "unknown flag: $word" >&2; exit 1;; esac; done'
    program(alone, f'{refuse}; exec {BINARY} "$@"')
    assert read("services: {web: {build: app}}") == Build(context="app")


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo nonsense", "brought back no JSON"),
        ("echo '[]'", "brought back list"),
        ('echo \'{"services": {"web": {"build": 3}}}\'', "brought back 3 as the build section"),
        ('echo \'{"services": {"web": 3}}\'', "brought back 3 as the build section"),
        ("sleep 60", "was expected to end within"),
    ],
)
def test_a_strange_answer_of_compose_is_no_evidence(alone: Path, script: str, problem: str) -> None:
    program(alone, f"PATH=/usr/bin:/bin; {script}")
    with pytest.raises(EvidenceError, match=problem):
        read("services: {web: {build: .}}", timeout=0.5)


# --- a service as the commit has it


def service(files: Mapping[str, str] | str, *, env: str = "", timeout: float = 30) -> dict[str, object] | None:
    """Read the service web of a commit that holds these files, resolved with the `.env` of a host."""
    texts = {"compose.yaml": files} if isinstance(files, str) else files
    contents = {path: textwrap.dedent(text).encode() for path, text in texts.items()}
    return read_service(contents, "web", env=env.encode(), project="on-host", timeout=timeout)


def web(**body: object) -> str:
    return json.dumps({"services": {"web": {"image": "x", **body}}})


def test_a_service_is_resolved_as_if_it_lay_on_the_host() -> None:
    found = service(
        {
            "compose.yaml": web(
                image="${IMAGE:-own}",
                container_name="${COMPOSE_PROJECT_NAME}-${NAME}",
                volumes=["./data:/data", "${MOUNT:-/own}:/m"],
                environment={"GIT_SHA": "${GIT_SHA-unset}"},
            ),
            ".env": "IMAGE=of-the-commit\nNAME=commit\n",
        },
        env="IMAGE=of-the-host\nNAME=host\nCOMPOSE_FILE=another.yaml\n",
    )
    assert found is not None
    assert (found["image"], found["container_name"]) == ("of-the-host", "on-host-host")
    assert [mount["source"] for mount in found["volumes"]] == ["./data", "/own"]  # type: ignore[attr-defined]
    assert found["environment"] == {"GIT_SHA": "unset"}


def test_an_env_file_of_this_machine_is_never_read() -> None:
    found = service(web(env_file=["/etc/hostname", {"path": "missing.env"}]))
    assert found is not None
    assert [entry["path"] for entry in found["env_file"]] == ["/etc/hostname", "./missing.env"]  # type: ignore[attr-defined]
    assert not found.get("environment")


def test_a_commit_without_the_service_has_none() -> None:
    assert service("services: {other: {image: x}}") is None


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"README": ""}, "the commit has no compose file; staging runs as the host's own says"),
        ("services: {web: {image: [}", "compose.yaml of the commit does not resolve"),
        ("services: {web: {image: '${NEEDED:?}'}}", "compose.yaml of the commit does not resolve: .*NEEDED"),
        ("include: [/etc/hostname]\nservices: {}", "include"),
    ],
    ids=str,
)
def test_a_service_that_cannot_be_had_says_why(files: Mapping[str, str] | str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        service(files)
