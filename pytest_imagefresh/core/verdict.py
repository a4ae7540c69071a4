"""Decisions: evidence in, verdict out. Refusal is the default; accepting means naming what is accepted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_imagefresh.core.content import Content, some_of
from pytest_imagefresh.core.errors import EvidenceError, Refused
from pytest_imagefresh.core.evidence import (
    Anchor,
    CheckResult,
    Container,
    HookReport,
    Image,
    Production,
    Tenure,
)
from pytest_imagefresh.core.identity import ImageId, Revision
from pytest_imagefresh.core.rfc3339 import parse_time
from pytest_imagefresh.core.tap import TapSummary, find_contradiction

Subject = ImageId | Revision

_CLOCK_SECONDS = 1.0

_FROZEN = "frozen"
"""The cause by which the hook refuses, last of all, whatever would be promoted: its operators want that."""


@dataclass(frozen=True)
class Verdict:
    """A decision about one image or commit. It accepts exactly when it names the subject that was proven."""

    reason: str
    subject: Subject | None = None
    expected: str = ""
    observed: str = ""

    @property
    def ok(self) -> bool:
        return self.subject is not None

    def __bool__(self) -> bool:
        return self.ok

    def require(self) -> Subject:
        """Return the proven subject. Raises Refused with the reason."""
        if self.subject is None:
            raise Refused(self.reason)
        return self.subject


def compare(what: str, expected: object, observed: object, subject: Subject, *, hint: str = "") -> Verdict:
    """Accept `subject` exactly when the two values print the same and are not empty."""
    left, right = str(expected), str(observed)
    if left and left == right:
        return Verdict(f"{what} is {right}", subject, left, right)
    advice = f"; {hint}" if hint else ""
    return Verdict(f"{what} is {right or 'nothing'}, expected {left or 'a value'}{advice}", None, left, right)


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Accept only when every verdict accepts one and the same subject."""
    refusals = [verdict.reason for verdict in verdicts if not verdict.ok]
    subjects = {verdict.subject for verdict in verdicts}
    if refusals or len(subjects) != 1:
        return Verdict("; ".join(refusals) or f"expected 1 subject, observed {len(subjects)}")
    return Verdict(
        "; ".join(verdict.reason for verdict in verdicts),
        subjects.pop(),
        "; ".join(verdict.expected for verdict in verdicts if verdict.expected),
        "; ".join(verdict.observed for verdict in verdicts if verdict.observed),
    )


def check_provenance(expected: str, observed: str) -> Verdict:
    """Accept when both texts are full revisions and equal."""
    try:
        wanted, seen = Revision(expected), Revision(observed)
    except EvidenceError as error:
        return Verdict(f"{error}", None, expected, observed)
    return compare("the revision", wanted, seen, wanted, hint="rebuild staging from the validated commit")


def check_anchor(first: Anchor, now: Anchor) -> Verdict:
    """Accept the revision when a second look at the branch still finds it."""
    return compare(
        f"branch {first.branch} of {first.repo}",
        first.revision,
        now.revision,
        first.revision,
        hint="it moved during the run; run the gate again",
    )


def check_rebuilt(
    report: HookReport | None, anchor: Anchor, image: Image, before: Container | None, engine_id: str
) -> Verdict:
    """Accept the image that the hook says it built from the anchor's commit and tree, on the engine that we look at.

    What the image is and what runs is proven by the links after this one.
    """
    if report is None or not report.ok:
        return Verdict(f"staging was not rebuilt: {report.reason if report else 'this run reuses what runs'}")
    if before is not None and before.id.hex == report.container_id:
        return Verdict(f"staging container {before.id} was not recreated; expected a new container")
    return all_of(
        [
            compare("the image that the hook built", report.image_id, image.id, image.id),
            compare("the commit that the hook built", anchor.revision, report.revision, image.id),
            compare("the tree that the hook built", anchor.tree, report.tree, image.id),
            compare(
                "the hook's engine",
                engine_id,
                report.engine_id,
                image.id,
                hint="two engines answer; pin host.docker_host",
            ),
        ]
    )


def check_label(image: Image, revision: Revision) -> Verdict:
    """Accept the image whose own revision label is the validated revision."""
    return compare(f"revision label of {image.id}", revision, image.revision_label, image.id)


