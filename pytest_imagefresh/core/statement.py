"""What a verdict states, as in-toto has it: bytes that the deploy hook prints anew from what it observes itself."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.identity import ImageId, Revision, RunId

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
VERIFICATION_TYPE = "https://in-toto.io/attestation/svr/v0.2"
TEST_RESULT_TYPE = "https://in-toto.io/attestation/test-result/v0.1"
PROPERTY = "IMAGEFRESH_GATE_COMPLETE"
VERDICT_LIMIT = 6000
"""Characters of a packed verdict: what the hook takes."""

_VERIFIER = "urn:imagefresh:gate:1:"
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_PRINCIPAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,254}")
_WORD = re.compile(r"[A-Za-z0-9_./:@-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PROD_RUNS = re.compile(r"(sha256:[0-9a-f]{64})?")


@dataclass(frozen=True)
class Statement:
    """A complete gate of one image: what was proven, for which production, as it was then."""

    prod_image: str
    image_id: ImageId
    repo: str
    revision: Revision
    principal: str
    """Whose key signs it."""
    time: str
    """UTC, `2026-01-02T03:04:05Z`."""
    run_id: RunId
    prod_service: str
    prod_port: int
    engine_id: str
    prod_runs: str
    """The image ID that production ran during the gate, or else the one that its tag named; "" for none."""
    compose_sha256: str
    """SHA-256 of the host's resolved compose configuration."""

    def __post_init__(self) -> None:
        fits = (
            _TIME.fullmatch(self.time)
            and _PRINCIPAL.fullmatch(self.principal)
            and _SHA256.fullmatch(self.compose_sha256)
            and _PROD_RUNS.fullmatch(self.prod_runs)
            # JSON's true and 8500.5 would compare as numbers, and render to their own bytes again.
            and type(self.prod_port) is int
            and 1 <= self.prod_port <= 65535
            # None of these has a character that JSON escapes, so that the hook can print the very same bytes.
            and all(map(_WORD.fullmatch, [self.prod_image, self.repo, self.prod_service, self.engine_id]))
        )
        if not fits:
            raise EvidenceError(f"not a statement of a gate: {self}; expected plain names, a time in UTC and digests")

    def render(self) -> bytes:
        """Return the one line that is signed."""
        bound = {
            "contract": 1,
            "run_id": self.run_id.text,
            "prod_service": self.prod_service,
            "prod_port": self.prod_port,
            "engine_id": self.engine_id,
            "prod_runs": self.prod_runs,
            "compose_sha256": self.compose_sha256,
        }
        predicate = {
            "verifier": {"id": f"{_VERIFIER}{self.principal}", "policies": []},
            "timeCreated": self.time,
            "properties": [PROPERTY],
            "imagefresh": bound,
        }
        return msgspec.json.encode(self._about(VERIFICATION_TYPE, predicate)) + b"\n"

    def _about(self, kind: str, predicate: Mapping[str, Any]) -> dict[str, Any]:
        image = {"name": self.prod_image, "digest": {"sha256": self.image_id.digest.removeprefix("sha256:")}}
        commit = {"name": self.repo, "digest": {"gitCommit": self.revision.hex}}
        return {
            "_type": STATEMENT_TYPE,
            "subject": [image, commit],
            "predicateType": kind,
            "predicate": predicate,
        }

    def test_result(self, tests: Mapping[str, str], settings_file: bytes) -> bytes:
        """Return a test-result statement about the same image and commit, for dashboards; it is not signed.

        `tests` maps each test to how it ended, `passed` or otherwise; no test at all is a failure.
        `settings_file` is the evidence of that name.
        """
        failed = sorted(name for name, outcome in tests.items() if outcome != "passed")
        settings = {"name": "settings.json", "digest": {"sha256": hashlib.sha256(settings_file).hexdigest()}}
        predicate = {
            "result": "PASSED" if tests and not failed else "FAILED",
            "configuration": [settings],
            "passedTests": sorted(tests.keys() - set(failed)),
            "warnedTests": [],
            "failedTests": failed,
        }
        return json.dumps(self._about(TEST_RESULT_TYPE, predicate), indent=2).encode() + b"\n"


def parse_statement(text: bytes) -> Statement:
    """Return what a verdict states. Raises EvidenceError unless these are exactly the bytes that it is rendered to."""
    try:
        whole = msgspec.json.decode(text)
        (image, commit), predicate = whole["subject"], whole["predicate"]
        bound = predicate["imagefresh"]
        statement = Statement(
            prod_image=image["name"],
            image_id=ImageId(f"sha256:{image['digest']['sha256']}"),
            repo=commit["name"],
            revision=Revision(commit["digest"]["gitCommit"]),
            principal=predicate["verifier"]["id"].removeprefix(_VERIFIER),
            time=predicate["timeCreated"],
            run_id=RunId(bound["run_id"]),
            prod_service=bound["prod_service"],
            prod_port=bound["prod_port"],
            engine_id=bound["engine_id"],
            prod_runs=bound["prod_runs"],
            compose_sha256=bound["compose_sha256"],
        )
    except (msgspec.DecodeError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise EvidenceError(
            f"not a statement of a gate: {error!r}; expected verdict.json of a complete gate"
        ) from error
    if statement.render() != text:
        raise EvidenceError("not a statement of a gate: it says more, or says it otherwise; expected its own bytes")
    return statement


def pack_verdict(statement: bytes, signature: bytes) -> str:
    """Return the value of the hook's VERDICT. Raises EvidenceError where it is longer than the hook takes."""
    packed = base64.b64encode(statement + signature).decode()
    if len(packed) > VERDICT_LIMIT:
        raise EvidenceError(
            f"the verdict has {len(packed)} characters, expected {VERDICT_LIMIT} at most; sign with an ed25519 key"
        )
    return packed
