"""What a gate test may use. Fixtures observe; test bodies decide, through `prove`.

Registered only in a session with --repo. A refusal that a fixture runs into is reported as a failure of the test, an
evidence error as an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import pytest
from pytest_docker.plugin import Services

from pytest_imagefresh.adapters.hook import Lease
from pytest_imagefresh.core.chain import Link, Proof
from pytest_imagefresh.core.content import Content
from pytest_imagefresh.core.errors import ConfigError, EvidenceError, Refused
from pytest_imagefresh.core.evidence import (
    Answer,
    CheckResult,
    Container,
    HookReport,
    Image,
    PortOwner,
    Production,
    Silence,
)
from pytest_imagefresh.core.identity import ImageId, Revision
from pytest_imagefresh.core.port import own_address
from pytest_imagefresh.core.settings import Target
from pytest_imagefresh.core.tap import TapSummary, read_tap
from pytest_imagefresh.core.verdict import Verdict
from pytest_imagefresh.pause import read_silence
from pytest_imagefresh.plugin import GATE
from pytest_imagefresh.run import TargetRun

if TYPE_CHECKING:
    import docker

Prove = Callable[[Verdict], None]
AskHook = Callable[..., HookReport]

PROOFS: pytest.StashKey[list[Proof]] = pytest.StashKey()

_POLL_SECONDS = 0.05


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Target:
    """The target that this test gates: image, staging and prod, every default filled in."""
    if not hasattr(request, "param"):
        raise ConfigError("the fixture target is for gate tests; mark the test with @pytest.mark.gate")
    chosen: Target = request.param
    return chosen


@pytest.fixture(scope="session")
def target_run(target: Target, request: pytest.FixtureRequest) -> TargetRun:
    """Every observation of the target in this run, each made once."""
    return request.config.stash[GATE].target_run(target)


@pytest.fixture
def prove(request: pytest.FixtureRequest, target: Target) -> Prove:
    """Return the function that ends a gate test: it raises Refused, or records the proof of the test's link."""

    def record(verdict: Verdict) -> None:
        subject = verdict.require()
        marker = request.node.get_closest_marker("link")
        if marker is not None:
            proof = Proof(
                target.name,
                Link.named(marker.args[0]),
                str(subject),
                verdict.reason,
                verdict.expected,
                verdict.observed,
            )
            request.node.stash.setdefault(PROOFS, []).append(proof)

    return record


@pytest.fixture(scope="session")
def validated_revision(request: pytest.FixtureRequest, target_run: TargetRun) -> Revision:
    """The validated revision: the full commit ID at HEAD of the branch's worktree, resolved once per run."""
    if not request.config.stash[GATE].reuse:
        target_run.begin_lease()  # the host takes its lock while git looks
    revision = target_run.anchor.revision
    target_run.facts["revision"] = revision.hex
    return revision


@pytest.fixture(scope="session")
def lease(
    request: pytest.FixtureRequest,
    target_run: TargetRun,
    validated_revision: Revision,  # noqa: ARG001
) -> Lease | None:
    """The lock of the host, held from before the first observation on; None with --gate-reuse, which proves nothing."""
    return None if request.config.stash[GATE].reuse else target_run.lease


@pytest.fixture(scope="session")
def production_before(target_run: TargetRun, lease: Lease | None) -> Production:  # noqa: ARG001
    """Production as it was before this run changed anything."""
    target_run.facts["engine_id"] = target_run.engine.id
    target_run.facts["prod_runs"] = target_run.production_before.runs
    return target_run.production_before


@pytest.fixture(scope="session")
def rebuild(
    request: pytest.FixtureRequest,
    target_run: TargetRun,
    validated_revision: Revision,  # noqa: ARG001
    production_before: Production,  # noqa: ARG001
) -> HookReport | None:
    """What the hook says about its rebuild of staging, done once; None with --gate-reuse, which rebuilds nothing."""
    return None if request.config.stash[GATE].reuse else target_run.rebuild


@pytest.fixture(scope="session")
def staging_image(target_run: TargetRun, target: Target, rebuild: HookReport | None) -> Image:
    """The image that was built, as the engine knows it; with --gate-reuse the one that bears the staging reference."""
    name = target.image if rebuild is None else _rebuilt(rebuild).image_id
    image = target_run.engine.read_image(name)
    if image is None:
        raise Refused(
            f"the engine has no image {name or 'at all'} for staging; rebuild it: run the gate without --gate-reuse"
        )
    target_run.facts["image_id"] = image.id.digest
    return image


@pytest.fixture(scope="session")
def image_content(target_run: TargetRun, staging_image: Image) -> Content | None:
    """The declared files as commit and image have them; None where the target declares no content."""
    return target_run.read_content(staging_image.id)


@pytest.fixture(scope="session")
def staging_container(target_run: TargetRun, target: Target, rebuild: HookReport | None) -> Container:
    """The staging container, as the engine knows it."""
    name = target.staging.container if rebuild is None else _rebuilt(rebuild).container_id
    container = target_run.engine.read_container(name)
    if container is None:
        raise Refused(f"the engine has no container {name or 'at all'} for staging; run the gate without --gate-reuse")
    target_run.facts["container_id"] = container.id.hex
    target_run.staged = container
    target_run.run.mask.learn(container.environment)
    return container


