"""Settings out of layers of plain mappings: file, .env, environment, options; later layers override earlier ones.

Every error is one ConfigError line: key: problem; expected ...; set by <source>.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import msgspec

from pytest_imagefresh.core.errors import ConfigError
from pytest_imagefresh.core.keys import KEYS, Key, is_repo_name, parse_text
from pytest_imagefresh.core.settings import SENT, Settings, Signing, Target, clashes, default_target

PREFIX = "IMAGEFRESH_"
DEFAULT = "default"
"""The source of a value that nobody set."""

_Path = tuple[str, ...]
_Struct = TypeVar("_Struct", bound=msgspec.Struct)
_SHOWN = 80
# By path, not by dotted text: a quoted "host.ssh" in a file is another key than ssh in the table host.
_KEY_OF_PATH: dict[_Path, Key] = {tuple(key.split(".")): value for key, value in KEYS.items()}


@dataclass(frozen=True)
class Layer:
    """Values of one source."""

    source: str
    """For people: "imagefresh.toml", "environment IMAGEFRESH_REPOS"."""
    values: Mapping[str, object]
    """Nested as in a file."""


@dataclass(frozen=True)
class Configuration:
    """Settings, and where each value came from."""

    settings: Settings
    sources: Mapping[str, str]
    """Dotted key -> source of its value, "default" where nobody set it; holds every key, of declared targets too."""


@dataclass(frozen=True)
class Variables:
    """Environment variables of one origin: `where` for people ("environment", ".env")."""

    where: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class _Entry:
    value: Any
    source: str


def build_settings(layers: Sequence[Layer]) -> Configuration:
    """Return the settings that the layers make together, every value checked, every default filled in.

    Raises ConfigError for an unknown key, a value that does not fit, and values that do not fit together.
    """
    entries: dict[_Path, _Entry] = {}
    for layer in layers:
        entries.update(_flatten(layer.values, (), layer.source))
    for path, entry in entries.items():
        _check_value(path, entry)
    values = {path: entry.value for path, entry in entries.items()}
    settings = _replaced(Settings(), values, skip=("signing", "targets"))
    settings = msgspec.structs.replace(settings, signing=_signing(entries), targets=_targets(values))
    configuration = Configuration(settings, _sources(settings, entries))
    _check_together(configuration)
    return configuration


# From nested tables to one entry per key.


def _flatten(table: Mapping[str, object], path: _Path, source: str) -> Iterator[tuple[_Path, _Entry]]:
    """Yield an entry per key; for a table, which may be empty, one of its own with the value None."""
    for name, value in table.items():
        here = (*path, str(name))
        if _key(here) is not None:
            yield here, _Entry(value, source)
            continue
        if not _names_below(here):
            _refuse_unknown(here, source)
        if not isinstance(value, Mapping):
            _refuse(here, f"{_shown(value)} is no table", "a table", source)
        yield here, _Entry(None, source)
        yield from _flatten(value, here, source)


def _pattern(path: _Path) -> _Path:
    """Return the path with `*` in place of a target's name."""
    return ("targets", "*", *path[2:]) if path[:1] == ("targets",) and len(path) > 1 else path


def _key(path: _Path) -> Key | None:
    return _KEY_OF_PATH.get(_pattern(path))


def _names_below(path: _Path) -> set[str]:
    """Return the names that a table can hold; none where the path is no table."""
    above = _pattern(path)
    return {known[len(above)] for known in _KEY_OF_PATH if known[: len(above)] == above and len(known) > len(above)}


def _refuse_unknown(path: _Path, source: str) -> NoReturn:
    siblings = _names_below(path[:-1])
    hint = _did_you_mean(path[-1], siblings) or _elsewhere(path[-1])
    _refuse(path, f"unknown key{hint}", f"one of {', '.join(sorted(siblings))}", source)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    lowered = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold().replace("-", "_"), sorted(lowered), n=1)
    return f", did you mean {lowered[close[0]]!r}?" if close else ""


def _elsewhere(name: str) -> str:
    """Return a hint when another table has this key."""
    keys = [key.replace("*", "NAME") for key in KEYS if key.rpartition(".")[2] == name]
    return f", did you mean {' or '.join(keys)}?" if keys else ""


# One value.


