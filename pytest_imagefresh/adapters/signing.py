"""Signatures of verdicts (SSHSIG), made and checked by ssh-keygen."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pytest_imagefresh.adapters.command import Completed, clean_environment, last_line, run
from pytest_imagefresh.core.errors import ConfigError, EvidenceError
from pytest_imagefresh.core.settings import Signing

NAMESPACE = "imagefresh"
"""What a signature is for: one for anything else, such as a commit, is no verdict."""

_ARMOR = b"-----BEGIN SSH SIGNATURE-----\n"
_PRIVATE = b"-----BEGIN "
_FINGERPRINT = re.compile(rb"SHA256:[A-Za-z0-9+/]{43}")


def check_key(signing: Signing, *, timeout: float) -> None:
    """Raise ConfigError unless the gate key can sign right now, without asking anybody. `timeout` is in seconds."""
    try:
        sign(b"imagefresh\n", signing, timeout=timeout)
    except EvidenceError as error:
        raise ConfigError(f"signing.key: {error}") from error


def sign(text: bytes, signing: Signing, *, timeout: float) -> bytes:
    """Return the armored signature of a text. Never prompts. Raises EvidenceError where the key does not sign.

    `timeout` is in seconds, for each of three calls of ssh-keygen. The signature is one by this very key: an agent or a
    program may answer with another one.
    """
    key = Path(signing.key).expanduser()
    is_private = _read_head(key) == _PRIVATE
    done = _keygen(["-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE], text, timeout=timeout)
    if done.status != 0 or not done.stdout.startswith(_ARMOR):
        raise EvidenceError(f"{key} does not sign: {_explain(key, is_private, done)}")
    expected = _read_fingerprint(key, timeout=timeout)
    observed = _read_signer(text, done.stdout, timeout=timeout)
    if observed != expected:
        raise EvidenceError(f"{key} does not sign: expected a signature of {expected}, observed {observed or 'none'}")
    return done.stdout


def _read_head(key: Path) -> bytes:
    """Return the first bytes of a key file, enough to tell a private key from anything else."""
    if not key.is_file():
        raise EvidenceError(f"no key file at {key}; make one: ssh-keygen -t ed25519 -N '' -f {key}")
    try:
        with key.open("rb") as file:
            return file.read(len(_PRIVATE))
    except OSError as error:
        raise EvidenceError(f"{key} cannot be read: {error.strerror}; chown it to the user of the gate") from error


def _explain(key: Path, is_private: bool, done: Completed) -> str:
    """Return why a key does not sign, and what to do, in one line.

    Source: the words of OpenSSH 9.2; what another version says otherwise is handed on as it is.
    """
    said = done.stderr.decode("utf-8", "replace")
    if is_private and "too open" in said:
        return f"others may read it; chmod 0600 {key}"
    if is_private and "passphrase" in said:
        return f"it has a passphrase, and no ssh-agent holds it; ssh-add {key}, or name a key without a passphrase"
    if "load public key" in said:
        return "ssh-keygen finds no key in it; expected a private key, or the .pub file of a key that ssh-agent holds"
    if not is_private:
        asked = "ssh-agent was asked" if "SSH_AUTH_SOCK" in clean_environment() else "SSH_AUTH_SOCK is not set"
        return f"no ssh-agent holds its private half ({asked}); ssh-add that"
    return last_line(done.stderr) or f"ssh-keygen ended with {done.status}"


def _read_fingerprint(key: Path, *, timeout: float) -> str:
    """Return the fingerprint of a key's public half, `SHA256:...`. ssh-keygen prints it as the second word."""
    done = _keygen(["-l", "-E", "sha256", "-f", str(key)], b"", timeout=timeout)
    found = _FINGERPRINT.search(done.stdout)
    if done.status != 0 or found is None:
        raise EvidenceError(f"{key}: expected its fingerprint, observed {last_line(done.stderr) or 'none'}")
    return found[0].decode()


def _read_signer(text: bytes, signature: bytes, *, timeout: float) -> str:
    """Return the fingerprint of the key that made a signature of this text, whoever that is; "" where nobody did."""
    with _kept(signature) as file:
        done = _keygen(["-Y", "check-novalidate", "-n", NAMESPACE, "-s", file], text, timeout=timeout)
    found = _FINGERPRINT.search(done.stdout)
    return found[0].decode() if done.status == 0 and found is not None else ""


def check_signature(text: bytes, signature: bytes, principal: str, allowed_signers: Path, *, timeout: float) -> str:
    """Return "" where the signature is one of `principal`, as a file of allowed signers has it, else why not.

    Raises EvidenceError where there is no such file: nobody knows then.
    """
    if not allowed_signers.is_file():
        raise EvidenceError(f"no file of allowed signers at {allowed_signers}; name that of the host's policy")
    with _kept(signature) as file:
        words = ["-Y", "verify", "-f", str(allowed_signers), "-I", principal, "-n", NAMESPACE, "-s", file]
        done = _keygen(words, text, timeout=timeout)
    return "" if done.status == 0 else last_line(done.stdout + done.stderr) or f"ssh-keygen ended with {done.status}"


@contextmanager
def _kept(signature: bytes) -> Iterator[str]:
    """A private file with a signature, for as long as it is needed; ssh-keygen reads none from elsewhere."""
    with tempfile.NamedTemporaryFile(prefix="imagefresh-") as file:
        file.write(signature)
        file.flush()
        yield file.name


def _keygen(words: Sequence[str], text: bytes, *, timeout: float) -> Completed:
    environment = {**clean_environment(), "SSH_ASKPASS_REQUIRE": "never"}
    return run(["ssh-keygen", *words], timeout=timeout, stdin=text, env=environment)
