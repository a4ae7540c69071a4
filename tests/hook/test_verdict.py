"""A signed verdict: what is accepted, that it works once, and that all else is refused, each for its own cause."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hook.harness import PROD_ID, REVISION, STAGING_ID, Outcome, PretendedHost
from tests.hook.verdicts import GATE_RUN, PRINCIPAL, Signed, make_key, pack, sign

pytestmark = pytest.mark.root  # a policy is root's

OTHER_ID = "sha256:" + "7" * 64
LATER_RUN = "20260102T030406Z-00000000"


@pytest.fixture
def signed(pretended: PretendedHost, tmp_path: Path) -> Signed:
    return Signed(pretended, tmp_path)


def refusal(signed: Signed, verdict: str | None, **variables: str | None) -> tuple[int, str]:
    """Let `--verify` refuse; nothing may change. `--promote` decides by the very same function."""
    before = signed.host.state["containers"], signed.host.state["images"]
    verified = signed.host.verify(VERDICT=verdict, **variables)
    assert (signed.host.state["containers"], signed.host.state["images"]) == before
    assert list(signed.ledger.iterdir() if signed.ledger.is_dir() else []) == []
    return verified.verdict


def both(signed: Signed, verdict: str | None, **variables: str | None) -> Outcome:
    """Let `--verify` and `--promote` refuse; they must agree, and nothing may change."""
    before = signed.host.state["containers"], signed.host.state["images"]
    verified = signed.host.verify(VERDICT=verdict, **variables)
    promoted = signed.host.promote(VERDICT=verdict, **variables)
    assert promoted.verdict == verified.verdict
    assert (signed.host.state["containers"], signed.host.state["images"]) == before
    assert signed.host.changes() == []
    assert not (signed.ledger / GATE_RUN).exists()
    return verified


def test_the_verdict_of_a_complete_gate_is_accepted_and_used_up(signed: Signed) -> None:
    verdict = signed.verdict()
    verified = signed.host.verify(VERDICT=verdict)
    assert verified.verdict == (0, "verified"), verified.reason
    assert verified.line["verdict"] == "accepted"
    assert verified.line["prod_runs"] == PROD_ID
    assert list(signed.ledger.iterdir()) == []
    promoted = signed.host.promote(VERDICT=verdict)
    assert promoted.verdict == (0, "promoted"), promoted.reason
    assert [path.name for path in signed.ledger.iterdir()] == [GATE_RUN]


def test_a_frozen_production_accepts_a_verdict_and_does_not_use_it_up(signed: Signed) -> None:
    verdict = signed.verdict()
    signed.host.freeze()
    assert signed.host.verify(VERDICT=None).verdict == (1, "verdict-missing")
    outcome = both(signed, verdict)
    assert (outcome.cause, outcome.line["verdict"], outcome.image_id) == ("frozen", "accepted", STAGING_ID)
    signed.host.unfreeze()
    assert signed.host.promote(VERDICT=verdict).verdict == (0, "promoted")


def test_a_verdict_from_before_a_break_glass_promotion_cannot_undo_it(signed: Signed) -> None:
    verdict = signed.verdict()
    signed.host.policy(BREAK_GLASS="yes")
    assert signed.host.break_glass().verdict == (0, "broke-glass")
    assert list(signed.ledger.iterdir()) == []
    assert signed.host.promote(VERDICT=verdict).verdict == (1, "verdict-production-changed")


def test_a_verdict_works_once(signed: Signed) -> None:
    verdict = signed.verdict()
    assert signed.host.promote(VERDICT=verdict).verdict == (0, "promoted")
    again = signed.verdict(runs=STAGING_ID)  # even when everything else is right again
    outcome = signed.host.promote(VERDICT=again)
    assert outcome.verdict == (1, "verdict-used")
    assert GATE_RUN in outcome.reason


def test_a_promotion_that_was_rolled_back_has_used_its_verdict(signed: Signed) -> None:
    verdict = signed.verdict()
    signed.host.set(answer_of={STAGING_ID: ["500"]})
    assert signed.host.promote(VERDICT=verdict, HEALTH_TIMEOUT="0.3").status == 3
    signed.host.set(answer_of={})
    assert signed.host.promote(VERDICT=verdict).verdict == (1, "verdict-used")


def test_an_unused_verdict_from_before_another_promotion_is_refused(signed: Signed) -> None:
    """Gate A, gate B, promote B: A's verdict would roll production back."""
    first, second = signed.verdict(), signed.verdict(run=LATER_RUN)
    assert signed.host.promote(VERDICT=second).verdict == (0, "promoted")
    assert signed.host.promote(VERDICT=first).verdict == (1, "verdict-production-changed")
    rewound = signed.verdict(runs=STAGING_ID)
    assert signed.host.promote(VERDICT=rewound).verdict == (1, "verdict-superseded")


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"image": "shop-other"}, "verdict-other-target"),
        ({"service": "other"}, "verdict-other-target"),
        ({"port": 43199}, "verdict-other-target"),
        ({"repo": "other"}, "verdict-other-target"),
        ({"id": OTHER_ID}, "verdict-other-image"),
        ({"revision": "2" * 40}, "verdict-other-revision"),
        ({"engine": "ENGINE:TWO"}, "verdict-other-engine"),
        ({"runs": OTHER_ID}, "verdict-production-changed"),
        ({"runs": ""}, "verdict-production-changed"),
        ({"compose": "0" * 64}, "verdict-compose-changed"),
        ({"contract": 2}, "verdict-contract"),
        ({"verifier": 2}, "verdict-contract"),
        ({"principal": "somebody"}, "verdict-signature"),
        ({"time": "1990-01-01T00:00:00Z"}, "verdict-expired"),
        ({"time": "2100-01-01T00:00:00Z"}, "verdict-future"),
        ({"time": "2026-13-45T00:00:00Z"}, "verdict-malformed"),
        ({"run": "../../../etc/passwd"}, "verdict-malformed"),
        ({"run": GATE_RUN.upper()}, "verdict-malformed"),
        ({"principal": "*"}, "verdict-malformed"),
        ({"revision": "1" * 12}, "verdict-malformed"),
    ],
    ids=str,
)
def test_any_single_difference_is_refused(signed: Signed, changes: dict[str, object], cause: str) -> None:
    assert refusal(signed, signed.verdict(**changes)) == (1, cause)


