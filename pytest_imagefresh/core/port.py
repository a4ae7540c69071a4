"""Who answers on a port: the container alone, because the port falls silent with it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence

from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.evidence import Answer, Container, PortOwner, Production, Silence
from pytest_imagefresh.core.identity import ImageId
from pytest_imagefresh.core.settings import Prod
from pytest_imagefresh.core.verdict import Verdict

DEADMAN_SECONDS = 3.0
"""When a paused container runs again, whatever has become of who paused it."""

CONNECTIONS = 5
"""How many fresh connections ask each address of a paused container."""

MOST_ADDRESSES = 32
"""How many addresses of a host are asked for a wildcard: each of a host's bridges has one."""

LEAST_SECONDS = 0.3
"""How long a paused container's port must be silent, however fast it usually answers."""

_FACTOR = 3
_SPARE_SECONDS = 0.2
"""What the engine may take for a pause and a look, beside the silence itself."""

_LISTENING = re.compile(r"\s*\d+:\s+([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4})\s+[0-9A-F]+:0000\s+0A\s")


def parse_listeners(table: str, port: int) -> tuple[str, ...]:
    """Return the addresses on which something listens on a TCP port. `table` are lines of /proc/net/tcp and tcp6.

    Source: proc(5). Raises EvidenceError for any other line.
    """
    found = []
    for line in filter(None, table.splitlines()):
        match = _LISTENING.match(line)
        if match is None:
            raise EvidenceError(
                f"the host's table of sockets has the line {line[:80]!r}, expected one of /proc/net/tcp; "
                "look at it there, or set pause_proof = false"
            )
        if int(match[2], 16) == port:
            found.append(_parse_address(match[1]))
    return tuple(dict.fromkeys(found))


_LEAF = re.compile(r"\s*\|-- ([0-9.]+)")
_INTERFACE = re.compile(r"([0-9a-f]{32})( +[0-9a-f]{2,8}){4} +[^ ]+")


def parse_host_addresses(text: str) -> tuple[str, ...]:
    """Return the addresses of a host. `text` are its leaves of /proc/net/fib_trie, and the lines of /proc/net/if_inet6.

    Source: proc(5). Raises EvidenceError for any other line.
    """
    found = []
    for line in filter(str.strip, text.splitlines()):
        if leaf := _LEAF.fullmatch(line):
            found.append(leaf[1])
        elif interface := _INTERFACE.fullmatch(line):
            found.append(str(ipaddress.IPv6Address(bytes.fromhex(interface[1]))))
        else:
            raise EvidenceError(
                f"the host's list of its addresses has the line {line[:80]!r}, expected one of /proc/net/fib_trie or "
                "if_inet6; look at it there, or set pause_proof = false"
            )
    return tuple(dict.fromkeys(found))


