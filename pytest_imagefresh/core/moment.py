"""What there is to tell of a step that takes long, as lines of text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

_LINE_LIMIT = 500
"""How much of one line of foreign output is looked at."""

_LOG_COLUMNS = 160
"""How much of the last line of output a line of a log repeats."""

_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b.?")
_LONG_ID = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28,52}\b")


@dataclass(frozen=True)
class Moment:
    """What there is to tell of a step at one moment. Times are in seconds."""

    label: str
    elapsed: float
    """Since the run began."""
    step: str
    lasting: float
    """Since the step began."""
    output: str
    """The last line of output that is not blank."""

    def started(self) -> str:
        """Return the line of a step that starts."""
        name = f"{self.label}: " if self.label else ""
        return f"imagefresh {self.elapsed:5.1f} s  {name}{self.step}"

    def lasts(self) -> str:
        """Return the line of a step that still lasts."""
        return f"{self.started()}  ({self.lasting:.1f} s so far)  {fit(self.output, _LOG_COLUMNS)}".rstrip()

    def ended(self, *, broken_off: bool) -> str:
        """Return the line of a step that is over."""
        return f"{self.started()}  ({self.lasting:.1f} s{', broken off' if broken_off else ''})"

    def live(self, columns: int) -> str:
        """Return the line that a terminal of so many columns shows while the step lasts, never wider than that."""
        line = f"{self.started()}  ({self.lasting:.1f} s)  {self.output}".rstrip()
        return fit(_LONG_ID.sub(r"\1", line), columns)


def printable(text: str) -> str:
    """Return what is left of one line of foreign output when nothing in it can move a cursor or change a colour."""
    # What a program overwrites itself with a carriage return, nobody would see either.
    visible = (_plain(each[:_LINE_LIMIT]) for each in reversed(text.split("\r")))
    return next(filter(None, visible), "")


def _plain(text: str) -> str:
    without = _ESCAPES.sub("", text)
    return " ".join("".join(each if each.isprintable() else " " for each in without).split())


def fit(text: str, columns: int) -> str:
    """Return the beginning of a text that fits into so many columns of a terminal."""
    used = 0
    for place, each in enumerate(text):
        wide = 2 if unicodedata.east_asian_width(each) in "WF" else 1
        used += 0 if unicodedata.combining(each) else wide
        if used > columns:
            return text[:place]
    return text


def shows_live(terminal: bool, environment: Mapping[str, str]) -> bool:
    """Say whether a line can be redrawn in place: on a terminal that understands it, with a person before it."""
    watched = not any(environment.get(name) for name in ("CI", "BUILD_NUMBER"))
    return terminal and watched and environment.get("TERM", "dumb") not in ("", "dumb")
