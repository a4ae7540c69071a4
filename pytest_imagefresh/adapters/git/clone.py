"""The clone of a repo on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pytest_imagefresh.adapters import command
from pytest_imagefresh.adapters.git.plumbing import Git, git_folders, git_on, list_worktrees, read_line
from pytest_imagefresh.core.errors import ConfigError, Refused
from pytest_imagefresh.core.identity import RepoName
from pytest_imagefresh.core.settings import Settings


def find_clone(settings: Settings, repo: RepoName, rootdir: Path) -> Path:
    """Return the clone of a repo: below `repos_dir`, or where none is set the clone around the rootdir.

    The path is absolute and free of symlinks. Raises ConfigError for an unknown repo, Refused for a clone that is a
    symlink leading elsewhere or not the top of its own repository, EvidenceError when git cannot tell.
    """
    if not settings.repos_dir:
        return _clone_around(settings, repo, rootdir)
    clone = Path(os.path.realpath(os.path.expanduser(settings.repos_dir))) / repo.name
    if not os.path.lexists(clone):
        raise ConfigError(
            f"unknown repo {repo}: expected its clone at {clone}, observed nothing there; "
            "clone it there, or correct --repo or repos_dir"
        )
    check_not_elsewhere(f"the clone of {repo}", str(clone))
    check_own_repository(git_on(clone, settings.timeouts.git), f"the clone of {repo}")
    return clone


def _clone_around(settings: Settings, repo: RepoName, rootdir: Path) -> Path:
    """Return the clone that holds the rootdir, if it is the repo's: by folder, by origin, or by a target's table."""
    start = Path(os.path.realpath(rootdir))
    # The first `.git` on the way up decides, sound or not: a repository further out never answers for it.
    clone = next((folder for folder in (start, *start.parents) if os.path.lexists(folder / ".git")), None)
    if clone is None:
        raise ConfigError(
            f"unknown repo {repo}: expected its clone around {start}, observed no repository; "
            "run inside of the clone, or set repos_dir"
        )
    git = git_on(clone, settings.timeouts.git)
    check_own_repository(git, f"the clone of {repo}")
    declared = {target.repo.casefold() for target in settings.targets.values()}
    names = sorted(set(_names_of(git)))
    if repo.name not in names and repo.name.casefold() not in declared:
        raise ConfigError(
            f"unknown repo {repo}: expected its clone around {start}, observed that of {' or '.join(names)}; "
            f"correct --repo, set repos_dir, or add a table [targets.{repo}]"
        )
    return clone


def _names_of(git: Git) -> Iterator[str]:
    """Yield what the clone may be called: its folder, its main worktree's folder, the last part of its origin."""
    yield os.path.basename(git.folder)
    yield os.path.basename(list_worktrees(git)[0].path)
    completed = git.run("config", "--local", "--no-includes", "-z", "--get", "remote.origin.url")
    origin = completed.stdout.rstrip(b"\0").decode(errors="replace").rstrip("/")
    if completed.status == 0 and origin:
        yield origin.replace(":", "/").rpartition("/")[2].removesuffix(".git")


def check_not_elsewhere(subject: str, path: str) -> None:
    """Raise Refused when a path is, or goes through, a symlink."""
    real = os.path.realpath(path)
    if real != path:
        raise Refused(
            f"{subject} goes through a symlink leading elsewhere: expected {path} itself, observed {real}; "
            "put the real folder there"
        )


def check_own_repository(git: Git, subject: str) -> tuple[str, str]:
    """Return the git folder and the one that all worktrees share. Raises Refused unless the folder is its own top."""
    inner = os.path.join(git.folder, ".git")
    if os.path.islink(inner):
        raise Refused(f"{subject}: {inner} is a symlink; expected the repository itself; put the real one there")
    if not os.path.lexists(inner) and not _looks_bare(git.folder):
        raise Refused(
            f"{subject}, {git.folder}, has no .git: expected the top of a repository of its own, not a folder that an "
            "outer one could answer for; add it again"
        )
    folders = git_folders(git)
    if folders is None:
        said = command.last_line(git.run("rev-parse", "--git-dir").stderr)
        raise Refused(f"{subject}, {git.folder}, is no sound repository: git says {said!r}; repair it or add it again")
    if os.path.isfile(inner) and not _leads_back(git.folder, folders[0]):
        raise Refused(
            f"{subject}: {inner} leads to {folders[0]}, expected a repository that names this folder in turn; "
            "add it again with git"
        )
    return folders


def _looks_bare(folder: str) -> bool:
    return all(os.path.lexists(os.path.join(folder, name)) for name in ("HEAD", "objects", "refs"))


def _leads_back(folder: str, git_dir: str) -> bool:
    """Say whether the git folder that a `.git` file names is this folder's own: below it, or naming it in turn."""
    if git_dir.startswith(f"{folder}/"):
        return True
    back = read_line(os.path.join(git_dir, "gitdir"))
    return bool(back) and os.path.realpath(os.path.join(git_dir, back)) == os.path.join(folder, ".git")
