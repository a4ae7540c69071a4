"""The anchor, the clone and the files of a commit, on real git repositories."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from pytest_imagefresh.adapters.git import (
    FILE_LIMIT,
    find_clone,
    parse_gate_revision,
    read_anchor,
    read_tree_files,
)
from pytest_imagefresh.core.errors import ConfigError, EvidenceError, Refused
from pytest_imagefresh.core.evidence import Anchor
from pytest_imagefresh.core.identity import BranchName, RepoName, Revision
from pytest_imagefresh.core.settings import Settings, Timeouts, default_target

BRANCH = "feature/x"
SHOP = RepoName("shop")
IDENTITY = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.com",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
}


def git(folder: Path, *arguments: str, check: bool = True) -> str:
    """Run git as a person would, in a folder, and return what it printed."""
    done = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **IDENTITY},
        check=check,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout.strip()


def commit(folder: Path, message: str = "change", files: Mapping[str, str] | None = None) -> str:
    for name, content in (files or {"app.py": f"{message}\n"}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    git(folder, "add", "-A", "-f")
    git(folder, "commit", "-q", "--allow-empty", "-m", message)
    return git(folder, "rev-parse", "HEAD")


@dataclass
class World:
    """A clone with two commits on main, and a worktree of the branch, one commit further."""

    folder: Path
    settings: Settings = field(default_factory=Settings)
    gate_revision: str = ""
    branch: str = BRANCH

    def __post_init__(self) -> None:
        self.clone.mkdir(parents=True)
        git(self.clone, "init", "-q", "-b", "main")
        self.first = commit(self.clone, "one")
        commit(self.clone, "two")
        self.worktree.parent.mkdir(parents=True)
        git(self.clone, "worktree", "add", "-q", "-b", BRANCH, str(self.worktree))
        self.tip = commit(self.worktree, "three")
        self.settings = Settings(repos_dir=str(self.folder / "repos"), worktrees_dir=str(self.folder / "wt"))

    @property
    def clone(self) -> Path:
        return self.folder / "repos" / "shop"

    @property
    def worktree(self) -> Path:
        return self.folder / "wt" / "shop" / "x"

    def anchor(self) -> Anchor:
        return read_anchor(
            self.settings, SHOP, BranchName(self.branch), rootdir=self.folder, gate_revision=self.gate_revision
        )

    def another_repository(self) -> Path:
        other = self.folder / "other"
        other.mkdir()
        git(other, "init", "-q", "-b", BRANCH)
        commit(other, "foreign")
        return other


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Path(os.path.realpath(tmp_path)))


# What is accepted.


def test_anchor_is_the_full_commit_and_tree_at_the_head_of_the_branchs_worktree(world: World) -> None:
    anchor = world.anchor()
    assert anchor.revision.hex == world.tip
    assert anchor.tree.hex == git(world.worktree, "rev-parse", "HEAD^{tree}")
    assert (anchor.repo, anchor.branch.name, anchor.worktree) == ("shop", BRANCH, str(world.worktree))


def test_branch_checked_out_in_the_clone_itself_needs_no_worktree(world: World) -> None:
    world.branch = "main"
    anchor = world.anchor()
    assert (anchor.worktree, anchor.revision.hex) == (str(world.clone), git(world.clone, "rev-parse", "main"))


def _dirty(world: World) -> None:
    (world.worktree / "app.py").write_text("edited\n")
    (world.worktree / "untracked").write_text("x")
    (world.worktree / ".gitignore").write_text(".env\n")
    (world.worktree / ".env").write_text("SECRET=1\n")
    git(world.worktree, "update-index", "--skip-worktree", "app.py")


def _merge_under_way(world: World) -> None:
    commit(world.clone, "four", {"other.py": "x"})
    git(world.worktree, "merge", "--no-commit", "--no-ff", "main")


def _foreign_owner(world: World) -> None:
    if os.geteuid() == 0:
        for path in (world.clone, world.worktree):
            for name in (path, *path.rglob("*")):
                os.chown(name, 12345, 12345, follow_symlinks=False)


def _replace_ref(world: World) -> None:
    git(world.clone, "replace", world.tip, world.first)


def _grafts(world: World) -> None:
    (world.clone / ".git/info").mkdir(exist_ok=True)
    (world.clone / ".git/info/grafts").write_text(f"{world.tip}\n")


def _programs_in_config(world: World) -> None:
    trap = world.folder / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {world.folder}/trapped\n")
    trap.chmod(0o755)
    for key in ("core.fsmonitor", "core.pager", "core.sshCommand", "filter.x.smudge", "alias.worktree", "core.editor"):
        git(world.clone, "config", key, str(trap))
    (world.worktree / ".gitattributes").write_text("* filter=x\n")


def _commit_graph(world: World) -> None:
    git(world.clone, "commit-graph", "write", "--reachable")


def _packed(world: World) -> None:
    git(world.clone, "gc", "-q")


def _symlinked_parents(world: World) -> None:
    (world.folder / "alias").symlink_to(world.folder)
    base = world.folder / "alias"
    world.settings = Settings(repos_dir=str(base / "repos"), worktrees_dir=str(base / "wt"))


def _bare_clone(world: World) -> None:
    """A bare repository as the clone, with worktrees beside it."""
    git(world.clone, "worktree", "remove", "--force", str(world.worktree))
    shutil.move(world.clone / ".git", world.folder / "bare")
    shutil.rmtree(world.clone)
    shutil.move(world.folder / "bare", world.clone)
    git(world.clone, "config", "core.bare", "true")
    git(world.clone, "worktree", "add", "-q", str(world.worktree), BRANCH)


def _tag_of_the_same_name(world: World) -> None:
    git(world.clone, "tag", BRANCH, world.first)
    git(world.clone, "update-ref", f"refs/heads/refs/heads/{BRANCH}", world.first)


def _locked(world: World) -> None:
    git(world.clone, "worktree", "lock", "--reason", "in use\nhere", str(world.worktree))


def _odd_neighbour(world: World) -> None:
    """Another worktree with a line break in its path, one that is gone, and one that is damaged."""
    for name in ("a\nbranch refs/heads/feature/x", "gone", "damaged"):
        git(world.clone, "worktree", "add", "-q", "--detach", str(world.folder / name))
    shutil.rmtree(world.folder / "gone")
    (world.folder / "damaged" / ".git").write_text("gitdir: /nonexistent\n")


@pytest.mark.parametrize(
    "change",
    [
        _dirty,
        _merge_under_way,
        _foreign_owner,
        _replace_ref,
        _grafts,
        _programs_in_config,
        _commit_graph,
        _packed,
        _symlinked_parents,
        _bare_clone,
        _tag_of_the_same_name,
        _locked,
        _odd_neighbour,
    ],
)
def test_what_is_no_part_of_the_commit_has_no_say(world: World, change: Callable[[World], None]) -> None:
    tree = git(world.worktree, "rev-parse", "HEAD^{tree}")
    change(world)
    anchor = world.anchor()
    assert (anchor.revision.hex, anchor.tree.hex) == (world.tip, tree)
    assert not (world.folder / "trapped").exists()


def test_caller_environment_has_no_say(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    other = world.another_repository()
    poison = {
        "GIT_DIR": other / ".git",
        "GIT_WORK_TREE": other,
        "GIT_INDEX_FILE": other / ".git/index",
        "GIT_COMMON_DIR": other / ".git",
        "GIT_OBJECT_DIRECTORY": other / ".git/objects",
        "GIT_NAMESPACE": "elsewhere",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.worktree",
        "GIT_CONFIG_VALUE_0": other,
        "GIT_TRACE": world.folder / "trace",
        "GIT_EXEC_PATH": other,
    }
    for name, value in poison.items():
        monkeypatch.setenv(name, str(value))
    assert world.anchor().revision.hex == world.tip
    assert not (world.folder / "trace").exists()


def test_shallow_clone_works(world: World) -> None:
    shallow = world.folder / "shallow" / "shop"
    git(world.folder, "clone", "-q", "--depth=1", "-b", BRANCH, f"file://{world.clone}", str(shallow))
    world.settings = Settings(repos_dir=str(shallow.parent))
    assert world.anchor().revision.hex == world.tip


def test_reading_changes_nothing(world: World) -> None:
    def snapshot() -> dict[str, tuple[int, bytes]]:
        return {
            str(path): (path.lstat().st_mtime_ns, path.read_bytes())
            for path in sorted(world.folder.rglob("*"))
            if path.is_file()
        }

    before = snapshot()
    world.anchor()
    assert snapshot() == before


# One change each, one refusal each.


def _no_branch(world: World) -> None:
    world.branch = "feature/y"


def _not_checked_out(world: World) -> None:
    git(world.worktree, "switch", "-q", "-c", "elsewhere")


def _detached_at_the_tip(world: World) -> None:
    git(world.worktree, "checkout", "-q", "--detach")


def _one_behind(world: World) -> None:
    git(world.worktree, "checkout", "-q", "--detach", "HEAD~1")


def _worktree_gone(world: World) -> None:
    shutil.rmtree(world.worktree)


def _worktree_is_a_symlink(world: World) -> None:
    world.worktree.rename(world.folder / "moved")
    world.worktree.symlink_to(world.folder / "moved")


def _worktree_below_a_symlink(world: World) -> None:
    world.worktree.parent.rename(world.folder / "moved")
    world.worktree.parent.symlink_to(world.folder / "moved")


def _worktree_is_a_dangling_symlink(world: World) -> None:
    shutil.rmtree(world.worktree)
    world.worktree.symlink_to(world.folder / "nowhere")


def _worktree_outside(world: World) -> None:
    git(world.clone, "worktree", "move", str(world.worktree), str(world.folder / "wt" / "shopping"))


def _worktree_of_another_repos_folder(world: World) -> None:
    (world.folder / "wt" / "other").mkdir()
    git(world.clone, "worktree", "move", str(world.worktree), str(world.folder / "wt" / "other" / "x"))


def _lost_git_inside_of_an_outer_repository(world: World) -> None:
    git(world.folder, "init", "-q", "-b", BRANCH)
    commit(world.folder, "outer", {"outer.py": "x"})
    (world.worktree / ".git").unlink()


def _repository_of_its_own(world: World) -> None:
    (world.worktree / ".git").unlink()
    git(world.worktree, "init", "-q", "-b", BRANCH)
    commit(world.worktree, "foreign")


def _git_file_of_another_repository(world: World) -> None:
    other = world.another_repository()
    git(other, "switch", "-q", "-c", "side")
    git(other, "worktree", "add", "-q", str(world.folder / "foreign"), BRANCH)
    (world.worktree / ".git").write_text((world.folder / "foreign" / ".git").read_text())


def _git_file_of_another_worktree(world: World) -> None:
    git(world.clone, "worktree", "add", "-q", "-b", "side", str(world.folder / "wt" / "shop" / "side"))
    (world.worktree / ".git").write_text((world.folder / "wt" / "shop" / "side" / ".git").read_text())


def _git_file_leads_nowhere(world: World) -> None:
    (world.worktree / ".git").write_text("gitdir: /nonexistent\n")


def _git_file_is_a_symlink(world: World) -> None:
    (world.worktree / ".git").rename(world.folder / "elsewhere")
    (world.worktree / ".git").symlink_to(world.folder / "elsewhere")


def _rebase_under_way(world: World) -> None:
    commit(world.clone, "conflict")
    git(world.worktree, "rebase", "main", check=False)


def _rebase_by_patches_under_way(world: World) -> None:
    commit(world.clone, "conflict")
    git(world.worktree, "rebase", "--apply", "main", check=False)


def _patches_under_way(world: World) -> None:
    patch = world.folder / "patch"
    git(world.clone, "format-patch", "-q", "-1", "--root", "--output", str(patch), world.first)
    git(world.worktree, "am", str(patch), check=False)


def _bisect_under_way(world: World) -> None:
    git(world.worktree, "bisect", "start", "HEAD", world.first)


def _bisect_without_checkout(world: World) -> None:
    git(world.worktree, "bisect", "start", "--no-checkout", "HEAD", world.first)


def _unborn(world: World) -> None:
    world.branch = "fresh"
    git(world.worktree, "switch", "-q", "--orphan", "fresh")


def _checked_out_twice(world: World) -> None:
    git(world.clone, "worktree", "add", "-q", "-f", str(world.folder / "wt" / "shop" / "again"), BRANCH)


def _symbolic_branch(world: World) -> None:
    world.branch = "alias"
    git(world.clone, "symbolic-ref", "refs/heads/alias", f"refs/heads/{BRANCH}")


def _branch_ref_damaged(world: World) -> None:
    (world.clone / ".git/refs/heads/feature/x").write_text("0123\n")


def _branch_ref_names_a_missing_commit(world: World) -> None:
    (world.clone / ".git/refs/heads/feature/x").write_text("12" * 20 + "\n")


def _branch_ref_names_a_tag(world: World) -> None:
    git(world.clone, "tag", "-a", "-m", "t", "v1", world.tip)
    (world.clone / ".git/refs/heads/feature/x").write_text(git(world.clone, "rev-parse", "v1") + "\n")


def _commit_holds_other_bytes(world: World) -> None:
    objects = world.clone / ".git/objects"
    target = objects / world.tip[:2] / world.tip[2:]
    target.chmod(0o644)
    target.write_bytes((objects / world.first[:2] / world.first[2:]).read_bytes())


def _clone_is_a_symlink(world: World) -> None:
    world.clone.rename(world.folder / "moved")
    world.clone.symlink_to(world.folder / "moved")


def _clone_lost_its_git(world: World) -> None:
    git(world.folder, "init", "-q", "-b", BRANCH)
    commit(world.folder, "outer", {"outer.py": "x"})
    shutil.rmtree(world.clone / ".git")


def _clone_has_an_empty_git(world: World) -> None:
    git(world.folder, "init", "-q", "-b", BRANCH)
    commit(world.folder, "outer", {"outer.py": "x"})
    shutil.rmtree(world.clone / ".git")
    (world.clone / ".git").mkdir()


def _clone_points_at_another_repository(world: World) -> None:
    other = world.another_repository()
    shutil.rmtree(world.clone / ".git")
    (world.clone / ".git").write_text(f"gitdir: {other}/.git\n")


def _other_gate_revision(world: World) -> None:
    world.gate_revision = world.first


def _unknown_gate_revision(world: World) -> None:
    world.gate_revision = "12" * 20


def _tree_as_gate_revision(world: World) -> None:
    world.gate_revision = git(world.worktree, "rev-parse", "HEAD^{tree}")


def _tag_of_another_commit_as_gate_revision(world: World) -> None:
    git(world.clone, "tag", "-a", "-m", "t", "v1", world.first)
    world.gate_revision = git(world.clone, "rev-parse", "v1")


def _detached_elsewhere_than_the_gate_revision(world: World) -> None:
    git(world.worktree, "checkout", "-q", "--detach", "HEAD~1")
    git(world.clone, "branch", "-q", "-D", BRANCH)
    world.gate_revision = world.tip


def _detached_at_the_gate_revision_behind_the_local_branch(world: World) -> None:
    git(world.worktree, "checkout", "-q", "--detach", "HEAD~1")
    world.gate_revision = git(world.worktree, "rev-parse", "HEAD")


def _detached_in_the_middle_of_a_bisect(world: World) -> None:
    git(world.worktree, "bisect", "start", "HEAD", world.first)
    git(world.clone, "branch", "-q", "-D", "-f", BRANCH, check=False)
    git(world.clone, "update-ref", "-d", f"refs/heads/{BRANCH}")
    world.gate_revision = git(world.worktree, "rev-parse", "HEAD")


REFUSALS: list[tuple[Callable[[World], None], str]] = [
    (_no_branch, "feature/y of shop does not exist in .*HEAD of .*/repos/shop is main"),
    (_not_checked_out, "not checked out in any worktree: .*HEAD of .*/repos/shop is main; run 'git worktree add"),
    (_detached_at_the_tip, "not checked out in any worktree.*HEAD of .*/wt/shop/x is detached at [0-9a-f]{40}"),
    (_one_behind, "not checked out in any worktree.*HEAD of .*/wt/shop/x is detached at [0-9a-f]{40}"),
    (_worktree_gone, "is missing: expected .*/wt/shop/x, observed nothing there"),
    (_worktree_is_a_symlink, "symlink leading elsewhere: expected .*/wt/shop/x itself, observed .*/moved"),
    (_worktree_below_a_symlink, "symlink leading elsewhere"),
    (_worktree_is_a_dangling_symlink, "symlink leading elsewhere"),
    (_worktree_outside, "outside of worktrees_dir: expected it below .*/wt/shop, observed .*/wt/shopping"),
    (_worktree_of_another_repos_folder, "outside of worktrees_dir"),
    (_lost_git_inside_of_an_outer_repository, "/wt/shop/x, has no .git"),
    (_repository_of_its_own, "belongs to another repository: expected .*/repos/shop/.git, observed .*/wt/shop/x/.git"),
    (_git_file_of_another_repository, "expected a repository that names this folder in turn"),
    (_git_file_of_another_worktree, "expected a repository that names this folder in turn"),
    (_git_file_leads_nowhere, "no sound repository: git says .*not a git repository"),
    (_git_file_is_a_symlink, "/wt/shop/x/.git is a symlink"),
    (_rebase_under_way, "is being rebased in .*/wt/shop/x"),
    (_rebase_by_patches_under_way, "is being rebased in .*/wt/shop/x"),
    (_patches_under_way, "is being patched in .*/wt/shop/x"),
    (_bisect_under_way, "is being bisected in .*/wt/shop/x"),
    (_bisect_without_checkout, "is being bisected in .*/wt/shop/x"),
    (_unborn, "branch fresh of shop has no commit yet"),
    (_checked_out_twice, "is checked out in .* and .*, expected one worktree"),
    (_symbolic_branch, "branch alias of shop is not checked out in any worktree"),
    (_branch_ref_damaged, "feature/x"),
    (_branch_ref_names_a_missing_commit, "is not the tip of branch feature/x .* observed no object"),
    (_branch_ref_names_a_tag, "is not the tip of branch feature/x .* observed tag"),
    (_commit_holds_other_bytes, "holds other bytes|hash mismatch|cat-file"),
    (_clone_is_a_symlink, "the clone of shop goes through a symlink leading elsewhere"),
    (_clone_lost_its_git, "the clone of shop, .*/repos/shop, has no .git"),
    (_clone_has_an_empty_git, "the clone of shop, .*/repos/shop, is no sound repository"),
    (_clone_points_at_another_repository, "the clone of shop: .* expected a repository that names this folder in turn"),
    (_other_gate_revision, "is at [0-9a-f]{40}, expected [0-9a-f]{40} as --gate-revision says"),
    (_unknown_gate_revision, "--gate-revision (12)+ names no commit"),
    (_tree_as_gate_revision, "names no commit"),
    (_tag_of_another_commit_as_gate_revision, "as --gate-revision says"),
    (_detached_elsewhere_than_the_gate_revision, "does not exist in .* and no checkout is detached at"),
    (_detached_at_the_gate_revision_behind_the_local_branch, "update or delete the local branch"),
    (_detached_in_the_middle_of_a_bisect, "is being bisected"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSALS, ids=[change.__name__[1:] for change, _ in REFUSALS])
def test_refuses_any_single_doubt_with_its_own_reason(
    world: World, change: Callable[[World], None], reason: str
) -> None:
    change(world)
    with pytest.raises(Refused, match=reason) as caught:
        world.anchor()
    assert "\n" not in str(caught.value)


def test_sha256_repository_is_refused(tmp_path: Path) -> None:
    clone = Path(os.path.realpath(tmp_path)) / "shop"
    git(tmp_path, "init", "-q", "-b", "main", "--object-format=sha256", str(clone))
    commit(clone)
    with pytest.raises(Refused, match="object IDs of 64 characters, expected 40"):
        read_anchor(Settings(repos_dir=str(tmp_path)), SHOP, BranchName("main"), rootdir=tmp_path)


# The gate revision.


def test_gate_revision_equal_to_the_anchor_is_accepted(world: World) -> None:
    world.gate_revision = world.tip
    assert world.anchor().revision.hex == world.tip


def test_tag_object_as_gate_revision_is_peeled(world: World) -> None:
    git(world.clone, "tag", "-a", "-m", "t", "v1", world.tip)
    git(world.clone, "tag", "-a", "-m", "t", "v2", "v1")
    world.gate_revision = git(world.clone, "rev-parse", "v2")
    assert world.anchor().revision.hex == world.tip


@pytest.mark.parametrize("place", ["clone", "worktree"])
@pytest.mark.parametrize("local_branch", [True, False])
def test_checkout_detached_at_exactly_the_gate_revision_is_accepted(
    world: World, place: str, local_branch: bool
) -> None:
    git(world.worktree, "checkout", "-q", "--detach")
    if place == "clone":
        git(world.clone, "worktree", "remove", "--force", str(world.worktree))
        git(world.clone, "checkout", "-q", "--detach", world.tip)
    if not local_branch:
        git(world.clone, "branch", "-q", "-D", BRANCH)
    world.gate_revision = world.tip
    anchor = world.anchor()
    assert (anchor.revision.hex, anchor.worktree) == (world.tip, str(getattr(world, place)))


@pytest.mark.parametrize(
    "text",
    [
        "*",
        " ",
        "HEAD",
        "main",
        "ab12",
        "12" * 20 + " ",
        " " + "12" * 20,
        "12" * 20 + "\n",
        "AB" * 20,
        "12" * 32,
        "-" * 40,
    ],
)
def test_malformed_gate_revision_is_the_operators_mistake_before_any_command(
    world: World, recording_git: Path, text: str
) -> None:
    world.gate_revision = text
    with pytest.raises(ConfigError, match=r"--gate-revision is .* expected a full commit ID") as caught:
        world.anchor()
    assert "\n" not in str(caught.value)
    assert not recording_git.exists()


@pytest.mark.parametrize("text", ["", "*", "abc", "AB" * 20])
def test_parse_gate_revision_takes_full_ids_only(text: str) -> None:
    assert parse_gate_revision("12" * 20).hex == "12" * 20
    with pytest.raises(ConfigError, match="--gate-revision"):
        parse_gate_revision(text)


# Names.


@pytest.fixture
def recording_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git first on PATH that leaves a file behind when it is run; returns the file's path."""
    record = tmp_path / "git-was-run"
    _fake_git(tmp_path, monkeypatch, f"touch {record}; exit 1")
    return record


