"""What a run leaves behind: its folder, the tails in its report, and no secret anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pytest_imagefresh.core.chain import Link
from tests.forks import Forks
from tests.gate_folder import GateFolder
from tests.plugin.place import Place
from tests.plugin.routes import TOUCHED, Route

IN_ENVIRONMENT = "s3cr3t-of-the-environment"
IN_CONTAINER = "s3cr3t-of-staging"
IN_BUILD = "s3cr3t-of-the-build"
IN_URL = "s3cr3t-of-a-url"
IN_DOTENV = "s3cr3t-of-the-host"
SECRETS = (IN_ENVIRONMENT, IN_CONTAINER, IN_BUILD, IN_URL, IN_DOTENV)
OPEN = "no-s3cr3t-at-all"

COMPOSE = f"""
services:
  shop-staging:
    build:
      context: .
      args:
        DEPLOY_TOKEN: {IN_BUILD}
        ROLE: {OPEN}
"""

SPEAKER = f'''
import dataclasses, os, time
import pytest
from pytest_imagefresh.core.evidence import CheckResult
from pytest_imagefresh.plugin import GATE

SAID = "{" ".join(SECRETS[:3])} https://ada:{IN_URL}@example.org/ {OPEN}"

class Hook:
    """The fake hook, which takes its time to build and tells what it should not."""

    def __init__(self, inner):
        self.inner, self.path, self.lease = inner, inner.path, inner.lease

    def call(self, mode, variables, **more):
        if mode == "--build-staging":
            time.sleep(float(os.environ.get("BUILD_SECONDS", "0")))
        report = self.inner.call(mode, variables, **more)
        more["on_line"]("the hook says " + SAID)
        if mode == "--build-staging" and "TAP" in os.environ:
            report = dataclasses.replace(report, check=CheckResult(0, os.environ["TAP"].encode()))
        return report

@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    run = session.config.stash[GATE].run
    run.hook = Hook(run.hook)
    run.engine.logs_tail = lambda container_id, lines: b"the container says " + SAID.encode()
'''

TELLTALE = """
import logging, sys
import pytest
from speaker import SAID

pytestmark = pytest.mark.usefixtures("staging_container")

@pytest.fixture
def told():
    print("printed in setup", SAID)
    yield SAID
    print("printed in teardown", SAID)

def test_asserts(told):
    assert told == "something else", "message " + told

def test_raises(told):
    local = {"value": told}
    try:
        raise KeyError(told)
    except KeyError as error:
        raise ValueError(f"because of {told}") from error

def test_prints(told, record_property, caplog):
    print("out", told)
    print("err", told, file=sys.stderr)
    logging.getLogger().warning("logged %s", told)
    record_property("told", told)
    raise SystemError

def test_skips(told):
    pytest.skip(told)

def test_xfails(told):
    pytest.xfail(told)

def test_in_a_subprocess(told):
    import os
    os.write(1, told.encode())

def test_in_a_fixture(broken):
    pass

@pytest.fixture
def broken(told):
    raise OSError(told)
