"""What a container runs, compared with what its image says: program, user, folder, mounts, environment."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Iterator

from pytest_imagefresh.core.evidence import Container, Image, Mount
from pytest_imagefresh.core.settings import Overrides
from pytest_imagefresh.core.verdict import Verdict, all_of, check_container, compare

_TABLE = "staging.overrides"

# Variables by which a loader, an interpreter or a shell takes code from elsewhere. What an application's own variables
# do, nobody can know.
_REDIRECTS = re.compile(
    r"""PATH|LD_.*|GCONV_PATH|GLIBC_TUNABLES|LOCPATH|OPENSSL_(CONF|ENGINES|MODULES)
    |BASH_ENV|ENV|SHELLOPTS|BASHOPTS|PROMPT_COMMAND|BASH_FUNC_.*
    |PYTHON(PATH|HOME|STARTUP|USERBASE|PLATLIBDIR|PYCACHEPREFIX|BREAKPOINT|INSPECT|CASEOK|EXECUTABLE|WARNINGS)
    |GUNICORN_CMD_ARGS|UWSGI_.*
    |NODE_(OPTIONS|PATH|REPL_EXTERNAL_MODULE)
    |RUBY(OPT|LIB|PATH|SHELL)|GEM_(HOME|PATH)|BUNDLE_.*
    |PERL5?(LIB|OPT|DB)|PERL5_.*
    |(_|JDK_)?JAVA_(TOOL_)?OPTIONS|JAVA_(HOME|OPTS)|CLASSPATH|CATALINA_.*
    |PHPRC|PHP_INI_SCAN_DIR
    |DOTNET_(STARTUP_HOOKS|ADDITIONAL_DEPS|SHARED_STORE|ROOT.*)|(CORECLR|COR)_.*PROFIL.*
    |LUA_(C?PATH|INIT).*|ERL_.*|ELIXIR_ERL_OPTIONS|GUILE_.*PATH|JULIA_(LOAD|DEPOT)_PATH|R_(LIBS|PROFILE|ENVIRON|HOME).*
    |TCLLIBPATH|GHCRTS|OCAMLRUNPARAM|CAML_LD_LIBRARY_PATH""",
    re.VERBOSE,
)


def check_runs_as_built(container: Container, image: Image, overrides: Overrides) -> Verdict:
    """Accept when the container runs the image, the way the image says, over nothing but the image's own files.

    1. the image ID, running, no restart; 2. program, user and working folder; 3. no mount; 4. no variable that takes
    code from elsewhere. What `overrides` lists may be otherwise.
    """
    return all_of(
        [
            check_container(container, image.id),
            _check_program(container, image, overrides),
            _check_mounts(container, image, overrides),
            _check_environment(container, image, overrides),
        ]
    )


def _check_program(container: Container, image: Image, overrides: Overrides) -> Verdict:
    name = container.name
    return all_of(
        [
            _compare_words(f"what container {name} runs", _expected_argv(image, overrides), container.argv, image),
            _compare_text(f"user of container {name}", overrides.user or image.user, container.user, image),
            _compare_text(
                f"working folder of container {name}",
                posixpath.normpath(overrides.working_dir or image.working_dir or "/"),
                posixpath.normpath(container.working_dir or "/"),
                image,
            ),
        ]
    )


def _expected_argv(image: Image, overrides: Overrides) -> tuple[str, ...]:
    """Return entrypoint and command as the engine puts them together."""
    if overrides.entrypoint:
        entrypoint = () if overrides.entrypoint == ("",) else overrides.entrypoint
        return (*entrypoint, *overrides.command)
    return (*image.entrypoint, *(overrides.command or image.command))


def _compare_words(what: str, expected: tuple[str, ...], observed: tuple[str, ...], image: Image) -> Verdict:
    return _compare_text(what, shlex.join(expected), shlex.join(observed), image)


def _compare_text(what: str, expected: str, observed: str, image: Image) -> Verdict:
    """Accept equal texts, empty ones too: an image need not name a user."""
    hint = f"take it out of the compose file, or list it in {_TABLE}"
    return compare(what, expected or "the default", observed or "the default", image.id, hint=hint)


def _check_mounts(container: Container, image: Image, overrides: Overrides) -> Verdict:
    listed = {posixpath.normpath(path) for path in overrides.mounts}
    own = {mount.path for mount in container.mounts if mount.seeded and mount.kind == "volume"} & set(image.volumes)
    foreign = [mount for mount in container.mounts if mount.path not in listed | own]
    if foreign:
        seen = ", ".join(_describe_mount(mount, image) for mount in foreign)
        return Verdict(
            f"container {container.name} has mounts over the image's files: {seen}, expected none; "
            f"take them out of the compose file, or list their paths in {_TABLE}.mounts",
            None,
            "no mount",
            seen,
        )
    allowed = ", ".join(mount.path for mount in container.mounts) or "none"
    return Verdict(f"mounts: {allowed}", image.id, "no mount", allowed)


def _describe_mount(mount: Mount, image: Image) -> str:
    if mount.kind == "volume" and mount.path in image.volumes:
        # Compose takes the image's own volumes over from the container that it replaces, files and all.
        return f"{mount.path} (volume of an earlier container; remove it with 'docker compose rm --stop --volumes')"
    return f"{mount.path} ({f'{mount.kind} {mount.source}'.strip()})"


def _check_environment(container: Container, image: Image, overrides: Overrides) -> Verdict:
    found = sorted(set(_redirected(container, image)) - set(overrides.environment))
    if found:
        seen = ", ".join(found)
        return Verdict(
            f"container {container.name} sets {seen} otherwise than its image, which takes code from elsewhere; "
            f"expected the image's own; take it out of the compose file, or list it in {_TABLE}.environment",
            None,
            "the image's own",
            seen,
        )
    return Verdict("no variable redirects its code", image.id)


def _redirected(container: Container, image: Image) -> Iterator[str]:
    """Yield the variables that redirect code and that the image has otherwise."""
    for name in container.environment.keys() | image.environment.keys():
        if _REDIRECTS.fullmatch(name) and container.environment.get(name) != image.environment.get(name):
            yield name
