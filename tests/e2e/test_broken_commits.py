"""Commits that must not pass: what was built, started or checked is wrong, and the reason says what."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field

import pytest

from tests.e2e.pipeline import Pipeline
from tests.support import Orchestrator

SERVICE = "src/orchestrator/service.py"
CHECK = "scripts/staging_check.py"
HEALTHY = 'self._answer(200, {"status": "ok"})'
CMD = 'CMD ["python3", "-m", "orchestrator"]'
REDIRECT = "; ".join(
    [
        "self.send_response(302)",
        'self.send_header("Location", "/version")',
        'self.send_header("Content-Length", "0")',
        "self.end_headers()",
    ]
)


@dataclass(frozen=True)
class Broken:
    """One broken commit: what is replaced in which file, the settings that matter, and how the gate must end."""

    file: str
    old: str
    new: str
    reason: str
    staging: str
    """What staging serves afterwards: the `old` revision, the `new` one, or `nothing`."""
    settings: dict[str, object] = field(default_factory=dict)


def checked(**staging: object) -> dict[str, object]:
    return {"targets": {"orchestrator": {"staging": staging}}}


BROKEN = {
    "Dockerfile": Broken(
        "Dockerfile",
        CMD,
        "RUN no-such-compiler --all",
        "the build of orchestrator at [0-9a-f]{40}: expected an image, observed: .*no-such-compiler: not found",
        "old",
    ),
    "dies at start": Broken(
        "Dockerfile",
        CMD,
        'CMD ["sh", "-c", "echo out of luck; exit 3"]',
        r"expected it to stay up, observed exited \(exit status 3\); its log ends: out of luck",
        "nothing",
        # Far longer than the test may take: waiting has to end with the container.
        {"timeouts": {"health": 3600}},
    ),
    "health says 500": Broken(
        SERVICE,
        HEALTHY,
        "self._answer(500, {})",
        "/health: expected 200.* observed 500",
        "new",
        {"timeouts": {"health": 1}},
    ),
    "health redirects": Broken(
        SERVICE,
        HEALTHY,
        REDIRECT,
        "/health: expected 200.* observed 302",
        "new",
        {"timeouts": {"health": 1}},
    ),
    "check fails": Broken(
        CHECK,
        "",
        "print('PASS'); raise SystemExit(1)",
        "the staging check: expected exit status 0, observed 1; it ended with: PASS",
        "new",
    ),
    "check is missing": Broken(
        CHECK,
        "",
        "print('never asked')",
        "the staging check: expected exit status 0, observed 2; it ended with: .*No such file",
        "new",
        checked(check_path="scripts/no_such_check.py"),
    ),
    "check says not ok and ends well": Broken(
        CHECK,
        "",
        "print('1..2'); print('ok 1 - lights'); print('not ok 2 - the till')",
        "the staging check ended with 0, but its TAP says: .*the till",
        "new",
        checked(check_format="tap"),
    ),
}


def replace(copy: Orchestrator, broken: Broken) -> str:
    """Commit the replacement ("" stands for the whole file); return the revision."""
    text = (copy.worktree / broken.file).read_text()
    assert broken.old in text
    return copy.commit({broken.file: text.replace(broken.old, broken.new) if broken.old else broken.new})


def staging_image(copy: Orchestrator) -> str:
    return copy.engine.docker("image", "inspect", "--format", "{{.Id}}", copy.staging_image)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_commit_is_refused_with_the_cause(pipeline: Pipeline, name: str) -> None:
    broken = BROKEN[name]
    before = pipeline.deploy()
    tagged = staging_image(pipeline.copy)
    after = replace(pipeline.copy, broken)
    pipeline.configure(**broken.settings)
    gate = pipeline.gate()
    assert gate.status == 1, gate.output
    assert gate.says(broken.reason), gate.output
    served = {"old": before, "new": after, "nothing": ""}[broken.staging]
    assert (pipeline.staging, pipeline.prod) == (served, before)
    # Only what the hook itself found to be good becomes the staging image; a check's own words are the plugin's matter.
    assert (staging_image(pipeline.copy) == tagged) is ("TAP" not in broken.reason)
    promotion = pipeline.promote()
    assert promotion.status == 1, promotion.output
    assert promotion.says(f"^imagefresh: no complete gate of orchestrator at {after}")
    assert pipeline.prod == before


def test_a_check_that_hangs_is_ended_inside_the_container_too(each_pipeline: Pipeline) -> None:
    pipeline, copy = each_pipeline, each_pipeline.copy
    copy.commit({CHECK: "import time\nprint('patience', flush=True)\ntime.sleep(3600)\n"})
    pipeline.configure(timeouts={"check": 1})
    gate = pipeline.gate()
    assert gate.status == 1, gate.output
    assert gate.says("the staging check: expected an end within CHECK_TIMEOUT=1 s, observed none")
    running = copy.engine.docker("container", "top", copy.staging_container, "-eo", "pid,args")
    assert "orchestrator" in running
    assert "staging_check" not in running
    assert pipeline.prod == ""


EDITED = "src/orchestrator/jobs.py"
SKIPPED = "src/orchestrator/__main__.py"


def test_an_untidy_worktree_passes_and_the_image_holds_the_commit(each_pipeline: Pipeline) -> None:
    pipeline, copy = each_pipeline, each_pipeline.copy
    revision = copy.commit({".gitignore": ".env\n", ".gitattributes": "*.py filter=shout export-ignore\n"})
    copy.git("config", "filter.shout.smudge", "tr a-z A-Z")
    with (copy.worktree / EDITED).open("a") as file:
        file.write("# not committed\n")
    (copy.worktree / "src/orchestrator/untracked.py").write_text("UNTRACKED = True\n")
    (copy.worktree / "src/.env").write_text("PASSWORD=hunter2\n")
    copy.git("update-index", "--skip-worktree", SKIPPED)
    (copy.worktree / SKIPPED).write_text("raise SystemExit('edited')\n")
    gate = pipeline.gate()
    assert gate.status == 0, gate.output
    # git's own name of a file's content, computed again from what is in the container.
    listed = 'cd /app && find src scripts -type f -exec sh -c \'printf "%s %s\\n" "$1" "$(base64 -w 0 "$1")"\' _ {} ";"'
    found = copy.engine.docker("exec", copy.staging_container, "sh", "-c", listed)
    observed = {path: blob(base64.b64decode(content)) for path, content in map(str.split, found.splitlines())}
    tree = copy.git("ls-tree", "-r", "HEAD", "src", "scripts").splitlines()
    assert observed == {line.split()[3]: line.split()[2] for line in tree}
    assert (pipeline.staging, pipeline.prod) == (revision, "")


def blob(content: bytes) -> str:
    """Return the ID that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
