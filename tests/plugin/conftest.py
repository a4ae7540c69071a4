"""Fixtures of the plugin's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gate_folder import GateFolder
from tests.plugin.forks import Forks


@pytest.fixture
def gate_folder(tmp_path: Path) -> GateFolder:
    """A fresh folder to gate in."""
    return GateFolder(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> GateFolder:
    """A repo and a fake host that many sessions share: none of them changes a commit."""
    return GateFolder(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def forks(shared: GateFolder) -> Iterator[Forks]:
    """The process that sessions are forked from."""
    with Forks(shared.command()[1]) as forks:
        yield forks
