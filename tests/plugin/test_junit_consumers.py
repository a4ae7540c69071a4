"""The JUnit report as those read it who act on it: Jenkins' schema, junitparser and junit2html.

Every kind of ending runs once per test process; then the raw XML and both consumers must tell the same story.
"""

from __future__ import annotations

import functools
import html
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import junitparser
import pytest
import xmlschema
from junit2htmlreport.parser import Junit

from pytest_imagefresh.core.chain import Link
from tests.forks import Forks
from tests.gate_folder import GateFolder
from tests.support import clean_environment, run

SCHEMA = Path(__file__).with_name("junit_schema") / "junit-10.xsd"

TWO_TARGETS = """
[targets.shop]
[targets.shop-jobs]
repo = "shop"
image = "jobs-staging"
prod_image = "jobs"
staging = { service = "jobs-staging", container = "jobs-staging", port = 8601 }
prod = { service = "jobs", port = 8600 }
"""
TAP = '[targets.shop]\nstaging = { check_format = "tap" }\n'

ANOTHER_HOOK = """
import dataclasses
import pytest
from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.evidence import CheckResult
from pytest_imagefresh.plugin import GATE

class Hook:
    def __init__(self, inner):
        self.inner, self.path, self.lease = inner, inner.path, inner.lease

    def call(self, mode, variables, **more):
        report = self.inner.call(mode, variables, **more)
        if mode != "--build-staging":
            return report
        {statement}

@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    run = session.config.stash[GATE].run
    run.hook = Hook(run.hook)
"""
WORDS = r'"no \x1b[31mspace\x00 left\x0b <on> & \"device\" ü \U0001f600]]>"'
REFUSED = f"return dataclasses.replace(report, ok=False, reason={WORDS})"
UNKNOWN = f"raise EvidenceError({WORDS})"
CHECKED = "return dataclasses.replace(report, check=CheckResult(0, {output}))"
TAP_OK = r'b"1..4\nok 1 - answers\nok 2 - answers\nok 3\nok 4 - <a> & \"b\" \x1b[1m \xc3\xbc[x]\n"'
TAP_NOT_OK = r'b"1..2\nok 1 - answers\nnot ok 2 - counts jobs\n"'


@dataclass(frozen=True)
class Kind:
    """One way in which a gate session ends."""

    status: int
    options: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    settings: str = ""
    hook: str = ""
    """What another hook does with its report of the rebuild: a statement."""


KINDS = {
    "passed": Kind(0),
    "passed on workers": Kind(0, options=("-n", "2")),
    "two targets": Kind(0, settings=TWO_TARGETS),
    "two targets on workers": Kind(0, options=("-n", "2"), settings=TWO_TARGETS),
    "passed with TAP": Kind(0, settings=TAP, hook=CHECKED.format(output=TAP_OK)),
    "refused": Kind(1, faults=("stale-image",)),
    "refused on workers": Kind(1, options=("-n", "2"), faults=("stale-image",)),
    "refused by TAP": Kind(1, settings=TAP, hook=CHECKED.format(output=TAP_NOT_OK)),
    "refused in awkward words": Kind(1, hook=REFUSED),
    "could not find out": Kind(11, faults=("hook-unknown",)),
    "could not find out on workers": Kind(11, options=("-n", "2"), faults=("hook-unknown",)),
    "could not find out, in awkward words": Kind(11, hook=UNKNOWN),
    "incomplete": Kind(10, options=("-k", "hook")),
    "incomplete on workers": Kind(10, options=("-k", "hook", "-n", "2")),
    "nothing run": Kind(10, options=("--collect-only",)),
    "partial": Kind(0, options=("--gate-partial", "-k", "hook")),
    "partial and refused": Kind(1, options=("--gate-partial", "-k", "hook"), faults=("accepts-everything",)),
}


class Report:
    """The JUnit report of one session."""

    def __init__(self, folder: GateFolder, kind: Kind, name: str = "gate.xml") -> None:
        self.folder = folder
        self.kind = kind
        self.path = folder.path / name
        (folder.path / "gate.toml").write_text((folder.path / "imagefresh.toml").read_text() + kind.settings)
        (folder.path / "another_hook.py").write_text(ANOTHER_HOOK.replace("{statement}", kind.hook))
        options = ["--gate-config=gate.toml", *(["-p", "another_hook"] if kind.hook else []), *kind.options]
        self.ended = folder.gate(*options, f"--junitxml={name}", faults=kind.faults)

    @functools.cached_property
    def suite(self) -> ElementTree.Element:
        """The only suite, as it is written."""
        [suite] = ElementTree.parse(self.path).getroot().findall("testsuite")
        return suite

    @property
    def cases(self) -> list[ElementTree.Element]:
        """The cases, as they are written."""
        return self.suite.findall("testcase")

    @property
    def names(self) -> list[tuple[str | None, str | None]]:
        """Class name and name of every case, sorted."""
        return sorted(((case.get("classname"), case.get("name")) for case in self.cases), key=str)

    @property
    def outcomes(self) -> dict[str, str]:
        """Name of a case -> failure, error, skipped or passed."""
        return {str(case.get("name")): case[0].tag if len(case) else "passed" for case in self.cases}

    @property
    def properties(self) -> dict[str, str]:
        """The properties of the suite."""
        return {each.attrib["name"]: each.attrib["value"] for each in self.suite.findall("properties/property")}

    def counts(self) -> Counter[str]:
        """Tests, failures, errors and skipped, counted one by one."""
        tags = Counter({"failure": "failures", "error": "errors"}.get(each.tag, each.tag) for each in self.suite.iter())
        return Counter(tests=len(self.cases), **{key: tags[key] for key in ("failures", "errors", "skipped")})


