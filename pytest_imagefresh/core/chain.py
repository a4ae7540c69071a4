"""The links of the chain, the ledger of proofs, and what follows from them for the exit status."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from pytest_imagefresh.core.errors import ConfigError
from pytest_imagefresh.core.inventory import bears


class Link(enum.Enum):
    """The closed set of links, in the order in which they are proven. Each is one gate test and one proof."""

    REBUILT = "rebuilt from the validated revision"
    CONTENT = "image holds the commit's files"
    CONTAINER = "container runs the built image"
    PORT = "container answers on its own port"
    SILENCE = "port falls silent with the container"
    CHECK = "staging check passed"
    LABEL = "image carries the validated revision"
    ACCEPTS = "hook accepts this image"
    REFUSES_WRONG = "hook refuses a wrong revision"
    REFUSES_EMPTY = "hook refuses an empty revision"
    REFUSES_UNLABELLED = "hook refuses an unlabelled image"
    SELF_TEST = "hook's self-test passes"
    UNCHANGED = "container runs unchanged files"
    SAME_CONTAINER = "container is still the same"
    ANCHOR_HOLDS = "branch is still at the validated revision"
    PRODUCTION = "production untouched"
    LEASE = "no other run came between"

    @classmethod
    def named(cls, name: str) -> Link:
        """Return the link of that name, `REBUILT` and the like. Raises ConfigError for any other."""
        try:
            return cls[name]
        except KeyError:
            raise ConfigError(f"no link is named {name!r}; expected one of {', '.join(cls.__members__)}") from None


ORDER = {link: place for place, link in enumerate(Link)}


@dataclass(frozen=True)
class Proof:
    """One link of one target, proven in this session by one gate test."""

    target: str
    link: Link
    subject: str
    """The image ID or revision that was proven."""
    reason: str
    expected: str
    observed: str

    def as_record(self) -> dict[str, str]:
        """Return plain text fields, fit for JSON and for a test report that crosses processes."""
        return {**asdict(self), "link": self.link.name}

    @classmethod
    def from_record(cls, record: Mapping[str, str]) -> Proof:
        """Undo `as_record`."""
        return cls(**{**record, "link": Link.named(record["link"])})  # type: ignore[arg-type]


class Outcome(enum.Enum):
    """How one gate test ended."""

    PASSED = "passed"
    REFUSED = "refused"
    """A failure of any kind: what is known to be wrong."""
    UNKNOWN = "could not find out"
    LEFT_OUT = "left out"
    """Skipped, xfailed, deselected: whatever was not proven."""

    def severity(self) -> int:
        """Return a number that is the greater, the worse: for `max`."""
        return (Outcome.PASSED, Outcome.LEFT_OUT, Outcome.UNKNOWN, Outcome.REFUSED).index(self)


@dataclass(frozen=True)
class Retraction:
    """A link that was proven, and at a last look did not hold any more."""

    target: str
    link: Link
    outcome: Outcome
    reason: str

    def as_record(self) -> dict[str, str]:
        """Return plain text fields, fit for crossing processes."""
        return {**asdict(self), "link": self.link.name, "outcome": self.outcome.name}

    @classmethod
    def from_record(cls, record: Mapping[str, str]) -> Retraction:
        """Undo `as_record`."""
        return cls(record["target"], Link.named(record["link"]), Outcome[record["outcome"]], record["reason"])


class ExitStatus(enum.IntEnum):
    """What a gate session ends with, beside pytest's own 2, 3 and 5."""

    PROVEN = 0
    REFUSED = 1
    WRONG_USAGE = 4
    INCOMPLETE = 10
    UNKNOWN = 11


