"""The verdict of a complete gate: signed here, accepted by the host, and only then written down."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone

from pytest_imagefresh.adapters.records import SIGNATURE, TEST_RESULT, VERDICT
from pytest_imagefresh.adapters.signing import check_key, sign
from pytest_imagefresh.core.errors import ConfigError, Refused
from pytest_imagefresh.core.identity import ImageId, Revision
from pytest_imagefresh.core.settings import Settings, Signing
from pytest_imagefresh.core.statement import Statement, pack_verdict
from pytest_imagefresh.core.verdict import check_accepted
from pytest_imagefresh.run import TargetRun


def check_signing(settings: Settings) -> None:
    """Raise ConfigError unless verdicts can be signed, where the settings say so: said before a gate, not after it."""
    if settings.signing is None:
        return
    if settings.host.hook == "bundled":
        raise ConfigError(
            'signing: expected an installed hook, whose policy says who may sign, observed host.hook = "bundled"; '
            "install the hook, or leave the table out"
        )
    check_key(settings.signing, timeout=settings.timeouts.inspect)


def issue(
    run: TargetRun, signing: Signing, facts: Mapping[str, str], *, tests: Mapping[str, str], settings_file: str
) -> dict[str, str]:
    """Return the files of a verdict that the host has accepted: name -> text.

    `facts` are what the gate observed, `tests` maps each gate test to how it ended. Raises Refused where the host does
    not accept it, EvidenceError where it cannot be signed or the host could not find out.
    """
    statement = _statement(run, signing, facts)
    text = statement.render()
    signature = sign(text, signing, timeout=run.settings.timeouts.inspect)
    report = run.verify_verdict(statement.image_id, pack_verdict(text, signature))
    if not check_accepted(report, statement.image_id) or report.verdict != "accepted":
        raise Refused(
            f"the host does not accept the verdict of {run.target.name}: {report.reason}; nothing can be promoted"
        )
    result = statement.test_result(tests, settings_file.encode())
    files = {VERDICT: text, SIGNATURE: signature, TEST_RESULT: result}
    return {name: content.decode() for name, content in files.items()}


def _statement(run: TargetRun, signing: Signing, facts: Mapping[str, str]) -> Statement:
    target = run.target
    return Statement(
        prod_image=target.prod_image,
        image_id=ImageId(facts["image_id"]),
        repo=target.repo,
        revision=Revision(facts["revision"]),
        principal=signing.principal,
        time=f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
        run_id=run.run.run_id,
        prod_service=target.prod.service,
        prod_port=target.prod.port,
        engine_id=facts["engine_id"],
        prod_runs=facts["prod_runs"],
        compose_sha256=facts["resolved_sha256"],
    )