def _check_value(path: _Path, entry: _Entry) -> None:
    if path[0] == "targets" and len(path) > 1 and not is_repo_name(path[1]):
        expected = "letters, digits, '.', '_' and '-', starting with a letter or digit, no '..'"
        _refuse(path[:2], "not a target name", expected, entry.source)
    key = _key(path)
    if key is not None and not key.accepts(entry.value):
        shown = "this value" if key.secret else _shown(entry.value)
        _refuse(path, f"{shown} is not accepted", key.expected, entry.source)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _dotted(path: _Path) -> str:
    """Return a path as one line, whatever its names hold."""
    return ".".join(name if name and name.isprintable() else repr(name) for name in path)


def _refuse(path: _Path, problem: str, expected: str, source: str) -> NoReturn:
    raise ConfigError(f"{_dotted(path)}: {problem}; expected {expected}; set by {source}")


# From entries to structs.


def _replaced(struct: _Struct, values: Mapping[_Path, Any], skip: Sequence[str] = ()) -> _Struct:
    """Return a struct with the values that are given for it; `values` by path from this struct on."""
    changes: dict[str, Any] = {}
    for field in struct.__struct_fields__:
        below = {path[1:]: value for path, value in values.items() if path[0] == field}
        if field in skip or not below:
            continue
        old = getattr(struct, field)
        is_table = isinstance(old, msgspec.Struct)
        changes[field] = _replaced(old, _without_root(below)) if is_table else _frozen(below[()])
    return msgspec.structs.replace(struct, **changes)


def _without_root(values: Mapping[_Path, Any]) -> dict[_Path, Any]:
    return {path: value for path, value in values.items() if path}


def _frozen(value: Any) -> Any:
    """Return a value as structs hold it: lists as tuples, tables as copies of their own."""
    if isinstance(value, list):
        return tuple(value)
    return dict(value) if isinstance(value, Mapping) else value


def _signing(entries: Mapping[_Path, _Entry]) -> Signing | None:
    given = {path[1]: entry.value for path, entry in entries.items() if path[0] == "signing" and len(path) == 2}
    table = entries.get(("signing",))
    if table is None:
        return None
    for name in Signing.__struct_fields__:
        if name not in given:
            _refuse(("signing", name), "missing", KEYS[f"signing.{name}"].expected, f"{table.source} (the table)")
    return Signing(**given)


def _targets(values: Mapping[_Path, Any]) -> dict[str, Target]:
    tables: dict[str, dict[_Path, Any]] = {}
    for path, value in values.items():
        if path[0] == "targets" and len(path) > 1:
            tables.setdefault(path[1], {})[path[2:]] = value
    return {name: _target(name, table) for name, table in tables.items()}


def _target(name: str, values: Mapping[_Path, Any]) -> Target:
    repo = values.get(("repo",), name)
    return _replaced(default_target(name, repo), _without_root(values))


def _sources(settings: Settings, entries: Mapping[_Path, _Entry]) -> dict[str, str]:
    """Return the source of every key. Without a signing table its keys have no value, and no source."""
    paths = [tuple(key.split(".")) for key in KEYS if not key.startswith("targets.")]
    if settings.signing is None:
        paths = [path for path in paths if path[0] != "signing"]
    inner = [key.split(".")[2:] for key in KEYS if key.startswith("targets.")]
    paths += [("targets", name, *rest) for name in settings.targets for rest in inner]
    return {_dotted(path): entries[path].source if path in entries else DEFAULT for path in paths}


# Values together.


def _check_together(configuration: Configuration) -> None:
    _check_host(configuration)
    _check_proxies(configuration)
    for clash in clashes(tuple(configuration.settings.targets.values())):
        _refuse_together(
            configuration,
            clash.first,
            f"{clash.value!r} is also {clash.second} (set by {configuration.sources[clash.second]})",
            "a value of its own: staging must never reach production, nor one target another",
        )


def _check_host(configuration: Configuration) -> None:
    settings, host = configuration.settings, configuration.settings.host
    if host.restricted and host.is_local:
        _refuse_together(configuration, "host.ssh", "'local'", "an ssh target, because host.restricted is true")
    if host.restricted and host.hook == "bundled":
        expected = "the hook that is installed there, because host.restricted is true: the key can send no other"
        _refuse_together(configuration, "host.hook", "'bundled'", expected)
    if not host.is_local:
        for key, value in (("host_repos_dir", settings.host_repos_dir), ("host.repo_path", host.repo_path)):
            if not value:
                expected = f"{KEYS[key].expected}, because host.ssh is {host.ssh!r}"
                _refuse_together(configuration, key, "missing", expected)
        return
    named = {settings.repos_dir, settings.host_repos_dir} - {"", SENT}
    folders = {folder.rstrip("/") for folder in named}
    if len(folders) > 1 and configuration.sources["host.ssh"] == DEFAULT:
        problem = f"not said, while host_repos_dir {settings.host_repos_dir!r} is not repos_dir {settings.repos_dir!r}"
        _refuse_together(configuration, "host.ssh", problem, "the ssh target, or 'local' where both are here")


