"""scripts/matrix.py: which Pythons it finds, what it makes of a cell's report, and that nothing run is no pass."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts import matrix
from tests.support import ROOT

THIS = f"{sys.version_info[0]}.{sys.version_info[1]}"


def put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, *scripts: str) -> None:
    """Let PATH hold one folder per script, each with a python3.X of this version that runs it."""
    folders = []
    for place, script in enumerate(scripts):
        command = folder / str(place) / f"python{THIS}"
        command.parent.mkdir()
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
        folders.append(str(command.parent))
    monkeypatch.setenv("PATH", ":".join(folders))


def test_a_stand_in_that_does_not_work_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = f'exec {sys.executable} "$@"'
    put_on_path(tmp_path, monkeypatch, "exit 127", "echo 3.9 /nowhere", "echo nonsense", real)
    assert matrix.find_interpreter(THIS) == sys.executable


@pytest.mark.parametrize("script", ["exit 127", "echo 3.9 /nowhere", f"echo {THIS} /nowhere; exit 1", ":"])
def test_what_is_no_such_python_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    put_on_path(tmp_path, monkeypatch, script)
    assert matrix.find_interpreter(THIS) == ""


def test_a_python_of_pyenv_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for patch in ("2", "10"):
        real = tmp_path / "root" / "versions" / f"{THIS}.{patch}" / "bin" / f"python{THIS}"
        real.parent.mkdir(parents=True)
        real.write_text(f"#!/bin/sh\necho {THIS} {real}\n")
        real.chmod(0o755)
    pyenv = tmp_path / "bin" / "pyenv"
    pyenv.parent.mkdir()
    pyenv.write_text(f"#!/bin/sh\necho {tmp_path}/root\n")
    pyenv.chmod(0o755)
    monkeypatch.setenv("PATH", str(pyenv.parent))
    assert matrix.find_interpreter(THIS) == str(tmp_path / "root" / "versions" / f"{THIS}.10" / "bin" / f"python{THIS}")


def test_the_versions_are_those_of_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert matrix.supported_pythons(project) == ["3.10", "3.11", "3.12", "3.13"]
    assert matrix.pytest_requirements(project) == {"oldest": ("pytest==8.2.*",), "newest": ("--upgrade", "pytest")}


CELL = matrix.Cell("3.12", "/usr/bin/python3.12", "oldest", ("pytest==8.2.*",))
GOOD = matrix.Outcome(CELL, "3.12.1 8.2.2", passed=5, failed=0, seconds=1.0, status=0)


def test_cells_that_passed_are_a_pass() -> None:
    assert matrix.exit_status([GOOD, GOOD]) == 0


@pytest.mark.parametrize(
    "change",
    [{"failed": 1}, {"status": 1}, {"passed": 0}, {"versions": ""}, {"versions": "3.12.1 9.0.0"}],
    ids=str,
)
def test_any_single_bad_cell_is_a_failure(change: dict[str, object]) -> None:
    bad = matrix.Outcome(**{**vars(GOOD), **change})
    assert matrix.exit_status([GOOD, bad]) == 1


def test_nothing_run_is_a_failure() -> None:
    assert matrix.exit_status([]) == 1


def test_a_report_is_counted_case_by_case(tmp_path: Path) -> None:
    report = tmp_path / "cell.xml"
    assert matrix.read_counts(report) == (0, 0)
    cases = "<testcase/><testcase><failure/></testcase><testcase><error/></testcase><testcase><skipped/></testcase>"
    report.write_text(f"<testsuites><testsuite>{cases}<testcase/></testsuite></testsuites>")
    assert matrix.read_counts(report) == (2, 2)
