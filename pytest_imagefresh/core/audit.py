"""What the hook remembers and sees for operators: the history of decisions, and the situation of one target. Pure."""

from __future__ import annotations

import msgspec


class Entry(msgspec.Struct, frozen=True):
    """One decision, as the host's history keeps it. What a decision is not about is ""."""

    time: str
    """UTC, RFC 3339, whole seconds."""
    mode: str
    kind: str
    cause: str
    run_id: str = ""
    repo: str = ""
    who: str = ""
    """The fingerprint of the caller's key, else user ID and name on the host."""
    service: str = ""
    revision: str = ""
    image_id: str = ""
    previous: str = ""
    """The image that production ran before."""
    reason: str = ""


class Running(msgspec.Struct, frozen=True):
    """One container of a service, in whatever state."""

    service: str
    container_id: str
    name: str
    image_id: str
    state: str
    health: str = ""
    since: str = ""
    """When it was started, as the engine tells it."""
    revision: str = ""
    """Out of the label of its image, "" where there is none."""


class Freeze(msgspec.Struct, frozen=True):
    """Production is not promoted until its operators end this."""

    since: str
    who: str
    reason: str


class Change(msgspec.Struct, frozen=True, rename={"old": "from", "new": "to"}):
    """A change of production that is under way, or that was interrupted: `old` and `new` are image IDs."""

    run_id: str
    since: str
    service: str
    old: str
    """The image that production ran before, "" for none."""
    new: str


class Kept(msgspec.Struct, frozen=True):
    """An image that production ran before, and that a rollback may go back to."""

    image_id: str
    since: str
    left_by: str
    """The cause by which production left it, such as `promoted` or `restored`."""


class Situation(msgspec.Struct, frozen=True):
    """What `--status` tells of one target."""

    production: list[Running] = []
    proxy: list[Running] = []
    """What stands before production and owns its port, where something does."""
    staging: list[Running] = []
    prod_tag: str = ""
    previous_tag: str = ""
    staging_tag: str = ""
    kept: list[Kept] = []
    """The newest first."""
    verified: bool = False
    """Whether production runs exactly what was promoted last, and that promotion was a regular one."""
    proof: str = ""
    """The same as a sentence."""
    break_glass: str = ""
    promoted: Entry | None = None
    frozen: Freeze | None = None
    open: Change | None = None
