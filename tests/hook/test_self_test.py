"""What `--self-test` proves: the decision refuses what it must, each for its cause, and accepts what is right."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.hook.harness import Outcome, PretendedHost, RealHost, changed
from tests.hook.verdicts import Signed

CASES = {
    "right": "verified",
    "wrong-revision": "revision-mismatch",
    "empty-revision": "revision-empty",
    "abbreviated-revision": "revision-malformed",
    "upper-case-revision": "revision-malformed",
    "wildcard-revision": "revision-malformed",
    "pattern-revision": "revision-malformed",
    "padded-revision": "revision-malformed",
    "broken-line-revision": "revision-malformed",
    "empty-image-id": "image-id-empty",
    "abbreviated-image-id": "image-id-malformed",
    "padded-image-id": "image-id-malformed",
    "other-image-id": "image-id-mismatch",
    "unlabelled": "revision-missing",
    "unlabelled-and-empty": "revision-empty",
    "frozen": "frozen",
    "missing-image": "image-missing",
    "missing-image-id": "image-missing",
}
VERDICT_CASES = {
    "unsigned": "verdict-missing",
    "second-signature": "verdict-malformed",
    "trailing-junk": "verdict-malformed",
    "replayed": "verdict-used",
    "superseded": "verdict-superseded",
    "unkept": "verdict-ledger",
    "wrong-key": "verdict-signature",
    "wrong-namespace": "verdict-signature",
    "expired": "verdict-expired",
    "future": "verdict-future",
    "other-production": "verdict-production-changed",
    "other-target": "verdict-other-target",
    "edited": "verdict-signature",
}
"""Where the host's policy requires a verdict, in addition."""

MUTANTS = {
    "the revision is not compared": (
        "  FACT[revision]=wrong\n",
        "  FACT[revision]=right\n",
        "wrong-revision: expected revision-mismatch, observed verified",
    ),
    "an empty revision passes": (
        '[[ -n "${!name}" ]] || return 0\n  REPLY=given',
        "REPLY=given",
        "empty-revision: expected revision-empty, observed revision-malformed",
    ),
    "any text is a revision": (
        '[[ "${!name}" =~ ${pattern} ]] || REPLY=malformed',
        "true || REPLY=malformed",
        "abbreviated-revision: expected revision-malformed, observed revision-mismatch",
    ),
    "a revision is a pattern": (
        '[[ "${SEEN_REVISION}" != "\\"${EXPECTED_REVISION}\\"" ]] ||',
        '[[ "${SEEN_REVISION}" != \\"*\\" ]] ||',
        "wrong-revision: expected revision-mismatch, observed verified",
    ),
    "the image ID is not compared": (
        "FACT[image_id]=wrong",
        "FACT[image_id]=right",
        "other-image-id: expected image-id-mismatch, observed verified",
    ),
    "any text is an image ID": (
        'form_of EXPECTED_IMAGE_ID "${IMAGE_ID_PATTERN}"',
        "form_of EXPECTED_IMAGE_ID '.*'",
        "abbreviated-image-id: expected image-id-malformed, observed image-id-mismatch",
    ),
    "a label is not needed": (
        " || FACT[revision]=unlabelled\n",
        " || true\n",
        "unlabelled: expected revision-missing, observed revision-mismatch",
    ),
    "a line of the decision is missing": (
        "  'revision-mismatch          revision=wrong'\n",
        "",
        "wrong-revision: expected revision-mismatch, observed undecided",
    ),
    "a frozen production is promoted": (
        '[[ -z "${FROZEN}" ]] || FACT[frozen]=yes',
        "true",
        "frozen: expected frozen, observed verified",
    ),
    "everything is refused": (
        "decide() {",
        'decide() {\n  refuse frozen "nothing is promoted" "wait"',
        "right: expected verified, observed frozen",
    ),
}


def mutate(host: PretendedHost, before: str, after: str) -> None:
    text = host.hook.path.read_text()
    assert text.count(before) == 1
    host.hook.path.write_text(text.replace(before, after))


def test_it_tells_every_case_and_changes_nothing(pretended: PretendedHost) -> None:
    before = pretended.state
    outcome = pretended.self_test()
    assert outcome.verdict == (0, "self-tested"), outcome.stderr
    assert outcome.line["cases"] == CASES
    assert pretended.state["images"] == before["images"]
    assert pretended.state["containers"] == before["containers"]
    assert pretended.changes() == []
    assert sorted(path.name for path in pretended.compose_dir.iterdir()) == ["compose.yaml"]


def test_the_scratch_images_bear_names_of_their_own(pretended: PretendedHost) -> None:
    pretended.self_test()
    imports = [call.split()[-1] for call in pretended.calls if call.startswith("docker import ")]
    assert len(set(imports)) == 2
    assert all(name.startswith("imagefresh-self-test:20260102t030405z-89abcdef-") for name in imports)
    [removal] = [call for call in pretended.calls if call.startswith("docker image rm ")]
    assert removal.split()[-2:] == imports


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.fault
def test_a_hook_without_one_of_its_guards_does_not_pass(pretended: PretendedHost, mutant: str) -> None:
    before, after, reason = MUTANTS[mutant]
    images = pretended.state["images"]
    mutate(pretended, before, after)
    outcome = pretended.self_test()
    assert outcome.verdict == (1, "self-test-failed")
    assert outcome.reason.startswith(f"case {reason}"), outcome.reason
    assert set(outcome.line["cases"]) == set(CASES)  # type: ignore[call-overload]
    assert pretended.state["images"] == images


