"""The build context is exactly the tree of the commit: real git, and a builder that keeps what it was given."""

from __future__ import annotations

import os
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hook.harness import Clone, Outcome, PretendedHost
from tests.support import clean_environment

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 12\n" % (b"4" * 64)


def recorded(clone: Clone, commit: str, prefix: bytes = b"") -> dict[bytes, tuple[str, bytes]]:
    """Return mode and bytes of every file of a commit, by path, as git's object database holds them."""
    files: dict[bytes, tuple[str, bytes]] = {}
    argv = ["git", "--no-replace-objects", "ls-tree", "-r", "-z", commit]
    listing = subprocess.run(argv, cwd=clone.path, env=clean_environment(), capture_output=True, check=True).stdout
    for entry in listing.split(b"\0")[:-1]:
        head, _, path = entry.partition(b"\t")
        mode, kind, name = head.decode().split()
        if kind == "blob":
            argv = ["git", "--no-replace-objects", "cat-file", "blob", name]
            blob = subprocess.run(argv, cwd=clone.path, env=clean_environment(), capture_output=True, check=True).stdout
            files[prefix + path] = (mode, blob)
    return files


def exported(folder: Path) -> dict[bytes, tuple[str, bytes]]:
    """Return mode and bytes of every file below a folder, by path, in git's terms."""
    root = os.fsencode(folder)
    files: dict[bytes, tuple[str, bytes]] = {}
    for parent, folders, names in os.walk(root):
        for name in [*names, *(each for each in folders if os.path.islink(os.path.join(parent, each)))]:
            path = os.path.join(parent, name)
            if os.path.islink(path):
                files[os.path.relpath(path, root)] = ("120000", os.readlink(path))
            else:
                mode = os.stat(path).st_mode & 0o777
                files[os.path.relpath(path, root)] = ("100" + f"{mode:o}", Path(os.fsdecode(path)).read_bytes())
    return files


def built(host: PretendedHost, commit: str | None = None, **variables: str | None) -> dict[bytes, tuple[str, bytes]]:
    """Build a commit (default: HEAD), and return the context after comparing it with the commit."""
    commit = commit or host.clone.revision
    outcome = host.staging(GIT_SHA=commit, **variables)
    assert outcome.verdict == (0, "built"), outcome.reason
    tree = host.clone.git("--no-replace-objects", "rev-parse", f"{commit}^{{tree}}")
    assert (outcome.line["revision"], outcome.line["tree"]) == (commit, tree)
    return exported(host.context)


def refused(host: PretendedHost, cause: str, **variables: str | None) -> Outcome:
    outcome = host.staging(**variables)
    assert outcome.verdict == (1, cause), outcome.reason
    assert host.changes() == []
    return outcome


# --- the bytes --------------------------------------------------------------------------------------------------------


def test_modes_links_and_odd_names_come_out_as_recorded(pretended: PretendedHost) -> None:
    clone = pretended.clone
    odd = ["a b", "-dash", "new\nline", "tab\there", "größe", 'quo"te', "back\\slash", "a'b", "*", "$(id)", ".hidden/x"]
    clone.commit({name: name.encode() for name in odd})
    clone.commit({"empty": b"", "run.sh": b"#!/bin/sh\n", "bin": bytes(range(256))})
    (clone.path / "run.sh").chmod(0o755)
    (clone.path / "link").symlink_to("run.sh")
    (clone.path / "dangling").symlink_to("/etc/nowhere")
    (clone.path / "to-a-folder").symlink_to(".hidden")
    clone.commit({})
    context = built(pretended)
    assert context == recorded(clone, clone.revision)
    assert context[b"run.sh"][0] == "100755"
    assert context[b"dangling"] == ("120000", b"/etc/nowhere")
    assert context[b"new\nline"] == ("100644", b"new\nline")


def test_a_strict_umask_of_the_caller_does_not_reach_the_image(pretended: PretendedHost) -> None:
    argv = ["bash", "-c", 'umask 077; exec "$0" --build-staging', str(pretended.hook.path)]
    done = subprocess.run(argv, env=pretended.staging_variables(), capture_output=True, check=False)
    assert Outcome.of(done).verdict == (0, "built")
    assert {mode for mode, _content in exported(pretended.context).values()} == {"100644"}
    assert (pretended.context).stat().st_mode & 0o777 == 0o755


