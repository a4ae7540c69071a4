"""One gate run: the adapters wired to the settings, every observation made once and kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from pytest_imagefresh import shipped
from pytest_imagefresh.adapters.command import Sent
from pytest_imagefresh.adapters.compose import read_build
from pytest_imagefresh.adapters.engine import Engine, connect_engine
from pytest_imagefresh.adapters.git import (
    find_clone,
    packed_commit,
    parse_gate_revision,
    read_anchor,
    read_content,
    read_tree_files,
)
from pytest_imagefresh.adapters.hook import LOCK_SECONDS, InstalledHook, Lease, bundled_hook
from pytest_imagefresh.adapters.host import Host, connect
from pytest_imagefresh.adapters.http import read_answer
from pytest_imagefresh.adapters.records import new_run_id
from pytest_imagefresh.compose_evidence import HostCompose, Meanwhile, compare_with_commit, read_host_compose
from pytest_imagefresh.core.chain import Link
from pytest_imagefresh.core.compose import ComposeEvidence
from pytest_imagefresh.core.content import Content, Place
from pytest_imagefresh.core.contract import (
    lease_variables,
    observation_variables,
    promotion_variables,
    self_test_variables,
    staging_variables,
)
from pytest_imagefresh.core.errors import EvidenceError, ImagefreshError, Refused
from pytest_imagefresh.core.evidence import (
    Anchor,
    Answer,
    Change,
    CheckResult,
    Container,
    HookReport,
    Production,
    Tenure,
)
from pytest_imagefresh.core.identity import BranchName, ImageId, RepoName, RunId
from pytest_imagefresh.core.masking import Masker
from pytest_imagefresh.core.port import own_address
from pytest_imagefresh.core.settings import SENT, Build, Settings, Target, clone_on_host
from pytest_imagefresh.core.tap import TapSummary
from pytest_imagefresh.core.unchanged import folders_in_doubt
from pytest_imagefresh.core.verdict import Verdict, check_anchor, check_production_untouched, check_same_container
from pytest_imagefresh.image_content import read_image_content
from pytest_imagefresh.observed_engine import ObservedEngine

_STEP = "imagefresh: step: "
"""How the hook announces a step."""

_BUILD_STEP = f"{_STEP}building "

_CHANGES_OF_PRODUCTION = ("--promote", "--rollback", "--recover", "--break-glass")
_LOOKS = ("--verify", "--self-test", "--status", "--history")
"""The modes that change nothing."""

_LOOKS_PER_CALL = 20
"""How many bounded looks at engine and lock one call of the hook takes at most, beside its long steps."""

_HOOK_CALLS_PER_GATE = 9


class Steps(Protocol):
    """Who is told of the steps of one call of the hook."""

    def step(self, text: str) -> None:
        """Announce a step as it starts."""

    def line(self, text: str) -> None:
        """Pass on one line of output of the current step."""


class Progress(Protocol):
    """Where a run tells what it is doing."""

    def follow(self, target: str, *, begins: bool = True) -> AbstractContextManager[Steps]:
        """Follow one call of the hook for a target, from its first step to its end, whatever that is.

        `begins` says whether the call may change the target; waiting for another run does not.
        """


class Silent:
    """Tells nobody."""

    def follow(self, target: str, *, begins: bool = True) -> AbstractContextManager[Steps]:  # noqa: ARG002
        """Follow nothing."""
        return nullcontext(self)

    def step(self, text: str) -> None:
        """Say nothing."""

    def line(self, text: str) -> None:
        """Say nothing."""


_SILENT: Progress = Silent()

_Value = TypeVar("_Value")


class once(Generic[_Value]):
    """An attribute computed on first use. What could not be found out is not tried again: its error is kept, too."""

    def __init__(self, compute: Callable[[Any], _Value]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    def __get__(self, instance: object, owner: type | None = None) -> _Value:
        errors: dict[str, ImagefreshError] = instance.__dict__.setdefault("_kept_errors", {})
        if self._name in errors:
            raise errors[self._name]
        try:
            value = instance.__dict__[self._name] = self._compute(instance)
        except ImagefreshError as error:
            errors[self._name] = error
            raise
        return value


class GateRun:
    """What all targets of one run share: settings, branch, run ID, and one connection to the Docker host."""

    def __init__(
        self,
        settings: Settings,
        *,
        rootdir: Path,
        branch: str,
        gate_revision: str | None = None,
        run_id: RunId | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.settings = settings
        self.rootdir = rootdir
        self.branch = BranchName(branch)
        # Given but empty is a lost value of the pipeline's, and refused; only None is "not given".
        self.gate_revision = "" if gate_revision is None else parse_gate_revision(gate_revision).hex
        self.run_id = run_id or new_run_id()
        self.progress: Progress = progress or Silent()
        self.mask = Masker(settings.secret_names)
        self.mask.learn(os.environ)
        """Masks secrets in whatever is printed or written."""
        self._open = ExitStack()
        self._anchors: dict[str, Anchor] = {}
        self._lease: tuple[str, Lease] | None = None
        self._given_back: set[str] = set()

    @once
    def host(self) -> Host:
        """The connection to the Docker host, made on first use."""
        host = connect(self.settings.host, self.settings.timeouts)
        self._open.callback(host.close)
        return host

    @once
    def engine(self) -> Engine:
        """The host's engine. Raises Refused when it is not the one that the settings name."""
        engine = connect_engine(self.host.engine_socket(), timeout=self.settings.timeouts.inspect)
        self._open.callback(engine.close)
        self.require_engine(engine.id)
        return engine

    def require_engine(self, observed: str) -> None:
        """Raise Refused for an engine that is not the one that the settings name."""
        expected = self.settings.host.engine_id
        if expected and observed != expected:
            raise Refused(f"the engine is {observed}, expected {expected}; correct host.ssh or host.engine_id")

    @once
    def hook(self) -> InstalledHook:
        """The deploy hook on the host; where the settings say `bundled`, our own, sent for this run."""
        path = self.settings.host.hook
        if path == "bundled":
            bound = self.settings.timeouts.inspect
            path = self._open.enter_context(
                bundled_hook(self.host, shipped.hook_script(), self.settings.host, timeout=bound)
            )
        restricted = self.settings.host.restricted
        hook = InstalledHook(self.host, path, ours=str(shipped.hook_script()), restricted=restricted)
        hook.check_contract()
        return hook

    def ask_lease(self, target: Target, settings: Settings) -> Lease:
        """Ask for the lease of a target's compose folder; the same one for all targets that share the folder.

        A run holds one lease at a time: two runs that each held one could wait for the other's for ever. So the
        targets of one folder have to be done before those of the next, and a folder is never gone back to.
        """
        folder = settings.host.repo_path
        if self._lease is not None and self._lease[0] == folder:
            return self._lease[1]
        if folder in self._given_back:
            raise EvidenceError(f"the lease of {folder} was given back for another one; gate its targets in one go")
        if self._lease is not None:
            self._lease[1].close()
            self._given_back.add(self._lease[0])
        variables = lease_variables(target, settings, run_id=self.run_id)
        lease = self.hook.lease(variables, patience=gate_bound(settings))
        self._open.callback(lease.close)
        self._lease = folder, lease
        return lease

    def keep_lease(self) -> None:
        """Say that this run gets on; a lease of one that hangs ends by itself."""
        if self._lease is not None:
            self._lease[1].keep()

    def clone(self, repo: str) -> Path:
        """Return the clone of a repo, as this machine sees it."""
        return find_clone(self.settings, RepoName(repo), self.rootdir)

    def anchor(self, repo: str) -> Anchor:
        """Return the validated revision of a repo, resolved once per run."""
        if repo not in self._anchors:
            self._anchors[repo] = self.read_anchor(repo)
        return self._anchors[repo]

    def read_anchor(self, repo: str) -> Anchor:
        """Return what the branch points to at this moment."""
        return read_anchor(
            self.settings, RepoName(repo), self.branch, rootdir=self.rootdir, gate_revision=self.gate_revision
        )

    def close(self) -> None:
        """End every connection and remove what was sent to the host."""
        self._open.close()


