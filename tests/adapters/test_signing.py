"""Signatures by real ssh-keygen and ssh-agent, and the documented recipe as it stands in docs/verdicts.md."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pytest_imagefresh.adapters import records
from pytest_imagefresh.adapters.signing import check_key, check_signature, sign
from pytest_imagefresh.core.errors import ConfigError, EvidenceError
from pytest_imagefresh.core.settings import Signing
from tests.hook.verdicts import make_key
from tests.hook.verdicts import sign as sign_elsewhere
from tests.support import ROOT, run

TEXT = b"a statement\n"
SECONDS = 20.0


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return make_key(tmp_path / "gate")


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An ssh-agent of this test's own; the path of its socket."""
    socket = tmp_path / "agent"
    said = run(["ssh-agent", "-a", str(socket)]).stdout
    pid = re.search(r"SSH_AGENT_PID=([0-9]+)", said)
    assert pid is not None
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    yield socket
    os.kill(int(pid[1]), signal.SIGTERM)


@pytest.fixture
def locked_key(key: Path) -> Path:
    """A key with a passphrase."""
    run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(key)])
    return key


def answering(tmp_path: Path) -> Path:
    """A program that gives the passphrase to whoever asks, and leaves a trace of it."""
    program = tmp_path / "askpass"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\necho secret\n")
    program.chmod(0o755)
    return program


def add_locked(tmp_path: Path, key: Path, agent: Path) -> None:
    asking = {"SSH_ASKPASS": str(answering(tmp_path)), "SSH_ASKPASS_REQUIRE": "force", "SSH_AUTH_SOCK": str(agent)}
    run(["ssh-add", "-q", str(key)], env={**os.environ, **asking})


