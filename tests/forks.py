"""Sessions by the hundred: each a process of its own, forked from one that has imported pytest and the plugin already.

Only what an interpreter does before it reaches pytest differs from a fresh process; a session that is about that is run
in a fresh one (`tests.support.run`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_SERVER = """
import gc, json, os, runpy, sys
import pytest, docker, hypothesis, paramiko, msgspec, xdist.dsession
import pytest_imagefresh.session, tests.fakes

gc.freeze()  # pytest collects garbage at its end: what is here already is none
for line in sys.stdin:
    argv, folder, environment, output = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    os._exit(0)

# The child. It ends as a fresh process would: by leaving this script.
log, nothing = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), os.open(os.devnull, os.O_RDONLY)
for stream, descriptor in ((nothing, 0), (log, 1), (log, 2)):
    os.dup2(stream, descriptor)
os.chdir(folder)
os.environ.clear()
os.environ.update(environment)
sys.path[:0] = ["", *environment["PYTHONPATH"].split(":")]
sys.argv = [pytest.__file__, *argv]
del line, argv, folder, environment, output, child, log, nothing, stream, descriptor
runpy.run_module("pytest", run_name="__main__", alter_sys=True)
"""


class Forks:
    """A process that forks one session after the other. A context manager: at its end the process is gone."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """`environment` is that of the forking process; each session has its own."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *raised: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> tuple[int, str]:
        """Return the exit status of one pytest session and what it wrote to both streams."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        output = cwd / "output.txt"
        request = json.dumps([list(argv), os.fspath(cwd), dict(env), os.fspath(output)])
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()), output.read_text(errors="replace")
