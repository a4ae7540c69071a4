"""The pytest plugin: options, and the last word on the exit status. Without --repo it does nothing."""

from __future__ import annotations

import copy
import sys
from argparse import Namespace
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_imagefresh.session import GateSession

GATE: pytest.StashKey[GateSession] = pytest.StashKey()

ASKED: pytest.StashKey[Namespace] = pytest.StashKey()
"""The options of a session with --repo as they were asked for, before any conftest was loaded."""

_INCOMPLETE = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the gate's options."""
    group = parser.getgroup("imagefresh", "gate before an image is promoted")
    group.addoption(
        "--repo",
        action="append",
        default=[],
        metavar="NAME",
        dest="gate_repos",
        help="gate this repo; may be given several times. Without it the plugin is inert",
    )
    group.addoption(
        "--branch",
        default=None,
        metavar="NAME",
        dest="gate_branch",
        help="the branch whose worktree HEAD is the validated revision",
    )
    group.addoption(
        "--gate-revision",
        default=None,
        metavar="SHA",
        dest="gate_revision",
        help="the full commit ID that the pipeline validated; must equal the branch's. "
        "With it a detached checkout at exactly this commit is accepted",
    )
    group.addoption(
        "--gate-config",
        default=None,
        metavar="FILE",
        dest="gate_config",
        help="settings; default: imagefresh.toml in the rootdir, else [tool.imagefresh] in its pyproject.toml",
    )
    group.addoption(
        "--gate-partial",
        action="store_true",
        dest="gate_partial",
        help="a developer's run: gate tests may be left out; never a verdict. Counts only on the command line itself",
    )
    group.addoption(
        "--gate-reuse",
        action="store_true",
        dest="gate_reuse",
        help="no rebuild, examine what runs now; implies --gate-partial",
    )
    group.addoption(
        "--gate-evidence",
        default=None,
        metavar="DIR",
        dest="gate_evidence",
        help="where the evidence is written; "
        "default: .imagefresh/<repo>/<run id> in the rootdir, the last 20 runs kept",
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, object, object]:
    """With --repo: register the last word after the initial conftests, as the newest and so the outermost wrapper."""
    asked = early_config.known_args_namespace
    if not asked.gate_repos:
        return (yield)
    early_config.stash[ASKED] = copy.copy(asked)
    _remove_old_report(asked)
    try:
        result = yield
    except SystemExit as stop:
        raise SystemExit(stop.code or _INCOMPLETE) from stop
    early_config.pluginmanager.register(LastWord(), "imagefresh-last-word")
    return result


def _remove_old_report(asked: Namespace) -> None:
    from pytest_imagefresh import junit

    junit.remove_old(getattr(asked, "xmlpath", None) or "")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers; with --repo, start a gate session."""
    config.addinivalue_line("markers", "gate: this test belongs to the complete gate")
    config.addinivalue_line("markers", "link(name): the link of the chain that this gate test proves")
    if not config.getoption("gate_repos"):
        return
    if ASKED not in config.stash:
        _remove_old_report(config.option)
        raise pytest.UsageError(
            "imagefresh: --repo was added, or the plugin loaded, by a conftest or another plugin, too late to have the "
            "last word; say --repo on the command line, and install the plugin or load it with -p"
        )
    from pytest_imagefresh.session import start

    config.stash[GATE] = start(config, config.stash[ASKED])


class LastWord:
    """The outermost wrapper around a session with --repo."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> Generator[None, object, object]:
        """Raise the exit status of a session that is not proven, however it ended; never lower it."""
        try:
            status = yield
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            if GATE in config.stash:
                config.stash[GATE].withdraw_report()
            raise
        try:
            # Here, or pytest does it after this last word, and what ends a process there has one of its own.
            config._ensure_unconfigure()
        except SystemExit as stop:
            status = status or stop.code
        return status if hasattr(config, "workerinput") else _conclude(config, status)


def _conclude(config: pytest.Config, status: object) -> int:
    gate = config.stash.get(GATE, None)
    number = int(status) if isinstance(status, int) else 1 if status else 0
    if gate is not None:
        return gate.conclude(number)
    # Not even configured: --help and the like, or a refused option.
    sys.stderr.write("" if number else "imagefresh: INCOMPLETE: no gate was run\n")
    return number or _INCOMPLETE
