"""Where the shipped gates and the shipped hook are: inside an installed wheel, or at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

from pytest_imagefresh.core.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent


def gates_folder() -> Path:
    """Return the folder of the shipped gate tests."""
    return _shipped("gates")


def hook_script() -> Path:
    """Return the shipped deploy-hook.sh."""
    return _shipped("hooks") / "deploy-hook.sh"


def _shipped(name: str) -> Path:
    for place in (_PACKAGE / name, _PACKAGE.parent / name):
        if place.is_dir():
            return place
    raise ConfigError(f"the folder {name}/ is missing beside {_PACKAGE}; install pytest-imagefresh again")
