"""Run what must hold on every engine and builder on each of them: `python -m tests.engines [NAME ...]`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

from tests.engines.kinds import KINDS, Kind
from tests.support import ROOT, clean_environment, run

SCRIPT = ROOT / "scripts/engines.sh"
FOLDER = ROOT / ".engines"
START_SECONDS = 900
FACTS = ("{{.Server.Version}}", "{{.Client.Version}}")

# What tests are called is no markup.
console = Console(highlight=False, markup=False)
LEAST_WIDTH = 120


@dataclass(frozen=True)
class Outcome:
    """How the tests ended on one engine."""

    engine: str
    version: str
    client: str
    builder: str
    store: str
    passed: int
    failed: tuple[str, ...]
    """The tests that failed, by name; those that never came to their end are among them."""
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether everything was tried and passed."""
        return self.passed > 0 and not self.failed


def try_engine(kind: Kind) -> Outcome:
    """Start one engine, run its tests there, and end it. Raises RuntimeError where it cannot be had."""
    began = time.monotonic()
    run([SCRIPT, "up", kind.name], env=caller(), timeout=START_SECONDS)
    try:
        inside(kind, ROOT / "scripts/base-image.sh")
        version, client = (inside(kind, "docker", "version", "--format", fact) for fact in FACTS)
        store = inside(kind, "docker", "info", "--format", "{{.Driver}}")
        with tempfile.TemporaryDirectory(prefix="imagefresh-engines-") as folder:
            report = Path(folder) / "report.xml"
            run_tests(kind, report)
            passed, failed = read_report(report, len(kind.tests))
    finally:
        run([SCRIPT, "down", kind.name], env=caller(), timeout=START_SECONDS)
    seconds = time.monotonic() - began
    return Outcome(kind.name, version, client, kind.builder, store, passed, failed, seconds)


def caller() -> dict[str, str]:
    """Return the environment with the caller's own engine, which scripts/engine.sh takes where it is given."""
    given = {name: os.environ[name] for name in ("DOCKER_HOST", "DOCKER_CONFIG") if name in os.environ}
    return clean_environment(**given)


def inside(kind: Kind, *argv: str | Path) -> str:
    """Return what a command prints that runs on the engine's network."""
    return run([SCRIPT, "run", kind.name, *argv], env=caller(), timeout=START_SECONDS).stdout.strip()


def run_tests(kind: Kind, report: Path) -> None:
    """Run the tests of one engine, two at a time, with everything they print; the report tells how they ended."""
    pytest = [sys.executable, "-m", "pytest", "--timeout=300", "-q", "-n", "2", f"--junitxml={report}"]
    console.rule(kind.name)
    subprocess.run([SCRIPT, "run", kind.name, *pytest, *kind.tests], cwd=ROOT, env=caller(), check=False)


def read_report(report: Path, expected: int) -> tuple[int, tuple[str, ...]]:
    """Return how many tests passed, and the names of those that did not."""
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    bad = {case.attrib["name"] for case in cases if len(case.findall("*")) > len(case.findall("properties"))}
    names = {case.attrib["name"] for case in cases}
    missing = expected - len(names)
    return len(names - bad), (*sorted(bad), *(["tests that were not even run"] if missing > 0 else []))


def render(outcomes: list[Outcome]) -> Table:
    """Return the table."""
    table = Table("engine", "version", "client", "builder", "store", "passed", "failed", "s")
    for each in outcomes:
        row = [each.engine, each.version, each.client, each.builder, each.store, str(each.passed)]
        table.add_row(*row, "; ".join(each.failed) or "0", f"{each.seconds:.0f}", style=None if each.ok else "red")
    return table


def main(names: list[str]) -> int:
    """Try the named engines, all of them without a name. Return 0 exactly when everything passed on each."""
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        console.print(f"no engine is called {unknown[0]}; there are: {', '.join(KINDS)}")
        return 2
    outcomes = [try_engine(KINDS[name]) for name in names or KINDS]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "engines.json").write_text(json.dumps([asdict(each) for each in outcomes], indent=2) + "\n")
    console.print(render(outcomes), width=max(console.width, LEAST_WIDTH))
    good = sum(each.ok for each in outcomes)
    console.print(f"{good} of {len(outcomes)} engines ended as expected")
    return 0 if good == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
