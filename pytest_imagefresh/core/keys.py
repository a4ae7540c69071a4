"""Every setting's key: what kind of value it takes, and what is expected of it."""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pytest_imagefresh.core.errors import ImagefreshError
from pytest_imagefresh.core.identity import RepoName
from pytest_imagefresh.core.settings import SENT

DAY = 86400
"""Seconds. No bound may be longer: a step that may take for ever is not bounded."""

_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)")

# Source: the grammar of distribution/reference, without digests: a digest cannot be tagged.
_DOMAIN = r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]+)?"
_COMPONENT = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(rf"({_DOMAIN}/)?{_COMPONENT}(/{_COMPONENT})*(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?")
_LOOKS_LIKE_ID = re.compile(r"sha256(:.*)?|[0-9a-f]{64}")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{1,127}")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./@+=:,-]+")
_HEALTH_PATH = re.compile(r"/[A-Za-z0-9_./~%?&=+,:@-]{0,499}")
_SSH = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9_.:@%\[\]-]{0,254}")
_PRINCIPAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,254}")
_ENGINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# A pin with one of these names would bend the programs of the promotion instead of the compose file.
_TAKEN_VARIABLE = re.compile(
    r"(COMPOSE|DOCKER|BUILDKIT|BUILDX|GIT|SSH|LD|LC|BASH|IMAGEFRESH)_.*|PATH|HOME|IFS|ENV|SHELLOPTS|BASHOPTS|LANG|SHELL"
    r"|USER|PWD|OLDPWD|TMPDIR|PS4|CDPATH|GLOBIGNORE|(HTTPS?|ALL|NO)_PROXY",
    re.IGNORECASE,
)
# The revision is the hook's own to pass; the others redirect the builder.
_TAKEN_ARG = re.compile(r"GIT_SHA|BUILDKIT_SYNTAX|.*_PROXY", re.IGNORECASE)


class Kind(Enum):
    """What type a value has."""

    FLAG = "flag"
    NUMBER = "number"
    INTEGER = "integer"
    TEXT = "text"
    LIST = "list"
    TABLE = "table"


@dataclass(frozen=True)
class Key:
    """What one setting takes."""

    kind: Kind
    expected: str
    """For messages and documentation: "a whole number from 1 to 65535"."""
    fits: Callable[[Any], bool] = lambda _: True
    """Says whether a value of the right kind is acceptable."""
    secret: bool = False
    """The value never appears in a message."""

    def accepts(self, value: object) -> bool:
        """Say whether a value has the right type and fits."""
        return _TYPE_CHECKS[self.kind](value) and self.fits(value)


def _is_text(value: object) -> bool:
    """Say whether a value is a text that a program can be given: no NUL, no bytes that are no character."""
    return isinstance(value, str) and not re.search("[\0\ud800-\udfff]", value)


