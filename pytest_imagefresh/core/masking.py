"""Secrets are masked in everything that is printed or written: values of variables whose names look secret."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

MASK = "***"

_SHORTEST = 4
"""Shorter values are words like `1` or `yes`: masking them would hide the text around them and protect nothing."""

_IN_URL = re.compile(r"(://[^/@:\s]*):[^/@\s]+@")


class Masker:
    """Replaces the secret values that it has been told of, and passwords in URLs."""

    def __init__(self, secret_names: Iterable[str]) -> None:
        words = "|".join(re.escape(word) for word in secret_names)
        self._looks_secret = re.compile(words or r"(?!)", re.IGNORECASE)
        self._values: set[str] = set()

    def learn(self, variables: Mapping[str, str]) -> None:
        """Take the values of those variables whose names look secret."""
        found = (value for name, value in variables.items() if self._looks_secret.search(name))
        self._values.update(value for value in found if len(value) >= _SHORTEST)

    def __call__(self, text: str) -> str:
        """Return the text with every known secret masked, the longest first."""
        for value in sorted(self._values, key=len, reverse=True):
            text = text.replace(value, MASK)
        return _IN_URL.sub(rf"\1:{MASK}@", text)

    def deep(self, value: Any) -> Any:
        """Return JSON-like data with every known secret masked, and those told as `NAME=value`."""
        if isinstance(value, str):
            name, equals, secret = value.partition("=")
            hidden = equals and secret and self._looks_secret.search(name) and "\n" not in name
            return f"{name}={MASK}" if hidden else self(value)
        if isinstance(value, Mapping):
            return {key: self._entry(str(key), each) for key, each in value.items()}
        return [self.deep(each) for each in value] if isinstance(value, (list, tuple)) else value

    def _entry(self, key: str, value: Any) -> Any:
        return MASK if isinstance(value, str) and value and self._looks_secret.search(key) else self.deep(value)
