"""What is read of the host's compose folder, in a thread of its own, and what it teaches the masker."""

from __future__ import annotations

import hashlib
import threading

import pytest

from pytest_imagefresh.adapters.command import Completed
from pytest_imagefresh.compose_evidence import HostCompose, Meanwhile, compare_with_commit, read_host_compose
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


def test_the_reading_runs_beside_and_only_once() -> None:
    threads: list[str] = []

    def read_once() -> int:
        threads.append(threading.current_thread().name)
        return len(threads)

    reading = Meanwhile(read_once)
    reading.start()
    reading.start()
    assert (reading.result(), threads) == (1, ["imagefresh-meanwhile"])


def test_what_did_not_come_or_was_not_begun_is_read_at_the_end() -> None:
    tries: list[str] = []

    def read_second_time() -> str:
        tries.append("try")
        if len(tries) == 1:
            raise EvidenceError("every session is in use")
        return "read"

    reading = Meanwhile(read_second_time)
    reading.start()
    assert (reading.result(), len(tries)) == ("read", 2)
    assert Meanwhile(read_second_time).result() == "read"


def test_what_never_comes_is_an_error_at_the_end() -> None:
    def fail() -> str:
        raise EvidenceError("gone")

    reading = Meanwhile(fail)
    reading.start()
    with pytest.raises(EvidenceError, match="gone"):
        reading.result()