def _fake_git(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    fake = folder / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")


HOSTILE = [
    "",
    " ",
    "-x",
    "--upload-pack=x",
    "..",
    "../shop",
    "a/../b",
    "a\nb",
    "$(touch x)",
    "`x`",
    "a b",
    "a;b",
    "a|b",
    "a'b",
    'a"b',
    "*",
    "~",
    "\0",
    "ä",
]


@pytest.mark.parametrize("name", [*HOSTILE, "a/b", ".git", "shop.git", "/etc", "shop/"], ids=repr)
def test_hostile_repo_names_never_reach_a_command(world: World, recording_git: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="not a repo name"):
        find_clone(world.settings, RepoName(name), world.folder)
    assert not recording_git.exists()


@pytest.mark.parametrize(
    "name", [*HOSTILE, "HEAD", "a..b", "a//b", "/a", "a/", ".a", "a.lock", "a@{1}", "12" * 20], ids=repr
)
def test_hostile_branch_names_never_reach_a_command(world: World, recording_git: Path, name: str) -> None:
    world.branch = name
    with pytest.raises(ConfigError, match="branch"):
        world.anchor()
    assert not recording_git.exists()


@pytest.mark.parametrize("name", ["main=x", "a@b", "a+b#c", "v1.2/x_y", "_x"])
def test_unusual_but_sound_branch_names_work(world: World, name: str) -> None:
    git(world.worktree, "switch", "-q", "-c", name)
    world.branch = name
    assert world.anchor().revision.hex == world.tip


# Which clone.


def test_unknown_repo_is_the_operators_mistake(world: World) -> None:
    with pytest.raises(ConfigError, match=r"unknown repo nosuch: expected its clone at .*/repos/nosuch"):
        find_clone(world.settings, RepoName("nosuch"), world.folder)


def test_plain_clone_around_the_rootdir_serves_without_repos_dir(world: World) -> None:
    (world.clone / "gates").mkdir()
    assert find_clone(Settings(), SHOP, world.clone / "gates") == world.clone


def test_plain_clone_is_known_by_its_origin_too(world: World) -> None:
    clone = world.folder / "workspace" / "job-17"
    git(world.folder, "clone", "-q", str(world.clone), str(clone))
    for origin in ("git@example.com:team/shop.git", "ssh://example.com/shop/", "https://example.com/team/shop"):
        git(clone, "remote", "set-url", "origin", origin)
        assert find_clone(Settings(), SHOP, clone) == clone


def test_plain_clone_is_known_by_a_target_table_too(world: World) -> None:
    world.clone.rename(world.folder / "job-17")
    clone = world.folder / "job-17"
    with pytest.raises(ConfigError, match=r"unknown repo shop: .* observed that of job-17; .*\[targets.shop\]"):
        find_clone(Settings(), SHOP, clone)
    assert find_clone(Settings(targets={"web": default_target("web", "shop")}), SHOP, clone) == clone


def test_linked_worktree_around_the_rootdir_is_known_by_its_main_worktree(world: World) -> None:
    assert find_clone(Settings(), SHOP, world.worktree) == world.worktree
    anchor = read_anchor(Settings(), SHOP, BranchName(BRANCH), rootdir=world.worktree)
    assert (anchor.revision.hex, anchor.worktree) == (world.tip, str(world.worktree))


def test_no_repository_around_the_rootdir_is_the_operators_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown repo shop: expected its clone around .*, observed no repository"):
        find_clone(Settings(), SHOP, tmp_path)


def test_outer_repository_never_answers_for_a_damaged_inner_one(world: World) -> None:
    inner = world.clone / "vendor" / "shop"
    inner.mkdir(parents=True)
    (inner / ".git").mkdir()
    with pytest.raises(Refused, match="no sound repository"):
        find_clone(Settings(), SHOP, inner)


def test_hidden_bare_repository_beside_its_worktrees_works(tmp_path: Path, world: World) -> None:
    """The layout in which `.git` names `.bare` in the same folder, and every branch is a folder."""
    clone = world.folder / "layout" / "shop"
    clone.mkdir(parents=True)
    git(clone, "clone", "-q", "--bare", str(world.clone), ".bare")
    (clone / ".git").write_text("gitdir: ./.bare\n")
    git(clone, "worktree", "add", "-q", "x", BRANCH)
    world.settings = Settings(repos_dir=str(clone.parent))
    assert world.anchor().worktree == str(clone / "x")


# Git that does not answer.


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "exit 129",
        "kill -9 $$",
        "exit 0",
        "echo garbage",
        "printf '/x\\n/y\\n'",
        "printf '/a\\n/b\\n/c\\n'",
        "sleep 30",
    ],
)
def test_git_that_does_not_answer_is_an_evidence_error(
    world: World, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    _fake_git(world.folder, monkeypatch, script)
    world.settings = msgspec.structs.replace(world.settings, timeouts=Timeouts(git=1))
    with pytest.raises(EvidenceError) as caught:
        world.anchor()
    assert "\n" not in str(caught.value)


def test_list_of_worktrees_that_breaks_off_is_an_evidence_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which("git")
    shorter = f"{real} -C {world.clone} worktree list --porcelain -z | head -c -1"
    _fake_git(world.folder, monkeypatch, f'case "$*" in *worktree\\ list*) {shorter};; *) exec {real} "$@";; esac')
    with pytest.raises(EvidenceError, match=r"git worktree list on .* printed"):
        world.anchor()


def test_missing_git_is_an_evidence_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(world.folder / "empty"))
    with pytest.raises(EvidenceError, match="could not be started"):
        world.anchor()


