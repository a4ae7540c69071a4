"""The caller's side of the hook contract: what goes in, and what is believed of what comes out."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_imagefresh.core.contract import (
    REQUEST_LIMIT,
    deploy_command,
    encode_list,
    hook_command,
    parse_report,
    render_hook,
    request_command,
    status_variables,
)
from pytest_imagefresh.core.errors import ConfigError, EvidenceError
from pytest_imagefresh.core.identity import RunId
from pytest_imagefresh.core.settings import Proxy, Settings, default_target

LINE: dict[str, Any] = {
    "mode": "--verify",
    "ok": True,
    "kind": "done",
    "cause": "",
    "reason": "fine",
    "image_id": "sha256:" + "4" * 64,
    "seconds": {"inspect": 0.1},
    "check_status": None,
    "check_output": "",
}


def printed(**change: Any) -> bytes:
    return json.dumps({**LINE, **change}).encode() + b"\n"


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("proxy", {"PROD_PROXY": "edge", "PROD_PROXY_PORT": "80", "PROD_DRAIN": "2.5"}),
        ("recreate", {}),
    ],
)
def test_the_hook_is_told_of_a_proxy_only_where_there_is_one(strategy: str, expected: dict[str, str]) -> None:
    target = default_target("shop", "shop")
    prod = msgspec.structs.replace(target.prod, strategy=strategy, proxy=Proxy(service="edge", port=80, drain=2.5))
    target = msgspec.structs.replace(target, prod=prod)
    variables = status_variables(target, Settings(), run_id=RunId("20260102T030405Z-89abcdef"))
    assert {name: value for name, value in variables.items() if name in {"PROD_DRAIN", *expected}} == expected


def test_one_consistent_line_is_a_report() -> None:
    report = parse_report(printed(a_key_of_tomorrow=1), 0, "--verify")
    assert report.ok
    assert report.check is None


def test_the_check_comes_back_byte_for_byte() -> None:
    output = bytes(range(256))
    report = parse_report(printed(check_status=3, check_output=base64.b64encode(output).decode()), 0, "--verify")
    assert report.check is not None
    assert (report.check.exit_status, report.check.output) == (3, output)


@pytest.mark.parametrize(
    ("stdout", "status"),
    [
        (b"", 0),
        (b"\n", 0),
        (b"OK\n", 0),
        (b"{}\n", 0),
        (b"[]\n", 0),
        (printed() + printed(), 0),
        (printed(mode="--promote"), 0),
        (printed(ok=False), 0),
        (printed(kind="refused"), 0),
        (printed(kind="whatever"), 0),
        (printed(), 1),
        (printed(ok=False, kind="refused"), 0),
        (printed(ok=True, kind="refused"), 1),
        (printed(ok="yes"), 0),
        (printed(check_output="%%%"), 0),
        (printed(image_id=None), 0),
    ],
    ids=str,
)
def test_anything_else_is_no_evidence(stdout: bytes, status: int) -> None:
    with pytest.raises(EvidenceError):
        parse_report(stdout, status, "--verify")


@given(st.binary(max_size=200), st.integers(min_value=-15, max_value=255))
def test_noise_is_never_a_report(stdout: bytes, status: int) -> None:
    with pytest.raises(EvidenceError):
        parse_report(stdout, status, "--verify")


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_a_list_is_one_harmless_word(words: list[str]) -> None:
    encoded = encode_list(words)
    assert set(encoded) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
    assert base64.b64decode(encoded).decode().split("\0")[:-1] == words


def test_a_call_brings_its_own_environment_and_nothing_else() -> None:
    assert hook_command("/h", "--verify", {"A": "b c"}) == ["/usr/bin/env", "-i", "A=b c", "/h", "--verify"]


@pytest.mark.parametrize(
    ("expected", "passed"), [("", ["EXPECTED_REVISION="]), ("1" * 40, ["EXPECTED_REVISION=" + "1" * 40]), (None, [])]
)
def test_a_deploy_command_passes_the_revision_set_or_not_at_all(expected: str | None, passed: list[str]) -> None:
    command = deploy_command("/h", {"REPO": "shop", "EXPECTED_REVISION": "x"}, expected)
    assert [word for word in command if word.startswith("EXPECTED_REVISION")] == passed
    assert command[-2:] == ["/h", "--promote"]


def test_constants_of_the_installed_hook_are_replaced() -> None:
    script = "#!/bin/bash -p\nreadonly ENGINE='unix:///var/run/docker.sock'\nreadonly X='1'\n"
    assert "readonly ENGINE='unix:///a/b.sock'\nreadonly X='1'" in render_hook(script, {"ENGINE": "unix:///a/b.sock"})


@pytest.mark.parametrize("value", ["a'b", "a\nb", "$(id)", "a b", "`id`", "\\"])
def test_a_constant_cannot_end_its_quotes(value: str) -> None:
    with pytest.raises(EvidenceError, match="plain characters"):
        render_hook("readonly ENGINE='x'\n", {"ENGINE": value})


@pytest.mark.parametrize("script", ["", "readonly ENGINE=x\n", "readonly ENGINE='x'\nreadonly ENGINE='y'\n"])
def test_a_hook_without_that_constant_is_not_sent(script: str) -> None:
    with pytest.raises(EvidenceError, match="expected 1"):
        render_hook(script, {"ENGINE": "unix:///x"})


# --- a restricted key -------------------------------------------------------------------------------------------------


def test_a_request_is_mode_and_words() -> None:
    variables = {
        "REPO": "shop",
        "EXPECTED_REVISION": "",
        "HEALTH_PATH": "/a~b?c=%20&d",
        "BUILD_ARGS": encode_list(["A=b c"]),
    }
    words = request_command("--verify", variables)
    assert words == ["--verify", *(f"{name}={value}" for name, value in variables.items())]
    assert len(" ".join(words).split(" ")) == len(words)


@pytest.mark.parametrize("value", ["a b", " ", "a;b", "a\nb", "$x", "`x`", "a'b", "é", "\0", "a[0]", "*", "{x}", "#"])
def test_what_a_request_cannot_carry_is_told_before_it_is_sent(value: str) -> None:
    with pytest.raises(ConfigError, match=r"COMPOSE_DIR is .* which a restricted key cannot pass on"):
        request_command("--verify", {"COMPOSE_DIR": value})


def test_a_request_that_is_too_long_is_told_before_it_is_sent() -> None:
    head = len("--verify LEASE=")
    assert request_command("--verify", {"LEASE": "a" * (REQUEST_LIMIT - head)})
    with pytest.raises(ConfigError, match=f"{REQUEST_LIMIT + 1} bytes"):
        request_command("--verify", {"LEASE": "a" * (REQUEST_LIMIT - head + 1)})


def test_observations_are_read_to_the_byte() -> None:
    report = parse_report(printed(observed={"log": base64.b64encode(b"\0\xff\n").decode()}), 0, "--verify")
    assert report.observed == {"log": b"\0\xff\n"}
    with pytest.raises(EvidenceError, match="no valid report"):
        parse_report(printed(observed={"log": "no base64!"}), 0, "--verify")
