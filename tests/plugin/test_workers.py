"""Two repos on several workers end as they do one after the other, also when one is broken or a worker crashes."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest

from pytest_imagefresh.core.chain import Link
from tests.forks import Forks
from tests.gate_folder import Ended, GateFolder
from tests.plugin.place import Place
from tests.plugin.routes import Route
from tests.support import GIT_IDENTITY, clean_environment, run

pytestmark = pytest.mark.sessions

JOBS = """
[targets.jobs]
staging = { port = 8601 }
prod = { port = 8600 }
"""

RECORDER = '''
import dataclasses, json, os, pathlib
import pytest
from pytest_imagefresh.plugin import GATE

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")

def note(name, *what):
    with pathlib.Path(name).open("a") as file:
        file.write(json.dumps(what) + "\\n")

class Hook:
    """The fake hook, seen from outside: its calls are written down, and the build of one repo may fail."""

    def __init__(self, inner):
        self.inner, self.path = inner, inner.path

    def lease(self, variables, **more):
        note("calls.jsonl", WORKER, "--lease", variables["REPO"])
        return self.inner.lease(variables, **more)

    def call(self, mode, variables, **more):
        note("calls.jsonl", WORKER, mode, variables["REPO"])
        report = self.inner.call(mode, variables, **more)
        if mode == "--build-staging" and variables["REPO"] == os.environ.get("BROKEN"):
            return dataclasses.replace(report, ok=False, kind="refused", reason="no space left")
        return report

@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    run = session.config.stash[GATE].run
    if "hook" in vars(run):
        run.hook = Hook(run.hook)

def pytest_runtest_logreport(report):
    if report.when == "call" and not WORKER:
        note("order.jsonl", getattr(report, "worker_id", ""), report.nodeid)
'''
CRASH = """
import os
def test_own(target):
    if target.name == "jobs" and os.environ.get("PYTEST_XDIST_WORKER"):
        os._exit(0)
"""
MODES = {"serial": (), "two workers": ("-n2",), "four workers": ("-n4",)}
PARALLEL = ["two workers", "four workers"]


class Told(NamedTuple):
    """What a session told, without what differs from run to run."""

    ended: Ended
    cases: dict[str, str]
    properties: dict[str, str]
    proofs: dict[str, list[dict[str, str]]]
    complete: dict[str, bool]
    order: list[tuple[str, str]]
    calls: list[tuple[str, ...]]

    def of(self, repo: str) -> tuple[dict[str, str], list[dict[str, str]], list[str]]:
        """Return cases, proofs and order of the tests of one repo."""
        cases = {name: outcome for name, outcome in self.cases.items() if f"[{repo}]" in name}
        return cases, self.proofs[repo], [name for _, name in self.order if f"[{repo}]" in name]

    def homes(self, repo: str) -> set[str]:
        """Return the workers on which tests of one repo ran."""
        return {worker for worker, name in self.order if f"[{repo}]" in name}

    def rebuilt(self) -> Counter[str]:
        """Return how often each repo was rebuilt."""
        return Counter(repo for _, mode, repo in self.calls if mode == "--build-staging")


def _lines(path: Path) -> list[Any]:
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()]


def _told(place: Place, ended: Ended) -> Told:
    suite = ElementTree.parse(place.path / "gate.xml").getroot()[0]
    properties = {each.attrib["name"]: each.attrib["value"] for each in suite.iter("property")}
    records = {record["target"]: record for record in place.records()}
    return Told(
        ended,
        {f"{case.get('classname')}.{case.get('name')}": _outcome(case) for case in suite.iter("testcase")},
        {name: value for name, value in properties.items() if not name.endswith(("run_id", "container_id"))},
        {name: [_timeless(proof) for proof in record["proofs"]] for name, record in records.items()},
        {name: record["complete"] for name, record in records.items()},
        _lines(place.path / "order.jsonl"),
        _lines(place.path / "calls.jsonl"),
    )


def _outcome(case: ElementTree.Element) -> str:
    said = [each for each in case if each.tag != "system-out"]
    return f"{said[0].tag}: {said[0].get('message')}" if said else "passed"


def _timeless(proof: dict[str, str]) -> dict[str, str]:
    """Replace IDs of containers, the times of their start and measured times, which differ from run to run."""
    run_specific = r"(?<!sha256:)\b[0-9a-f]{64}\b|2026-01-02T03:04:\d\dZ|\b\d+\.\d+ s\b"
    return {name: re.sub(run_specific, "...", value) for name, value in proof.items()}


Session = Callable[..., Told]


@pytest.fixture(scope="module")
def session(shared: GateFolder, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A function that gates the repos shop and jobs in one session and returns what it told; each only once."""
    shutil.copytree(shared.repo, shared.repo.with_name("jobs"))
    known: dict[tuple[str, str, bool, bool], Told] = {}

    def told(mode: str, broken: str = "", crash: bool = False, one_folder: bool = False) -> Told:
        key = mode, broken, crash, one_folder
        if key not in known:
            files = {"recorder.py": RECORDER, **({"gates/test_own.py": CRASH} if crash else {})}
            environment = {"IMAGEFRESH_REPOS": "shop,jobs", "BROKEN": broken}
            options = ("-p", "recorder", "--repo", "jobs", *MODES[mode])
            route = Route("repos", options, files=files, settings=JOBS, environment=environment)
            place = Place(shared, forks, tmp_path_factory.mktemp("repos"), route)
            if not one_folder:
                place.edit_settings('repo_path = "/srv/shop"\n', "")
                place.edit_settings(str(shared.repo.parent), str(apart(shared, place.path / "apart")))
            place.put_gates()
            known[key] = _told(place, place.gate())
        return known[key]

    return told


