"""Who answers on a port: the engine's word, the host's table of sockets, and the silence of a paused container."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.evidence import Answer, Container, Port, PortOwner, Production, Silence
from pytest_imagefresh.core.identity import ContainerId, ImageId
from pytest_imagefresh.core.port import (
    DEADMAN_SECONDS,
    MOST_ADDRESSES,
    addresses_left_out,
    addresses_to_ask,
    check_may_pause,
    check_paused,
    check_port,
    check_silence,
    own_address,
    parse_host_addresses,
    parse_listeners,
    seconds_of_silence,
    still_of_host,
)
from pytest_imagefresh.core.settings import default_target

CONTAINER = Container(
    id=ContainerId("6" * 64),
    name="shop-staging",
    image_id=ImageId("sha256:" + "4" * 64),
    status="running",
    health="",
    started_at="2026-01-02T03:04:05Z",
    restart_count=0,
    network_mode="shop_default",
    ports=(Port("8000/tcp", "127.0.0.1", 8501),),
    service="shop-staging",
)
HOST_NETWORK = replace(CONTAINER, ports=(), network_mode="host")
ANSWER = Answer("http://127.0.0.1:8501/health", 200)
OWNER = PortOwner(CONTAINER.id, CONTAINER.name, "127.0.0.1")
OTHER = PortOwner(ContainerId("7" * 64), "old", "::1")
SILENCE = Silence(("127.0.0.1",), 5, 0.3, 0.002, (), ANSWER)
PROD = default_target("shop", "shop").prod
NOTHING = Production((), None)


def ports(*addresses: str, port: int = 8501) -> Container:
    return replace(CONTAINER, ports=tuple(Port("8000/tcp", each, port) for each in addresses))


# Whose port it is.


def test_http_200_on_its_own_port_is_accepted() -> None:
    assert check_port(CONTAINER, 8501, ANSWER, [OWNER]).ok
    assert check_port(HOST_NETWORK, 8501, ANSWER, []).ok


@pytest.mark.parametrize(
    "answer", [Answer("u", 0, "connection refused"), Answer("u", 302), Answer("u", 500), Answer("u", 204)], ids=str
)
def test_any_other_answer_is_refused(answer: Answer) -> None:
    assert not check_port(CONTAINER, 8501, answer, [OWNER]).ok


@pytest.mark.parametrize(
    "published", [(), (Port("8000/tcp", "127.0.0.1", 8500),), (Port("8000/udp", "127.0.0.1", 8501),)], ids=str
)
def test_a_port_that_it_does_not_publish_is_refused(published: tuple[Port, ...]) -> None:
    assert not check_port(replace(CONTAINER, ports=published), 8501, ANSWER, []).ok


@pytest.mark.parametrize("container", [CONTAINER, HOST_NETWORK], ids=["bridge", "host"])
def test_a_port_that_another_container_publishes_too_is_refused(container: Container) -> None:
    verdict = check_port(container, 8501, ANSWER, [OWNER, OTHER])
    assert not verdict.ok
    assert "port 8501 is published by old (777777777777) at ::1 too" in verdict.reason


# Where to ask.

TABLE = """\
   0: 0100007F:2135 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0000 100 0 0 10 0
   1: 0200007F:2135 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0000 100 0 0 10 0
   2: 00000000:2136 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1 0000 100 0 0 10 0
  10: 00000000000000000000000001000000:2135 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000
  11: B80D01200000000000000000010000AB:2135 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000
  12: 0000000000000000FFFF00000100007F:2135 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000
