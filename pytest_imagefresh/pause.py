"""The pause proof: staging is paused for a moment, and nobody may answer on its port."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address

import msgspec

from pytest_imagefresh.adapters.host import socket_path
from pytest_imagefresh.adapters.http import await_answer
from pytest_imagefresh.adapters.pause import Deadman, arm, disarm, first_bytes, read_addresses
from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.evidence import Container, Silence
from pytest_imagefresh.core.port import (
    CONNECTIONS,
    DEADMAN_SECONDS,
    addresses_left_out,
    addresses_to_ask,
    check_may_pause,
    check_paused,
    parse_host_addresses,
    parse_listeners,
    seconds_of_silence,
    still_of_host,
)
from pytest_imagefresh.observed_engine import parse_answer
from pytest_imagefresh.run import TargetRun

_PATIENCE_SECONDS = 1.0
"""How long an answer before the pause is waited for; a slower one leaves no time for the proof."""


def read_silence(run: TargetRun, container: Container) -> Silence:
    """Pause staging for a moment and return what came from its port meanwhile, and afterwards.

    1. nothing of production is ever paused; 2. the usual answer is measured; 3. the host is told to end the pause
    whatever becomes of us, and says who else listens and what its addresses are; 4. the pause is listened to, 5.
    proven to have lasted, and ended; 6. the port is asked again. Raises Refused for 1, EvidenceError where any
    other step cannot be made sure of.
    """
    prods = [target.prod for target in (run.target, *run.settings.targets.values())]
    check_may_pause(container, run.production_before, prods).require()
    if run.restricted:
        return _observe_silence(run, container)
    port, path = run.target.staging.port, run.target.staging.health_path
    ends = _ends(run, addresses_to_ask(container, port, ()))
    own = next(iter(ends))
    usual = _usual(run, ends)
    if not usual:
        raise EvidenceError(
            f"port {port} at {own} brought no byte within {_PATIENCE_SECONDS:g} s before the pause proof, "
            "expected an answer; choose a faster health path, or set pause_proof = false"
        )
    started = time.monotonic()
    deadman = _arm(run, container)
    told = parse_listeners(deadman.listeners, port), parse_host_addresses(deadman.addresses)
    left_out = addresses_left_out(container, port, *told)
    more = _ends(run, addresses_to_ask(container, port, *told), known=ends)
    usual, ends = max(usual, _usual(run, more)), {**ends, **more}
    seconds = seconds_of_silence(usual, time.monotonic() - started)
    with run.engine.paused(container.id):
        heard = first_bytes(
            ends,
            path,
            connections=CONNECTIONS,
            seconds=seconds,
            at_most=DEADMAN_SECONDS,  # then `check_paused` says that it was too late
            until_one=True,
            under_way=run.run.host.under_way,
        )
        check_paused(run.engine.read_container(container.id.hex), time.monotonic() - started)
    run.run.host.require_reached()
    bounds = run.settings.timeouts
    after = await_answer(*ends[own], path, timeout=bounds.inspect, seconds=bounds.health)
    # Only now: until it ran again, nobody but the deadman was sure to be there.
    disarm(run.run.host, deadman, timeout=bounds.inspect)
    spoke = [address for address, times in heard.items() if times]
    return Silence(
        addresses=tuple(ends),
        connections=CONNECTIONS,
        seconds=seconds,
        usual=usual,
        heard=_still_of_the_host(run, spoke, told[1]),
        after=after,
        left_out=left_out,
    )


def _still_of_the_host(run: TargetRun, heard: list[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out what is no address of the host any more: where a network has gone, another machine answers."""
    if not heard:
        return ()
    now = parse_host_addresses(read_addresses(run.run.host, timeout=run.settings.timeouts.inspect))
    return still_of_host(heard, known, now)


class _Observed(msgspec.Struct, frozen=True):
    """What the hook says of a pause proof of its own; times in milliseconds."""

    addresses: tuple[str, ...]
    listeners: str
    host: str
    connections: int
    seconds: int
    usual: int
    state: str
    elapsed: int
    heard: tuple[str, ...]
    url: str
    answer: str


def _observe_silence(run: TargetRun, container: Container) -> Silence:
    """Let the hook do the same on the host, and judge what it brings as if it were ours."""
    report = run.observe("silence")
    try:
        found = msgspec.json.decode(report.observed.get("silence", b""), type=_Observed)
        asked = {ip_address(address) for address in found.addresses}
    except (msgspec.DecodeError, ValueError) as error:
        raise EvidenceError(
            f"the hook's pause proof is not understood: {error}; is it really deploy-hook.sh?"
        ) from error
    port = run.target.staging.port
    told = parse_listeners(found.listeners, port), parse_host_addresses(found.host)
    wanted, left_out = addresses_to_ask(container, port, *told), addresses_left_out(container, port, *told)
    missed = [address for address in wanted if ip_address(address) not in asked]
    silent = found.seconds / 1000 >= seconds_of_silence(found.usual / 1000, 0)
    if report.container_id != container.id.hex or missed or found.connections < CONNECTIONS or not silent:
        raise EvidenceError(
            f"the hook's pause proof asked container {report.container_id[:12]} at {', '.join(found.addresses)} with "
            f"{found.connections} connections for {found.seconds} ms, expected {container.id} at {', '.join(wanted)} "
            f"with {CONNECTIONS} for {found.usual * 3} ms; is it really deploy-hook.sh?"
        )
    check_paused(replace(container, status=found.state), found.elapsed / 1000)
    return Silence(
        addresses=found.addresses,
        connections=found.connections,
        seconds=found.seconds / 1000,
        usual=found.usual / 1000,
        heard=found.heard,
        after=parse_answer(found.url, found.answer),
        left_out=left_out,
    )


def _ends(run: TargetRun, addresses: Iterable[str], known: Collection[str] = ()) -> dict[str, tuple[str, int]]:
    """Return what reaches the staging port from this machine, by address of the host."""
    port = run.target.staging.port
    return {address: run.run.host.reach(port, address) for address in addresses if address not in known}


def _usual(run: TargetRun, ends: Mapping[str, tuple[str, int]]) -> float:
    """Return how long an answer takes, in seconds: the slowest of two from each end. 0 where none came."""
    path, bound = run.target.staging.health_path, _PATIENCE_SECONDS
    times = first_bytes(ends, path, connections=2, seconds=bound, at_most=bound)
    return max((max(each) for each in times.values() if each), default=0.0)


def _arm(run: TargetRun, container: Container) -> Deadman:
    return arm(
        run.run.host,
        socket_path(run.settings.host.docker_host),
        container.id,
        port=run.target.staging.port,
        seconds=DEADMAN_SECONDS,
        timeout=run.settings.timeouts.inspect,
    )