def test_nothing_but_the_commit_is_built(pretended: PretendedHost) -> None:
    clone = pretended.clone
    commit = clone.commit({".gitignore": b".env\n", "kept": b"committed\n"})
    (clone.path / "README").write_text("uncommitted edit")
    (clone.path / "untracked").write_text("x")
    (clone.path / ".env").write_text("SECRET=1")
    (clone.path / "kept").write_text("edited")
    clone.git("update-index", "--skip-worktree", "kept")
    (clone.path / "staged").write_text("x")
    clone.git("add", "staged")
    assert built(pretended, commit) == recorded(clone, commit)


def test_an_older_commit_can_be_built(pretended: PretendedHost) -> None:
    old = pretended.clone.revision
    pretended.clone.commit({"README": b"newer\n"})
    assert built(pretended, old) == recorded(pretended.clone, old)


ATTRIBUTES = b"""[attr]sly text eol=crlf ident filter=evil
*.txt sly
*.sub export-subst
*.gone export-ignore
*.utf16 working-tree-encoding=UTF-16
*.crlf text eol=lf
*.old crlf=input
"""
BYTES = {
    ".gitattributes": ATTRIBUTES,
    "Dockerfile": b"FROM scratch\n",
    "lf.txt": b"one\ntwo\n",
    "crlf.crlf": b"one\r\ntwo\r\n",
    "old.old": b"one\r\ntwo\r\n",
    "ident.txt": b"$Id$ and $Id: abc $\n",
    "it.sub": b"$Format:%H$\n",
    "it.gone": b"here\n",
    "it.utf16": b"plain\n",
    "deep/.gitattributes": b"* ident filter=evil text eol=crlf\n",
    "deep/er/x": b"$Id$\nmore\n",
}


def test_no_attribute_of_the_commit_changes_a_byte(pretended: PretendedHost) -> None:
    commit = pretended.clone.commit_bytes(BYTES)
    context = built(pretended, commit)
    assert {path.decode(): content for path, (_mode, content) in context.items()} == BYTES


def test_no_attribute_filter_or_setting_of_the_clone_changes_a_byte(pretended: PretendedHost) -> None:
    clone = pretended.clone
    commit = clone.commit_bytes(BYTES)
    for key, value in {
        "core.autocrlf": "true",
        "core.eol": "crlf",
        "core.attributesFile": str(clone.path / "README"),
        "filter.evil.smudge": "echo evil",
        "filter.evil.clean": "echo evil",
        "filter.evil.required": "true",
        "core.fsmonitor": "touch pwned",
        "core.hooksPath": str(clone.path),
        "core.symlinks": "false",
        "core.fileMode": "false",
        "core.sparseCheckout": "true",
    }.items():
        clone.git("config", key, value)
    (clone.path / ".git/info/attributes").write_text("* ident filter=evil text eol=crlf\n")
    (clone.path / ".git/info/sparse-checkout").write_text("/nothing\n")
    context = built(pretended, commit)
    assert {path.decode(): content for path, (_mode, content) in context.items()} == BYTES


def test_replace_refs_and_grafts_have_no_say(pretended: PretendedHost) -> None:
    clone = pretended.clone
    commit = clone.commit({"README": b"the real one\n"})
    real = recorded(clone, commit)
    evil = clone.commit({"README": b"the evil one\n"})
    blob, other = clone.git("rev-parse", f"{commit}:README"), clone.git("rev-parse", f"{evil}:README")
    clone.git("replace", commit, evil)
    clone.git("replace", blob, other)
    (clone.path / ".git/info/grafts").write_text(f"{commit} {evil}\n")
    assert built(pretended, commit) == real


def test_the_clone_is_only_read(pretended: PretendedHost) -> None:
    clone = pretended.clone
    clone.commit({"big": os.urandom(100_000)})
    clone.git("gc", "--quiet")
    before = {path: path.stat().st_size for path in (clone.path / ".git").rglob("*") if path.is_file()}
    built(pretended)
    assert {path: path.stat().st_size for path in (clone.path / ".git").rglob("*") if path.is_file()} == before


