"""The pytest plugin: options, and the last word on the exit status. Without --repo it does nothing."""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_imagefresh.session import GateSession

GATE: pytest.StashKey[GateSession] = pytest.StashKey()


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


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers; with --repo, start a gate session."""
    config.addinivalue_line("markers", "gate: this test belongs to the complete gate")
    config.addinivalue_line("markers", "link(name): the link of the chain that this gate test proves")
    if config.getoption("gate_repos"):
        from pytest_imagefresh.session import start

        config.stash[GATE] = start(config)


@pytest.hookimpl(trylast=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Register the last word once the initial conftests are loaded: the newest wrapper is the outermost one."""
    early_config.pluginmanager.register(LastWord(), "imagefresh-last-word")


class LastWord:
    """The outermost wrapper around the session."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> Generator[None, object, object]:
        """Raise the exit status of a session with --repo that is not proven, however it ended; never lower it."""
        try:
            status = yield
        except SystemExit as stop:
            status = stop.code
        if not config.getoption("gate_repos") or hasattr(config, "workerinput"):
            return status
        gate = config.stash.get(GATE, None)
        number = int(status) if isinstance(status, int) else 1 if status else 0
        if gate is None:
            # Not even configured: --help and the like, or a refused option.
            sys.stderr.write("" if number else "imagefresh: INCOMPLETE: no gate was run\n")
            return number or 10
        return gate.conclude(number)
