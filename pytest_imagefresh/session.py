"""A gate session: which tests belong to the gate, what they proved, and what the session ends with."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from argparse import Namespace
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest

from pytest_imagefresh import docker_fixtures, evidence, fixtures, junit, summary, verdicts, workers
from pytest_imagefresh.adapters import records
from pytest_imagefresh.adapters.configuration import load_configuration
from pytest_imagefresh.core.chain import ORDER, ExitStatus, Ledger, Link, Outcome, Proof, Retraction, exit_status
from pytest_imagefresh.core.errors import ConfigError, EvidenceError, ImagefreshError
from pytest_imagefresh.core.identity import RepoName
from pytest_imagefresh.core.inventory import shadowed
from pytest_imagefresh.core.layers import Configuration
from pytest_imagefresh.core.settings import Signing, Target, applies, targets_for
from pytest_imagefresh.gate_items import (
    bears_gate_mark,
    declared_in,
    gate_files,
    gates_folder_of,
    is_gate,
    link_of,
    register_below,
)
from pytest_imagefresh.interruption import Interruption
from pytest_imagefresh.masks import mask_report
from pytest_imagefresh.progress import TerminalProgress
from pytest_imagefresh.run import GateRun, TargetRun, gate_bound
from pytest_imagefresh.sentences import first_line, present
from pytest_imagefresh.truth import Witness, logged_outcome, reported_outcome, true_outcome
from pytest_imagefresh.weakening import replaced_fixtures, typed, weaknesses

_BACKSTOP_SECONDS = 60


def start(config: pytest.Config, asked: Namespace) -> GateSession:
    """Build settings and targets from the options and register the session. Raises pytest.UsageError.

    `asked` are the options as they were asked for, before any conftest was loaded.
    """
    try:
        session = GateSession(config, asked)
        if session.targets and not session.partial and not workers.is_worker(config):
            verdicts.check_signing(session.configuration.settings)
    except ConfigError as error:
        raise pytest.UsageError(f"imagefresh: {error}") from error
    config.pluginmanager.register(session, "imagefresh-session")
    config.pluginmanager.register(Witness(), "imagefresh-witness")
    config.pluginmanager.register(session.interruption, "imagefresh-interruption")
    session.interruption.signals.handle(config.add_cleanup)
    config.pluginmanager.register(fixtures, "imagefresh-fixtures")
    # What was imported stays: pytest looks for garbage at the end, again and again, and need not search it each time.
    gc.freeze()
    return session


class GateSession:
    """The pytest hooks of a session with --repo."""

    def __init__(self, config: pytest.Config, asked: Namespace) -> None:
        self.config = config
        self.configuration = _load(config)
        self.final_status: int | None = None
        """What the session ends with; None until it has come to its end."""
        self._report_says_no = False
        self.reuse = typed(config, "--gate-reuse") and config.getoption("gate_reuse")
        self.partial = self.reuse or (typed(config, "--gate-partial") and config.getoption("gate_partial"))
        self.progress = TerminalProgress(config)
        self.run = _make_run(config, self.configuration, self.progress)
        repos = dict.fromkeys(RepoName(name).name for name in config.getoption("gate_repos"))
        decisions = {name: applies(self.configuration.settings, name) for name in repos}
        # Also where the gate is off: an unknown repo is a mistake, never a green "not applicable".
        targets = {name: self._targets(name) for name in repos}
        self.off = {name: decision.reason for name, decision in decisions.items() if not decision.applies}
        self.targets = tuple(target for name in repos if name not in self.off for target in targets[name])
        self.ledger = Ledger(tuple(target.name for target in self.targets), weaknesses=weaknesses(config, asked))
        self.interruption = Interruption(self.ledger, self.progress.begun)
        self._taps: dict[str, list[dict[str, str]]] = {}
        self._seconds: dict[str, float] = {}
        self._runs: dict[str, TargetRun] = {}
        self._homes: dict[str, set[str]] = {}

    def _targets(self, repo: str) -> tuple[Target, ...]:
        self.run.clone(repo)
        return targets_for(self.configuration.settings, repo)

    def target_run(self, target: Target) -> TargetRun:
        """Return the run of one target; the same one every time."""
        if target.name not in self._runs:
            self._runs[target.name] = TargetRun(self.run, target)
        return self._runs[target.name]

    # Which tests, in which order, on which worker.

    def pytest_collectstart(self, collector: pytest.Collector) -> None:
        """Point pytest-docker's fixtures at staging for modules that hold gate tests, and for no other."""
        if not self.targets or not isinstance(collector, (pytest.Module, pytest.Directory)):
            return
        folder = gates_folder_of(collector.path if collector.path.is_dir() else collector.path.parent)
        if folder is not None:
            self._declare(folder)
        if isinstance(collector, pytest.Module) and (folder is not None or bears_gate_mark(collector)):
            register_below(collector, docker_fixtures)

    def _declare(self, folder: Path) -> None:
        """Enter into the ledger what a gates folder declares, whatever pytest is told to collect of it."""
        for path in gate_files(folder):
            names = declared_in(path)
            self.ledger.declared.update(f"{path.relative_to(folder).as_posix()}::{name}" for name in names)
            for name in shadowed(list(names)):
                self.ledger.weaken(
                    f"weakened: {path.name} declares {name} more than once, only the last one runs; rename it"
                )

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Keep in mind every gate test beside those that were asked for by their node ID, too."""
        report = yield
        for node in report.result if self.targets else []:
            if isinstance(node, pytest.Item):
                self.pytest_itemcollected(node)
        mask_report(report, self.run.mask)
        return report

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Keep in mind every gate test that exists, before anything selects among them."""
        if self.targets and is_gate(item):
            self.ledger.expected.add(item.nodeid)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run every gate test once per target, named in its ID."""
        if not self.targets or not is_gate(metafunc.definition):
            return
        if "target" not in metafunc.fixturenames:
            metafunc.fixturenames.append("target")
        metafunc.parametrize("target", self.targets, indirect=True, ids=self.ledger.targets, scope="session")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Put gate tests in the order of the chain, target by target, and bound them."""
        if not self.targets:
            for item in filter(is_gate, items):
                item.add_marker(pytest.mark.skip(reason=f"imagefresh: {'; '.join(self.off.values())}"))
            return
        if self.reuse:
            self._leave_out_what_changes(config, items)
        gates = sorted(filter(is_gate, items), key=self._place)
        items[:] = [item for item in items if not is_gate(item)] + gates
        for item in gates:
            self._bound(item)
            self.ledger.weaken(*replaced_fixtures(item) if link_of(item) else ())

    def _leave_out_what_changes(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Nothing is rebuilt, so there is no lease either."""
        left_out = [item for item in items if link_of(item) in (Link.REBUILT, Link.LEASE)]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)

    def _place(self, item: pytest.Item) -> tuple[int, int]:
        """Targets in turn; within one, links in order, and a user's own checks before the last looks."""
        target = item.callspec.params["target"] if hasattr(item, "callspec") else None
        turn = self.targets.index(target) if target in self.targets else -1
        return turn, ORDER[link_of(item) or Link.ACCEPTS]

    def _bound(self, item: pytest.Item) -> None:
        """Every step bounds itself; pytest-timeout is the backstop behind their sum."""
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(gate_bound(self.configuration.settings) + _BACKSTOP_SECONDS))

    def _run_of(self, item: pytest.Item) -> TargetRun | None:
        target = item.callspec.params.get("target") if hasattr(item, "callspec") else None
        return self.target_run(target) if isinstance(target, Target) else None

    def pytest_deselected(self, items: Iterable[pytest.Item]) -> None:
        """Keep in mind which gate tests were left out."""
        for item in filter(is_gate, items):
            self.ledger.note(item.nodeid, Outcome.LEFT_OUT)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Give a worker the run ID, and a way to tell of its progress."""
        workers.give_run_id(node, self.run.run_id)
        self.progress.listen(node)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over what a worker knew of the gate tests that exist."""
        workers.take_inventory(node, self.ledger)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Keep all items of one target on one worker, so that it is rebuilt once and proven in order."""
        folders = {each.name: TargetRun(self.run, each).settings.host.repo_path for each in self.targets}
        return workers.scheduler(config, log, folders) if self.targets else None

    # What they proved.

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Say refusals and evidence errors in one sentence, and send proofs along with the report."""
        report = yield
        self.run.keep_lease()
        if call.excinfo is not None and isinstance(call.excinfo.value, ImagefreshError):
            present(report, call.excinfo.value, self.run.mask)
        if is_gate(item):
            outcome, concealed = true_outcome(item, call, report)
            run = self._run_of(item)
            if report.failed and run is not None:
                report.sections.extend(evidence.failure_sections(run))
            if report.when == "setup" and run is not None:
                report.duration -= run.charge_rebuild(to_its_own_test=link_of(item) is Link.REBUILT)
            link = link_of(item)
            proofs = item.stash.get(fixtures.PROOFS, []) if outcome is Outcome.PASSED else []
            report.imagefresh = {  # type: ignore[attr-defined]
                "outcome": outcome.name,
                "concealed": self.run.mask(concealed),
                "proofs": [proof.as_record() for proof in proofs],
                "facts": {name: run.facts for name, run in self._runs.items()},
                "taps": {name: self.run.mask.deep(run.tap_records()) for name, run in self._runs.items()},
                "seconds": {name: run.unbilled_seconds for name, run in self._runs.items()},
                "link": [run.target.name, link.name] if run is not None and link is not None else None,
            }
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None, None, None]:
        """Mask what became known since the report was made, and enter it into the ledger once all have seen it.

        Under pytest-xdist this happens in the controller too.
        """
        mask_report(report, self.run.mask)
        yield
        gate: dict[str, Any] | None = getattr(report, "imagefresh", None)
        if gate is not None:
            self._enter(report, gate)
        elif report.failed:
            self.ledger.note(report.nodeid, reported_outcome(report), first_line(report))

    def _enter(self, report: pytest.TestReport, gate: dict[str, Any]) -> None:
        outcome = logged_outcome(report, Outcome[gate["outcome"]])
        bad = outcome in (Outcome.REFUSED, Outcome.UNKNOWN)
        reason = gate["concealed"] or first_line(report)
        if outcome is not Outcome.PASSED or report.when == "call":
            self.ledger.note(report.nodeid, outcome, reason if bad else "")
        self.ledger.facts.update(gate["facts"])
        self._taps.update(gate["taps"])
        self._seconds.update(gate["seconds"])
        if gate["link"] is not None:
            target, link = gate["link"]
            if bad:
                self.ledger.broken[target, Link.named(link)] = outcome, reason
            self._enter_home(target, getattr(report, "worker_id", ""))
        for record in gate["proofs"] if outcome is Outcome.PASSED and report.when == "call" else []:
            self.ledger.record(Proof.from_record(record))
        xml = junit.report_of(self.config)
        # With the teardown pytest closes a case; whoever touches it later opens another one without a name.
        if xml is not None and report.when != "teardown" and not workers.is_worker(self.config):
            junit.name_case(xml, report)
            junit.put_sentence_first(xml, report)
            junit.add_output(xml, report, evidence.tails(report))

    def _enter_home(self, target: str, worker: str) -> None:
        """Proofs of one target are in order only where one process made them all."""
        homes = self._homes.setdefault(target, set())
        homes.add(worker)
        if len(homes) > 1:
            self.ledger.weaken(f"weakened: {target} was tried on several workers; another plugin's scheduler split it")

    # What the session ends with, and what it leaves.

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        """Decide the exit status before the reports are written, so that they say the same."""
        self._keep_observed()
        self._look_again()
        if workers.is_worker(self.config):
            workers.send_inventory(self.config, self.ledger)
            yield
            return
        status = session.exitstatus = self._keep_records(self._decide(int(session.exitstatus)), complete=False)
        self._complete_junit(status)
        try:
            yield
        except OSError as error:
            self._say(f"imagefresh: a report could not be written: {error}; is the disk full or read-only?")
            status = status or ExitStatus.UNKNOWN
        except BaseException:
            self.final_status = status or ExitStatus.INCOMPLETE
            raise
        self.final_status = session.exitstatus = status

    def _look_again(self) -> None:
        """With several targets the last looks at one come before the turn of the next: look at all of them again."""
        if len(self.targets) < 2 or self.partial:
            return
        for name, run in self._runs.items():
            try:
                looks = run.last_looks()
            except ImagefreshError as error:
                outcome = Outcome.UNKNOWN if isinstance(error, EvidenceError) else Outcome.REFUSED
                self.ledger.retract(Retraction(name, Link.SAME_CONTAINER, outcome, self.run.mask(str(error))))
                continue
            for link, verdict in looks.items():
                if not verdict:
                    self.ledger.retract(Retraction(name, link, Outcome.REFUSED, self.run.mask(verdict.reason)))

    def conclude(self, status: int) -> int:
        """Return what pytest ends with, `status` being what it was about to; issue the record of a complete gate.

        Called when everything else has ended: nothing can turn a pass into something else after its record is written.
        """
        if self.final_status is None:
            sys.stderr.write("imagefresh: INCOMPLETE: the session never came to its end\n")
            status = status or ExitStatus.INCOMPLETE
        final = self.final_status or status
        try:
            if final == 0 and not self.partial:
                final = self._issue()
        finally:
            self.run.close()
        if final:
            self.withdraw_report()
        return final

    def _issue(self) -> int:
        """Issue verdicts, where they are signed, and the records of a complete gate: for all targets, or for none.

        pytest hears no signals any more: one that comes until this has ended leaves neither a record nor a pass.
        """
        status = 1
        with contextlib.ExitStack() as deaf:
            self.interruption.signals.handle(deaf.callback)
            try:
                status = self._issue_verdicts() or self._keep_records(0, complete=True)
            except KeyboardInterrupt:
                self._say("INTERRUPTED: the gate passed and was not recorded: nothing can be promoted; run it again")
                status = pytest.ExitCode.INTERRUPTED
            finally:
                if status:
                    self._take_back(status)
        return int(status)

    def _take_back(self, status: int) -> None:
        """Leave no verdict and no complete record: one that could not be written takes back those that were."""
        for target in self.targets:
            records.remove_verdict(self.evidence(target))
        self._keep_records(status, complete=False)

    def _issue_verdicts(self) -> int:
        signing = self.configuration.settings.signing
        if signing is None:
            return 0
        try:
            issued = [(target, self._verdict_files(target, signing)) for target in self.targets]
        except ImagefreshError as error:
            unknown = isinstance(error, EvidenceError)
            self._say(f"{'COULD NOT FIND OUT' if unknown else 'REFUSED'}: {self.run.mask(str(error))}")
            return ExitStatus.UNKNOWN if unknown else ExitStatus.REFUSED
        written = [
            self._write(self.evidence(target), name, text) for target, files in issued for name, text in files.items()
        ]
        return 0 if all(written) else ExitStatus.UNKNOWN

    def _verdict_files(self, target: Target, signing: Signing) -> dict[str, str]:
        return verdicts.issue(
            self.target_run(target),
            signing,
            self.ledger.facts.get(target.name, {}),
            tests={name: outcome.value for name, outcome in self.ledger.outcomes.items()},
            settings_file=evidence.settings_file(self.configuration, self.run.mask),
        )

    def withdraw_report(self) -> None:
        """Remove a JUnit report that says yes: for a session that ends worse than it looked when that was written."""
        if self.targets and not self._report_says_no and not workers.is_worker(self.config):
            junit.remove_old(junit.path_of(self.config))

    def _decide(self, pytest_status: int) -> int:
        return exit_status(pytest_status, self.ledger, partial=self.partial) if self.targets else pytest_status

    def _complete_junit(self, status: int) -> None:
        """Let the report say what was proven, each line of TAP, and a no wherever the exit status is one."""
        xml = junit.report_of(self.config)
        if xml is None or not self.targets:
            return
        self._report_says_no = status != 0
        junit.add_properties(xml, self.run.run_id.text, self.ledger.facts)
        for target, tests in self._taps.items():
            for test in tests:
                junit.add_case(xml, f"{test['name']}[{target}]", test["problem"], group="staging_check")
        for target, seconds in self._seconds.items():
            if seconds:
                junit.add_case(xml, f"rebuild of staging[{target}]", seconds=seconds)
        reason = "" if status == 0 or junit.says_no(xml) else f"the gate is not complete (exit {status})"
        # Where another case already says no, a passed "gate complete" would contradict it.
        if reason or (status == 0 and not self.partial):
            junit.add_case(xml, "gate complete", "\n".join([reason, *self.ledger.missing()]) if reason else "")

    def _keep_observed(self) -> None:
        """Write what was said and seen, in the process that heard and saw it."""
        for run in self._runs.values():
            for name, text in evidence.observed_files(run).items():
                if text:
                    self._write(self.evidence(run.target), name, text)

    def _keep_records(self, status: int, *, complete: bool) -> int:
        """Write what was proven; a record that cannot be written turns a pass into "could not find out"."""
        written = [
            self._write(self.evidence(target), name, text)
            for target in self.targets
            for name, text in self._chain_files(target, complete).items()
        ]
        for repo in {target.repo for target in self.targets}:
            records.drop_old_runs(self.config.rootpath / ".imagefresh" / repo)
        return status if all(written) else status or ExitStatus.UNKNOWN

    def _write(self, folder: Path, name: str, text: str) -> bool:
        try:
            records.write_text(folder, name, text)
        except EvidenceError as error:
            self._say(f"imagefresh: {error}")
            return False
        return True

    def _say(self, text: str) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None:
            terminal.write_line(text, red=True)

    def evidence(self, target: Target) -> Path:
        """Return the folder of one target's evidence."""
        given = self.config.getoption("gate_evidence")
        base = Path(given) if given else records.run_folder(self.config.rootpath, target.repo, self.run.run_id)
        return base / target.name

    def _chain_files(self, target: Target, complete: bool) -> dict[str, str]:
        return {
            "settings.json": evidence.settings_file(self.configuration, self.run.mask),
            "chain.txt": evidence.chain_table(self.ledger, target.name),
            # Last: a record that says complete finds everything else in place.
            records.RECORD: records.render(self._record(target, complete)),
        }

    def _record(self, target: Target, complete: bool) -> dict[str, Any]:
        proofs = [self.ledger.proofs[target.name, link] for link in Link if (target.name, link) in self.ledger.proofs]
        return {
            "target": target.name,
            "repo": target.repo,
            "branch": self.run.branch.name,
            "run_id": self.run.run_id.text,
            "complete": complete,
            "junit": junit.path_of(self.config),
            **self.ledger.facts.get(target.name, {}),
            "proofs": [proof.as_record() for proof in proofs],
            "missing": self.ledger.missing(),
        }

    # What people see.

    def pytest_report_header(self) -> list[str]:
        """Name what is gated, where, and which settings are not the defaults."""
        return summary.header(self.run, self.configuration, self.ledger, self.off, self.partial)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
        """Show the chain of each target, and in the last line what this session says."""
        terminalreporter.section("imagefresh")
        summary.show_off(terminalreporter, self.off)
        for target in self.targets:
            summary.show_chain(terminalreporter, self.ledger, target.name, self.evidence(target))
        if self.targets and not self.interruption.show(terminalreporter):
            summary.show_end(terminalreporter, self.ledger, self._decide(int(exitstatus)), partial=self.partial)

    def pytest_unconfigure(self) -> None:
        """End the connection to the host, unless a verdict is still to be asked for over it."""
        if workers.is_worker(self.config) or self.final_status != 0 or self.partial:
            self.run.close()


def _make_run(config: pytest.Config, configuration: Configuration, progress: TerminalProgress) -> GateRun:
    return GateRun(
        configuration.settings,
        rootdir=config.rootpath,
        branch=config.getoption("gate_branch") or "",
        gate_revision=config.getoption("gate_revision"),
        run_id=workers.given_run_id(config),
        progress=progress,
    )


def _load(config: pytest.Config) -> Configuration:
    given = config.getoption("gate_config")
    return load_configuration(config.rootpath, Path(given) if given else None, os.environ, {})
