"""Kill the hook at one of its commands that change the host: right before it, in the middle of it, or right after it.

Programs of the host are replaced by wrappers that count such calls. The hook is the leader of its session, and the
session holds all that it started, whatever process groups `timeout` has made of it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.hook.harness import Hook, Outcome, install

MOMENTS = ("before", "during", "after")
VICTIMS = ("hook", "session")
TOOLS = ("docker", "mv", "rm", "sync")
# What changes production, its names, its files or what is written about it.
_CHANGES = (
    r"docker (.* up |image (tag|rm) |container (create|rm|stop) )"
    r"|(mv|rm) .*(\.env|/journal|/frozen)|sync .*(/verdicts|\.env)"
)

_WRAPPER = """#!/bin/bash -p
real={real} folder={folder}
pattern={changes}
line="{tool} $*"
[[ "${{line}} " =~ ${{pattern}} ]] || exec "${{real}}" "$@"
printf '%s\\n' "${{line//$'\\n'/ }}" >>"${{folder}}/calls"
read -r number moment victim <"${{folder}}/plan" || exec "${{real}}" "$@"
[[ "$(wc -l <"${{folder}}/calls")" == "${{number}}" ]] || exec "${{real}}" "$@"
: >"${{folder}}/plan"

session_of() {{
  local line
  read -r line <"/proc/$1/stat" || return 1
  read -r _ _ _ REPLY _ <<<"${{line##*) }}"
}}

end_it() {{
  local process leader
  session_of "$$"
  leader=${{REPLY}}
  printf 'killed\\n' >"${{folder}}/killed"
  kill -KILL "${{leader}}"
  [[ "${{victim}}" == session ]] || return 0
  for process in /proc/[0-9]*; do
    process=${{process#/proc/}}
    [[ "${{process}}" == "$$" ]] || ! session_of "${{process}}" || [[ "${{REPLY}}" != "${{leader}}" ]] ||
      kill -KILL "${{process}}"
  done 2>/dev/null
  kill -KILL "$$"
}}

[[ "${{moment}}" != before ]] || end_it
if [[ "${{moment}}" == during ]]; then
  "${{real}}" "$@" &
  sleep 0.2
  end_it
  wait "$!"
  exit
fi
"${{real}}" "$@"
status=$?
[[ "${{moment}}" != after ]] || end_it
exit "${{status}}"
"""


@dataclass(frozen=True)
class Point:
    """Where the hook is killed."""

    number: int
    """The how many-th command that changes the host, from 1; 0 for none."""
    moment: str = "before"
    victim: str = "hook"

    def __str__(self) -> str:
        return f"{self.moment} command {self.number}, {self.victim} killed"


class Crashing:
    """A copy of an installed hook that can be killed at any point of its way."""

    def __init__(self, folder: Path, real: Mapping[str, Path], *, engine: str, docker_config: str = "") -> None:
        """Let the copy find the programs of `real`, by their names, first: those of TOOLS wrapped, others linked."""
        self._folder = folder
        tools = folder / "tools"
        tools.mkdir(parents=True)
        for tool, program in real.items():
            if tool not in TOOLS:
                (tools / tool).symlink_to(program)
                continue
            text = _WRAPPER.format(real=program, folder=folder, changes=_quote(_CHANGES), tool=tool)
            (tools / tool).write_text(text)
            (tools / tool).chmod(0o755)
        self.hook: Hook = install(folder / "hook", engine=engine, docker_config=docker_config, tools=tools)

    def call(self, mode: str, variables: Mapping[str, str], point: Point, *, timeout: float = 120) -> Outcome | None:
        """Call one mode; return its outcome, or None where it was killed. AssertionError unless it came that far."""
        for name in ("calls", "killed", "plan"):
            (self._folder / name).write_text("")
        (self._folder / "plan").write_text(f"{point.number} {point.moment} {point.victim}\n" if point.number else "")
        output = self._folder / "output"
        with output.open("wb") as stdout, (self._folder / "errors").open("wb") as stderr:
            argv = [str(self.hook.path), mode]
            process = subprocess.Popen(
                argv,
                env=dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
            status = process.wait(timeout)
        killed = bool((self._folder / "killed").read_text())
        assert killed == bool(point.number), (point, self.calls, self.said)
        if killed:
            return None
        return Outcome.of(subprocess.CompletedProcess(argv, status, output.read_bytes(), self.said.encode()))

    @property
    def calls(self) -> list[str]:
        """The commands that changed the host, or were about to, in the last call."""
        return (self._folder / "calls").read_text().splitlines()

    @property
    def said(self) -> str:
        """What the last call said to people."""
        return (self._folder / "errors").read_text(errors="replace")


def _quote(pattern: str) -> str:
    return "'" + pattern + "'"
