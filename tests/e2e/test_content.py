"""What the image holds is compared with the commit: whatever the Dockerfile does to it is named."""

from __future__ import annotations

import json

import pytest

from tests.e2e.pipeline import Pipeline
from tests.support import Orchestrator

CONTENT = {"/app/src": "src", "/app/scripts": "scripts"}
PACKAGE = "/app/src/orchestrator"
TAMPERED = f"echo '# more' >>{PACKAGE}/jobs.py && touch {PACKAGE}/planted.py && chmod +x {PACKAGE}/service.py"


def declare(pipeline: Pipeline, **target: object) -> None:
    """Declare both folders of the example service as content."""
    pipeline.configure(targets={pipeline.copy.name: {"content": CONTENT, **target}})


def commit_step(copy: Orchestrator, step: str, files: dict[str, str] | None = None) -> str:
    """Commit one more build step, after the files were copied; return the revision."""
    text = (copy.worktree / "Dockerfile").read_text()
    return copy.commit({"Dockerfile": text.replace("USER ", f"RUN {step}\nUSER "), **(files or {})})


def proof(pipeline: Pipeline) -> str:
    """Return the reason that the newest run recorded for the content."""
    newest = max(pipeline.folder.glob(".imagefresh/*/*/*/chain.json"))
    proofs = {each["link"]: str(each["reason"]) for each in json.loads(newest.read_text())["proofs"]}
    return proofs["CONTENT"]


def test_the_commits_own_files_pass_and_are_counted(each_pipeline: Pipeline) -> None:
    pipeline, copy = each_pipeline, each_pipeline.copy
    (copy.worktree / "src/tool").symlink_to("orchestrator/jobs.py")
    (copy.worktree / "src/run me.sh").write_text("#!/bin/sh\n")
    (copy.worktree / "src/run me.sh").chmod(0o755)
    revision = copy.commit({"src/odd ü\n": "", "src/empty/.keep": ""})
    (copy.worktree / "src/untracked.py").write_text("")
    declare(pipeline)
    gate = pipeline.gate()
    assert gate.status == 0, gate.output
    count = len(copy.git("ls-tree", "-r", "-z", "--name-only", "HEAD", "src", "scripts").split("\0")) - 1
    assert proof(pipeline) == f"the image holds {count} files of the commit"
    assert (pipeline.staging, pipeline.prod) == (revision, "")


def test_every_file_that_is_not_the_commits_is_named(pipeline: Pipeline) -> None:
    copy = pipeline.copy
    ignored = (copy.worktree / ".dockerignore").read_text() + "**/NEWS\n"
    revision = commit_step(copy, TAMPERED, {".dockerignore": ignored, "src/orchestrator/NEWS": "tracked"})
    declare(pipeline, content_ignore=["*.pyc"])
    gate = pipeline.gate()
    assert gate.status == 1, gate.output
    named = [f"{PACKAGE}/NEWS (missing)", f"{PACKAGE}/jobs.py (other bytes)", f"{PACKAGE}/planted.py (extra)"]
    named.append(f"{PACKAGE}/service.py (executable, not so in the commit)")
    assert f"the image differs from the commit: {', '.join(named)}; expected" in gate.output, gate.output
    [evidence] = pipeline.folder.glob(".imagefresh/*/*/*/content.txt")
    assert evidence.read_text().splitlines() == named
    assert (pipeline.staging, pipeline.prod) == (revision, "")
    assert pipeline.promote().status == 1


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("mv /app/src /code && ln -s /code /app/src", "/app/src is a symlink to /code"),
        ("cp -r /app /real && cd / && rm -r /app && ln -s /real /app", "/app is a symlink to /real"),
    ],
)
@pytest.mark.fault
def test_a_folder_behind_a_symlink_is_not_the_declared_one(pipeline: Pipeline, step: str, reason: str) -> None:
    commit_step(pipeline.copy, step)
    declare(pipeline)
    gate = pipeline.gate()
    assert gate.status == 1, gate.output
    assert gate.says(f"the image does not have the declared content: {reason}; expected a folder")


def test_what_may_be_added_passes_and_is_named_with_the_proof(pipeline: Pipeline) -> None:
    copy = pipeline.copy
    revision = commit_step(copy, f"mkdir {PACKAGE}/cache && touch {PACKAGE}/cache/x {PACKAGE}/jobs.pyc")
    declare(pipeline, content_ignore=["cache", "*.pyc"])
    gate = pipeline.gate()
    assert gate.status == 0, gate.output
    added = f"{PACKAGE}/cache/x, {PACKAGE}/jobs.pyc"
    assert proof(pipeline).endswith(f"and 2 more that content_ignore allows (cache, *.pyc): {added}")
    assert (pipeline.staging, pipeline.prod) == (revision, "")


@pytest.mark.fault
def test_a_submodule_counts_with_the_files_of_its_own_commit(pipeline: Pipeline) -> None:
    copy = pipeline.copy
    library = copy.repos_dir / "library"
    library.mkdir()
    copy.git("init", "--quiet", cwd=library)
    (library / "lib.py").write_text("LIB = 1\n")
    copy.git("add", "--all", cwd=library)
    copy.git("commit", "--quiet", "--message", "library", cwd=library)
    allowed = ["-c", "protocol.file.allow=always", "submodule", "--quiet"]
    copy.git(*allowed, "add", "--name", "lib", str(library), "src/lib")
    copy.commit({}, "with a submodule")
    declare(pipeline)
    gate = pipeline.gate()
    # A linked worktree keeps the module to itself; the clone has to have it, too.
    assert gate.status == 1, gate.output
    assert gate.says("submodule src/lib .*run git submodule update --init --recursive in the clone")
    copy.git("fetch", "--quiet", cwd=copy.repo)
    copy.git("clone", "--quiet", "--bare", str(library), str(copy.repo / ".git/modules/lib"))
    gate = pipeline.gate()
    assert gate.status == 0, gate.output
    commit_step(copy, "echo more >>/app/src/lib/lib.py")
    gate = pipeline.gate()
    assert gate.status == 1, gate.output
    assert gate.says(r"the image differs from the commit: /app/src/lib/lib.py \(other bytes\)")
