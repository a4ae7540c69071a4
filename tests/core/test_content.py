"""Any tree is its own equal, any one change is named, and additions are allowed only by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_imagefresh.core.content import (
    EXECUTABLE,
    PLAIN,
    SPECIAL,
    SYMLINK,
    Content,
    File,
    Place,
    expect_content,
    folders_of,
    is_content,
    is_ignored,
    outermost,
    shown,
    some_of,
)
from pytest_imagefresh.core.errors import Refused
from pytest_imagefresh.core.identity import ImageId
from pytest_imagefresh.core.verdict import check_content

IMAGE_ID = ImageId("sha256:" + "4" * 64)
TREE = {
    "src/a.py": File(PLAIN, "a" * 40),
    "src/run": File(EXECUTABLE, "b" * 40),
    "src/link": File(SYMLINK, "c" * 40),
    "scripts/check.py": File(PLAIN, "d" * 40),
    "README": File(PLAIN, "e" * 40),
}
DECLARED = {"/app/src": "src", "/app/scripts": "scripts"}
FOLDER = Place("folder")
PLACES = {"/app": FOLDER, "/app/src": FOLDER, "/app/scripts": FOLDER}
EXPECTED = expect_content(DECLARED, TREE)
GOOD = Content(DECLARED, (), PLACES, EXPECTED, dict(EXPECTED))

NAMES = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=4).filter(lambda n: n not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
FILES = st.builds(
    File, st.sampled_from([PLAIN, EXECUTABLE, SYMLINK]), st.text("0123456789abcdef", min_size=40, max_size=40)
)
TREES = st.dictionaries(PATHS, FILES, min_size=1, max_size=6)


def whole(tree: dict[str, File], observed: dict[str, File], ignore: tuple[str, ...] = ()) -> Content:
    """Return the content of an image that is to hold a tree at /app."""
    expected = expect_content({"/app": "."}, tree)
    seen = {f"/app/{path}": file for path, file in observed.items()}
    return Content({"/app": "."}, ignore, {"/app": FOLDER}, expected, seen)


def test_the_declared_folders_are_expected_at_their_places() -> None:
    assert {
        "/app/src/a.py": TREE["src/a.py"],
        "/app/src/run": TREE["src/run"],
        "/app/src/link": TREE["src/link"],
        "/app/scripts/check.py": TREE["scripts/check.py"],
    } == EXPECTED
    verdict = check_content(GOOD, IMAGE_ID)
    assert (verdict.subject, verdict.reason) == (IMAGE_ID, "the image holds 4 files of the commit")


@given(TREES)
def test_any_tree_is_its_own_equal(tree: dict[str, File]) -> None:
    assert check_content(whole(tree, dict(tree)), IMAGE_ID).ok


@given(TREES, st.data())
def test_any_one_change_is_named(tree: dict[str, File], data: st.DataObject) -> None:
    path = data.draw(st.one_of(st.sampled_from(sorted(tree)), PATHS))
    change = data.draw(st.one_of(st.none(), FILES, st.just(File(SPECIAL, ""))))
    observed = {**tree, path: change} if change else {each: file for each, file in tree.items() if each != path}
    verdict = check_content(whole(tree, observed), IMAGE_ID)
    assert verdict.ok is (observed == tree)
    assert verdict.ok or shown(f"/app/{path}") in verdict.observed
    assert verdict.reason.isprintable()


@given(TREES, st.data())
def test_what_is_ignored_may_be_added_and_nothing_else(tree: dict[str, File], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(tree)))
    additions = {f"{path}-more/x.pyc": File(PLAIN, "f" * 40), "__pycache__/y": File(SPECIAL, "")}
    content = whole(tree, {**tree, **additions}, ("*.pyc", "__pycache__"))
    assert check_content(content, IMAGE_ID).ok
    assert set(content.additions()) == {shown(f"/app/{each}") for each in additions}
    assert not check_content(replace(content, ignore=()), IMAGE_ID).ok
    # To be ignored never means that a file of the commit may differ or be missing.
    loose = replace(content, ignore=(*content.ignore, "*a*", "[!a]*"))
    del loose.observed[f"/app/{path}"]  # type: ignore[attr-defined]
    assert not check_content(loose, IMAGE_ID).ok


@pytest.mark.parametrize(
    ("path", "file", "problem"),
    [
        ("/app/src/a.py", None, "missing"),
        ("/app/src/a.py", File(PLAIN, "0" * 40), "other bytes"),
        ("/app/src/a.py", File(EXECUTABLE, "a" * 40), "executable, not so in the commit"),
        ("/app/src/run", File(PLAIN, "b" * 40), "not executable"),
        ("/app/src/a.py", File(SYMLINK, "a" * 40), "a symlink, expected a file"),
        ("/app/src/link", File(SYMLINK, "0" * 40), "leads elsewhere"),
        ("/app/src/link", File(PLAIN, "c" * 40), "a file, expected a symlink"),
        ("/app/src/run", File(SPECIAL, ""), "a device or pipe, expected a file"),
        ("/app/src/new\n\udcff", File(PLAIN, "0" * 40), "extra"),
    ],
    ids=str,
)
def test_each_difference_is_told_in_words(path: str, file: File | None, problem: str) -> None:
    observed = {each: seen for each, seen in {**EXPECTED, path: file}.items() if seen is not None}
    verdict = check_content(replace(GOOD, observed=observed), IMAGE_ID)
    assert not verdict.ok
    assert f"differs from the commit: {shown(path)} ({problem}); expected 4 files" in verdict.reason


def test_the_first_five_are_named_and_the_others_counted() -> None:
    observed = {**EXPECTED, **{f"/app/src/x{number}": File(PLAIN, "0" * 40) for number in range(7)}}
    reason = check_content(replace(GOOD, observed=observed), IMAGE_ID).reason
    assert "commit: /app/src/x0 (extra), " in reason
    assert "/app/src/x4 (extra) and 2 more; expected" in reason
    assert some_of(["a", "b"]) == "a, b"


def test_an_image_without_any_declared_file_is_refused() -> None:
    assert "(missing)" in check_content(replace(GOOD, observed={}), IMAGE_ID).reason


@pytest.mark.parametrize(
    ("path", "place", "words"),
    [
        ("/app/src", Place(""), "/app/src is not there"),
        ("/app/src", Place("file"), "/app/src is a file"),
        ("/app", Place("symlink", "/opt/app"), "/app is a symlink to /opt/app"),
        ("/app/src", Place("other"), "/app/src is a device, pipe or socket"),
    ],
    ids=str,
)
def test_a_folder_that_is_none_is_refused(path: str, place: Place, words: str) -> None:
    verdict = check_content(replace(GOOD, places={**PLACES, path: place}), IMAGE_ID)
    assert not verdict.ok
    assert words in verdict.reason


def test_without_declared_content_the_proof_says_so() -> None:
    verdict = check_content(None, IMAGE_ID)
    assert verdict.subject == IMAGE_ID
    assert "no content is declared" in verdict.reason


def test_what_may_be_added_is_named_with_the_proof() -> None:
    ignoring = replace(GOOD, ignore=("*.log", "cache"))
    reason = check_content(ignoring, IMAGE_ID).reason
    assert reason.endswith("and 0 more that content_ignore allows (*.log, cache)")
    seen = {**EXPECTED, "/app/src/cache/x": File(PLAIN, "0" * 40)}
    reason = check_content(replace(ignoring, observed=seen), IMAGE_ID).reason
    assert reason.endswith("and 1 more that content_ignore allows (*.log, cache): /app/src/cache/x")


@pytest.mark.parametrize("folder", ["no-such", "README", "src/a.py", "sr"])
def test_a_folder_that_the_commit_does_not_have_is_refused(folder: str) -> None:
    with pytest.raises(Refused, match=f"the commit has no folder {folder}, expected one for /app"):
        expect_content({"/app": folder}, TREE)


def test_a_folder_may_lie_in_another_one() -> None:
    inner = {"/app": "src", "/app/tools": "scripts"}
    assert set(expect_content(inner, TREE)) == {"/app/a.py", "/app/run", "/app/link", "/app/tools/check.py"}
    assert expect_content({"/app": ".", "/app/src": "src"}, TREE) == expect_content({"/app": "."}, TREE)
    assert outermost(["/app", "/app/tools", "/apple"]) == ["/app", "/apple"]


def test_one_path_cannot_be_two_files() -> None:
    tree = {**TREE, "lib/a.py": File(PLAIN, "0" * 40)}
    with pytest.raises(Refused, match=r"/app/src/a.py is to be two files of the commit"):
        expect_content({"/app": ".", "/app/src": "lib"}, tree)


def test_every_folder_above_is_looked_at() -> None:
    assert folders_of(["/app/src", "/srv/x/y"]) == ["/app", "/app/src", "/srv", "/srv/x", "/srv/x/y"]


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("__pycache__/x.pyc", "__pycache__"),
        ("a/b/__pycache__/x", "__pycache__"),
        ("a/b/x.pyc", "*.pyc"),
        ("logs/x.txt", "logs/*.txt"),
        ("logs/x.txt/y", "logs/*.txt"),
        ("a/logs/deep/er", "a/logs"),
        ("file", "file"),
    ],
)
def test_patterns_match_names_and_what_lies_below(path: str, pattern: str) -> None:
    assert is_ignored(path, ["nothing-like-it", pattern])


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("x.py", "*.pyc"),
        ("X.PYC", "*.pyc"),
        ("a/logs/x.txt", "logs/*.txt"),
        ("logs/deep/x.txt", "logs/*.txt"),
        ("logs", "logs/*.txt"),
        ("a/b", "a*b"),
        ("files", "file"),
    ],
)
def test_patterns_match_nothing_else(path: str, pattern: str) -> None:
    assert not is_ignored(path, [pattern])


def test_content_is_what_lies_below_a_declared_folder_and_is_not_ignored() -> None:
    assert is_content("/app/src/x.py", DECLARED, ["*.pyc"])
    assert not is_content("/app/src/x.pyc", DECLARED, ["*.pyc"])
    assert not is_content("/app/other", DECLARED, [])
    assert not is_content("/app/src", DECLARED, [])
