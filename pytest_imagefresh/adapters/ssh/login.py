"""Hops -> authenticated ssh connections, every step bounded in time."""

from __future__ import annotations

import base64
import binascii
import contextlib
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
from paramiko.agent import AgentKey, AgentSSH

from pytest_imagefresh.adapters.ssh.connection import FOREIGN_ERRORS, Connection, close, reason
from pytest_imagefresh.adapters.ssh.known_hosts import HostKey, KnownHosts, check_host_key
from pytest_imagefresh.adapters.ssh.route import Hop
from pytest_imagefresh.core.errors import EvidenceError

KEEPALIVE_SECONDS = 15
_DEAD_AFTER_SECONDS = 30


def connect(hops: Sequence[Hop], known: KnownHosts, *, timeout: float) -> list[Connection]:
    """Return one authenticated connection per hop, each carried by the one before it.

    `timeout`, in seconds, bounds each step: connecting, the handshake, each key that is tried. Raises Refused for an
    unknown, changed or revoked host key, EvidenceError where a hop cannot be reached or lets us in with no key.
    """
    connections: list[Connection] = []
    try:
        for index, hop in enumerate(hops):
            carrier = (hops[index - 1], connections[-1]) if index else None
            connections.append(_login(hop, _dial(hop, carrier, timeout), known, timeout))
    except BaseException:
        close(connections)
        raise
    return connections


def _dial(hop: Hop, carrier: tuple[Hop, Connection] | None, timeout: float) -> socket.socket | paramiko.Channel:
    """Return a byte stream to the hop: a TCP connection of this machine, or one that the hop before makes for us."""
    address = (hop.hostname, hop.port)
    if carrier is None:
        with _translated(f"ssh host {hop.label}: cannot be reached", "check host.ssh, the network and sshd"):
            stream = socket.create_connection(address, timeout)
            _notice_silence(stream)
            return stream
    before, connection = carrier
    with _translated(
        f"ssh host {hop.label}: cannot be reached from jump host {before.label}",
        "check ProxyJump and AllowTcpForwarding",
    ):
        return connection.open_channel("direct-tcpip", address, ("127.0.0.1", 0), timeout=timeout)


def _notice_silence(stream: socket.socket) -> None:
    """Make the kernel report a peer that vanished without a word; ssh's own keepalive only sends, it does not check."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_AFTER_SECONDS * 1000)


@contextlib.contextmanager
def _translated(subject: str, advice: str) -> Iterator[None]:
    """Turn a foreign error into ours, once."""
    try:
        yield
    except FOREIGN_ERRORS as error:
        raise EvidenceError(f"{subject}: {reason(error)}; {advice}") from error


def _login(hop: Hop, stream: socket.socket | paramiko.Channel, known: KnownHosts, timeout: float) -> Connection:
    """Return an authenticated connection over a byte stream: handshake, host key, and only then our keys."""
    subject = f"ssh host {hop.label}: no ssh handshake within {timeout:g} s"
    try:
        with _translated(subject, "check that sshd listens on this port"):
            connection = Connection(stream)
    except BaseException:
        stream.close()
        raise
    try:
        connection.banner_timeout = connection.handshake_timeout = connection.auth_timeout = timeout
        _prefer_known_kinds(connection, known.known(hop.known_as))
        with _translated(subject, "check that sshd listens on this port"):
            connection.start_client(timeout=timeout)
            # Also raises where start_client just returned because its time was over.
            offered = connection.get_remote_server_key()
        check_host_key(hop, HostKey(offered.get_name(), offered.asbytes()), known)
        _authenticate(connection, hop, timeout)
        connection.set_keepalive(KEEPALIVE_SECONDS)
    except BaseException:
        close([connection])
        stream.close()
        raise
    return connection


def _prefer_known_kinds(connection: Connection, known: Sequence[HostKey]) -> None:
    """Ask first for the kinds of host key that we know: a server with several shows the first asked for."""
    kinds = {key.kind for key in known}
    options = connection.get_security_options()
    options.key_types = tuple(sorted(options.key_types, key=lambda name: _kind(name) not in kinds))


def _kind(algorithm: str) -> str:
    """Return the kind of key that a signature algorithm uses. Source: RFC 8332."""
    return "ssh-rsa" if algorithm.startswith("rsa-sha2-") else algorithm


class _Agent(AgentSSH):
    """ssh-agent behind one socket, with a bound on its silence. No socket, no keys."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__()
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if not path:
            return
        self._connection.settimeout(timeout)
        # An agent that is gone or speaks nonsense offers no keys; a failure tells which keys were tried.
        with contextlib.suppress(*FOREIGN_ERRORS):
            self._connection.connect(path)
            self._connect(self._connection)  # type: ignore[attr-defined]

    def close(self) -> None:
        self._connection.close()


