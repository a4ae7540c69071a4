"""Faults of the commit and the tree."""

from __future__ import annotations

import base64
import hashlib
import shutil

from tests.faults.fault import BOTH, Section, misused, passes, refused
from tests.faults.scene import NEWS, Scene
from tests.gate_folder import Ended

SECTION = Section("The commit and the tree")
fault = SECTION.fault

EDITED = "src/orchestrator/jobs.py"
SKIPPED = "src/orchestrator/__main__.py"

# --- what is not committed has no say ---------------------------------------------------------------------------------


def gate_the_commit_s_bytes(scene: Scene) -> Ended:
    """Run the gate; what staging then holds must be the commit's own bytes, file by file, nothing else."""
    ended = scene.gate()
    assert files_in_staging(scene) == files_of_commit(scene)
    return ended


def files_in_staging(scene: Scene) -> dict[str, str]:
    """Return path -> blob ID, computed again from what is in the container."""
    listed = 'cd /app && find src scripts -type f -exec sh -c \'printf "%s %s\\n" "$1" "$(base64 -w 0 "$1")"\' _ {} ";"'
    found = scene.copy.engine.docker("exec", scene.copy.staging_container, "sh", "-c", listed)
    pairs = (line.partition(" ") for line in found.splitlines())
    return {path: blob(base64.b64decode(content)) for path, _, content in pairs}


def files_of_commit(scene: Scene) -> dict[str, str]:
    """Return path -> blob ID, as the commit names them."""
    listing = scene.copy.git("--no-replace-objects", "ls-tree", "-r", scene.new, "src", "scripts").splitlines()
    return {line.split()[3]: line.split()[2] for line in listing}