@dataclass
class Ledger:
    """The proofs and outcomes of one session. A link counts when its proof was recorded, not when nothing failed."""

    targets: tuple[str, ...]
    proofs: dict[tuple[str, Link], Proof] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """Node ID of a gate test, or of any test that failed -> how it ended; the worst of its phases and reruns stays."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Node ID of a test that did not pass -> why, in one sentence."""
    expected: set[str] = field(default_factory=set)
    """Node IDs of the gate tests that were collected, before any selection."""
    declared: set[str] = field(default_factory=set)
    """`file.py::name` of the tests that the gates folder declares, whatever was collected."""
    weaknesses: list[str] = field(default_factory=list)
    """What about the session weakens its tests, in words."""
    broken: dict[tuple[str, Link], tuple[Outcome, str]] = field(default_factory=dict)
    """A link that was tried and not proven -> how that ended, and why in one sentence."""
    retracted: list[Retraction] = field(default_factory=list)
    """What was proven and did not hold to the end."""
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    """Target -> what a report names it by: revision, image_id, container_id, engine_id."""

    def record(self, proof: Proof) -> None:
        """Keep one proof."""
        self.proofs[(proof.target, proof.link)] = proof

    def retract(self, found: Retraction) -> None:
        """Take a proof back."""
        self.retracted.append(found)
        self.proofs.pop((found.target, found.link), None)
        self.broken[found.target, found.link] = found.outcome, found.reason
        self.note(f"{found.target}: {found.link.value}", found.outcome, found.reason)

    def weaken(self, *sentences: str) -> None:
        """Keep what weakens the session, each sentence once."""
        self.weaknesses[:] = dict.fromkeys([*self.weaknesses, *sentences])

    def note(self, node_id: str, outcome: Outcome, reason: str = "") -> None:
        """Keep how a gate test ended; a later phase or rerun never improves it."""
        known = self.outcomes.get(node_id, Outcome.PASSED)
        self.outcomes[node_id] = max(known, outcome, key=Outcome.severity)
        if reason:
            self.reasons.setdefault(node_id, reason)

    def state(self, target: str, link: Link) -> tuple[str, str]:
        """Return what is known of a link: a word, and one sentence."""
        proof = self.proofs.get((target, link))
        outcome, reason = self.broken.get((target, link), (Outcome.LEFT_OUT, "no test proved it"))
        if proof is not None and outcome is Outcome.LEFT_OUT:
            return "proven", proof.reason
        return {Outcome.REFUSED: "refused", Outcome.UNKNOWN: "unknown"}.get(outcome, "not proven"), reason

    def missing(self) -> list[str]:
        """Return what keeps the chain from being complete, one line each, in order."""
        unproven = [
            f"{target}: {link.value}" for target in self.targets for link in Link if (target, link) not in self.proofs
        ]
        return [
            *self.weaknesses,
            *([] if self.targets else ["no target"]),
            *unproven,
            *self._disordered(),
            *(f"left out: {name}" for name in sorted(self._left_out())),
        ]

    def _disordered(self) -> Iterable[str]:
        """What is looked at last must have been: a proof counts in the order of the chain only."""
        for target in self.targets:
            proven = [link for name, link in self.proofs if name == target]
            for first, second in itertools.pairwise(proven):
                if ORDER[first] > ORDER[second]:
                    yield f"{target}: out of order: {first.value!r} was proven before {second.value!r}"

    def _left_out(self) -> set[str]:
        """Gate tests that exist and did not pass; those that failed are known otherwise."""
        told = {name for name, outcome in self.outcomes.items() if outcome is Outcome.LEFT_OUT}
        silent = self.expected - self.outcomes.keys()
        undone = {name for name in self.declared if not any(bears(node_id, name) for node_id in self._known())}
        return told | silent | undone

    def _known(self) -> set[str]:
        return self.expected | self.outcomes.keys()

    def subjects_disagree(self) -> list[str]:
        """Return the targets whose proofs speak of more than one image."""
        return [target for target in self.targets if len(set(self._images(target))) > 1]

    def _images(self, target: str) -> Iterable[str]:
        return (
            proof.subject
            for (name, _), proof in self.proofs.items()
            if name == target and proof.subject.startswith("sha256:")
        )


def exit_status(pytest_status: int, ledger: Ledger, *, partial: bool) -> int:
    """Return the exit status of a gate session: pytest's own, raised where the chain says no, never lowered.

    1. pytest's own interruption, internal error or usage error stays; 2. a known no is 1; 3. only evidence errors are
    11; 4. a partial run ends with the status of what ran; 5. anything unproven is 10.
    """
    outcomes = set(ledger.outcomes.values())
    if pytest_status not in (0, 1):
        return pytest_status
    if Outcome.REFUSED in outcomes or ledger.subjects_disagree():
        return ExitStatus.REFUSED
    if Outcome.UNKNOWN in outcomes:
        return ExitStatus.UNKNOWN
    if partial or pytest_status == 1:
        return pytest_status
    return ExitStatus.INCOMPLETE if ledger.missing() else pytest_status
