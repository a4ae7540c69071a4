"""Fixtures for the tests of the hook: a pretended host that records every call, and a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakeOrchestrator
from tests.hook.harness import PretendedHost, RealHost


@pytest.fixture
def pretended(tmp_path: Path) -> PretendedHost:
    """A host whose docker and curl only pretend; staging and production of one repo on it."""
    return PretendedHost(tmp_path)


@pytest.fixture
def real(orchestrator: MakeOrchestrator, tmp_path: Path) -> RealHost:
    """A copy of the example service on a real engine, and a hook installed for that engine."""
    return RealHost(orchestrator(), tmp_path / "hook")
