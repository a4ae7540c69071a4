"""Times as an engine prints them."""

from __future__ import annotations

import calendar
import re

from pytest_imagefresh.core.errors import EvidenceError

_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(\.\d{1,9})?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII | re.IGNORECASE
)


def parse_time(text: str) -> float:
    """Return an RFC 3339 time as seconds since 1970-01-01T00:00:00Z. Raises EvidenceError for any other text."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise EvidenceError(f"the engine's time is {text[:80]!r}, expected one like 2026-01-02T03:04:05.678Z")
    fields = tuple(int(match[number]) for number in range(1, 7))
    offset = (int(match[9]) * 60 + int(match[10])) * 60 if match[8] else 0
    local = calendar.timegm((*fields, 0, 0, 0)) + float(match[7] or 0)
    return local + offset if match[8] == "-" else local - offset
