"""Take each guard out in a copy of the tree, and see that tests notice: `python -m tests.faults.mutants [WORD ...]`.

A mutant that survives is a guard whose removal nothing notices. Words choose mutants by name.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.guards import GUARDS, Guard
from tests.support import ROOT, Engine, run, start_engine

AT_ONCE = 2
SECONDS = 600
LEFT_OUT = shutil.ignore_patterns(
    ".git",
    ".venv",
    ".engine*",
    ".demo",
    ".faults",
    ".crash",
    ".bench",
    ".cache",
    ".imagefresh",
    "*_cache",
    "__pycache__",
)

# What tests are called is no markup.
console = Console(highlight=False, markup=False)


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant."""

    guard: Guard
    word: str
    """caught, SURVIVED, or STALE where the text is not there any more or the tests cannot even be collected."""
    told: str
    """The first test that noticed, or what was wrong."""
    seconds: float


def try_mutant(guard: Guard, folder: Path, engine: Engine) -> Outcome:
    """Take one guard out in a copy of the tree, and run the tests that must notice."""
    began = time.monotonic()
    word, told = _try(guard, folder, engine)
    return Outcome(guard, word, told, time.monotonic() - began)


def _try(guard: Guard, folder: Path, engine: Engine) -> tuple[str, str]:
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
    path = tree / guard.file
    text = path.read_text()
    if text.count(guard.text) != 1:
        return "STALE", f"{guard.file}: expected the text once, observed it {text.count(guard.text)} times"
    path.write_text(text.replace(guard.text, guard.without))
    return _judge(*_run_tests(guard, tree, folder, engine))


def _run_tests(guard: Guard, tree: Path, folder: Path, engine: Engine) -> tuple[int, str]:
    words = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"--basetemp={folder / 'tmp'}", "--timeout=300"]
    # The copy uses the engine of this tree, and starts none of its own.
    env = {**engine.env, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = run([sys.executable, *words, *guard.tests], cwd=tree, env=env, check=False, timeout=SECONDS)
    return done.returncode, done.stdout + done.stderr


def _judge(status: int, output: str) -> tuple[str, str]:
    failed = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if status == 1 and failed:
        return "caught", failed[0].split(" - ")[0].removeprefix("FAILED ")
    if status == 0:
        return "SURVIVED", "nothing noticed"
    return "STALE", f"pytest ended with {status}: {(output.strip().splitlines() or ['nothing'])[-1]}"


def show(outcomes: list[Outcome]) -> None:
    """Print the table."""
    table = Table("guard", "file", "outcome", "noticed by", "s")
    for outcome in outcomes:
        style = None if outcome.word == "caught" else "red"
        seconds = f"{outcome.seconds:.0f}"
        table.add_row(outcome.guard.name, outcome.guard.file, outcome.word, outcome.told, seconds, style=style)
    console.print(table)
    caught = sum(outcome.word == "caught" for outcome in outcomes)
    console.print(f"{caught} of {len(outcomes)} mutants were caught")


def main(words: list[str]) -> int:
    """Try the chosen mutants, all of them without a word. Return 0 exactly when every one was caught."""
    chosen = [guard for guard in GUARDS if not words or any(word in guard.name for word in words)]
    engine = start_engine()

    def attempt(guard: Guard) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="imagefresh-mutant-") as folder:
            outcome = try_mutant(guard, Path(folder), engine)
        console.print(f"{outcome.word:8}  {guard.name}  ({outcome.seconds:.0f} s)")
        return outcome

    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(attempt, chosen))
    show(outcomes)
    return 0 if outcomes and all(outcome.word == "caught" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
