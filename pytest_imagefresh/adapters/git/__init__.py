"""A repo's clone, the worktree of a branch, the validated revision, and what a commit holds.

Read by git plumbing in an environment of its own; nothing of the caller's, the machine's or the repository's
configuration has a say.
"""

from __future__ import annotations

from pytest_imagefresh.adapters.git.anchor import parse_gate_revision, read_anchor
from pytest_imagefresh.adapters.git.clone import find_clone
from pytest_imagefresh.adapters.git.content import read_content
from pytest_imagefresh.adapters.git.pack import packed_commit
from pytest_imagefresh.adapters.git.tree import FILE_LIMIT, read_tree_files

__all__ = [
    "FILE_LIMIT",
    "find_clone",
    "packed_commit",
    "parse_gate_revision",
    "read_anchor",
    "read_content",
    "read_tree_files",
]
