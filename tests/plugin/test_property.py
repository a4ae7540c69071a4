"""Exit status 0 if and only if every required link was proven: over random ledgers, and over random sessions."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, example, given, settings
from hypothesis import strategies as st

from pytest_imagefresh.core.chain import ORDER, ExitStatus, Ledger, Link, Outcome, Proof, exit_status
from pytest_imagefresh.core.inventory import declared_tests
from tests.forks import Forks
from tests.gate_folder import GateFolder
from tests.plugin.place import Place
from tests.plugin.routes import Route
from tests.support import ROOT

# --- the ledger against a model of its own ----------------------------------------------------------------------------

LINKS = list(Link)
IMAGES = ["sha256:" + "4" * 64, "sha256:" + "5" * 64, "f" * 40]
NAMES = [f"gates/test_{letter}.py::test_{letter}" for letter in "abc"]


@dataclass
class Told:
    """What a ledger is told, in order."""

    targets: tuple[str, ...]
    proofs: list[tuple[str, Link, str]]
    notes: list[tuple[str, Outcome]]
    expected: set[str]
    declared: set[str]
    weaknesses: list[str]

    def ledger(self) -> Ledger:
        """Return a ledger that was told all of it."""
        ledger = Ledger(self.targets, expected=set(self.expected), declared=set(self.declared))
        for target, link, subject in self.proofs:
            ledger.record(Proof(target, link, subject, "reason", "expected", "observed"))
        for name, outcome in self.notes:
            ledger.note(name, outcome)
        ledger.weaken(*self.weaknesses)
        return ledger

    def complete(self) -> bool:
        """Whether a gate of which this is told is complete, said in another way than the ledger says it."""
        return bool(self.targets) and not self.weaknesses and self._all_ran() and all(map(self._proven, self.targets))

    def _proven(self, target: str) -> bool:
        first_time = list(dict.fromkeys(link for name, link, _ in self.proofs if name == target))
        return first_time == LINKS

    def _all_ran(self) -> bool:
        seen = {name for name, _ in self.notes}
        left_out = any(outcome is Outcome.LEFT_OUT and not self.bad(name) for name, outcome in self.notes)
        existing = seen | self.expected
        unknown = {name for name in self.declared if not any(each.split("[")[0].endswith(name) for each in existing)}
        return not left_out and not unknown and self.expected <= seen

    def bad(self, name: str) -> bool:
        """Whether a test is known to have failed."""
        return bool({(name, Outcome.REFUSED), (name, Outcome.UNKNOWN)} & set(self.notes))

    def of_two_images(self) -> bool:
        """Whether the last proofs of some target speak of more than one image."""
        last = {(target, link): subject for target, link, subject in self.proofs}
        images = {(target, subject) for (target, _), subject in last.items() if subject.startswith("sha256:")}
        return any(sum(name == target for name, _ in images) > 1 for target in self.targets)

    def status(self, pytest_status: int, *, partial: bool) -> int:
        """Return the exit status that must follow."""
        told = {outcome for _, outcome in self.notes}
        if pytest_status > 1:
            return pytest_status
        if Outcome.REFUSED in told or self.of_two_images():
            return 1
        if Outcome.UNKNOWN in told:
            return 11
        return pytest_status or (0 if partial or self.complete() else 10)


@st.composite
def stories(draw: st.DrawFn) -> Told:
    """Complete gates to which a few things happened."""
    targets = draw(st.sampled_from([(), ("shop",), ("shop",), ("shop", "jobs")]))
    proofs = [(target, link, IMAGES[0]) for target in targets for link in LINKS]
    for change in draw(st.lists(st.sampled_from(["drop", "swap", "again", "other"]), max_size=2)):
        _change(draw, change, proofs)
    some = st.sampled_from(NAMES)
    return Told(
        targets,
        proofs,
        draw(st.lists(st.tuples(some, st.sampled_from([Outcome.PASSED, Outcome.PASSED, *Outcome])), max_size=4)),
        draw(st.sets(some, max_size=1)),
        draw(st.sets(st.sampled_from([name.removeprefix("gates/") for name in NAMES]), max_size=1)),
        draw(st.sampled_from([[], [], [], ["weakened"]])),
    )


def _change(draw: st.DrawFn, change: str, proofs: list[tuple[str, Link, str]]) -> None:
    if not proofs:
        return
    place = draw(st.integers(0, len(proofs) - 1))
    target, link, _ = proofs[place]
    if change == "drop":
        del proofs[place]
    elif change == "swap":
        proofs.insert(draw(st.integers(0, len(proofs) - 1)), proofs.pop(place))
    else:
        proofs.append((target, link, IMAGES[0] if change == "again" else draw(st.sampled_from(IMAGES))))


@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
@given(told=stories(), pytest_status=st.sampled_from([0, 0, 0, 1, 2, 3, 5, 77]), partial=st.booleans())
def test_the_exit_status_is_that_of_the_model(told: Told, pytest_status: int, partial: bool) -> None:
    expected = told.status(pytest_status, partial=partial)
    event(f"status {expected}")
    assert exit_status(pytest_status, told.ledger(), partial=partial) == expected


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(told=stories(), pytest_status=st.integers(0, 20), partial=st.booleans())
def test_no_status_is_ever_lowered(told: Told, pytest_status: int, partial: bool) -> None:
    status = exit_status(pytest_status, told.ledger(), partial=partial)
    assert status >= pytest_status or status in (ExitStatus.REFUSED, pytest_status)
    assert status != 0 or pytest_status == 0


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(told=stories(), outcome=st.sampled_from([Outcome.REFUSED, Outcome.UNKNOWN, Outcome.LEFT_OUT]))
def test_one_more_no_never_helps(told: Told, outcome: Outcome) -> None:
    before = exit_status(0, told.ledger(), partial=False)
    told.notes.append((NAMES[0], outcome))
    assert exit_status(0, told.ledger(), partial=False) != 0
    assert before == 0 or exit_status(0, told.ledger(), partial=False) != 0


# --- whole sessions against a model of its own ------------------------------------------------------------------------

TESTS = {
    name: place
    for place, name in enumerate(
        name
        for file in ("test_staging_fresh.py", "test_provenance.py")
        for name in declared_tests((ROOT / "gates" / file).read_text())
    )
}
"""Name of a gate test -> its place in the chain."""

ACTOR = """
import json, pathlib, pytest
from pytest_imagefresh.core.errors import EvidenceError, Refused

