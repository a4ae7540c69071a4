"""Settings: frozen structs, their defaults, and what follows from them alone. `core.layers` builds and checks them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from pytest_imagefresh.core.errors import ConfigError
from pytest_imagefresh.core.identity import RepoName

SENT = "-"
"""In place of a path on the Docker host: it has no clone, and is sent the commit."""


class Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The Docker host: where engine, compose folder and hook are."""

    ssh: str = "local"
    """`local`, `user@host:port`, or a Host of ~/.ssh/config."""
    known_hosts: str = "~/.ssh/known_hosts"
    repo_path: str = ""
    """The folder of compose.yaml on the host, an absolute path; "" means the clone itself (local hosts only)."""
    hook: str = "/usr/local/lib/imagefresh/deploy-hook.sh"
    """An absolute path on the host, or `bundled`: the plugin sends its own."""
    docker_host: str = "unix:///var/run/docker.sock"
    """The engine's socket as the host sees it. `DOCKER_HOST` of the caller has no say."""
    docker_config: str = ""
    """A DOCKER_CONFIG folder on the host for a bundled hook (Compose plugin); "" means the engine's usual places."""
    engine_id: str = ""
    """Refuse any other engine; "" accepts the one that answers, and records it."""
    restricted: bool = False
    """Whether our key reaches nothing on the host but the hook (`--ssh`): evidence comes from its `--observe`."""

    @property
    def is_local(self) -> bool:
        return self.ssh == "local"


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds of the steps, in seconds."""

    git: float = 30
    inspect: float = 30
    build: float = 1200
    health: float = 60
    check: float = 300
    content: float = 300


class Signing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The gate key that signs verdicts."""

    key: str
    principal: str


def _filled(word: str, fields: dict[str, str]) -> str:
    for field, value in fields.items():
        word = word.replace(field, value)
    return word


