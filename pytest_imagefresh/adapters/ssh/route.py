"""An ssh target and ~/.ssh/config -> the hops that lead to it. No connection is made here."""

from __future__ import annotations

import getpass
import os
import pwd
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from pytest_imagefresh.adapters import command
from pytest_imagefresh.core.errors import ConfigError

_TARGET = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]{0,63})@)?"
    r"(?:(?P<host>[A-Za-z0-9_][A-Za-z0-9._-]{0,252})|\[(?P<ipv6>[0-9A-Fa-f:.]{2,45})\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_DEFAULT_KEYS = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
_DEFAULT_PORT = 22
_MAX_HOPS = 8


@dataclass(frozen=True)
class Asked:
    """An ssh target as it was written; None where it says nothing."""

    host: str
    user: str | None = None
    port: int | None = None


@dataclass(frozen=True)
class Hop:
    """One ssh server on the way, everything resolved."""

    hostname: str
    port: int
    user: str
    identity_files: tuple[str, ...]
    """Paths in the order in which they are tried; they need not exist."""
    identities_only: bool = False
    """Whether only keys of `identity_files` are offered, even where ssh-agent holds more."""
    agent_socket: str = ""
    """Path of the socket of ssh-agent; "" for none."""
    host_key_alias: str = ""

    @property
    def label(self) -> str:
        """The server for messages, `user@host:port`."""
        return f"{self.user}@{self.hostname}:{self.port}"

    @property
    def known_as(self) -> str:
        """The name under which known_hosts lists it. Source: sshd(8), SSH_KNOWN_HOSTS FILE FORMAT."""
        if self.host_key_alias:
            return self.host_key_alias
        return self.hostname if self.port == _DEFAULT_PORT else f"[{self.hostname}]:{self.port}"


def parse_target(text: str) -> Asked:
    """Read `user@host:port`, `user@host`, `host:port`, `host` or an alias; an IPv6 address stands in brackets.

    Raises ConfigError for anything else, so that nothing odd ever reaches a command.
    """
    match = _TARGET.fullmatch(text)
    port = int(match["port"]) if match and match["port"] else None
    if match is None or port == 0 or (port or 0) > 65535:
        raise ConfigError(
            f"not an ssh target: {text!r}; expected user@host:port, or a Host of ~/.ssh/config (host.ssh)"
        )
    return Asked(match["host"] or match["ipv6"], match["user"], port)


def resolve(target: str, *, timeout: float) -> tuple[Hop, ...]:
    """Return the hops that lead to an ssh target, the one to connect to first in front, the target itself last.

    `timeout`, in seconds, bounds each call of ssh. Raises ConfigError for a target or configuration that cannot be
    used, EvidenceError when ssh does not answer. Source: `ssh -G`, which reads the configuration exactly as ssh does.
    """
    hops = _resolve(target, timeout, ())
    if len(hops) > _MAX_HOPS:
        raise ConfigError(f"ssh target {target!r}: {len(hops)} hops, expected {_MAX_HOPS} at most; correct ProxyJump")
    return hops


def _resolve(target: str, timeout: float, seen: tuple[str, ...]) -> tuple[Hop, ...]:
    if target in seen:
        raise ConfigError(f"ssh target {seen[0]!r}: ProxyJump leads back to {target!r}; correct ~/.ssh/config")
    asked = parse_target(target)
    config = _read_ssh_config(asked, timeout)
    before: tuple[Hop, ...] = ()
    for index, jump in enumerate(_jumps(target, config)):
        route = _resolve(jump, timeout, (*seen, target))
        # As with ssh -J: only the first jump host may have a ProxyJump of its own, the list says the rest.
        before += route if index == 0 else route[-1:]
    return (*before, _hop(asked, config))


def _jumps(target: str, config: dict[str, list[str]]) -> list[str]:
    proxy_command = _first(config, "proxycommand", "none")
    if proxy_command != "none":
        raise ConfigError(
            f"ssh target {target!r}: ~/.ssh/config has ProxyCommand {proxy_command!r}, expected ProxyJump or a direct "
            "connection; write the same way as ProxyJump"
        )
    jumps = _first(config, "proxyjump", "none")
    return [] if jumps == "none" else jumps.split(",")


def _read_ssh_config(asked: Asked, timeout: float) -> dict[str, list[str]]:
    """Return what `ssh -G` prints: lower-case keyword -> values. Without an ssh client on this machine: nothing."""
    environment = command.clean_environment()
    if shutil.which("ssh", path=environment["PATH"]) is None:
        return {}
    argv = ["ssh", *_config_file(), "-G"]
    argv += ["-l", asked.user] if asked.user else []
    argv += ["-p", str(asked.port)] if asked.port else []
    done = command.run([*argv, "--", asked.host], timeout=timeout, env=environment)
    if done.status != 0:
        said = command.last_line(done.stderr) or f"exit status {done.status}"
        raise ConfigError(f"ssh target {asked.host!r}: ssh -G refuses the configuration: {said}; correct ~/.ssh/config")
    return _parse_ssh_config(done.stdout.decode("utf-8", "replace"))


def _config_file() -> list[str]:
    """Return the option that makes ssh read $HOME/.ssh/config: by itself it goes by the password database."""
    home = os.path.expanduser("~")
    config = Path(home, ".ssh", "config")
    try:
        own = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        own = ""
    return ["-F", str(config)] if home != own and config.is_file() else []


def _parse_ssh_config(text: str) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        keyword, _, value = line.partition(" ")
        values.setdefault(keyword.lower(), []).append(value.strip())
    return values


def _first(config: dict[str, list[str]], keyword: str, default: str) -> str:
    return config.get(keyword, [default])[0]


def _hop(asked: Asked, config: dict[str, list[str]]) -> Hop:
    hostname = _first(config, "hostname", asked.host).strip("[]")
    port = int(_first(config, "port", str(asked.port or _DEFAULT_PORT)))
    user = _first(config, "user", asked.user or getpass.getuser())
    tokens = {"%%": "%", "%d": os.path.expanduser("~"), "%h": hostname, "%n": asked.host, "%p": str(port)}
    tokens |= {"%r": user, "%u": getpass.getuser()}
    return Hop(
        hostname=hostname,
        port=port,
        user=user,
        identity_files=tuple(
            _path(name, tokens) for name in config.get("identityfile", _DEFAULT_KEYS) if name != "none"
        ),
        identities_only=_first(config, "identitiesonly", "no") == "yes",
        agent_socket=_agent_socket(_first(config, "identityagent", "SSH_AUTH_SOCK"), tokens),
        host_key_alias=_first(config, "hostkeyalias", ""),
    )


def _agent_socket(value: str, tokens: dict[str, str]) -> str:
    """Return the path that IdentityAgent means. Source: ssh_config(5)."""
    if value == "none":
        return ""
    if value == "SSH_AUTH_SOCK":
        return os.environ.get("SSH_AUTH_SOCK", "")
    return os.environ.get(value[1:], "") if value.startswith("$") else _path(value, tokens)


def _path(text: str, tokens: dict[str, str]) -> str:
    """Return a path of ssh_config with its tokens and `~` replaced."""
    return os.path.expanduser(re.sub(r"%.", lambda match: tokens.get(match[0], match[0]), text.strip('"')))
