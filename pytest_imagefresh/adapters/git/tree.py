"""Files of a commit, as the commit has them: no checkout, no filters."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pytest_imagefresh.adapters.git.plumbing import Git, check_hash, git_on, read_objects
from pytest_imagefresh.core.content import SYMLINK, File
from pytest_imagefresh.core.errors import EvidenceError, Refused
from pytest_imagefresh.core.identity import Revision

FILE_LIMIT = 1024 * 1024
"""Bytes of the largest file that is read."""

_LINK_HOPS = 8
_NEVER_LEFT_OUT = ("compose.", "docker-compose.", ".env")


def read_tree_files(
    clone: Path, revision: Revision, select: Callable[[str], bool], *, timeout: float
) -> dict[str, bytes]:
    """Return the files of a commit whose path is selected: path from the top of the tree -> bytes.

    A symlink to a file of the same commit gives that file's bytes; one that leads to no file is left out. A file of
    more than 1 MiB is left out too, unless compose reads it by its name. `timeout` is in seconds, for all of it.
    Raises Refused for a selected symlink that leads out of the commit and for a compose file that is too large,
    EvidenceError when git cannot tell.
    """
    git = git_on(clone, timeout)
    entries = _list_tree(git, revision)
    wanted = {path: _resolve(git, path, entries) for path in entries if select(path)}
    ids = {path: entry.blob for path, entry in wanted.items() if entry is not None}
    small = _small_enough(git, ids)
    contents = _read_blobs(git, sorted({ids[path] for path in small}))
    return {path: contents[ids[path]] for path in small}


def _list_tree(git: Git, revision: Revision) -> dict[str, File]:
    """Return the blobs of a commit by path; submodules have none."""
    return {path: File(mode, id) for kind, mode, id, path in list_entries(git, revision.hex) if kind == "blob"}


def list_entries(git: Git, revision: str, *options: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield kind, mode, ID and path of all that a commit holds, however deep. Source: git-ls-tree(1)."""
    output = git.read("ls-tree", "-r", *options, "-z", "--full-tree", revision)
    for record in output.split(b"\0")[:-1]:
        words, tab, path = record.partition(b"\t")
        mode, _, rest = words.decode(errors="replace").partition(" ")
        kind, _, object_id = rest.partition(" ")
        if not tab or not object_id:
            raise EvidenceError(f"git ls-tree on {git.folder} printed {record[:200]!r}, expected an entry; check git")
        yield kind, mode, object_id, os.fsdecode(path)


def _resolve(git: Git, path: str, entries: Mapping[str, File]) -> File | None:
    """Return the file behind a path, through symlinks of the commit; None where they lead to no file."""
    place = path
    for _ in range(_LINK_HOPS):
        entry = entries.get(place)
        if entry is None or entry.mode != SYMLINK:
            return entry
        target = os.fsdecode(_read_blobs(git, [entry.blob])[entry.blob])
        place = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
        if place.startswith(("/", "../")) or place == "..":
            raise Refused(
                f"{path} of the commit is a symlink that leads out of it: expected a file of the commit, observed "
                f"{target!r}; commit the file itself"
            )
    return None


def _small_enough(git: Git, ids: Mapping[str, str]) -> list[str]:
    """Return the paths whose file is no larger than the limit."""
    unique = sorted(set(ids.values()))
    output = git.read("cat-file", "--batch-check=%(objecttype) %(objectsize)", stdin=_lines(unique)).decode()
    sizes: dict[str, int] = {}
    for object_id, line in zip(unique, output.splitlines(), strict=False):
        kind, _, size = line.partition(" ")
        if kind != "blob" or not size.isdigit():
            raise EvidenceError(f"blob {object_id} in {git.folder} is not there: git says {line!r}; fetch it")
        sizes[object_id] = int(size)
    if len(sizes) != len(unique):
        raise EvidenceError(
            f"git cat-file on {git.folder} told of {len(sizes)} files, expected {len(unique)}; check git"
        )
    small = [path for path, object_id in ids.items() if sizes[object_id] <= FILE_LIMIT]
    for path in set(ids) - set(small):
        if posixpath.basename(path).startswith(_NEVER_LEFT_OUT):
            raise Refused(
                f"{path} of the commit has {sizes[ids[path]]} bytes, expected {FILE_LIMIT} at most; "
                "make the file smaller"
            )
    return small


def _lines(ids: list[str]) -> bytes:
    return "".join(f"{object_id}\n" for object_id in ids).encode()


def _read_blobs(git: Git, ids: list[str]) -> dict[str, bytes]:
    """Return the bytes of blobs by ID, each checked against it."""
    blobs: dict[str, bytes] = {}
    for object_id, blob in zip(ids, read_objects(git, ids), strict=True):
        if blob is None:
            raise EvidenceError(f"blob {object_id} is missing in {git.folder}; fetch it there")
        check_hash(blob, git.folder)
        blobs[object_id] = blob.content
    return blobs