"""


def test_listeners_are_read_from_the_kernel_s_own_tables() -> None:
    found = ("127.0.0.1", "127.0.0.2", "::1", "2001:db8::ab00:1", "::ffff:127.0.0.1")
    assert parse_listeners(TABLE, 8501)[:3] == found[:3]
    assert parse_listeners(TABLE, 8502) == ("0.0.0.0",)
    assert parse_listeners("", 8501) == ()


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "  0: 0100007F:2135 0100007F:9999 01 0",
        "  0: 7F:2135 00000000:0000 0A 0",
        "  sl  local_address rem_address",
    ],
)
def test_any_other_line_is_no_evidence(line: str) -> None:
    with pytest.raises(EvidenceError, match="table of sockets"):
        parse_listeners(line, 8501)


@pytest.mark.parametrize(
    ("published", "listeners", "expected"),
    [
        (("127.0.0.1",), (), ["127.0.0.1"]),
        (("0.0.0.0", "::"), ("0.0.0.0", "::"), ["127.0.0.1", "::1"]),
        (("",), (), ["127.0.0.1"]),
        (("192.0.2.7",), ("192.0.2.7",), ["192.0.2.7", "127.0.0.1"]),
        (("::1",), ("127.0.0.2",), ["::1", "127.0.0.1", "127.0.0.2"]),
        (("127.0.0.1",), ("::ffff:127.0.0.3",), ["127.0.0.1", "127.0.0.3"]),
        ((), ("::",), ["127.0.0.1", "::1"]),
    ],
    ids=str,
)
def test_every_address_on_which_somebody_could_answer_is_asked(
    published: tuple[str, ...], listeners: tuple[str, ...], expected: list[str]
) -> None:
    assert list(addresses_to_ask(ports(*published), 8501, listeners)) == expected
    assert own_address(ports(*published), 8501) == expected[0]


ADDRESSES = """\
           |-- 127.0.0.1
              |-- 192.0.2.2
           |-- 127.0.0.1
              |-- 192.0.2.2
