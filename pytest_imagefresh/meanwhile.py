"""What is read, or asked of the hook, beside something longer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from pytest_imagefresh.core.errors import ImagefreshError, NotStarted

_Value = TypeVar("_Value")


class Meanwhile(Generic[_Value]):
    """Something that is read in a thread of its own while something longer is waited for."""

    def __init__(self, read: Callable[[], _Value]) -> None:
        self._read = read
        self._thread: threading.Thread | None = None
        self._values: list[_Value] = []
        self._error: ImagefreshError | None = None

    def start(self) -> None:
        """Begin to read; to begin twice is to begin once."""
        if self._thread is None:
            # A daemon: who interrupts the run does not wait for it.
            self._thread = threading.Thread(target=self._try, name="imagefresh-meanwhile", daemon=True)
            self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the end of what was begun, for some seconds at most."""
        if self._thread is not None:
            self._thread.join(seconds)

    def came(self) -> bool:
        """Wait, and return whether it brought something; not where the host could not start it beside something else.

        Raises whatever else went wrong: a second try must not hide a first one.
        """
        self.wait()
        if self._error is not None and not isinstance(self._error, NotStarted):
            raise self._error
        return bool(self._values)

    def result(self) -> _Value:
        """Return what was read. What was not started is read now."""
        return self._values[0] if self.came() else self._read()

    def _try(self) -> None:
        try:
            self._values.append(self._read())
        except ImagefreshError as error:
            self._error = error
