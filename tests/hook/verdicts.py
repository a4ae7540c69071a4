"""Verdicts as a gate signs them, made without the plugin: keys, who may sign, statements, and a policy that asks."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
from pathlib import Path

from tests.hook.harness import PROD_ID, REVISION, STAGING_ID, PretendedHost

GATE_RUN = "20260102T030405Z-0a0b0c0d"
PRINCIPAL = "gate@shop"


def statement(**changes: object) -> dict[str, object]:
    """Return what a gate of the pretended host's staging states, but for `changes`; see `docs/deploy-hook.md`."""
    said: dict[str, object] = {
        "image": "shop-shop",
        "id": STAGING_ID,
        "repo": "shop",
        "revision": REVISION,
        "principal": PRINCIPAL,
        "verifier": 1,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "contract": 1,
        "run": GATE_RUN,
        "service": "shop",
        "port": 43100,
        "engine": "ENGINE:ONE",
        "runs": PROD_ID,
        "compose": "",
    }
    unknown = changes.keys() - said.keys()
    assert not unknown, unknown
    return {**said, **changes}


def render(said: dict[str, object]) -> bytes:
    """Return a statement as the one line that is signed."""
    subjects = [
        {"name": said["image"], "digest": {"sha256": str(said["id"]).removeprefix("sha256:")}},
        {"name": said["repo"], "digest": {"gitCommit": said["revision"]}},
    ]
    bound = {
        "contract": said["contract"],
        "run_id": said["run"],
        "prod_service": said["service"],
        "prod_port": said["port"],
        "engine_id": said["engine"],
        "prod_runs": said["runs"],
        "compose_sha256": said["compose"],
    }
    predicate = {
        "verifier": {"id": f"urn:imagefresh:gate:{said['verifier']}:{said['principal']}", "policies": []},
        "timeCreated": said["time"],
        "properties": ["IMAGEFRESH_GATE_COMPLETE"],
        "imagefresh": bound,
    }
    whole = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": "https://in-toto.io/attestation/svr/v0.2",
        "predicate": predicate,
    }
    return json.dumps(whole, separators=(",", ":")).encode() + b"\n"


def pack(*parts: bytes) -> str:
    """Return the value of VERDICT: everything behind one another, in base64."""
    return base64.b64encode(b"".join(parts)).decode()


def make_key(path: Path, kind: str = "ed25519") -> Path:
    """Make a key pair without a passphrase; return the path of the private one."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", path], check=True, stdin=subprocess.DEVNULL
    )
    return path


def sign(key: Path, text: bytes, namespace: str = "imagefresh") -> bytes:
    """Return the armored signature of a text."""
    argv = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", namespace]
    return subprocess.run(argv, input=text, check=True, capture_output=True).stdout


class Signed:
    """A pretended host whose policy requires a signed verdict, and the key of its gate."""

    def __init__(self, host: PretendedHost, folder: Path) -> None:
        self.host = host
        self.policies = host.policies
        self.key = make_key(folder / "gate")
        self.signers = self.policies / "allowed_signers"
        self.ledger = host.compose_dir / ".imagefresh" / "verdicts"
        host.policy()
        self.allow(self.key)
        self.ledger.mkdir(parents=True, mode=0o700)
        self.ledger.parent.chmod(0o700)
        self.compose = str(host.verify().line["compose_sha256"])

    def allow(self, *keys: Path, options: str = 'namespaces="imagefresh"') -> None:
        """Let these keys sign, and no others."""
        public = [re.sub(r"\n?$", "", key.with_suffix(".pub").read_text()) for key in keys]
        self.signers.write_text("".join(f"{PRINCIPAL} {options} {key}\n" for key in public))
        self.signers.chmod(0o644)

    def text(self, **changes: object) -> bytes:
        """Return the statement of a gate, but for `changes`."""
        return render(statement(**{"compose": self.compose, **changes}))

    def verdict(self, **changes: object) -> str:
        """Return a verdict signed with the gate's key, but for `changes`."""
        return self.verdict_of(self.key, **changes)

    def verdict_of(self, key: Path, /, **changes: object) -> str:
        """Return a verdict signed with any key, but for `changes`."""
        text = self.text(**changes)
        return pack(text, sign(key, text))