def test_the_policy_says_how_old_a_verdict_may_be(signed: Signed) -> None:
    hour_old = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3600))
    assert signed.host.verify(VERDICT=signed.verdict(time=hour_old)).verdict == (0, "verified")
    signed.host.policy(MAX_AGE="1800")
    assert both(signed, signed.verdict(time=hour_old)).verdict == (1, "verdict-expired")


def test_a_clock_may_be_a_little_ahead(signed: Signed) -> None:
    ahead = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 40))
    assert signed.host.verify(VERDICT=signed.verdict(time=ahead)).verdict == (0, "verified")


def test_a_host_that_requires_a_verdict_refuses_without_one_only_when_all_else_is_right(signed: Signed) -> None:
    outcome = both(signed, None)
    assert outcome.verdict == (1, "verdict-missing")
    assert (outcome.image_id, outcome.line["revision"]) == (STAGING_ID, REVISION)
    assert (outcome.line["verdict"], outcome.line["prod_runs"]) == ("required", PROD_ID)
    assert both(signed, None, EXPECTED_IMAGE_ID=OTHER_ID).verdict == (1, "image-id-mismatch")


def _forms(signed: Signed) -> dict[str, Callable[[], str]]:
    text = signed.text()
    signature = sign(signed.key, text)
    return {
        "text that is no base64": lambda: "verdict",
        "base64 with a line break": lambda: signed.verdict()[:40] + "\n" + signed.verdict()[40:],
        "nothing but a statement": lambda: pack(text),
        "nothing but a signature": lambda: pack(signature),
        "words behind the signature": lambda: pack(text, signature, b"more\n"),
        "an empty line behind the signature": lambda: pack(text, signature, b"\n"),
        "a second signature": lambda: pack(text, signature, signature),
        "a second statement": lambda: pack(text, text, signature),
        "a blank before the statement": lambda: pack(b" ", text, signature),
        "a key more in the statement": lambda: pack(text.replace(b'{"contract"', b'{"more":1,"contract"'), signature),
        "carriage returns": lambda: pack(text, signature.replace(b"\n", b"\r\n")),
        "a NUL byte": lambda: pack(text, b"\0", signature),
        "junk in the armor": lambda: pack(text, signature.replace(b"-----\nU1NI", b"-----\nU1 NI")),
        "a signature cut off": lambda: pack(text, signature[:-40]),
        "ten thousand characters": lambda: pack(text, signature, b"x" * 10_000),
    }


@pytest.mark.parametrize("form", list(range(15)))
def test_any_other_form_is_refused(signed: Signed, form: int) -> None:
    """ssh-keygen itself accepts some of these."""
    name, make = list(_forms(signed).items())[form]
    assert refusal(signed, make()) == (1, "verdict-malformed"), name


def test_an_empty_verdict_is_no_missing_one(signed: Signed) -> None:
    assert both(signed, "").verdict == (1, "verdict-empty")


