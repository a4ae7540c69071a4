"""Which build a commit asks for, and whether it stays inside the commit.

The branch under validation writes these texts, so nothing in them may bring a file, a network or a privilege of a
machine into the image: what is not known to be harmless is refused.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from pytest_imagefresh.core.errors import ConfigError, EvidenceError, Refused
from pytest_imagefresh.core.settings import Build

REVISION_ARG = "GIT_SHA"
"""The build argument by which the hook passes the revision; what a commit says about it is not read."""

BASE_FILES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
"""Compose files at the root of a tree, the first one counts. Source: compose-go, `cli.DefaultFileNames`."""

OVERRIDE_FILES = (
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
)
"""Merged over the base file, the first one counts. Source: compose-go, `cli.DefaultOverrideFileNames`."""

_TAKEN = frozenset({"context", "dockerfile", "target", "args"})

# The image is the same without them, or the host decides: where layers are cached, whether the base is pulled, what
# the build is called (tags could move a name of production), what a registry is told. Labels are metadata and change
# nothing that runs; the hook stamps the revision label whatever is written here, and LABEL lines of a Dockerfile stay.
_IGNORED = frozenset({"tags", "labels", "cache_from", "cache_to", "no_cache", "pull", "provenance", "sbom"})

_REACHING = {
    "dockerfile_inline": "write it into a Dockerfile of the commit",
    "additional_contexts": "copy from folders of the commit, or from an image with FROM",
    "secrets": "the build gets no file and no variable of a host",
    "ssh": "the build gets no keys of a host",
    "network": "the build runs in the engine's default network",
    "privileged": "the build gets no privileges",
    "entitlements": "the build gets no privileges",
    "isolation": "the build runs as the engine runs every build",
    "extra_hosts": "names are resolved as the host resolves them",
    "ulimits": "the engine's own limits hold",
    "shm_size": "the engine's own size holds",
    "platforms": "the image is built for the host's own platform",
}
_DEFAULT_WORDS = {"network": "default", "isolation": "default"}

_ARG_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def find_compose_files(paths: Collection[str]) -> tuple[str, ...]:
    """Return the compose files at the root of a tree in the order in which they are merged; () where there is none."""
    base = [name for name in BASE_FILES if name in paths][:1]
    return tuple(base + [name for name in OVERRIDE_FILES if name in paths][:1]) if base else ()


def check_build(section: Mapping[str, object], root: str, *, service: str) -> Build:
    """Return the build that a service's `build:` section asks for, context relative to the tree.

    `section` is the JSON that compose resolved, `root` the absolute folder in which the tree lay meanwhile.
    1. Every key is known. 2. No key reaches out of the commit. 3. Context and Dockerfile lie in it. 4. Stage and
    arguments are plain.
    Raises Refused with service, key and what to do; EvidenceError where compose brought back another shape.
    """
    where = f"build section of compose service {service}"
    for key in section:
        if key not in _TAKEN and key not in _IGNORED and not key.startswith("x-"):
            _check_reaching(key, section[key], where)
    folder = _folder_in(root, _text(section, "context", where) or root, where)
    return Build(
        context=folder,
        dockerfile=_dockerfile_in(posixpath.join(root, folder), _text(section, "dockerfile", where), where),
        target=_stage(_text(section, "target", where), where),
        args=dict(_args(section.get("args") or {}, where)),
    )


def check_build_table(build: Build, *, target: str) -> Build:
    """Return a target's `build` table, held to the standard of a compose file.

    Raises ConfigError naming the setting.
    """
    where = f"targets.{target}.build"
    try:
        context = _plain(build.context, "context", where)
        folder = posixpath.normpath(context)
        if posixpath.isabs(context) or "://" in context or _climbs(folder):
            raise _outside(where, context)
        # The tree has no place yet: any will do, as long as no absolute path can hit it.
        if posixpath.isabs(build.dockerfile):
            raise _not_below_context(where, build.dockerfile)
        dockerfile = _dockerfile_in(f"/tree/{folder}", _plain(build.dockerfile, "dockerfile", where), where)
        args = dict(_args(build.args, where))
        return Build(context=folder, dockerfile=dockerfile, target=_stage(build.target, where), args=args)
    except Refused as refused:
        raise ConfigError(str(refused)) from refused


def _check_reaching(key: str, value: object, where: str) -> None:
    """Refuse a key that reaches out of the commit, unless it says no more than its absence would."""
    if value is None or (key in _REACHING and (not value or value == _DEFAULT_WORDS.get(key))):
        return
    advice = _REACHING.get(key, "nothing is known about this key")
    raise Refused(f"{where}: {key} is {_short(value)}, expected none; remove it: {advice}")


def _text(section: Mapping[str, object], key: str, where: str) -> str:
    value = section.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise EvidenceError(f"{where}: {key} is {_short(value)}, expected text; check the version of compose")
    return _plain(value, key, where)


def _plain(value: str, key: str, where: str) -> str:
    if _CONTROL.search(value):
        raise Refused(f"{where}: {key} is {_short(value)}, expected no control characters; rename it")
    return value


def _folder_in(root: str, context: str, where: str) -> str:
    """Return a context relative to `root`. Compose makes every local path absolute: what is not is a URL or a name."""
    if not posixpath.isabs(context):
        raise _outside(where, context)
    folder = posixpath.normpath(context)
    if not _is_below(folder, root):
        raise _outside(where, _as_written(folder, root))
    return posixpath.relpath(folder, root)


def _dockerfile_in(context: str, dockerfile: str, where: str) -> str:
    """Return the Dockerfile relative to its context. The hook takes only one that lies below the context."""
    path = posixpath.relpath(posixpath.join(context, dockerfile or "Dockerfile"), context)
    if path == "." or _climbs(path):
        raise _not_below_context(where, dockerfile)
    return path


def _stage(target: str, where: str) -> str:
    if target and not _STAGE.fullmatch(target):
        raise Refused(f"{where}: target is {_short(target)}, expected the name of a stage; rename it")
    return target


def _args(args: object, where: str) -> Iterator[tuple[str, str]]:
    """Yield every build argument but the revision's own."""
    if not isinstance(args, Mapping):
        raise EvidenceError(f"{where}: args is {_short(args)}, expected a table; check the version of compose")
    for name, value in args.items():
        if name == REVISION_ARG:
            continue
        if not _ARG_NAME.fullmatch(name):
            raise Refused(f"{where}: args has {_short(name)}, expected letters, digits and '_'; rename the argument")
        if value is None:
            raise Refused(
                f"{where}: args.{name} has no value and would come from the caller's environment, expected one; "
                f"write its value, or ${{{name}:-default}}"
            )
        if not isinstance(value, str) or "\0" in value:
            raise Refused(f"{where}: args.{name} is {_short(value)}, expected text without NUL; write it in quotes")
        yield name, value


