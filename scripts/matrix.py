"""Run the plugin's tests on every supported Python found here, each with the oldest supported and the newest pytest.

    scripts/matrix.py [--python 3.12] [--pytest oldest] [TEST...]

Which versions these are is read from pyproject.toml. Each cell has an environment of its own below .cache/matrix/, kept
for the next time, and its whole output beside it. Exit status 0 exactly when at least one cell ran and all passed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
CELLS = ROOT / ".cache" / "matrix"
TESTS = ("tests/core", "tests/plugin", "tests/test_architecture.py", "tests/test_matrix.py", "tests/test_packaging.py")
_PYTEST = ("-m", "pytest", "-q", "-n", "2", "-m", "not docker", "--timeout=300", "-p", "no:cacheprovider")
LAST_LINES = 40
PROBE_SECONDS = 30
CELL_SECONDS = 7200
console = Console(highlight=False)


@dataclass(frozen=True)
class Cell:
    """One Python with one pytest."""

    python: str
    """Its version, `3.12`."""
    interpreter: str
    pytest: str
    """oldest or newest."""
    requirement: tuple[str, ...]
    """What pip is told about pytest."""

    def path(self, ending: str = "") -> Path:
        """The environment of this cell, or what lies in or beside it: `/bin/python`, `.log`."""
        return Path(f"{CELLS}/python{self.python}-pytest-{self.pytest}{ending}")


@dataclass(frozen=True)
class Outcome:
    """How one cell ended."""

    cell: Cell
    versions: str
    """Full versions of Python and pytest, as the cell itself tells them."""
    passed: int
    failed: int
    seconds: float
    status: int

    @property
    def ok(self) -> bool:
        """Whether tests ran on the versions that were meant, and nothing failed."""
        return self.status == 0 and self.passed > 0 and self.failed == 0 and self._as_meant()

    def _as_meant(self) -> bool:
        python, _, observed = self.versions.partition(" ")
        exact = [word.removeprefix("pytest==").removesuffix("*") for word in self.cell.requirement if "==" in word]
        return python.startswith(f"{self.cell.python}.") and bool(observed) and observed.startswith(tuple(exact) or "")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the matrix and print a table; return the exit status."""
    project = (ROOT / "pyproject.toml").read_text()
    pythons, pytests = supported_pythons(project), pytest_requirements(project)
    options = _options(argv, pythons, list(pytests))
    found = {version: find_interpreter(version) for version in options.python or pythons}
    cells = [
        Cell(version, interpreter, name, pytests[name])
        for version, interpreter in found.items()
        if interpreter
        for name in options.pytest or pytests
    ]
    outcomes = [run_cell(cell, options.tests) for cell in cells]
    console.print(table(outcomes, [version for version, interpreter in found.items() if not interpreter]))
    return exit_status(outcomes)


def exit_status(outcomes: Sequence[Outcome]) -> int:
    """Return 0 exactly when at least one cell ran and all passed."""
    return 0 if outcomes and all(outcome.ok for outcome in outcomes) else 1


def supported_pythons(project: str) -> list[str]:
    """Return the Python versions that the text of a pyproject.toml claims, oldest first."""
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)


def pytest_requirements(project: str) -> dict[str, tuple[str, ...]]:
    """Return what pip is told for the oldest pytest that the project allows, and for the newest there is."""
    oldest = re.search(r'"pytest>=([\d.]+)"', project)
    if oldest is None:
        raise SystemExit("matrix: pyproject.toml names no oldest pytest; expected a dependency pytest>=VERSION")
    return {"oldest": (f"pytest=={oldest[1]}.*",), "newest": ("--upgrade", "pytest")}


def find_interpreter(version: str) -> str:
    """Return a Python of this version that can make environments, or "" where there is none.

    Looked for as python3.X in every folder of PATH, then among the versions of pyenv, the newest first.
    """
    return next((real for candidate in _candidates(version) if (real := _probe(candidate, version))), "")


def _candidates(version: str) -> Iterator[str]:
    name = f"python{version}"
    # Every folder, not the first that has one: a version manager's stand-in may be there and not work.
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        found = shutil.which(name, path=folder) if folder else None
        if found:
            yield found
    pyenv = shutil.which("pyenv")
    if pyenv:
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
        versions = Path(root.stdout.strip() or os.devnull) / "versions"
        yield from map(str, sorted(versions.glob(f"{version}*/bin/{name}"), key=_by_patch, reverse=True))


