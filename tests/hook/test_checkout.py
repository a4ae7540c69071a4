"""The kept checkout: it moves from commit to commit, and no state of it that anybody can make gets into an image."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hook.harness import Clone, PretendedHost
from tests.hook.test_export import built, forge, recorded

FILES = {"a": b"first\n", "folder/b": b"second\n", "folder/deep/c": b"third\n", "run": b"#!/bin/sh\n"}


def kept(host: PretendedHost, service: str = "shop-staging") -> Path:
    """Return where the hook keeps the checkout of a service."""
    return host.compose_dir / ".imagefresh/.checkout/shop" / service


def times(host: PretendedHost) -> dict[str, int]:
    """Return the modification time of every kept file, in nanoseconds."""
    tree = kept(host) / "tree"
    return {str(path.relative_to(tree)): path.lstat().st_mtime_ns for path in tree.rglob("*") if not path.is_dir()}


@pytest.fixture
def moving(pretended: PretendedHost) -> PretendedHost:
    """A host that has built a commit with a few files once."""
    pretended.clone.commit(FILES)
    built(pretended)
    return pretended


def assert_right(host: PretendedHost, commit: str | None = None) -> None:
    """Build, and compare the context with the commit, folders and all."""
    commit = commit or host.clone.revision
    files = recorded(host.clone, commit)
    assert built(host, commit) == files
    expected = {str(parent) for path in files for parent in Path(os.fsdecode(path)).parents} - {"."}
    folders = {path for path in host.context.rglob("*") if path.is_dir() and not path.is_symlink()}
    assert {str(path.relative_to(host.context)) for path in folders} == expected
    assert {path.stat().st_mode & 0o7777 for path in folders} <= {0o755}


# --- it moves ---------------------------------------------------------------------------------------------------------


def test_the_same_commit_writes_no_file(moving: PretendedHost) -> None:
    before = times(moving)
    assert_right(moving)
    assert times(moving) == before


def test_a_new_commit_writes_what_it_changed_and_nothing_else(moving: PretendedHost) -> None:
    before = times(moving)
    moving.clone.git("rm", "--quiet", "folder/deep/c")
    moving.clone.commit({"a": b"FIRST\n", "new/d": b"fourth\n"})
    assert_right(moving)
    after = times(moving)
    assert {path for path in before if after.get(path) != before[path]} == {"a", "folder/deep/c"}
    assert set(after) - set(before) == {"new/d"}


def test_a_file_of_equal_size_gets_a_new_time_at_every_change(moving: PretendedHost) -> None:
    one = moving.clone.revision
    other = moving.clone.commit({"a": b"FIRST\n"})
    seen = [times(moving)["a"]]
    for commit in (other, one, other, one):
        assert_right(moving, commit)
        seen.append(times(moving)["a"])
    assert len(set(seen)) == len(seen)


def test_files_folders_links_and_submodules_take_each_other_s_place(moving: PretendedHost, tmp_path: Path) -> None:
    clone, library = moving.clone, Clone(tmp_path / "library")
    library.commit({"inner/x": b"of the library\n"})
    commits = [clone.revision]
    shutil.rmtree(clone.path / "folder")
    (clone.path / "a").unlink()
    commits.append(clone.commit({"folder": b"now a file\n", "a/now/a/folder": b""}))
    (clone.path / "folder").unlink()
    (clone.path / "folder").symlink_to("run")
    commits.append(clone.commit({}))
    clone.git("rm", "--quiet", "folder")
    clone.git("submodule", "add", "--quiet", str(library.path), "folder")
    commits.append(clone.commit({}))
    library.commit({"inner/x": b"a newer library\n"})
    clone.git("-C", "folder", "pull", "--quiet")
    commits.append(clone.commit({}))
    for commit in [*commits, *reversed(commits), commits[1], commits[3], commits[0], commits[4]]:
        context = built(moving, commit)
        outer = {path: file for path, file in context.items() if commit not in commits[3:] or path[:7] != b"folder/"}
        assert outer == recorded(clone, commit)
        if commit in commits[3:]:
            wanted = b"of the library\n" if commit == commits[3] else b"a newer library\n"
            assert context[b"folder/inner/x"] == ("100644", wanted)


def test_every_service_has_a_checkout_of_its_own(moving: PretendedHost) -> None:
    before = times(moving)
    moving.service("other-staging", **moving.state["compose"]["services"]["shop-staging"])
    moving.service("other-staging", container_name="other", image="other", ports=[{"published": "43102"}])
    names = {"TARGET_SERVICE": "other-staging", "STAGING_CONTAINER": "other", "TARGET_IMAGE": "other"}
    moving.clone.commit({"a": b"FIRST\n"})
    built(moving, TARGET_PORT="43102", **names)
    assert times(moving) == before
    assert (kept(moving, "other-staging") / "tree/a").read_bytes() == b"FIRST\n"


@pytest.mark.root
def test_nobody_else_can_enter_and_nothing_is_inherited_from_the_compose_folder(pretended: PretendedHost) -> None:
    os.chown(pretended.compose_dir, 0, 4)
    pretended.compose_dir.chmod(0o2775)
    pretended.clone.commit(FILES)
    assert_right(pretended)
    assert (pretended.compose_dir / ".imagefresh").stat().st_mode & 0o077 == 0
    assert (kept(pretended).parents[1]).stat().st_mode & 0o7777 == 0o700


# --- what others do to it ---------------------------------------------------------------------------------------------


def edit_in_secret(tree: Path, path: str = "a") -> None:
    """Change bytes of a file that has six; size and time stay."""
    before = (tree / path).stat()
    (tree / path).write_bytes(b"EVIL!\n")
    os.utime(tree / path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_in_secret(tree: Path) -> None:
    before = (tree / "a").stat()
    (tree / "other").write_bytes(b"EVIL!\n")
    os.utime(tree / "other", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tree / "other").rename(tree / "a")


def lead_a_folder_elsewhere(tree: Path) -> None:
    elsewhere = tree.parent / "elsewhere"
    (tree / "folder").rename(elsewhere)
    (tree / "folder").symlink_to(elsewhere)


def lead_a_file_elsewhere(tree: Path) -> None:
    (tree / "a").unlink()
    (tree / "a").symlink_to("folder/b")


def add_a_repository(tree: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tree / "folder/nested")], check=True)
    (tree / "folder/nested/file").write_bytes(b"")


def add_a_git_folder(tree: Path) -> None:
    (tree / "folder/.git").mkdir()
    (tree / "folder/.git/x").write_bytes(b"")


def add_a_second_name(tree: Path) -> None:
    os.link(tree / "a", tree.parent / "second")


def spoil_the_record(tree: Path) -> None:
    (tree.parent / "index").write_bytes(b"DIRC nonsense")


def leave_a_lock(tree: Path) -> None:
    (tree.parent / "index.taken.lock").write_bytes(b"")
    (tree.parent / "index.taken").write_bytes(b"")


DEEDS: dict[str, Callable[[Path], object]] = {
    "edited": lambda tree: (tree / "a").write_bytes(b"an edit\n"),
    "edited in secret": edit_in_secret,
    "replaced in secret": replace_in_secret,
    "emptied": lambda tree: (tree / "a").write_bytes(b""),
    "file removed": lambda tree: (tree / "folder/b").unlink(),
    "folder removed": lambda tree: shutil.rmtree(tree / "folder"),
    "all removed": shutil.rmtree,
    "file added": lambda tree: (tree / "folder/extra").write_bytes(b""),
    "empty folder added": lambda tree: (tree / "folder/empty").mkdir(),
    "repository added": add_a_repository,
    "git folder added": add_a_git_folder,
    "git file added": lambda tree: (tree / ".git").write_bytes(b"gitdir: /nowhere\n"),
    "made executable": lambda tree: (tree / "a").chmod(0o755),
    "made unexecutable": lambda tree: (tree / "run").chmod(0o644),
    "made writable": lambda tree: (tree / "a").chmod(0o666),
    "made setuid": lambda tree: (tree / "run").chmod(0o4755),
    "folder made writable": lambda tree: (tree / "folder").chmod(0o777),
    "folder leads elsewhere": lead_a_folder_elsewhere,
    "file leads elsewhere": lead_a_file_elsewhere,
    "second name": add_a_second_name,
    "pipe": lambda tree: os.mkfifo(tree / "folder/pipe"),
    "record spoilt": spoil_the_record,
    "record removed": lambda tree: (tree.parent / "index").unlink(),
    "record of nothing": lambda tree: (tree.parent / "index").write_bytes(b""),
    "lock left": leave_a_lock,
}


UNSEEN = {"git folder added", "git file added", "folder made writable", "pipe"}
"""What git does not look at, so that it is found after a build."""
SOMETIMES_SEEN = {"made writable", "made setuid", "second name"}
"""Where git sees the new time of a file, it writes that anew."""


@pytest.mark.parametrize("deed", DEEDS)
def test_whatever_was_done_to_it_the_commit_is_built(moving: PretendedHost, deed: str) -> None:
    before = len(moving.calls)
    DEEDS[deed](kept(moving) / "tree")
    assert_right(moving)
    calls = [call for call in moving.calls[before:] if call.startswith("docker build --") or " up " in call]
    *builds, last = [call.split()[1] for call in calls]
    assert (set(builds), last) == ({"build"}, "compose")
    assert len(builds) in ([1, 2] if deed in SOMETIMES_SEEN else [2] if deed in UNSEEN else [1])


def believe(host: PretendedHost, path: str) -> None:
    """Let the record say that a file on disk, as it is now, is the one that git wrote."""
    found = (kept(host) / "tree" / path).stat()
    nanoseconds = 10**9
    fields = (
        *divmod(found.st_ctime_ns, nanoseconds),
        *divmod(found.st_mtime_ns, nanoseconds),
        found.st_dev & 0xFFFFFFFF,
        found.st_ino & 0xFFFFFFFF,
        found.st_mode,
        found.st_uid,
        found.st_gid,
        found.st_size,
    )
    index = bytearray((kept(host) / "index").read_bytes()[:-20])
    # gitformat-index(5), version 2: ten numbers, 20 bytes of hash, two of flags (the name's length), then the name.
    name = path.encode() + b"\0"
    start = index.index(struct.pack(">H", len(path)) + name) - 60
    index[start : start + 40] = struct.pack(">10L", *fields)
    (kept(host) / "index").write_bytes(index + hashlib.sha1(index).digest())
    later = time.time() + 10
    os.utime(kept(host) / "index", (later, later))


def test_no_record_stands_for_the_bytes(moving: PretendedHost) -> None:
    edit_in_secret(kept(moving) / "tree")
    believe(moving, "a")
    outcome = moving.staging()
    assert outcome.verdict == (0, "built")
    assert "was changed by somebody (a: needs update); doing it again from nothing" in outcome.stderr
    assert outcome.line["tree"] == moving.clone.git("rev-parse", "HEAD^{tree}")
    assert (moving.context / "a").read_bytes() == FILES["a"]
    builds = [call for call in moving.calls if call.startswith("docker build --")]
    assert len(builds) == 3
    assert_right(moving)


def test_no_record_stands_for_the_bytes_of_a_submodule(moving: PretendedHost, tmp_path: Path) -> None:
    library = Clone(tmp_path / "library")
    library.commit({"x": b"inner\n"})
    moving.clone.git("submodule", "add", "--quiet", str(library.path), "library")
    moving.clone.commit({})
    built(moving)
    edit_in_secret(kept(moving) / "tree", "library/x")
    believe(moving, "library/x")
    outcome = moving.staging()
    assert outcome.verdict == (0, "built")
    assert "was changed by somebody (library/x: needs update); doing it again from nothing" in outcome.stderr
    assert (moving.context / "library/x").read_bytes() == b"inner\n"


def test_what_is_changed_while_it_is_built_is_found(moving: PretendedHost) -> None:
    moving.set(meddling={"a": "EVIL!\n"})
    outcome = moving.staging()
    assert outcome.verdict == (0, "built")
    assert "was changed by somebody (a: needs update); doing it again from nothing" in outcome.stderr
    assert (moving.context / "a").read_bytes() == FILES["a"]


def test_nothing_is_tagged_before_the_bytes_are_proven(moving: PretendedHost) -> None:
    edit_in_secret(kept(moving) / "tree")
    believe(moving, "a")
    before = len(moving.calls)
    moving.staging()
    calls = moving.calls[before:]
    builds = [index for index, call in enumerate(calls) if call.startswith("docker build --")]
    assert len(builds) == 2
    assert not any(call.startswith("docker image tag") for call in calls[: builds[1]])


def test_a_clone_that_lies_about_a_changed_file_is_refused(moving: PretendedHost) -> None:
    moving.clone.commit({"a": b"FIRST\n"})
    forge(moving.clone, moving.clone.git("rev-parse", "HEAD:a"), "blob", b"EVIL!\n")
    tags = moving.state["images"]
    assert moving.staging().verdict in [(1, "tree-mismatch"), (1, "export-failed")]
    assert moving.state["images"]["shop-shop-staging:latest"] == tags["shop-shop-staging:latest"]


# --- runs that do not end well ----------------------------------------------------------------------------------------


def test_a_failed_run_hands_nothing_on(moving: PretendedHost) -> None:
    moving.fail("docker build --", times=1)
    assert moving.staging().verdict == (1, "build-failed")
    assert list(kept(moving).iterdir()) == []
    assert_right(moving)


def test_a_killed_run_hands_nothing_on(moving: PretendedHost) -> None:
    moving.clone.commit({"a": b"FIRST\n"})
    moving.fail("docker build --", times=1, sleep=2)
    argv = [str(moving.hook.path), "--build-staging"]
    with subprocess.Popen(argv, env=moving.staging_variables(), start_new_session=True, stdout=-3, stderr=-3) as run:
        while len([call for call in moving.calls if call.startswith("docker build --")]) < 2:
            assert run.poll() is None
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGKILL)
    assert not (kept(moving) / "index").exists()
    (kept(moving) / "tree/a").write_bytes(b"half a fi")
    for left in moving.hook.temp_dir.iterdir():
        shutil.rmtree(left)
    assert_right(moving)