def _is_below(path: str, root: str) -> bool:
    return posixpath.commonpath([path, posixpath.normpath(root)]) == posixpath.normpath(root)


def _climbs(path: str) -> bool:
    """Whether a relative path leads out of the folder it starts from."""
    return posixpath.normpath(path).split("/")[0] == ".."


def _as_written(path: str, root: str) -> str:
    """Return how a path outside the tree was probably written, for a message."""
    return posixpath.relpath(path, root) if _is_below(path, posixpath.dirname(root)) else path


def _outside(where: str, context: str) -> Refused:
    return Refused(
        f"{where}: context is {_short(context)}, expected a folder of the commit; build from what is committed"
    )


def _not_below_context(where: str, dockerfile: str) -> Refused:
    return Refused(
        f"{where}: dockerfile is {_short(dockerfile)}, expected a file below the context; "
        "move it there, or set the context to a folder of the commit that holds both"
    )


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:100]}..."


@dataclass(frozen=True)
class ComposeFile:
    """One compose file of a commit."""

    path: str
    """Relative to the tree."""
    base: str
    """The folder from which relative paths in it start, relative to the tree; "" for its root."""


def check_reach(document: object, source: ComposeFile) -> list[ComposeFile]:
    """Return the further compose files that one compose file reads. `document` is its content as compose parses it.

    Compose reads what `include`, `extends` and `label_file` name and puts it into the configuration, build arguments
    included: 1. `include` names files of the commit. 2. Its `env_file` too; a `project_directory`, which would move the
    start of every relative path, is refused. 3. `extends` and `label_file` of every service name files of the commit.
    Raises Refused with file, key and what to do.
    """
    if not isinstance(document, Mapping):
        return []
    services = document.get("services")
    bodies = services.values() if isinstance(services, Mapping) else ()
    included = [file for entry in _words(document.get("include")) for file in _included(entry, source)]
    return included + [file for body in bodies if isinstance(body, Mapping) for file in _extended(body, source)]


def _included(entry: object, source: ComposeFile) -> list[ComposeFile]:
    table = entry if isinstance(entry, Mapping) else {"path": entry}
    if table.get("project_directory"):
        raise Refused(f"{source.path}: include.project_directory is set, expected none; remove it")
    for word in _words(table.get("env_file")):
        _inside(word, "include.env_file", source)
    paths = [_inside(word, "include", source) for word in _words(table.get("path"))]
    # All paths of one entry share the folder of the first. Source: compose-go, `loader.ApplyInclude`.
    return [ComposeFile(path, posixpath.dirname(paths[0])) for path in paths]


def _extended(service: Mapping[str, object], source: ComposeFile) -> list[ComposeFile]:
    for word in _words(service.get("label_file")):
        _inside(word, "label_file", source)
    extends = service.get("extends")
    if not isinstance(extends, Mapping) or extends.get("file") is None:
        return []
    path = _inside(extends["file"], "extends.file", source)
    return [ComposeFile(path, posixpath.dirname(path))]


def _words(value: object) -> list[object]:
    """Return what compose takes as one value or a list of them, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _inside(word: object, key: str, source: ComposeFile) -> str:
    """Return a path that a compose file names, relative to the tree."""
    if isinstance(word, str) and word and not re.search(r"[$:~\\\x00-\x1f\x7f]", word) and not posixpath.isabs(word):
        path = posixpath.normpath(posixpath.join(source.base, word))
        if not _climbs(path):
            return path
    raise Refused(
        f"{source.path}: {key} names {_short(word)}, expected a plain relative path within the commit; "
        "commit the file and name it without variables"
    )