def test_git_without_nul_separated_lists_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which("git")
    _fake_git(world.folder, monkeypatch, f'case "$*" in *worktree\\ list*) exit 129;; *) exec {real} "$@";; esac')
    with pytest.raises(EvidenceError, match=r"git worktree .* ended with 129: .* git is 2\.36 or later"):
        world.anchor()


@pytest.mark.parametrize(
    ("moment", "change", "reason"),
    [
        (
            "symbolic-ref",
            "g switch -q -c away",
            "not the branch: expected refs/heads/feature/x, observed refs/heads/away",
        ),
        ("symbolic-ref", "g checkout -q --detach", "not the branch: expected refs/heads/feature/x, observed detached"),
        ("cat-file", "g commit -q --allow-empty -m moved", "is not the tip of branch feature/x"),
        ("cat-file", "g update-ref refs/heads/feature/x HEAD~1", "is not the tip of branch feature/x"),
        ("cat-file", "g switch -q -C away; g branch -q -f feature/x HEAD~1", "is not the tip of branch feature/x"),
    ],
)
def test_branch_that_moves_while_it_is_read_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, moment: str, change: str, reason: str
) -> None:
    """A git first on PATH that changes the worktree right before one of the commands."""
    real, identity = shutil.which("git"), " ".join(f"{name}={value}" for name, value in IDENTITY.items())
    function = f'g() {{ env -u GIT_OPTIONAL_LOCKS {identity} {real} -C {world.worktree} "$@" >/dev/null; }}'
    _fake_git(world.folder, monkeypatch, f'{function}; case "$*" in *{moment}*) {change};; esac; exec {real} "$@"')
    with pytest.raises(Refused, match=reason):
        world.anchor()


