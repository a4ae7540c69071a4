"""`BUILD_CONTEXT=-`: a host without a clone is sent the commit as a pack of git, and believes none of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.hook.harness import Clone, Outcome, PretendedHost
from tests.hook.test_export import POINTER, exported, recorded
from tests.support import clean_environment


def run_git(clone: Clone, *argv: str, stdin: bytes = b"") -> bytes:
    done = subprocess.run(["git", *argv], cwd=clone.path, env=clean_environment(), input=stdin, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects_of(clone: Clone, commit: str) -> list[str]:
    """Return the IDs of a commit, its trees and its files."""
    lines = run_git(clone, "rev-list", "--objects", "--no-walk", commit).decode("utf-8", "replace").splitlines()
    return [line.split()[0] for line in lines]


def pack(clone: Clone, objects: list[str]) -> bytes:
    return run_git(clone, "pack-objects", "--quiet", "--stdout", stdin="\n".join([*objects, ""]).encode())


def pack_of(clone: Clone, commit: str | None = None) -> bytes:
    return pack(clone, objects_of(clone, commit or clone.revision))


def refused(host: PretendedHost, sent: bytes, cause: str, **variables: str | None) -> Outcome:
    outcome = host.sent(sent, **variables)
    assert outcome.verdict == (1, cause), outcome.reason
    assert host.changes() == []
    return outcome


@pytest.fixture
def sending(pretended: PretendedHost) -> PretendedHost:
    """A host whose clone is the caller's; two commits, of which the second is sent."""
    clone = pretended.clone
    clone.commit({"old": b"of the first commit\n"})
    clone.git("rm", "--quiet", "old")
    clone.commit({"run": b"#!/bin/sh\n", "folder/new\nline": bytes(range(256)) * 40, "empty": b""})
    return pretended


def test_what_was_sent_is_built(sending: PretendedHost) -> None:
    clone = sending.clone
    outcome = sending.sent(pack_of(clone))
    assert outcome.verdict == (0, "built"), outcome.reason
    assert outcome.line["tree"] == clone.git("rev-parse", "HEAD^{tree}")
    assert exported(sending.context) == recorded(clone, clone.revision)
    second = clone.commit({"run": b"#!/bin/no\n"})
    assert sending.sent(pack_of(clone)).verdict == (0, "built")
    assert exported(sending.context) == recorded(clone, second)


@pytest.mark.parametrize("kept", [0, 1, 11, 12, 13, 200, -21, -20, -1])
def test_a_stream_that_ends_early_is_refused(sending: PretendedHost, kept: int) -> None:
    whole = pack_of(sending.clone)
    outcome = refused(sending, whole[:kept], "pack-broken")
    assert "expected one whole pack of git" in outcome.reason


@pytest.mark.parametrize("place", [0, 8, 30, 300, -30, -1])
def test_one_wrong_byte_is_refused(sending: PretendedHost, place: int) -> None:
    spoilt = bytearray(pack_of(sending.clone))
    spoilt[place] ^= 0x10
    refused(sending, bytes(spoilt), "pack-broken")


@pytest.mark.parametrize("sent", [b"\n", b"junk" * 1000, b"PACK" + bytes(8)], ids=["newline", "junk", "header"])
def test_what_is_no_pack_is_refused(sending: PretendedHost, sent: bytes) -> None:
    refused(sending, sent, "pack-broken")


def test_a_closed_standard_input_is_refused(sending: PretendedHost) -> None:
    variables = {**sending.staging_variables(), "BUILD_CONTEXT": "-"}
    argv = ["bash", "-c", 'exec "$0" --build-staging <&-', str(sending.hook.path)]
    done = subprocess.run(argv, env=variables, capture_output=True, check=False)
    assert Outcome.of(done).verdict == (1, "pack-broken")


def test_another_commit_than_the_named_one_is_refused(sending: PretendedHost) -> None:
    outcome = refused(sending, pack_of(sending.clone, "HEAD~1"), "commit-missing")
    assert f"the pack that the caller sent does not hold commit {sending.clone.revision}" in outcome.reason


@pytest.mark.parametrize(
    ("name", "cause"), [("HEAD^{commit}", "commit-missing"), ("HEAD^{tree}", "export-failed"), ("HEAD:run", "")]
)
def test_a_pack_that_lacks_something_is_refused(sending: PretendedHost, name: str, cause: str) -> None:
    clone = sending.clone
    objects = [each for each in objects_of(clone, "HEAD") if each != clone.git("rev-parse", name)]
    refused(sending, pack(clone, objects), cause or "export-failed")


def test_what_the_host_has_in_git_folders_of_its_own_has_no_say(sending: PretendedHost) -> None:
    (sending.compose_dir / ".git").mkdir()
    assert sending.sent(pack_of(sending.clone)).verdict == (0, "built")
    assert list((sending.compose_dir / ".git").iterdir()) == []