def check_content(content: Content | None, image_id: ImageId) -> Verdict:
    """Accept the image that holds every declared file of the commit, and beside them only what may be added.

    None stands for a target that declares no content; the proof then says so.
    """
    if content is None:
        reason = "no content is declared: the files of the image were not compared; add a table content to the target"
        return Verdict(reason, image_id, "no content declared", "no content declared")
    wanted = f"{len(content.expected)} file{'s' if len(content.expected) != 1 else ''} of the commit"
    misplaced, differences = content.misplaced(), content.differences()
    if misplaced:
        return Verdict(
            f"the image does not have the declared content: {some_of(misplaced)}; expected a folder; look at the "
            "Dockerfile and .dockerignore, or declare the folder that a symlink leads to",
            None,
            wanted,
            some_of(misplaced),
        )
    if differences:
        return Verdict(
            f"the image differs from the commit: {some_of(differences)}; expected {wanted} and no others; look at the "
            "Dockerfile and .dockerignore, or list in content_ignore what may be added",
            None,
            wanted,
            some_of(differences),
        )
    return Verdict(f"the image holds {wanted}{_added(content)}", image_id, wanted, f"{wanted}{_added(content)}")


def _added(content: Content) -> str:
    """Return the words that tell what the image may have in addition, and has; "" where nothing may be added."""
    if not content.ignore:
        return ""
    additions = content.additions()
    named = f": {some_of(additions)}" if additions else ""
    return f", and {len(additions)} more that content_ignore allows ({', '.join(content.ignore)}){named}"


def check_container(container: Container | None, expected: ImageId) -> Verdict:
    """Accept when the container runs, was never restarted, is not unhealthy, and runs exactly the expected image."""
    if container is None:
        return Verdict(f"no staging container, expected one that runs {expected}", None, str(expected))
    if container.status != "running" or container.restart_count or container.health == "unhealthy":
        state = f"{container.status} {container.health}".strip()
        return Verdict(
            f"container {container.name} is {state} with {container.restart_count} restarts, "
            f"expected running with none; look at: docker logs {container.name}",
            None,
            "running, 0 restarts",
            f"{state}, {container.restart_count} restarts",
        )
    return compare(f"image of container {container.name}", expected, container.image_id, expected)


def check_same_container(
    first: Container, now: Container | None, expected: ImageId, *, clock: str, settle: float
) -> Verdict:
    """Accept when the container seen now is the one seen first, up since the same moment, and for `settle` seconds.

    `clock` is the engine's own time, RFC 3339: what this machine's clock says does not count.
    """
    verdict = check_container(now, expected)
    if now is None or not verdict:
        return verdict
    same = compare(
        "the staging container", f"{first.id} since {first.started_at}", f"{now.id} since {now.started_at}", expected
    )
    return all_of([verdict, same, _check_settled(now, expected, clock, settle)])


def _check_settled(container: Container, expected: ImageId, clock: str, settle: float) -> Verdict:
    up = parse_time(clock) - parse_time(container.started_at)
    wanted, seen = f"up for {settle:g} s", f"up for {up:.1f} s"
    if up < settle:
        return Verdict(
            f"container {container.name} is {seen} by the engine's clock, expected {settle:g} s at least; run again",
            None,
            wanted,
            seen,
        )
    return Verdict(f"container {container.name} is {seen}", expected, wanted, seen)


def check_staging_check(result: CheckResult | None, tap: TapSummary | None, subject: ImageId) -> Verdict:
    """Accept when the staging check ran, ended with 0 and, where it speaks TAP, every planned test is ok.

    `tap` None stands for a check whose exit status decides; its output must at least not say the contrary.
    """
    if result is None:
        return Verdict("the staging check did not run; expected its exit status", None, "exit status 0", "no run")
    if result.exit_status != 0:
        tail = result.output.decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
        return Verdict(
            f"the staging check ended with {result.exit_status}, expected 0; it said: {tail[0][:300]}",
            None,
            "exit status 0",
            f"exit status {result.exit_status}",
        )
    if tap is not None and tap.problem:
        return Verdict(
            f"the staging check ended with 0, but its TAP says: {tap.problem}", None, "every test ok", tap.problem
        )
    contradiction = find_contradiction(result.output) if tap is None else ""
    if contradiction:
        return Verdict(
            f"the staging check ended with 0, but its output says: {contradiction}; expected both to agree; correct "
            'the check, or say check_format = "tap" if it speaks TAP',
            None,
            "exit status 0",
            contradiction,
        )
    seen = f"exit status 0, {tap.passed} tests ok" if tap is not None else "exit status 0"
    return Verdict(f"the staging check passed: {seen}", subject, "exit status 0", seen)


