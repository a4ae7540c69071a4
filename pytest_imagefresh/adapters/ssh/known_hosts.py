"""Host keys, strict: only what known_hosts lists is accepted. Source: sshd(8), SSH_KNOWN_HOSTS FILE FORMAT."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import os
import re
from dataclasses import dataclass

from pytest_imagefresh.adapters.ssh.route import Hop
from pytest_imagefresh.core.errors import ConfigError, Refused

_REVOKED = "@revoked"


@dataclass(frozen=True)
class HostKey:
    """A public host key."""

    kind: str
    """The key type, `ssh-ed25519`."""
    blob: bytes
    """The key in the wire format of RFC 4253, section 6.6."""

    @property
    def fingerprint(self) -> str:
        """The form that ssh and ssh-keygen print, `SHA256:...`."""
        digest = hashlib.sha256(self.blob).digest()
        return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")

    @property
    def file_name(self) -> str:
        """The file in which sshd usually keeps this kind of key."""
        kind = "rsa" if self.kind.startswith(("ssh-rsa", "rsa-")) else "ecdsa" if "ecdsa" in self.kind else "ed25519"
        return f"/etc/ssh/ssh_host_{kind}_key.pub"


@dataclass(frozen=True)
class _Entry:
    line: int
    revoked: bool
    patterns: tuple[str, ...]
    key: HostKey

    def names(self, host: str) -> bool:
        """Whether this line speaks of a host; one negated pattern that matches is a no."""
        matches = [(pattern.startswith("!"), _matches(pattern.lstrip("!"), host)) for pattern in self.patterns]
        return any(hit for _, hit in matches) and not any(negated and hit for negated, hit in matches)


@dataclass(frozen=True)
class KnownHosts:
    """The keys that one known_hosts file lists."""

    path: str
    entries: tuple[_Entry, ...]

    def known(self, host: str) -> list[HostKey]:
        """Return the keys by which a host, `name` or `[name]:port`, may identify itself."""
        return [entry.key for entry in self.entries if not entry.revoked and entry.names(host)]

    def revoked(self, host: str) -> list[HostKey]:
        """Return the keys that must never be accepted of this host."""
        return [entry.key for entry in self.entries if entry.revoked and entry.names(host)]


def read_known_hosts(path: str, *, named: bool) -> KnownHosts:
    """Return what a known_hosts file lists; `named` says that the operator named the file.

    The default file may be missing: then every host is unknown. Raises ConfigError for a named file that does not
    exist, a file that cannot be read, and a @revoked line that cannot be understood.
    """
    full = os.path.expanduser(path)
    try:
        with open(full, encoding="utf-8", errors="replace") as file:
            return parse_known_hosts(file.read(), full)
    except FileNotFoundError as error:
        if not named:
            return KnownHosts(full, ())
        raise ConfigError(
            f"host.known_hosts: {full} does not exist, expected a file with the host's key; create it with "
            "ssh-keyscan after comparing the fingerprint on the host itself, or correct the settings"
        ) from error
    except OSError as error:
        raise ConfigError(f"host.known_hosts: {full} cannot be read: {error.strerror}; correct the settings") from error


def parse_known_hosts(text: str, path: str) -> KnownHosts:
    """Return the entries of a known_hosts file. A line that cannot be read lists nothing, so its host is unknown."""
    entries = [_parse_line(line, number, path) for number, line in enumerate(text.splitlines(), 1)]
    return KnownHosts(path, tuple(entry for entry in entries if entry is not None))


def _parse_line(line: str, number: int, path: str) -> _Entry | None:
    words = line.split()
    if not words or words[0].startswith("#"):
        return None
    marker = words.pop(0) if words[0].startswith("@") else ""
    key = _parse_key(words[1:3])
    if key is None and marker == _REVOKED:
        # Skipping it would accept a key that somebody meant to forbid.
        raise ConfigError(f"{path} line {number}: a {_REVOKED} key that cannot be read; correct or remove the line")
    # Other markers (@cert-authority) vouch for certificates, which are not supported: they make no plain key known.
    if key is None or marker not in ("", _REVOKED):
        return None
    return _Entry(number, marker == _REVOKED, tuple(words[0].split(",")), key)


def _parse_key(words: list[str]) -> HostKey | None:
    if len(words) != 2:
        return None
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        return None
    return HostKey(words[0], blob)


def _matches(pattern: str, host: str) -> bool:
    if pattern.startswith("|1|"):
        return _hash_matches(pattern, host.lower())
    # Brackets stand for themselves in known_hosts; only * and ? are wildcards.
    translated = re.sub(r"[\[\]]", lambda match: f"[{match[0]}]", pattern.lower())
    return fnmatch.fnmatchcase(host.lower(), translated)


def _hash_matches(pattern: str, host: str) -> bool:
    """Whether a `|1|salt|hash` entry means this host: HMAC-SHA1 of the name under the salt."""
    parts = pattern.split("|")
    try:
        salt, expected = (base64.b64decode(part, validate=True) for part in parts[2:])
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.new(salt, host.encode(), "sha1").digest(), expected)


def check_host_key(hop: Hop, offered: HostKey, known: KnownHosts) -> None:
    """Raise Refused unless known_hosts lists exactly the key that a server offered.

    1. A revoked key is refused, whatever else is listed.  2. One of the listed keys is accepted.
    3. With none listed the host is unknown.  4. Any other key has changed.
    """
    if any(key.blob == offered.blob for key in known.revoked(hop.known_as)):
        raise Refused(
            f"ssh host {hop.label}: offers host key {offered.fingerprint}, which {known.path} marks as {_REVOKED}; "
            "do not connect, give the host a new key"
        )
    expected = known.known(hop.known_as)
    if offered in expected:
        return
    raise Refused(_changed(hop, offered, expected, known.path) if expected else _unknown(hop, offered, known.path))


def _unknown(hop: Hop, offered: HostKey, path: str) -> str:
    return (
        f"ssh host {hop.label}: its {offered.kind} host key {offered.fingerprint} is unknown, expected one that {path} "
        f"lists for {hop.known_as}; {_compare(hop, offered)}; only if they agree, append the line that "
        f"'{_keyscan(hop)}' prints to {path}"
    )


def _changed(hop: Hop, offered: HostKey, expected: list[HostKey], path: str) -> str:
    wanted = " or ".join(f"{key.fingerprint} ({key.kind})" for key in expected)
    return (
        f"ssh host {hop.label}: its host key changed: expected {wanted} from {path}, observed {offered.fingerprint} "
        f"({offered.kind}); somebody may stand in between; {_compare(hop, offered)}; only if they agree, run "
        f"'ssh-keygen -R {_quoted(hop.known_as)} -f {path}' and append the line that '{_keyscan(hop)}' prints"
    )


def _compare(hop: Hop, offered: HostKey) -> str:
    return (
        f"compare '{_keyscan(hop)} | ssh-keygen -lf -' with 'ssh-keygen -lf {offered.file_name}' run on the host itself"
    )


def _keyscan(hop: Hop) -> str:
    return f"ssh-keyscan -p {hop.port} {hop.hostname}"


def _quoted(name: str) -> str:
    # The brackets of [host]:port would be a pattern to the shell.
    return f'"{name}"' if name.startswith("[") else name