# Files of a commit.


def _yaml(path: str) -> bool:
    return path.endswith((".yml", ".yaml", ".env"))


def _files(world: World) -> dict[str, bytes]:
    return read_tree_files(world.clone, Revision(git(world.worktree, "rev-parse", "HEAD")), _yaml, timeout=30)


def test_files_are_the_commits_bytes_and_only_the_selected_ones(world: World) -> None:
    names = {
        "compose.yaml": "a: 1\r\n",
        "deploy/x.yml": "",
        ".env": "A=1\n",
        "ü \n.yml": "odd",
        "deploy/copy.yml": "a: 1\r\n",
    }
    (world.worktree / ".gitattributes").write_text("*.yaml text eol=lf export-ignore ident\n")
    git(world.worktree, "config", "core.autocrlf", "false")
    commit(world.worktree, "files", {**names, "app.py": "no"})
    (world.worktree / "compose.yaml").write_text("edited")
    (world.worktree / "new.yml").write_text("untracked")
    observed = _files(world)
    expected = {name: text.encode() for name, text in names.items()}
    expected["compose.yaml"] = observed["compose.yaml"]
    assert observed == expected
    assert observed["compose.yaml"] == subprocess.check_output(
        ["git", "cat-file", "blob", "HEAD:compose.yaml"], cwd=world.worktree
    )


