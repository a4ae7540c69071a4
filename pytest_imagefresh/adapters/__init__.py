"""Turn the outside world into core values, and decide nothing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    """Stands for a library until something of it is used; then the library itself takes over."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _import_later(name: str) -> None:
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is not None:
        sys.modules[name] = _Later(name)
        sys.modules[name].__spec__ = spec


# docker-py imports paramiko for an ssh transport that nobody uses here, and paramiko imports invoke for `Match exec` of
# an ssh_config alone: together half of the time that importing docker-py takes, in every run on this machine.
_import_later("invoke")
_import_later("paramiko")
# tap.py imports yaml for the diagnostics of a check that speaks TAP.
_import_later("yaml")