def blob(content: bytes) -> str:
    """Return the ID that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@fault("uncommitted edit, untracked file, ignored .env, edit under skip-worktree", passes(), hosts=BOTH)
def untidy(scene: Scene) -> Ended:
    scene.commit({".gitignore": ".env\n"})
    with (scene.worktree / EDITED).open("a") as file:
        file.write("# not committed\n")
    (scene.worktree / "src/orchestrator/untracked.py").write_text("UNTRACKED = True\n")
    (scene.worktree / "src/.env").write_text("PASSWORD=hunter2\n")
    scene.copy.git("update-index", "--skip-worktree", SKIPPED)
    (scene.worktree / SKIPPED).write_text("raise SystemExit('edited')\n")
    return gate_the_commit_s_bytes(scene)


@fault("file edited while the build runs, and put back", passes())
def edited_during_the_build(scene: Scene) -> Ended:
    path = scene.worktree / NEWS
    proxy = scene.engine_proxy()
    proxy.when(rb"POST /v[0-9.]+/build", lambda: void(path.write_text("edited")))
    proxy.when(rb"POST /v[0-9.]+/containers/create", lambda: void(path.write_text("new")))
    return gate_the_commit_s_bytes(scene)


def void(_: object) -> None:
    """Take anything, return nothing."""


@fault("smudge filter, export-ignore, eol and ident attributes in the commit", passes())
def filters_in_the_commit(scene: Scene) -> Ended:
    scene.commit({".gitattributes": "*.py filter=shout export-ignore ident eol=crlf\n"})
    scene.copy.git("config", "filter.shout.smudge", "tr a-z A-Z")
    return gate_the_commit_s_bytes(scene)


@fault("attributes and a filter in the clone's own info/attributes", passes())
def filters_in_the_clone(scene: Scene) -> Ended:
    (scene.copy.repo / ".git/info").mkdir(exist_ok=True)
    (scene.copy.repo / ".git/info/attributes").write_text("*.py filter=shout export-ignore\n")
    scene.copy.git("config", "filter.shout.smudge", "tr a-z A-Z")
    return gate_the_commit_s_bytes(scene)


@fault("replace refs for a file and for the commit", passes())
def replace_refs(scene: Scene) -> Ended:
    git = scene.copy.git
    other = git("hash-object", "-w", str(scene.worktree / "Dockerfile"))
    git("replace", git("rev-parse", f"HEAD:{NEWS}"), other)
    git("replace", scene.new, scene.old)
    return gate_the_commit_s_bytes(scene)


@fault("grafts in the clone", passes())
def grafts(scene: Scene) -> Ended:
    (scene.copy.repo / ".git/info").mkdir(exist_ok=True)
    (scene.copy.repo / ".git/info/grafts").write_text(f"{scene.new}\n")
    return gate_the_commit_s_bytes(scene)


@fault("GIT_DIR, GIT_WORK_TREE, GIT_INDEX_FILE of the caller", passes(), hosts=BOTH)
def git_variables(scene: Scene) -> None:
    other = scene.copy.repo.parent.parent / "other"
    scene.copy.git("clone", "--quiet", str(scene.copy.repo), str(other))
    scene.pipeline.more_environment = {
        "GIT_DIR": str(other / ".git"),
        "GIT_WORK_TREE": str(other),
        "GIT_INDEX_FILE": str(other / ".git/index"),
    }


# --- the anchor -------------------------------------------------------------------------------------------------------

NOT_CHECKED_OUT = "branch feature/x of orchestrator is not checked out in any worktree"


@fault("HEAD is on another branch", refused(NOT_CHECKED_OUT))
def another_branch(scene: Scene) -> None:
    scene.copy.git("checkout", "--quiet", "-b", "elsewhere")


@fault("HEAD is detached", refused(NOT_CHECKED_OUT))
def detached(scene: Scene) -> None:
    scene.copy.git("checkout", "--quiet", "--detach")


@fault("HEAD is one behind the branch", refused(NOT_CHECKED_OUT))
def one_behind(scene: Scene) -> None:
    scene.copy.git("checkout", "--quiet", "--detach", "HEAD~1")


@fault("the pipeline validated another commit", refused("--gate-revision"))
def another_validated(scene: Scene) -> Ended:
    return scene.gate(f"--gate-revision={scene.old}")


@fault(
    "the branch moves on while the gate runs",
    refused("branch feature/x of orchestrator is [0-9a-f]{40}, expected [0-9a-f]{40}; it moved", staging="new"),
    hosts=BOTH,
)
def branch_moves(scene: Scene) -> None:
    identity = "-c user.name=Ada -c user.email=ada@example.org"
    scene.during(f"git -C {scene.worktree} {identity} commit --allow-empty --message later")


@fault("the branch is left while the gate runs", refused(NOT_CHECKED_OUT, staging="new"))
def branch_is_left(scene: Scene) -> None:
    scene.during(f"git -C {scene.worktree} checkout --detach")


@fault("the worktree is missing", refused("is missing: expected .*, observed nothing there"))
def worktree_missing(scene: Scene) -> None:
    shutil.rmtree(scene.worktree)


@fault("the worktree is a symlink that leads elsewhere", refused("goes through a symlink leading elsewhere"))
def worktree_is_a_link(scene: Scene) -> None:
    other = scene.worktree.with_name("other")
    scene.copy.git("clone", "--quiet", "--branch", scene.copy.branch, str(scene.copy.repo), str(other))
    shutil.rmtree(scene.worktree)
    scene.worktree.symlink_to(other)


@fault("the worktree lost its .git, and an outer repository answers", refused("has no .git: expected the top"))
def outer_repository(scene: Scene) -> None:
    (scene.worktree / ".git").unlink()
    outer = scene.worktree.parent
    scene.copy.git("init", "--quiet", "--initial-branch", scene.copy.branch, cwd=outer)
    scene.copy.git("commit", "--quiet", "--allow-empty", "--message", "outer", cwd=outer)


# --- submodules, LFS, shallow -----------------------------------------------------------------------------------------


def add_submodule(scene: Scene) -> str:
    """Commit a submodule at src/part, and return the commit that is recorded for it."""
    part = scene.copy.repo.parent.parent / "part"
    part.mkdir()
    git = scene.copy.git
    git("init", "--quiet", cwd=part)
    (part / "text").write_text("recorded")
    git("add", "text", cwd=part)
    git("commit", "--quiet", "--message", "recorded", cwd=part)
    git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(part), "src/part")
    scene.commit({})
    return git("rev-parse", "HEAD", cwd=part)


@fault("the submodule is checked out at another commit than recorded", passes())
def submodule_elsewhere(scene: Scene) -> Ended:
    add_submodule(scene)
    # A clone of the repo's own keeps the submodule, where a linked worktree has it in a folder of its own.
    inside = scene.worktree / "src/part"
    (inside / "text").write_text("newer")
    scene.copy.git("commit", "--quiet", "--all", "--message", "newer", cwd=inside)
    modules = scene.copy.repo / ".git/modules"
    shutil.copytree(scene.copy.git("rev-parse", "--absolute-git-dir", cwd=inside), modules / "src/part")
    ended = scene.gate()
    text = scene.copy.engine.docker("exec", scene.copy.staging_container, "cat", "/app/src/part/text")
    assert text == "recorded"
    return ended


@fault("the submodule is not initialised", refused("submodule src/part at [0-9a-f]{40}: expected it in "), hosts=BOTH)
def submodule_missing(scene: Scene) -> None:
    add_submodule(scene)


@fault("an LFS pointer instead of the content", refused("expected the content of big.bin, observed an LFS pointer"))
def lfs_pointer(scene: Scene) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 7\n"
    scene.commit({".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n", "big.bin": pointer})


@fault("a shallow clone", passes(), hosts=BOTH)
def shallow(scene: Scene) -> None:
    copy = scene.copy
    full = copy.repo.with_name("full")
    shutil.rmtree(copy.worktree)
    copy.repo.rename(full)
    url = f"file://{full}"
    copy.git("clone", "--quiet", "--depth", "1", "--branch", copy.branch, url, str(copy.repo), cwd=full)
    shutil.rmtree(full)


# --- what is no revision, no branch, no repo --------------------------------------------------------------------------


@fault("a revision that is abbreviated, upper-case, empty, a pattern, padded", misused("--gate-revision is "))
def no_revision(scene: Scene) -> Ended:
    new = scene.new
    forms = [new[:12], new.upper(), "", "*", f" {new}", f"{new} ", f"{new}\n", f"{new}0", "HEAD", scene.copy.branch]
    ends = [scene.gate(f"--gate-revision={form}") for form in forms]
    return worst(ends, 4)


def worst(ends: list[Ended], status: int) -> Ended:
    """Return the first of several ends that has another status, else the last one."""
    return next((ended for ended in ends if ended.status != status), ends[-1])


@fault("the revision is the ID of a tag object", passes())
def tag_object(scene: Scene) -> Ended:
    scene.copy.git("tag", "--annotate", "--message", "a tag", "v1")
    return scene.gate(f"--gate-revision={scene.copy.git('rev-parse', 'v1')}")


@fault("a branch is named like the commit ID and leads elsewhere", passes(), hosts=BOTH)
def branch_named_like_the_commit(scene: Scene) -> Ended:
    scene.copy.git("update-ref", f"refs/heads/{scene.new}", scene.old)
    scene.copy.git("update-ref", f"refs/tags/{scene.new}", scene.old)
    return gate_the_commit_s_bytes(scene)


@fault("a commit ID is given as the branch", misused("not a branch name: '[0-9a-f]{40}'; it reads like a commit ID"))
def commit_as_branch(scene: Scene) -> Ended:
    return scene.gate(branch=scene.new)


@fault(
    "repo and branch names with shell characters, dashes, dots, newlines",
    misused("^ERROR: imagefresh: not a (repo|branch) name: "),
)
def odd_names(scene: Scene) -> Ended:
    canary = scene.pipeline.folder / "canary"
    odd = [f"$(touch {canary})", f"x;touch {canary}", f"`touch {canary}`", "..", "../x", "a b", "a\nb", "-x", "x/../y"]
    ends = [scene.gate(f"--repo={name}") for name in odd] + [scene.gate(f"--branch={name}") for name in odd]
    assert not canary.exists()
    return worst(ends, 4)
