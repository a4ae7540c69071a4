"""Fixtures of the plugin's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forks import Forks
from tests.gate_folder import GateFolder
from tests.support import ROOT, clean_environment


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """The process that sessions are forked from."""
    home = tmp_path_factory.mktemp("forks")
    with Forks(clean_environment(HOME=str(home), PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1")) as forks:
        yield forks


@pytest.fixture
def gate_folder(tmp_path: Path, forks: Forks) -> GateFolder:
    """A fresh folder to gate in."""
    return GateFolder(tmp_path, forks)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> GateFolder:
    """A repo and a fake host that many sessions share: none of them changes a commit."""
    return GateFolder(tmp_path_factory.mktemp("shared"), forks)
