"""Signatures by real ssh-keygen and ssh-agent, and the documented recipe as it stands in docs/verdicts.md."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_imagefresh.adapters.signing import check_key, check_signature, sign
from pytest_imagefresh.core.errors import ConfigError, EvidenceError
from pytest_imagefresh.core.settings import Signing
from tests.hook.verdicts import make_key
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
    with pytest.raises(ConfigError, match="expected a private key without a passphrase"):
        check_key(signing(key.with_suffix(".pub")), timeout=SECONDS)


def test_a_key_with_a_passphrase_is_told_and_nobody_is_asked(key: Path) -> None:
    run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(key)])
    with pytest.raises(ConfigError, match=r"signing\.key: .*passphrase"):
        check_key(signing(key), timeout=SECONDS)


@pytest.mark.parametrize("content", [None, b"", b"a text\n", b"\x00\xff"], ids=str)
def test_what_is_no_key_is_told(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(ConfigError, match=r"signing\.key"):
        check_key(signing(tmp_path / "key"), timeout=SECONDS)


def test_the_documented_recipe_works(tmp_path: Path) -> None:
    """Every shell block of docs/verdicts.md, one after the other, in one folder."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "verdicts.md").read_text(), re.DOTALL)
    assert len(blocks) >= 4
    (tmp_path / "verdict.json").write_bytes(TEXT)
    script = "\n".join(["set -eux", *blocks])
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'Good "imagefresh" signature for gate@orchestrator' in done.stdout