@pytest.mark.parametrize("require", ["revision", "revision image_id"])
def test_a_verdict_that_nobody_requires_must_still_hold(signed: Signed, require: str) -> None:
    signed.host.policy(REQUIRE=require)
    assert both(signed, signed.verdict(id=OTHER_ID)).verdict == (1, "verdict-other-image")
    assert signed.host.verify(VERDICT=None).line["verdict"] == "not required"


def test_a_verdict_without_a_policy_is_refused(signed: Signed) -> None:
    verdict = signed.verdict()
    for path in signed.policies.iterdir():
        path.unlink()
    signed.policies.rmdir()
    assert both(signed, verdict).verdict == (1, "verdict-no-policy")


# --- who may sign -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_keys_of_every_usual_kind(signed: Signed, tmp_path: Path, kind: str) -> None:
    key = make_key(tmp_path / kind, kind)
    signed.allow(key)
    assert signed.host.verify(VERDICT=signed.verdict_of(key)).verdict == (0, "verified")


def test_an_edited_statement_is_refused(signed: Signed) -> None:
    text = signed.text()
    later = signed.text(run=LATER_RUN)
    assert both(signed, pack(later, sign(signed.key, text))).verdict == (1, "verdict-signature")


def test_another_key_and_another_namespace_are_refused(signed: Signed, tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")
    assert both(signed, signed.verdict_of(stranger)).verdict == (1, "verdict-signature")
    text = signed.text()
    assert both(signed, pack(text, sign(signed.key, text, namespace="file"))).verdict == (1, "verdict-signature")


def test_keys_rotate(signed: Signed, tmp_path: Path) -> None:
    new = make_key(tmp_path / "new")
    signed.allow(signed.key, new)
    for key in (signed.key, new):
        assert signed.host.verify(VERDICT=signed.verdict_of(key)).verdict == (0, "verified")
    signed.allow(new)
    assert both(signed, signed.verdict()).verdict == (1, "verdict-signature")


def test_a_revoked_key_and_one_out_of_time_are_refused(signed: Signed) -> None:
    revoked = signed.policies / "revoked_keys"
    revoked.write_text(signed.key.with_suffix(".pub").read_text())
    signed.host.policy(REVOKED_KEYS=str(revoked))
    assert both(signed, signed.verdict()).verdict == (1, "verdict-signature")
    signed.host.policy()
    signed.allow(signed.key, options='namespaces="imagefresh",valid-before="20200101"')
    assert both(signed, signed.verdict()).verdict == (1, "verdict-signature")


def _signers(signed: Signed) -> dict[str, Callable[[], object]]:
    key = signed.key.with_suffix(".pub").read_text()
    write = signed.signers.write_text
    return {
        "no file": signed.signers.unlink,
        "an empty file": lambda: write("# nobody\n"),
        "no namespace": lambda: write(f"{PRINCIPAL} {key}"),
        "every namespace": lambda: write(f'{PRINCIPAL} namespaces="*" {key}'),
        "a second namespace": lambda: write(f'{PRINCIPAL} namespaces="imagefresh,git" {key}'),
        "everybody": lambda: write(f'* namespaces="imagefresh" {key}'),
        "everybody in a domain": lambda: write(f'*@shop namespaces="imagefresh" {key}'),
        "a certificate authority": lambda: write(f'{PRINCIPAL} cert-authority,namespaces="imagefresh" {key}'),
        "writable by a group": lambda: signed.signers.chmod(0o664),
        "in a folder that others may write to": lambda: _move_signers(signed),
        "a link": lambda: _link_signers(signed),
    }


def _move_signers(signed: Signed) -> None:
    folder = signed.host.compose_dir / "open"
    folder.mkdir()
    folder.chmod(0o777)
    signed.signers.rename(folder / "signers")
    signed.host.policy(ALLOWED_SIGNERS=str(folder / "signers"))


def _link_signers(signed: Signed) -> None:
    signed.signers.rename(signed.policies / "real")
    signed.signers.symlink_to("real")


@pytest.mark.parametrize("fault", list(range(11)))
def test_signers_must_be_as_hard_to_change_as_the_policy(signed: Signed, fault: int) -> None:
    verdict = signed.verdict()
    name, inject = list(_signers(signed).items())[fault]
    inject()
    assert refusal(signed, verdict) == (1, "verdict-signers"), name


@pytest.mark.parametrize("fault", ["gone", "a file", "a link"])
def test_a_lost_ledger_gives_no_verdict_back(signed: Signed, fault: str) -> None:
    signed.ledger.rmdir()
    if fault == "a file":
        signed.ledger.write_text("")
    if fault == "a link":
        signed.ledger.symlink_to(signed.policies)
    assert both(signed, signed.verdict()).verdict == (1, "verdict-ledger")
