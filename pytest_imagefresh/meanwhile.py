"""What is read, or asked of the hook, beside something longer."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from pytest_imagefresh.core.errors import ImagefreshError

_Value = TypeVar("_Value")


class Meanwhile(Generic[_Value]):
    """Something that is read in a thread of its own while something longer is waited for."""

    def __init__(self, read: Callable[[], _Value]) -> None:
        self._read = read
        self._thread: threading.Thread | None = None
        self._values: list[_Value] = []

    def start(self) -> None:
        """Begin to read; to begin twice is to begin once."""
        if self._thread is None:
            # A daemon: who interrupts the run does not wait for it.
            self._thread = threading.Thread(target=self._try, name="imagefresh-meanwhile", daemon=True)
            self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end of what was begun, for some seconds at most; return whether it brought something."""
        if self._thread is not None:
            self._thread.join(seconds)
        return bool(self._values)

    def result(self) -> _Value:
        """Return what was read. What did not come is read again: a host may allow one program at a time only."""
        return self._values[0] if self.wait() else self._read()

    def _try(self) -> None:
        with contextlib.suppress(ImagefreshError):
            self._values.append(self._read())
