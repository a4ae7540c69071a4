"""What is built, what is in it, and what the checkout's own commands promise."""

from __future__ import annotations

import ast
import configparser
import email
import importlib.metadata
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT, clean_environment, run

GUARDED = """
import pytest

@pytest.mark.docker
def test_without_engine():
    pytest.skip("no engine here")

@pytest.mark.docker
@pytest.mark.skipif(True, reason="not today")
def test_not_even_started():
    pass

def test_needs_no_engine():
    pytest.skip("may be skipped")
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the checkout in a folder of their own, without what was made there."""
    folder = tmp_path_factory.mktemp("checkout") / "project"
    made = [".git", ".venv", ".engine", ".demo", ".cache", ".imagefresh", ".hypothesis", ".*_cache", "__pycache__"]
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*made), symlinks=True)
    return folder


def build(checkout: Path, kind: str, to: Path) -> Path:
    """Build a wheel or sdist without network; returns the one file."""
    run([sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", to], cwd=checkout)
    [built] = to.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that the checkout builds."""
    return zipfile.ZipFile(build(checkout, "wheel", tmp_path_factory.mktemp("wheel")))


def test_the_wheel_holds_gates_and_hook_inside_the_package(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for folder in ("gates", "hooks"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        expected = {f"pytest_imagefresh/{path.relative_to(ROOT)}" for path in files}
        assert expected
        assert expected <= names
    assert "pytest_imagefresh/py.typed" in names


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"pytest_imagefresh", "pytest_imagefresh-0.1.0.dist-info"}


def test_the_checkout_has_gates_and_hooks_at_the_top() -> None:
    assert (ROOT / "gates").is_dir()
    assert (ROOT / "hooks").is_dir()
    assert not (ROOT / "pytest_imagefresh/gates").exists()
    assert not (ROOT / "pytest_imagefresh/hooks").exists()


def test_the_entry_points_name_what_exists(wheel: zipfile.ZipFile) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read("pytest_imagefresh-0.1.0.dist-info/entry_points.txt").decode())
    assert dict(parser["pytest11"]) == {"imagefresh": "pytest_imagefresh.plugin"}
    assert dict(parser["console_scripts"]) == {"imagefresh": "pytest_imagefresh.cli:main"}
    assert {"pytest_imagefresh/plugin.py", "pytest_imagefresh/cli.py"} <= set(wheel.namelist())


def test_the_metadata_says_what_is_supported(wheel: zipfile.ZipFile) -> None:
    metadata = email.message_from_bytes(wheel.read("pytest_imagefresh-0.1.0.dist-info/METADATA"))
    classifiers = metadata.get_all("Classifier") or []
    assert metadata["Requires-Python"] == ">=3.10"
    assert {"Framework :: Pytest", "Typing :: Typed"} <= set(classifiers)
    minors = [int(each.rpartition(".")[2]) for each in classifiers if "Python :: 3." in each]
    assert minors == [10, 11, 12, 13]


def imported_names(path: Path) -> set[str]:
    """Return the top-level names of everything that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def distributions_by_module() -> dict[str, set[str]]:
    """Return the installed distributions by top-level module (Python 3.10's own list lacks most wheels)."""
    found: dict[str, set[str]] = {}
    for distribution in importlib.metadata.distributions():
        for path in distribution.files or []:
            if path.suffix == ".py":
                found.setdefault(path.parts[0].removesuffix(".py"), set()).add(distribution.metadata["Name"])
    return found


def test_what_the_package_imports_is_declared(wheel: zipfile.ZipFile) -> None:
    metadata = email.message_from_bytes(wheel.read("pytest_imagefresh-0.1.0.dist-info/METADATA"))
    required = [each for each in metadata.get_all("Requires-Dist") or [] if "extra ==" not in each]
    declared = {re.split(r"[^A-Za-z0-9._-]", each)[0].replace(".", "-") for each in required}
    modules = [path for folder in ("pytest_imagefresh", "gates") for path in (ROOT / folder).rglob("*.py")]
    imported = set().union(*map(imported_names, modules)) - sys.stdlib_module_names - {"pytest_imagefresh"}
    distributions = distributions_by_module()
    names = {each.lower().replace(".", "-") for name in imported for each in distributions.get(name, [name])}
    # What works with pytest-xdist is loaded only where pytest-xdist is.
    assert names - {"pytest-imagefresh", "pytest-xdist"} <= declared


def test_a_wheel_out_of_the_sdist_is_the_same(checkout: Path, wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    run(["tar", "--extract", "--file", build(checkout, "sdist", tmp_path / "sdist")], cwd=tmp_path / "source")
    [source] = (tmp_path / "source").iterdir()
    second = zipfile.ZipFile(build(source, "wheel", tmp_path / "wheel"))
    assert sorted(second.namelist()) == sorted(wheel.namelist())


def test_an_installed_wheel_works_away_from_the_checkout(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    script = "import pytest_imagefresh, pathlib; print(pathlib.Path(pytest_imagefresh.__file__).parent)"
    env = clean_environment(PYTHONPATH=str(tmp_path / "site"))
    package = Path(run([sys.executable, "-c", script], cwd=tmp_path, env=env).stdout.strip())
    assert package == tmp_path / "site/pytest_imagefresh"
    help_text = run([sys.executable, "-m", "pytest", "--help"], cwd=tmp_path, env=env).stdout
    assert "--gate-reuse" in help_text


def test_a_docker_test_that_skips_fails(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = docker: x\n")
    (tmp_path / "test_guarded.py").write_text(GUARDED)
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.conftest", "-q"]
    done = run(argv, cwd=tmp_path, env=clean_environment(PYTHONPATH=str(ROOT)), check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("1 failed, 1 skipped, 1 error")


def test_make_lists_its_targets() -> None:
    lines = run(["make"], cwd=ROOT).stdout.splitlines()
    assert {"venv", "lint", "test", "demo", "clean"} <= {line.split()[1] for line in lines}


SCRIPTS = [ROOT / ".ci/run", *sorted(ROOT.glob("scripts/*.sh"))]


@pytest.mark.parametrize("path", [str(each.relative_to(ROOT)) for each in SCRIPTS])
def test_scripts_can_be_run(path: str) -> None:
    assert os.access(ROOT / path, os.X_OK)
    assert (ROOT / path).read_text().startswith("#!/usr/bin/env bash\n")
