"""How the staging service is in the host's compose file, and how in the commit's own: what differs, key by key.

The host's file is right by definition: a branch must not be able to mount the host's root. But whoever validates the
commit has to see what the commit says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.masking import MASK, Masker

SAME = "as in the commit"
NO_FILE = "the commit has no compose file; staging runs as the host's own says"

_SHOWN = 500

# How the image is built is the commit's to say, and read from there; what an env_file adds is the host's own.
_NOT_COMPARED = frozenset({"build", "env_file"})
_ABSENT: tuple[object, ...] = (None, [], {})


@dataclass(frozen=True)
class Difference:
    """One key that the two files set otherwise; None where a file does not set it."""

    path: tuple[str, ...]
    """From the service on: `("environment", "ROLE")`."""
    host: object
    commit: object


@dataclass(frozen=True)
class ComposeEvidence:
    """What is known of the host's compose configuration, beside the commit's."""

    service: str
    configuration: Mapping[str, object]
    """As compose on the host resolves it; {} where that could not be read."""
    sha256: str
    """Of the JSON as it came, in hex."""
    problem: str = ""
    """Why there is nothing to compare, in one sentence; "" where there is."""
    differences: tuple[Difference, ...] = ()

    def sentence(self) -> str:
        """Return in one line whether the host's file differs from the commit's, and in which keys."""
        if self.problem or not self.differences:
            return self.problem or SAME
        keys = dict.fromkeys(each.path[0] if each.path else "all of it" for each in self.differences)
        return f"service {self.service} of the host's file differs from the commit's: {', '.join(keys)}"

    def lines(self, mask: Masker) -> list[str]:
        """Return the same for a file: hash, sentence, and every difference with its values, secrets masked."""
        told = [_told(self.service, each, mask) for each in self.differences]
        return [f"sha256 of the host's resolved configuration: {self.sha256 or 'unknown'}", self.sentence(), *told]


def service_of(configuration: Mapping[str, object], service: str, root: str) -> dict[str, object] | None:
    """Return one service of a resolved configuration, paths below `root`, its project folder, relative to that.

    None where there is no such service. Raises EvidenceError for another shape than compose's.
    """
    services = configuration.get("services") or {}
    body = services.get(service) if isinstance(services, Mapping) else services
    if body is not None and not isinstance(body, Mapping):
        raise EvidenceError(f"compose brought back {str(body)[:200]!r} as service {service}; check its version")
    return None if body is None else {str(key): _relative(value, root.rstrip("/")) for key, value in body.items()}


def _relative(value: object, root: str) -> object:
    """Return a value in which the project's folder is called `.`: it always differs, and says nothing."""
    if isinstance(value, str) and (value == root or value.startswith(f"{root}/")):
        return f".{value[len(root) :]}"
    if isinstance(value, Mapping):
        return {key: _relative(each, root) for key, each in value.items()}
    return [_relative(each, root) for each in value] if isinstance(value, list) else value


def compare_services(host: Mapping[str, object] | None, commit: Mapping[str, object] | None) -> list[Difference]:
    """Return what the two files say otherwise about one service; None stands for a file that does not have it."""
    if host is None or commit is None:
        return [] if host is commit else [Difference((), host, commit)]
    if commit.get("env_file"):
        host = {**host, "environment": _without_extra(host.get("environment"), commit.get("environment"))}
    return list(_compare(_compared(host), _compared(commit), ()))


def _compared(service: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in service.items() if key not in _NOT_COMPARED and not key.startswith("x-")}


def _without_extra(host: object, commit: object) -> object:
    """Return the host's variables that the commit's file names, too."""
    if not isinstance(host, Mapping):
        return host
    return {key: value for key, value in host.items() if isinstance(commit, Mapping) and key in commit}


def _compare(host: object, commit: object, path: tuple[str, ...]) -> Iterator[Difference]:
    if host == commit or (host in _ABSENT and commit in _ABSENT):
        return
    # A service that lacks a table and one whose table is longer differ in the entries.
    tables = [each or {} for each in (host, commit)]
    if all(isinstance(table, Mapping) for table in tables) and path:
        host, commit = tables
    if isinstance(host, Mapping) and isinstance(commit, Mapping):
        for key in sorted(host.keys() | commit.keys()):
            yield from _compare(host.get(key), commit.get(key), (*path, str(key)))
    else:
        yield Difference(path, *_unequal(host, commit))


def _unequal(host: object, commit: object) -> tuple[object, object]:
    """Return two values without what both have: of two lists of tables, such as mounts, only the others matter."""
    if not isinstance(host, list) or not isinstance(commit, list):
        return host, commit
    if not all(isinstance(each, Mapping) for each in [*host, *commit]):
        return host, commit
    others = [each for each in host if each not in commit], [each for each in commit if each not in host]
    return others if any(others) else (host, commit)


def _told(service: str, difference: Difference, mask: Masker) -> str:
    key = ".".join(("services", service, *difference.path))
    # Masked under its key: a variable whose name looks secret has a secret value.
    name = difference.path[-1] if difference.path else service
    seen = [_shown(mask.deep({name: value})[name]) for value in (difference.host, difference.commit)]
    same = " (both secret, and not the same)" if seen[0] == seen[1] and MASK in seen[0] else ""
    return f"{key}: host has {seen[0]}, commit has {seen[1]}{same}"


def _shown(value: object) -> str:
    text = "nothing" if value in _ABSENT else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def secret_variables(configuration: Mapping[str, object]) -> dict[str, str]:
    """Return the variables of every service of a resolved configuration, for a masker to learn from."""
    services = configuration.get("services")
    bodies: Sequence[object] = list(services.values()) if isinstance(services, Mapping) else []
    tables = [body.get("environment") for body in bodies if isinstance(body, Mapping)]
    pairs = [pair for table in tables if isinstance(table, Mapping) for pair in table.items()]
    return {str(name): value for name, value in pairs if isinstance(value, str)}
