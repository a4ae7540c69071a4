"""Let something happen at one of the hook's commands that change the host: right before, in the middle, or right after.

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
TOOLS = ("docker", "mv", "rm", "sync")
# What changes production, its names, its files or what is written about it.
_CHANGES = (
    r"docker (.* (up|run) |image (tag|rm) |container (create|rm|start|stop|exec .* nginx -s) )"
    r"|(mv|rm) .*(\.env|/journal|/frozen|/proxy/)|sync .*(/verdicts|\.env)"
)

_WRAPPER = """#!/bin/bash -p
real={real} folder={folder}
pattern={changes}
line="{tool} $*"
[[ "${{line}} " =~ ${{pattern}} ]] || exec "${{real}}" "$@"
printf '%s\\n' "${{line//$'\\n'/ }}" >>"${{folder}}/calls"
mapfile -t plan <"${{folder}}/plan"
[[ "${{#plan[@]}}" == 3 ]] || exec "${{real}}" "$@"
moment=${{plan[0]}} pattern=${{plan[2]:-^$}}
[[ "$(wc -l <"${{folder}}/calls")" == "${{plan[1]}}" || "${{line}} " =~ ${{pattern}} ]] || exec "${{real}}" "$@"
: >"${{folder}}/plan"

act() {{
  local leader
  read -r leader </proc/$$/stat
  read -r _ _ _ leader _ <<<"${{leader##*) }}"
  printf '%s\\n' "${{line}}" >"${{folder}}/acted"
  bash "${{folder}}/action" "${{leader}}" >>"${{folder}}/action.log" 2>&1 </dev/null 9>&-
}}

[[ "${{moment}}" != before ]] || act
if [[ "${{moment}}" == during ]]; then
  "${{real}}" "$@" &
  sleep 0.2
  act
  wait "$!"
  exit
fi
"${{real}}" "$@"
status=$?
[[ "${{moment}}" != after ]] || act
exit "${{status}}"
"""

# What can happen to the hook; $1 is its PID, which is that of its session.
KILL_HOOK = 'kill -KILL "$1"\n'
KILL_SESSION = """kill -KILL "$1"
for process in /proc/[0-9]*; do
  process=${process#/proc/}
  read -r line <"/proc/${process}/stat" || continue
  read -r _ _ _ session _ <<<"${line##*) }"
  [[ "${process}" == "$$" || "${session}" != "$1" ]] || kill -KILL "${process}"
done 2>/dev/null
"""


def send(signal: str) -> str:
    """Return what sends a signal to the hook alone."""
    return f'kill -{signal} "$1"\n'


@dataclass(frozen=True)
class Point:
    """When something happens, and what: a script that gets the PID of the hook."""

    number: int = 0
    """The how many-th command that changes the host, from 1."""
    moment: str = "before"
    action: str = KILL_SESSION
    command: str = ""
    """Instead of a number: a pattern of the command."""


class Crashing:
    """A copy of an installed hook to which anything can happen at any point of its way."""

    def __init__(self, folder: Path, real: Mapping[str, Path], *, engine: str, docker_config: str = "") -> None:
        """Let the copy find the programs of `real`, by their names, first: those of TOOLS wrapped, others linked."""
        self._folder = folder
        tools = folder / "tools"
        tools.mkdir(parents=True)
        for tool, program in real.items():
            if tool not in TOOLS:
                (tools / tool).symlink_to(program)
                continue
            text = _WRAPPER.format(real=program, folder=folder, changes=f"'{_CHANGES}'", tool=tool)
            (tools / tool).write_text(text)
            (tools / tool).chmod(0o755)
        self.hook: Hook = install(folder / "hook", engine=engine, docker_config=docker_config, tools=tools)

    def call(self, mode: str, variables: Mapping[str, str], point: Point, *, timeout: float = 120) -> Outcome | None:
        """Call one mode; return its outcome, or None where it was killed."""
        for name in ("calls", "acted"):
            (self._folder / name).write_text("")
        (self._folder / "plan").write_text(f"{point.moment}\n{point.number}\n{point.command}\n")
        (self._folder / "action").write_text(point.action)
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
        if status < 0:
            return None
        return Outcome.of(subprocess.CompletedProcess(argv, status, output.read_bytes(), self.said.encode()))

    @property
    def policies(self) -> Path:
        """Where this copy looks for policies; not there unless a test makes it."""
        return self.hook.path.with_name("policies")

    @property
    def acted(self) -> str:
        """The command at which something happened in the last call; "" where it never came that far."""
        return (self._folder / "acted").read_text().strip()

    @property
    def calls(self) -> list[str]:
        """The commands that changed the host, or were about to, in the last call."""
        return (self._folder / "calls").read_text().splitlines()

    @property
    def said(self) -> str:
        """What the last call said to people."""
        return (self._folder / "errors").read_text(errors="replace")
