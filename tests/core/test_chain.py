"""The ledger and the exit status: only recorded proofs count, and nothing lowers a status."""

from __future__ import annotations

import itertools

import pytest

from pytest_imagefresh.core.chain import ExitStatus, Ledger, Link, Outcome, Proof, exit_status
from pytest_imagefresh.core.errors import ConfigError

IMAGE = "sha256:" + "4" * 64


def proof(link: Link, target: str = "shop", subject: str = IMAGE) -> Proof:
    return Proof(target, link, subject, "reason", "expected", "observed")


def complete_ledger(*targets: str) -> Ledger:
    ledger = Ledger(targets or ("shop",))
    for target, link in itertools.product(ledger.targets, Link):
        ledger.record(proof(link, target))
        ledger.note(f"test_{link.name}[{target}]", Outcome.PASSED)
    return ledger


def test_a_complete_chain_is_proven() -> None:
    ledger = complete_ledger("web", "worker")
    assert ledger.missing() == []
    assert exit_status(0, ledger, partial=False) == ExitStatus.PROVEN


@pytest.mark.parametrize("link", Link)
def test_any_single_missing_link_is_incomplete(link: Link) -> None:
    ledger = complete_ledger("web", "worker")
    del ledger.proofs[("worker", link)]
    assert exit_status(0, ledger, partial=False) == ExitStatus.INCOMPLETE
    assert ledger.missing() == [f"worker: {link.value}"]


def test_nothing_to_prove_is_incomplete() -> None:
    assert exit_status(0, Ledger(()), partial=False) == ExitStatus.INCOMPLETE


def test_a_gate_test_left_out_is_incomplete() -> None:
    ledger = complete_ledger()
    ledger.note("gates/test_own.py::test_own[shop]", Outcome.LEFT_OUT)
    assert exit_status(0, ledger, partial=False) == ExitStatus.INCOMPLETE


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([Outcome.REFUSED], ExitStatus.REFUSED),
        ([Outcome.UNKNOWN], ExitStatus.UNKNOWN),
        ([Outcome.UNKNOWN, Outcome.REFUSED], ExitStatus.REFUSED),
        ([Outcome.UNKNOWN, Outcome.LEFT_OUT], ExitStatus.UNKNOWN),
        ([], ExitStatus.REFUSED),
    ],
)
def test_a_failed_session_says_why(outcomes: list[Outcome], expected: ExitStatus) -> None:
    ledger = complete_ledger()
    for place, outcome in enumerate(outcomes):
        ledger.note(f"test_{place}", outcome)
    assert exit_status(1, ledger, partial=False) == expected


def test_a_refusal_counts_also_where_pytest_says_0() -> None:
    ledger = complete_ledger()
    ledger.note("test", Outcome.REFUSED)
    assert exit_status(0, ledger, partial=False) == ExitStatus.REFUSED


def test_a_rerun_never_improves_an_outcome() -> None:
    ledger = complete_ledger()
    ledger.note("test", Outcome.REFUSED)
    ledger.note("test", Outcome.PASSED)
    assert ledger.outcomes["test"] is Outcome.REFUSED


def test_proofs_of_two_images_are_refused() -> None:
    ledger = complete_ledger()
    ledger.record(proof(Link.LABEL, subject="sha256:" + "5" * 64))
    assert exit_status(0, ledger, partial=False) == ExitStatus.REFUSED


@pytest.mark.parametrize("status", [2, 3, 4, 5, 77])
def test_a_status_of_pytest_is_never_lowered(status: int) -> None:
    assert exit_status(status, complete_ledger(), partial=False) == status
    assert exit_status(status, complete_ledger(), partial=True) == status


@pytest.mark.parametrize("status", [0, 1])
def test_a_partial_run_ends_with_the_status_of_what_ran(status: int) -> None:
    assert exit_status(status, Ledger(("shop",)), partial=True) == status


def test_a_proof_survives_its_journey_as_text() -> None:
    assert Proof.from_record(proof(Link.PORT).as_record()) == proof(Link.PORT)


def test_an_unknown_link_is_the_operators_mistake() -> None:
    with pytest.raises(ConfigError, match="no link is named 'PROT'"):
        Link.named("PROT")
