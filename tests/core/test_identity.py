"""Text that identifies something is valid from the moment it exists."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_imagefresh.core.errors import ConfigError, EvidenceError, ImagefreshError
from pytest_imagefresh.core.identity import BranchName, ContainerId, ImageId, RepoName, Revision, RunId, TreeId

HEX40, HEX64 = "0123456789abcdef" * 2 + "01234567", "0123456789abcdef" * 4

GOOD: dict[Callable[[str], object], list[str]] = {
    Revision: [HEX40, "0" * 40],
    TreeId: [HEX40],
    ImageId: [f"sha256:{HEX64}"],
    ContainerId: [HEX64],
    RunId: ["20260102T030405Z-89abcdef"],
    RepoName: ["orchestrator", "a", "A-b_c.d", "0x", "a" * 100, "git", "a.gitx"],
    BranchName: ["main", "feature/x", "_x", "v1.2", "a@b", "a+b#c=d", "x" * 200, "a/b/c", "12345"],
}

HOSTILE = [
    "",
    " ",
    "*",
    "\n",
    "\0",
    "a\nb",
    "-x",
    "..",
    "../x",
    "a/../b",
    "a b",
    "$(x)",
    "`x`",
    "a;b",
    "a'b",
    'a"b',
    "a\\b",
    "ä",
    "~",
]
NOT_HEX = [
    "HEAD",
    HEX40.upper(),
    HEX40[:39],
    HEX40 + "0",
    f" {HEX40}",
    f"{HEX40} ",
    f"{HEX40}\n",
    f"\n{HEX40}",
    "g" * 40,
]

BAD: dict[Callable[[str], object], list[str]] = {
    Revision: [*HOSTILE, *NOT_HEX, HEX64, HEX40[:7], "\N{FULLWIDTH DIGIT ZERO}" * 40],
    TreeId: [*HOSTILE, *NOT_HEX, HEX64],
    ImageId: [
        *HOSTILE,
        HEX64,
        f"sha256:{HEX40}",
        f"sha256:{HEX64.upper()}",
        f"SHA256:{HEX64}",
        f"a@sha256:{HEX64}",
        f"sha256:{HEX64}\n",
    ],
    ContainerId: [*HOSTILE, *NOT_HEX, HEX40, HEX64[:12], f"{HEX64}\n", HEX64.upper()],
    RunId: [
        *HOSTILE,
        "20260102T030405Z-89ABCDEF",
        "20260102T030405Z",
        "20260102T030405Z-89abcde",
        "20260102T030405Z-89abcdef\n",
    ],
    RepoName: [*HOSTILE, "a/b", "/a", "a/", ".", ".a", "_a", "a..b", "x.git", ".git", "a" * 101, "a\n", "a@b", "a:b"],
    BranchName: [
        *HOSTILE,
        "HEAD",
        "a//b",
        "/a",
        "a/",
        ".a",
        "a/.b",
        "a.",
        "a.lock",
        "a.lock/b",
        "a@{1}",
        "@{u}",
        "a:b",
        "a^b",
        "a?b",
        "a[b",
        HEX40,
        HEX40.upper(),
        "x" * 201,
        "main\n",
    ],
}

CASES_GOOD = [(parse, text) for parse, texts in GOOD.items() for text in texts]
CASES_BAD = [(parse, text) for parse, texts in BAD.items() for text in texts]


@pytest.mark.parametrize(("parse", "text"), CASES_GOOD, ids=repr)
def test_accepts_and_prints_what_it_was_given(parse: Callable[[str], object], text: str) -> None:
    assert str(parse(text)) == text
    assert parse(text) == parse(text)


@pytest.mark.parametrize(("parse", "text"), CASES_BAD, ids=repr)
def test_refuses_everything_else_in_one_line(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(ImagefreshError) as caught:
        parse(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("parse", [RepoName, BranchName])
def test_bad_names_are_the_operators_mistake(parse: Callable[[str], object]) -> None:
    with pytest.raises(ConfigError):
        parse("a b")


@pytest.mark.parametrize("parse", [Revision, TreeId, ImageId, ContainerId, RunId])
def test_bad_ids_are_no_evidence(parse: Callable[[str], object]) -> None:
    with pytest.raises(EvidenceError):
        parse("a b")


def test_a_branch_is_addressed_by_its_full_reference() -> None:
    assert BranchName("feature/x").ref == "refs/heads/feature/x"


@given(st.text())
@example(f"{HEX40}\n")
def test_a_revision_is_a_full_id_or_nothing(text: str) -> None:
    try:
        revision = Revision(text)
    except EvidenceError:
        assert not re.fullmatch(r"[0-9a-f]{40}", text)
    else:
        assert len(revision.hex) == 40
        assert set(revision.hex) <= set("0123456789abcdef")


@given(st.text(alphabet="abA0._-/ \n$;'\"\\~*@{}:", max_size=12))
def test_a_repo_name_is_one_harmless_path_component(text: str) -> None:
    try:
        name = RepoName(text).name
    except ConfigError:
        return
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
    assert ".." not in name


@given(st.from_regex(r"[A-Za-z0-9_.]{0,3}(/?[A-Za-z0-9._@{=+#-]{1,5}){0,4}", fullmatch=True))
@example("a@{b}")
@example("x.lock/y")
@example("@")
def test_a_branch_name_is_one_that_git_accepts(text: str) -> None:
    try:
        branch = BranchName(text)
    except ConfigError:
        return
    checked = subprocess.run(["git", "check-ref-format", branch.ref], check=False, timeout=60)
    assert checked.returncode == 0