def test_no_selected_file_is_no_error(world: World) -> None:
    assert _files(world) == {}


def test_symlinks_within_the_commit_are_followed_and_dead_ones_left_out(world: World) -> None:
    (world.worktree / "deploy").mkdir()
    (world.worktree / "compose.yaml").symlink_to("deploy/real.yaml")
    (world.worktree / "deploy/back.yml").symlink_to("../compose.yaml")
    (world.worktree / "dead.yml").symlink_to("nowhere.yml")
    (world.worktree / "loop.yml").symlink_to("loop.yml")
    (world.worktree / "folder.yml").symlink_to("deploy")
    commit(world.worktree, "links", {"deploy/real.yaml": "a: 1\n"})
    assert _files(world) == dict.fromkeys(("compose.yaml", "deploy/back.yml", "deploy/real.yaml"), b"a: 1\n")


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside.yml", "../../x", ".."])
def test_symlink_that_leads_out_of_the_commit_is_refused(world: World, target: str) -> None:
    (world.worktree / "compose.yaml").symlink_to(target)
    commit(world.worktree, "link")
    with pytest.raises(Refused, match=r"compose\.yaml of the commit is a symlink that leads out of it"):
        _files(world)


def test_large_files_are_left_out_but_never_a_compose_file(world: World) -> None:
    large = "x" * (FILE_LIMIT + 1)
    commit(world.worktree, "large", {"lock.yaml": large, "compose.yaml": large[1:]})
    assert set(_files(world)) == {"compose.yaml"}
    commit(world.worktree, "larger", {"compose.yaml": large})
    with pytest.raises(Refused, match=f"compose.yaml of the commit has {FILE_LIMIT + 1} bytes, expected {FILE_LIMIT}"):
        _files(world)


