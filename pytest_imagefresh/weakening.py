"""What weakens a gate session: switches that nobody typed, and states in which tests cannot fail."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

_SELECTING = {
    "keyword": ("-k",),
    "markexpr": ("-m",),
    "deselect": ("--deselect",),
    "ignore": ("--ignore",),
    "ignore_glob": ("--ignore-glob",),
    "lf": ("--lf", "--last-failed"),
    "stepwise": ("--sw", "--stepwise"),
    "stepwise_skip": ("--sw-skip", "--stepwise-skip"),
    "collectonly": ("--co", "--collect-only"),
    "setuponly": ("--setup-only",),
    "setupplan": ("--setup-plan",),
    "maxfail": ("--maxfail", "-x", "--exitfirst"),
    "runxfail": ("--runxfail",),
    "reruns": ("--reruns",),
    "continue_on_collection_errors": ("--continue-on-collection-errors",),
    "gate_partial": ("--gate-partial",),
    "gate_reuse": ("--gate-reuse",),
}
"""Destination of an option -> its switches. On the command line itself they are a person's choice, and what they leave
out is seen; from anywhere else they are refused."""

_NEEDED = {"timeout": "pytest-timeout", "docker": "pytest-docker"}
"""Plugins by the name of their entry point."""


def typed(config: pytest.Config, *switches: str) -> bool:
    """Say whether a switch stands on the command line itself, not in an ini file, PYTEST_ADDOPTS or argument file."""
    return any(_is(word, switch) for word in map(str, config.invocation_params.args) for switch in switches)


def _is(word: str, switch: str) -> bool:
    short = len(switch) == 2 and word.startswith(switch)
    return short or word == switch or word.startswith(f"{switch}=")


def weaknesses(config: pytest.Config) -> list[str]:
    """Return what weakens the tests of this session, one line each."""
    return [*_untyped(config), *_toothless(config)]


def _untyped(config: pytest.Config) -> Iterator[str]:
    for destination, switches in _SELECTING.items():
        value = config.getoption(destination, None)
        if value and not typed(config, *switches):
            yield (
                f"weakened: {switches[0]} {'' if value is True else value}".rstrip()
                + " comes from an ini file, PYTEST_ADDOPTS or an argument file; only the command line itself may say it"
            )


def _toothless(config: pytest.Config) -> Iterator[str]:
    if sys.flags.optimize:
        yield "weakened: python -O removes assert statements; run pytest without -O and PYTHONOPTIMIZE"
    if config.getoption("assertmode") == "plain":
        yield "weakened: --assert=plain; drop it"
    if config.getoption("noconftest"):
        yield "weakened: --noconftest hides what conftest files contribute; drop it"
    for name, package in _NEEDED.items():
        if not config.pluginmanager.has_plugin(name):
            yield f"weakened: the plugin {package} is blocked or missing; drop -p no:{name}, or install it"
