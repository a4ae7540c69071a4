"""Somebody interferes while the gate runs: at its first question to the hook after the rebuild."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.pipeline import Pipeline
from tests.support import Orchestrator

ONCE = 'if [[ "$1" == --verify && ! -e {flag} ]]; then : >{flag}; {action} >/dev/null 2>&1; fi'

Action = Callable[[Orchestrator], str]


def docker(copy: Orchestrator, words: str) -> str:
    return f"docker --host {copy.engine.docker_host} {words}"


def commit(copy: Orchestrator) -> str:
    identity = "-c user.name=Ada -c user.email=ada@example.org"
    return f"git -C {copy.worktree} {identity} commit --allow-empty --message later"


ACTIONS: dict[str, tuple[Action, str]] = {
    "production is restarted": (
        lambda copy: docker(copy, f"restart --time 0 {copy.prod_container}"),
        "production changed while the gate ran: it was ",
    ),
    "production's image is tagged anew": (
        lambda copy: docker(copy, f"tag {copy.staging_image} {copy.prod_image}"),
        "production changed while the gate ran: it was ",
    ),
    "production is given another restart policy": (
        lambda copy: docker(copy, f"update --restart no {copy.prod_container}"),
        "production changed while the gate ran: it was ",
    ),
    "production is put on another network": (
        lambda copy: docker(copy, f"network connect bridge {copy.prod_container}"),
        "production changed while the gate ran: it was ",
    ),
    "staging is restarted": (
        lambda copy: docker(copy, f"restart --time 0 {copy.staging_container}"),
        "the staging container is [0-9a-f]{64} since .*, expected [0-9a-f]{64} since ",
    ),
    "staging is paused": (
        lambda copy: docker(copy, f"pause {copy.staging_container}"),
        "is paused with 0 restarts, expected running with none",
    ),
    "the branch moves on": (
        commit,
        "branch feature/x of orchestrator is [0-9a-f]{40}, expected [0-9a-f]{40}; it moved",
    ),
    "the branch is left": (
        lambda copy: f"git -C {copy.worktree} checkout --detach",
        "branch feature/x of orchestrator is not checked out in any worktree",
    ),
    "the staging tag is moved": (
        lambda copy: docker(copy, f"tag {copy.prod_image} {copy.staging_image}"),
        "the hook refuses the validated image: .* expected sha256:[0-9a-f]{64}, observed sha256:[0-9a-f]{64}",
    ),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_interference_during_the_gate_refuses(pipeline: Pipeline, name: str) -> None:
    copy, (action, reason) = pipeline.copy, ACTIONS[name]
    before = pipeline.deploy()
    copy.commit({"src/orchestrator/NEWS": "newer"})
    pipeline.wrap_hook(ONCE.format(flag=pipeline.folder / "interfered", action=action(copy)))
    gate = pipeline.gate()
    assert (pipeline.folder / "interfered").exists()
    assert gate.status == 1, gate.output
    assert gate.says(reason), gate.output
    promotion = pipeline.promote()
    assert promotion.status == 1, promotion.output
    assert pipeline.prod == before