def test_submodules_are_no_files(world: World) -> None:
    other = world.another_repository()
    git(world.worktree, "submodule", "add", "-q", str(other), "sub.yml")
    commit(world.worktree, "submodule")
    assert _files(world) == {}


def test_unknown_commit_is_an_evidence_error(world: World) -> None:
    with pytest.raises(EvidenceError, match="git ls-tree"):
        read_tree_files(world.clone, Revision("12" * 20), _yaml, timeout=30)


def test_missing_file_content_is_an_evidence_error(world: World) -> None:
    commit(world.worktree, "file", {"compose.yaml": "a: 1\n"})
    blob = git(world.worktree, "rev-parse", "HEAD:compose.yaml")
    (world.clone / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(EvidenceError, match=blob):
        _files(world)


def test_other_bytes_under_a_files_id_are_refused(world: World) -> None:
    commit(world.worktree, "file", {"compose.yaml": "a: 1\n", "b.txt": "b: 2\n"})
    objects = world.clone / ".git/objects"
    good, other = (git(world.worktree, "rev-parse", f"HEAD:{name}") for name in ("compose.yaml", "b.txt"))
    target = objects / good[:2] / good[2:]
    target.chmod(0o644)
    target.write_bytes((objects / other[:2] / other[2:]).read_bytes())
    with pytest.raises((Refused, EvidenceError), match=r"holds other bytes|cat-file"):
        _files(world)