"""

Session = Callable[..., Place]


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> GateFolder:
    """A repo whose build has secret arguments."""
    folder = GateFolder(tmp_path_factory.mktemp("chatty"), forks)
    (folder.repo / "compose.yaml").write_text(COMPOSE)
    folder.git("add", "compose.yaml")
    folder.revision = folder.commit("two")
    return folder


@pytest.fixture
def session(chatty: GateFolder, forks: Forks, tmp_path: Path) -> Session:
    """A function that runs a gate session with a talkative hook and returns its place; `output.txt` is what it said."""

    def run(*options: str, **more: object) -> Place:
        files = {"speaker.py": SPEAKER, **more.pop("files", {})}  # type: ignore[dict-item]
        environment = {"API_TOKEN": IN_ENVIRONMENT, **more.pop("environment", {})}  # type: ignore[dict-item]
        route = Route("evidence", ("-p", "speaker", *options), files=files, environment=environment, **more)  # type: ignore[arg-type]
        place = Place(chatty, forks, tmp_path, route)
        place.put_gates()
        place.gate()
        return place

    return run


def ended(place: Place) -> str:
    """Return what a session said."""
    return (place.path / "output.txt").read_text()


def folder_of(place: Place) -> Path:
    """Return the only folder of evidence that a place holds."""
    [path] = place.path.rglob("chain.json")
    return path.parent


def everything(place: Place) -> dict[str, str]:
    """Return what a session wrote and said: path -> text."""
    written = [place.path / "gate.xml", place.path / "output.txt", *place.path.glob(".imagefresh/**/*.*")]
    return {str(path.relative_to(place.path)): path.read_text() for path in written if path.is_file()}


def test_the_folder_of_a_run_holds_what_a_person_needs(session: Session, chatty: GateFolder) -> None:
    place = session()
    folder = folder_of(place)
    assert {path.name for path in folder.iterdir()} == {
        "settings.json",
        "hook.log",
        "build.log",
        "container.log",
        "check.log",
        "compose.json",
        "compose-differences.txt",
        "image.json",
        "container.json",
        "chain.txt",
        "chain.json",
    }
    record = json.loads((folder / "chain.json").read_text())
    assert (record["complete"], record["revision"], record["junit"]) == (True, chatty.revision, "gate.xml")
    assert [proof["link"] for proof in record["proofs"]] == [link.name for link in Link]
    assert json.loads((folder / "image.json").read_text())["Id"] == record["image_id"]
    assert json.loads((folder / "container.json").read_text())["Id"] == record["container_id"]
    table = (folder / "chain.txt").read_text()
    assert re.findall(r"(?m)^(.*?) +proven ", table) == [link.value for link in Link]


def test_settings_are_kept_with_their_sources(session: Session) -> None:
    place = session(environment={"IMAGEFRESH_TIMEOUTS__GIT": "17"})
    kept = json.loads((folder_of(place) / "settings.json").read_text())
    assert kept["settings"]["timeouts"]["git"] == 17
    assert "IMAGEFRESH_TIMEOUTS__GIT" in kept["sources"]["timeouts.git"]
    assert "imagefresh.toml" in kept["sources"]["repos_dir"]
    assert "branch" not in kept["sources"]


def test_the_hosts_compose_configuration_is_kept_and_its_differences_are_named(session: Session) -> None:
    place = session()
    folder = folder_of(place)
    service = json.loads((folder / "compose.json").read_text())["services"]["shop-staging"]
    assert service["environment"] == {"API_TOKEN": "***", "ROLE": "staging", "LEVEL": "***"}
    digest, sentence, *lines = (folder / "compose-differences.txt").read_text().splitlines()
    record = json.loads((folder / "chain.json").read_text())
    assert digest == f"sha256 of the host's resolved configuration: {record['compose_sha256']}"
    assert len(record["compose_sha256"]) == 64
    assert sentence == "service shop-staging of the host's file differs from the commit's: environment, profiles"
    assert 'services.shop-staging.environment.ROLE: host has "staging", commit has nothing' in lines
    assert f"  compose: {sentence}; see compose-differences.txt" in ended(place).splitlines()


def test_a_compose_configuration_that_cannot_be_read_is_no_evidence(session: Session) -> None:
    place = session(faults=("compose-unknown",))
    assert "compose cannot resolve /srv/shop on fake, expected its configuration as evidence; it said: no" in ended(
        place
    )
    assert place.complete_records() == []


def test_hook_and_build_are_told_apart(session: Session) -> None:
    folder = folder_of(session())
    hook, build = (folder / "hook.log").read_text(), (folder / "build.log").read_text()
    assert "=== --build-staging" in hook
    assert "=== --verify" in hook
    assert build.startswith("Step 1/2 : FROM scratch")
    assert "verifying" not in build
    assert "the container says" in (folder / "container.log").read_text()


@pytest.mark.parametrize(
    "options",
    [("-rA",), ("-rA", "--tb=long", "-l"), ("--tb=short",), ("--tb=line",), ("--tb=native",), ("-vv", "-rA", "-n2")],
    ids=" ".join,
)
def test_no_secret_is_told_anywhere(session: Session, options: tuple[str, ...]) -> None:
    place = session("-o", "junit_logging=all", *options, files={"gates/test_own.py": TELLTALE}, faults=TOUCHED)
    found = everything(place)
    assert {name.rpartition("/")[2] for name in found} >= {"gate.xml", "output.txt", "hook.log", "settings.json"}
    leaks = {(name, secret) for name, text in found.items() for secret in SECRETS if secret in text}
    assert leaks == set(), ended(place)
    for name in ("gate.xml", "output.txt", "hook.log", "build.log", "container.log"):
        told = "".join(text for path, text in found.items() if path.endswith(name))
        assert OPEN in told, name
        assert "***" in told, name


def test_no_secret_is_told_by_the_staging_check(session: Session) -> None:
    place = session(
        settings='[targets.shop]\nstaging = { check_format = "tap" }\n',
        environment={"TAP": f"1..1\nnot ok 1 - {IN_CONTAINER}\n"},
    )
    leaks = [name for name, text in everything(place).items() if IN_CONTAINER in text]
    assert leaks == []
    assert "staging_check" in (place.path / "gate.xml").read_text()


def test_without_a_mask_the_same_session_tells_all_of_it(session: Session) -> None:
    """The secrets of these tests do reach what is written, where nothing is secret."""
    place = session(
        "-rA", files={"gates/test_own.py": TELLTALE}, environment={"IMAGEFRESH_SECRET_NAMES": "nothing_like_it"}
    )
    told = "".join(everything(place).values())
    assert [secret for secret in SECRETS[:3] if secret not in told] == []


def test_a_failing_case_shows_the_last_lines_of_hook_and_container(session: Session) -> None:
    place = session(faults=TOUCHED)
    case = [
        each for each in ElementTree.parse(place.path / "gate.xml").iter("testcase") if each.find("failure") is not None
    ]
    [output] = ["".join(each.itertext()) for each in case]
    for shown in (ended(place), output):
        assert "imagefresh: last lines of the hook" in shown
        assert "the hook says *** *** ***" in shown
        assert "imagefresh: last lines of the staging container" in shown
        assert "the container says *** *** ***" in shown


def test_a_passing_case_shows_none(session: Session) -> None:
    place = session()
    assert "last lines of" not in ended(place)
    assert not list(ElementTree.parse(place.path / "gate.xml").iter("system-out"))


def test_the_last_twenty_runs_are_kept(session: Session, tmp_path: Path) -> None:
    runs = tmp_path / ".imagefresh" / "shop"
    old = [runs / f"2026010{day}T0304{second:02d}Z-0123abcd" for day in (1, 2) for second in range(15)]
    for folder in [*old, runs / "kept-by-a-person"]:
        (folder / "shop").mkdir(parents=True)
        (folder / "shop" / "chain.json").write_text('{"complete": false}')
    place = session()
    [complete] = place.complete_records()
    kept = {path.name for path in runs.iterdir()}
    assert kept == {complete["run_id"], "kept-by-a-person", *(path.name for path in old[-19:])}


def test_evidence_goes_where_it_is_told(session: Session, tmp_path: Path) -> None:
    place = session("--gate-evidence=there/and here")
    assert folder_of(place) == tmp_path / "there" / "and here" / "shop"
    assert not (tmp_path / ".imagefresh").exists()


def seconds(place: Place) -> dict[str, float]:
    """Return name of a case -> its time in seconds."""
    cases = ElementTree.parse(place.path / "gate.xml").iter("testcase")
    return {str(case.get("name")): float(str(case.get("time"))) for case in cases}


def test_the_rebuild_is_charged_to_its_own_test(session: Session) -> None:
    taken = seconds(session(environment={"BUILD_SECONDS": "3"}))
    own = taken.pop("test_staging_is_rebuilt_from_validated_revision[shop]")
    assert own > max(taken.values())
    assert own >= 3
    assert "rebuild of staging[shop]" not in taken


@pytest.mark.parametrize("options", [("-k", "label or carries"), ("-k", "accepts", "-n1")], ids=" ".join)
def test_the_rebuild_is_charged_to_no_other_test(session: Session, options: tuple[str, ...]) -> None:
    taken = seconds(session("--gate-partial", *options, environment={"BUILD_SECONDS": "3"}))
    apart = taken.pop("rebuild of staging[shop]")
    assert taken
    assert apart > max(taken.values())
    assert apart >= 3