class TargetRun:
    """One target of a run."""

    def __init__(self, run: GateRun, target: Target) -> None:
        self.run = run
        self.target = target
        clone = run.clone(target.repo)
        self._clone_on_host = clone_on_host(run.settings, target.repo) or str(clone)
        here = str(clone) if self._clone_on_host == SENT else self._clone_on_host
        self.settings = _with_compose_folder(run.settings, here)
        self.facts: dict[str, str] = {}
        """What reports name this target's proof by: revision, image_id, container_id, engine_id."""
        self.check: CheckResult | None = None
        """The end of the staging check, whether or not it was a good one."""
        self.tap: TapSummary | None = None
        """What the staging check said, where it speaks TAP."""
        self.content: Content | None = None
        """The declared files of commit and image, once they were read."""
        self.hook_log: list[str] = []
        """Everything that the hook said in this run, line by line, secrets masked."""
        self.build_log: list[str] = []
        """What the build itself said."""
        self.compose: ComposeEvidence | None = None
        """The host's compose configuration beside the commit's, once staging was rebuilt."""
        self._meanwhile: Meanwhile[tuple[HostCompose, ComposeEvidence]] | None = None
        self._building = False
        self.unbilled_seconds = 0.0
        """How long the rebuild took, where its own test was not the one that waited for it."""
        self._charged = False
        self.call_seconds: dict[str, float] = {}
        """Mode of the hook -> how long its last call took, in seconds."""
        self._held: Lease | None = None
        self.staged: Container | None = None
        """The staging container as it was first seen after the rebuild."""

    @property
    def restricted(self) -> bool:
        """Whether our key reaches the hook only."""
        return self.run.settings.host.restricted

    @property
    def engine(self) -> Engine | ObservedEngine:
        """The host's engine, or what the hook shows of it."""
        return self._observed_engine if self.restricted else self.run.engine

    @once
    def _observed_engine(self) -> ObservedEngine:
        engine = ObservedEngine(self.observe, self.target, self.run.host.name)
        self.run.require_engine(engine.id)
        return engine

    def observe(
        self, word: str, *, image: ImageId | None = None, paths: Sequence[str] = (), timeout: float | None = None
    ) -> HookReport:
        """Let the hook observe one thing: of staging and production, of an image or of paths in it.

        `timeout` is in seconds. Raises Refused where the hook does not show it.
        """
        variables = observation_variables(
            self.target, self.settings, run_id=self.run.run_id, words=word, image=image, paths=paths
        )
        bound = _look_bound(self.settings) if timeout is None else timeout
        report = self.run.hook.call("--observe", variables, timeout=bound)
        if not report.ok:
            raise Refused(f"the hook does not show {word}: {report.reason}")
        return report

    def read_answer(self, container: Container) -> Answer:
        """Return what one GET of staging's health path brings back now, at the container's own address."""
        if self.restricted:
            return self._observed_engine.read_answer(container.id)
        staging = self.target.staging
        end = self.run.host.reach(staging.port, own_address(container, staging.port))
        return read_answer(*end, staging.health_path, timeout=self.settings.timeouts.inspect)

    @property
    def anchor(self) -> Anchor:
        """The validated revision."""
        return self.run.anchor(self.target.repo)

    @once
    def compose_files(self) -> dict[str, bytes]:
        """What compose may read of the validated commit: path -> bytes."""
        bound = self.settings.timeouts.git
        return read_tree_files(self.run.clone(self.target.repo), self.anchor.revision, is_compose_input, timeout=bound)

    @once
    def build(self) -> Build:
        """How the validated commit says it is built."""
        bound = self.settings.timeouts.git
        build = read_build(self.compose_files, self.target, self.anchor.revision, timeout=bound)
        self.run.mask.learn(build.args)
        return build

    def begin_lease(self) -> None:
        """Ask for the lease and go on; what goes wrong is told by `lease`."""
        with suppress(ImagefreshError):
            _ = self._asked

    @once
    def _asked(self) -> Lease:
        return self.run.ask_lease(self.target, self.settings)

    @once
    def lease(self) -> Lease:
        """The lock of the host for this run, once no other run has it; every later call of the hook passes with it."""
        lease = self._asked
        with self.run.progress.follow(self.target.name, begins=False) as steps:
            lease.await_grant(on_line=partial(self._listen, steps))
        self._held = lease
        return lease

    @once
    def production_before(self) -> Production:
        """Production as it was when this target was first looked at."""
        return self.read_production()

    @once
    def container_before(self) -> Container | None:
        """The staging container as it was before the rebuild."""
        return self.engine.read_container(self.target.staging.container)

    @once
    def rebuild(self) -> HookReport:
        """Rebuild and restart staging from the validated revision, once per run, and return what the hook says."""
        variables = staging_variables(
            self.target, self.anchor, self.build, self.settings, clone=self._clone_on_host, run_id=self.run.run_id
        )
        self._require_compose_of_the_host()
        # What was there before is observed before anything changes.
        _ = self.production_before, self.container_before
        self._learn_secrets(self.container_before)
        # With the hook's first word its session is open: on a host that allows only one, the hook comes first.
        reading = self._meanwhile = Meanwhile(self._compare_compose)
        with self._sent() as pack:
            report = self._call("--build-staging", variables, _build_bound(self.settings), stdin=pack)
        if report.container_id:
            self._learn_secrets(self.engine.read_container(report.container_id))
        self.check = report.check
        self._keep_compose(reading, may_be_unknown=self.restricted or not report.ok)
        return report

    def _require_compose_of_the_host(self) -> None:
        """Raise Refused where the branch could change the host's compose file, which may mount anything."""
        folder, worktree = Path(self.settings.host.repo_path).resolve(), Path(self.anchor.worktree).resolve()
        if self.settings.host.is_local and (folder == worktree or worktree in folder.parents):
            raise Refused(
                f"the compose folder {folder} lies in the worktree of branch {self.anchor.branch}, expected a folder "
                "that no branch can change: it could mount the host's root; copy it, and set host.repo_path"
            )

    def _learn_secrets(self, container: Container | None) -> None:
        """Mask the secrets of a container from now on: its check may have printed them, and the hook repeats that."""
        if container is not None:
            self.run.mask.learn(container.environment)

    def _sent(self) -> AbstractContextManager[Sent]:
        """What the hook is sent to build from: nothing, or everything where the host has no clone."""
        if self._clone_on_host != SENT:
            return nullcontext(b"")
        clone = self.run.clone(self.target.repo)
        return packed_commit(clone, self.anchor.revision, timeout=self.settings.timeouts.build)

    def charge_rebuild(self, *, to_its_own_test: bool) -> float:
        """Return the seconds of the rebuild, once, that must not be charged to the test that waited for it."""
        seconds = 0.0 if self._charged else self.call_seconds.get("--build-staging", 0.0)
        self._charged = self._charged or seconds > 0
        if to_its_own_test:
            return 0.0
        self.unbilled_seconds += seconds
        return seconds

    def verify(
        self, expected_revision: str, expected_image: ImageId | None, *, source_image: str | None = None
    ) -> HookReport:
        """Ask the hook whether it would promote; nothing changes. Default of `source_image`: the staging reference."""
        variables = self._promotion(expected_revision, expected_image)
        if source_image is not None:
            variables["SOURCE_IMAGE"] = source_image
        return self._call("--verify", variables, _look_bound(self.settings))

    def verify_verdict(self, image_id: ImageId, verdict: str) -> HookReport:
        """Ask the hook whether it would promote the proven image with this verdict; nothing changes.

        It needs no lease: the gate is over.
        """
        variables = {**self._promotion(self.anchor.revision.hex, image_id, verdict), "SOURCE_IMAGE": image_id.digest}
        return self.run.hook.call("--verify", variables, timeout=_look_bound(self.settings))

    def self_test(self) -> HookReport:
        """Let the installed hook prove on its host that it refuses what it must refuse."""
        variables = self_test_variables(self.target, self.settings, run_id=self.run.run_id)
        return self._call("--self-test", variables, _look_bound(self.settings))

    def last_looks(self) -> dict[Link, Verdict]:
        """Look once more at what may have changed since; nothing where staging never came so far."""
        if self.staged is None:
            return {}
        image_id, clock, now = self.staged.image_id, self.engine.read_clock(), self.read_staging_container()
        settle = self.settings.settle
        return {
            Link.SAME_CONTAINER: check_same_container(self.staged, now, image_id, clock=clock, settle=settle),
            Link.ANCHOR_HOLDS: check_anchor(self.anchor, self.run.read_anchor(self.target.repo)),
            Link.PRODUCTION: check_production_untouched(self.production_before, self.read_production(), image_id),
        }

    def read_tenure(self) -> Tenure:
        """Return how long the lease has been held."""
        return self.lease.tenure(timeout=self.settings.timeouts.inspect)

    def promote(self, expected_image: ImageId, verdict: str = "", *, dry_run: bool = False) -> HookReport:
        """Promote the proven image of the validated revision to production; `verdict` is a packed one, "" for none.

        With `dry_run` the hook makes every decision of that, and changes nothing.
        """
        variables = self._promotion(self.anchor.revision.hex, expected_image, verdict)
        return self.operate("--verify" if dry_run else "--promote", variables)

    def operate(self, mode: str, variables: dict[str, str]) -> HookReport:
        """Call a mode for operators, which needs no more than its variables."""
        bound = _build_bound if mode in _CHANGES_OF_PRODUCTION else _look_bound
        return self._call(mode, variables, bound(self.settings))

    def tap_records(self) -> list[dict[str, str]]:
        """Return the tests of the staging check as plain text fields, fit for a test report that crosses processes."""
        return [{"name": test.name, "problem": test.problem} for test in (self.tap.tests if self.tap else ())]

    def promotion(self, expected_revision: str) -> dict[str, str]:
        """Return the variables of a promotion that only the revision binds."""
        return self._promotion(expected_revision, None)

    def read_content(self, image_id: ImageId) -> Content | None:
        """Return the declared content as commit and image have it; None where no content is declared."""
        if self.target.content:
            bounds = self.settings.timeouts
            folders = list(self.target.content.values())
            clone = self.run.clone(self.target.repo)
            tree = read_content(clone, self.anchor.revision, folders, timeout=bounds.git)
            self.content = read_image_content(
                self.engine, image_id, self.target, tree, run_id=self.run.run_id, timeout=bounds.content
            )
        return self.content

    def read_staging_container(self) -> Container | None:
        """Return the staging container as it is now."""
        return self.engine.read_container(self.target.staging.container)

    def read_changes(self, container: Container) -> tuple[Sequence[Change], Mapping[str, Place]]:
        """Return what changed in a container's files, and what it has at declared folders that this leaves in doubt.

        Nothing is looked at where no content is declared: the engine takes its time to compare.
        """
        if not self.target.content:
            return (), {}
        engine = self.engine
        changes = engine.read_changes(container.id)
        doubtful = folders_in_doubt(changes, self.target.content)
        return changes, {folder: engine.read_place(container.id, folder) for folder in doubtful}

    def read_production(self) -> Production:
        """Return production as it is now."""
        return self.engine.read_production(self.target.prod, self.target.prod_image, self.settings.host.repo_path)

    def run_staging_check(self, container: Container) -> CheckResult:
        """Run the staging check in a running container."""
        argv = self.target.staging.check_argv()
        self.check = self.engine.run_in_container(container.id, argv, timeout=self.settings.timeouts.check)
        return self.check

    @once
    def host_compose(self) -> HostCompose:
        """The host's compose folder, as compose there resolves it."""
        return self._read_host_compose()

    def _read_host_compose(self) -> HostCompose:
        host, bounds = self.settings.host, self.settings.timeouts
        return read_host_compose(self.run.host, host, self.target.staging.profile, timeout=bounds.inspect)

    def _compare_compose(self) -> tuple[HostCompose, ComposeEvidence]:
        folder, bounds = self.settings.host.repo_path, self.settings.timeouts
        found = self._read_host_compose()
        return found, compare_with_commit(found, self.compose_files, self.target, folder, timeout=bounds.git)

    def _keep_compose(self, reading: Meanwhile[tuple[HostCompose, ComposeEvidence]], *, may_be_unknown: bool) -> None:
        """Keep what was read of the compose files. What they say decides nothing, but it has to be known.

        A key that may ask the hook only cannot read them, and a hook that failed has the better reason: then a failure
        is told. Otherwise it is raised.
        """
        try:
            found, self.compose = reading.result()
            self.host_compose = found
            found.teach(self.run.mask)
        except ImagefreshError as error:
            if not may_be_unknown:
                raise
            problem = f"the host's compose configuration is unknown: {error}"
            self.compose = ComposeEvidence(self.target.staging.service, {}, "", problem)
        self.facts["compose"] = self.run.mask(self.compose.sentence())
        self.facts["compose_sha256"] = self.compose.sha256 or "unknown"

    def _promotion(self, expected_revision: str, expected_image: ImageId | None, verdict: str = "") -> dict[str, str]:
        return promotion_variables(
            self.target,
            self.settings,
            run_id=self.run.run_id,
            expected_revision=expected_revision,
            expected_image=expected_image,
            verdict=verdict,
        )

    def _call(self, mode: str, variables: dict[str, str], bound: float, stdin: Sent = b"") -> HookReport:
        self.hook_log.append(f"=== {mode}")
        started = time.monotonic()
        try:
            # A call that changes nothing is over in a moment: its steps are not worth a line each.
            with (_SILENT if mode in _LOOKS else self.run.progress).follow(self.target.name) as steps:
                listen, lease = partial(self._listen, steps), self._held
                return self.run.hook.call(mode, variables, timeout=bound, stdin=stdin, on_line=listen, lease=lease)
        finally:
            self.call_seconds[mode] = time.monotonic() - started

    def _listen(self, steps: Steps, line: str) -> None:
        """Keep one line of the hook's speech; tell an announced step from the output of its commands."""
        if self._meanwhile is not None:
            self._meanwhile.start()
        line = self.run.mask(line)
        self.hook_log.append(line)
        if line.startswith(_STEP):
            self._building = line.startswith(_BUILD_STEP)
            steps.step(line.removeprefix(_STEP))
        else:
            if self._building:
                self.build_log.append(line)
            steps.line(line)


