"""Settings out of layers: precedence, sources, every refusal; what follows from settings alone; the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_imagefresh.core.errors import ConfigError
from pytest_imagefresh.core.keys import KEYS, Kind
from pytest_imagefresh.core.layers import (
    DEFAULT,
    Configuration,
    Layer,
    Variables,
    build_settings,
    variable_layers,
    variable_name,
)
from pytest_imagefresh.core.settings import (
    Settings,
    Signing,
    Target,
    applies,
    clone_on_host,
    default_target,
    full_reference,
    targets_for,
)

ROOT = Path(__file__).resolve().parents[2]
FILE = "imagefresh.toml"


def build(*layers: Mapping[str, object] | Layer) -> Configuration:
    return build_settings([layer if isinstance(layer, Layer) else Layer(FILE, layer) for layer in layers])


def with_variables(table: Mapping[str, object], **environ: str) -> Configuration:
    layers = [Layer(FILE, table)]
    return build_settings([*layers, *variable_layers([Variables("environment", environ)], layers)])


def target_table(**values: object) -> dict[str, object]:
    return {"repos": ["shop"], "targets": {"shop": values}}


def nested(key: str, value: object) -> dict[str, object]:
    """Return a layer that sets one dotted key, of the target shop where it has a star."""
    result: object = value
    for part in reversed(key.replace("*", "shop").split(".")):
        result = {part: result}
    assert isinstance(result, dict)
    return result


# The table of keys and the structs are one.


def struct_keys(kind: msgspec.inspect.Type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a struct; a target's name is its place, not a key."""
    if isinstance(kind, msgspec.inspect.UnionType):
        kind = next((part for part in kind.types if isinstance(part, msgspec.inspect.StructType)), kind.types[0])
    if isinstance(kind, msgspec.inspect.DictType) and isinstance(kind.value_type, msgspec.inspect.StructType):
        yield from struct_keys(kind.value_type, f"{prefix}*.")
    elif isinstance(kind, msgspec.inspect.StructType):
        for field in kind.fields:
            if (kind.cls, field.name) != (Target, "name"):
                yield from struct_keys(field.type, f"{prefix}{field.name}.")
    else:
        yield prefix.rstrip(".")


def test_every_field_of_the_structs_is_a_key_and_the_other_way_round() -> None:
    assert set(struct_keys(msgspec.inspect.type_info(Settings))) == set(KEYS)


@pytest.mark.parametrize("document", ["docs/settings.md", ".env.example"])
def test_every_key_is_documented(document: str) -> None:
    text = (ROOT / document).read_text()
    missing = [key for key in KEYS if not _is_in(text, key, document)]
    assert missing == []


def _is_in(text: str, key: str, document: str) -> bool:
    name = key.replace("*", "NAME")
    if document.endswith(".md"):
        row = re.search(rf"^\| `{re.escape(name)}` \|.*$", text, re.MULTILINE)
        return row is not None and (KEYS[key].kind is Kind.TABLE or f"`{variable_name(name.split('.'))}`" in row[0])
    variable = variable_name(tuple(name.replace("NAME", "ORCHESTRATOR").split(".")))
    return name in text if KEYS[key].kind is Kind.TABLE else f"\n# {variable}=" in text


def test_documented_defaults_are_the_defaults() -> None:
    text = (ROOT / "docs/settings.md").read_text()
    observed = {key: _documented_default(text, key) for key in KEYS}
    assert observed == {key: _default(key) for key in KEYS}


def _documented_default(text: str, key: str) -> str:
    row = re.search(rf"^\| `{re.escape(key.replace('*', 'NAME'))}` \| ([^|]*) \|", text, re.MULTILINE)
    return row[1].strip() if row else "no row"