def _parse_address(text: str) -> str:
    """Return an address as people write it. The kernel prints each four bytes in the order of a little machine."""
    words = [bytes.fromhex(text[place : place + 8])[::-1] for place in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


_WILDCARDS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""What stands for every address of a host -> where this machine reaches one of them."""


def addresses_to_ask(
    container: Container, port: int, listeners: Sequence[str], host: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the addresses of the host to ask for a container's port.

    Its own first, then wherever else one listens, then those of the `host` for which a wildcard stands.
    """
    own = [_reachable(address) for address in published_on(container, port)]
    others = [address for each in listeners for address in _covered(each)]
    behind = _behind_wildcards(container, port, listeners, host)
    routable = [address for address in behind if not _is_link_local(address)]
    return tuple(dict.fromkeys([*own, "127.0.0.1", *others, *routable[:MOST_ADDRESSES]]))


def addresses_left_out(
    container: Container, port: int, listeners: Sequence[str], host: Sequence[str]
) -> tuple[str, ...]:
    """Return the addresses of the `host` for which a wildcard stands, and which are not asked.

    An IPv6 address of one link is none without its interface. Raises EvidenceError where a wildcard is published and
    the host does not say what its addresses are.
    """
    if _wildcards(container, port, listeners) and "127.0.0.1" not in host:
        raise EvidenceError(
            f"port {port} is published on every address of the host, expected its addresses in /proc/net/fib_trie, "
            f"observed {', '.join(host) or 'none'}; publish it on one address, or set pause_proof = false"
        )
    asked = addresses_to_ask(container, port, listeners, host)
    return tuple(each for each in _behind_wildcards(container, port, listeners, host) if each not in asked)


def still_of_host(heard: Sequence[str], before: Sequence[str], now: Sequence[str]) -> tuple[str, ...]:
    """Return what was heard, without the addresses that the host had `before` and has not `now`: another machine's.

    Raises EvidenceError where the host does not say what its addresses are now.
    """
    if "127.0.0.1" not in now:
        raise EvidenceError(
            f"a byte came from {', '.join(heard)} during the pause, expected the host's addresses afterwards in "
            f"/proc/net/fib_trie, observed {', '.join(now) or 'none'}; run it again, or publish the port on one address"
        )
    return tuple(each for each in heard if each not in before or each in now)


def _behind_wildcards(container: Container, port: int, listeners: Sequence[str], host: Sequence[str]) -> list[str]:
    """Return the addresses of the `host` on which a wildcard lets somebody listen: "::" stands for IPv4, too."""
    wildcards = _wildcards(container, port, listeners)
    only_four = wildcards == {"0.0.0.0"}  # noqa: S104
    return [each for each in host if wildcards and not (only_four and ":" in each)]


def _wildcards(container: Container, port: int, listeners: Sequence[str]) -> set[str]:
    return {address for address in (*published_on(container, port), *listeners) if address in _WILDCARDS}


def _is_link_local(address: str) -> bool:
    return ":" in address and ipaddress.ip_address(address).is_link_local


def published_on(container: Container, port: int) -> tuple[str, ...]:
    """Return the addresses on which a container publishes a TCP port of the host, as the engine has them."""
    return tuple(each.host_ip for each in container.ports if is_published(each.container_port, each.host_port, port))


def is_published(container_port: str, host_port: int, port: int) -> bool:
    """Say whether a binding is that of a TCP port of the host."""
    return host_port == port and container_port.endswith("/tcp")


def own_address(container: Container, port: int) -> str:
    """Return the address of the host at which a container's port is asked."""
    return addresses_to_ask(container, port, ())[0]


def _reachable(address: str) -> str:
    return _WILDCARDS.get(address, address)


def _covered(address: str) -> Iterator[str]:
    """Yield where a listener is asked: one for every IPv6 address may stand for every IPv4 address too."""
    mapped = getattr(ipaddress.ip_address(address), "ipv4_mapped", None)
    yield _reachable(str(mapped) if mapped else address)
    if address == "::":
        yield "127.0.0.1"


def check_port(container: Container, port: int, answer: Answer, owners: Iterable[PortOwner]) -> Verdict:
    """Accept when the container alone publishes the staging port, on every address, and what answers says HTTP 200.

    `owners` are all containers that publish it. Under host networking nobody publishes it: then the silence tells whose
    it is.
    """
    foreign = [each for each in owners if each.id != container.id]
    if foreign:
        seen = ", ".join(f"{each.name} ({each.id.hex[:12]}) at {each.host_ip or 'every address'}" for each in foreign)
        return Verdict(
            f"port {port} is published by {seen} too, expected container {container.name} alone; stop what is not it",
            None,
            container.name,
            seen,
        )
    if container.network_mode != "host" and not published_on(container, port):
        seen = ", ".join(f"{each.host_ip}:{each.host_port}" for each in container.ports) or "no port"
        return Verdict(f"container {container.name} publishes {seen}, expected port {port}", None, str(port), seen)
    if answer.status != 200:
        seen = f"HTTP {answer.status}" if answer.status else answer.problem or "no answer"
        return Verdict(f"{answer.url} answers {seen}, expected HTTP 200", None, "HTTP 200", seen)
    return Verdict(
        f"container {container.name} answers HTTP 200 on port {port}", container.image_id, "HTTP 200", "HTTP 200"
    )


def seconds_of_silence(usual: float, elapsed: float) -> float:
    """Return how long a port must be silent: three usual answers, 0.3 s at least.

    `usual` and `elapsed`, the time since the deadman was armed, are in seconds. Raises EvidenceError where that would
    outlast the deadman.
    """
    seconds = max(LEAST_SECONDS, _FACTOR * usual)
    if elapsed + seconds + _SPARE_SECONDS > DEADMAN_SECONDS:
        raise EvidenceError(
            f"staging took {usual:.2f} s to answer and the pause proof {elapsed:.2f} s to begin, expected much less: "
            f"its pause ends after {DEADMAN_SECONDS:g} s; choose a faster health path, or set pause_proof = false"
        )
    return seconds


def check_may_pause(container: Container, production: Production, prods: Sequence[Prod]) -> Verdict:
    """Accept a running container that has nothing to do with production: nothing else is ever paused."""
    reasons = [f"it is a {prod.service} container" for prod in prods if container.service == prod.service]
    reasons += [f"it publishes port {prod.port}" for prod in prods if published_on(container, prod.port)]
    if container.id in {each.id for each in production.containers}:
        reasons.append("it is part of production")
    if reasons:
        return Verdict(f"container {container.name} must not be paused: {reasons[0]}; correct the staging settings")
    if container.status != "running":
        return Verdict(f"container {container.name} is {container.status}, expected running; start it, run again")
    return Verdict(f"container {container.name} may be paused", container.image_id)


def check_paused(container: Container | None, elapsed: float) -> None:
    """Raise EvidenceError unless a container was paused to the end of the proof. `elapsed` as above."""
    state = container.status if container is not None else "gone"
    if state != "paused" or elapsed >= DEADMAN_SECONDS:
        raise EvidenceError(
            f"the staging container is {state} {elapsed:.2f} s after the pause proof began, expected paused and less "
            f"than {DEADMAN_SECONDS:g} s; see who else works on it, then run again"
        )


def check_silence(silence: Silence | None, container: Container, port: int, subject: ImageId) -> Verdict:
    """Accept when not a byte came while the container was paused, and HTTP 200 afterwards.

    None stands for a proof that is switched off: accepted where at least the engine knows whose port it is.
    """
    if silence is None:
        return _check_unproven(container, port, subject)
    asked = f"{silence.connections} connections each to port {port} at {', '.join(silence.addresses)}"
    if silence.heard:
        return Verdict(
            f"somebody else answers on port {port} at {', '.join(silence.heard)}: a byte came while container "
            f"{container.name} was paused, expected silence; find what listens there and stop it",
            None,
            "silence",
            f"an answer at {', '.join(silence.heard)}",
        )
    if silence.after.status != 200:
        seen = f"HTTP {silence.after.status}" if silence.after.status else silence.after.problem or "no answer"
        return Verdict(
            f"{silence.after.url} answers {seen} after a moment's pause, expected HTTP 200", None, "HTTP 200", seen
        )
    return Verdict(
        f"paused for a moment, container {container.name} silenced {asked} for {silence.seconds:.2f} s "
        f"(an answer usually takes {silence.usual:.3f} s), and answers again{_not_asked(silence)}",
        subject,
        "silence, then HTTP 200",
        "silence, then HTTP 200",
    )


def _not_asked(silence: Silence) -> str:
    """Return the words for the addresses of the host that were not asked, "" where there is none."""
    return f"; not asked: {', '.join(silence.left_out)}" if silence.left_out else ""


def _check_unproven(container: Container, port: int, subject: ImageId) -> Verdict:
    if not published_on(container, port):
        return Verdict(
            f"container {container.name} does not publish port {port} and the pause proof is switched off: nothing "
            "shows that it is the one that answers; set pause_proof = true",
            None,
            "silence",
            "not looked at",
        )
    return Verdict(
        f"NOT PROVEN that nobody else answers on port {port}: the pause proof is switched off (pause_proof = false); "
        "only the engine's word is known",
        subject,
        "not looked at",
        "not looked at",
    )
