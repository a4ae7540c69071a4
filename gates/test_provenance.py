"""Layer B, safety: the image is the validated commit's, and the hook on the host promotes it and nothing else."""

from __future__ import annotations

import pytest

from pytest_imagefresh.core.contract import SELF_TEST, SIGNED_SELF_TEST
from pytest_imagefresh.core.evidence import Container, HookReport, Image, Production
from pytest_imagefresh.core.identity import Revision
from pytest_imagefresh.core.settings import Target
from pytest_imagefresh.core.unchanged import check_unchanged
from pytest_imagefresh.core.verdict import (
    check_accepted,
    check_anchor,
    check_label,
    check_lease,
    check_production_untouched,
    check_refused,
    check_same_container,
    check_self_test,
    check_unlabelled,
)
from pytest_imagefresh.fixtures import AskHook, Prove
from pytest_imagefresh.run import TargetRun


@pytest.mark.link("LABEL")
def test_image_carries_validated_revision(prove: Prove, staging_image: Image, validated_revision: Revision) -> None:
    """The image's own revision label is the validated revision."""
    prove(check_label(staging_image, validated_revision))


@pytest.mark.link("ACCEPTS")
def test_hook_accepts_this_image(
    prove: Prove, target_run: TargetRun, hook: AskHook, staging_image: Image, validated_revision: Revision
) -> None:
    """The installed hook would promote exactly this image."""
    report = hook(validated_revision.hex, staging_image.id)
    target_run.facts["resolved_sha256"] = report.compose_sha256
    prove(check_accepted(report, staging_image.id, signed=target_run.settings.signing is not None))


@pytest.mark.link("REFUSES_WRONG")
def test_hook_refuses_wrong_revision(
    prove: Prove, hook: AskHook, staging_image: Image, validated_revision: Revision
) -> None:
    """Told to expect another commit, the installed hook refuses this image."""
    report = hook(validated_revision.other().hex, staging_image.id)
    prove(check_refused(report, "a wrong revision", {"revision-mismatch"}, staging_image.id))


@pytest.mark.link("REFUSES_EMPTY")
def test_hook_refuses_empty_revision(prove: Prove, hook: AskHook, staging_image: Image) -> None:
    """Told to expect an empty revision, the installed hook refuses this image."""
    prove(check_refused(hook("", staging_image.id), "an empty revision", {"revision-empty"}, staging_image.id))


@pytest.mark.link("REFUSES_UNLABELLED")
def test_hook_refuses_unlabelled_image(prove: Prove, unlabelled_report: HookReport, staging_image: Image) -> None:
    """An image without revision label is refused, although its ID is the expected one."""
    prove(check_unlabelled(unlabelled_report, staging_image.id))


@pytest.mark.link("SELF_TEST")
def test_hook_passes_its_self_test(prove: Prove, self_test: HookReport, staging_image: Image) -> None:
    """On its own host the installed hook refuses what must be refused, each for its cause, and nothing else."""
    cases = SIGNED_SELF_TEST if self_test.verdict == "required" else SELF_TEST
    prove(check_self_test(self_test, cases, staging_image.id))


@pytest.mark.link("UNCHANGED")
def test_container_runs_unchanged_files(prove: Prove, target_run: TargetRun, staging_container: Container) -> None:
    """After all checks, the declared content of the running container is still the image's own."""
    changes, places = target_run.read_changes(staging_container)
    prove(check_unchanged(staging_container, changes, places, target_run.target))


@pytest.mark.link("SAME_CONTAINER")
def test_container_is_still_the_same(
    prove: Prove, target_run: TargetRun, staging_container: Container, staging_image: Image
) -> None:
    """At the end, what runs in staging is what ran at the beginning, without a restart, long enough."""
    now, clock = target_run.read_staging_container(), target_run.engine.read_clock()
    settle = target_run.settings.settle
    prove(check_same_container(staging_container, now, staging_image.id, clock=clock, settle=settle))


@pytest.mark.link("ANCHOR_HOLDS")
def test_branch_is_still_at_validated_revision(prove: Prove, target_run: TargetRun, target: Target) -> None:
    """At the end, the branch still points to the validated revision."""
    prove(check_anchor(target_run.anchor, target_run.run.read_anchor(target.repo)))


@pytest.mark.link("PRODUCTION")
def test_production_is_untouched(
    prove: Prove, target_run: TargetRun, production_before: Production, staging_image: Image
) -> None:
    """At the end, production is what it was at the beginning: containers, start times, image."""
    prove(check_production_untouched(production_before, target_run.read_production(), staging_image.id))


@pytest.mark.link("LEASE")
def test_no_other_run_came_between(prove: Prove, target_run: TargetRun, staging_image: Image) -> None:
    """From before the first observation until now, this run alone held the lock of the host."""
    prove(check_lease(target_run.read_tenure(), staging_image.id))