def _look_bound(settings: Settings) -> float:
    """The bound of one call of the hook that only looks, in seconds."""
    return settings.timeouts.inspect * _LOOKS_PER_CALL


def _build_bound(settings: Settings) -> float:
    """The bound of one call of the hook that builds or restarts, in seconds."""
    bounds = settings.timeouts
    return bounds.git + bounds.build + bounds.health + bounds.check + settings.settle + _look_bound(settings)


def gate_bound(settings: Settings) -> float:
    """The sum of the bounds of everything that a complete gate does for one target, in seconds."""
    bounds = settings.timeouts
    looks = bounds.git + bounds.content + _HOOK_CALLS_PER_GATE * _look_bound(settings)
    return LOCK_SECONDS + _build_bound(settings) + looks


def is_compose_input(path: str) -> bool:
    """Say whether compose may read this file of a commit: YAML and env files."""
    name = path.rsplit("/", 1)[-1]
    return name.endswith((".yaml", ".yml", ".env")) or name.startswith(".env")


def _with_compose_folder(settings: Settings, clone: str) -> Settings:
    """Fill in the compose folder where the settings leave it to the clone."""
    if settings.host.repo_path:
        return settings
    return msgspec.structs.replace(settings, host=msgspec.structs.replace(settings.host, repo_path=clone))