# --- clones of every kind ---------------------------------------------------------------------------------------------


def bare(clone: Clone, to: Path) -> None:
    clone.git("clone", "--quiet", "--bare", str(clone.path), str(to))


def shallow(clone: Clone, to: Path) -> None:
    clone.git("clone", "--quiet", "--depth", "1", f"file://{clone.path}", str(to))


def shared(clone: Clone, to: Path) -> None:
    clone.git("clone", "--quiet", "--shared", str(clone.path), str(to))


def shared_twice_and_relative(clone: Clone, to: Path) -> None:
    middle = to.with_name("middle")
    clone.git("clone", "--quiet", "--bare", "--shared", str(clone.path), str(middle))
    (middle / "objects/info/alternates").write_text("../../clone/.git/objects\n")
    clone.git("clone", "--quiet", "--shared", str(middle), str(to))


def linked_worktree(clone: Clone, to: Path) -> None:
    clone.git("worktree", "add", "--quiet", "--detach", str(to))


def separate_git_dir(clone: Clone, to: Path) -> None:
    clone.git("clone", "--quiet", "--separate-git-dir", str(to.with_name("elsewhere")), str(clone.path), str(to))


def through_a_link(clone: Clone, to: Path) -> None:
    to.symlink_to(clone.path)


def with_an_odd_path(clone: Clone, to: Path) -> None:
    to.mkdir()
    clone.git("clone", "--quiet", str(clone.path), str(to / "a b\"c:d;e #'f"))


KINDS: list[Callable[[Clone, Path], None]] = [
    bare,
    shallow,
    shared,
    shared_twice_and_relative,
    linked_worktree,
    separate_git_dir,
    through_a_link,
]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_every_kind_of_clone_will_do(
    pretended: PretendedHost, tmp_path: Path, make: Callable[[Clone, Path], None]
) -> None:
    commit = pretended.clone.commit({"more/files": b"x\n"})
    make(pretended.clone, tmp_path / "other")
    assert built(pretended, commit, BUILD_CONTEXT=str(tmp_path / "other")) == recorded(pretended.clone, commit)


def test_a_clone_may_lie_under_an_odd_path(pretended: PretendedHost, tmp_path: Path) -> None:
    with_an_odd_path(pretended.clone, tmp_path / "odd")
    path = next((tmp_path / "odd").iterdir())
    assert built(pretended, BUILD_CONTEXT=str(path)) == recorded(pretended.clone, pretended.clone.revision)


@pytest.mark.root
def test_a_clone_of_another_owner_will_do(pretended: PretendedHost) -> None:
    variables = pretended.staging_variables()
    for path in [pretended.clone.path, *pretended.clone.path.rglob("*")]:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    assert pretended.hook.call("--build-staging", variables).verdict == (0, "built")


@pytest.mark.parametrize("content", ["", "file", "folder"])
def test_what_is_no_clone_is_refused(pretended: PretendedHost, tmp_path: Path, content: str) -> None:
    path = tmp_path / "nothing"
    if content == "file":
        path.write_text("gitdir: /nowhere\n")
    elif content == "folder":
        (pretended.clone.path / "inner").mkdir()  # the outer repository must not answer
        path = pretended.clone.path / "inner"
    outcome = refused(pretended, "clone-missing", GIT_SHA=pretended.clone.revision, BUILD_CONTEXT=str(path))
    assert str(path) in outcome.reason


# --- what is no commit ------------------------------------------------------------------------------------------------


def test_an_unknown_commit_is_refused_with_what_to_do(pretended: PretendedHost) -> None:
    outcome = refused(pretended, "commit-missing", GIT_SHA="0" * 40)
    assert f"the clone {pretended.clone.path}/.git does not hold commit {'0' * 40}; fetch it there" in outcome.reason


