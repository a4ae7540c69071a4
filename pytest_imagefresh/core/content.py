"""Content: the files of the commit that an image must hold byte for byte, and what it holds instead."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pytest_imagefresh.core.errors import Refused

PLAIN = "100644"
EXECUTABLE = "100755"
SYMLINK = "120000"
SUBMODULE = "160000"
SPECIAL = "special"
"""What git cannot hold: a device or a pipe."""

_KINDS = {PLAIN: "a file", EXECUTABLE: "a file", SYMLINK: "a symlink", SUBMODULE: "a submodule"}
_PLACES = {"": "not there", "file": "a file", "symlink": "a symlink to {}", "other": "a device, pipe or socket"}
_NAMED = 5


@dataclass(frozen=True)
class File:
    """One file as git sees it: equal files have equal modes and equal blobs."""

    mode: str
    """Git's word: 100644, 100755, 120000 or 160000; `SPECIAL` for what git cannot hold."""
    blob: str
    """Git's ID of the bytes, of a symlink's target; "" for what is special."""


Tree = Mapping[str, File]
"""Path -> file. Paths have no slash at the end; bytes that are no UTF-8 are surrogate escapes."""


@dataclass(frozen=True)
class Place:
    """What an image has at the path of a declared folder, or of a folder above it."""

    kind: str
    """`folder`, `file`, `symlink`, `other`, or "" where there is nothing."""
    leads_to: str = ""
    """The target of a symlink."""


@dataclass(frozen=True)
class Content:
    """The declared content of one image: as the commit has it, and as the image has it."""

    declared: Mapping[str, str]
    """Absolute folder in the image -> folder of the commit."""
    ignore: Sequence[str]
    places: Mapping[str, Place]
    """What the image has at each declared folder and above, by absolute path, up to the first that is no folder."""
    expected: Tree
    """By absolute path in the image."""
    observed: Tree
    """By absolute path in the image."""

    def differences(self) -> list[str]:
        """Return what the image holds otherwise than the commit, one short phrase each, in the order of the paths."""
        paths = sorted(self.expected.keys() | self.observed.keys())
        found = ((path, self._difference(path)) for path in paths)
        return [f"{shown(path)} ({problem})" for path, problem in found if problem]

    def misplaced(self) -> list[str]:
        """Return what is wrong with the declared folders themselves, and those above them, one phrase each."""
        found = ((path, place) for path, place in sorted(self.places.items()) if place.kind != "folder")
        return [f"{shown(path)} is {_PLACES[place.kind].format(shown(place.leads_to))}" for path, place in found]

    def additions(self) -> list[str]:
        """Return the files that only the image has and `content_ignore` allows."""
        extra = sorted(self.observed.keys() - self.expected.keys())
        return [shown(path) for path in extra if not is_content(path, self.declared, self.ignore)]

    def _difference(self, path: str) -> str:
        wanted, seen = self.expected.get(path), self.observed.get(path)
        if wanted is None:
            return "extra" if is_content(path, self.declared, self.ignore) else ""
        return "missing" if seen is None else _describe(wanted, seen)


def _describe(wanted: File, seen: File) -> str:
    """Return how a file differs from the commit's, "" where it does not."""
    if wanted == seen:
        return ""
    kinds = _KINDS.get(wanted.mode, "?"), _KINDS.get(seen.mode, "a device or pipe")
    if kinds[0] != kinds[1]:
        return f"{kinds[1]}, expected {kinds[0]}"
    if wanted.blob != seen.blob:
        return "leads elsewhere" if wanted.mode == SYMLINK else "other bytes"
    return "not executable" if wanted.mode == EXECUTABLE else "executable, not so in the commit"


def is_content(path: str, declared: Iterable[str], ignore: Sequence[str]) -> bool:
    """Say whether an absolute path of an image lies below a declared folder, and `content_ignore` does not allow it."""
    inside = [folder for folder in declared if path.startswith(f"{folder}/")]
    return bool(inside) and not any(is_ignored(path[len(folder) + 1 :], ignore) for folder in inside)


def is_ignored(path: str, patterns: Iterable[str]) -> bool:
    """Say whether a pattern names a file, or a folder that it lies in. `path` is relative to the content folder.

    A pattern without slash matches a name at any depth; one with a slash matches from the content folder on, name by
    name. Names are matched as fnmatch does, with case: `*`, `?` and `[...]` never reach beyond a slash.
    """
    names = path.split("/")
    return any(_matches(names, pattern.split("/")) for pattern in patterns)


def _matches(names: Sequence[str], wanted: Sequence[str]) -> bool:
    if len(wanted) == 1:
        return any(fnmatchcase(name, wanted[0]) for name in names)
    return len(names) >= len(wanted) and all(map(fnmatchcase, names, wanted))


def folders_of(declared: Iterable[str]) -> list[str]:
    """Return the declared folders of an image and every folder above them but the root, each once, outer ones first."""
    folders = {folder for each in declared for folder in _with_parents(each)}
    return sorted(folders)


def _with_parents(folder: str) -> Iterator[str]:
    while folder != "/":
        yield folder
        folder = posixpath.dirname(folder)


def outermost(declared: Iterable[str]) -> list[str]:
    """Return the declared folders that lie in no other one: who reads these has read all."""
    folders = sorted(declared)
    return [folder for folder in folders if not any(folder.startswith(f"{other}/") for other in folders)]


def expect_content(declared: Mapping[str, str], tree: Tree) -> dict[str, File]:
    """Return the files that the image must hold, by absolute path in the image. `tree` is that of the commit.

    Raises Refused for a folder that the commit does not have or that holds a submodule, and for one path that two
    declared folders want to be two files.
    """
    expected: dict[str, File] = {}
    for inside, folder in declared.items():
        found = _below(tree, folder)
        if not found:
            raise Refused(f"content: the commit has no folder {folder}, expected one for {inside}; correct the setting")
        for name, file in found.items():
            path = f"{inside}/{name}"
            if expected.setdefault(path, file) != file:
                raise Refused(
                    f"content: {shown(path)} is to be two files of the commit, expected one; "
                    f"correct what is declared for {inside}"
                )
    return expected


def _below(tree: Tree, folder: str) -> dict[str, File]:
    start = "" if folder == "." else f"{folder}/"
    return {path.removeprefix(start): file for path, file in tree.items() if path.startswith(start)}


def shown(path: str) -> str:
    """Return a path as one line of printable text, whatever it holds."""
    return path if path.isprintable() else ascii(path)[1:-1]


def some_of(phrases: Sequence[str]) -> str:
    """Return the first five of some phrases and how many more there are."""
    more = len(phrases) - _NAMED
    return ", ".join(phrases[:_NAMED]) + (f" and {more} more" if more > 0 else "")
