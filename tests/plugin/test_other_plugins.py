"""A gate beside the pytest plugins of others: pytest-html, allure-pytest, pytest-rerunfailures, pytest-randomly, anyio.

They are in an environment of their own on top of this one (scripts/make-venv.sh), and load into every session here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pytest_imagefresh.core.chain import Link
from tests.gate_folder import Ended, GateFolder
from tests.support import ROOT

pytestmark = pytest.mark.sessions

GATES = str(ROOT / "gates")

STUMBLE = """
import dataclasses
import pytest
from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.plugin import GATE

class Hook:
    def __init__(self, inner):
        self.inner, self.path, self.lease, self.asked = inner, inner.path, inner.lease, 0

    def call(self, mode, variables, **more):
        report = self.inner.call(mode, variables, **more)
        if mode == "--build-staging":
            return report
        self.asked += 1
        if self.asked > 1:
            return report
        {stumble}

@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    gate = session.config.stash.get(GATE, None)
    if gate is not None:
        gate.run.hook = Hook(gate.run.hook)
"""
STUMBLES = {
    "a refusal": 'return dataclasses.replace(report, ok=False, exit_status=1, cause="frozen", reason="not now")',
    "an evidence error": 'raise EvidenceError("the engine does not answer")',
}
FLAKY = """
import pathlib
import pytest

@pytest.mark.gate
def test_flaky():
    seen = pathlib.Path("seen")
    if not seen.exists():
        seen.touch()
        raise ValueError("the first time")
"""
ASYNC = """
import asyncio
import pytest

pytestmark = [pytest.mark.gate, pytest.mark.anyio]

@pytest.fixture(params=["asyncio"])
def anyio_backend(request):
    return request.param

async def test_own(target, staging_url):
    await asyncio.sleep(0)
    if {condition}:
        raise ValueError(target.name)