def told(key: Path) -> str:
    """What the operator is told of a key that does not sign: one line."""
    with pytest.raises(ConfigError, match=r"^signing\.key: ") as caught:
        check_key(signing(key), timeout=SECONDS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def signing(key: Path) -> Signing:
    return Signing(key=str(key), principal="gate@shop")


def signers(tmp_path: Path, key: Path, options: str = 'namespaces="imagefresh"', principal: str = "gate@shop") -> Path:
    path = tmp_path / "allowed_signers"
    path.write_text(f"{principal} {options} {key.with_suffix('.pub').read_text()}")
    return path


def check(tmp_path: Path, key: Path, text: bytes = TEXT, principal: str = "gate@shop") -> str:
    return check_signature(
        text, sign(TEXT, signing(key), timeout=SECONDS), principal, signers(tmp_path, key), timeout=SECONDS
    )


def test_what_is_signed_holds(tmp_path: Path, key: Path) -> None:
    check_key(signing(key), timeout=SECONDS)
    assert check(tmp_path, key) == ""


@pytest.mark.parametrize("change", [{"text": b"another statement\n"}, {"principal": "somebody"}], ids=str)
def test_another_text_or_name_does_not(tmp_path: Path, key: Path, change: dict[str, object]) -> None:
    assert check(tmp_path, key, **change) != ""  # type: ignore[arg-type]


def test_another_key_or_namespace_does_not(tmp_path: Path, key: Path) -> None:
    signature = sign(TEXT, signing(key), timeout=SECONDS)
    allowed = signers(tmp_path, make_key(tmp_path / "other"))
    assert check_signature(TEXT, signature, "gate@shop", allowed, timeout=SECONDS) != ""
    allowed = signers(tmp_path, key, 'namespaces="git"')
    assert check_signature(TEXT, signature, "gate@shop", allowed, timeout=SECONDS) != ""


def test_without_allowed_signers_nobody_knows(tmp_path: Path, key: Path) -> None:
    signature = sign(TEXT, signing(key), timeout=SECONDS)
    with pytest.raises(EvidenceError, match="no file of allowed signers"):
        check_signature(TEXT, signature, "gate@shop", tmp_path / "none", timeout=SECONDS)


def test_a_key_in_the_agent_signs_by_its_public_half(tmp_path: Path, key: Path, agent: Path) -> None:
    run(["ssh-add", "-q", str(key)], env={**os.environ, "SSH_AUTH_SOCK": str(agent)})
    key.unlink()
    check_key(signing(key.with_suffix(".pub")), timeout=SECONDS)
    signature = sign(TEXT, signing(key.with_suffix(".pub")), timeout=SECONDS)
    assert check_signature(TEXT, signature, "gate@shop", signers(tmp_path, key), timeout=SECONDS) == ""


def test_a_key_that_the_agent_does_not_hold_is_told(key: Path, agent: Path) -> None:
    assert agent.exists()
    key.unlink()
    assert told(key.with_suffix(".pub")).endswith(
        "no ssh-agent holds its private half (ssh-agent was asked); ssh-add that"
    )


def test_a_public_half_without_an_agent_is_told(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    key.unlink()
    assert "(SSH_AUTH_SOCK is not set); ssh-add" in told(key.with_suffix(".pub"))


@pytest.mark.parametrize("asked", [{}, {"SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":1"}], ids=str)
def test_a_key_with_a_passphrase_is_told_and_nobody_is_asked(
    tmp_path: Path, locked_key: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, str]
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("SSH_ASKPASS", str(answering(tmp_path)))
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    assert f"it has a passphrase, and no ssh-agent holds it; ssh-add {locked_key}" in told(locked_key)
    assert not (tmp_path / "asked").exists()


def test_a_key_with_a_passphrase_signs_once_the_agent_holds_it(tmp_path: Path, locked_key: Path, agent: Path) -> None:
    assert "it has a passphrase" in told(locked_key)
    add_locked(tmp_path, locked_key, agent)
    check_key(signing(locked_key), timeout=SECONDS)
    assert check(tmp_path, locked_key) == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no key file at "),
        (b"", "ssh-keygen finds no key in it"),
        (b"a text\n", "ssh-keygen finds no key in it"),
        (b"\x00\xff", "ssh-keygen finds no key in it"),
        (
            b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
            "ssh-keygen finds no key in it",
        ),
    ],
    ids=str,
)
def test_what_is_no_key_is_told(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
        (tmp_path / "key").chmod(0o600)
    assert reason in told(tmp_path / "key")


def test_a_folder_is_no_key(tmp_path: Path) -> None:
    assert "no key file at " in told(tmp_path)


def test_a_key_that_others_may_read_is_told(key: Path) -> None:
    key.chmod(0o644)
    assert told(key).endswith(f"others may read it; chmod 0600 {key}")


def test_a_key_beside_the_public_half_of_another_is_told(tmp_path: Path, key: Path) -> None:
    """ssh-keygen itself compares the two."""
    key.with_suffix(".pub").write_bytes(make_key(tmp_path / "other").with_suffix(".pub").read_bytes())
    assert "doesn't match private" in told(key)


def test_a_key_is_found_in_the_home_folder(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(key.parent))
    check_key(Signing(key=f"~/{key.name}", principal="gate@shop"), timeout=SECONDS)


@pytest.mark.parametrize("instead", ["-f {other} -n imagefresh", "-f {key} -n git"], ids=str)
def test_a_signature_that_is_not_the_keys_own_is_not_returned(
    tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch, instead: str
) -> None:
    """A program that signs with something else, as a broken agent or a wrapper on PATH would."""
    words = instead.format(key=key, other=make_key(tmp_path / "other"))
    real = shutil.which("ssh-keygen")
    program = f'#!/bin/sh\ncase "$*" in *" sign "*) exec {real} -q -Y sign {words} ;; esac\nexec {real} "$@"\n'
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh-keygen").write_text(program)
    (tmp_path / "bin" / "ssh-keygen").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(EvidenceError, match="expected a signature of SHA256:"):
        sign(TEXT, signing(key), timeout=SECONDS)


def test_a_signature_for_another_namespace_does_not_hold(tmp_path: Path, key: Path) -> None:
    signature = sign_elsewhere(key, TEXT, "git")
    assert check_signature(TEXT, signature, "gate@shop", signers(tmp_path, key), timeout=SECONDS) != ""
    allowed = signers(tmp_path, key, 'namespaces="imagefresh,git"')
    assert check_signature(TEXT, signature, "gate@shop", allowed, timeout=SECONDS) != ""


@pytest.mark.parametrize("signature", [b"", b"a text\n"], ids=str)
def test_what_is_no_signature_does_not_hold(tmp_path: Path, key: Path, signature: bytes) -> None:
    assert check_signature(TEXT, signature, "gate@shop", signers(tmp_path, key), timeout=SECONDS) != ""


def documented() -> list[str]:
    """Every shell block of docs/verdicts.md."""
    return re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "verdicts.md").read_text(), re.DOTALL)


def test_the_documented_recipe_works(tmp_path: Path, agent: Path) -> None:
    """One block after the other, in one folder; after each, who may sign is looked at with this plugin's own eyes."""
    assert agent.exists()
    (tmp_path / "verdict.json").write_bytes(TEXT)
    said, allowed = [], []
    for block in documented():
        script = f"set -eux\n{block}"
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.replace("\n", " "))
        allowed.append([name for name in ("gate", "next") if is_allowed(tmp_path, tmp_path / f"{name}_ed25519")])
    make, allow, by_agent, by_hand, revoke, rotate, end = allowed
    assert (make, allow, by_agent, by_hand, revoke) == ([], ["gate"], ["gate"], ["gate"], ["gate"])
    assert (rotate, end) == (["gate", "next"], ["next"])
    assert [text.split(" with ")[0] for text in said] == [
        "", "", "", 'Good "imagefresh" signature for gate@orchestrator', "Could not verify signature. revoked ", "", ""
    ]  # fmt: skip
    assert (tmp_path / "try.sig").read_text().startswith("-----BEGIN SSH SIGNATURE-----")


def is_allowed(tmp_path: Path, key: Path) -> bool:
    allowed = tmp_path / "allowed_signers"
    if not key.exists() or not allowed.exists():
        return False
    signature = sign(TEXT, signing(key), timeout=SECONDS)
    return check_signature(TEXT, signature, "gate@orchestrator", allowed, timeout=SECONDS) == ""


def test_the_documented_files_and_settings_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "verdicts.md").read_text()
    assert all(f"`{name}`" in text for name in (records.VERDICT, records.SIGNATURE, records.TEST_RESULT))
    (settings,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    msgspec.toml.decode(settings, type=dict[str, Signing])
