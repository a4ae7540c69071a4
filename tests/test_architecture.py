"""Imports point down: gates, plugin and command line -> run -> adapters -> core. Read from the text of every module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGE = "pytest_imagefresh"
PURE = {"docker", "paramiko", "pytest", "requests", "rich", "click", "subprocess", "os", "socket", "time", "datetime"}
HEAVY_HOMES = {"subprocess": "adapters/command.py", "docker": "adapters/engine.py", "paramiko": "adapters/ssh/"}
SHARED_ADAPTERS = ("command", "dialogue", "host", "ssh")

MODULES = sorted(path.relative_to(ROOT / PACKAGE).as_posix() for path in (ROOT / PACKAGE).rglob("*.py"))
CORE = [name for name in MODULES if name.startswith("core/")]
ADAPTERS = [name for name in MODULES if name.startswith("adapters/")]
GATES = sorted((ROOT / "gates").glob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, also inside functions; those for type checkers only are left out."""
    tree = ast.parse(path.read_text())
    for_types = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(child) for node in for_types for child in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, without the package's own name."""
    return {name.removeprefix(f"{PACKAGE}.") for name in imported(path) if name.startswith(f"{PACKAGE}.")}


@pytest.mark.parametrize("module", CORE)
def test_the_core_is_pure(module: str) -> None:
    names = set(imported(ROOT / PACKAGE / module))
    assert not {name.partition(".")[0] for name in names} & PURE
    assert all(name.startswith("core") for name in own(ROOT / PACKAGE / module))


@pytest.mark.parametrize("module", ADAPTERS)
def test_adapters_know_the_core_and_the_way_to_the_host(module: str) -> None:
    home = module.removeprefix("adapters/").partition("/")[0].removesuffix(".py")
    allowed = ("core", *(f"adapters.{name}" for name in (*SHARED_ADAPTERS, home)))
    known = {name for name in own(ROOT / PACKAGE / module) if name != "adapters"}
    assert all(name.startswith(allowed) for name in known), known


@pytest.mark.parametrize("library", HEAVY_HOMES)
def test_each_way_out_has_one_home(library: str) -> None:
    users = [
        module
        for module in MODULES
        if library in {name.partition(".")[0] for name in imported(ROOT / PACKAGE / module)}
        and not module.startswith(HEAVY_HOMES[library])
    ]
    assert not users


@pytest.mark.parametrize("module", ["core/", "adapters/", "run.py", "shipped.py", "progress.py"])
def test_nothing_below_knows_pytest_hooks_or_the_api(module: str) -> None:
    for name in MODULES:
        if name.startswith(module):
            assert not own(ROOT / PACKAGE / name) & {"plugin", "session", "fixtures", "api", "cli", "cli_operations"}


@pytest.mark.parametrize("path", GATES, ids=lambda path: path.name)
def test_gates_use_the_core_and_the_fixtures_only(path: Path) -> None:
    assert all(name.startswith(("core", "fixtures", "run")) for name in own(path))


@pytest.mark.parametrize("path", [*GATES, *(ROOT / PACKAGE / name for name in MODULES)], ids=lambda path: path.name)
def test_nothing_relies_on_assert(path: Path) -> None:
    assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
