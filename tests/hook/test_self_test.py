"""What `--self-test` proves: the decision refuses what it must, each for its cause, and accepts what is right."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from tests.hook.harness import Outcome, PretendedHost, RealHost, changed

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
MUTANTS = {
    "the revision is not compared": (
        'refuse revision-mismatch "${SOURCE_IMAGE}',
        ': revision-mismatch "${SOURCE_IMAGE}',
        "wrong-revision: expected revision-mismatch, observed verified",
    ),
    "an empty revision passes": (
        '[[ -n "${EXPECTED_REVISION}" ]] ||\n',
        "true ||\n",
        "empty-revision: expected revision-empty, observed revision-malformed",
    ),
    "any text is a revision": (
        '[[ "${EXPECTED_REVISION}" =~ ^${HEX40}$ ]] ||',
        "true ||",
        "abbreviated-revision: expected revision-malformed, observed revision-mismatch",
    ),
    "a revision is a pattern": (
        '[[ "${observed}" == "\\"${EXPECTED_REVISION}\\"" ]] ||',
        '[[ "${observed}" == \\"*\\" ]] ||',
        "wrong-revision: expected revision-mismatch, observed verified",
    ),
    "the image ID is not compared": (
        '[[ "${IMAGE_ID}" == "${EXPECTED_IMAGE_ID-${IMAGE_ID}}" ]] ||',
        "true ||",
        "other-image-id: expected image-id-mismatch, observed verified",
    ),
    "any text is an image ID": (
        '[[ "${EXPECTED_IMAGE_ID}" =~ ^${IMAGE_ID_PATTERN}$ ]] ||',
        "true ||",
        "abbreviated-image-id: expected image-id-malformed, observed image-id-mismatch",
    ),
    "a label is not needed": (
        """[[ -n "${observed}" && "${observed}" != '""' ]] ||""",
        "true ||",
        "unlabelled: expected revision-missing, observed revision-mismatch",
    ),
    "an image is not needed": (
        '[[ -n "${SEEN_ID}" ]] ||\n    refuse image-missing',
        "true ||\n    refuse image-missing",
        "missing-image: expected image-missing, observed image-id-mismatch",
    ),
    "a frozen production is promoted": (
        "refuse frozen ",
        ": frozen ",
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
def test_a_hook_without_one_of_its_guards_does_not_pass(pretended: PretendedHost, mutant: str) -> None:
    before, after, reason = MUTANTS[mutant]
    images = pretended.state["images"]
    mutate(pretended, before, after)
    outcome = pretended.self_test()
    assert outcome.verdict == (1, "self-test-failed")
    assert outcome.reason.startswith(f"case {reason}"), outcome.reason
    assert set(outcome.line["cases"]) == set(CASES)  # type: ignore[call-overload]
    assert pretended.state["images"] == images


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
