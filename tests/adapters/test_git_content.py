"""What a commit holds below some folders, on real git repositories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_imagefresh.adapters.git import read_content
from pytest_imagefresh.core.content import EXECUTABLE, PLAIN, SYMLINK, File
from pytest_imagefresh.core.errors import EvidenceError, Refused
from pytest_imagefresh.core.identity import Revision
from tests.adapters.test_git import commit, git

ODD = "src/odd \n ü"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose commit holds every kind of file."""
    folder = tmp_path / "clone"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "src").mkdir()
    (folder / "src/run").write_text("run")
    (folder / "src/run").chmod(0o755)
    (folder / "src/link").symlink_to("../nowhere")
    Path(os.fsdecode(os.fsencode(folder) + b"/src/\xff")).write_text("bytes")
    commit(folder, "files", {"src/a.py": "a\r\n", ODD: "", "srcs/b": "b", "src/deep/er/c": "c", "README": "r"})
    return folder


def content(folder: Path, *folders: str, revision: str = "") -> dict[str, File]:
    return read_content(folder, Revision(revision or git(folder, "rev-parse", "HEAD")), folders, timeout=30)


def blob(folder: Path, path: str) -> str:
    return git(folder, "rev-parse", f"HEAD:{path}")


def test_files_are_told_by_mode_and_blob_whatever_they_are_called(clone: Path) -> None:
    (clone / ".gitattributes").write_text("*.py text eol=lf filter=x export-ignore\n")
    (clone / "src/a.py").write_text("edited")
    found = content(clone, "src")
    assert found == {
        "src/run": File(EXECUTABLE, blob(clone, "src/run")),
        "src/link": File(SYMLINK, blob(clone, "src/link")),
        "src/\udcff": File(PLAIN, found["src/\udcff"].blob),
        "src/a.py": File(PLAIN, blob(clone, "src/a.py")),
        ODD: File(PLAIN, blob(clone, ODD)),
        "src/deep/er/c": File(PLAIN, blob(clone, "src/deep/er/c")),
    }


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["."], 8),
        (["src/deep", "srcs"], 2),
        (["src/deep/er"], 1),
        (["src", "src/deep"], 6),
        (["no-such"], 0),
        (["README"], 1),
    ],
    ids=str,
)
def test_only_what_lies_in_the_folders_counts(clone: Path, folders: list[str], expected: int) -> None:
    assert len(content(clone, *folders)) == expected


def test_a_mode_of_old_repositories_is_what_a_checkout_makes_of_it(clone: Path) -> None:
    old = b"100664 f\0" + bytes.fromhex(blob(clone, "README"))
    (clone / "tree").write_bytes(old)
    tree = git(clone, "hash-object", "-t", "tree", "-w", "--literally", "tree")
    revision = git(clone, "commit-tree", "-m", "old", tree)
    assert content(clone, ".", revision=revision)["f"].mode == PLAIN


def test_replaced_objects_have_no_say(clone: Path) -> None:
    before = content(clone, "src")
    old = git(clone, "rev-parse", "HEAD")
    git(clone, "replace", old, commit(clone, "other", {"src/a.py": "other"}))
    assert content(clone, "src", revision=old) == before


def test_a_tree_of_other_bytes_is_refused(clone: Path) -> None:
    objects = clone / ".git/objects"
    revision = git(clone, "rev-parse", "HEAD")
    good = blob(clone, "src/deep")
    commit(clone, "other", {"src/deep/er/c": "forged"})
    other = blob(clone, "src/deep")
    place = objects / good[:2] / good[2:]
    place.chmod(0o644)
    place.write_bytes((objects / other[:2] / other[2:]).read_bytes())
    with pytest.raises((Refused, EvidenceError), match=r"holds other bytes|ls-tree"):
        content(clone, "src", revision=revision)
    # What was not asked for need not be sound.
    assert set(content(clone, "srcs", revision=revision)) == {"srcs/b"}


def test_a_missing_tree_and_a_missing_commit_are_evidence_errors(clone: Path) -> None:
    tree = blob(clone, "src/deep")
    (clone / ".git/objects" / tree[:2] / tree[2:]).unlink()
    with pytest.raises(EvidenceError, match="git ls-tree"):
        content(clone, "src")
    with pytest.raises(EvidenceError, match="git ls-tree"):
        content(clone, "src", revision="12" * 20)


@pytest.fixture
def outer(clone: Path, tmp_path: Path) -> Path:
    """A clone with a submodule at vendor/lib, which has one of its own at inner."""
    for name in ("library", "inner"):
        (tmp_path / name).mkdir()
        git(tmp_path / name, "init", "-q", "-b", "main")
        commit(tmp_path / name, name, {f"src/{name}.py": name})
    git(tmp_path / "library", "submodule", "--quiet", "add", str(tmp_path / "inner"), "inner")
    commit(tmp_path / "library", "with inner", {"more": "m"})
    git(clone, "submodule", "--quiet", "add", "--name", "a name", str(tmp_path / "library"), "vendor/lib")
    git(clone, "submodule", "--quiet", "update", "--init", "--recursive")
    commit(clone, "with submodules", {"vendor/own": "own"})
    return clone


def test_submodules_count_with_their_files_at_the_recorded_commit(outer: Path) -> None:
    recorded = content(outer, "vendor")
    library = {"vendor/lib/more", "vendor/lib/src/library.py", "vendor/lib/.gitmodules"}
    assert set(recorded) == {"vendor/own", *library, "vendor/lib/inner/src/inner.py"}
    assert recorded["vendor/lib/more"].blob == git(outer / "vendor/lib", "rev-parse", "HEAD:more")
    commit(outer / "vendor/lib", "newer", {"more": "newer"})
    assert content(outer, "vendor") == recorded


def test_a_folder_of_a_submodule_can_be_declared(outer: Path) -> None:
    assert set(content(outer, "vendor/lib/inner/src")) == {"vendor/lib/inner/src/inner.py"}
    assert set(content(outer, "vendor/lib/src", "src/deep")) == {"vendor/lib/src/library.py", "src/deep/er/c"}


def test_a_submodule_that_the_clone_does_not_have_is_refused(outer: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", str(outer), "fresh")
    assert set(content(tmp_path / "fresh", "src/deep")) == {"src/deep/er/c"}
    with pytest.raises(Refused, match=r"submodule 'vendor/lib' .* expected 'a name' in .*git submodule update --init"):
        content(tmp_path / "fresh", "vendor")


@pytest.mark.parametrize("name", ["../../elsewhere", ".."])
def test_the_name_of_a_submodule_leads_nowhere_else(outer: Path, tmp_path: Path, name: str) -> None:
    modules = (outer / ".gitmodules").read_text().replace("a name", name)
    commit(outer, "forged", {".gitmodules": modules})
    (tmp_path / "clone/elsewhere/objects").mkdir(parents=True)
    with pytest.raises(Refused, match="submodule 'vendor/lib'"):
        content(outer, "vendor")


def test_a_submodule_without_a_name_is_refused(outer: Path) -> None:
    commit(outer, "forgotten", {".gitmodules": ""})
    with pytest.raises(Refused, match=r"expected 'a name in .gitmodules'"):
        content(outer, "vendor")
