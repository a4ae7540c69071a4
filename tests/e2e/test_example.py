"""The example service on a real engine: what the gate's own tests and the demo rely on."""

from __future__ import annotations

import time
import urllib.error
from pathlib import Path

import pytest

from tests.conftest import MakeOrchestrator
from tests.support import Orchestrator, ask


def wait_until_ready(copy: Orchestrator, port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            ask(port, "/ready")
        except OSError:
            if time.monotonic() >= deadline:
                logs = copy.compose("logs", check=False).stdout
                raise RuntimeError(f"nothing got ready on port {port}: {logs}") from None
            time.sleep(0.05)
        else:
            return


@pytest.fixture
def staging(orchestrator: MakeOrchestrator) -> Orchestrator:
    """A copy whose staging container runs its first commit."""
    copy = orchestrator()
    copy.start_staging(copy.build_image(copy.staging_image))
    wait_until_ready(copy, copy.staging_port)
    return copy


def run_check(copy: Orchestrator, mode: str) -> tuple[int, list[str]]:
    script = ["python3", "scripts/staging_check.py", "--mode", mode]
    done = copy.engine.run("exec", copy.staging_container, *script, check=False)
    return done.returncode, done.stdout.splitlines()


def results(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith(("ok ", "not ok "))]


def test_serves_the_revision_that_it_was_built_from(staging: Orchestrator) -> None:
    about = ask(staging.staging_port, "/version")
    assert about == {"service": "orchestrator", "revision": staging.revision, "role": "staging"}


def test_is_healthy_before_it_is_ready(staging: Orchestrator) -> None:
    slow = staging.compose_dir / "compose.override.yaml"
    slow.write_text("services: {orchestrator-staging: {environment: {WARMUP_SECONDS: '3600'}}}\n")
    staging.start_staging(staging.staging_image)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            assert ask(staging.staging_port, "/health") == {"status": "ok"}
            break
        except OSError:
            time.sleep(0.05)
    with pytest.raises(urllib.error.HTTPError, match="503"):
        ask(staging.staging_port, "/ready")


def test_ends_by_itself_on_sigterm(staging: Orchestrator) -> None:
    staging.engine.docker("stop", "--time", "30", staging.staging_container)
    state = staging.engine.docker("inspect", "--format", "{{.State.ExitCode}}", staging.staging_container)
    assert state == "0"  # 137 would be the engine's SIGKILL after the grace period


@pytest.mark.parametrize(("mode", "count"), [("stub", 4), ("full", 7)])
def test_staging_check_passes(staging: Orchestrator, mode: str, count: int) -> None:
    status, lines = run_check(staging, mode)
    assert lines[:2] == ["TAP version 13", f"1..{count}"]
    assert [line.split(" - ")[0] for line in results(lines)] == [f"ok {number}" for number in range(1, count + 1)]
    assert status == 0


BREAKS = {
    "health": ("service.py", '{"status": "ok"}', '{"status": "meh"}', "not ok 1"),
    "revision": ("service.py", '"revision": revision', '"revision": "0" * 40', "not ok 3"),
    "role": ("service.py", '"role": role', '"role": "production"', "not ok 4"),
    "cheerful": ("service.py", "self._answer(404", "self._answer(200", "not ok 5"),
    "steps": ("jobs.py", "job.done.append(step)", "job.done.insert(0, step)", "not ok 6"),
    "bad job": ("service.py", "isinstance(step, str)", "True", "not ok 7"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_staging_check_fails_when_the_service_is_broken(orchestrator: MakeOrchestrator, name: str) -> None:
    file, old, new, verdict = BREAKS[name]
    copy = orchestrator()
    path = Path("src/orchestrator") / file
    source = (copy.worktree / path).read_text()
    assert old in source
    copy.commit({str(path): source.replace(old, new)})
    copy.start_staging(copy.build_image(copy.staging_image))
    wait_until_ready(copy, copy.staging_port)
    status, lines = run_check(copy, "full")
    assert [line.split(" - ")[0] for line in results(lines) if line.startswith("not ok")] == [verdict]
    assert len(results(lines)) == 7
    assert status == 1


def test_staging_check_fails_when_nothing_answers(staging: Orchestrator) -> None:
    argv = ["run", "--rm", "--entrypoint", "python3", staging.staging_image, "scripts/staging_check.py"]
    done = staging.engine.run(*argv, check=False)
    assert [line[:8] for line in results(done.stdout.splitlines())] == ["not ok 1", "not ok 2", "not ok 3", "not ok 4"]
    assert done.returncode == 1


def test_staging_check_fails_on_an_image_without_revision(orchestrator: MakeOrchestrator) -> None:
    copy = orchestrator()
    copy.start_staging(copy.build_image(copy.staging_image, ""))
    wait_until_ready(copy, copy.staging_port)
    status, lines = run_check(copy, "stub")
    assert status == 1
    assert any(line.startswith("not ok 3") for line in lines)


def test_changes_no_file_of_its_image(staging: Orchestrator) -> None:
    run_check(staging, "full")
    assert staging.engine.docker("diff", staging.staging_container) == ""


def test_production_cannot_start_before_a_promotion(orchestrator: MakeOrchestrator) -> None:
    done = orchestrator().compose("up", "--detach", "orchestrator", check=False)
    assert done.returncode != 0
    assert "unpromoted:run-deploy-hook" in done.stderr


def test_production_runs_what_is_pinned_beside_staging(staging: Orchestrator) -> None:
    first = staging.revision
    staging.start_prod(staging.engine.docker("image", "inspect", "--format", "{{.Id}}", staging.staging_image))
    second = staging.commit({"src/orchestrator/extra.py": "NEW = True\n"})
    staging.start_staging(staging.build_image(staging.staging_image))
    for port in (staging.staging_port, staging.prod_port):
        wait_until_ready(staging, port)
    assert ask(staging.prod_port, "/version") == {"service": "orchestrator", "revision": first, "role": "production"}
    assert ask(staging.staging_port, "/version")["revision"] == second


def test_two_copies_run_side_by_side(staging: Orchestrator, orchestrator: MakeOrchestrator) -> None:
    other = orchestrator()
    other.start_staging(other.build_image(other.staging_image))
    wait_until_ready(other, other.staging_port)
    assert ask(staging.staging_port, "/version")["revision"] == staging.revision
    assert ask(other.staging_port, "/version")["revision"] == other.revision
    assert other.revision != staging.revision


def test_a_copy_leaves_nothing_on_the_engine(staging: Orchestrator) -> None:
    image = staging.build_image(f"elsewhere-{staging.project}:1", staging.commit({"src/new.py": ""}))
    staging.start_prod(image)
    protecting = staging.engine.docker("create", image)
    before = staging.leftovers()
    assert len(before["container"]) == 3
    assert protecting in before["container"]
    assert image in before["image"]
    assert before["network"]
    staging.remove()
    assert not any(staging.leftovers().values())
    assert staging.engine.run("image", "inspect", image, check=False).returncode != 0
