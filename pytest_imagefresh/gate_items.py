"""Which tests belong to the gate, and what a gates folder declares."""

from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType

import pytest

from pytest_imagefresh.core.chain import Link
from pytest_imagefresh.core.inventory import declared_tests

_TEST_FILES = ("test_*.py", "*_test.py")
_SHIPPED_GATES = ("test_staging_fresh.py", "test_provenance.py")


def is_gate(item: pytest.Item) -> bool:
    """Say whether a test belongs to the complete gate: marked `gate`, or below a gates folder."""
    return item.get_closest_marker("gate") is not None or gates_folder_of(item.path.parent) is not None


def bears_gate_mark(module: pytest.Module) -> bool:
    """Say whether a module or anything in it is marked `gate`."""
    try:
        members = [module.obj, *vars(module.obj).values()]
    except (pytest.Collector.CollectError, pytest.skip.Exception):
        return False  # pytest reports it when it collects the module
    marks = [
        getattr(member, "pytestmark", [])
        for member in members
        if isinstance(member, (ModuleType, type)) or callable(member)
    ]
    return any(mark.name == "gate" for each in marks for mark in (each if isinstance(each, list) else [each]))


@functools.cache
def gates_folder_of(folder: Path) -> Path | None:
    """Return the gates folder that a folder is or lies in: the one that holds the shipped gates."""
    for place in [folder, *folder.parents]:
        if all((place / name).is_file() for name in _SHIPPED_GATES):
            return place
    return None


@functools.cache
def declared_in(path: Path) -> tuple[str, ...]:
    """Return the names of the tests that a file declares, in order; none where it is not Python."""
    try:
        return tuple(declared_tests(path.read_text(encoding="utf-8")))
    except (OSError, SyntaxError, ValueError):
        return ()  # pytest itself ends with a collection error


def register_below(node: pytest.Collector, holder: ModuleType) -> None:
    """Make the fixtures of a module visible to the items below one collector, and to no others."""
    manager = node.session._fixturemanager
    try:
        manager.parsefactories(holder=holder, node=node)
    except TypeError:
        # pytest before 9.1 knows the visibility by node ID only, and overlooks a holder that it has seen before.
        again = ModuleType(holder.__name__)
        vars(again).update(vars(holder))
        manager.parsefactories(again, node.nodeid)


def link_of(item: pytest.Item) -> Link | None:
    """Return the link that a gate test proves; None for a user's own. Raises ConfigError for any other."""
    marker = item.get_closest_marker("link")
    return Link.named(str(marker.args[0])) if marker else None


def gate_files(folder: Path) -> list[Path]:
    """Return the test files of a gates folder, in order."""
    return sorted({path for pattern in _TEST_FILES for path in folder.rglob(pattern)})