def _default(key: str) -> str:
    parts = key.split(".")
    value: Any = default_target("NAME", "REPO") if parts[0] == "targets" else Settings()
    for part in parts[2:] if parts[0] == "targets" else parts:
        value = getattr(value, part, None)
    if key == "targets.*.repo":
        return "`NAME`"
    if value in (None, "", {}, ()):
        return "none"
    if isinstance(value, tuple):
        return f"`{list(value)}`".replace("'", '"')
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{shown.replace('repo-name', 'REPO-NAME')}`"


def test_example_file_is_accepted_when_every_line_is_switched_on() -> None:
    lines = [line.removeprefix("# ") for line in (ROOT / ".env.example").read_text().splitlines()]
    pairs = dict(line.split("=", 1) for line in lines if re.match(r"IMAGEFRESH_\w+=", line))
    settings = with_variables({}, **pairs).settings
    assert len(pairs) == sum(key.kind is not Kind.TABLE for key in KEYS.values())
    assert settings.targets["orchestrator"] == default_target("orchestrator", "orchestrator")


# Layers.


def test_no_layer_gives_the_defaults() -> None:
    configuration = build()
    assert configuration.settings == Settings()
    assert set(configuration.sources.values()) == {DEFAULT}


def test_later_layers_override_and_every_source_is_kept() -> None:
    configuration = build(
        {"settle": 1, "host": {"ssh": "a", "repo_path": "/x"}, "host_repos_dir": "/r"},
        Layer(".env IMAGEFRESH_HOST__SSH", {"host": {"ssh": "b"}}),
        Layer("option host.ssh", {"host": {"ssh": "c"}}),
    )
    assert (configuration.settings.host.ssh, configuration.settings.settle) == ("c", 1)
    assert configuration.settings.host.repo_path == "/x"
    sources = configuration.sources
    assert [sources[key] for key in ("host.ssh", "settle", "host.repo_path", "timeouts.git")] == [
        "option host.ssh",
        FILE,
        FILE,
        DEFAULT,
    ]


def test_partial_target_tables_are_filled_with_the_defaults_of_their_names() -> None:
    configuration = build({"targets": {"web": {"repo": "shop", "staging": {"port": 9001}}}, "repos": ["shop"]})
    web = configuration.settings.targets["web"]
    assert web == msgspec.structs.replace(
        default_target("web", "shop"), staging=msgspec.structs.replace(default_target("web", "shop").staging, port=9001)
    )
    assert (web.image, web.prod_image, web.prod.service) == ("shop-web-staging", "shop-web", "web")
    assert (web.staging.service, web.staging.container, web.staging.profile) == (
        "web-staging",
        "web-staging",
        "staging",
    )
    assert configuration.sources["targets.web.staging.port"] == FILE
    assert configuration.sources["targets.web.prod.port"] == DEFAULT


def test_partial_target_tables_need_ports_of_their_own() -> None:
    table = {
        "targets": {
            "web": {"repo": "shop"},
            "worker": {"repo": "shop", "staging": {"port": 9501}, "prod": {"port": 9500}},
        }
    }
    assert set(build(table).settings.targets) == {"web", "worker"}


def test_default_image_names_are_lowercase() -> None:
    target = build({"targets": {"Web": {"repo": "Shop"}}}).settings.targets["Web"]
    assert (target.image, target.prod_image, target.staging.service) == ("shop-web-staging", "shop-web", "Web-staging")


def test_check_command_gets_path_and_mode_wherever_they_stand() -> None:
    staging = default_target("a", "a").staging
    assert staging.check_argv() == ["python3", "scripts/staging_check.py", "--mode", "stub"]
    staging = msgspec.structs.replace(staging, check_command=("sh", "-c", "{path} --mode={mode}"))
    assert staging.check_argv() == ["sh", "-c", "scripts/staging_check.py --mode=stub"]


def test_signing_table_is_taken_whole() -> None:
    assert build({"signing": {"key": "k", "principal": "gate@x"}}).settings.signing == Signing(
        key="k", principal="gate@x"
    )
    for table in ({}, {"key": "k"}, {"principal": "p"}):
        with pytest.raises(
            ConfigError, match=r"signing\.(key|principal): missing; expected .*; set by imagefresh.toml"
        ):
            build({"signing": table})


# One wrong value each.

GOOD: dict[str, list[object]] = {
    "enabled": [True, False],
    "repos": [["shop"], ["A", " b "]],
    "secret_names": [["token"], ["PASSW", "api-key"]],
    "settle": [0, 0.5, 86400],
    "host.ssh": ["local", "deploy@h:22", "alias", "h.example-1.com", "u@[::1]:22"],
    "host.hook": ["bundled", "/opt/hook.sh"],
    "host.docker_host": ["unix:///tmp/docker.sock"],
    "host.docker_config": ["", "/x"],
    "host.engine_id": ["ABCD:EF12", "9f3c-11"],
    "host.restricted": [False],
    "timeouts.git": [0.1, 1, 86400],
    "targets.*.image": ["a", "a:1", "r.example.com:5000/a/b__c-d:Tag_1.x", "localhost/a"],
    "targets.*.prod.profile": ["", "prod"],
    "targets.*.prod.pin": ["", "SHOP_PROD_IMAGE", "_x1"],
    "targets.*.prod.precheck": [True, False],
    "targets.*.prod.strategy": ["recreate"],
    "targets.*.prod.proxy.port": [1, 65535],
    "targets.*.prod.proxy.drain": [1, 2.5, 3600],
    "targets.*.staging.health_path": ["/", "/ready?deep=1", "/a/b.c~d"],
    "targets.*.staging.check_command": [["sh"], ["python3", "-c", "a\nb", ""], ["/x", "-y"]],
    "targets.*.staging.check_format": ["exit", "tap"],
    "targets.*.staging.pause_proof": [True, False],
    "targets.*.staging.overrides.command": [[], ["-x", ""], ["sh", "-c", "a\nb"]],
    "targets.*.staging.overrides.entrypoint": [[], [""], ["/entry.sh", ""]],
    "targets.*.staging.overrides.user": ["", "1000", "1000:1000", "app:_www"],
    "targets.*.staging.overrides.working_dir": ["", "/", "/srv/app"],
    "targets.*.staging.overrides.mounts": [[], ["/data"], ["/run/secrets/db", "/a b/"]],
    "targets.*.staging.overrides.environment": [[], ["PYTHONPATH", "LD_PRELOAD"]],
    "targets.*.build.context": [".", "services/web"],
    "targets.*.build.args": [{}, {"BASE": "debian:12", "EMPTY": ""}],
    "targets.*.content": [{}, {"/app/src": "src", "/app/x": ".", "/app/src/in it": "a/b"}],
    "targets.*.content_ignore": [[], ["__pycache__", "*.pyc", "logs/*.txt", "[a-z]*.log"]],
}

TEXT: list[object] = [1, True, 1.5, [], ["x"], {}, None]
HOST_PATH: list[object] = [*TEXT, "", "relative", "~/x", "/a/../b", "/a\nb", " /a", "/a ", "/a\0"]
FILE_HERE: list[object] = [*TEXT, "", "a\nb", " a", "a\0"]
NAME: list[object] = [*TEXT, "", "-x", "a b", "a/b", "a\nb", "$(x)", "a;b", ".a", "ä", "a" * 129]
REPO: list[object] = [*NAME, "a..b", "x.git", "../x"]
SECONDS: list[object] = ["5", True, [], {}, None, -1, 86401, float("nan"), float("inf"), -float("inf")]
PORT: list[object] = ["8501", True, 8501.0, [], None, 0, -1, 65536, 10**30]
IMAGE: list[object] = [
    *TEXT,
    "",
    "A",
    "a:",
    ":a",
    "a b",
    "a@sha256:" + "0" * 64,
    "sha256:" + "0" * 64,
    "0" * 64,
    "a//b",
    "-a",
    "a\n",
    "a" * 256,
]
HEALTH: list[object] = [*TEXT, "", "health", "/a b", "/a\n", "/$(x)", "/a'b", "/#x", "http://x/", "/" + "a" * 500]
BELOW: list[object] = [*TEXT, "", "/abs", "..", "../x", "a/../b", "~", "~/x", "-x", "a\nb", "c:x", "git://x"]
LIST: list[object] = ["x", 1, True, {}, None, [1], [None], [["x"]], ["a\0"], ["a\udcff"]]
TABLE: list[object] = ["x", 1, [], ["x"], None, {"A": 1}, {"A": None}, {"A": ["x"]}, {"A": "\0"}]

BAD: dict[str, list[object]] = {
    "enabled": ["true", 1, 0, None, [], {}],
    "repos": [*LIST, [], [""], ["a b"], ["shop", "../x"], ["shop,other"]],
    "self_hosting_repo": REPO,
    "repos_dir": FILE_HERE,
    "worktrees_dir": FILE_HERE,
    "host_repos_dir": HOST_PATH,
    "secret_names": [*LIST, [], [""], ["a b"], ["a|b"], [".*"]],
    "settle": SECONDS,
    "host.ssh": [*TEXT, "", "-oProxyCommand=x", "a b", "a\nb", "$(x)", "a;b", " local", "ssh://h"],
    "host.known_hosts": FILE_HERE,
    "host.repo_path": HOST_PATH,
    "host.hook": [*HOST_PATH, "Bundled"],
    "host.docker_host": [*TEXT, "", "tcp://h:2375", "ssh://h", "/x.sock", "unix://x", "unix:///a/../b"],
    "host.docker_config": ["x", 1, "/a/../b"],
    "host.engine_id": [*TEXT, "", "*", "a b"],
    "host.restricted": ["true", 1, 0, None, [], {}],
    **{f"timeouts.{name}": [*SECONDS, 0, 0.0] for name in ("git", "inspect", "build", "health", "check", "content")},
    "signing.key": FILE_HERE,
    "signing.principal": [*TEXT, "", "*", "a*", "a b", "!x", "a,b"],
    "targets.*.repo": REPO,
    "targets.*.image": IMAGE,
    "targets.*.prod_image": IMAGE,
    "targets.*.staging.service": NAME,
    "targets.*.staging.container": [*NAME, "x"],
    "targets.*.staging.port": PORT,
    "targets.*.staging.profile": [*NAME, "*"],
    "targets.*.staging.health_path": HEALTH,
    "targets.*.staging.check_path": [*TEXT, "", "-x", "../x", "a b", "a\nb", "$(x)"],
    "targets.*.staging.check_mode": [*TEXT, "", "-x", "a b", "a\nb", "$(x)"],
    "targets.*.staging.check_command": [*LIST, [], [""], ["-x"], ["a\nb"], [" "]],
    "targets.*.staging.check_format": [*TEXT, "", "TAP", "junit"],
    "targets.*.staging.pause_proof": ["false", 0, None, [], {}],
    "targets.*.staging.overrides.command": [*LIST, [""], ["", "x"]],
    "targets.*.staging.overrides.entrypoint": [*LIST, ["", "x"], ["", ""]],
    "targets.*.staging.overrides.user": [1, None, "a b", "a:", ":a", "a:b:c", "-x", "*"],
    "targets.*.staging.overrides.working_dir": [1, None, "x", "/a/../b", "/a\nb"],
    "targets.*.staging.overrides.mounts": [*LIST, [""], ["data"], ["/"], ["//"], ["/a/../.."], ["/a\nb"], ["*"]],
    "targets.*.staging.overrides.environment": [*LIST, [""], ["A=B"], ["1X"], ["*"], ["LD_*"]],
    "targets.*.prod.service": NAME,
    "targets.*.prod.port": PORT,
    "targets.*.prod.profile": ["-x", "a b", "*", 1, None],
    "targets.*.prod.health_path": HEALTH,
    "targets.*.prod.precheck": ["false", "yes", 0, None, [], {}],
    "targets.*.prod.strategy": [*TEXT, "", "Proxy", "rolling"],
    "targets.*.prod.proxy.service": NAME,
    "targets.*.prod.proxy.port": PORT,
    "targets.*.prod.proxy.drain": [0, 0.9, 3601, -1, "10", None, True],
    "targets.*.prod.pin": [
        1,
        None,
        "1X",
        "A-B",
        "A B",
        "A=B",
        "PATH",
        "COMPOSE_FILE",
        "DOCKER_HOST",
        "LD_PRELOAD",
        "http_proxy",
    ],
    "targets.*.build.context": BELOW,
    "targets.*.build.dockerfile": BELOW,
    "targets.*.build.target": [1, None, "-x", "a b", "a\nb"],
    "targets.*.build.args": [
        *TABLE,
        {"": "x"},
        {"A-B": "x"},
        {"A=B": "x"},
        {"GIT_SHA": "x"},
        {"https_proxy": "x"},
        {"BUILDKIT_SYNTAX": "x"},
    ],
    "targets.*.content": [
        *TABLE,
        {"app": "src"},
        {"/": "src"},
        {"/app/../x": "src"},
        {"/app": "/src"},
        {"/app": "../src"},
        {"/app": ""},
        {"/app/": "src"},
        {"//app": "src"},
        {"/app/./x": "src"},
        {"/app": "src/"},
        {"/app": "./src"},
        {"/app": "a//b"},
    ],
    "targets.*.content_ignore": [
        *LIST,
        [""],
        ["*"],
        ["**"],
        ["**/*"],
        ["."],
        ["/x"],
        ["../x"],
        ["x/"],
        ["a//b"],
        ["[a-z]*"],
        ["[!x]*/?"],
    ],
}


def test_a_restricted_key_needs_an_ssh_host_and_an_installed_hook() -> None:
    extra = {"host_repos_dir": "/r"}
    host = {"repo_path": "/x", "restricted": True}
    assert build(extra, {"host": {**host, "ssh": "deploy@h"}}).settings.host.restricted
    with pytest.raises(ConfigError, match=r"^host\.ssh: 'local'; expected an ssh target, because host\.restricted"):
        build(extra, {"host": host})
    with pytest.raises(ConfigError, match=r"^host\.hook: 'bundled'; expected the hook that is installed there"):
        build(extra, {"host": {**host, "ssh": "deploy@h", "hook": "bundled"}})


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in GOOD.items() for value in values], ids=repr)
def test_accepts_good_values(key: str, value: object) -> None:
    extra = {"host_repos_dir": "/r", "host": {"repo_path": "/x"}}
    configuration = build(extra, nested(key, value))
    assert configuration.sources[key.replace("*", "shop")] == FILE


def test_every_key_has_wrong_values_in_the_table() -> None:
    assert set(BAD) == set(KEYS)


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values], ids=repr)
def test_refuses_any_wrong_value_with_key_expectation_and_source(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        build(nested(key, value))
    message = str(caught.value)
    assert message.startswith(f"{key.replace('*', 'shop')}: ")
    assert f"; expected {KEYS[key].expected}; set by {FILE}" in message
    assert message.isprintable()


def test_a_long_wrong_value_is_shortened_and_a_build_argument_never_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        build({"host": {"ssh": "x " * 500}})
    assert len(str(caught.value)) < 300
    with pytest.raises(ConfigError, match=r"targets\.shop\.build\.args: this value is not accepted") as caught:
        build(nested("targets.*.build.args", {"TOKEN": ["hunter2"]}))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"repo": ["x"]}, r"^repo: unknown key, did you mean 'repos'\?; expected one of .*; set by imagefresh.toml$"),
        ({"host": {"shh": "x"}}, r"^host\.shh: unknown key, did you mean 'ssh'\?"),
        ({"host": {"known-hosts": "x"}}, r"^host\.known-hosts: unknown key, did you mean 'known_hosts'\?"),
        (
            {"port": 1},
            r"^port: unknown key, did you mean targets\.NAME\.staging\.port or .*\.prod\.port or .*\.proxy\.port\?",
        ),
        ({"targets": {"shop": {"prot": {}}}}, r"^targets\.shop\.prot: unknown key, did you mean 'prod'\?"),
        (
            {"targets": {"shop": {"staging": {"Port": 1}}}},
            r"^targets\.shop\.staging\.Port: unknown key, did you mean 'port'",
        ),
        ({"targets": {"shop": {"name": "x"}}}, r"^targets\.shop\.name: unknown key"),
        ({"host.ssh": "x"}, r"^host\.ssh: unknown key"),
        ({"targets": {"shop": {"staging.port": 1}}}, r"^targets\.shop\.staging\.port: unknown key"),
        ({"targets.shop": {}}, r"^targets\.shop: unknown key"),
        ({"": 1}, "unknown key"),
        ({"a\nb": 1}, r"^'a\\nb': unknown key"),
        ({"host": "local"}, r"^host: 'local' is no table; expected a table; set by imagefresh.toml$"),
        ({"targets": ["shop"]}, r"^targets: \['shop'\] is no table"),
        ({"targets": {"shop": 1}}, r"^targets\.shop: 1 is no table"),
        ({"targets": {"../x": {}}}, r"^targets\.\.\./x: not a target name"),
        ({"targets": {"a b": {"image": "x"}}}, r"^targets\.a b: not a target name"),
        ({"targets": {"*": {}}}, r"^targets\.\*: not a target name"),
    ],
)
def test_refuses_unknown_keys_by_name_and_source_with_a_hint(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build(table)
    assert str(caught.value).isprintable()


# Values that do not fit together.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"staging": {"port": 8500}},
            r"targets\.shop\.staging\.port: 8500 is also targets\.shop\.prod\.port \(set by default\)",
        ),
        (
            {"prod": {"port": 8501}},
            r"targets\.shop\.staging\.port: 8501 is also targets\.shop\.prod\.port \(set by image",
        ),
        (
            {"staging": {"service": "shop"}},
            r"targets\.shop\.staging\.service: 'shop' is also targets\.shop\.prod\.service",
        ),
        ({"image": "shop-shop"}, r"targets\.shop\.image: '.*shop-shop:latest' is also targets\.shop\.prod_image"),
        ({"image": "shop-shop:latest"}, r"targets\.shop\.image"),
        ({"image": "docker.io/library/shop-shop"}, r"targets\.shop\.image"),
        ({"image": "index.docker.io/shop-shop"}, r"targets\.shop\.image"),
        ({"image": "r:5000/x", "prod_image": "r:5000/x:latest"}, r"targets\.shop\.image"),
    ],
)
def test_staging_and_production_must_differ(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(target_table(**values))


def _two(**web: Any) -> dict[str, object]:
    other: dict[str, dict[str, object]] = {"staging": {"port": 9501}, "prod": {"port": 9500, "pin": "OTHER"}}
    merged = {key: {**value, **web.get(key, {})} for key, value in other.items()}
    return {"targets": {"shop": {"prod": {"pin": "SHOP"}}, "web": {**web, **merged}}}


def test_two_targets_of_their_own_are_accepted() -> None:
    assert set(build(_two()).settings.targets) == {"shop", "web"}


@pytest.mark.parametrize(
    "change",
    [
        {"staging": {"port": 8500}},
        {"staging": {"port": 8501}},
        {"prod": {"port": 8500}},
        {"staging": {"service": "shop"}},
        {"staging": {"service": "shop-staging"}},
        {"staging": {"container": "shop-staging"}},
        {"image": "shop-shop"},
        {"image": "shop-shop-staging"},
        {"prod_image": "shop-shop"},
        {"prod": {"pin": "SHOP"}},
    ],
    ids=str,
)
def test_two_targets_can_share_nothing(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"targets\.web\..* is also targets\.shop\."):
        build(_two(**change))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a", "docker.io/library/a:latest"),
        ("x/a", "docker.io/x/a:latest"),
        ("localhost/a:1", "localhost/a:1"),
        ("h:5/a", "h:5/a:latest"),
    ],
)
def test_full_reference_adds_what_an_engine_adds(one: str, other: str) -> None:
    assert full_reference(one) == other == full_reference(other)


def test_differing_folders_of_clones_need_a_word_about_the_host() -> None:
    folders: dict[str, object] = {"repos_dir": "/repos", "host_repos_dir": "/srv/repos"}
    with pytest.raises(
        ConfigError, match=r"^host\.ssh: not said, while .*; expected the ssh target, or 'local' .*; set by default$"
    ):
        build(folders)
    both: list[dict[str, object]] = [{**folders, "host": {"ssh": "local"}}, {**folders, "host_repos_dir": "/repos/"}]
    one: list[dict[str, object]] = [{"repos_dir": "/repos"}, {"host_repos_dir": "/srv"}]
    one += [{"repos_dir": "/repos", "host_repos_dir": "-"}]
    for accepted in both + one:
        assert build(accepted).settings.host.is_local


def test_ssh_hosts_need_the_paths_of_the_host() -> None:
    whole: dict[str, Any] = {"host_repos_dir": "/srv/repos", "host": {"ssh": "h", "repo_path": "/srv/app"}}
    assert build(whole).settings.host.ssh == "h"
    with pytest.raises(ConfigError, match=r"^host_repos_dir: missing; expected .* because host.ssh is 'h'"):
        build({"host": whole["host"]})
    with pytest.raises(ConfigError, match=r"^host\.repo_path: missing; expected .* because host.ssh is 'h'"):
        build({**whole, "host": {"ssh": "h"}})


# Environment variables.


def test_variables_are_turned_into_the_type_of_their_setting() -> None:
    configuration = with_variables(
        {},
        IMAGEFRESH_ENABLED="No",
        IMAGEFRESH_REPOS="shop, Other",
        IMAGEFRESH_SETTLE="0.25",
        IMAGEFRESH_TIMEOUTS__BUILD="90",
        IMAGEFRESH_HOST__DOCKER_CONFIG="",
        IMAGEFRESH_TARGETS__SHOP__STAGING__PORT="9001",
        IMAGEFRESH_TARGETS__SHOP__STAGING__CHECK_COMMAND="sh, {path}",
        UNRELATED="x",
    )
    settings = configuration.settings
    assert (settings.enabled, settings.repos, settings.settle, settings.timeouts.build) == (
        False,
        ("shop", "Other"),
        0.25,
        90,
    )
    assert settings.targets["shop"].staging.port == 9001
    assert settings.targets["shop"].staging.check_command == ("sh", "{path}")
    assert configuration.sources["settle"] == "environment IMAGEFRESH_SETTLE"
    assert configuration.sources["targets.shop.staging.port"] == "environment IMAGEFRESH_TARGETS__SHOP__STAGING__PORT"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "IMAGEFRESH_REPO",
            "x",
            r"^IMAGEFRESH_REPO: unknown variable, did you mean 'IMAGEFRESH_REPOS'\?; .*set by environment$",
        ),
        ("IMAGEFRESH_HOST_SSH", "x", r"did you mean 'IMAGEFRESH_HOST__SSH'"),
        ("IMAGEFRESH_TIMEOUT__GIT", "1", r"did you mean 'IMAGEFRESH_TIMEOUTS__GIT'"),
        ("IMAGEFRESH_Repos", "x", r"did you mean 'IMAGEFRESH_REPOS'"),
        ("imagefresh_repos", "x", r"did you mean 'IMAGEFRESH_REPOS'"),
        ("IMAGEFRESHREPOS", "x", r"did you mean 'IMAGEFRESH_REPOS'"),
        ("IMAGEFRESH", "x", "unknown variable"),
        ("IMAGEFRESH_TARGETS__NOSUCH__IMAGE", "x", r"a target must have a table or be listed in repos"),
        ("IMAGEFRESH_TARGETS", "x", "unknown variable"),
        (
            "IMAGEFRESH_ENABLED",
            "maybe",
            r"^enabled: 'maybe' is not accepted; expected true or false; set by environment IMAGEFRESH_E",
        ),
        ("IMAGEFRESH_ENABLED", "", r"^enabled: ''"),
        ("IMAGEFRESH_REPOS", "", r"^repos: \[\] is not accepted"),
        ("IMAGEFRESH_REPOS", " ", r"^repos: \[\] is not accepted"),
        ("IMAGEFRESH_REPOS", "a,,b", r"^repos: \['a', '', 'b'\] is not accepted"),
        ("IMAGEFRESH_SETTLE", "nan", r"^settle: 'nan'"),
        ("IMAGEFRESH_SETTLE", "1e3", r"^settle: '1e3'"),
        ("IMAGEFRESH_SETTLE", "\N{ARABIC-INDIC DIGIT FIVE}", r"^settle: "),
        ("IMAGEFRESH_WORKTREES_DIR", "", r"^worktrees_dir: '' is not accepted"),
        ("IMAGEFRESH_HOST__ENGINE_ID", "", r"^host\.engine_id: '' is not accepted"),
        (
            "IMAGEFRESH_TARGETS__ORCHESTRATOR__STAGING__PORT",
            "8501.0",
            r"^targets\.orchestrator\.staging\.port: '8501\.0'",
        ),
        (
            "IMAGEFRESH_TARGETS__ORCHESTRATOR__STAGING__PORT",
            "9" * 5000,
            r"^targets\.orchestrator\.staging\.port: '9{70}",
        ),
        (
            "IMAGEFRESH_TARGETS__ORCHESTRATOR__CONTENT",
            "/a=b",
            r"^targets\.orchestrator\.content: .*in the settings file",
        ),
    ],
)
def test_refuses_misspelt_variables_and_wrong_text(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        with_variables({}, **{name: text})
    assert str(caught.value).isprintable()


def test_a_misspelt_variables_value_is_never_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        with_variables({}, IMAGEFRESH_TOKEN="hunter2")
    assert "hunter2" not in str(caught.value)


def test_targets_in_variables_are_found_without_case_and_with_underscores() -> None:
    table = {"targets": {"Shop.web-1": {"repo": "shop"}}}
    settings = with_variables(table, IMAGEFRESH_TARGETS__SHOP_WEB_1__IMAGE="x").settings
    assert settings.targets["Shop.web-1"].image == "x"
    assert list(settings.targets) == ["Shop.web-1"]


def test_variables_can_name_repos_that_variables_list() -> None:
    environ = {"IMAGEFRESH_TARGETS__MY_SHOP__IMAGE": "x"}
    layers = variable_layers(
        [Variables(".env", environ), Variables("environment", {"IMAGEFRESH_REPOS": "my-shop"})], []
    )
    assert build_settings(layers).settings.targets["my-shop"].image == "x"
    assert [layer.source for layer in layers] == [
        ".env IMAGEFRESH_TARGETS__MY_SHOP__IMAGE",
        "environment IMAGEFRESH_REPOS",
    ]


def test_variables_cannot_add_a_second_target_to_a_repo_that_has_one() -> None:
    with pytest.raises(ConfigError, match="IMAGEFRESH_TARGETS__SHOP__IMAGE: unknown variable"):
        with_variables({"targets": {"web": {"repo": "shop"}}, "repos": ["shop"]}, IMAGEFRESH_TARGETS__SHOP__IMAGE="x")


def test_a_variable_that_could_mean_two_targets_is_refused() -> None:
    table = {"targets": {"a-b": {}, "a_b": {"staging": {"port": 1}, "prod": {"port": 2}}}}
    assert len(build(table).settings.targets) == 2
    with pytest.raises(ConfigError, match=r"names targets\.a-b\.image and targets\.a_b\.image; expected one setting"):
        with_variables(table, IMAGEFRESH_TARGETS__A_B__IMAGE="x")


# Properties.

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_keys = st.sampled_from(sorted({part for key in KEYS for part in key.split(".")} | {"shop", "x"}))


@given(st.recursive(_json, lambda inner: st.dictionaries(_keys, inner, max_size=4), max_leaves=12))
def test_any_table_gives_settings_or_one_clear_line(value: object) -> None:
    table = value if isinstance(value, dict) else {"x": value}
    try:
        configuration = build(table)
    except ConfigError as error:
        message = str(error)
    else:
        message = "accepted: yes; expected yes; set by all"
        assert set(configuration.sources.values()) <= {FILE, DEFAULT}
    assert re.fullmatch(r".+: .+; expected .+; set by .+", message)
    assert message.isprintable()


@given(
    st.dictionaries(st.sampled_from(["git", "build", "check"]), st.integers(1, 86400)),
    st.lists(st.integers(0, 99), max_size=4),
)
def test_the_last_layer_that_says_something_wins(timeouts: dict[str, int], settles: list[int]) -> None:
    layers = [Layer(f"layer {number}", {"settle": value}) for number, value in enumerate(settles)]
    configuration = build_settings([*layers, Layer("last", {"timeouts": timeouts})])
    assert configuration.settings.settle == (settles[-1] if settles else Settings().settle)
    assert configuration.sources["settle"] == (f"layer {len(settles) - 1}" if settles else DEFAULT)
    assert all(getattr(configuration.settings.timeouts, name) == value for name, value in timeouts.items())


@given(st.text(max_size=12))
def test_no_text_of_a_number_variable_is_misread(text: str) -> None:
    try:
        settle = with_variables({}, IMAGEFRESH_SETTLE=text).settings.settle
    except ConfigError:
        return
    assert settle == float(text)
    assert 0 <= settle <= 86400


# The switch.


@pytest.mark.parametrize(
    ("settings", "repo", "expected"),
    [
        (Settings(), "orchestrator", True),
        (Settings(), "Orchestrator ", True),
        (Settings(), "shop", False),
        (Settings(self_hosting_repo="shop"), "shop", True),
        (Settings(repos=("shop", " Other ")), "SHOP", True),
        (Settings(repos=("shop", " Other ")), "other", True),
        (Settings(repos=("shop",)), "orchestrator", False),
        (Settings(repos=("shop",)), "sho", False),
        (Settings(enabled=False), "orchestrator", False),
        (Settings(enabled=False, repos=("shop",)), "shop", False),
    ],
)
def test_applies_to_the_listed_repos_or_the_self_hosting_one(settings: Settings, repo: str, expected: bool) -> None:
    decision = applies(settings, repo)
    assert decision.applies is expected
    assert decision.reason


@pytest.mark.parametrize(
    "settings",
    [
        Settings(repos=()),
        Settings(repos=("",)),
        Settings(repos=("shop", "a b")),
        Settings(repos=("shop", "..")),
        Settings(self_hosting_repo=""),
        Settings(self_hosting_repo="a/b"),
    ],
    ids=repr,
)
def test_a_condition_that_cannot_be_trusted_is_an_error_and_never_off(settings: Settings) -> None:
    with pytest.raises(ConfigError):
        applies(settings, "shop")


def test_reasons_name_what_was_decided_by() -> None:
    assert applies(Settings(enabled=False), "x").reason == "enabled is false: the gate is switched off"
    assert applies(Settings(), "x").reason == "x is not the self-hosting repo orchestrator, and no repos are listed"
    assert applies(Settings(repos=("a", "b")), "x").reason == "x is not one of the listed repos: a, b"


# Targets and paths.


def test_a_repo_without_a_table_has_the_default_target() -> None:
    assert targets_for(Settings(), "orchestrator") == (default_target("orchestrator", "orchestrator"),)
    assert targets_for(Settings(), "shop") == (default_target("shop", "shop"),)


def test_a_repo_has_all_of_its_tables_in_their_order() -> None:
    tables = {
        "web": {"repo": "Shop"},
        "worker": {"repo": "shop", "staging": {"port": 9501}, "prod": {"port": 9500}},
        "other": {"staging": {"port": 7501}, "prod": {"port": 7500}},
    }
    settings = build({"repos": ["shop"], "targets": tables}).settings
    assert [target.name for target in targets_for(settings, "shop")] == ["web", "worker"]


def test_a_declared_target_that_is_not_enabled_is_an_error_unless_all_is_off() -> None:
    settings = build({"targets": {"web": {"repo": "shop"}}}).settings
    with pytest.raises(ConfigError, match=r"^targets\.web: declared target that is not enabled; .* add shop to repos"):
        targets_for(settings, "shop")
    off = msgspec.structs.replace(settings, enabled=False)
    assert [target.name for target in targets_for(off, "shop")] == ["web"]


def test_a_default_target_cannot_reach_a_declared_one() -> None:
    settings = build({"repos": ["shop", "other"], "targets": {"shop": {}}}).settings
    with pytest.raises(ConfigError, match=r"^targets\..*8500 is also .*give other a table \[targets\.other\]"):
        targets_for(settings, "other")


def proxied(**prod: object) -> dict[str, object]:
    return {"targets": {"shop": {"prod": {"strategy": "proxy", **prod}}}}


def test_a_proxy_needs_a_pin() -> None:
    with pytest.raises(ConfigError, match=r"targets\.shop\.prod\.pin: missing; .*strategy is 'proxy'"):
        build(proxied())
    prod = build(proxied(pin="SHOP_IMAGE", proxy={"port": 80})).settings.targets["shop"].prod
    assert (prod.is_proxied, prod.proxy.service, prod.proxy.port, prod.proxy.drain) == (True, "shop-proxy", 80, 10)


def test_staging_is_never_the_proxy_of_production() -> None:
    settings = proxied(pin="SHOP_IMAGE", proxy={"service": "shop-staging"})
    with pytest.raises(ConfigError, match="shop-staging"):
        build(settings)


def test_a_repo_that_is_not_gated_clashes_with_nothing() -> None:
    settings = build({"repos": ["shop"], "targets": {"shop": {}}}).settings
    assert targets_for(settings, "other") == (default_target("other", "other"),)


@pytest.mark.parametrize("repo", ["", "../x", "a b"])
def test_hostile_repo_names_have_no_targets_and_no_path(repo: str) -> None:
    for function in (targets_for, clone_on_host):
        with pytest.raises(ConfigError, match="not a repo name"):
            function(Settings(repos_dir="/r"), repo)


def test_clone_on_host_is_below_the_folder_that_the_host_sees() -> None:
    assert clone_on_host(Settings(repos_dir="/repos", host_repos_dir="/srv/repos"), "shop") == "/srv/repos/shop"
    assert clone_on_host(Settings(repos_dir="/repos"), "shop") == "/repos/shop"
    assert clone_on_host(Settings(), "shop") == ""
    assert clone_on_host(Settings(repos_dir="/repos", host_repos_dir="-"), "shop") == "-"
