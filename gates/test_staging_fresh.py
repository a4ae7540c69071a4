"""Layer A, liveness: staging is rebuilt from the validated revision, and what answers is what was built."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pytest_imagefresh.core.content import Content
from pytest_imagefresh.core.evidence import Answer, CheckResult, Container, HookReport, Image, PortOwner, Silence
from pytest_imagefresh.core.port import check_port, check_silence
from pytest_imagefresh.core.running import check_runs_as_built
from pytest_imagefresh.core.settings import Target
from pytest_imagefresh.core.tap import TapSummary
from pytest_imagefresh.core.verdict import check_content, check_rebuilt, check_staging_check
from pytest_imagefresh.fixtures import Prove
from pytest_imagefresh.run import TargetRun


@pytest.mark.link("REBUILT")
def test_staging_is_rebuilt_from_validated_revision(
    prove: Prove, target_run: TargetRun, rebuild: HookReport, staging_image: Image
) -> None:
    """The hook built this commit's tree into this image, on this engine, and started a new container."""
    engine = target_run.engine.id
    prove(check_rebuilt(rebuild, target_run.anchor, staging_image, target_run.container_before, engine))


@pytest.mark.link("CONTENT")
def test_image_holds_the_commits_files(prove: Prove, image_content: Content | None, staging_image: Image) -> None:
    """Every declared file is in the image byte for byte, and nothing else is; where none is declared, it says so."""
    prove(check_content(image_content, staging_image.id))


@pytest.mark.link("CONTAINER")
def test_container_runs_built_image(
    prove: Prove, target: Target, staging_container: Container, staging_image: Image
) -> None:
    """The staging container runs exactly the image that was built, as the image says, without a restart."""
    prove(check_runs_as_built(staging_container, staging_image, target.staging.overrides))


@pytest.mark.link("PORT")
def test_container_answers_on_its_own_port(
    prove: Prove,
    target: Target,
    staging_container: Container,
    staging_answer: Answer,
    port_owners: Sequence[PortOwner],
) -> None:
    """The staging port belongs to this container alone, and its health path says HTTP 200."""
    prove(check_port(staging_container, target.staging.port, staging_answer, port_owners))


@pytest.mark.link("SILENCE")
def test_port_falls_silent_with_the_container(
    prove: Prove, target: Target, staging_container: Container, silence: Silence | None, staging_image: Image
) -> None:
    """While the container is paused for a moment, nobody answers on its port; afterwards it does again."""
    prove(check_silence(silence, staging_container, target.staging.port, staging_image.id))


@pytest.mark.link("CHECK")
def test_staging_check_passed(
    prove: Prove, staging_check: CheckResult | None, staging_tap: TapSummary | None, staging_image: Image
) -> None:
    """The staging check ran inside the container and everything in it is ok."""
    prove(check_staging_check(staging_check, staging_tap, staging_image.id))
