"""The anchor: branch -> worktree -> full commit ID."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pytest_imagefresh.adapters import command
from pytest_imagefresh.adapters.git.clone import check_not_elsewhere, check_own_repository, find_clone
from pytest_imagefresh.adapters.git.plumbing import (
    Git,
    GitObject,
    Worktree,
    check_hash,
    git_folders,
    git_on,
    list_worktrees,
    read_line,
    read_objects,
)
from pytest_imagefresh.core.errors import ConfigError, EvidenceError, Refused
from pytest_imagefresh.core.evidence import Anchor
from pytest_imagefresh.core.identity import BranchName, RepoName, Revision, TreeId
from pytest_imagefresh.core.settings import Settings


def parse_gate_revision(text: str) -> Revision:
    """Return the commit ID that the pipeline names. Raises ConfigError for anything but a full one."""
    try:
        return Revision(text)
    except EvidenceError as error:
        raise ConfigError(
            f"--gate-revision is {text!r}, expected a full commit ID of 40 lowercase hex characters; "
            "pass what 'git rev-parse HEAD' prints"
        ) from error


def read_anchor(
    settings: Settings, repo: RepoName, branch: BranchName, *, rootdir: Path, gate_revision: str = ""
) -> Anchor:
    """Return the validated revision: HEAD of the worktree in which the branch is checked out.

    `gate_revision` "" means that the pipeline named none; else it must be this commit, and then a checkout detached at
    exactly this commit is accepted too. Raises ConfigError for a malformed gate revision or an unknown repo, Refused
    for every doubtful state of branch and worktree, EvidenceError when git cannot tell within `timeouts.git`.
    """
    named = parse_gate_revision(gate_revision) if gate_revision else None
    clone = find_clone(settings, repo, rootdir)
    reading = _Reading(settings, repo, branch, git_on(clone, settings.timeouts.git))
    expected = reading.peel(named) if named else ""
    worktree = reading.find_worktree(expected)
    if expected and worktree.head != expected:
        raise Refused(
            f"{reading.subject} is at {worktree.head}, expected {expected} as --gate-revision says; "
            "check that commit out, or validate this one"
        )
    commit = reading.read_commit(worktree)
    return Anchor(repo.name, branch, worktree.path, Revision(commit.id), _tree_of(commit))


def _tree_of(commit: GitObject) -> TreeId:
    """Return the tree that a commit's own bytes name, on their first line."""
    word, _, tree = commit.content.partition(b"\n")[0].partition(b" ")
    return TreeId(tree.decode(errors="replace") if word == b"tree" else "")


