"""The gate under pytest-xdist: one run ID for all workers, and all items of one compose folder on one worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from pytest_imagefresh.core.chain import Ledger, Outcome, Retraction
from pytest_imagefresh.core.identity import RunId

_RUN_ID = "imagefresh_run_id"
_INVENTORY = "imagefresh_inventory"


def is_worker(config: pytest.Config) -> bool:
    """Say whether this process is a worker of pytest-xdist: it proves, and the controller decides."""
    return hasattr(config, "workerinput")


def given_run_id(config: pytest.Config) -> RunId | None:
    """Return the run ID that the controller chose, in a worker; None elsewhere."""
    return RunId(config.workerinput[_RUN_ID]) if hasattr(config, "workerinput") else None


def give_run_id(node: Any, run_id: RunId) -> None:
    """Let a worker that is about to start know the run ID."""
    node.workerinput[_RUN_ID] = run_id.text


def send_inventory(config: pytest.Config, ledger: Ledger) -> None:
    """Let the controller know, at the end of a worker, which gate tests exist and which were left out."""
    config.workeroutput[_INVENTORY] = {  # type: ignore[attr-defined]
        "expected": sorted(ledger.expected),
        "declared": sorted(ledger.declared),
        "weaknesses": ledger.weaknesses,
        # What a worker found at its end has come with no report.
        "retracted": [each.as_record() for each in ledger.retracted],
        "left_out": sorted(name for name, outcome in ledger.outcomes.items() if outcome is Outcome.LEFT_OUT),
    }


def take_inventory(node: Any, ledger: Ledger) -> None:
    """Take over a worker's inventory. One that ended without: nobody knows which gate tests it left out."""
    sent = getattr(node, "workeroutput", {}).get(_INVENTORY)
    if sent is None:
        ledger.weaken(
            f"worker {node.gateway.id} ended early, and did not say which gate tests exist; run the gate again"
        )
        return
    ledger.expected.update(sent["expected"])
    ledger.declared.update(sent["declared"])
    ledger.weaken(*sent["weaknesses"])
    for record in sent["retracted"]:
        ledger.retract(Retraction.from_record(record))
    for node_id in sent["left_out"]:
        ledger.note(node_id, Outcome.LEFT_OUT)


def scheduler(config: pytest.Config, log: Any, folders: Mapping[str, str]) -> Any:
    """Return a scheduler that keeps all gate items of one target, in their order, on one worker.

    `folders` maps each target to its compose folder. Targets of one folder share its lock, and so a worker: on two of
    them one would wait for the other to end.
    """
    from xdist.scheduler import LoadScopeScheduling

    class TargetScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            target = target_of(nodeid, tuple(folders))
            return f"compose folder {folders[target]}" if target else str(super()._split_scope(nodeid))

        def remove_node(self, node: Any) -> str | None:
            """Return the test that a worker crashed in. It is not tried again: it would rebuild and crash once more."""
            units = self.assigned_work[node].values()
            crashed = next(((unit, name) for unit in units for name, done in unit.items() if not done), None)
            if crashed is not None:
                unit, name = crashed
                unit[name] = True
            super().remove_node(node)
            return None if crashed is None else name

    return TargetScheduling(config, log)


def target_of(node_id: str, targets: Sequence[str]) -> str:
    """Return the target that a node ID names among its parameters, the longest that fits, or ""."""
    _, bracket, parameters = node_id.removesuffix("]").partition("[")
    padded = f"-{parameters}-"
    fitting = [name for name in targets if bracket and f"-{name}-" in padded]
    return max(fitting, key=len, default="")