"""
SHUFFLED = "import pytest\n@pytest.mark.parametrize('place', range(10))\ndef test_place(place): pass\n"


@pytest.fixture
def crowded(gate_folder: GateFolder, monkeypatch: pytest.MonkeyPatch) -> GateFolder:
    """A gate folder whose sessions load all these plugins."""
    python = Path(sys.prefix) / "other-plugins" / "bin" / "python"
    if not python.exists():
        raise RuntimeError(f"{python} is missing; make it: scripts/make-venv.sh {sys.prefix}")
    monkeypatch.setattr(sys, "executable", str(python))
    gate_folder.forks = None
    return gate_folder


def order(folder: GateFolder, report: str = "gate.xml") -> list[str]:
    """Return the names of the cases of test functions, in the order in which they ended."""
    cases = ElementTree.parse(folder.path / report).getroot().iter("testcase")
    return [str(case.get("name")) for case in cases if str(case.get("name")).startswith("test_")]


def complete(folder: GateFolder) -> bool:
    """Say whether the record of the newest run is one that may be promoted."""
    newest = max((folder.path / ".imagefresh" / "shop").iterdir())
    return bool(json.loads((newest / "shop" / "chain.json").read_text())["complete"])


def write(folder: GateFolder, source: str) -> list[str]:
    """Write an own gate test; return what to run: the shipped gates and this one."""
    (folder.path / "test_own.py").write_text(source)
    return [GATES, "test_own.py"]


def gate_with_reports(folder: GateFolder, *options: str, faults: Sequence[str] = ()) -> Ended:
    """Run a gate that writes every report there is."""
    reports = ["--junitxml=gate.xml", "--html=gate.html", "--self-contained-html", "--alluredir=allure"]
    return folder.gate(*reports, *options, faults=faults)


def allure_results(folder: GateFolder) -> list[dict[str, Any]]:
    """Return what allure-pytest wrote, one result per test."""
    return [json.loads(path.read_text()) for path in (folder.path / "allure").glob("*-result.json")]


def test_the_plugins_are_there(crowded: GateFolder) -> None:
    (crowded.path / "test_plain.py").write_text("def test_plain(): pass\n")
    ended = crowded.pytest("test_plain.py")
    assert ended.status == 0, ended
    [loaded] = [line for line in ended.output.splitlines() if line.startswith("plugins: ")]
    names = ["html-", "allure-pytest-", "rerunfailures-", "randomly-", "anyio-", "xdist-", "imagefresh-"]
    assert [name for name in names if name not in loaded] == []


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["serial", "workers"])
def test_a_good_gate_passes_and_every_report_is_written(crowded: GateFolder, workers: list[str]) -> None:
    ended = gate_with_reports(crowded, "--reruns=2", *workers)
    assert ended.status == 0, ended
    assert ended.says("^GATE PASSED$")
    assert complete(crowded)
    page = (crowded.path / "gate.html").read_text()
    assert [name for name in order(crowded) if name not in page] == []
    assert [result["status"] for result in allure_results(crowded)] == ["passed"] * len(Link)


@pytest.mark.parametrize(
    ("fault", "status", "sentence"),
    [("stale-image", 1, "revision label of sha256:"), ("hook-unknown", 11, "the hook could not find out: the engine")],
)
def test_a_gate_that_says_no_says_it_in_every_report(
    crowded: GateFolder, fault: str, status: int, sentence: str
) -> None:
    ended = gate_with_reports(crowded, faults=[fault])
    assert ended.status == status, ended
    assert not complete(crowded)
    told = [result["statusDetails"]["message"] for result in allure_results(crowded) if result["status"] != "passed"]
    assert [message for message in told if sentence in message] != []
    for report in ("gate.html", "gate.xml"):
        assert sentence in (crowded.path / report).read_text()


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["serial", "workers"])
def test_a_shuffle_leaves_the_links_in_order(crowded: GateFolder, workers: list[str]) -> None:
    (crowded.path / "test_shuffled.py").write_text(SHUFFLED)
    tests = ["test_shuffled.py", GATES]
    assert crowded.gate("-p", "no:randomly", "--junitxml=gate.xml", tests=tests).status == 0
    unshuffled = order(crowded)
    for seed in (1, 2):
        ended = crowded.gate(f"--randomly-seed={seed}", "--junitxml=gate.xml", *workers, tests=tests)
        assert ended.status == 0, ended
        assert links(order(crowded)) == links(unshuffled)
        # What is no gate test was shuffled, so the links could have been.
        assert order(crowded) != unshuffled


def links(names: list[str]) -> list[str]:
    """Return only the gate tests among the names."""
    return [name for name in names if name.endswith("[shop]")]


def test_a_repeated_seed_repeats_no_run_id(crowded: GateFolder) -> None:
    for _run in range(2):
        assert crowded.gate("--randomly-seed=7", "-k", "hook", "--gate-partial").status == 0
    random_parts = {path.name.rpartition("-")[2] for path in (crowded.path / ".imagefresh" / "shop").iterdir()}
    assert len(random_parts) == 2


def test_a_rerun_that_turns_green_passes_without_a_gate(crowded: GateFolder) -> None:
    # The hole that the next tests close.
    write(crowded, FLAKY)
    ended = crowded.pytest("test_own.py", "--reruns=1")
    assert ended.status == 0, ended
    assert ended.says("1 passed, 1 rerun")


@pytest.mark.parametrize("options", [["--reruns=1"], ["--reruns=1", "-n", "2"]], ids=["serial", "workers"])
def test_a_rerun_that_turns_green_is_no_pass(crowded: GateFolder, options: list[str]) -> None:
    tests = write(crowded, FLAKY)
    ended = crowded.gate(*options, "--junitxml=gate.xml", tests=tests)
    assert ended.status in (1, 10), ended
    assert ended.says("1 rerun")
    assert not complete(crowded)
    suite = ElementTree.parse(crowded.path / "gate.xml").getroot()[0]
    assert int(suite.attrib["failures"]) + int(suite.attrib["errors"]) > 0


def test_a_rerun_that_the_test_itself_asks_for_is_no_pass(crowded: GateFolder) -> None:
    tests = write(crowded, FLAKY.replace("@pytest.mark.gate", "@pytest.mark.flaky(reruns=1)\n@pytest.mark.gate"))
    ended = crowded.gate(tests=tests)
    assert ended.status in (1, 10), ended
    assert not complete(crowded)


def test_a_rerun_that_the_environment_asks_for_is_no_pass(crowded: GateFolder) -> None:
    ended = crowded.gate(addopts="--reruns=1", tests=write(crowded, FLAKY))
    assert ended.status in (1, 10), ended
    assert not complete(crowded)


@pytest.mark.parametrize("stumble", STUMBLES)
def test_a_link_that_is_proven_only_at_the_second_try_is_no_pass(crowded: GateFolder, stumble: str) -> None:
    (crowded.path / "stumble.py").write_text(STUMBLE.replace("{stumble}", STUMBLES[stumble]))
    ended = crowded.gate("-p", "stumble", "--reruns=1")
    assert ended.status in (1, 10, 11), ended
    assert ended.says("1 rerun")
    assert not complete(crowded)


@pytest.mark.parametrize(
    ("condition", "status", "workers"),
    [("not staging_url", 0, []), ("not staging_url", 0, ["-n", "2"]), ("staging_url", 1, [])],
    ids=["passing", "passing on workers", "failing"],
)
def test_an_own_gate_test_may_be_a_coroutine(
    crowded: GateFolder, condition: str, status: int, workers: list[str]
) -> None:
    ended = crowded.gate("--junitxml=gate.xml", *workers, tests=write(crowded, ASYNC.replace("{condition}", condition)))
    assert ended.status == status, ended
    assert [name for name in order(crowded) if name.startswith("test_own[")] != []
