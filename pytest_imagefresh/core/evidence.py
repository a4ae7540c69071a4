"""What was observed, frozen at one moment. Nothing here decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_imagefresh.core.audit import Entry, Situation
from pytest_imagefresh.core.identity import BranchName, ContainerId, ImageId, Revision, TreeId

REVISION_LABEL = "org.opencontainers.image.revision"
"""Source: OCI image spec, annotations."""


@dataclass(frozen=True)
class Anchor:
    """The validated revision of a repo, as git told it at one moment."""

    repo: str
    branch: BranchName
    worktree: str
    """Absolute path of the worktree, as this machine sees it."""
    revision: Revision
    tree: TreeId


@dataclass(frozen=True)
class Image:
    """What the engine says about one image."""

    id: ImageId
    revision_label: str
    """The raw text of the revision label; "" where the image has none."""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    volumes: tuple[str, ...] = ()
    """The folders that the image declares as volumes."""


@dataclass(frozen=True)
class Port:
    """One published port."""

    container_port: str
    """Number and protocol, `8000/tcp`."""
    host_ip: str
    host_port: int


@dataclass(frozen=True)
class Mount:
    """Something that lies over the files of the image."""

    path: str
    """Where, in the container."""
    kind: str
    """The engine's word: bind, volume, tmpfs and the like."""
    source: str
    """The folder of the host or the name of the volume; "" where there is none."""
    seeded: bool = False
    """Whether the engine made it by itself, of what the image has there: nobody asked for it."""


@dataclass(frozen=True)
class Container:
    """What the engine says about one container."""

    id: ContainerId
    name: str
    """Without the leading slash."""
    image_id: ImageId
    """The `.Image` of the container: what it runs. Never `.Config.Image`, which is a reference."""
    status: str
    """The engine's word: created, running, paused, restarting, removing, exited or dead."""
    health: str
    """The engine's word: starting, healthy, unhealthy; "" where the image declares no health check."""
    started_at: str
    """RFC 3339 time of the last start, as the engine prints it."""
    restart_count: int
    network_mode: str
    ports: tuple[Port, ...]
    argv: tuple[str, ...] = ()
    """What really runs: program and arguments, entrypoint and command put together."""
    user: str = ""
    working_dir: str = ""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    """What it was created with, the image's own variables included."""
    mounts: tuple[Mount, ...] = ()
    networks: tuple[str, ...] = ()
    """Name and endpoint of every network that it is on."""
    service: str = ""
    """The compose service that it belongs to; "" for none."""
    made_as: str = ""
    """SHA-256 of everything that it was created or updated with, as the engine tells it."""


@dataclass(frozen=True)
class PortOwner:
    """One container that publishes a port, on one address."""

    id: ContainerId
    name: str
    host_ip: str


@dataclass(frozen=True)
class Change:
    """One path at which a container's files are not its image's."""

    path: str
    kind: str
    """changed, added or deleted."""


@dataclass(frozen=True)
class Answer:
    """What one HTTP GET on the staging port brought back."""

    url: str
    status: int
    """HTTP status code; redirects are not followed. 0 where nothing answered."""
    problem: str = ""
    """Why nothing answered; "" otherwise."""


@dataclass(frozen=True)
class Silence:
    """What came from a port while its container was paused for a moment."""

    addresses: tuple[str, ...]
    """The addresses of the host that were asked, the container's own first."""
    connections: int
    """How many fresh connections asked each of them."""
    seconds: float
    """How long they waited for a byte."""
    usual: float
    """How long an answer took just before, in seconds."""
    heard: tuple[str, ...]
    """The addresses from which a byte came all the same."""
    after: Answer
    """What the port answers now that the container runs again."""
    left_out: tuple[str, ...] = ()
    """The addresses of the host for which a wildcard stands, too, and which were not asked."""


@dataclass(frozen=True)
class CheckResult:
    """The end of one staging check inside the container."""

    exit_status: int
    output: bytes
    """Standard output and standard error together, 1 MiB at most."""


@dataclass(frozen=True)
class Production:
    """Everything by which production could be seen to have been touched."""

    containers: tuple[Container, ...]
    """Every container of the prod service or on the prod port, in any state, sorted by ID."""
    image_id: ImageId | None
    """What the prod reference points to; None where no image bears it."""

    @property
    def runs(self) -> str:
        """The image that production runs, or else the one that its reference names; "" where it is none or unclear."""
        images = {each.image_id for each in self.containers} or {self.image_id} - {None}
        return str(images.pop()) if len(images) == 1 else ""


@dataclass(frozen=True)
class Tenure:
    """How long one lease has been held, as its holder on the host says when it is asked."""

    held: float
    """Seconds without a break, by the host's clock."""
    needed: float
    """Seconds since the lease was granted, before the first observation, by our clock."""


@dataclass(frozen=True)
class HookReport:
    """The hook's one JSON line and its exit status. A claim: every link is observed again through the engine."""

    mode: str
    exit_status: int
    ok: bool
    kind: str
    """`done`, `refused`, `usage`, `unknown`, `rolled-back` or `broken`."""
    cause: str
    """A short slug that programs compare, such as `revision-mismatch`."""
    reason: str
    """One line for people."""
    revision: str = ""
    tree: str = ""
    image_id: str = ""
    container_id: str = ""
    engine_id: str = ""
    prod_runs: str = ""
    """The image ID that production runs, or else the one that its tag names."""
    compose_sha256: str = ""
    """SHA-256 of the compose configuration as the hook resolved it."""
    verdict: str = ""
    """Whether the host's policy asks for a verdict, `required` or `not required`; or `accepted`."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Elapsed time per step, in seconds."""
    cases: Mapping[str, str] = field(default_factory=dict)
    """What each case of the self-test ended with, by name; empty for every other mode."""
    check: CheckResult | None = None
    history: tuple[Entry, ...] = ()
    """What `--history` tells, the newest last."""
    situation: Situation = field(default_factory=Situation)
    """What `--status` tells."""
    observed: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """What `--observe` brings back, by its word: the engine's own answers, as they came."""
