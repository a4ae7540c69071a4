"""Settings from where they are written: file, .env, environment, options. `core.layers` checks them."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
from dotenv.parser import Binding, parse_stream

from pytest_imagefresh.core.errors import ConfigError
from pytest_imagefresh.core.layers import PREFIX, Configuration, Layer, Variables, build_settings, variable_layers

FILE = "imagefresh.toml"
_PYPROJECT = "pyproject.toml"
_DOTENV = ".env"
_LIMIT = 1024 * 1024
_MARK = PREFIX.rstrip("_")
"""What makes a variable, or a broken line, ours."""


def load_configuration(
    rootdir: Path, config_file: Path | None, environ: Mapping[str, str], options: Mapping[str, object]
) -> Configuration:
    """Return the settings of one run, with the source of each.

    Read in this order, later ones override: `config_file`, else `imagefresh.toml` in `rootdir`, else the table
    `[tool.imagefresh]` of its pyproject.toml; IMAGEFRESH_* of its `.env`; IMAGEFRESH_* of `environ`; `options`, dotted
    key -> value, None for "not given". Paths on this machine come back absolute: relative ones in the file are below
    the file's folder, others below `rootdir`. `environ` is only read. Raises ConfigError.
    """
    rootdir = Path(os.path.abspath(rootdir))
    file, layers = _read_settings(rootdir, config_file)
    dotenv = Variables(_DOTENV, _read_dotenv(rootdir / _DOTENV))
    layers += variable_layers([dotenv, Variables("environment", environ)], layers)
    layers += [_option_layer(key, value) for key, value in options.items() if value is not None]
    configuration = build_settings(layers)
    return _with_absolute_paths(configuration, _Bases(file, rootdir, environ.get("HOME", "")))


def _option_layer(key: str, value: object) -> Layer:
    nested: dict[str, object] | object = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return Layer(f"option {key}", nested if isinstance(nested, dict) else {})


# The settings file.


def _read_settings(rootdir: Path, config_file: Path | None) -> tuple[Path | None, list[Layer]]:
    """Return the file that holds the settings and its layer; None and no layer where there is none."""
    if config_file is not None:
        path = _inside(rootdir, config_file.expanduser())
        return path, [_file_layer(path, rootdir, required=True)]
    path = rootdir / FILE
    # lexists: a dangling link is a file that is missing, not a file that nobody wrote.
    if os.path.lexists(path):
        return path, [_file_layer(path, rootdir, required=True)]
    path = rootdir / _PYPROJECT
    layer = _file_layer(path, rootdir, required=False) if os.path.lexists(path) else None
    return (path, [layer]) if layer is not None and layer.values else (None, [])


def _inside(rootdir: Path, path: Path) -> Path:
    """Return a file named on the command line: as the shell means it, else below the rootdir."""
    here = Path(os.path.abspath(path))
    return here if here.exists() or path.is_absolute() else rootdir / path


def _file_layer(path: Path, rootdir: Path, *, required: bool) -> Layer:
    shown = str(path.relative_to(rootdir)) if path.is_relative_to(rootdir) else str(path)
    document = _parse_toml(_read_file(path, shown), shown)
    if path.name != _PYPROJECT:
        return Layer(shown, document)
    table = document.get("tool", {})
    table = table.get("imagefresh") if isinstance(table, dict) else None
    if table is None and not required:
        return Layer(shown, {})
    if not isinstance(table, dict):
        raise ConfigError(
            f"{shown}: no table [tool.imagefresh]; expected the settings there; add it or name another file"
        )
    return Layer(f"{shown} [tool.imagefresh]", table)


def _read_file(path: Path, shown: str) -> bytes:
    """Return the bytes of a small plain file."""
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT + 1)
    except OSError as error:
        raise ConfigError(
            f"{shown}: cannot be read: {error.strerror or error}; expected a settings file; correct its name"
        ) from error
    if len(content) > _LIMIT:
        raise ConfigError(f"{shown}: larger than {_LIMIT} bytes; expected a settings file; correct its name")
    return content


def _parse_toml(content: bytes, shown: str) -> dict[str, object]:
    try:
        document = msgspec.toml.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # The parser tells line and column but never a value, which could be a secret.
        raise ConfigError(f"{shown}: not valid TOML: {' '.join(str(error).split())}; correct the file") from error
    return dict(document)


# The .env file.


def _read_dotenv(path: Path) -> dict[str, str]:
    """Return the IMAGEFRESH_* variables of a .env file, their text as written: nothing is interpolated or exported."""
    if not path.is_file():
        return {}
    try:
        text = _read_file(path, _DOTENV).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_DOTENV}: not valid UTF-8 at byte {error.start}; correct the file") from error
    ours = [binding for binding in parse_stream(io.StringIO(text)) if _is_ours(binding)]
    return {binding.key: _dotenv_value(binding) for binding in ours if binding.key is not None}


def _is_ours(binding: Binding) -> bool:
    """Say whether a line sets one of our variables."""
    # python-dotenv drops a line that it cannot read, and with it what somebody wanted to set.
    if binding.error and _MARK in binding.original.string.upper():
        raise ConfigError(
            f"{_DOTENV}: line {binding.original.line} cannot be read; expected NAME=value; correct the line"
        )
    return binding.key is not None and binding.key.upper().startswith(_MARK)


def _dotenv_value(binding: Binding) -> str:
    if binding.value is None:
        raise ConfigError(f"{binding.key}: has no value; expected NAME=value; set by {_DOTENV}")
    return binding.value


# Paths on this machine.


class _Bases:
    """Where relative paths start, and what `~` is."""

    def __init__(self, file: Path | None, rootdir: Path, home: str) -> None:
        self._of_file = file.parent if file else rootdir
        self._rootdir = rootdir
        self._home = home

    def absolute(self, key: str, text: str, source: str) -> str:
        """Return one path absolute and normal; symlinks stay as they are."""
        from_variable = source.startswith((f"{_DOTENV} ", "environment ", "option "))
        base = self._rootdir if from_variable else self._of_file
        return os.path.normpath(base / self._without_tilde(key, text, source))

    def _without_tilde(self, key: str, text: str, source: str) -> str:
        if not text.startswith("~"):
            return text
        first, slash, rest = text.partition("/")
        home = self._home if first == "~" and self._home else os.path.expanduser(first)
        if home.startswith("~"):
            raise ConfigError(f"{key}: {text!r} names no home folder; expected an absolute path; set by {source}")
        return f"{home}{slash}{rest}"


def _with_absolute_paths(configuration: Configuration, bases: _Bases) -> Configuration:
    settings, sources = configuration.settings, configuration.sources

    def absolute(key: str, text: str) -> str:
        return bases.absolute(key, text, sources[key]) if text else ""

    host = msgspec.structs.replace(settings.host, known_hosts=absolute("host.known_hosts", settings.host.known_hosts))
    signing = settings.signing
    if signing is not None:
        signing = msgspec.structs.replace(signing, key=absolute("signing.key", signing.key))
        _check_exists("signing.key", signing.key, sources["signing.key"])
    settings = msgspec.structs.replace(
        settings,
        host=host,
        signing=signing,
        repos_dir=absolute("repos_dir", settings.repos_dir),
        worktrees_dir=absolute("worktrees_dir", settings.worktrees_dir),
    )
    return Configuration(settings, sources)


def _check_exists(key: str, path: str, source: str) -> None:
    if not Path(path).is_file():
        raise ConfigError(f"{key}: no file {path}; expected an existing key file; set by {source}")
