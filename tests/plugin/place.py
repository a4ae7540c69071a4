"""A folder in which a route is run, against the gate or against plain tests."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pytest_imagefresh.core.inventory import declared_tests
from tests.forks import Forks
from tests.gate_folder import Ended, GateFolder
from tests.plugin.routes import PRODUCTION, Route
from tests.support import ROOT, run

EDITED = "test_provenance.py"
STALE = '<testsuites><testsuite tests="1" failures="0" errors="0"><testcase name="old"/></testsuite></testsuites>'
PLAIN_PROVE = """
import pytest

@pytest.fixture
def prove(request):
    def check():
        if request.node.name == {broken!r}:
            raise RuntimeError("broken")
    return check
"""


class Place:
    """A folder for one route; the repo of `shared` is what it gates."""

    def __init__(self, shared: GateFolder, forks: Forks, path: Path, route: Route) -> None:
        self.shared = shared
        self.forks = forks
        self.path = path
        self.route = route
        self.write("pytest.ini", f"[pytest]\n{route.ini}\n")
        self.write("imagefresh.toml", self._settings())
        shutil.copy(shared.path / "fake_host.py", path)

    def write(self, name: str, text: str) -> None:
        """Write one file below the folder."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def _settings(self) -> str:
        shared = (self.shared.path / "imagefresh.toml").read_text()
        return shared.replace('"repos"', f'"{self.shared.repo.parent}"') + self.route.settings

    def edit_settings(self, before: str, after: str) -> None:
        """Replace a text that stands in the settings once."""
        text = (self.path / "imagefresh.toml").read_text()
        assert text.count(before) == 1
        self.write("imagefresh.toml", text.replace(before, after))

    def put_gates(self) -> None:
        """Put the gate tests there, as the route has them."""
        for path in (ROOT / "gates").glob("test_*.py"):
            self._put(path.name, path.read_text())
        self._put_files()

    def put_plain_tests(self) -> None:
        """Put plain tests of the same names there, one of them broken."""
        for path in (ROOT / "gates").glob("test_*.py"):
            tests = [_plain_test(name) for name in declared_tests(path.read_text())]
            self._put(path.name, "\n".join(["import pytest", *tests]))
        self.write("plain_prove.py", PLAIN_PROVE.format(broken=self.route.broken))
        self._put_files()

    def _put(self, name: str, text: str) -> None:
        if self.route.edit is not None and name == EDITED:
            text, changes = re.subn(*self.route.edit, text)
            assert changes, self.route.edit
        self.write(f"gates/{name}", text)

    def _put_files(self) -> None:
        for name, text in self.route.files.items():
            self.write(name, text)

    def gate(self) -> Ended:
        """Run the route as a gate session."""
        gate = ["-p", "fake_host", "--repo", "shop", "--branch", "work"]
        report = ["--junitxml=gate.xml"] if self.route.reports else []
        if self.route.before is not None:
            self._pytest(*gate, *self.route.before)
        if self.route.reports:
            self.write("gate.xml", STALE)
        return self._pytest(*gate, *report, *self.route.options)

    def plain(self) -> Ended:
        """Run the route as a plain session."""
        plain = ["-p", "plain_prove", "-p", "no:imagefresh"]
        if self.route.before is not None:
            self._pytest(*plain, *self.route.before)
        return self._pytest(*plain, *self.route.options)

    def _pytest(self, *options: str) -> Ended:
        _, environment = self.shared.command(faults=self.route.faults)
        # What one worker has compiled the next need not; none of it comes into the folders themselves.
        del environment["PYTHONDONTWRITEBYTECODE"]
        environment["PYTHONPYCACHEPREFIX"] = str(self.shared.path / "pycache")
        environment |= {"PYTHONPATH": f"{ROOT}:{self.path}", "HOME": str(self.path), **self.route.environment}
        argv = ["-c", "pytest.ini", "--rootdir=.", *options, *self.route.tests]
        if not self.route.fresh:
            return Ended(*self.forks.run(argv, cwd=self.path, env=environment))
        command = [sys.executable, *self.route.python, "-m", "pytest", *argv]
        done = run(command, cwd=self.path, env=environment, check=False)
        return Ended(done.returncode, done.stdout + done.stderr)

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all runs and targets in the folder."""
        return [json.loads(path.read_text()) for path in sorted(self.path.rglob("chain.json"))]

    def complete_records(self) -> list[dict[str, Any]]:
        """Return the records of the folder that a promotion would take."""
        return [record for record in self.records() if record["complete"] is not False]

    def problems(self) -> list[str] | None:
        """Return the messages of failures and errors of the JUnit report; None where there is none."""
        path = self.path / "gate.xml"
        if not path.exists():
            return None
        found = ElementTree.parse(path).getroot().iter()
        return [str(each.get("message")) for each in found if each.tag in ("failure", "error")]


def _plain_test(name: str) -> str:
    mark = '@pytest.mark.link("PRODUCTION")\n' if name == PRODUCTION else ""
    return f"\n{mark}def {name}(prove):\n    prove()\n"
