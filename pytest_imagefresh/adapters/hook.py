"""The caller's side of the deploy hook: one mode, its variables in, its report out; and the lease of a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pytest_imagefresh.adapters.command import Completed, Sent
from pytest_imagefresh.adapters.dialogue import Dialogue
from pytest_imagefresh.adapters.host import Host
from pytest_imagefresh.core import settings
from pytest_imagefresh.core.contract import (
    UNKNOWN_MODE,
    VERSION,
    Grant,
    hook_command,
    parse_grant,
    parse_report,
    render_hook,
    request_command,
)
from pytest_imagefresh.core.errors import EvidenceError, Refused
from pytest_imagefresh.core.evidence import HookReport, Tenure

POLICY_FOLDER = "/etc/imagefresh"
"""Where a host keeps the policy that its installed hook obeys."""

LOCK_SECONDS = 660.0
"""How long a run waits for another one at most: a little longer than the hook itself does."""

HEARTBEAT_SECONDS = 5.0
"""How often a lease is told that we live; the hook lets go of it after 20 s of silence."""

_NOT_FOUND = (126, 127)
_CONTRACT_TIMEOUT = 30.0
_RELEASE_SECONDS = 5.0


class InstalledHook:
    """The deploy hook of one host. Which variables a mode takes: `core.contract`."""

    def __init__(self, host: Host, path: str, *, ours: str = "deploy-hook.sh", restricted: bool = False) -> None:
        self._host = host
        self._ours = ours
        self._restricted = restricted
        self.path = path
        """Where the hook is, on the host. `ours` is this plugin's own, to be named in advice; `restricted` says that
        the host runs it by itself and is only told mode and variables."""

    def call(
        self,
        mode: str,
        variables: Mapping[str, str],
        *,
        timeout: float,
        stdin: Sent = b"",
        on_line: Callable[[str], None] | None = None,
        lease: Lease | None = None,
    ) -> HookReport:
        """Run one mode to its end. `timeout` is in seconds; `on_line` gets each line of its speech as it comes.

        `stdin` is the pack that `--build-staging` wants where BUILD_CONTEXT is `-`. With a lease the mode passes
        through its lock; the lease ends where it cannot be known how the mode ended, and so does whatever may still
        work on the host. Raises EvidenceError when the hook could not find out (exit 11), is missing, or brings back no
        valid report, Refused when it does not know the mode.
        """
        if lease is not None:
            variables = {**variables, "LEASE": lease.token}
        argv = self._command(mode, variables)
        try:
            done = self._host.run(argv, timeout=timeout, stdin=stdin, on_line=on_line)
        except EvidenceError:
            if lease is not None:
                lease.give_up()
            raise
        return self._report(mode, done.status, done.stdout)

    def lease(self, variables: Mapping[str, str], *, patience: float) -> Lease:
        """Ask for the lock of the compose folder, and go on; `patience` as in `Lease`."""
        dialogue = self._host.start(self._command("--lease", variables))
        return Lease(dialogue, lambda status, lines: self._report("--lease", status, _joined(lines)), patience=patience)

    def check_contract(self) -> None:
        """Raise Refused unless the hook speaks our contract version, EvidenceError where it does not answer at all."""
        done = self._host.run(self._command("--contract", {}), timeout=_CONTRACT_TIMEOUT)
        observed = done.stdout.decode(errors="replace").strip()
        if done.status in _NOT_FOUND:
            raise EvidenceError(self._not_found())
        if self._restricted and done.status == 1:
            raise Refused(f"the hook on {self._host.name} takes nothing from this key: {self._reason(done)}")
        if done.status != 0 or observed != VERSION:
            raise Refused(
                f"the hook at {self.path} on {self._host.name} answers --contract with {observed[:80]!r} "
                f"(exit {done.status}), expected {VERSION!r}; {self._advice(observed)}"
            )

    def _command(self, mode: str, variables: Mapping[str, str]) -> list[str]:
        if self._restricted:
            return request_command(mode, variables)
        return hook_command(self.path, mode, variables)

    def _reason(self, done: Completed) -> str:
        """Return why the hook did not even say its version."""
        try:
            return parse_report(done.stdout, done.status, "--contract").reason
        except EvidenceError as error:
            return str(error)

    def _advice(self, observed: str) -> str:
        if observed.isascii() and observed.isdigit() and int(observed) > int(VERSION):
            return "it is newer than this plugin: update pytest-imagefresh here"
        return f"it is older than this plugin, or no deploy hook: install {self._ours} there"

    def _report(self, mode: str, status: int | None, stdout: bytes) -> HookReport:
        if status is None:
            raise EvidenceError(
                f"the hook's {mode} brought no exit status; look at {self._host.name}, and run it again"
            )
        if status in _NOT_FOUND and not stdout.strip():
            raise EvidenceError(self._not_found())
        report = parse_report(stdout, status, mode)
        if report.cause == UNKNOWN_MODE:
            raise Refused(
                f"the hook at {self.path} on {self._host.name} does not know {mode}: it is older than this plugin; "
                f"install {self._ours} there"
            )
        if report.kind == "unknown":
            raise EvidenceError(f"the hook could not find out: {report.reason}")
        return report

    def _not_found(self) -> str:
        return (
            f"no runnable hook at {self.path} on {self._host.name}; "
            f'install {self._ours} there, correct host.hook, or set host.hook = "bundled"'
        )


def _joined(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


class Lease:
    """The lock of one compose folder, held on the host for as long as this process lives and gets on.

    A thread sends the heartbeats. They end with this object, with the process, and `patience` seconds after the last
    `keep`: a session that hangs must not hold up others for ever.
    """

    def __init__(
        self, dialogue: Dialogue, report: Callable[[int | None, list[str]], HookReport], *, patience: float
    ) -> None:
        """`report` reads the end of the dialogue."""
        self._dialogue = dialogue
        self._report = report
        self._patience = patience
        self._grant: Grant | None = None
        self._granted = 0.0
        self._lost = ""
        self._over = threading.Event()
        self.keep()
        threading.Thread(target=self._beat, name="imagefresh-lease", daemon=True).start()

    @property
    def token(self) -> str:
        """What lets the run's own calls through. Raises EvidenceError when the lease is lost, or was not granted."""
        if self._grant is None or self._lost or self._dialogue.over:
            raise self._loss(self._lost or "it has ended")
        return self._grant.lease

    def await_grant(self, *, on_line: Callable[[str], None] | None = None) -> None:
        """Wait until the lock is held. Twice is once; `on_line` hears who else holds it.

        Raises EvidenceError where the host could not find out or another run goes on for too long, else Refused.
        """
        if self._grant is not None:
            return
        line = self._dialogue.answer(timeout=LOCK_SECONDS, on_line=on_line)
        self._grant = parse_grant(line) if line is not None else None
        if self._grant is None:
            status, lines = self._dialogue.finish(timeout=_RELEASE_SECONDS)
            self._over.set()
            report = self._report(status, [*([line] if line is not None else []), *lines])
            raise Refused(f"the hook grants no lease: {report.reason}")
        self._granted = time.monotonic()

    def tenure(self, *, timeout: float) -> Tenure:
        """Ask the holder on the host how long it has held the lock. `timeout` is in seconds.

        Raises EvidenceError when the lease is lost, or nobody answers for it.
        """
        token, needed = self.token, time.monotonic() - self._granted
        try:
            self._dialogue.say("held")
            line = self._dialogue.answer(timeout=timeout)
        except EvidenceError as error:
            raise self._loss(str(error)) from error
        grant = parse_grant(line) if line is not None else None
        if grant is None or grant.lease != token:
            raise self._loss(f"its holder answers {line or 'nothing'}")
        return Tenure(grant.held, needed)

    def keep(self) -> None:
        """Go on for another `patience` seconds."""
        self._until = time.monotonic() + self._patience

    def give_up(self) -> None:
        """End it at once, and with it what it lets through."""
        self._lost = self._lost or "a call on the host went astray, so that it was given up"
        self._over.set()
        self._dialogue.end()

    def close(self) -> None:
        """Give it back. Twice is once; never raises."""
        if not self._over.is_set():
            self._over.set()
            with suppress(EvidenceError):
                self._dialogue.say("release")
                self._dialogue.finish(timeout=_RELEASE_SECONDS)
            self._dialogue.end()

    def _beat(self) -> None:
        with suppress(EvidenceError):
            while not self._over.wait(HEARTBEAT_SECONDS) and time.monotonic() < self._until:
                self._dialogue.say("")

    @staticmethod
    def _loss(reason: str) -> EvidenceError:
        return EvidenceError(f"the lease of this run was lost: {reason}; expected it to last; run the gate again")


@contextmanager
def bundled_hook(
    host: Host, script: Path, of: settings.Host, *, timeout: float, policy: str = POLICY_FOLDER
) -> Iterator[str]:
    """Send our own hook to the host, bound to the settings' engine; yield its path there, remove it at the end.

    Raises Refused where the host has a policy: only the hook that is installed there obeys it.
    """
    refuse_policy(host, policy, timeout=timeout)
    constants = {"ENGINE": of.docker_host, "DOCKER_CONFIG_DIR": of.docker_config}
    text = render_hook(script.read_text(encoding="utf-8"), constants)
    with host.put(text.encode(), timeout=timeout) as path:
        yield path


def refuse_policy(host: Host, folder: str, *, timeout: float) -> None:
    """Raise Refused unless a folder is known not to be there; EvidenceError where that cannot be known."""
    status = host.run(["test", "-e", folder], timeout=timeout).status
    if status == 0:
        raise Refused(
            f'{host.name} has a policy in {folder}, which host.hook = "bundled" would pass by; '
            "set host.hook to the hook that is installed there"
        )
    if status != 1:
        raise EvidenceError(f"{host.name} does not say whether {folder} is there: test ended with {status}")
