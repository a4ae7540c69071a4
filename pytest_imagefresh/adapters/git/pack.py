"""Everything that one commit holds, as one pack of git: for a Docker host that has no clone."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pytest_imagefresh.adapters.git.plumbing import Git, git_folders, git_on
from pytest_imagefresh.core.errors import EvidenceError, Refused
from pytest_imagefresh.core.identity import Revision

_SUBMODULE = b"160000"
_STORE_CONFIG = "[core]\n\trepositoryformatversion = 0\n\tbare = true\n"


@contextlib.contextmanager
def packed_commit(clone: Path, revision: Revision, *, timeout: float) -> Iterator[mmap.mmap]:
    """Yield a pack with a commit, its submodules' commits, and all their trees and files; no history.

    It lies in a temporary file that is gone at the end, so that its size is no matter. `timeout` is in seconds, for all
    of it. Raises Refused for a submodule that the clone does not hold, EvidenceError when git cannot tell.
    """
    git = git_on(clone, timeout)
    with tempfile.TemporaryDirectory(prefix="imagefresh-") as folder:
        store = _Store(Git(str(clone), folder, timeout, git.deadline))
        names = store.list_objects(store.add_commit(_common_folder(git), revision.hex, ""))
        with _mapped(store.write_pack(names)) as pack:
            yield pack


def _common_folder(git: Git) -> str:
    folders = git_folders(git)
    if folders is None:
        raise EvidenceError(f"{git.folder} is no git repository, expected one; clone it again")
    return folders[1]


class _Store:
    """A git folder of our own that borrows the objects of the clone and of its submodules: none of their settings."""

    def __init__(self, git: Git) -> None:
        self._git = git
        self._folder = Path(git.git_dir)
        try:
            for name in ("objects/info", "refs"):
                (self._folder / name).mkdir(parents=True)
            (self._folder / "HEAD").write_text("ref: refs/heads/none\n")
            (self._folder / "config").write_text(_STORE_CONFIG)
        except OSError as error:
            raise EvidenceError(f"{self._folder} could not be written: {error.strerror}; is the disk full?") from error

    def add_commit(self, git_dir: str, commit: str, path: str) -> list[str]:
        """Borrow the objects of a git folder, and return this commit and those of its submodules, at any depth."""
        with open(self._folder / "objects/info/alternates", "ab") as alternates:
            alternates.write(os.fsencode(f"{git_dir}/objects\n"))
        commits = [commit]
        names: dict[str, str] = {}
        for place, inner in self._submodules(commit):
            names = names or self._submodule_names(commit)
            folder = os.path.join(git_dir, "modules", names.get(place, ""))
            if place not in names or not os.path.isdir(os.path.join(folder, "objects")):
                raise Refused(
                    f"submodule {path}{place} at {inner}: expected it in {folder}, observed nothing; "
                    "run 'git submodule update --init --recursive' in the clone"
                )
            commits += self.add_commit(folder, inner, f"{path}{place}/")
        return commits

    def _submodules(self, commit: str) -> list[tuple[str, str]]:
        """Return path and commit of each submodule. Source: git-ls-tree(1)."""
        records = self._git.read("ls-tree", "-r", "-z", "--full-tree", commit).split(b"\0")[:-1]
        found = [record.partition(b"\t") for record in records if record.startswith(_SUBMODULE)]
        return [(os.fsdecode(path), words.split()[-1].decode()) for words, _, path in found]

    def _submodule_names(self, commit: str) -> dict[str, str]:
        """Return the name of each submodule by its path: below that name the clone keeps it."""
        done = self._git.run("config", "--blob", f"{commit}:.gitmodules", "--null", "--get-regexp", r"\.path$")
        pairs = [os.fsdecode(record).partition("\n") for record in done.stdout.split(b"\0")[:-1]]
        names = {path: key.removeprefix("submodule.").removesuffix(".path") for key, _, path in pairs}
        return {path: name for path, name in names.items() if name and ".." not in name.split("/")}

    def list_objects(self, commits: list[str]) -> bytes:
        """Return the names of all objects of these commits, a line each."""
        return self._git.read("rev-list", "--objects", "--no-walk", *commits)

    def write_pack(self, names: bytes) -> Path:
        """Write one pack with the named objects."""
        self._git.read("pack-objects", "-q", "--delta-base-offset", str(self._folder / "pack"), stdin=names)
        packs = list(self._folder.glob("pack-*.pack"))
        if len(packs) != 1:
            raise EvidenceError(
                f"git pack-objects on {self._git.folder} made {len(packs)} packs, expected 1; is the disk full?"
            )
        return packs[0]


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with open(path, "rb") as file:
        pack = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        yield pack
    finally:
        # Whoever was interrupted while sending may still hold a part of it; the collector closes it then.
        with contextlib.suppress(BufferError):
            pack.close()
