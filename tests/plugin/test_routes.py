"""Every route by which a session can end green although the gate is not proven: none of them passes the gate."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pytest_imagefresh.core.inventory import declared_tests
from tests.gate_folder import Ended, GateFolder
from tests.plugin.routes import HARMLESS, PRODUCTION, ROUTES, Route
from tests.support import ROOT, run

EDITED = "test_provenance.py"
STALE = '<testsuites><testsuite name="pytest" tests="1" failures="0" errors="0"><testcase name="old"/></testsuite></testsuites>'
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
    """A folder in which one route is run, against the gate or against plain tests."""

    def __init__(self, shared: GateFolder, path: Path, route: Route) -> None:
        self.shared = shared
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
        places = f"{ROOT}:{self.path}"
        environment |= {"PYTHONPATH": places, "HOME": str(self.path), **self.route.environment}
        command = [sys.executable, *self.route.python, "-m", "pytest", "-c", "pytest.ini", "--rootdir=.", *options]
        done = run([*command, *self.route.tests], cwd=self.path, env=environment, check=False)
        return Ended(done.returncode, done.stdout + done.stderr)

    def complete_records(self) -> list[Path]:
        """Return the records of the folder that a promotion would take."""
        return [path for path in self.path.rglob("chain.json") if json.loads(path.read_text())["complete"] is not False]

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


Here = Callable[[Route], Place]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> GateFolder:
    """The repo and the fake host that all routes share: none of them changes a commit."""
    return GateFolder(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def here(shared: GateFolder, tmp_path: Path) -> Here:
    """A function that returns the place of a route."""
    return lambda route: Place(shared, tmp_path, route)


def by_name(routes: list[Route]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("route", routes, ids=lambda route: route.name)


@by_name(ROUTES)
def test_no_route_passes_the_gate(here: Here, route: Route) -> None:
    place = here(route)
    place.put_gates()
    ended = place.gate()
    assert ended.status in route.statuses, ended
    assert place.complete_records() == [], ended
    if route.blind:
        return
    assert ended.status != 0, ended
    assert ended.says(route.says), ended
    problems = place.problems()
    if problems is not None:
        assert problems, ended
        assert not [text for text in problems if not text or text.startswith(("Traceback", "None"))]
        if ended.status == 10:
            assert any("the gate is not complete" in text for text in problems), problems


@by_name([route for route in ROUTES if route.plain])
def test_the_route_is_a_hole_in_plain_pytest(here: Here, route: Route) -> None:
    place = here(route)
    place.put_plain_tests()
    ended = place.plain()
    assert ended.status == 0, ended


@by_name(HARMLESS)
def test_what_is_harmless_still_passes(here: Here, route: Route) -> None:
    place = here(route)
    place.put_gates()
    ended = place.gate()
    assert ended.status == 0, ended
    assert place.complete_records(), ended
    assert not place.problems(), ended


def test_the_tables_hold_what_they_promise() -> None:
    names = [route.name for route in [*ROUTES, *HARMLESS]]
    assert len(names) == len(set(names))
    assert len(ROUTES) >= 100
    assert len(HARMLESS) >= 15
    assert sum(route.plain for route in ROUTES) >= 100
    assert [route.name for route in ROUTES if 0 in route.statuses and not route.blind] == []
