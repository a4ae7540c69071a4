"""Git's plumbing on one repository: commands, worktree records, objects.

Every command gets an explicit `--git-dir`, so git never searches upwards and an outer repository cannot answer.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pytest_imagefresh.adapters import command
from pytest_imagefresh.core.errors import EvidenceError, Refused

# What the repository's own configuration could bend, and what could run a program or reach a network.
_PINNED_CONFIG = (
    "safe.directory=*",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.commitGraph=false",
    "core.useReplaceRefs=false",
    "protocol.allow=never",
)
_ENVIRONMENT = {
    "LC_ALL": "C",
    "HOME": "/dev/null",
    "XDG_CONFIG_HOME": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_GRAFT_FILE": "/dev/null",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
}


_FATAL = 128
"""The exit status with which git says that something is wrong with what it was given."""


@dataclass(frozen=True)
class Git:
    """Git on one repository; all commands up to the deadline."""

    folder: str
    """The top of the clone or worktree."""
    git_dir: str
    timeout: float
    """Seconds for all commands together."""
    deadline: float
    """The end of that, on the monotonic clock."""

    def run(self, *arguments: str, stdin: bytes = b"") -> command.Completed:
        """Run one command to its end, whatever its exit status."""
        config = (word for setting in _PINNED_CONFIG for word in ("-c", setting))
        argv = ["git", *config, f"--git-dir={self.git_dir}", "--no-pager", *arguments]
        environment = {"PATH": command.clean_environment()["PATH"], **_ENVIRONMENT}
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise EvidenceError(f"git took longer than {self.timeout:g} s on {self.folder}; raise timeouts.git")
        return command.run(argv, timeout=left, cwd="/", env=environment, stdin=stdin)

    def read(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """Return the output of one command. Raises EvidenceError when it fails."""
        completed = self.run(*arguments, stdin=stdin)
        if completed.status != 0:
            said = command.last_line(completed.stderr) or "it said nothing"
            raise EvidenceError(
                f"git {arguments[0]} on {self.folder} ended with {completed.status}: {said}; expected 0; "
                "check the repository, and that git is 2.36 or later"
            )
        return completed.stdout

    def at(self, folder: str) -> Git:
        """Return git on another worktree, under the same bound."""
        return Git(folder, git_dir_of(folder), self.timeout, self.deadline)


def git_on(folder: Path, timeout: float) -> Git:
    """Return git on a clone, bounded by `timeout` seconds from now on."""
    return Git(str(folder), git_dir_of(str(folder)), timeout, time.monotonic() + timeout)


def git_dir_of(folder: str) -> str:
    """Return the `.git` of a folder, or the folder itself where it has none: then it must be a bare repository."""
    inner = os.path.join(folder, ".git")
    return inner if os.path.lexists(inner) else folder


def git_folders(git: Git) -> tuple[str, str] | None:
    """Return the real paths of the git folder and of the one that all worktrees share; None for no repository."""
    completed = git.run("rev-parse", "--path-format=absolute", "--git-dir", "--git-common-dir")
    if completed.status == _FATAL:
        return None
    lines = os.fsdecode(completed.stdout).split("\n")
    if len(lines) != 3 or lines[2] or not all(line.startswith("/") for line in lines[:2]):
        raise EvidenceError(
            f"git rev-parse on {git.folder} printed {completed.stdout!r}, expected two paths; check git"
        )
    return os.path.realpath(lines[0]), os.path.realpath(lines[1])


def read_line(path: str) -> str:
    """Return the text of a one-line file of git's own, or "" where there is none."""
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.read(8192)).rstrip("\n")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise EvidenceError(f"{path} cannot be read: {error.strerror}; check its owner and mode") from error


# Worktrees.


@dataclass(frozen=True)
class Worktree:
    """One entry of `git worktree list`."""

    path: str
    head: str
    """Full commit ID; 40 zeros where the branch has no commit yet; "" for a bare repository."""
    ref: str
    """The full reference that is checked out; "" where HEAD is detached or the repository is bare."""
    detached: bool
    bare: bool

    @property
    def is_unborn(self) -> bool:
        return bool(self.head) and not self.head.strip("0")


def list_worktrees(git: Git) -> list[Worktree]:
    """Return the worktrees of a repository, the main one first. Source: git-worktree(1), porcelain format."""
    output = os.fsdecode(git.read("worktree", "list", "--porcelain", "-z"))
    worktrees = [_parse_worktree(record.split("\0")) for record in output.split("\0\0") if record]
    if not worktrees or not output.endswith("\0\0"):
        raise EvidenceError(f"git worktree list on {git.folder} printed {output[:200]!r}, expected records; check git")
    return worktrees


def _parse_worktree(lines: list[str]) -> Worktree:
    values = {word: rest for word, _, rest in (line.partition(" ") for line in lines)}
    path = values.get("worktree", "")
    if not path.startswith("/"):
        raise EvidenceError(f"git worktree list printed {lines!r}, expected an absolute path; check git")
    return Worktree(path, values.get("HEAD", ""), values.get("branch", ""), "detached" in values, "bare" in values)


# Objects.


@dataclass(frozen=True)
class GitObject:
    """One object as `git cat-file --batch` hands it out."""

    id: str
    kind: str
    """commit, tree, blob or tag."""
    content: bytes


def read_objects(git: Git, names: Iterable[str]) -> list[GitObject | None]:
    """Return objects by name, None for each that does not exist. Names hold no space and no newline."""
    wanted = list(names)
    output = git.read("cat-file", "--batch", stdin="".join(f"{name}\n" for name in wanted).encode())
    objects: list[GitObject | None] = []
    position = 0
    for name in wanted:
        end = output.find(b"\n", position)
        line = output[position : max(end, position)]
        found = None if line == f"{name} missing".encode() else _parse_object(git, line, output, end + 1)
        position = end + 1 + (len(found.content) + 1 if found else 0)
        objects.append(found)
    return objects


def _parse_object(git: Git, line: bytes, output: bytes, start: int) -> GitObject:
    """Return the object whose header is `line` and whose content starts at `start`."""
    words = line.decode(errors="replace").split(" ")
    size = int(words[2]) if len(words) == 3 and words[2].isascii() and words[2].isdigit() else -1
    if size < 0 or output[start + size : start + size + 1] != b"\n":
        raise EvidenceError(f"git cat-file on {git.folder} printed {line[:200]!r}, expected an object; run 'git fsck'")
    if len(words[0]) != 40:
        raise Refused(
            f"{git.folder} uses object IDs of {len(words[0])} characters, expected 40 (SHA-1); "
            "convert the repository: images are labelled with SHA-1 revisions"
        )
    return GitObject(words[0], words[1], output[start : start + size])


def check_hash(found: GitObject, place: str) -> None:
    """Raise Refused unless the object's bytes are what its ID says: git itself does not look when it reads one."""
    header = f"{found.kind} {len(found.content)}\0".encode()
    observed = hashlib.sha1(header + found.content, usedforsecurity=False).hexdigest()
    if observed != found.id:
        raise Refused(
            f"{found.kind} {found.id} in {place} holds other bytes: expected its own, observed those of {observed}; "
            "run 'git fsck'"
        )
