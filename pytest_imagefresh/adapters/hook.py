"""The caller's side of the deploy hook: one mode, its variables in, its report out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pytest_imagefresh.adapters.command import Sent
from pytest_imagefresh.adapters.host import Host
from pytest_imagefresh.core import settings
from pytest_imagefresh.core.contract import VERSION, hook_command, parse_report, render_hook
from pytest_imagefresh.core.errors import EvidenceError, Refused
from pytest_imagefresh.core.evidence import HookReport

_NOT_FOUND = (126, 127)
_CONTRACT_TIMEOUT = 30.0


class InstalledHook:
    """The deploy hook of one host. Which variables a mode takes: `core.contract`."""

    def __init__(self, host: Host, path: str) -> None:
        self._host = host
        self.path = path
        """Where the hook is, on the host."""

    def call(
        self,
        mode: str,
        variables: Mapping[str, str],
        *,
        timeout: float,
        stdin: Sent = b"",
        on_line: Callable[[str], None] | None = None,
    ) -> HookReport:
        """Run one mode to its end. `timeout` is in seconds; `on_line` gets each line of its speech as it comes.

        `stdin` is the pack that `--build-staging` wants where BUILD_CONTEXT is `-`.

        Raises EvidenceError when the hook could not find out (exit 11), is missing, or brings back no valid report.
        """
        done = self._host.run(hook_command(self.path, mode, variables), timeout=timeout, stdin=stdin, on_line=on_line)
        if done.status in _NOT_FOUND and not done.stdout.strip():
            raise EvidenceError(f"no runnable hook at {self.path} on {self._host.name}; {_INSTALL}")
        report = parse_report(done.stdout, done.status, mode)
        if report.kind == "unknown":
            raise EvidenceError(f"the hook could not find out: {report.reason}")
        return report

    def check_contract(self) -> None:
        """Raise Refused unless the hook speaks our contract version, EvidenceError where it does not answer at all."""
        done = self._host.run(hook_command(self.path, "--contract", {}), timeout=_CONTRACT_TIMEOUT)
        observed = done.stdout.decode(errors="replace").strip()
        if done.status in _NOT_FOUND:
            raise EvidenceError(f"no runnable hook at {self.path} on {self._host.name}; {_INSTALL}")
        if done.status != 0 or observed != VERSION:
            raise Refused(
                f"the hook at {self.path} on {self._host.name} answers --contract with {observed[:80]!r} "
                f"(exit {done.status}), "
                f"expected {VERSION!r}; install the hook of this plugin's version"
            )


_INSTALL = 'install deploy-hook.sh there, correct host.hook, or set host.hook = "bundled"'


@contextmanager
def bundled_hook(host: Host, script: Path, of: settings.Host, *, timeout: float) -> Iterator[str]:
    """Send our own hook to the host, bound to the settings' engine; yield its path there, remove it at the end."""
    constants = {"ENGINE": of.docker_host, "DOCKER_CONFIG_DIR": of.docker_config}
    text = render_hook(script.read_text(encoding="utf-8"), constants)
    with host.put(text.encode(), timeout=timeout) as path:
        yield path