PLAN = json.loads(pathlib.Path("plan.json").read_text())
RAISED = {"refuse": Refused, "unknown": EvidenceError, "raise": ValueError, "exit": SystemExit}

def plan_of(item):
    return PLAN.get(item.name.partition("[")[0], "prove")

def pytest_itemcollected(item):
    plan = plan_of(item)
    if plan == "silent":
        item.obj = lambda **given: None
    elif plan.startswith("xfail") or plan == "xpass":
        item.add_marker(pytest.mark.xfail(strict=plan == "xfail strict"))
    elif plan == "skip mark":
        item.add_marker(pytest.mark.skip)

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if plan_of(item) != "drop"]

def pytest_runtest_setup(item):
    if plan_of(item) == "skip in setup":
        pytest.skip("planned")

def pytest_runtest_call(item):
    plan = plan_of(item)
    if plan in RAISED:
        raise RAISED[plan]("planned")
    if plan.startswith("xfail"):
        raise ValueError("planned")
    if plan == "skip in call":
        pytest.skip("planned")

@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    if plan_of(item) == "raise in teardown":
        raise ValueError("planned")

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if plan_of(item) == "lie" and report.when == "call":
        report.outcome = "passed"
    return report

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    result = yield
    if plan_of(pyfuncitem) == "lie":
        raise ValueError("planned")
    return result