def _is_text_list(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(_is_text(item) for item in value)


def _is_text_table(value: object) -> bool:
    return isinstance(value, Mapping) and all(_is_text(key) and _is_text(item) for key, item in value.items())


# type() and not isinstance(): True is an int to Python and no number to a person.
_TYPE_CHECKS: dict[Kind, Callable[[object], bool]] = {
    Kind.FLAG: lambda value: type(value) is bool,
    Kind.NUMBER: lambda value: type(value) in (int, float),
    Kind.INTEGER: lambda value: type(value) is int,
    Kind.TEXT: _is_text,
    Kind.LIST: _is_text_list,
    Kind.TABLE: _is_text_table,
}


def parse_text(key: Key, text: str) -> object:
    """Return the value that the text of a variable stands for, or the text itself where it stands for none.

    Lists are comma-separated, blank text is an empty list; flags are true, 1, yes, on, false, 0, no, off.
    """
    word = text.strip()
    if key.kind is Kind.FLAG and word.casefold() in _TRUE | _FALSE:
        return word.casefold() in _TRUE
    if key.kind is Kind.INTEGER and re.fullmatch(r"[0-9]{1,18}", word):
        return int(word)
    if key.kind is Kind.NUMBER and _NUMBER.fullmatch(word) and word.isascii():
        return float(word)
    if key.kind is Kind.LIST:
        return [item.strip() for item in text.split(",")] if word else []
    return text


def is_repo_name(text: str) -> bool:
    """Say whether a text is a repo name, which is also what a target may be called."""
    try:
        RepoName(text)
    except ImagefreshError:
        return False
    return True


def _are_repos(entries: list[str]) -> bool:
    return bool(entries) and all(is_repo_name(entry.strip()) for entry in entries)


def _is_bound(seconds: float) -> bool:
    return math.isfinite(seconds) and 0 < seconds <= DAY


def _is_image(text: str) -> bool:
    return len(text) <= 255 and bool(_REFERENCE.fullmatch(text)) and not _LOOKS_LIKE_ID.fullmatch(text)


def _is_printable(text: str) -> bool:
    return bool(text) and text.isprintable() and text == text.strip()


def _is_host_folder(text: str) -> bool:
    return _is_printable(text) and text.startswith("/") and ".." not in text.split("/")


def _is_docker_host(text: str) -> bool:
    return text.startswith("unix://") and _is_host_folder(text.removeprefix("unix://"))


def _is_below(text: str) -> bool:
    """Say whether a path stays inside the commit: relative, normal, without a way up."""
    return (
        _is_printable(text) and not text.startswith(("/", "-", "~")) and ".." not in text.split("/") and ":" not in text
    )


def _is_command(words: list[str]) -> bool:
    return bool(words) and _is_printable(words[0]) and not words[0].startswith("-")


def _is_override(words: list[str]) -> bool:
    """Say whether a list is a command, or empty: then the image's own runs."""
    return not words or bool(words[0])


def _is_entrypoint(words: list[str]) -> bool:
    return words == [""] or _is_override(words)


def _are_mounts(paths: list[str]) -> bool:
    return all(_is_host_folder(path) and posixpath.normpath(path) not in ("/", "//") for path in paths)


def _is_check_path(text: str) -> bool:
    return bool(_PLAIN_PATH.fullmatch(text)) and not text.startswith("-") and ".." not in text.split("/")


def _is_pin(text: str) -> bool:
    return not text or bool(_VARIABLE.fullmatch(text) and not _TAKEN_VARIABLE.fullmatch(text))


def _is_normal(path: str) -> bool:
    """Say whether a path is written in the one way that it is compared in: no `//`, no `/.`, no slash at the end."""
    return posixpath.normpath(path) == path and not path.startswith("//")


def _is_content(table: Mapping[str, str]) -> bool:
    """Say whether each folder in the image, absolute and not the root, stands for a folder of the commit."""
    return all(_is_host_folder(inside) and _is_normal(inside) and inside != "/" for inside in table) and all(
        _is_below(folder) and _is_normal(folder) for folder in table.values()
    )


def _are_ignored(patterns: list[str]) -> bool:
    """Say whether every pattern names something: one of wildcards alone would ignore all content."""
    return all(
        _is_below(pattern) and _is_normal(pattern) and re.search(r"[A-Za-z0-9]", re.sub(r"\[.*?\]", "", pattern))
        for pattern in patterns
    )


def _are_words(words: list[str]) -> bool:
    return bool(words) and all(_NAME.fullmatch(word) for word in words)


def _are_build_args(table: Mapping[str, str]) -> bool:
    return all(_VARIABLE.fullmatch(name) and not _TAKEN_ARG.fullmatch(name) for name in table)


def _matches(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda text: bool(pattern.fullmatch(text))


def _or_empty(fits: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda text: not text or fits(text)


_BOUND = Key(Kind.NUMBER, "a number of seconds above 0, at most 86400", _is_bound)
_PORT = Key(Kind.INTEGER, "a whole number from 1 to 65535", lambda port: 1 <= port <= 65535)
_FOLDER_HERE = Key(Kind.TEXT, "the path of a folder on this machine", _is_printable)
_FOLDER_THERE = Key(Kind.TEXT, "an absolute path on the Docker host, without '..'", _is_host_folder)
_REPO = Key(
    Kind.TEXT, "the name of a repo: letters, digits, '.', '_' and '-', no '..', no '.git' at the end", is_repo_name
)
_IMAGE = Key(
    Kind.TEXT, "an image reference that can be tagged: lowercase name, optionally ':tag', no digest or ID", _is_image
)
_SERVICE = Key(Kind.TEXT, "the name of a compose service: letters, digits, '.', '_' and '-'", _matches(_NAME))
_HEALTH = Key(Kind.TEXT, "a path that starts with '/', in plain characters", _matches(_HEALTH_PATH))

KEYS: dict[str, Key] = {
    "enabled": Key(Kind.FLAG, "true or false"),
    "repos": Key(Kind.LIST, "a list of at least one repo name", _are_repos),
    "self_hosting_repo": _REPO,
    "repos_dir": _FOLDER_HERE,
    "worktrees_dir": _FOLDER_HERE,
    "host_repos_dir": Key(
        Kind.TEXT,
        "an absolute path on the Docker host, without '..', or '-' where it has no clones",
        lambda text: text == SENT or _is_host_folder(text),
    ),
    "secret_names": Key(Kind.LIST, "a list of at least one word such as 'token'", _are_words),
    "settle": Key(Kind.NUMBER, "a number of seconds from 0 to 86400", lambda n: math.isfinite(n) and 0 <= n <= DAY),
    "host.ssh": Key(Kind.TEXT, "'local', user@host:port, or a Host of ~/.ssh/config", _matches(_SSH)),
    "host.known_hosts": Key(Kind.TEXT, "the path of a known_hosts file on this machine", _is_printable),
    "host.repo_path": _FOLDER_THERE,
    "host.hook": Key(
        Kind.TEXT,
        "the hook's absolute path on the Docker host, or 'bundled'",
        lambda text: text == "bundled" or _is_host_folder(text),
    ),
    "host.docker_host": Key(Kind.TEXT, "unix:///path/of/docker.sock, as the Docker host sees it", _is_docker_host),
    "host.docker_config": Key(Kind.TEXT, "an absolute path on the Docker host, or ''", _or_empty(_is_host_folder)),
    "host.engine_id": Key(Kind.TEXT, "the engine's ID as 'docker info' prints it", _matches(_ENGINE)),
    "host.restricted": Key(Kind.FLAG, "true or false"),
    "timeouts.git": _BOUND,
    "timeouts.inspect": _BOUND,
    "timeouts.build": _BOUND,
    "timeouts.health": _BOUND,
    "timeouts.check": _BOUND,
    "timeouts.content": _BOUND,
    "signing.key": Key(Kind.TEXT, "the path of a key file on this machine", _is_printable),
    "signing.principal": Key(Kind.TEXT, "a principal of allowed_signers, without wildcards", _matches(_PRINCIPAL)),
    "targets.*.repo": _REPO,
    "targets.*.image": _IMAGE,
    "targets.*.prod_image": _IMAGE,
    "targets.*.staging.service": _SERVICE,
    "targets.*.staging.container": Key(
        Kind.TEXT, "the name of a container: two or more of letters, digits, '.', '_' and '-'", _matches(_CONTAINER)
    ),
    "targets.*.staging.port": _PORT,
    "targets.*.staging.profile": Key(
        Kind.TEXT, "the name of a compose profile: never empty, or staging would start with production", _matches(_NAME)
    ),
    "targets.*.staging.health_path": _HEALTH,
    "targets.*.staging.check_path": Key(
        Kind.TEXT, "a path in the container, in plain characters, no '..'", _is_check_path
    ),
    "targets.*.staging.check_mode": Key(Kind.TEXT, "a plain word", _matches(_NAME)),
    "targets.*.staging.check_command": Key(
        Kind.LIST, "a command as a list of words, the first one a program", _is_command
    ),
    "targets.*.staging.check_format": Key(Kind.TEXT, "'exit' or 'tap'", lambda text: text in ("exit", "tap")),
    "targets.*.staging.pause_proof": Key(Kind.FLAG, "true or false"),
    "targets.*.staging.overrides.command": Key(
        Kind.LIST, "the command that runs instead of the image's, as a list of words", _is_override
    ),
    "targets.*.staging.overrides.entrypoint": Key(
        Kind.LIST, 'the entrypoint that runs instead of the image\'s, as a list of words; [""] for none', _is_entrypoint
    ),
    "targets.*.staging.overrides.user": Key(
        Kind.TEXT,
        "the user that it runs as instead of the image's: a name or number, optionally ':group', or ''",
        _or_empty(_matches(_USER)),
    ),
    "targets.*.staging.overrides.working_dir": Key(
        Kind.TEXT, "an absolute folder in the container, without '..', or ''", _or_empty(_is_host_folder)
    ),
    "targets.*.staging.overrides.mounts": Key(
        Kind.LIST, "a list of absolute paths in the container, without '..' and not '/' itself", _are_mounts
    ),
    "targets.*.staging.overrides.environment": Key(
        Kind.LIST, "a list of names of variables", lambda names: all(_VARIABLE.fullmatch(name) for name in names)
    ),
    "targets.*.prod.service": _SERVICE,
    "targets.*.prod.port": _PORT,
    "targets.*.prod.profile": Key(Kind.TEXT, "the name of a compose profile, or ''", _or_empty(_matches(_NAME))),
    "targets.*.prod.health_path": _HEALTH,
    "targets.*.prod.pin": Key(Kind.TEXT, "the name of a variable that nothing else uses, or ''", _is_pin),
    "targets.*.prod.precheck": Key(Kind.FLAG, "true or false"),
    "targets.*.prod.strategy": Key(Kind.TEXT, "'recreate' or 'proxy'", lambda text: text in ("recreate", "proxy")),
    "targets.*.prod.proxy.service": _SERVICE,
    "targets.*.prod.proxy.port": _PORT,
    "targets.*.prod.proxy.drain": Key(
        Kind.NUMBER, "a number of seconds from 1 to 3600", lambda seconds: 1 <= seconds <= 3600
    ),
    "targets.*.build.context": Key(Kind.TEXT, "a folder of the commit: relative, no '..'", _is_below),
    "targets.*.build.dockerfile": Key(Kind.TEXT, "a file below the build context: relative, no '..'", _is_below),
    "targets.*.build.target": Key(Kind.TEXT, "the name of a build stage, or ''", _or_empty(_matches(_NAME))),
    "targets.*.build.args": Key(
        Kind.TABLE,
        "a table of build arguments in the settings file, texts all; not GIT_SHA, BUILDKIT_SYNTAX or *_PROXY",
        _are_build_args,
        True,
    ),
    "targets.*.content": Key(
        Kind.TABLE,
        "a table in the settings file: absolute folder in the image = folder of the commit, without '..', '//' or a "
        "slash at the end",
        _is_content,
    ),
    "targets.*.content_ignore": Key(
        Kind.LIST, "a list of relative paths or patterns, none of wildcards alone", _are_ignored
    ),
}
"""Dotted key -> what it takes; `*` stands for the name of a target."""
