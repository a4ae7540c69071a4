"""Text that identifies something, parsed once at the edge and then compared with ==."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pytest_imagefresh.core.errors import ConfigError, EvidenceError

_HEX40 = re.compile(r"[0-9a-f]{40}")
_IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
_RUN_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_BRANCH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+@#=-]{0,199}")


@dataclass(frozen=True)
class Revision:
    """A full git commit ID: 40 lowercase hex characters, never abbreviated, never a branch name."""

    hex: str

    def __post_init__(self) -> None:
        if not _HEX40.fullmatch(self.hex):
            raise EvidenceError(f"not a full revision: {self.hex!r}; expected 40 lowercase hex characters")

    def other(self) -> Revision:
        """Return a revision that is not this one, for negative controls."""
        return Revision(f"{int(self.hex[0], 16) ^ 1:x}{self.hex[1:]}")

    def __str__(self) -> str:
        return self.hex


@dataclass(frozen=True)
class TreeId:
    """A full git tree ID: 40 lowercase hex characters."""

    hex: str

    def __post_init__(self) -> None:
        if not _HEX40.fullmatch(self.hex):
            raise EvidenceError(f"not a full tree ID: {self.hex!r}; expected 40 lowercase hex characters")

    def __str__(self) -> str:
        return self.hex


@dataclass(frozen=True)
class ImageId:
    """The engine's own `.Id` of an image: `sha256:` and 64 lowercase hex characters. No repo digest, no tag."""

    digest: str

    def __post_init__(self) -> None:
        if not _IMAGE_ID.fullmatch(self.digest):
            raise EvidenceError(f"not an image ID: {self.digest!r}; expected sha256: and 64 lowercase hex characters")

    def __str__(self) -> str:
        return self.digest


@dataclass(frozen=True)
class ContainerId:
    """The engine's own full container ID: 64 lowercase hex characters."""

    hex: str

    def __post_init__(self) -> None:
        if not _CONTAINER_ID.fullmatch(self.hex):
            raise EvidenceError(f"not a container ID: {self.hex!r}; expected 64 lowercase hex characters")

    def __str__(self) -> str:
        return self.hex


@dataclass(frozen=True)
class RunId:
    """The name of one gate run: its start in UTC and 8 random hex characters, `20260102T030405Z-89abcdef`."""

    text: str

    def __post_init__(self) -> None:
        if not _RUN_ID.fullmatch(self.text):
            raise EvidenceError(f"not a run ID: {self.text!r}; expected YYYYMMDDThhmmssZ-xxxxxxxx")

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class RepoName:
    """The name of a repo: one plain path component that is safe in any path and any command."""

    name: str

    def __post_init__(self) -> None:
        if not _REPO.fullmatch(self.name) or ".." in self.name or self.name.endswith(".git"):
            raise ConfigError(
                f"not a repo name: {self.name!r}; expected letters, digits, '.', '_' and '-', "
                "starting with a letter or digit, no '..' and no '.git' at the end"
            )

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class BranchName:
    """The name of a branch below refs/heads: what git accepts, less what a shell or a path could misread."""

    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("the branch is empty; name the branch that was validated with --branch NAME")
        problem = _branch_problem(self.name)
        if problem:
            raise ConfigError(f"not a branch name: {self.name!r}; {problem}")

    @property
    def ref(self) -> str:
        """The full reference, `refs/heads/<name>`."""
        return f"refs/heads/{self.name}"

    def __str__(self) -> str:
        return self.name


def _branch_problem(name: str) -> str:
    """Return what is wrong with a branch name, or "". Source: git check-ref-format(1), and no shell characters."""
    if not _BRANCH.fullmatch(name):
        return "expected letters, digits and . _ / + @ # = -, starting with a letter, digit or '_', 200 at most"
    if _HEX40.fullmatch(name.lower()):
        return "it reads like a commit ID; rename the branch"
    parts = name.split("/")
    if any(not part or part.startswith(".") or part.endswith((".", ".lock")) for part in parts):
        return "no part between slashes may be empty, start or end with '.', or end with '.lock'"
    if ".." in name or "@{" in name or name == "HEAD":
        return "it must not be HEAD nor hold '..' or '@{'"
    return ""