"""
FAILING = {"refuse", "raise", "exit", "unknown", "raise in teardown", "lie"}
PLANS = st.sampled_from(
    [
        "prove",
        "silent",
        "xfail",
        "xfail strict",
        "xpass",
        "skip mark",
        "skip in setup",
        "skip in call",
        "drop",
        *sorted(FAILING),
    ]
)
SELECTIONS = st.sampled_from(
    [(), (), (), ("-k", "not label"), ("-k", "not {name}"), ("--deselect={id}",), ("-k", "{name}")]
)
ADDED = st.sampled_from(
    [
        (),
        (),
        ("-v",),
        ("-x",),
        ("-n2",),
        ("-p", "no:cacheprovider"),
        ("--tb=no", "-q"),
        ("--runxfail",),
        ("--co",),
        ("--assert=plain",),
    ]
)
INI = st.sampled_from(["", "", "", "addopts = -rA", "addopts = -x", "addopts = --gate-partial", "addopts = -k test"])


@dataclass(frozen=True)
class Session:
    """One random session."""

    plan: dict[str, str]
    selection: tuple[str, ...]
    named: str
    """The gate test that the selection is about."""
    added: tuple[str, ...]
    ini: str
    partial: bool
    files: dict[str, str] = field(default_factory=dict)

    def options(self) -> list[str]:
        """Return what is typed."""
        file = "test_staging_fresh.py" if TESTS[self.named] < 4 else "test_provenance.py"
        chosen = [word.format(name=self.named, id=f"gates/{file}::{self.named}") for word in self.selection]
        return [*chosen, *self.added, *(["--gate-partial"] if self.partial else [])]

    def selected(self, name: str) -> bool:
        """Whether a gate test is chosen to run."""
        if self.plan.get(name) == "drop" or "--co" in self.added:
            return False
        if self.selection == ("-k", "not label"):
            return "label" not in name
        if self.selection == ("-k", "{name}"):
            return self.named in name
        return not self.selection or name != self.named

    def all_proven(self) -> bool:
        """Whether every link is proven in this session, and nothing weakens it."""
        weakened = "--assert=plain" in self.added or self.ini not in ("", "addopts = -rA", *self._said_by_all())
        return not weakened and all(self.proves(name) for name in TESTS)

    def _said_by_all(self) -> list[str]:
        # What is also typed is a person's choice, wherever else it stands.
        typed = self.options()
        return (
            ["addopts = -x"] * ("-x" in typed)
            + ["addopts = --gate-partial"] * self.partial
            + ["addopts = -k test"] * ("-k" in typed)
        )

    def proves(self, name: str) -> bool:
        """Whether one gate test records a proof that counts."""
        unexpected = "--runxfail" in self.added and self.plan.get(name) == "xpass"
        return self.selected(name) and (self.plan.get(name, "prove") == "prove" or unexpected)

    def may_claim(self, name: str) -> bool:
        """Whether a record may hold a proof of one gate test; one that breaks afterwards completes nothing."""
        return self.proves(name) or (self.selected(name) and self.plan.get(name) == "raise in teardown")

    def fails(self) -> bool:
        """Whether something that runs is known to fail."""
        bad = FAILING | ({"xfail", "xfail strict"} if "--runxfail" in self.added else set())
        return any(self.selected(name) and self.plan.get(name) in bad for name in TESTS)

    def nothing_runs(self) -> bool:
        """Whether pytest itself has nothing to say yes to."""
        return not any(map(self.selected, TESTS)) and "--co" not in self.added

    def passes(self) -> bool:
        """Whether it must end with 0."""
        return not self.fails() and not self.nothing_runs() if self.partial else self.all_proven()


SESSIONS = st.builds(
    Session,
    plan=st.dictionaries(st.sampled_from(sorted(TESTS)), PLANS, max_size=2),
    selection=SELECTIONS,
    named=st.sampled_from(sorted(TESTS)),
    added=ADDED,
    ini=INI,
    partial=st.sampled_from([False, False, True]),
)
NOTHING: dict[str, Any] = {
    "selection": (),
    "named": "test_hook_accepts_this_image",
    "added": (),
    "ini": "",
    "partial": False,
}


@pytest.mark.sessions
@settings(
    max_examples=15,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(session=SESSIONS)
@example(session=Session(plan={}, **NOTHING))
@example(session=Session(plan={}, **{**NOTHING, "added": ("-n2",)}))
@example(session=Session(plan={}, **{**NOTHING, "partial": True, "selection": ("-k", "{name}")}))
@example(session=Session(plan={"test_hook_accepts_this_image": "lie"}, **NOTHING))
@example(session=Session(plan={"test_hook_accepts_this_image": "lie"}, **{**NOTHING, "partial": True}))
@example(session=Session(plan={"test_hook_accepts_this_image": "xpass"}, **{**NOTHING, "added": ("--runxfail",)}))
def test_a_session_passes_if_and_only_if_everything_was_proven(
    shared: GateFolder, forks: Forks, tmp_path_factory: pytest.TempPathFactory, session: Session
) -> None:
    place = _place(shared, forks, tmp_path_factory.mktemp("session"), session)
    ended = place.gate()
    event(f"status {ended.status}")
    assert (ended.status == 0) == session.passes(), ended
    assert bool(place.complete_records()) == (session.passes() and not session.partial), ended
    for record in place.records():
        claimed = {ORDER[Link[proof["link"]]] for proof in record["proofs"]}
        assert claimed <= {TESTS[name] for name in TESTS if session.may_claim(name)}, ended
    assert bool(place.problems()) == (ended.status != 0), ended


def _place(shared: GateFolder, forks: Forks, path: Path, session: Session) -> Place:
    files = {"conftest.py": ACTOR, "plan.json": json.dumps(session.plan)}
    place = Place(shared, forks, path, Route("random", tuple(session.options()), files=files, ini=session.ini))
    place.put_gates()
    return place
