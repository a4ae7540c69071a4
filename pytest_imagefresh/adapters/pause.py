"""A container's port, listened to while the container is paused; and who ends the pause if we cannot."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pytest_imagefresh.adapters.command import last_line
from pytest_imagefresh.adapters.host import Host
from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.identity import ContainerId

_ARMED = re.compile(r"armed ([1-9][0-9]*)")

# Arguments: engine socket, container ID, port in hex, seconds. The first question shows that the deadman will reach
# this container, the same way. TERM and HUP, as at a logout, end the pause at once; USR1 disarms. Who else listens must
# be known, or somebody would not be asked. The host's own addresses are what a wildcard stands for.
_ARM = r"""
curl -q -fsS --noproxy '*' --max-time 5 -o /dev/null --unix-socket "$1" "http://engine/containers/$2/json" || exit 1
cd /
setsid sh -c '
  trap '\''kill "$!"; curl -q -s --noproxy "*" --max-time 5 -X POST -o /dev/null --unix-socket "$1" \
    "http://engine/containers/$2/unpause"'\'' EXIT
  trap exit HUP TERM
  trap '\''trap - EXIT; kill "$!"; exit'\'' USR1
  sleep "$4" &
  wait' imagefresh-deadman "$@" </dev/null >/dev/null 2>&1 &
echo "armed $!"
cat /proc/net/tcp >/dev/null || exit 1
cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -E ":$3 [0-9A-F]+:0000 0A "
echo addresses
"""

# The lines of the host's tables of routes and interfaces that say what its addresses are.
_ADDRESSES = r"""
sed -n -e '/|--/h' -e '/\/32 host LOCAL/{g;p' -e '}' /proc/net/fib_trie 2>/dev/null
cat /proc/net/if_inet6 2>/dev/null
exit 0
"""


@dataclass(frozen=True)
class Deadman:
    """A process on the host that ends a container's pause after a while, whatever has become of us."""

    pid: str
    listeners: str
    """The lines of the host's tables of sockets that speak of the port."""
    addresses: str
    """The lines of the host's tables of routes and interfaces that say what its addresses are."""


def arm(
    host: Host, engine_socket: str, container_id: ContainerId, *, port: int, seconds: float, timeout: float
) -> Deadman:
    """Start a deadman on the host and return it, armed. `seconds` is when it ends the pause.

    `engine_socket` is a path on the host. Raises EvidenceError unless it confirms that it reaches the container.
    """
    argv = ["sh", "-c", _ARM + _ADDRESSES, "sh", engine_socket, container_id.hex, f"{port:04X}", f"{seconds:g}"]
    done = host.run(argv, timeout=timeout)
    first, _, told = done.stdout.decode(errors="replace").partition("\n")
    listeners, _, addresses = told.rpartition("addresses\n")
    armed = _ARMED.fullmatch(first)
    if done.status != 0 or armed is None:
        raise EvidenceError(
            f"host {host.name} did not confirm that it would end a pause of container {container_id}: "
            f"{last_line(done.stderr) or f'exit status {done.status}'}; the pause proof needs sh, curl and setsid there"
        )
    return Deadman(armed[1], listeners, addresses)


def read_addresses(host: Host, *, timeout: float) -> str:
    """Return the lines that say what the host's addresses are now. `timeout` in seconds."""
    return host.run(["sh", "-c", _ADDRESSES], timeout=timeout).stdout.decode(errors="replace")


def disarm(host: Host, deadman: Deadman, *, timeout: float) -> None:
    """Let a deadman end without doing anything. Where that fails it comes to its own end soon."""
    with contextlib.suppress(EvidenceError):
        host.run(["sh", "-c", 'kill -USR1 "$1"', "sh", deadman.pid], timeout=timeout)


_SLICE_SECONDS = 0.02
"""What one wait counts for at most: a process that was held up has not listened meanwhile."""


def first_bytes(
    ends: Mapping[str, tuple[str, int]],
    path: str,
    *,
    connections: int,
    seconds: float,
    at_most: float,
    until_one: bool = False,
    under_way: Callable[[], int] = lambda: 0,
) -> dict[str, list[float]]:
    """Return after how many seconds the first byte came on each connection that brought one, by name of its end.

    Every end, an address and a port, is asked at once by as many fresh connections as said. Returns when all have
    answered or ended, when `seconds` have been listened to, or with the first byte of all where `until_one` says so. A
    connection that is refused or closed without a byte has brought none. The `seconds` begin anew whenever a request
    has gone out or the number of connections that are `under_way` to their ends has changed. `at_most`, in seconds, is
    when it ends all the same: a caller who needs silence must look at the time.
    """
    answers: dict[str, list[float]] = {name: [] for name in ends}
    started = now = time.monotonic()
    listened, coming = 0.0, under_way()
    with _asking(ends, connections) as selector:
        while selector.get_map() and listened < seconds and now < started + at_most:
            found = selector.select(min(_SLICE_SECONDS, seconds - listened))
            listened += min(_SLICE_SECONDS, time.monotonic() - now)
            now = time.monotonic()
            for key, events in found:
                if _is_answer(selector, key, events, path):
                    answers[key.data].append(now - started)
            if until_one and any(answers.values()):
                break
            before, coming = coming, under_way()
            if coming != before or any(events & selectors.EVENT_WRITE for _, events in found):
                listened = 0.0
    return answers


@contextlib.contextmanager
def _asking(ends: Mapping[str, tuple[str, int]], connections: int) -> Iterator[selectors.BaseSelector]:
    """Begin to connect to every end; close everything afterwards."""
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for name, (address, port) in ends.items():
            family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
            for _ in range(connections):
                client = _client(family)
                if client is not None:
                    stack.enter_context(contextlib.closing(client))
                    client.setblocking(False)
                    client.connect_ex((address, port))
                    selector.register(client, selectors.EVENT_WRITE, name)
        yield selector


def _client(family: socket.AddressFamily) -> socket.socket | None:
    """Return a socket; None for an address family that this machine does not have, which answers nobody."""
    try:
        return socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return None
        # One connection fewer would be one silence more.
        raise EvidenceError(
            f"a connection for the pause proof could not be made: {error.strerror}; raise the limit of open files"
        ) from error


def _is_answer(selector: selectors.BaseSelector, key: selectors.SelectorKey, events: int, path: str) -> bool:
    """Ask on a connection that is made, read on one that has asked; say whether a byte came."""
    client = key.fileobj
    if not isinstance(client, socket.socket):
        raise TypeError(f"expected a socket, observed {client!r}")
    data = b""
    try:
        if events & selectors.EVENT_WRITE:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("ascii"))
            selector.modify(client, selectors.EVENT_READ, key.data)
            return False
        data = client.recv(1)
    except OSError:
        pass
    selector.unregister(client)
    return bool(data)