def _by_patch(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.parts[-3])]


def _probe(python: str, version: str) -> str:
    """Return the path of the real interpreter, or "" where it is of another version or cannot make environments."""
    question = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2], sys.executable)"
    try:
        done = subprocess.run(
            [python, "-c", question], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    observed, _, executable = done.stdout.strip().partition(" ")
    return executable if done.returncode == 0 and observed == version else ""


def run_cell(cell: Cell, tests: Sequence[str]) -> Outcome:
    """Make or refresh the environment of one cell and run the tests in it; show the end of its output if that fails."""
    console.print(f"[bold]Python {cell.python}[/bold], {cell.pytest} pytest")
    CELLS.mkdir(parents=True, exist_ok=True)
    report, log = cell.path(".xml"), cell.path(".log")
    for old in (report, log):
        old.unlink(missing_ok=True)
    begun = time.monotonic()
    made = _run(log, [str(ROOT / "scripts/make-venv.sh"), str(cell.path()), cell.interpreter, *cell.requirement])
    status = made or _run(log, [str(cell.path("/bin/python")), *_PYTEST, f"--junitxml={report}", *tests])
    passed, failed = read_counts(report)
    outcome = Outcome(cell, _versions(cell), passed, failed, time.monotonic() - begun, status)
    if not outcome.ok:
        console.print("\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:]), markup=False)
    return outcome


def _run(log: Path, argv: Sequence[str]) -> int:
    """Run a command in the project's folder, its output added to the log; return its exit status."""
    # Options and paths of the caller must not decide what a cell runs.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHON", "VIRTUAL_"))}
    # Compose has no package for Python 3.10; the one of this script's own environment serves there.
    env["PATH"] = os.pathsep.join([env.get("PATH", os.defpath), os.path.dirname(sys.executable)])
    with log.open("ab") as sink:
        child = subprocess.Popen(
            argv, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )
        try:
            return child.wait(CELL_SECONDS)
        except subprocess.TimeoutExpired:
            sink.write(f"matrix: not at its end after {CELL_SECONDS} s, ended\n".encode())
            return 124
        finally:
            # Too slow, or the caller gave up: the workers and sessions it started end with it.
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _versions(cell: Cell) -> str:
    """Return the full versions of Python and pytest in a cell, "" where it could not be made."""
    question = "import platform, pytest; print(platform.python_version(), pytest.__version__)"
    python = cell.path("/bin/python")
    if not python.exists():
        return ""
    done = subprocess.run(
        [python, "-c", question], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False, cwd=CELLS
    )
    return done.stdout.strip()


def read_counts(report: Path) -> tuple[int, int]:
    """Return how many tests passed and how many did not, out of a JUnit report; (0, 0) where there is none."""
    if not report.exists():
        return 0, 0
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = sum(1 for case in cases if len(case) and case[0].tag in ("failure", "error"))
    return sum(1 for case in cases if not len(case)), failed


def table(outcomes: Sequence[Outcome], missing: Sequence[str]) -> Table:
    """Return what people see at the end: one row per cell, and one per Python that is not here."""
    made = Table("Python", "pytest", "", "passed", "failed", "seconds", title="the plugin's tests")
    for outcome in outcomes:
        python, _, pytest_version = outcome.versions.partition(" ")
        word = "[green]passed[/green]" if outcome.ok else f"[red]failed, exit {outcome.status}[/red]"
        counts = (str(outcome.passed), str(outcome.failed), f"{outcome.seconds:.0f}")
        made.add_row(python or outcome.cell.python, pytest_version or outcome.cell.pytest, word, *counts)
    for version in missing:
        made.add_row(version, "", "not found here", "", "", "")
    return made


def _options(argv: Sequence[str] | None, pythons: Sequence[str], pytests: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--python", action="append", choices=pythons, help="only this Python; may be given again")
    parser.add_argument("--pytest", action="append", choices=pytests, help="only this pytest; may be given again")
    parser.add_argument("tests", nargs="*", default=TESTS, help=f"what to run instead of {' '.join(TESTS)}")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