def _check_proxies(configuration: Configuration) -> None:
    for name, target in configuration.settings.targets.items():
        if target.prod.is_proxied and not target.prod.pin:
            expected = "the name of a variable, because prod.strategy is 'proxy'"
            _refuse_together(configuration, f"targets.{name}.prod.pin", "missing", expected)


def _refuse_together(configuration: Configuration, key: str, problem: str, expected: str) -> NoReturn:
    _refuse(tuple(key.split(".")), problem, expected, configuration.sources[key])


# Environment variables.


def variable_layers(origins: Sequence[Variables], below: Sequence[Layer]) -> list[Layer]:
    """Return one layer per IMAGEFRESH_* variable, in the order of the origins, each text as the setting's type.

    `below` are the layers that declare targets and repos: a variable can name these and no others, without case and
    with `_` for `-` and `.`. Raises ConfigError for a variable that names no setting, or more than one.
    """
    known = _known_variables(_target_names(origins, below))
    return [
        _variable_layer(name, text, origin.where, known)
        for origin in origins
        for name, text in origin.values.items()
        if name.upper().startswith(PREFIX.rstrip("_"))
    ]


def _variable_layer(name: str, text: str, where: str, known: Mapping[str, list[_Path]]) -> Layer:
    paths = known.get(name, [])
    if len(paths) > 1:
        keys = " and ".join(_dotted(path) for path in paths)
        raise ConfigError(f"{name}: names {keys}; expected one setting; set by {where}; set these in the settings file")
    if not paths:
        hint = _did_you_mean(name, known)
        expected = "a variable of docs/settings.md; a target must have a table or be listed in repos"
        raise ConfigError(f"{_dotted((name,))}: unknown variable{hint}; expected {expected}; set by {where}")
    path = paths[0]
    value: object = parse_text(_KEY_OF_PATH[_pattern(path)], text)
    for part in reversed(path):
        value = {part: value}
    return Layer(f"{where} {name}", value if isinstance(value, dict) else {})


def variable_name(path: Sequence[str]) -> str:
    """Return the variable that sets a key: `("host", "ssh")` -> `IMAGEFRESH_HOST__SSH`."""
    return PREFIX + "__".join(part.upper().replace("-", "_").replace(".", "_") for part in path)


def _known_variables(targets: Sequence[str]) -> dict[str, list[_Path]]:
    known: dict[str, list[_Path]] = {}
    for parts in _KEY_OF_PATH:
        names = targets if parts[0] == "targets" else [""]
        for path in (tuple(name if part == "*" else part for part in parts) for name in names):
            known.setdefault(variable_name(path), []).append(path)
    return known


def _target_names(origins: Sequence[Variables], below: Sequence[Layer]) -> list[str]:
    """Return the names that variables can mean: every table, and every repo that has none."""
    tables: dict[str, object] = {}
    for layer in below:
        given = layer.values.get("targets")
        tables.update(given if isinstance(given, Mapping) else {})
    repo_of = {name: table.get("repo", name) if isinstance(table, Mapping) else name for name, table in tables.items()}
    with_table = {str(name).casefold() for pair in repo_of.items() for name in pair}
    repos = {repo.casefold(): repo for repo in _named_repos(origins, below)}
    return [*tables, *(repo for folded, repo in repos.items() if folded not in with_table)]


def _named_repos(origins: Sequence[Variables], below: Sequence[Layer]) -> Iterator[str]:
    """Yield every repo that any source names; what is no name is refused later, where its key is known."""
    named: list[object] = [Settings().self_hosting_repo]
    for layer in below:
        listed = layer.values.get("repos")
        named += [*(listed if isinstance(listed, list) else []), layer.values.get("self_hosting_repo")]
    for origin in origins:
        named += origin.values.get(f"{PREFIX}REPOS", "").split(",")
        named.append(origin.values.get(f"{PREFIX}SELF_HOSTING_REPO", ""))
    return (name.strip() for name in named if isinstance(name, str) and is_repo_name(name.strip()))