@dataclass
class _Offer:
    """The keys to try, in order, and why some cannot be tried."""

    keys: list[tuple[str, paramiko.PKey]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _authenticate(connection: Connection, hop: Hop, timeout: float) -> None:
    agent = _Agent(hop.agent_socket, timeout)
    try:
        offer = _offer(hop, agent.get_keys())
        tried: list[str] = []
        for name, key in offer.keys:
            tried.append(f"{name} ({_fingerprint(key)})")
            if _accepts(connection, hop, key, timeout):
                return
            if not connection.is_active():
                offer.notes.append("the server ended the connection (MaxAuthTries)")
                break
    finally:
        agent.close()
    notes = "".join(f"; {note}" for note in offer.notes)
    raise EvidenceError(
        f"ssh host {hop.label}: user {hop.user!r} was not let in, expected one of our keys to be accepted; "
        f"tried {', '.join(tried) or 'no key at all'}{notes}; add the public key to authorized_keys on the host, "
        "or name another with IdentityFile in ~/.ssh/config or ssh-add"
    )


def _fingerprint(key: paramiko.PKey) -> str:
    return HostKey(key.get_name(), key.asbytes()).fingerprint


def _accepts(connection: Connection, hop: Hop, key: paramiko.PKey, timeout: float) -> bool:
    """Whether the server lets us in with this key."""
    subject = f"ssh host {hop.label}: no answer to our key within {timeout:g} s"
    with _translated(subject, "try again, and look into the log of sshd"):
        try:
            further = connection.auth_publickey(hop.user, key)
        except paramiko.BadAuthenticationType:
            further = ["another method than public key"]
        except paramiko.AuthenticationException as error:
            if "timeout" in str(error).lower():
                raise
            return False
    if further:
        raise EvidenceError(
            f"ssh host {hop.label}: user {hop.user!r} must also log in by {', '.join(further)}, expected a public key "
            "to be enough; allow that in sshd_config"
        )
    return True


def _offer(hop: Hop, agent_keys: Sequence[AgentKey]) -> _Offer:
    """Return the keys to offer: the named ones, from ssh-agent or from their files, then what else ssh-agent holds."""
    offer = _Offer()
    waiting = {key.asbytes(): key for key in agent_keys}
    for path in hop.identity_files:
        in_agent = waiting.pop(_public_blob(path), None)
        if in_agent is not None:
            offer.keys.append((f"{path} in ssh-agent", in_agent))
        else:
            _offer_file(offer, path)
    if not hop.identities_only:
        offer.keys += [(f"{key.comment or 'a key'} in ssh-agent", key) for key in waiting.values()]
    return offer


def _public_blob(path: str) -> bytes:
    """Return the public half that lies beside a private key, or is the named file itself; b"" where there is none."""
    for name in (f"{path}.pub", path):
        try:
            words = Path(name).read_bytes().split()
            if words and words[0].startswith((b"ssh-", b"ecdsa-", b"sk-")):
                return base64.b64decode(words[1], validate=True)
        except (OSError, IndexError, binascii.Error):
            continue
    return b""


def _offer_file(offer: _Offer, path: str) -> None:
    """Add the key in a file. A file that is not there is passed over, as ssh does."""
    try:
        offer.keys.append((path, paramiko.PKey.from_path(path)))
    except FileNotFoundError:
        return
    except (TypeError, paramiko.PasswordRequiredException):
        # TypeError is how the cryptography library says that a key is encrypted.
        offer.notes.append(f"{path} is encrypted: load it with 'ssh-add {path}' into ssh-agent")
    except (OSError, ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
        offer.notes.append(f"{path} cannot be used: {reason(error)}")