class Overrides(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a container may do otherwise than its image says. Whatever is left empty must be the image's own."""

    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    """`("",)` stands for none at all. As compose has it, another entrypoint takes the image's command away."""
    user: str = ""
    working_dir: str = ""
    mounts: tuple[str, ...] = ()
    """Absolute paths in the container at which something else may lie over the image's files."""
    environment: tuple[str, ...] = ()
    """Variables that redirect code and may be set."""


class Staging(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a target is tried."""

    service: str
    container: str
    port: int
    profile: str
    health_path: str
    check_path: str
    check_mode: str
    check_command: tuple[str, ...]
    """argv with `{path}` and `{mode}` to be replaced."""
    check_format: str
    """`exit` or `tap`."""
    pause_proof: bool = True
    """Whether the container is paused for a moment, to see that nobody else answers on its port."""
    overrides: Overrides = Overrides()

    def check_argv(self) -> list[str]:
        """Return the staging check as argv, path and mode filled in."""
        fields = {"{path}": self.check_path, "{mode}": self.check_mode}
        return [_filled(word, fields) for word in self.check_command]


class Proxy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The nginx before a production whose strategy is `proxy`."""

    service: str
    """Its service in the compose file; it publishes production's port."""
    port: int = 8000
    """On which the containers of production listen."""
    drain: float = 10
    """Seconds that the old container may still work once the proxy leads to the new one."""


class Prod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a promotion changes."""

    service: str
    port: int
    profile: str
    health_path: str
    pin: str
    """The variable that the prod service's `image:` reads from the compose folder's `.env`; "" for none."""
    precheck: bool = False
    """Whether a promotion first tries the image beside production."""
    strategy: str = "recreate"
    """`recreate`, or `proxy`: the next container runs beside the one that serves until the proxy leads to it."""
    proxy: Proxy = Proxy(service="")

    @property
    def is_proxied(self) -> bool:
        """Whether a proxy stands before production."""
        return self.strategy == "proxy"


class Build(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the commit is built, where its compose file does not say it."""

    context: str = "."
    dockerfile: str = "Dockerfile"
    """Relative to the context, as compose has it."""
    target: str = ""
    args: dict[str, str] = {}


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One deployable image of one repo, every default filled in."""

    name: str
    repo: str
    image: str
    """The reference that staging runs from and that is promoted."""
    prod_image: str
    staging: Staging
    prod: Prod
    build: Build
    content: dict[str, str] = {}
    """Absolute folder in the image -> folder of the commit, "." for all of it. Both without slash at the end."""
    content_ignore: tuple[str, ...] = ()
    """What may be there in addition; see `core.content.is_ignored`."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that a run obeys."""

    enabled: bool = True
    repos: tuple[str, ...] | None = None
    self_hosting_repo: str = "orchestrator"
    repos_dir: str = ""
    """Folder of the clones as this machine sees them; "" means: the clone around the rootdir serves."""
    worktrees_dir: str = ""
    """Worktrees must lie below `<worktrees_dir>/<repo>`; "" means anywhere that git names."""
    host_repos_dir: str = ""
    """Folder of the clones as the Docker host sees them; "" means `repos_dir` (local hosts only), SENT: it has none."""
    settle: float = 5
    secret_names: tuple[str, ...] = ("secret", "token", "passw", "api_key", "apikey", "private_key", "credential")
    """A variable whose name holds one of these words has a secret value, which is masked wherever it would be shown."""
    host: Host = Host()
    timeouts: Timeouts = Timeouts()
    signing: Signing | None = None
    targets: dict[str, Target] = {}


# What follows from settings alone.


@dataclass(frozen=True)
class Applies:
    """Whether the gate is real for one repo, and why."""

    applies: bool
    reason: str


def default_target(name: str, repo: str) -> Target:
    """Return the target NAME of a repo with every default filled in.

    The names are the ones that compose gives to the services NAME-staging and NAME of a project REPO; image names
    are lowercase because engines accept no others.
    """
    image = f"{repo}-{name}".lower()
    staging = Staging(
        service=f"{name}-staging",
        container=f"{name}-staging",
        port=8501,
        profile="staging",
        health_path="/health",
        check_path="scripts/staging_check.py",
        check_mode="stub",
        check_command=("python3", "{path}", "--mode", "{mode}"),
        check_format="exit",
    )
    proxy = Proxy(service=f"{name}-proxy")
    prod = Prod(service=name, port=8500, profile="", health_path="/health", pin="", proxy=proxy)
    return Target(
        name=name, repo=repo, image=f"{image}-staging", prod_image=image, staging=staging, prod=prod, build=Build()
    )


def applies(settings: Settings, repo: str) -> Applies:
    """Say whether the gate is real for a repo. Names are compared without case and surrounding space.

    Raises ConfigError when the condition itself cannot be trusted: a list without entries, or an entry that is no
    repo name. Whoever must not fail treats that as "applies".
    """
    if not settings.enabled:
        return Applies(False, "enabled is false: the gate is switched off")
    if settings.repos is None:
        only = RepoName(settings.self_hosting_repo.strip()).name
        real = _same_name(only, repo)
        return Applies(real, f"{repo} is {'' if real else 'not '}the self-hosting repo {only}, and no repos are listed")
    if not settings.repos:
        raise ConfigError("repos: the list is empty; expected repo names; leave it out, or say enabled = false")
    listed = [RepoName(entry.strip()).name for entry in settings.repos]
    real = any(_same_name(name, repo) for name in listed)
    return Applies(real, f"{repo} is {'' if real else 'not '}one of the listed repos: {', '.join(listed)}")


def targets_for(settings: Settings, repo: str) -> tuple[Target, ...]:
    """Return the targets of a repo: its tables in the order of the settings, or the default target where it has none.

    Raises ConfigError for a repo with a table for which the gate is not enabled, unless the whole feature is switched
    off: somebody meant it to be gated.
    """
    name = RepoName(repo).name
    declared = tuple(target for target in settings.targets.values() if _same_name(target.repo, name))
    decision = applies(settings, name)
    if declared and settings.enabled and not decision.applies:
        raise ConfigError(
            f"targets.{declared[0].name}: declared target that is not enabled; expected {name} to be gated, observed: "
            f"{decision.reason}; add {name} to repos, or remove the table"
        )
    if declared or not decision.applies:
        return declared or (default_target(name, name),)
    return (_default_target_beside(settings, name),)


def _default_target_beside(settings: Settings, repo: str) -> Target:
    target = default_target(repo, repo)
    for clash in clashes([target, *settings.targets.values()]):
        raise ConfigError(
            f"{clash.first}: {clash.value!r} is also {clash.second}; expected a service, port and image of its own; "
            f"give {repo} a table [targets.{repo}]"
        )
    return target


@dataclass(frozen=True)
class Clash:
    """Two keys that must differ and do not."""

    first: str
    second: str
    value: str | int


def clashes(targets: Sequence[Target]) -> Iterator[Clash]:
    """Yield every pair of keys by which one target could reach another, or staging could reach production.

    All targets live on one host and in one compose folder: no service, port, image, container or pin can be shared.
    """
    seen: dict[tuple[str, str | int], str] = {}
    for key, kind, value in (owned for target in targets for owned in _owned(target)):
        first = seen.setdefault((kind, value), key)
        if first != key:
            yield Clash(key, first, value)


def _owned(target: Target) -> Iterator[tuple[str, str, str | int]]:
    """Yield key, kind and value of everything that belongs to one target alone."""
    key = f"targets.{target.name}"
    yield f"{key}.prod.service", "service", target.prod.service
    yield f"{key}.prod.port", "port", target.prod.port
    if target.prod.is_proxied:
        yield f"{key}.prod.proxy.service", "service", target.prod.proxy.service
    yield f"{key}.prod_image", "image", full_reference(target.prod_image)
    yield f"{key}.staging.service", "service", target.staging.service
    yield f"{key}.staging.port", "port", target.staging.port
    yield f"{key}.image", "image", full_reference(target.image)
    yield f"{key}.staging.container", "container", target.staging.container
    if target.prod.pin:
        yield f"{key}.prod.pin", "pin", target.prod.pin


def full_reference(image: str) -> str:
    """Return an image reference with the registry, folder and tag that an engine adds, so that equal ones are equal."""
    first, slash, rest = image.partition("/")
    if not slash or (first != "localhost" and not set(".:") & set(first)):
        first, rest = "docker.io", image
    first = "docker.io" if first == "index.docker.io" else first
    rest = f"library/{rest}" if first == "docker.io" and "/" not in rest else rest
    return f"{first}/{rest}" if ":" in rest else f"{first}/{rest}:latest"


def clone_on_host(settings: Settings, repo: str) -> str:
    """Return the path of a repo's clone as the Docker host sees it, SENT where it sees none.

    "" where no folder of clones is set: then engine and clone are on one machine, and the path here is the path there.
    """
    if settings.host_repos_dir == SENT:
        return SENT
    folder = settings.host_repos_dir or settings.repos_dir
    return posixpath.join(folder, RepoName(repo).name) if folder else ""


def _same_name(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()
