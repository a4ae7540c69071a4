"""What a Docker host without a clone is sent: exactly one commit and its submodules, as the clone has them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_imagefresh.adapters.git import packed_commit
from pytest_imagefresh.core.errors import EvidenceError, Refused
from pytest_imagefresh.core.identity import Revision
from tests.hook.harness import Clone
from tests.support import clean_environment


def received(clone: Path, revision: str, folder: Path) -> Clone:
    """Pack a commit, unpack it in a repository that holds nothing else, and return that."""
    other = Clone.__new__(Clone)
    other.path = folder
    subprocess.run(["git", "init", "--quiet", str(folder)], env=clean_environment(), check=True)
    with packed_commit(clone, Revision(revision), timeout=30) as pack:
        sent = bytes(pack)
    other.git("index-pack", "--stdin", stdin=sent)
    return other


def objects_in(clone: Clone) -> set[str]:
    return set(clone.git("cat-file", "--batch-check=%(objectname)", "--batch-all-objects").split())


def objects_of(clone: Clone, revision: str) -> set[str]:
    lines = clone.git("--no-replace-objects", "rev-list", "--objects", "--no-walk", revision).splitlines()
    return {line.split()[0] for line in lines}


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    """A repo with a history of two commits."""
    made = Clone(tmp_path / "clone")
    made.commit({"old": b"gone later\n", "same": b"always\n"})
    made.git("rm", "--quiet", "old")
    made.commit({"new\nline": b"x\n", "a/b": b"y\n"})
    return made


def _as_it_is(clone: Clone, folder: Path) -> Path:
    return clone.path


def _packed(clone: Clone, folder: Path) -> Path:
    clone.git("gc", "--quiet", "--prune=now")
    return clone.path


def _shallow(clone: Clone, folder: Path) -> Path:
    clone.git("clone", "--quiet", "--depth", "1", f"file://{clone.path}", str(folder))
    return folder


def _borrowing(clone: Clone, folder: Path) -> Path:
    clone.git("clone", "--quiet", "--bare", "--shared", str(clone.path), str(folder))
    return folder


def _linked(clone: Clone, folder: Path) -> Path:
    clone.git("worktree", "add", "--quiet", "--detach", str(folder))
    return folder


def _replaced(clone: Clone, folder: Path) -> Path:
    clone.git("replace", clone.git("rev-parse", "HEAD:same"), clone.git("rev-parse", "HEAD:a/b"))
    return clone.path


def _configured(clone: Clone, folder: Path) -> Path:
    for key, value in {"pack.packSizeLimit": "1m", "core.bigFileThreshold": "1", "pack.threads": "999"}.items():
        clone.git("config", key, value)
    return clone.path


@pytest.mark.parametrize("make", [_as_it_is, _packed, _shallow, _borrowing, _linked, _replaced, _configured])
def test_a_commit_is_sent_whole_and_without_its_history(
    clone: Clone, tmp_path: Path, make: Callable[[Clone, Path], Path]
) -> None:
    place = make(clone, tmp_path / "other")
    other = received(place, clone.revision, tmp_path / "received")
    assert objects_in(other) == objects_of(clone, clone.revision)


def test_submodules_are_sent_at_their_recorded_commits(clone: Clone, tmp_path: Path) -> None:
    inner, outer = Clone(tmp_path / "inner"), Clone(tmp_path / "outer")
    outer.git("submodule", "add", "--quiet", str(inner.path), "inner")
    recorded = outer.commit({})
    clone.git("submodule", "add", "--quiet", "--name", "the outer", str(outer.path), "libs/outer")
    clone.commit({})
    clone.git("submodule", "--quiet", "update", "--init", "--recursive")
    outer.commit({"later": b"not sent\n"})
    other = received(clone.path, clone.revision, tmp_path / "received")
    expected = [objects_of(clone, clone.revision), objects_of(outer, recorded), objects_of(inner, inner.revision)]
    assert objects_in(other) == set().union(*expected)


@pytest.mark.parametrize("name", ["libs/outer", None])
def test_a_submodule_that_is_not_there_is_refused(clone: Clone, tmp_path: Path, name: str | None) -> None:
    outer = Clone(tmp_path / "outer")
    clone.git("submodule", "add", "--quiet", str(outer.path), "libs/outer")
    if name is None:
        clone.git("rm", "--quiet", "--cached", ".gitmodules")
        (clone.path / ".gitmodules").unlink()
    clone.commit({})
    if name:
        (clone.path / ".git/modules/libs/outer").rename(tmp_path / "gone")
    with pytest.raises(Refused, match=r"^submodule libs/outer at [0-9a-f]{40}: .*git submodule update --init"):
        received(clone.path, clone.revision, tmp_path / "received")


def test_a_clone_that_lacks_a_file_is_an_evidence_error(clone: Clone, tmp_path: Path) -> None:
    blob = clone.git("rev-parse", "HEAD:same")
    (clone.path / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(EvidenceError, match=r"pack-objects|rev-list"):
        received(clone.path, clone.revision, tmp_path / "received")
