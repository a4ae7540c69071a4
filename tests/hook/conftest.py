"""Fixtures for the tests of the hook: a pretended host that records every call, and a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakeOrchestrator
from tests.hook.crash import Crashing
from tests.hook.desk import Desk
from tests.hook.harness import PretendedHost, RealHost


@pytest.fixture
def pretended(tmp_path: Path) -> PretendedHost:
    """A host whose docker and curl only pretend; staging and production of one repo on it."""
    return PretendedHost(tmp_path)


@pytest.fixture
def crashing(pretended: PretendedHost, tmp_path: Path) -> Crashing:
    """The same host, on which the hook can be killed anywhere."""
    real = {"docker": pretended.tools / "docker", "curl": pretended.tools / "curl"}
    system = {tool: Path("/usr/bin", tool) for tool in ("mv", "rm", "sync")}
    return Crashing(tmp_path / "crashing", {**real, **system}, engine="unix:///nowhere.sock")


@pytest.fixture
def real(orchestrator: MakeOrchestrator, tmp_path: Path) -> RealHost:
    """A copy of the example service on a real engine, and a hook installed for that engine."""
    return RealHost(orchestrator(), tmp_path / "hook")


@pytest.fixture
def desk(pretended: PretendedHost, tmp_path: Path) -> Desk:
    folder = tmp_path / "desk"
    folder.mkdir()
    return Desk(pretended, folder)
