"""A gate session: which tests belong to the gate, what they proved, and what the session ends with."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from _pytest._code.code import ReprFileLocation, TerminalRepr
from _pytest._io import TerminalWriter

from pytest_imagefresh import docker_fixtures, fixtures
from pytest_imagefresh.adapters import records
from pytest_imagefresh.adapters.configuration import load_configuration
from pytest_imagefresh.adapters.git import parse_gate_revision
from pytest_imagefresh.core.chain import ORDER, ExitStatus, Ledger, Link, Outcome, Proof, exit_status
from pytest_imagefresh.core.errors import ConfigError, EvidenceError, ImagefreshError
from pytest_imagefresh.core.identity import RepoName
from pytest_imagefresh.core.settings import Target, applies, targets_for
from pytest_imagefresh.progress import TerminalProgress
from pytest_imagefresh.run import GateRun, TargetRun, gate_bound

_PARTIAL_SWITCHES = ("--gate-partial", "--gate-reuse")
_BACKSTOP_SECONDS = 60


def start(config: pytest.Config) -> GateSession:
    """Build settings and targets from the options and register the session. Raises pytest.UsageError."""
    try:
        session = GateSession(config)
    except ConfigError as error:
        raise pytest.UsageError(f"imagefresh: {error}") from error
    config.pluginmanager.register(session, "imagefresh-session")
    config.pluginmanager.register(fixtures, "imagefresh-fixtures")
    return session


class GateSession:
    """The pytest hooks of a session with --repo."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.configuration = _load(config)
        self.final_status: int | None = None
        """What the session ends with; None until it has come to its end."""
        self.reuse: bool = config.getoption("gate_reuse") and _typed(config, "--gate-reuse")
        self.partial = any(_typed(config, switch) for switch in _PARTIAL_SWITCHES)
        given = config.getoption("gate_revision")
        repos = dict.fromkeys(RepoName(name).name for name in config.getoption("gate_repos"))
        self.run = GateRun(
            self.configuration.settings,
            rootdir=config.rootpath,
            branch=config.getoption("gate_branch") or "",
            gate_revision="" if given is None else parse_gate_revision(given).hex,
            progress=TerminalProgress(config),
        )
        self.off = {name: reason for name in repos if (reason := self._why_off(name))}
        self.targets = tuple(target for name in repos if name not in self.off for target in self._targets(name))
        self.ledger = Ledger(tuple(target.name for target in self.targets))
        self._runs: dict[str, TargetRun] = {}

    def _why_off(self, repo: str) -> str:
        """Return why the gate does not apply to a repo, or ""."""
        decision = applies(self.configuration.settings, repo)
        if not decision.applies:
            targets_for(self.configuration.settings, repo)
            self.run.clone(repo)
        return "" if decision.applies else decision.reason

    def _targets(self, repo: str) -> tuple[Target, ...]:
        self.run.clone(repo)
        return targets_for(self.configuration.settings, repo)

    def target_run(self, target: Target) -> TargetRun:
        """Return the run of one target; the same one every time."""
        if target.name not in self._runs:
            self._runs[target.name] = TargetRun(self.run, target)
        return self._runs[target.name]

    # Which tests, in which order.

    def pytest_collectstart(self, collector: pytest.Collector) -> None:
        """Point pytest-docker's fixtures at staging for modules that hold gate tests, and for no other."""
        if isinstance(collector, pytest.Module) and self.targets and _holds_gate_tests(collector):
            _register_below(collector, docker_fixtures)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run every gate test once per target, named in its ID."""
        if not self.targets or not is_gate(metafunc.definition):
            return
        if "target" not in metafunc.fixturenames:
            metafunc.fixturenames.append("target")
        names = [target.name for target in self.targets]
        metafunc.parametrize("target", self.targets, indirect=True, ids=names, scope="session")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Put gate tests in the order of the chain, target by target; bound them; leave out what a reuse cannot prove."""
        if not self.targets:
            reason = "; ".join(self.off.values())
            for item in filter(is_gate, items):
                item.add_marker(pytest.mark.skip(reason=f"imagefresh: {reason}"))
            return
        if self.reuse:
            rebuilt = [item for item in items if _link_of(item) is Link.REBUILT]
            items[:] = [item for item in items if item not in rebuilt]
            config.hook.pytest_deselected(items=rebuilt)
        gates = sorted(filter(is_gate, items), key=self._place)
        items[:] = [item for item in items if not is_gate(item)] + gates
        for item in gates:
            self._bound(item)

    def _place(self, item: pytest.Item) -> tuple[int, int]:
        """Targets in turn; within one, links in order, and a user's own checks before the last looks."""
        names = [target.name for target in self.targets]
        link = _link_of(item)
        name = item.callspec.params["target"].name if hasattr(item, "callspec") else ""
        return names.index(name) if name in names else -1, ORDER[link or Link.ACCEPTS]

    def _bound(self, item: pytest.Item) -> None:
        """Every step bounds itself; pytest-timeout is the backstop behind their sum."""
        if item.get_closest_marker("timeout") is None:
            bound = gate_bound(self.configuration.settings)
            item.add_marker(pytest.mark.timeout(bound + _BACKSTOP_SECONDS))

    def pytest_deselected(self, items: Iterable[pytest.Item]) -> None:
        """Keep in mind which gate tests were left out."""
        for item in filter(is_gate, items):
            self.ledger.note(item.nodeid, Outcome.LEFT_OUT)

    # What they proved.

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Say refusals and evidence errors in one sentence, and send proofs along with the report."""
        report = yield
        if call.excinfo is not None and isinstance(call.excinfo.value, ImagefreshError):
            _present(report, call.excinfo.value)
        if is_gate(item):
            report.imagefresh = {  # type: ignore[attr-defined]
                "proofs": [proof.as_record() for proof in item.stash.get(fixtures.PROOFS, [])] if report.passed else [],
                "facts": self._facts(item),
            }
        return report

    def _facts(self, item: pytest.Item) -> dict[str, dict[str, str]]:
        return {name: run.facts for name, run in self._runs.items()} if is_gate(item) else {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Enter one report into the ledger; under pytest-xdist this happens in the controller."""
        gate: dict[str, Any] | None = getattr(report, "imagefresh", None)
        if report.failed:
            unknown = getattr(report, "imagefresh_unknown", False)
            self.ledger.note(report.nodeid, Outcome.UNKNOWN if unknown else Outcome.REFUSED)
        elif gate is not None and (report.outcome != "passed" or hasattr(report, "wasxfail")):
            self.ledger.note(report.nodeid, Outcome.LEFT_OUT)
        if gate is None:
            return
        self.ledger.facts.update(gate["facts"])
        if report.when == "call" and report.outcome == "passed" and not hasattr(report, "wasxfail"):
            for record in gate["proofs"]:
                self.ledger.record(Proof.from_record(record))

    # What the session ends with, and what it leaves.

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        """Decide the exit status before the reports are written, and keep the records after them."""
        if hasattr(self.config, "workerinput"):
            yield
            return
        status = self._decide(int(session.exitstatus))
        session.exitstatus = status
        self._add_suite_properties()
        yield
        self.final_status = session.exitstatus = self._keep_records(status)

    def _decide(self, pytest_status: int) -> int:
        if not self.targets:
            return pytest_status
        return int(exit_status(pytest_status, self.ledger, partial=self.partial))

    def _add_suite_properties(self) -> None:
        from _pytest.junitxml import xml_key

        xml = self.config.stash.get(xml_key, None)
        if xml is None:
            return
        xml.add_global_property("run_id", self.run.run_id.text)
        for target, facts in self.ledger.facts.items():
            for name, value in facts.items():
                xml.add_global_property(f"{target}.{name}", value)

    def _keep_records(self, status: int) -> int:
        """Write what was proven; a record that cannot be written turns a pass into "could not find out"."""
        try:
            for target in self.targets:
                records.write_record(self.evidence(target), self._record(target, complete=status == 0 and not self.partial))
            for repo in {target.repo for target in self.targets}:
                records.drop_old_runs(self.config.rootpath / ".imagefresh" / repo)
        except EvidenceError as error:
            self._say(f"imagefresh: {error}")
            return status or ExitStatus.UNKNOWN
        return status

    def evidence(self, target: Target) -> Path:
        """Return the folder of one target's evidence."""
        given = self.config.getoption("gate_evidence")
        base = Path(given) if given else records.run_folder(self.config.rootpath, target.repo, self.run.run_id)
        return base / target.name

    def _record(self, target: Target, *, complete: bool) -> dict[str, Any]:
        proofs = [self.ledger.proofs[key] for key in sorted(self.ledger.proofs, key=lambda key: ORDER[key[1]]) if key[0] == target.name]
        return {
            "target": target.name,
            "repo": target.repo,
            "branch": self.run.branch.name,
            "run_id": self.run.run_id.text,
            "complete": complete,
            **self.ledger.facts.get(target.name, {}),
            "proofs": [proof.as_record() for proof in proofs],
            "missing": self.ledger.missing(),
        }

    # What people see.

    def pytest_report_header(self) -> list[str]:
        """Name what is gated, where, and which settings are not the defaults."""
        names = ", ".join(target.name for target in self.targets) or "nothing"
        mode = " PARTIAL" if self.partial else ""
        lines = [f"imagefresh:{mode} run {self.run.run_id}, branch {self.run.branch}, host {self.run.settings.host.ssh}, gating {names}"]
        lines += [f"imagefresh: NOT GATED: {reason}" for reason in self.off.values()]
        chosen = [f"{key} ({source})" for key, source in sorted(self.configuration.sources.items()) if source != "default"]
        return [*lines, f"imagefresh: settings: {', '.join(chosen) or 'all defaults'}"]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the chain of each target, and in the last line what this session says."""
        terminalreporter.section("imagefresh")
        for reason in self.off.values():
            terminalreporter.write_line(f"NOT GATED: {reason}", yellow=True)
        for target in self.targets:
            self._show_chain(terminalreporter, target)
        self._show_end(terminalreporter)

    def _show_chain(self, terminal: pytest.TerminalReporter, target: Target) -> None:
        facts = self.ledger.facts.get(target.name, {})
        terminal.write_line(f"{target.name}: commit {facts.get('revision', '?')}, image {facts.get('image_id', '?')}", bold=True)
        for link in Link:
            proof = self.ledger.proofs.get((target.name, link))
            mark = "proven" if proof else "  -   "
            terminal.write_line(f"  {mark}  {link.value}", green=bool(proof))
        terminal.write_line(f"  evidence: {self.evidence(target)}")

    def _show_end(self, terminal: pytest.TerminalReporter) -> None:
        status = self._decide(int(getattr(terminal._session, "exitstatus", 0) or 0))
        if not self.targets:
            return
        word = {0: "GATE PASSED", 1: "REFUSED", 10: "INCOMPLETE", 11: "COULD NOT FIND OUT"}.get(status, f"ENDED WITH {status}")
        if self.partial:
            word = f"PARTIAL: no verdict; {'tests passed' if status == 0 else word}"
        terminal.write_line(word, bold=True, green=status == 0 and not self.partial, red=status != 0)
        if status == ExitStatus.INCOMPLETE:
            for line in self.ledger.missing():
                terminal.write_line(f"  not proven: {line}", red=True)

    def _say(self, text: str) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            terminal.write_line(text, red=True)

    def pytest_unconfigure(self) -> None:
        """End the connection to the host."""
        self.run.close()


class Sentence(TerminalRepr):
    """One sentence instead of a traceback: for errors that say themselves what is wrong."""

    def __init__(self, text: str, item_path: str) -> None:
        self.text = text
        self.reprcrash = ReprFileLocation(item_path, 0, text)

    def __str__(self) -> str:
        return self.text

    def toterminal(self, tw: TerminalWriter) -> None:
        """Write the sentence."""
        tw.line(self.text, red=True)


def _present(report: pytest.TestReport, error: ImagefreshError) -> None:
    """Report a refusal as a failure and an evidence error as an error, wherever in the test it was raised."""
    report.longrepr = Sentence(str(error), report.location[0])
    unknown = isinstance(error, EvidenceError)
    report.when = "setup" if unknown else "call"
    report.imagefresh_unknown = unknown  # type: ignore[attr-defined]


def is_gate(item: pytest.Item) -> bool:
    """Say whether a test belongs to the complete gate: marked `gate`, or below a gates folder."""
    return item.get_closest_marker("gate") is not None or _is_gates_folder(item.path.parent)


def _holds_gate_tests(module: pytest.Module) -> bool:
    if _is_gates_folder(module.path.parent):
        return True
    marked = [vars(each).get("pytestmark", []) for each in [module.obj, *vars(module.obj).values()] if hasattr(each, "__dict__")]
    return any(getattr(mark, "name", "") == "gate" for marks in marked for mark in (marks if isinstance(marks, list) else [marks]))


def _register_below(node: pytest.Collector, holder: ModuleType) -> None:
    """Make the fixtures of a module visible to the items below one collector, and to no others."""
    manager = node.session._fixturemanager
    try:
        manager.parsefactories(holder=holder, node=node)
    except TypeError:  # pytest before 9.1 knows the visibility by node ID only
        manager.parsefactories(holder, node.nodeid)  # type: ignore[call-overload]


@lru_cache(maxsize=None)
def _is_gates_folder(folder: Path) -> bool:
    """A gates folder is one that holds the shipped gates, and everything below it."""
    shipped = ("test_staging_fresh.py", "test_provenance.py")
    return any(all((place / name).is_file() for name in shipped) for place in [folder, *folder.parents])


def _link_of(item: pytest.Item) -> Link | None:
    marker = item.get_closest_marker("link")
    return Link.named(str(marker.args[0])) if marker else None


def _typed(config: pytest.Config, switch: str) -> bool:
    """Say whether a switch stands on the command line itself, not in an ini file or PYTEST_ADDOPTS."""
    return switch in config.invocation_params.args


def _load(config: pytest.Config) -> Any:
    given = config.getoption("gate_config")
    return load_configuration(config.rootpath, Path(given) if given else None, os.environ, {})