@pytest.fixture(scope="session")
def staging_end(target_run: TargetRun, target: Target, staging_container: Container) -> tuple[str, int]:
    """Address and port that reach staging from this machine, over ssh too."""
    port = target.staging.port
    return target_run.run.host.reach(port, own_address(staging_container, port))


@pytest.fixture(scope="session")
def staging_url(staging_end: tuple[str, int]) -> str:
    """`http://address:port` that reaches staging from this machine, over ssh too; no slash at the end."""
    address, port = staging_end
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


@pytest.fixture(scope="session")
def staging_answer(
    target_run: TargetRun,
    staging_container: Container,
    docker_services: Services,
) -> Answer:
    """What staging's health path answers: HTTP 200 as soon as it does, else the last thing it said within the bound."""
    bounds = target_run.settings.timeouts
    answers: list[Answer] = []

    def healthy() -> bool:
        answers[:] = [target_run.read_answer(staging_container)]
        return answers[0].status == 200

    try:
        docker_services.wait_until_responsive(healthy, timeout=bounds.health, pause=_POLL_SECONDS)
    except Exception as error:  # pytest-docker raises nothing narrower when the time is over
        if not answers:
            raise EvidenceError(f"staging was never asked: {error}; raise timeouts.health") from error
    return answers[0]


@pytest.fixture(scope="session")
def port_owners(target_run: TargetRun, target: Target, staging_answer: Answer) -> tuple[PortOwner, ...]:  # noqa: ARG001
    """Every container that publishes the staging port, now that something answers there."""
    return target_run.engine.read_port_owners(target.staging.port)


@pytest.fixture(scope="session")
def silence(
    target_run: TargetRun, target: Target, staging_container: Container, staging_answer: Answer
) -> Silence | None:
    """What came from the staging port while its container was paused; None where the pause proof is switched off."""
    if not target.staging.pause_proof:
        return None
    if staging_answer.status != 200:
        raise Refused(
            f"{staging_answer.url} does not answer HTTP 200: there is nothing to silence; correct the service"
        )
    return read_silence(target_run, staging_container)


@pytest.fixture(scope="session")
def staging_check(
    target_run: TargetRun, rebuild: HookReport | None, staging_container: Container
) -> CheckResult | None:
    """The end of the staging check: the one that ran during the rebuild; with --gate-reuse one that runs now."""
    if rebuild is None:
        return target_run.run_staging_check(staging_container)
    return _rebuilt(rebuild).check


@pytest.fixture(scope="session")
def staging_tap(target_run: TargetRun, target: Target, staging_check: CheckResult | None) -> TapSummary | None:
    """The staging check's output as TAP; None where the check does not speak TAP or did not run."""
    if staging_check is None or target.staging.check_format != "tap":
        return None
    target_run.tap = read_tap(staging_check.output)
    return target_run.tap


@pytest.fixture(scope="session")
def staging_exec(target_run: TargetRun, staging_container: Container) -> Callable[[Sequence[str]], CheckResult]:
    """Return the function that runs argv inside the staging container, by its ID, bounded by timeouts.check."""

    def execute(argv: Sequence[str]) -> CheckResult:
        bound = target_run.settings.timeouts.check
        return target_run.engine.run_in_container(staging_container.id, argv, timeout=bound)

    return execute


@pytest.fixture(scope="session")
def hook(target_run: TargetRun) -> AskHook:
    """Return the function that asks the installed hook whether it would promote.

    Called with the expected revision as text, the expected image ID or None, and optionally `source_image`. Nothing
    changes.
    """
    return target_run.verify


@pytest.fixture(scope="session")
def self_test(target_run: TargetRun, lease: Lease | None) -> HookReport:  # noqa: ARG001
    """What the installed hook says of its own refusals."""
    return target_run.self_test()


@pytest.fixture
def unlabelled_image(target_run: TargetRun) -> Iterator[ImageId]:
    """An image on the host that has no revision label, made from nothing and removed afterwards."""
    name = f"imagefresh-unlabelled:{target_run.run.run_id.text.lower()}"
    with target_run.engine.unlabelled_image(name) as image_id:
        yield image_id


@pytest.fixture
def unlabelled_report(
    request: pytest.FixtureRequest, target_run: TargetRun, hook: AskHook, validated_revision: Revision
) -> HookReport:
    """What the hook says of an image without revision label; where we can make none, its self-test has made one."""
    if target_run.restricted:
        report: HookReport = request.getfixturevalue("self_test")
        return report
    image_id: ImageId = request.getfixturevalue("unlabelled_image")
    return hook(validated_revision.hex, image_id, source_image=image_id.digest)


@pytest.fixture(scope="session")
def docker_client(target_run: TargetRun) -> docker.DockerClient:
    """docker-py's client of the staging host's engine, local or over ssh."""
    return target_run.engine.client


def _rebuilt(rebuild: HookReport) -> HookReport:
    if not rebuild.ok:
        raise Refused(f"staging was not rebuilt: {rebuild.reason}")
    return rebuild
