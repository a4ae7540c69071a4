"""Fixtures for every test of the project; the classes behind them are in tests/support.py.

* `engine` (session): a real Docker engine with a base image, shared by all xdist workers. A test that uses it bears the
  marker `docker` by itself; without an engine such a test fails, it never skips.
* `free_port` (session): a function that returns an unused port of 127.0.0.1, another one at every call.
* `orchestrator`: a function that makes a copy of the example service: git repo, worktree of a branch, compose folder,
  names and ports, all its own; what it leaves on the engine is removed when the test ends.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, settings

from tests.support import Engine, Orchestrator, Ports, start_engine

# How long something takes says nothing on a machine that does other things, too.
settings.register_profile("noisy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("noisy")


class MakeOrchestrator(Protocol):
    """The type of the fixture `orchestrator`."""

    def __call__(self, branch: str = "feature/x") -> Orchestrator:
        """Return a new copy of the example service."""


def pytest_configure() -> None:
    """Let what the tests start be interrupted: a background job is born with SIGINT ignored, nohup's with SIGHUP."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what uses the engine, and leave out what needs root where there is none (pytest counts it as deselected)."""
    for item in items:
        if "engine" in getattr(item, "fixturenames", ()):
            item.add_marker("docker")
    if os.geteuid() != 0:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("root")])
        items[:] = [item for item in items if not item.get_closest_marker("root")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip of a `docker` test into a failure: a real engine that was not there proves nothing."""
    report = yield
    if report.skipped and item.get_closest_marker("docker"):
        report.outcome = "failed"
        report.longrepr = f"a test that needs a real engine must not skip; observed: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def engine() -> Engine:
    """A real engine that answers; it stays up for the next run (`scripts/engine.sh down` ends it)."""
    return start_engine()


@pytest.fixture(scope="session")
def free_port() -> Iterator[Callable[[], int]]:
    """A function that returns an unused port of 127.0.0.1, unique among the test processes of this machine."""
    ports = Ports()
    yield ports.claim
    ports.release()


@pytest.fixture
def orchestrator(engine: Engine, free_port: Callable[[], int], tmp_path: Path) -> Iterator[MakeOrchestrator]:
    """A function that makes copies of the example service, `orchestrator(branch="feature/x")`."""
    copies: list[Orchestrator] = []

    def make(branch: str = "feature/x") -> Orchestrator:
        unique = f"if-{secrets.token_hex(4)}"
        ports = {"staging_port": free_port(), "prod_port": free_port()}
        copies.append(Orchestrator(engine, tmp_path / unique, branch=branch, unique=unique, **ports))
        return copies[-1]

    yield make
    for copy in copies:
        copy.remove()