@functools.cache
def _schema() -> xmlschema.XMLSchema:
    return xmlschema.XMLSchema(SCHEMA)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Callable[[str], Report]:
    """A function that returns the report of a kind of session, which runs only once."""

    @functools.cache
    def report(name: str) -> Report:
        return Report(GateFolder(tmp_path_factory.mktemp("gate"), forks), KINDS[name])

    return report


@pytest.fixture(scope="module", params=KINDS)
def report(request: pytest.FixtureRequest, reports: Callable[[str], Report]) -> Report:
    """The report of each kind of session."""
    found = reports(request.param)
    if found.ended.status != found.kind.status:
        raise RuntimeError(f"{request.param}: expected exit {found.kind.status}, observed {found.ended}")
    return found


def test_the_report_is_valid_for_jenkins(report: Report) -> None:
    assert [error.reason for error in _schema().iter_errors(report.path)] == []


@pytest.mark.parametrize(
    "change",
    [
        lambda suite: suite.find("testcase").attrib.pop("name"),
        lambda suite: ElementTree.SubElement(suite.find("testcase"), "properties"),
        lambda suite: suite.attrib.pop("failures"),
        lambda suite: ElementTree.SubElement(suite, "unheard-of"),
    ],
    ids=["case without name", "properties of a case", "suite without failures", "unknown element"],
)
def test_the_schema_refuses_any_single_mistake(
    reports: Callable[[str], Report], tmp_path: Path, change: Callable[[Any], object]
) -> None:
    tree = ElementTree.parse(reports("passed").path)
    change(tree.getroot()[0])
    tree.write(tmp_path / "broken.xml")
    assert not _schema().is_valid(tmp_path / "broken.xml")