VERDICT_MUTANTS = {
    "a verdict is not needed": (
        "'verdict-missing            verdict=missing require_verdict=yes",
        "'verdict-missing            verdict=missing require_verdict=never",
        "unsigned: expected verdict-missing, observed verified",
    ),
    "a verdict works twice": (
        'if [[ -e "${LEDGER}/${SIGNED[run]}" ||',
        "if [[ ",
        "replayed: expected verdict-used, observed verified",
    ),
    "an older verdict works": (
        'elif [[ "${newest}" > "${SIGNED[run]}" ]]; then',
        "elif false; then",
        "superseded: expected verdict-superseded, observed verified",
    ),
    "a lost ledger is no matter": (
        "    doubt_verdict ledger",
        "    true ledger",
        "unkept: expected verdict-ledger, observed verified",
    ),
    "the signature is not looked at": (
        'ask "${QUICK}" "${argv[@]}" -s "${WORK}/signature" <"${WORK}/statement"',
        "STATUS=0",
        "wrong-key: expected verdict-signature, observed verified",
    ),
    "any namespace will do": (
        '-I "${SIGNED[principal]}" -n "${NAMESPACE}")',
        '-I "${SIGNED[principal]}" -n file)',
        "right: expected verified, observed verdict-signature",
    ),
    "a verdict never expires": (
        "((age > limit))",
        "false",
        "expired: expected verdict-expired, observed verified",
    ),
    "the future is no matter": (
        "((age < -CLOCK_SKEW))",
        "false",
        "future: expected verdict-future, observed verified",
    ),
    "production may have changed": (
        'production-changed|runs|${PREVIOUS_ID}"',
        'production-changed|runs|${SIGNED[runs]}"',
        "other-production: expected verdict-production-changed, observed verdict-signature",
    ),
    "another target's verdict will do": (
        '"other-target|service|${PROD_SERVICE}"',
        '"other-target|service|${SIGNED[service]}"',
        "other-target: expected verdict-other-target, observed verdict-signature",
    ),
    "anything may follow a signature": (
        '[[ "$1" == "${begin}"*"${end}" ]] || return 0',
        'set -- "${1%%"${end}"*}${end}"',
        "second-signature: expected verdict-malformed, observed verified",
    ),
}


@pytest.fixture
def signed(pretended: PretendedHost, tmp_path: Path) -> Signed:
    return Signed(pretended, tmp_path)


@pytest.mark.root
def test_verdicts_are_tried_with_keys_of_its_own(signed: Signed) -> None:
    """Where the host requires one: neither the gate's key nor the ledger has a part in it."""
    signed.key.unlink()
    outcome = signed.host.self_test()
    assert outcome.verdict == (0, "self-tested"), outcome.reason
    assert outcome.line["cases"] == {**CASES, **VERDICT_CASES}
    assert list(signed.ledger.iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize("mutant", VERDICT_MUTANTS)
@pytest.mark.fault
def test_a_hook_without_one_of_its_guards_of_verdicts_does_not_pass(signed: Signed, mutant: str) -> None:
    before, after, reason = VERDICT_MUTANTS[mutant]
    mutate(signed.host, before, after)
    outcome = signed.host.self_test()
    assert outcome.verdict == (1, "self-test-failed")
    assert outcome.reason.startswith(f"case {reason}"), outcome.reason


def test_an_engine_that_goes_away_in_a_case_is_no_decision(pretended: PretendedHost) -> None:
    pretended.fail("image inspect", stderr="error during connect\n", after=2, times=1)
    assert pretended.self_test().verdict == (11, "engine-answer")


def test_an_engine_that_imports_nothing_is_told(pretended: PretendedHost) -> None:
    pretended.fail("docker import", stderr="no space left on device\n")
    outcome = pretended.self_test()
    assert outcome.verdict == (1, "import-failed")
    assert "no space left on device" in outcome.reason


@pytest.mark.parametrize("name", ["PROD_IMAGE", "PROD_SERVICE", "PROD_PORT"])
def test_it_must_be_told_what_production_is(pretended: PretendedHost, name: str) -> None:
    assert pretended.self_test(**{name: None}).verdict == (2, "variable-missing")
    assert pretended.calls == []


def test_a_signal_ends_it_and_nothing_stays(pretended: PretendedHost) -> None:
    images = pretended.state["images"]
    pretended.fail("image inspect", sleep=60)
    variables = changed(pretended.promotion_variables(), {"SOURCE_IMAGE": None})
    process = subprocess.Popen(
        [str(pretended.hook.path), "--self-test"], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not any("image inspect" in call for call in pretended.calls):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=30)
    outcome = Outcome.of(subprocess.CompletedProcess([], process.returncode, stdout, stderr))
    assert outcome.verdict == (11, "interrupted")
    assert list(pretended.hook.temp_dir.iterdir()) == []
    assert pretended.state["images"] == images


def test_on_a_real_engine(real: RealHost) -> None:
    real.staging()
    unused = dict.fromkeys(["SOURCE_IMAGE", "EXPECTED_REVISION"])
    outcome = real.hook.call("--self-test", changed(real.promotion_variables(), unused))
    assert outcome.verdict == (0, "self-tested"), outcome.stderr
    assert outcome.line["cases"] == CASES
    assert real.image_of(f"imagefresh-self-test:{real.run_id.lower()}") == ""
    names = real.engine.docker("image", "ls", "--format", "{{.Tag}}", "imagefresh-self-test").split()
    assert not [name for name in names if name.startswith(real.run_id.lower())]