def check_production_untouched(before: Production, after: Production, subject: ImageId) -> Verdict:
    """Accept when production is as it was before the gate began: what the engine says of how it was made and runs.

    Only its health may differ, as it comes and goes by itself; but none may have turned unhealthy.
    """
    seen, wanted = describe_production(after), describe_production(before)
    well = {each.id for each in before.containers if each.health != "unhealthy"}
    ill = [each.name for each in after.containers if each.health == "unhealthy" and each.id in well]
    if ill:
        return Verdict(
            f"production turned unhealthy while the gate ran: {', '.join(ill)}, expected none; look at its log",
            None,
            wanted,
            seen,
        )
    if _without_health(before) != _without_health(after):
        return Verdict(f"production changed while the gate ran: it was {wanted}, it is {seen}", None, wanted, seen)
    return Verdict(f"production is as it was: {seen}", subject, wanted, seen)


def _without_health(production: Production) -> Production:
    return replace(production, containers=tuple(replace(each, health="") for each in production.containers))


def describe_production(production: Production) -> str:
    """Return production in one line for people."""
    if not production.containers:
        return f"no container, prod image {production.image_id or 'not tagged'}"
    rows = [
        f"{each.name} ({each.id.hex[:12]}, {each.status}, since {each.started_at}, made as {each.made_as[:12]})"
        for each in production.containers
    ]
    return f"{', '.join(rows)}, prod image {production.image_id or 'not tagged'}"


def check_accepted(report: HookReport, expected: ImageId, *, signed: bool = False) -> Verdict:
    """Accept when the installed hook would promote exactly the expected image, now or once production is not frozen.

    The hook looks at a freeze last: it is the operators' and says nothing about the image. Where verdicts are `signed`,
    there is none before the gate is complete: then that may be all that the hook misses.
    """
    if signed and (report.kind, report.cause) == ("refused", "verdict-missing"):
        return compare("the image that the hook would promote with a verdict", expected, report.image_id, expected)
    if not report.ok and (report.kind, report.cause) != ("refused", _FROZEN):
        return Verdict(f"the hook refuses the validated image: {report.reason}", None, "accepted", report.cause)
    return compare("the image that the hook would promote", expected, report.image_id, expected)


def check_self_test(report: HookReport, cases: Mapping[str, str], subject: ImageId) -> Verdict:
    """Accept when the hook's self-test passed, and told of every case the cause that we expect of it.

    `cases` maps the name of a case to that cause. What the hook tells beyond them has no say.
    """
    wrong = [
        f"{name}: expected {cause}, observed {report.cases.get(name, 'nothing')}"
        for name, cause in cases.items()
        if report.cases.get(name) != cause
    ]
    if not report.ok or wrong or not cases:
        seen = "; ".join(wrong) or report.reason
        return Verdict(
            f"the hook's self-test does not pass: {seen}; replace the installed hook", None, f"{len(cases)} cases", seen
        )
    return Verdict(
        f"the hook decides {len(cases)} cases as it must", subject, f"{len(cases)} cases", f"{len(cases)} cases"
    )


def check_unlabelled(report: HookReport, subject: ImageId) -> Verdict:
    """Accept when the hook refused an image without revision label: one of ours, or the one of its own self-test."""
    cause = "revision-missing"
    if report.mode == "--self-test":
        return check_self_test(report, {"unlabelled": cause}, subject)
    return check_refused(report, "an unlabelled image", {cause}, subject)


def check_lease(tenure: Tenure, subject: ImageId) -> Verdict:
    """Accept when the lock of the host was held without a break since before the first observation."""
    expected, observed = f"{tenure.needed:.1f} s", f"{tenure.held:.1f} s"
    # Two clocks never agree to the last.
    if tenure.held + _CLOCK_SECONDS < tenure.needed:
        return Verdict(
            f"the lease was held for {observed}, expected {expected}; another run may have come between; run it again",
            None,
            expected,
            observed,
        )
    return Verdict(f"the host's lock was held for {observed} without a break", subject, expected, observed)


def check_refused(report: HookReport, case: str, causes: Collection[str], subject: ImageId) -> Verdict:
    """Accept when the hook refused, with exit status 1, and for the cause that was put in front of it."""
    wanted = " or ".join(sorted(causes))
    if report.ok or report.exit_status == 0:
        return Verdict(
            f"the hook would promote {case}; expected a refusal ({wanted}); replace the installed hook", None, wanted
        )
    if report.exit_status != 1 or report.kind != "refused" or report.cause not in causes:
        return Verdict(
            f"the hook answered {case} with exit {report.exit_status}, {report.kind}, {report.cause or 'no cause'}: "
            f"{report.reason}; expected a refusal ({wanted})",
            None,
            wanted,
            report.cause,
        )
    return Verdict(f"the hook refuses {case}: {report.reason}", subject, wanted, report.cause)