@pytest.mark.parametrize("kind", ["tree", "blob", "tag"])
def test_the_id_of_something_else_is_refused(pretended: PretendedHost, kind: str) -> None:
    clone = pretended.clone
    clone.git("tag", "--annotate", "--message", "x", "v1")
    name = clone.git("rev-parse", {"tree": "HEAD^{tree}", "blob": "HEAD:README", "tag": "v1"}[kind])
    assert f"observed a {kind}" in refused(pretended, "not-a-commit", GIT_SHA=name).reason


def object_path(clone: Clone, name: str) -> Path:
    return clone.path / ".git/objects" / name[:2] / name[2:]


def forge(clone: Clone, name: str, kind: str, content: bytes) -> None:
    """Put other content behind an object ID."""
    path = object_path(clone, name)
    path.chmod(0o644)
    path.write_bytes(zlib.compress(f"{kind} {len(content)}".encode() + b"\0" + content))


def test_a_commit_whose_bytes_do_not_hash_to_its_id_is_refused(pretended: PretendedHost) -> None:
    clone = pretended.clone
    other = clone.commit({"README": b"evil\n"})
    good = clone.git("rev-parse", "HEAD~1")
    forge(clone, good, "commit", clone.git("cat-file", "commit", other).encode() + b"\n")
    outcome = pretended.staging(GIT_SHA=good)
    assert (outcome.status, outcome.cause in {"commit-forged", "export-failed", "commit-missing"}) == (1, True)
    assert pretended.changes() == []


def test_a_file_whose_bytes_do_not_hash_to_its_id_is_refused(pretended: PretendedHost) -> None:
    blob = pretended.clone.git("rev-parse", "HEAD:README")
    forge(pretended.clone, blob, "blob", b"evil\n")
    assert pretended.staging().verdict in [(1, "tree-mismatch"), (1, "export-failed")]
    assert pretended.changes() == []


def test_a_tree_whose_bytes_do_not_hash_to_its_id_is_refused(pretended: PretendedHost) -> None:
    clone = pretended.clone
    other = clone.commit({"README": b"evil\n"})
    raw = subprocess.run(
        ["git", "cat-file", "tree", f"{other}^{{tree}}"], cwd=clone.path, capture_output=True, check=True
    )
    good = clone.git("rev-parse", "HEAD~1")
    forge(clone, clone.git("rev-parse", f"{good}^{{tree}}"), "tree", raw.stdout)
    assert pretended.staging(GIT_SHA=good).verdict in [(1, "tree-mismatch"), (1, "export-failed")]
    assert pretended.changes() == []


def test_a_missing_file_is_refused(pretended: PretendedHost) -> None:
    object_path(pretended.clone, pretended.clone.git("rev-parse", "HEAD:README")).unlink()
    refused(pretended, "export-failed")


def test_a_missing_tree_is_refused(pretended: PretendedHost) -> None:
    object_path(pretended.clone, pretended.clone.git("rev-parse", "HEAD^{tree}")).unlink()
    refused(pretended, "export-failed")


@pytest.mark.root
def test_a_disk_that_runs_full_is_refused_and_nothing_half_made_stays(pretended: PretendedHost) -> None:
    pretended.clone.commit({"big": os.urandom(2_000_000)})
    state = pretended.compose_dir / ".imagefresh"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(state)], check=True)
    try:
        outcome = refused(pretended, "export-failed")
        assert f"look for free space in {state}/.checkout/shop/shop-staging" in outcome.reason
        assert list((state / ".checkout/shop/shop-staging").iterdir()) == []
    finally:
        subprocess.run(["umount", str(state)], check=True)


# --- submodules -------------------------------------------------------------------------------------------------------


@pytest.fixture
def nested(pretended: PretendedHost, tmp_path: Path) -> PretendedHost:
    """The repo with a submodule at `libs/outer` that has one at `inner`, all initialised."""
    inner, outer = Clone(tmp_path / "inner"), Clone(tmp_path / "outer")
    inner.commit({"deep": b"inner content\r\n"})
    outer.git("submodule", "add", "--quiet", str(inner.path), "inner")
    outer.commit({"file": b"outer content\n"})
    pretended.clone.git("submodule", "add", "--quiet", "--name", "the outer", str(outer.path), "libs/outer")
    pretended.clone.commit({})
    pretended.clone.git("submodule", "--quiet", "update", "--init", "--recursive")
    return pretended


