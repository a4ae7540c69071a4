"""The verdict of a session: issued after a complete gate only, accepted by the host, or there is none and no pass."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from pytest_imagefresh.adapters.signing import check_signature
from pytest_imagefresh.core.statement import parse_statement
from tests.gate_folder import Ended, GateFolder
from tests.hook.verdicts import make_key
from tests.support import ROOT

XDIST = ("-p", "xdist", "-n", "2")


@pytest.fixture
def signing_folder(gate_folder: GateFolder) -> GateFolder:
    """The gate folder, with a key that signs."""
    key = make_key(gate_folder.path / "gate_key")
    settings = gate_folder.path / "imagefresh.toml"
    settings.write_text(f'{settings.read_text()}\n[signing]\nkey = "{key}"\nprincipal = "gate@shop"\n')
    return gate_folder


def files(folder: GateFolder) -> dict[str, Path]:
    """The verdict's files of the newest run."""
    runs = sorted((folder.path / ".imagefresh" / "shop").iterdir())
    names = ("verdict.json", "verdict.json.sig", "test-result.json")
    return {name: runs[-1] / "shop" / name for name in names if (runs[-1] / "shop" / name).exists()}


def complete(folder: GateFolder) -> bool:
    runs = sorted((folder.path / ".imagefresh" / "shop").iterdir())
    return json.loads((runs[-1] / "shop" / "chain.json").read_text())["complete"] is True


@pytest.mark.parametrize("options", [(), XDIST], ids=["alone", "xdist"])
def test_a_complete_gate_leaves_a_signed_verdict(signing_folder: GateFolder, options: tuple[str, ...]) -> None:
    ended = signing_folder.gate("--junitxml=gate.xml", *options, faults=["requires-verdict"])
    assert ended.status == 0, ended
    found = files(signing_folder)
    assert set(found) == {"verdict.json", "verdict.json.sig", "test-result.json"}
    text = found["verdict.json"].read_bytes()
    statement = parse_statement(text)
    assert statement.revision.hex == signing_folder.revision
    assert (statement.prod_image, statement.prod_service, statement.prod_port) == ("shop-shop", "shop", 8500)
    assert statement.compose_sha256 == "c" * 64
    signers = signing_folder.path / "signers"
    public = (signing_folder.path / "gate_key.pub").read_text()
    signers.write_text(f'gate@shop namespaces="imagefresh" {public}')
    signature = found["verdict.json.sig"].read_bytes()
    assert check_signature(text, signature, "gate@shop", signers, timeout=20) == ""
    result = json.loads(found["test-result.json"].read_text())["predicate"]
    assert result["result"] == "PASSED"
    assert len(result["passedTests"]) >= len(list((ROOT / "gates").glob("test_*.py")))
    assert complete(signing_folder)


@pytest.mark.parametrize("options", [(), XDIST], ids=["alone", "xdist"])
@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [("rejects-verdict", 1, "^REFUSED: .*no signature of the gate"), ("verdict-unknown", 11, "^COULD NOT FIND OUT")],
)
def test_what_the_host_does_not_accept_is_no_pass(
    signing_folder: GateFolder, options: tuple[str, ...], fault: str, status: int, words: str
) -> None:
    ended = signing_folder.gate("--junitxml=gate.xml", *options, faults=[fault])
    assert ended.status == status, ended
    assert ended.says(words), ended
    assert files(signing_folder) == {}
    assert not complete(signing_folder)
    assert not (signing_folder.path / "gate.xml").exists()


@pytest.mark.parametrize("options", [("--gate-partial",), ("--gate-reuse",), ("-k", "revision")], ids=str)
def test_no_other_session_leaves_one(signing_folder: GateFolder, options: tuple[str, ...]) -> None:
    signing_folder.gate(*options, faults=["requires-verdict"])
    assert files(signing_folder) == {}


def test_a_refused_gate_leaves_none(signing_folder: GateFolder) -> None:
    assert signing_folder.gate(faults=["requires-verdict", "stale-image"]).status == 1
    assert files(signing_folder) == {}


def test_a_host_that_requires_one_refuses_where_nobody_signs(gate_folder: GateFolder) -> None:
    ended = gate_folder.gate(faults=["requires-verdict"])
    assert ended.status == 1
    assert ended.says("the hook refuses the validated image"), ended


@pytest.mark.parametrize("fault", ["missing", "locked", "bundled"])
def test_a_key_that_cannot_sign_is_told_before_the_gate_begins(signing_folder: GateFolder, fault: str) -> None:
    key = signing_folder.path / "gate_key"
    if fault == "missing":
        key.unlink()
    if fault == "locked":
        key.write_text("no key\n")
    if fault == "bundled":
        settings = signing_folder.path / "imagefresh.toml"
        settings.write_text(settings.read_text().replace("[host]\n", '[host]\nhook = "bundled"\n'))
    ended = signing_folder.gate(faults=["requires-verdict"])
    assert ended.status == 4, ended
    assert ended.says("imagefresh: signing")


WHILE_IT_IS_SIGNED = """#!/bin/sh
ls {folder}/.imagefresh/shop/*/shop/chain.json >/dev/null 2>&1 && kill -TERM "$PPID" && exec sleep 60
exec {keygen} "$@"
"""
"""An ssh-keygen that ends whoever calls it once the gate has passed."""

BEFORE_THE_RECORD = """
import os, signal
from pytest_imagefresh.adapters import records

original = records.write_text


def write_text(folder, name, text):
    path = original(folder, name, text)
    if name == "test-result.json":
        os.kill(os.getpid(), signal.{signal})
    return path


records.write_text = write_text
"""
"""A plugin that ends its own process once all files of the verdict are there."""


def assert_interrupted(ended: Ended, folder: GateFolder) -> None:
    assert ended.status == 2, ended
    assert ended.says("^INTERRUPTED: the gate passed and was not recorded: nothing can be promoted"), ended
    assert "Traceback" not in ended.output
    assert files(folder) == {}
    assert not complete(folder)
    assert not (folder.path / "gate.xml").exists()


def test_a_session_that_is_ended_while_its_verdict_is_signed_leaves_none(
    signing_folder: GateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = signing_folder.path / "bin" / "ssh-keygen"
    program.parent.mkdir()
    program.write_text(WHILE_IT_IS_SIGNED.format(folder=signing_folder.path, keygen=shutil.which("ssh-keygen")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert_interrupted(signing_folder.gate("--junitxml=gate.xml", faults=["requires-verdict"]), signing_folder)


@pytest.mark.parametrize(("number", "options"), [("SIGTERM", ()), ("SIGINT", ()), ("SIGHUP", XDIST)])
def test_a_session_that_is_ended_before_its_record_takes_the_verdict_back(
    signing_folder: GateFolder, number: str, options: tuple[str, ...]
) -> None:
    (signing_folder.path / "ended.py").write_text(BEFORE_THE_RECORD.format(signal=number))
    argv = ("--junitxml=gate.xml", "-p", "ended", *options)
    assert_interrupted(signing_folder.gate(*argv, faults=["requires-verdict"]), signing_folder)
