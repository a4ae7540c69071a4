"""Every guard that `make mutants` takes out stands where the list says: one that does not would try nothing."""

from __future__ import annotations

import pytest

from tests.faults.guards import GUARDS, Guard
from tests.support import ROOT


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_stands_once_in_its_file(guard: Guard) -> None:
    assert (ROOT / guard.file).read_text().count(guard.text) == 1
    assert guard.without != guard.text


def test_guards_are_told_apart_by_name() -> None:
    assert len({guard.name for guard in GUARDS}) == len(GUARDS)