def test_what_the_suite_counts_is_what_it_holds(report: Report) -> None:
    written = Counter({key: int(report.suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")})
    assert written == report.counts()
    assert report.counts()["tests"] > 0


def test_junitparser_counts_the_same(report: Report) -> None:
    suite: Any
    [suite] = junitparser.JUnitXml.fromfile(str(report.path))
    results = Counter(type(result).__name__ for case in suite for result in case.result)
    read = Counter(tests=suite.tests, failures=suite.failures, errors=suite.errors, skipped=suite.skipped)
    assert read == report.counts()
    assert (results["Failure"], results["Error"], results["Skipped"]) == (suite.failures, suite.errors, suite.skipped)
    assert sorted(((case.classname, case.name) for case in suite), key=str) == report.names
    assert {each.name: each.value for each in suite.properties()} == report.properties


def test_junit2html_counts_the_same(report: Report) -> None:
    [suite] = Junit(str(report.path)).suites
    counts = report.counts()
    assert (len(suite.all()), len(suite.skipped())) == (counts["tests"], counts["skipped"])
    # It tells no errors from failures.
    assert len(suite.failed()) == counts["failures"] + counts["errors"]
    assert sorted(((case.testclass.name, case.name) for case in suite.all()), key=str) == report.names
    assert {each.name: each.value for each in suite.properties} == report.properties


def test_junit2html_shows_every_case_and_every_reason(report: Report) -> None:
    page = report.path.with_suffix(".html")
    environment = clean_environment(PYTHONUTF8="1")
    run([sys.executable, "-m", "junit2htmlreport", report.path, page], env=environment)
    shown = html.unescape(page.read_text(encoding="utf-8"))
    assert [name for name in report.outcomes if name not in shown] == []
    reasons = [each.attrib["message"] for each in report.suite.iter() if each.tag in ("failure", "error")]
    assert [reason for reason in reasons if reason not in shown] == []


def test_names_are_unique(report: Report) -> None:
    assert [name for name, count in Counter(report.names).items() if count > 1 or not all(name)] == []


@pytest.mark.parametrize("name", ["passed", "two targets", "passed with TAP", "refused", "incomplete", "partial"])
def test_names_are_the_same_in_the_next_run(reports: Callable[[str], Report], name: str) -> None:
    first = reports(name)
    first.folder.commit("two")
    again = Report(first.folder, first.kind, "again.xml")
    assert again.names == first.names


def test_no_case_has_properties(report: Report) -> None:
    assert report.suite.findall("testcase/properties") == []


def test_the_report_says_no_where_the_exit_status_does(report: Report) -> None:
    bad = set(report.outcomes.values()) - {"passed", "skipped"}
    expected = {0: set(), 1: {"failure"}, 10: {"failure"}, 11: {"error"}}
    assert bad == expected[report.kind.status], report.outcomes


def test_the_human_sentence_comes_first(report: Report) -> None:
    messages = [each.attrib["message"] for each in report.suite.iter() if each.tag in ("failure", "error")]
    technical = ("Traceback", "failed on setup", "pytest_imagefresh.", "Refused", "EvidenceError", "\n")
    assert [message for message in messages if not message or message.startswith(technical)] == []


def test_the_case_of_the_whole_gate_says_what_the_gate_says(report: Report) -> None:
    observed = report.outcomes.get("gate complete", "absent")
    if "--gate-partial" in report.kind.options:
        assert observed in ("absent", "failure"), "a partial run is no complete gate"
    else:
        allowed = {0: ["passed"], 1: ["failure", "absent"], 10: ["failure"], 11: ["error", "absent"]}
        assert observed in allowed[report.kind.status]


@pytest.mark.parametrize("name", ["incomplete", "incomplete on workers", "nothing run"])
def test_an_incomplete_gate_tells_what_is_missing(reports: Callable[[str], Report], name: str) -> None:
    [case] = [case for case in reports(name).cases if case.get("name") == "gate complete"]
    text = "".join(case.itertext())
    assert f"shop: {Link.PRODUCTION.value}" in text
    assert f"shop: {Link.REBUILT.value}" in text


@pytest.mark.parametrize("name", ["passed", "two targets", "refused", "could not find out", "incomplete"])
def test_workers_change_nothing_in_the_report(reports: Callable[[str], Report], name: str) -> None:
    serial, parallel = reports(name), reports(f"{name} on workers")
    assert parallel.names == serial.names
    assert parallel.outcomes == serial.outcomes
    changing = ("run_id", "container_id")
    steady = [
        {key: value for key, value in each.properties.items() if not key.endswith(changing)}
        for each in (serial, parallel)
    ]
    assert steady[0] == steady[1]
    assert set(parallel.properties) == set(serial.properties)


@pytest.mark.parametrize("name", ["passed", "passed on workers", "two targets", "two targets on workers"])
def test_the_suite_names_what_was_proven(reports: Callable[[str], Report], name: str) -> None:
    properties = reports(name).properties
    targets = ["shop", "shop-jobs"] if "two" in name else ["shop"]
    facts = ("revision", "image_id", "container_id", "engine_id")
    expected = {f"{target}.{fact}" for target in targets for fact in facts}
    assert expected | {"run_id"} <= set(properties)
    assert all(properties.values())


def test_every_link_of_every_target_is_a_case(reports: Callable[[str], Report]) -> None:
    for name, targets in {"passed": ["shop"], "two targets": ["shop", "shop-jobs"]}.items():
        gates = [case for case in reports(name).outcomes if case.startswith("test_")]
        assert {case.partition("[")[2].rstrip("]") for case in gates} == set(targets)
        assert len(gates) == len(Link) * len(targets)


def test_every_line_of_tap_is_a_case(reports: Callable[[str], Report]) -> None:
    def lines(name: str) -> list[str]:
        return [outcome for case, outcome in reports(name).outcomes.items() if case[:1].isdigit()]

    assert lines("passed") == []
    assert lines("passed with TAP") == ["passed"] * 4
    assert lines("refused by TAP") == ["passed", "failure"]
    assert any("counts jobs" in case for case in reports("refused by TAP").outcomes)


@pytest.mark.parametrize("name", ["refused in awkward words", "could not find out, in awkward words"])
def test_awkward_words_reach_the_reader(reports: Callable[[str], Report], name: str) -> None:
    messages = [each.attrib["message"] for each in reports(name).suite.iter() if each.tag in ("failure", "error")]
    assert [message for message in messages if '<on> & "device"' in message] != []


def test_a_broken_fixture_is_told_in_one_sentence(gate_folder: GateFolder) -> None:
    own = "import pytest\n@pytest.fixture\ndef broken():\n    raise OSError('no such place')\n"
    (gate_folder.path / "test_own.py").write_text(f"{own}@pytest.mark.gate\ndef test_own(broken): pass\n")
    assert gate_folder.gate("test_own.py", "--junitxml=gate.xml").status == 1
    [error] = ElementTree.parse(gate_folder.path / "gate.xml").getroot().iter("error")
    assert "OSError: no such place" in error.attrib["message"]
    assert "\n" not in error.attrib["message"]
    assert "def broken" in str(error.text)


def test_half_a_character_still_leaves_a_report(gate_folder: GateFolder) -> None:
    own = "import pytest\n@pytest.mark.gate\ndef test_own(): raise OSError('no file \\ud83d')\n"
    (gate_folder.path / "test_own.py").write_text(own)
    ended = gate_folder.gate("test_own.py", "--junitxml=gate.xml")
    assert ended.status == 1, ended
    assert ended.says("^REFUSED$")
    assert _schema().is_valid(gate_folder.path / "gate.xml")