@dataclass(frozen=True)
class _Reading:
    """One reading of one branch: which worktree holds it, and whether that can be believed."""

    settings: Settings
    repo: RepoName
    branch: BranchName
    git: Git
    """On the clone."""

    @property
    def subject(self) -> str:
        return f"branch {self.branch} of {self.repo}"

    def peel(self, named: Revision) -> str:
        """Return the commit that a full ID names: itself, or what a tag object stands for."""
        found = read_objects(self.git, [f"{named}^{{commit}}"])[0]
        if found is None:
            raise Refused(
                f"--gate-revision {named} names no commit in {self.git.folder}, expected one of {self.repo}; "
                "fetch it there"
            )
        return found.id

    def find_worktree(self, expected: str) -> Worktree:
        """Return the one worktree that holds the branch, or is detached at the expected commit."""
        listed = list_worktrees(self.git)
        holding = [worktree for worktree in listed if worktree.ref == self.branch.ref]
        if len(holding) > 1:
            paths = " and ".join(worktree.path for worktree in holding)
            raise Refused(f"{self.subject} is checked out in {paths}, expected one worktree; remove the others")
        if not holding:
            return self._find_detached(listed, expected)
        if holding[0].is_unborn:
            raise Refused(f"{self.subject} has no commit yet in {holding[0].path}, expected one; commit first")
        return holding[0]

    def _find_detached(self, listed: list[Worktree], expected: str) -> Worktree:
        """Return a worktree detached at the expected commit, the clone itself first. "" expects none."""
        self._check_not_away(listed)
        tip = read_objects(self.git, [self.branch.ref])[0]
        detached = [worktree for worktree in listed if worktree.detached and worktree.head == expected]
        if not detached:
            raise Refused(self._why_nowhere(listed, expected, exists=tip is not None))
        if tip is not None and tip.id != expected:
            raise Refused(
                f"{detached[0].path} is detached at {expected}, but {self.subject} is at {tip.id} here; "
                "expected one commit; update or delete the local branch"
            )
        return next((worktree for worktree in detached if worktree.path == self.git.folder), detached[0])

    def _check_not_away(self, listed: Iterable[Worktree]) -> None:
        """Raise Refused when a worktree is detached only because the branch is being rebased or bisected there."""
        for worktree in listed:
            folders = git_folders(self.git.at(worktree.path)) if worktree.detached else None
            busy = _busy_with(folders[0]) if folders else {}
            if self.branch.ref in busy.values():
                raise Refused(self._why_busy(worktree, busy))

    def _why_busy(self, worktree: Worktree, busy: Iterable[str]) -> str:
        doing = " and ".join(busy)
        return f"{self.subject} is being {doing} in {worktree.path}, expected a branch at rest; finish or abort that"

    def _why_nowhere(self, listed: list[Worktree], expected: str, *, exists: bool) -> str:
        """Return why no worktree serves, and what the clone holds instead."""
        here = next((worktree for worktree in listed if worktree.path == self.git.folder), listed[0])
        away = [worktree for worktree in listed if worktree.detached and worktree is not here]
        state = ", ".join(f"HEAD of {worktree.path} is {_describe_head(worktree)}" for worktree in (here, *away))
        if expected:
            state = f"{state}, and no checkout is detached at {expected}"
        if not exists:
            return (
                f"{self.subject} does not exist in {self.git.folder}: expected {self.branch.ref}, observed none; "
                f"{state}; fetch or create it, or correct --branch"
            )
        return (
            f"{self.subject} is not checked out in any worktree: expected one, observed none; {state}; "
            f"run 'git worktree add PATH {self.branch}', or give a detached checkout's commit as --gate-revision"
        )

    def read_commit(self, worktree: Worktree) -> GitObject:
        """Return the commit at HEAD of a worktree.

        1. The place is real, and where worktrees may be. 2. It is the top of a repository, and that is the clone's.
        3. Nothing is under way in it. 4. HEAD is the branch. 5. Branch and HEAD are one commit; its bytes are its own.
        """
        subject = f"the worktree of {self.subject}"
        self._check_place(worktree.path, subject)
        git = self.git.at(worktree.path)
        git_dir = self._check_ours(git, subject)
        busy = _busy_with(git_dir)
        if busy:
            raise Refused(self._why_busy(worktree, busy))
        _check_head(git, worktree, subject)
        return self._read_tip(git, worktree)

    def _check_place(self, path: str, subject: str) -> None:
        if not os.path.lexists(path):
            raise Refused(
                f"{subject} is missing: expected {path}, observed nothing there; "
                "run 'git worktree prune' and add it again"
            )
        check_not_elsewhere(subject, path)
        if not self.settings.worktrees_dir or path == self.git.folder:
            return
        folder = os.path.realpath(os.path.expanduser(self.settings.worktrees_dir))
        allowed = os.path.join(folder, self.repo.name)
        if not path.startswith(f"{allowed}/"):
            raise Refused(
                f"{subject} is outside of worktrees_dir: expected it below {allowed}, observed {path}; "
                "run 'git worktree move', or correct worktrees_dir"
            )

    def _check_ours(self, git: Git, subject: str) -> str:
        """Return the worktree's git folder. Raises Refused when its repository is not the clone's."""
        git_dir, common = check_own_repository(git, subject)
        _, expected = check_own_repository(self.git, f"the clone of {self.repo}")
        if common != expected:
            raise Refused(
                f"{subject}, {git.folder}, belongs to another repository: expected {expected}, observed {common}; "
                "remove it and add it again"
            )
        return git_dir

    def _read_tip(self, git: Git, worktree: Worktree) -> GitObject:
        """Return the commit that HEAD, the branch and the list of worktrees all name."""
        names = ["HEAD", self.branch.ref] if worktree.ref else ["HEAD"]
        commits = [found for found in read_objects(git, names) if found is not None]
        observed = {f"{found.kind} {found.id}" for found in commits} or {"no object"}
        if len(commits) != len(names) or observed != {f"commit {worktree.head}"}:
            raise Refused(
                f"HEAD of {worktree.path} is not the tip of {self.subject}: expected commit {worktree.head}, observed "
                f"{' and '.join(sorted(observed))} for {' and '.join(names)}; "
                "does somebody work there, or is it damaged?"
            )
        check_hash(commits[0], worktree.path)
        return commits[0]


def _check_head(git: Git, worktree: Worktree, subject: str) -> None:
    """Raise Refused unless HEAD is symbolic to the branch, or detached where that was accepted."""
    completed = git.run("symbolic-ref", "--quiet", "HEAD")
    observed = os.fsdecode(completed.stdout).rstrip("\n")
    if completed.status not in (0, 1):
        said = command.last_line(completed.stderr)
        raise EvidenceError(
            f"git symbolic-ref on {worktree.path} ended with {completed.status}: {said}; run 'git fsck'"
        )
    if observed != worktree.ref:
        raise Refused(
            f"HEAD of {subject}, {worktree.path}, is not the branch: expected {worktree.ref or 'detached'}, "
            f"observed {observed or 'detached'}; check it out there"
        )


def _describe_head(worktree: Worktree) -> str:
    if worktree.bare:
        return "that of a bare repository"
    return worktree.ref.removeprefix("refs/heads/") or f"detached at {worktree.head}"


def _busy_with(git_dir: str) -> dict[str, str]:
    """Return what is under way in a worktree: what is done -> the full reference it is done to, as far as known."""
    busy = {}
    for folder in ("rebase-merge", "rebase-apply"):
        if os.path.lexists(os.path.join(git_dir, folder)):
            # git am keeps its state where a rebase does, and marks it as its own.
            doing = "patched" if os.path.lexists(os.path.join(git_dir, folder, "applying")) else "rebased"
            busy[doing] = read_line(os.path.join(git_dir, folder, "head-name"))
    if os.path.lexists(os.path.join(git_dir, "BISECT_START")):
        busy["bisected"] = f"refs/heads/{read_line(os.path.join(git_dir, 'BISECT_START'))}"
    return busy
