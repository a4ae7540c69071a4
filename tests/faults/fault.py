"""What a fault is: something that goes wrong, and how a gate must end then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.scene import Scene
from tests.gate_folder import Ended

Inject = Callable[[Scene], "Ended | None"]
"""Makes one thing go wrong. Returns how the command ended that must notice; None: the gate is still to be run."""

LOCAL = ("local",)
SSH = ("ssh",)
BOTH = ("local", "ssh")


@dataclass(frozen=True)
class Expected:
    """How it must end."""

    status: int
    """The exit status of the gate, or of the command that `inject` returned."""
    reason: str
    """A pattern that one line of the output matches: the line that names the cause."""
    staging: str = "old"
    """What staging serves afterwards, or several of these: the `old` revision, the `new` one, a `third` one,
    `nothing`, or something `unnamed`, which answers without a revision.
    """
    recorded: bool = False
    """Whether a complete record of the new revision may exist afterwards: it is what a promotion takes."""

    def __str__(self) -> str:
        record = "a complete record" if self.recorded else "no record"
        return f"exit {self.status}, staging {self.staging}, {record}"


def passes(reason: str = "^GATE PASSED$", *, staging: str = "new") -> Expected:
    """The gate is right to pass: the fault has no say."""
    return Expected(0, reason, staging, recorded=True)


def refused(reason: str, *, staging: str = "old") -> Expected:
    """It is known to be wrong."""
    return Expected(1, reason, staging)


def unknown(reason: str, *, staging: str = "old") -> Expected:
    """It could not be found out."""
    return Expected(11, reason, staging)


def misused(reason: str) -> Expected:
    """The operator asked wrongly, and nothing was tried."""
    return Expected(4, reason)


def not_promoted(reason: str, *, status: int = 1, staging: str = "new") -> Expected:
    """The gate was right to pass; what went wrong since keeps the promotion from happening."""
    return Expected(status, reason, staging, recorded=True)


@dataclass(frozen=True)
class Fault:
    """One fault."""

    name: str
    section: str
    expected: Expected
    inject: Inject
    hosts: tuple[str, ...] = LOCAL
    deployed: bool = True
    """Whether staging and production run the old revision beforehand; not needed where nothing may even be tried."""
    production_moves: bool = False
    """Whether the fault itself changes production, as a colleague would."""
    root: bool = False
    """Whether it can be injected by root only."""
    bound: float | None = None
    """The timeouts that must end it, in seconds as configured; None where nothing hangs."""

    @property
    def may_serve(self) -> set[str]:
        """What staging may serve afterwards. What was not deployed cannot be served."""
        words = set(self.expected.staging.split(" or "))
        return words if self.deployed else {"nothing" if word == "old" else word for word in words}


class Section:
    """A list of faults under one heading, filled in by the decorator `fault`."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.faults: list[Fault] = []

    def fault(
        self,
        name: str,
        expected: Expected,
        *,
        hosts: tuple[str, ...] = LOCAL,
        deployed: bool = True,
        production_moves: bool = False,
        root: bool = False,
        bound: float | None = None,
    ) -> Callable[[Inject], Inject]:
        """Enter the decorated function as a fault of this section."""

        def enter(inject: Inject) -> Inject:
            fault = Fault(name, self.title, expected, inject, hosts, deployed, production_moves, root, bound)
            self.faults.append(fault)
            return inject

        return enter
