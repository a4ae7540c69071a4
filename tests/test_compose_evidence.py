"""What is read of the host's compose folder, and what it teaches the masker."""

from __future__ import annotations

import hashlib

import pytest

from pytest_imagefresh.adapters.command import Completed
from pytest_imagefresh.compose_evidence import HostCompose, compare_with_commit, read_host_compose
from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.masking import Masker
from pytest_imagefresh.core.settings import Host, default_target
from tests.fakes import FakeHost, World

SHOP = default_target("shop", "shop")
PLACE = Host(repo_path="/srv/shop")
TEXT = b'{"name": "shop", "services": {"shop-staging": {"image": "a", "environment": {"API_TOKEN": "t0ken"}}}}'


class Saying(FakeHost):
    """A host whose compose says what it is told to say."""

    def __init__(self, status: int, stdout: bytes, stderr: bytes = b"") -> None:
        super().__init__(World(0, ""))
        self.done = Completed((), status, stdout, stderr)
        self.argv: list[str] = []

    def run(self, argv: list[str], **_: object) -> Completed:  # type: ignore[override]
        self.argv = argv
        return self.done


def read(host: Saying) -> HostCompose:
    return read_host_compose(host, PLACE, "staging", timeout=5)  # type: ignore[arg-type]


def test_configuration_and_env_come_in_one_round_trip() -> None:
    host = Saying(0, TEXT + b"\0A=b\n")
    assert read(host) == HostCompose(TEXT, b"A=b\n")
    assert host.argv[:3] == ["env", "-C", "/srv/shop"]
    assert host.argv[-4:] == ["--project-directory", "/srv/shop", "--profile", "staging"]


@pytest.mark.parametrize("host", [Saying(1, b"", b"no such file"), Saying(0, TEXT)], ids=["failed", "cut off"])
def test_what_compose_cannot_resolve_is_no_evidence(host: Saying) -> None:
    with pytest.raises(EvidenceError, match=r"compose cannot resolve /srv/shop on fake, .* said: (no such|nothing)"):
        read(host)


@pytest.mark.parametrize("text", [b"", b"[]", b"services: {}"])
def test_what_is_no_configuration_is_no_evidence(text: bytes) -> None:
    with pytest.raises(EvidenceError, match="compose on the host brought back"):
        compare_with_commit(HostCompose(text, b""), {}, SHOP, "/srv/shop", timeout=5)


def test_secrets_of_the_folder_are_masked_from_then_on() -> None:
    mask = Masker(["token", "passw"])
    HostCompose(TEXT, b'DB_PASSWORD="p4ss word"\nROLE=staging\nbroken line\n').teach(mask)
    assert mask("t0ken p4ss word staging") == "*** *** staging"


def test_a_commit_without_compose_file_is_said_to_have_none() -> None:
    evidence = compare_with_commit(HostCompose(TEXT, b""), {"README": b""}, SHOP, "/srv/shop", timeout=5)
    assert evidence.sentence() == "the commit has no compose file; staging runs as the host's own says"
    assert evidence.sha256 == hashlib.sha256(TEXT).hexdigest()
