"""What weakens a gate session: switches that nobody typed, and states in which tests cannot fail."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Iterator

import pytest

from pytest_imagefresh import docker_fixtures, fixtures

_SELECTING = {
    "keyword": ("-k",),
    "markexpr": ("-m",),
    "deselect": ("--deselect",),
    "ignore": ("--ignore",),
    "ignore_glob": ("--ignore-glob",),
    "lf": ("--lf", "--last-failed"),
    "stepwise": ("--sw", "--stepwise", "--sw-skip", "--stepwise-skip", "--sw-reset", "--stepwise-reset"),
    "stepwise_skip": ("--sw-skip", "--stepwise-skip"),
    "collectonly": ("--co", "--collect-only"),
    "setuponly": ("--setup-only", "--setup-plan"),
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

_ASKED = {
    "gate_repos": "--repo",
    "gate_branch": "--branch",
    "gate_revision": "--gate-revision",
    "gate_config": "--gate-config",
    "gate_evidence": "--gate-evidence",
}
"""Destination of an option that says what is gated -> its switch."""

_SHIPPED_FIXTURES = (fixtures, docker_fixtures)

_NEEDED = {"timeout": "pytest-timeout", "docker": "pytest-docker"}
"""Plugins by the name of their entry point."""


def typed(config: pytest.Config, *switches: str) -> bool:
    """Say whether a switch stands on the command line itself, not in an ini file, PYTEST_ADDOPTS or argument file."""
    return any(_is(word, switch) for word in map(str, config.invocation_params.args) for switch in switches)


def _is(word: str, switch: str) -> bool:
    if len(switch) == 2:
        # Among others, as in -qx: those that may stand before it take no value.
        return re.match(f"-[lqsvx]*{switch[1]}", word) is not None
    return word == switch or word.startswith(f"{switch}=")


def weaknesses(config: pytest.Config, asked: Namespace) -> list[str]:
    """Return what weakens the tests of this session, one line each; `asked` are the options as they were asked for."""
    return [*_untyped(config), *_changed(config, asked), *_toothless(config)]


def _changed(config: pytest.Config, asked: Namespace) -> Iterator[str]:
    """Options that a conftest or a plugin changed behind the back of whoever asked."""
    switches = _ASKED | {destination: switches[0] for destination, switches in _SELECTING.items()}
    for destination, switch in switches.items():
        expected, observed = getattr(asked, destination, None), config.getoption(destination, None)
        if expected != observed and not typed(config, *_SELECTING.get(destination, ())):
            yield f"weakened: a conftest or plugin changed {switch} from {expected!r} to {observed!r}; it must not"


def replaced_fixtures(item: pytest.Item) -> list[str]:
    """Return which of the gate's own fixtures a conftest, plugin or module puts its own in place of, one line each."""
    info = getattr(item, "_fixtureinfo", None)
    known = {} if info is None else info.name2fixturedefs
    used = {name: found[-1].func.__module__ for name, found in known.items() if found}
    ours = {module.__name__ for module in _SHIPPED_FIXTURES}
    return [
        f"weakened: {item.name} uses the fixture {name} of {module}, not the gate's own; give that one another name"
        for name, module in sorted(used.items())
        if module not in ours and any(hasattr(each, name) for each in _SHIPPED_FIXTURES)
    ]


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
    if config.getoption("assertmode", "plain") == "plain":
        yield "weakened: --assert=plain; drop it"
    if config.getoption("noconftest"):
        yield "weakened: --noconftest hides what conftest files contribute; drop it"
    for name, package in _NEEDED.items():
        if not config.pluginmanager.has_plugin(name):
            yield f"weakened: the plugin {package} is blocked or missing; drop -p no:{name}, or install it"