def test_submodules_come_out_at_their_recorded_commits(nested: PretendedHost) -> None:
    outer = nested.clone.path / "libs/outer"
    (outer / "file").write_text("uncommitted")
    context = built(nested)
    assert context[b"libs/outer/file"] == ("100644", b"outer content\n")
    assert context[b"libs/outer/inner/deep"] == ("100644", b"inner content\r\n")
    assert not any(b".git/" in path or path.endswith(b"/.git") for path in context)


def test_a_submodule_at_another_commit_comes_out_as_recorded(nested: PretendedHost) -> None:
    outer = Clone.__new__(Clone)
    outer.path = nested.clone.path / "libs/outer"
    recorded_before = outer.revision
    outer.commit({"file": b"moved on\n"})
    assert outer.revision != recorded_before
    assert built(nested)[b"libs/outer/file"] == ("100644", b"outer content\n")


def test_a_linked_worktree_finds_the_submodules_of_its_clone(nested: PretendedHost, tmp_path: Path) -> None:
    nested.clone.git("worktree", "add", "--quiet", "--detach", str(tmp_path / "wt"))
    assert b"libs/outer/inner/deep" in built(nested, BUILD_CONTEXT=str(tmp_path / "wt"))


def test_a_submodule_that_is_not_there_is_refused_with_what_to_run(nested: PretendedHost, tmp_path: Path) -> None:
    nested.clone.git("clone", "--quiet", str(nested.clone.path), str(tmp_path / "plain"))
    outcome = refused(nested, "submodule-missing", BUILD_CONTEXT=str(tmp_path / "plain"))
    assert "submodule libs/outer at " in outcome.reason
    assert "git submodule update --init --recursive" in outcome.reason


def test_an_inner_submodule_that_is_not_there_is_refused(nested: PretendedHost) -> None:
    modules = nested.clone.path / ".git/modules/the outer/modules/inner"
    modules.rename(modules.with_name("gone"))
    assert "submodule inner at " in refused(nested, "submodule-missing").reason


def test_a_search_for_submodules_that_fails_is_no_answer(nested: PretendedHost) -> None:
    grep = nested.tools / "grep"
    words = 'echo "grep: write error: No space left on device" >&2; exit 2'
    grep.write_text(f'#!/bin/bash -p\n[[ "$*" != *160000* ]] || {{ {words}; }}\nexec /bin/grep "$@"\n')
    grep.chmod(0o755)
    assert "observed: grep: write error: No space left" in refused(nested, "export-failed").reason


def test_a_recorded_commit_that_the_submodule_lacks_is_refused(nested: PretendedHost) -> None:
    nested.clone.git("update-index", "--cacheinfo", f"160000,{'3' * 40},libs/outer")
    commit = nested.clone.git("commit-tree", "-m", "x", nested.clone.git("write-tree"))
    outcome = refused(nested, "commit-missing", GIT_SHA=commit)
    assert outcome.reason.startswith("submodule libs/outer: ")


@pytest.mark.parametrize("text", [None, b"", b'[submodule "../../evil"]\n\tpath = libs/outer\n\turl = x\n'])
def test_a_submodule_without_a_safe_name_is_refused(nested: PretendedHost, text: bytes | None) -> None:
    clone = nested.clone
    if text is None:
        clone.git("rm", "--quiet", "--cached", ".gitmodules")
    else:
        blob = clone.git("hash-object", "-w", "--stdin", stdin=text)
        clone.git("update-index", "--cacheinfo", f"100644,{blob},.gitmodules")
    commit = clone.git("commit-tree", "-m", "x", clone.git("write-tree"))
    refused(nested, "submodule-unnamed", GIT_SHA=commit)


# --- large files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attributes", [b"*.bin filter=lfs diff=lfs merge=lfs -text\n", b"[attr]big filter=lfs\n*.bin big\n"]
)
def test_a_pointer_to_a_large_file_is_refused(pretended: PretendedHost, attributes: bytes) -> None:
    commit = pretended.clone.commit_bytes(
        {".gitattributes": attributes, "data/a b.bin": POINTER, "Dockerfile": b"FROM scratch\n"}
    )
    assert "the content of data/a b.bin" in refused(pretended, "lfs-pointer", GIT_SHA=commit).reason


