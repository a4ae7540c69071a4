"""Fixtures of the plugin's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gate_folder import GateFolder


@pytest.fixture
def gate_folder(tmp_path: Path) -> GateFolder:
    """A fresh folder to gate in."""
    return GateFolder(tmp_path)