def apart(shared: GateFolder, folder: Path) -> Path:
    """Return a folder of clones whose branch is checked out elsewhere: their own files may be compose folders."""
    for repo in ("shop", "jobs"):
        clone = folder / "repos" / repo
        shutil.copytree(shared.repo.with_name(repo), clone)
        for argv in (
            ["checkout", "-q", "-b", "other"],
            ["worktree", "add", "-q", str(folder / "worktrees" / repo), "work"],
        ):
            run(["git", *argv], cwd=clone, env=clean_environment(**GIT_IDENTITY))
    return folder / "repos"


def test_two_repos_one_after_the_other(session: Session) -> None:
    told = session("serial")
    assert told.ended.status == 0, told.ended
    assert told.complete == {"shop": True, "jobs": True}
    assert set(told.cases.values()) == {"passed"}
    for repo in ("shop", "jobs"):
        assert [proof["link"] for proof in told.proofs[repo]] == [link.name for link in Link]


@pytest.mark.parametrize("broken", ["", "shop", "jobs"])
@pytest.mark.parametrize("mode", PARALLEL)
def test_workers_tell_the_same(session: Session, mode: str, broken: str) -> None:
    serial, parallel = session("serial", broken), session(mode, broken)
    assert parallel.ended.status == serial.ended.status == (1 if broken else 0), parallel.ended
    assert parallel.cases == serial.cases
    assert parallel.properties == serial.properties
    assert parallel.proofs == serial.proofs
    assert parallel.complete == serial.complete


@pytest.mark.parametrize("broken", ["shop", "jobs"])
@pytest.mark.parametrize("mode", MODES)
def test_a_broken_repo_takes_nothing_from_the_other(session: Session, mode: str, broken: str) -> None:
    [sound] = {"shop", "jobs"} - {broken}
    told = session(mode, broken)
    assert told.of(sound) == session("serial").of(sound)
    assert [proof["link"] for proof in told.proofs[broken]] == [Link.ANCHOR_HOLDS.name]
    assert told.complete == {"shop": False, "jobs": False}
    refused = [outcome for name, outcome in told.cases.items() if f"[{broken}]" in name and outcome != "passed"]
    assert any("staging was not rebuilt: no space left" in outcome for outcome in refused)


@pytest.mark.parametrize("broken", ["", "shop"])
@pytest.mark.parametrize("mode", MODES)
def test_each_repo_is_rebuilt_once(session: Session, mode: str, broken: str) -> None:
    assert session(mode, broken).rebuilt() == {"shop": 1, "jobs": 1}


@pytest.mark.parametrize("mode", PARALLEL)
def test_each_repo_stays_on_one_worker_in_the_order_of_the_chain(session: Session, mode: str) -> None:
    told = session(mode)
    for repo in ("shop", "jobs"):
        assert len(told.homes(repo)) == 1
        assert told.of(repo) == session("serial").of(repo)
    assert told.homes("shop") != told.homes("jobs")
    assert Counter(worker for worker, *_ in told.calls) == {worker: len(told.calls) // 2 for worker, *_ in told.calls}


@pytest.mark.parametrize("mode", PARALLEL)
def test_repos_of_one_compose_folder_share_its_lease_and_a_worker(session: Session, mode: str) -> None:
    told = session(mode, one_folder=True)
    assert told.ended.status == 0, told.ended
    assert told.homes("shop") == told.homes("jobs")
    assert [mode for _, mode, _ in told.calls].count("--lease") == 1
    assert [mode for _, mode, _ in session("serial").calls].count("--lease") == 2


@pytest.mark.parametrize("mode", PARALLEL)
def test_a_crash_of_a_worker_is_a_failure_of_its_repo_only(session: Session, mode: str) -> None:
    told = session(mode, crash=True)
    sound = session("serial", crash=True)
    assert sound.ended.status == 0, sound.ended
    assert told.ended.status == 1, told.ended
    assert told.of("shop") == sound.of("shop")
    assert told.complete == {"shop": False, "jobs": False}
    failed = [name for name, outcome in told.cases.items() if outcome != "passed"]
    assert [name for name in failed if "test_own[jobs]" in name], told.cases
    assert not [name for name in failed if "[shop]" in name]
    assert told.ended.says("crashed while running 'gates/test_own.py::test_own")
    # The tests behind it run on another worker, after one more rebuild; the one that crashed is not tried again.
    assert told.rebuilt() == {"shop": 1, "jobs": 2}


def test_the_summary_names_every_repo(session: Session) -> None:
    for mode in MODES:
        told = session(mode, "jobs")
        for repo in ("shop", "jobs"):
            assert told.ended.says(f"^{repo}: commit [0-9a-f?]+, image ")
        assert told.ended.says("^REFUSED$")
