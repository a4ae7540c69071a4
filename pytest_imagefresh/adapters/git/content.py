"""What a commit holds below some folders: every file's mode and blob, out of trees whose bytes were hashed again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_imagefresh.adapters.git.plumbing import Git, check_hash, git_folders, git_on, read_objects
from pytest_imagefresh.adapters.git.tree import list_entries
from pytest_imagefresh.core.content import EXECUTABLE, PLAIN, SYMLINK, File
from pytest_imagefresh.core.errors import EvidenceError, Refused
from pytest_imagefresh.core.identity import Revision

_OWNER_EXECUTES = 0o100


def read_content(clone: Path, revision: Revision, folders: Sequence[str], *, timeout: float) -> dict[str, File]:
    """Return every file of a commit below some of its folders: path from the top of the tree -> file.

    "." is the whole tree. Files of submodules count, each submodule at the commit that is recorded. `timeout` is in
    seconds, for all of it. Raises Refused for objects that hold other bytes than their ID says and for a submodule
    that the clone does not have, EvidenceError when git cannot tell.
    """
    return dict(_read_below(git_on(clone, timeout), revision.hex, folders))


def _read_below(git: Git, revision: str, folders: Sequence[str]) -> Iterator[tuple[str, File]]:
    """Yield the files of one repository, then those of its submodules."""
    entries = [entry for entry in list_entries(git, revision, "-t") if _concerns(entry[3], folders)]
    _check_trees(git, revision, {object_id for kind, _, object_id, _ in entries if kind == "tree"})
    for kind, mode, object_id, path in entries:
        if kind == "blob" and _lies_in(path, folders):
            yield path, File(_canonical(mode), object_id)
        if kind == "commit":
            inner = [_from(path, folder) for folder in folders if _concerns(path, [folder])]
            for name, file in _read_below(_submodule(git, revision, path), object_id, inner):
                yield f"{path}/{name}", file


def _lies_in(path: str, folders: Sequence[str]) -> bool:
    return any(folder == "." or f"{path}/".startswith(f"{folder}/") for folder in folders)


def _concerns(path: str, folders: Sequence[str]) -> bool:
    """Say whether a path lies in one of the folders or on the way to it."""
    return _lies_in(path, folders) or any(folder.startswith(f"{path}/") for folder in folders)


def _from(path: str, folder: str) -> str:
    """Return a folder as seen from a submodule at `path`: what is left of the way to it, "." where it holds all."""
    return folder[len(path) + 1 :] if folder.startswith(f"{path}/") else "."


def _canonical(mode: str) -> str:
    """Return the mode that a checkout gives: old repositories hold others, such as 100664."""
    if mode == SYMLINK:
        return mode
    return EXECUTABLE if int(mode, 8) & _OWNER_EXECUTES else PLAIN


def _check_trees(git: Git, revision: str, trees: set[str]) -> None:
    """Raise Refused unless commit and trees are the bytes that their IDs name: git does not look when it lists them."""
    names = [revision, f"{revision}^{{tree}}", *sorted(trees)]
    objects = [found for found in read_objects(git, names) if found is not None]
    if len(objects) != len(names):
        raise EvidenceError(f"{git.folder} lacks a tree of commit {revision}, expected all; fetch it there")
    for found in objects:
        check_hash(found, git.folder)
    commit, root = objects[:2]
    if commit.id != revision or commit.content.partition(b"\n")[0] != f"tree {root.id}".encode():
        raise Refused(
            f"commit {revision} in {git.folder} does not name the tree {root.id} that git finds for it; run 'git fsck'"
        )


def _submodule(git: Git, revision: str, path: str) -> Git:
    """Return git on the repository of a submodule, which the clone keeps below its git folder by the module's name."""
    folders = git_folders(git)
    modules = os.path.join(folders[1] if folders else git.git_dir, "modules")
    name = _submodule_name(git, revision, path)
    git_dir = os.path.join(modules, name)
    if not name or ".." in name.split("/") or not os.path.isdir(os.path.join(git_dir, "objects")):
        raise Refused(
            f"submodule {path!r} of commit {revision}: expected {name or 'a name in .gitmodules'!r} in {modules}, "
            "observed nothing; "
            "run 'git submodule update --init --recursive' in the clone"
        )
    return Git(git_dir, git_dir, git.timeout, git.deadline)


def _submodule_name(git: Git, revision: str, path: str) -> str:
    """Return the name that .gitmodules of a commit gives to a path; "" where it gives none."""
    query = ("--blob", f"{revision}:.gitmodules", "--null", "--get-regexp", r"^submodule\..*\.path$")
    records = (record.partition(b"\n") for record in git.run("config", *query).stdout.split(b"\0"))
    names = [os.fsdecode(key) for key, _, value in records if os.fsdecode(value) == path]
    return names[0].removeprefix("submodule.").removesuffix(".path") if len(names) == 1 else ""
