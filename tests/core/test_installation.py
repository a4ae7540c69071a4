"""The examination of a host, on facts alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_imagefresh.core.evidence import HookReport
from pytest_imagefresh.core.installation import (
    NO,
    OK,
    UNKNOWN,
    Answer,
    Seen,
    Text,
    check_folders,
    check_output,
    check_path,
    check_policy,
    check_report,
    check_same_hook,
    check_signers,
    constants_of,
    exit_status,
    find_policy,
    parents,
    parse_policy,
)

FILE = Seen("/usr/lib/hook", "regular file", 0, 0o755)
FOLDER = Seen("/usr", "directory", 0, 0o755)
SCRIPT = "#!/bin/bash -p\nreadonly ENGINE='unix:///a.sock'\nreadonly POLICY_DIR='/etc/imagefresh'\nset -e\n"
POLICY = "# shop\nPROD_IMAGE=shop-shop\nPROD_SERVICE=shop\nPROD_PORT=8500\nCOMPOSE_DIR=/srv/shop/\nREQUIRE=revision\n"
SIGNER = 'gate@ci namespaces="imagefresh" ssh-ed25519 AAAA gate\n'


def test_a_closed_file_of_root_is_ok() -> None:
    assert check_path("hook", FILE, kind="regular file", uid=0).word == OK


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"uid": 1000}, NO),
        ({"mode": 0o775}, NO),
        ({"mode": 0o757}, NO),
        ({"kind": "symbolic link"}, NO),
        ({"kind": ""}, NO),
        ({"kind": "", "problem": "Permission denied"}, UNKNOWN),
        ({"problem": "the connection was lost"}, UNKNOWN),
    ],
    ids=str,
)
def test_a_file_with_any_single_difference_is_not_ok(change: dict[str, object], word: str) -> None:
    assert check_path("hook", replace(FILE, **change), kind="regular file", uid=0).word == word  # type: ignore[arg-type]


@pytest.mark.parametrize(("mode", "word"), [(0o700, OK), (0o750, NO), (0o600, NO), (0o1700, NO)])
def test_a_state_folder_has_exactly_its_mode(mode: int, word: str) -> None:
    seen = replace(FOLDER, uid=7, mode=mode)
    assert check_path("state", seen, kind="directory", uid=7, mode=0o700).word == word


@pytest.mark.parametrize(
    ("seen", "word"),
    [
        ([FOLDER], OK),
        ([FOLDER, replace(FOLDER, mode=0o1777)], OK),
        ([FOLDER, replace(FOLDER, mode=0o777)], NO),
        ([FOLDER, replace(FOLDER, uid=7)], NO),
        ([FOLDER, replace(FOLDER, kind="symbolic link")], NO),
        ([FOLDER, replace(FOLDER, problem="denied")], UNKNOWN),
        ([], UNKNOWN),
    ],
    ids=str,
)
def test_nobody_else_may_change_a_folder_above(seen: list[Seen], word: str) -> None:
    assert check_folders("folder", seen).word == word


def test_every_folder_above_is_looked_at() -> None:
    assert parents("/usr/local/hook.sh") == ["/", "/usr", "/usr/local"]


def test_constants_are_read_and_do_not_make_another_hook() -> None:
    other = SCRIPT.replace("/a.sock", "/b.sock").replace("/etc/imagefresh", "/opt")
    assert constants_of(other) == {"ENGINE": "unix:///b.sock", "POLICY_DIR": "/opt"}
    assert check_same_hook("/hook", Text(other), SCRIPT).word == OK


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (Text(SCRIPT + "# one more line\n"), NO),
        (Text(SCRIPT.replace("set -e\n", "")), NO),
        (Text(SCRIPT.replace("a.sock'", "a.sock'; id '")), NO),
        (Text(""), NO),
        (Text(problem="denied"), UNKNOWN),
    ],
    ids=str,
)
def test_a_hook_that_differs_anywhere_else_is_another_one(text: Text, word: str) -> None:
    assert check_same_hook("/hook", text, SCRIPT).word == word


def test_a_policy_is_found_by_the_production_that_it_claims() -> None:
    policies = {"/etc/a.conf": parse_policy(POLICY)}
    assert find_policy(policies, "shop", "8500", "/srv/shop") == "/etc/a.conf"
    assert check_policy("/etc", "/etc/a.conf", policies["/etc/a.conf"], "").word == OK
    for other in [("shop2", "8500", "/srv/shop"), ("shop", "8501", "/srv/shop"), ("shop", "8500", "/srv/other")]:
        assert find_policy(policies, *other) == ""


@pytest.mark.parametrize(
    ("path", "text", "problem", "word"),
    [
        ("", "", "", NO),
        ("/etc/a.conf", POLICY.replace("REQUIRE=revision\n", ""), "", NO),
        ("/etc/a.conf", POLICY.replace("REQUIRE=revision\n", "REQUIRE=\n"), "", NO),
        ("", "", "denied", UNKNOWN),
    ],
)
def test_no_policy_half_a_one_and_a_hidden_one_are_not_ok(path: str, text: str, problem: str, word: str) -> None:
    assert check_policy("/etc", path, parse_policy(text), problem).word == word


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (Text(SIGNER), OK),
        (Text("# gate\n\n" + SIGNER), OK),
        (Text(SIGNER + SIGNER.replace('namespaces="imagefresh" ', "")), NO),
        (Text(SIGNER.replace("imagefresh", "imagefresh,git")), NO),
        (Text(SIGNER.replace("gate@ci", "*")), NO),
        (Text(SIGNER.replace("gate@ci", "gate@*,x")), NO),
        (Text("# nobody\n"), NO),
        (Text(problem="denied"), UNKNOWN),
    ],
    ids=str,
)
def test_signers_are_plain_names_with_the_namespace_of_verdicts(text: Text, word: str) -> None:
    assert check_signers("/etc/signers", text).word == word


@pytest.mark.parametrize(
    ("observed", "absent", "word"),
    [
        (Text("2.29.1\n"), False, OK),
        (Text("1.29.1\n"), False, NO),
        (Text(""), False, NO),
        (Text(problem="not found"), True, NO),
        (Text(problem="timeout"), False, UNKNOWN),
    ],
    ids=str,
)
def test_a_command_must_print_what_is_expected(observed: Text, absent: bool, word: str) -> None:
    assert check_output("tool", "compose", "version 2", r"2\..*", observed, absent=absent).word == word


@pytest.mark.parametrize(
    ("words", "status"), [([OK, OK], 0), ([OK, NO], 1), ([NO, UNKNOWN], 1), ([OK, UNKNOWN], 11), ([], 11)], ids=str
)
def test_only_an_examination_that_found_everything_well_ends_with_0(words: list[str], status: int) -> None:
    assert exit_status([Answer("", "", "", "", word) for word in words]) == status


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, OK),
        ({"ok": False, "kind": "refused", "cause": "policy-missing"}, NO),
        ({"ok": False, "kind": "usage", "cause": "mode-forbidden"}, UNKNOWN),
    ],
    ids=str,
)
def test_a_mode_that_ends_well_is_ok_and_one_that_the_key_may_not_ask_for_is_unknown(
    change: dict[str, object], word: str
) -> None:
    report = HookReport("--status", 0, ok=True, kind="done", cause="status", reason="production runs")
    assert check_report("engine", "--status", "an answer", replace(report, **change)).word == word  # type: ignore[arg-type]
