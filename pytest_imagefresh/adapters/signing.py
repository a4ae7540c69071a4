"""Signatures of verdicts (SSHSIG), made and checked by ssh-keygen."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pytest_imagefresh.adapters.command import Completed, clean_environment, last_line, run
from pytest_imagefresh.core.errors import ConfigError, EvidenceError
from pytest_imagefresh.core.settings import Signing

NAMESPACE = "imagefresh"
"""What a signature is for: one for anything else, such as a commit, is no verdict."""

_ARMOR = b"-----BEGIN SSH SIGNATURE-----\n"


def check_key(signing: Signing, *, timeout: float) -> None:
    """Raise ConfigError unless the gate key can sign right now, without asking anybody. `timeout` is in seconds."""
    try:
        sign(b"imagefresh\n", signing, timeout=timeout)
    except EvidenceError as error:
        raise ConfigError(
            f"signing.key: {error}; expected a private key without a passphrase, or the .pub file of a key that "
            "ssh-agent holds"
        ) from error


def sign(text: bytes, signing: Signing, *, timeout: float) -> bytes:
    """Return the armored signature of a text. Never prompts. Raises EvidenceError where the key does not sign."""
    key = Path(signing.key).expanduser()
    if not key.is_file():
        raise EvidenceError(f"no key file at {key}")
    done = _keygen(["-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE], text, timeout=timeout)
    if done.status != 0 or not done.stdout.startswith(_ARMOR):
        raise EvidenceError(f"the key {key} does not sign: {last_line(done.stderr) or f'exit {done.status}'}")
    return done.stdout


def check_signature(text: bytes, signature: bytes, principal: str, allowed_signers: Path, *, timeout: float) -> str:
    """Return "" where the signature is one of `principal`, as a file of allowed signers has it, else why not.

    Raises EvidenceError where there is no such file: nobody knows then.
    """
    if not allowed_signers.is_file():
        raise EvidenceError(f"no file of allowed signers at {allowed_signers}; name that of the host's policy")
    with tempfile.NamedTemporaryFile(prefix="imagefresh-") as file:
        file.write(signature)
        file.flush()
        words = ["-Y", "verify", "-f", str(allowed_signers), "-I", principal, "-n", NAMESPACE, "-s", file.name]
        done = _keygen(words, text, timeout=timeout)
    return "" if done.status == 0 else last_line(done.stdout + done.stderr) or f"ssh-keygen ended with {done.status}"


def _keygen(words: Sequence[str], text: bytes, *, timeout: float) -> Completed:
    environment = {**clean_environment(), "SSH_ASKPASS_REQUIRE": "never"}
    return run(["ssh-keygen", *words], timeout=timeout, stdin=text, env=environment)