fe8000000000000000fc00fffe000001 04 40 20 80     eth0
20010db800000000000000000000ab01 04 40 00 82     eth0
00000000000000000000000000000001 01 80 10 80       lo
"""
HOST = ("127.0.0.1", "192.0.2.2", "fe80::fc:ff:fe00:1", "2001:db8::ab01", "::1")


def test_a_host_s_addresses_are_read_from_the_kernel_s_own_tables() -> None:
    assert parse_host_addresses(ADDRESSES) == HOST
    assert parse_host_addresses("\n") == ()


@pytest.mark.parametrize("line", ["x", "+-- 10.0.0.0/8 2 0 2", "|-- localhost", "fe80 04 40 20 80 eth0"])
def test_any_other_line_is_no_address(line: str) -> None:
    with pytest.raises(EvidenceError, match="list of its addresses"):
        parse_host_addresses(line)


@pytest.mark.parametrize(
    ("published", "listeners", "asked", "left_out"),
    [
        ("127.0.0.1", (), ["127.0.0.1"], ()),
        ("0.0.0.0", (), ["127.0.0.1", "192.0.2.2"], ()),
        ("127.0.0.1", ("0.0.0.0",), ["127.0.0.1", "192.0.2.2"], ()),
        ("::", (), ["::1", "127.0.0.1", "192.0.2.2", "2001:db8::ab01"], HOST[2:3]),
        ("", (), ["127.0.0.1", "192.0.2.2", "2001:db8::ab01", "::1"], HOST[2:3]),
    ],
    ids=str,
)
def test_every_address_for_which_a_wildcard_stands_is_asked(
    published: str, listeners: tuple[str, ...], asked: list[str], left_out: tuple[str, ...]
) -> None:
    assert list(addresses_to_ask(ports(published), 8501, listeners, HOST)) == asked
    assert addresses_left_out(ports(published), 8501, listeners, HOST) == left_out


def test_more_addresses_than_are_asked_are_named() -> None:
    host = ("127.0.0.1", *(f"192.0.2.{number}" for number in range(MOST_ADDRESSES + 1)))
    assert len(addresses_to_ask(ports("0.0.0.0"), 8501, (), host)) == MOST_ADDRESSES
    assert addresses_left_out(ports("0.0.0.0"), 8501, (), host) == host[MOST_ADDRESSES:]


def test_a_wildcard_on_a_host_that_does_not_know_its_addresses_is_no_evidence() -> None:
    with pytest.raises(EvidenceError, match="expected its addresses in /proc/net/fib_trie, observed none"):
        addresses_left_out(ports("0.0.0.0"), 8501, (), ())
    assert addresses_left_out(ports("127.0.0.1"), 8501, (), ()) == ()


def test_only_an_address_that_the_host_has_lost_is_another_machine_s() -> None:
    before, now = ("127.0.0.1", "192.0.2.2", "192.0.2.3"), ("127.0.0.1", "192.0.2.2")
    assert still_of_host(["192.0.2.2", "192.0.2.3"], before, now) == ("192.0.2.2",)
    assert still_of_host(["127.0.0.2"], before, now) == ("127.0.0.2",), "it listens there, and is in no table"


@pytest.mark.parametrize("now", [(), ("192.0.2.2",)], ids=["silence", "no loopback"])
def test_a_host_that_does_not_say_what_it_still_has_is_no_evidence(now: tuple[str, ...]) -> None:
    with pytest.raises(EvidenceError, match="expected the host's addresses afterwards"):
        still_of_host(["192.0.2.2"], HOST, now)


# How long.


@pytest.mark.parametrize(("usual", "seconds"), [(0.0, 0.3), (0.1, 0.3), (0.2, 0.6), (0.5, 1.5)])
def test_three_usual_answers_are_waited_for(usual: float, seconds: float) -> None:
    assert seconds_of_silence(usual, 0.1) == pytest.approx(seconds)


@pytest.mark.parametrize(("usual", "elapsed"), [(0.95, 0.1), (0.5, 1.4), (0.001, 2.6), (60.0, 0.0)])
def test_a_silence_that_outlasts_the_deadman_is_no_evidence(usual: float, elapsed: float) -> None:
    with pytest.raises(EvidenceError, match="choose a faster health path"):
        seconds_of_silence(usual, elapsed)


def test_a_pause_that_lasted_is_evidence() -> None:
    check_paused(replace(CONTAINER, status="paused"), 0.5)


@pytest.mark.parametrize(
    ("container", "elapsed"),
    [
        (CONTAINER, 0.5),
        (None, 0.5),
        (replace(CONTAINER, status="exited"), 0.5),
        (replace(CONTAINER, status="paused"), DEADMAN_SECONDS),
    ],
    ids=["unpaused", "gone", "exited", "too late"],
)
def test_a_pause_that_did_not_last_is_no_evidence(container: Container | None, elapsed: float) -> None:
    with pytest.raises(EvidenceError, match="expected paused"):
        check_paused(container, elapsed)


# Never production.


def test_a_staging_container_may_be_paused() -> None:
    assert check_may_pause(CONTAINER, Production((replace(CONTAINER, id=OTHER.id),), None), [PROD]).ok


@pytest.mark.parametrize(
    ("container", "production"),
    [
        (CONTAINER, Production((replace(CONTAINER, status="exited"),), None)),
        (replace(CONTAINER, service="shop"), NOTHING),
        (ports("127.0.0.1", port=8500), NOTHING),
        (replace(CONTAINER, status="paused"), NOTHING),
        (replace(CONTAINER, status="restarting"), NOTHING),
    ],
    ids=["is production", "its service", "its port", "paused already", "restarting"],
)
def test_anything_else_is_never_paused(container: Container, production: Production) -> None:
    assert not check_may_pause(container, production, [PROD]).ok


def test_production_of_another_target_is_never_paused() -> None:
    jobs = default_target("jobs", "shop").prod
    assert not check_may_pause(replace(CONTAINER, service="jobs"), NOTHING, [PROD, jobs]).ok


# What it proves.


def test_silence_and_an_answer_afterwards_are_accepted() -> None:
    assert check_silence(SILENCE, CONTAINER, 8501, CONTAINER.image_id).ok
    assert check_silence(SILENCE, HOST_NETWORK, 8501, CONTAINER.image_id).ok


def test_what_was_not_asked_is_said() -> None:
    assert "not asked" not in check_silence(SILENCE, CONTAINER, 8501, CONTAINER.image_id).reason
    reason = check_silence(replace(SILENCE, left_out=("fe80::1",)), CONTAINER, 8501, CONTAINER.image_id).reason
    assert reason.endswith("; not asked: fe80::1")


@pytest.mark.parametrize(
    ("silence", "reason"),
    [
        (replace(SILENCE, heard=("127.0.0.1", "::1")), "somebody else answers on port 8501 at 127.0.0.1, ::1"),
        (replace(SILENCE, after=Answer("u", 503)), "u answers HTTP 503 after a moment's pause, expected HTTP 200"),
        (replace(SILENCE, after=Answer("u", 0, "timed out")), "u answers timed out after a moment's pause"),
    ],
    ids=["an answer", "ill afterwards", "no answer afterwards"],
)
def test_an_answer_meanwhile_or_none_afterwards_is_refused(silence: Silence, reason: str) -> None:
    verdict = check_silence(silence, CONTAINER, 8501, CONTAINER.image_id)
    assert not verdict.ok
    assert verdict.reason.startswith(reason)


def test_a_proof_that_is_switched_off_is_said_loudly() -> None:
    verdict = check_silence(None, CONTAINER, 8501, CONTAINER.image_id)
    assert verdict.ok
    assert verdict.reason.startswith("NOT PROVEN that nobody else answers on port 8501")


def test_under_host_networking_nothing_else_proves_whose_port_it_is() -> None:
    assert not check_silence(None, HOST_NETWORK, 8501, CONTAINER.image_id).ok