def test_a_pack_that_is_too_large_is_refused(sending: PretendedHost) -> None:
    text = sending.hook.path.read_text()
    sending.hook.path.write_text(text.replace("PACK_LIMIT=4294967296", "PACK_LIMIT=5000"))
    sending.clone.commit({"big": os.urandom(10_000)})
    assert "maximum allowed size" in refused(sending, pack_of(sending.clone), "pack-broken").reason


def test_a_stream_that_stalls_is_no_decision(sending: PretendedHost) -> None:
    variables = {**sending.staging_variables(), "BUILD_CONTEXT": "-", "BUILD_TIMEOUT": "1"}
    argv = [str(sending.hook.path), "--build-staging"]
    with subprocess.Popen(argv, env=variables, stdin=-1, stdout=-1, stderr=-1) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(pack_of(sending.clone)[:100])
        process.stdin.flush()
        stdout, stderr = process.stdout.read(), process.stderr.read()
    done = subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)
    assert Outcome.of(done).verdict == (11, "timeout")
    assert list(sending.hook.temp_dir.iterdir()) == []


# --- nothing outside of the checkout can be written -------------------------------------------------------------------


def commit_of_tree(clone: Clone, *entries: tuple[str, str, str]) -> str:
    """Make a commit of a tree that git itself would not make: mode, path and object of each entry."""
    raw = b"".join(f"{mode} {path}".encode() + b"\0" + bytes.fromhex(name) for mode, path, name in entries)
    tree = run_git(clone, "hash-object", "-t", "tree", "-w", "--stdin", "--literally", stdin=raw).decode().strip()
    return clone.git("commit-tree", "-m", "x", tree)


@pytest.mark.parametrize("path", ["../evil", "..", ".", ".git", ".GIT", "a/../../evil", "/tmp/evil", ""])
@pytest.mark.parametrize("mode", ["100644", "40000"])
def test_a_path_that_leads_out_is_refused(sending: PretendedHost, path: str, mode: str) -> None:
    clone = sending.clone
    blob = clone.git("hash-object", "-w", "--stdin", stdin=b"evil\n")
    inner = run_git(clone, "mktree", stdin=f"100644 blob {blob}\tevil\n".encode()).decode().strip()
    dockerfile = clone.git("rev-parse", "HEAD:Dockerfile")
    named = inner if mode[0] == "4" else blob
    commit = commit_of_tree(clone, ("100644", "Dockerfile", dockerfile), (mode, path, named))
    sent = pack(clone, [commit, clone.git("rev-parse", f"{commit}^{{tree}}"), blob, inner, dockerfile])
    outcome = sending.sent(sent, GIT_SHA=commit)
    assert (outcome.status, outcome.line["kind"]) == (1, "refused"), outcome.reason
    assert sending.changes() == []
    assert not any(found for found in sending.compose_dir.parent.rglob("evil"))
    assert not Path("/tmp/evil").exists()


def test_a_file_below_a_link_is_refused(sending: PretendedHost, tmp_path: Path) -> None:
    clone = sending.clone
    (tmp_path / "outside").mkdir()
    blob = clone.git("hash-object", "-w", "--stdin", stdin=b"evil\n")
    link = clone.git("hash-object", "-w", "--stdin", stdin=str(tmp_path / "outside").encode())
    inner = run_git(clone, "mktree", stdin=f"100644 blob {blob}\tevil\n".encode()).decode().strip()
    commit = commit_of_tree(clone, ("120000", "a", link), ("40000", "a", inner))
    sent = pack(clone, [commit, clone.git("rev-parse", f"{commit}^{{tree}}"), blob, link, inner])
    assert sending.sent(sent, GIT_SHA=commit).status == 1
    assert sending.changes() == []
    assert list((tmp_path / "outside").iterdir()) == []


# --- submodules and large files ---------------------------------------------------------------------------------------


def test_submodules_come_in_the_same_pack(sending: PretendedHost, tmp_path: Path) -> None:
    clone, library = sending.clone, Clone(tmp_path / "library")
    library.commit({"inner/x": b"of the library\n"})
    clone.git("submodule", "add", "--quiet", str(library.path), "lib")
    clone.commit({})
    inner = objects_of(library, library.revision)
    assert "submodule lib: " in refused(sending, pack_of(clone), "commit-missing").reason
    clone.git("fetch", "--quiet", str(library.path))
    assert sending.sent(pack(clone, [*objects_of(clone, clone.revision), *inner])).verdict == (0, "built")
    assert exported(sending.context)[b"lib/inner/x"] == ("100644", b"of the library\n")


def test_a_pointer_to_a_large_file_is_refused(sending: PretendedHost) -> None:
    commit = sending.clone.commit_bytes({".gitattributes": b"*.bin filter=lfs\n", "x.bin": POINTER})
    refused(sending, pack_of(sending.clone, commit), "lfs-pointer", GIT_SHA=commit)