@pytest.mark.parametrize(
    "files",
    [
        {".gitattributes": b"*.bin filter=lfs\n", "x.bin": b"the content itself\n"},
        {".gitattributes": b"*.bin filter=lfs\n", "x.txt": POINTER},
        {"x.bin": POINTER},
        {".gitattributes": b"*.bin filter=lfs\nx.bin -filter\n", "x.bin": POINTER},
    ],
    ids=["content", "another path", "no attribute", "taken back"],
)
def test_what_is_no_pointer_to_a_large_file_is_built(pretended: PretendedHost, files: dict[str, bytes]) -> None:
    commit = pretended.clone.commit_bytes({"Dockerfile": b"FROM scratch\n", **files})
    assert built(pretended, commit) == recorded(pretended.clone, commit)


def test_a_pointer_in_a_submodule_is_refused(pretended: PretendedHost, tmp_path: Path) -> None:
    library = Clone(tmp_path / "library")
    library.commit_bytes({".gitattributes": b"*.bin filter=lfs\n", "x.bin": POINTER})
    pretended.clone.git("submodule", "add", "--quiet", str(library.path), "library")
    pretended.clone.commit({})
    assert "the content of library/x.bin" in refused(pretended, "lfs-pointer").reason


# --- what the builder gets --------------------------------------------------------------------------------------------


def test_a_dockerfile_in_a_subfolder_is_built_from_there(pretended: PretendedHost) -> None:
    commit = pretended.clone.commit({"services/web/build/Dockerfile.prod": b"FROM scratch\n", "services/web/x": b"x"})
    context = built(pretended, commit, BUILD_SUBDIR="services/web", BUILD_DOCKERFILE="build/Dockerfile.prod")
    assert set(context) == {b"x", b"build/Dockerfile.prod"}
    assert pretended.state["dockerfile"] == "build/Dockerfile.prod"


@pytest.mark.parametrize(
    ("link", "to", "variables"),
    [
        ("out", "/etc", {"BUILD_SUBDIR": "out"}),
        ("out", "../..", {"BUILD_SUBDIR": "out"}),
        ("D", "/etc/passwd", {"BUILD_DOCKERFILE": "D"}),
        ("d", "/etc", {"BUILD_DOCKERFILE": "d/passwd"}),
        (".dockerignore", "/etc/passwd", {}),
        ("Dockerfile.dockerignore", "../../../../../../etc/passwd", {}),
    ],
    ids=str,
)
def test_a_link_out_of_the_tree_is_refused(
    pretended: PretendedHost, link: str, to: str, variables: dict[str, str]
) -> None:
    (pretended.clone.path / link).symlink_to(to)
    pretended.clone.commit({})
    refused(pretended, "path-outside", **variables)


def test_links_within_the_tree_are_followed(pretended: PretendedHost) -> None:
    clone = pretended.clone
    clone.commit({"real/Dockerfile": b"FROM scratch\n", "ignore": b"x\n"})
    (clone.path / "web").symlink_to("real")
    (clone.path / "real/D").symlink_to("Dockerfile")
    (clone.path / "real/.dockerignore").symlink_to("../ignore")
    clone.commit({})
    assert pretended.staging(BUILD_SUBDIR="web", BUILD_DOCKERFILE="D").verdict == (0, "built")


@pytest.mark.parametrize(
    ("variables", "cause"),
    [
        ({"BUILD_SUBDIR": "nowhere"}, "context-missing"),
        ({"BUILD_SUBDIR": "README"}, "context-missing"),
        ({"BUILD_DOCKERFILE": "nowhere"}, "dockerfile-missing"),
        ({"BUILD_DOCKERFILE": "nowhere/at/all"}, "dockerfile-missing"),
        ({"BUILD_DOCKERFILE": "."}, "dockerfile-missing"),
    ],
    ids=str,
)
def test_what_the_commit_does_not_hold_is_refused(
    pretended: PretendedHost, variables: dict[str, str], cause: str
) -> None:
    refused(pretended, cause, **variables)
