"""Measure what a gate costs over the bare commands: `python -m bench [--runs N]`.

Everything is run in turns, so that a machine that is busy for a while slows all of them down alike. The first turn
warms up and does not count. Nothing is judged: the table shows medians beside budgets, and .bench/ keeps every figure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.gap import Gap  # noqa: E402
from bench.scene import LARGE_MB, SMALL_MB, Context, Scene  # noqa: E402
from tests.crowd import RATE  # noqa: E402
from tests.hook.harness import RealHost  # noqa: E402
from tests.hook.proxied import ProxiedHost  # noqa: E402
from tests.sshd import Sshd  # noqa: E402
from tests.support import Engine, Orchestrator, Ports, start_engine  # noqa: E402

RESULTS = ROOT / ".bench"
LEAST_RUNS = 7

# Wide enough for the table, whatever the terminal is: a figure that is cut is none.
console = Console(highlight=False, width=150)


@dataclass
class Measured:
    """One thing that is measured."""

    name: str
    seconds: list[float] = field(default_factory=list)
    """How long each counted run took."""
    base: str = ""
    """What it is compared with, by name; "" for nothing."""
    budget: float | None = None
    """The most that its median may be above the base's, in seconds; without a base the most that it may be itself."""
    ratio_budget: float | None = None
    """The most that its median may be, as a multiple of the base's."""
    most_failed: int | None = None
    """Where failed requests are counted instead of seconds: the most of them in any run."""
    note: str = ""

    @property
    def median(self) -> float:
        """The median of the counted runs, in seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Subject:
    """How something is run once."""

    measured: Measured
    run: Callable[[], float | None]
    """Returns the seconds that count, or None where all that it took counts."""
    repeat: int = 1
    """How often in each turn: what takes milliseconds needs more runs than what takes seconds."""


def subjects(scene: Scene, large: Context, small: Context, gap: Gap, proxied: Gap) -> list[Subject]:
    """Return everything that is measured, in the order of one turn."""
    floor, folder, silence = "bare commands", "build, folder", "gap, compose"
    gate, proof = 0.6, "budget without the pause proof"
    return [
        Subject(Measured(floor, note="export, build, compose up, poll, exec, in one shell"), scene.bare),
        Subject(Measured("gate, local", base=floor, note="with the pause proof"), scene.gate("local")),
        Subject(Measured("gate, local, no pause", base=floor, budget=gate, note=proof), scene.gate("local-unpaused")),
        Subject(Measured("gate, ssh", base=floor, note="with the pause proof"), scene.gate("ssh")),
        Subject(Measured("gate, ssh, no pause", base=floor, budget=gate, note=proof), scene.gate("ssh-unpaused")),
        Subject(
            Measured("one test again, local", budget=0.8, note="--gate-reuse, whole process"), scene.again("local")
        ),
        Subject(Measured("one test again, ssh", budget=0.8, note="--gate-reuse, whole process"), scene.again("ssh")),
        Subject(Measured("pytest without the plugin", note="an empty test, -p no:imagefresh"), scene.without, 3),
        Subject(
            Measured(
                "pytest, plugin unused", base="pytest without the plugin", budget=0.005, note="the same, without -p"
            ),
            scene.unused,
            3,
        ),
        Subject(Measured(folder, note=f"{LARGE_MB} MB, one file changed, as it lies there"), large.bare),
        Subject(
            Measured("build, hook", base=folder, ratio_budget=1.15, note="the same, less what compose takes alone"),
            large.hook_beside_compose(),
        ),
        Subject(
            Measured("build, hook, proven", base=folder, note="and what is left of its step proof, settle 0"),
            large.hook_beside_compose("proof"),
        ),
        Subject(
            Measured("export, from nothing", budget=1.0, note=f"{SMALL_MB} MB, every file written and hashed"),
            small.hook("list", "export", afresh=True),
        ),
        Subject(
            Measured(silence, note=f"no answer to {RATE} requests a second while .env is written and compose up"),
            gap.compose,
        ),
        Subject(
            Measured("gap, promotion", base=silence, note="the same, promoted by the hook, settle 0"), gap.promotion
        ),
        Subject(
            Measured("gap, proxy", base=silence, note="the same, behind nginx, drained for 1 s"), proxied.promotion
        ),
        Subject(
            Measured("failed, proxy", most_failed=0, note=f"how many of {RATE} requests a second failed, the same"),
            proxied.failures,
        ),
    ]


def measure(listed: list[Subject], runs: int) -> list[Measured]:
    """Run everything in turns, the first one uncounted; return what was measured."""
    for turn in range(runs + 1):
        console.print(f"[dim]turn {turn} of {runs}{' (warm-up)' if turn == 0 else ''}[/dim]")
        for again in range(max(subject.repeat for subject in listed)):
            for subject in [each for each in listed if again < each.repeat]:
                began = time.perf_counter()
                counted = subject.run()
                if turn:
                    subject.measured.seconds.append(time.perf_counter() - began if counted is None else counted)
    return [subject.measured for subject in listed]


def judged(measured: Measured, base: Measured | None) -> tuple[str, str]:
    """Return the budget and whether it is met, as the table shows them."""
    over = measured.median - (base.median if base else 0.0)
    if measured.ratio_budget is not None and base:
        shown, met = f"{measured.ratio_budget:g}x", measured.median / base.median <= measured.ratio_budget
    elif measured.most_failed is not None:
        shown, met = f"{measured.most_failed} failed", max(measured.seconds) <= measured.most_failed
    elif measured.budget is not None:
        shown, met = f"{'+' if base else ''}{measured.budget:g}", over <= measured.budget
    else:
        return "", ""
    return shown, "within" if met else "[red]over[/red]"


def table(results: list[Measured]) -> Table:
    """Return the figures: medians, spread, and how far each is above what it is compared with."""
    shown = Table("what", "runs", "median s", "min to max", "over base s", "ratio", "budget", "", "note")
    known = {measured.name: measured for measured in results}
    for measured in results:
        base = known.get(measured.base)
        over = measured.median - (base.median if base else 0.0)
        shown.add_row(
            measured.name,
            str(len(measured.seconds)),
            f"{measured.median:.3f}",
            f"{min(measured.seconds):.3f} to {max(measured.seconds):.3f}",
            f"{over:+.3f}" if base else "",
            f"{measured.median / base.median:.2f}" if base else "",
            *judged(measured, base),
            measured.note,
        )
    return shown


def keep(results: list[Measured], about: Mapping[str, object]) -> Path:
    """Write every figure as JSON below .bench/; return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.json"
    rows = [{**asdict(measured), "median": measured.median} for measured in results]
    path.write_text(json.dumps({**about, "results": rows}, indent=2) + "\n")
    return path


def make_copy(stack: ExitStack, engine: Engine, folder: Path, ports: Ports) -> Orchestrator:
    """Return a copy of the example service that goes with the stack."""
    unique = f"if-{secrets.token_hex(4)}"
    staging, prod = ports.claim(), ports.claim()
    copy = Orchestrator(engine, folder, branch="feature/bench", unique=unique, staging_port=staging, prod_port=prod)
    stack.callback(copy.remove)
    return copy


def main() -> int:
    """Measure, print, keep. Raises RuntimeError where something that is measured does not end as it should."""
    parser = argparse.ArgumentParser(prog="bench", description="what a gate costs over the bare commands")
    parser.add_argument("--runs", type=int, default=LEAST_RUNS, help=f"counted runs of each, at least {LEAST_RUNS}")
    runs = max(parser.parse_args().runs, LEAST_RUNS)
    engine, ports = start_engine(), Ports()
    with ExitStack() as stack:
        stack.callback(ports.release)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imagefresh-bench-")))
        names = ("usual", "large", "small", "gap", "proxied")
        usual, large, small, gap, proxied = (make_copy(stack, engine, folder / name, ports) for name in names)
        sshd = stack.enter_context(Sshd(folder / "sshd"))
        scene = Scene(usual, folder / "usual", sshd)
        many_files, fewer = Context(large, folder / "large", LARGE_MB), Context(small, folder / "small", SMALL_MB)
        recreated = Gap(RealHost(gap, folder / "gap" / "hook"))
        switched = Gap(ProxiedHost(proxied, folder / "proxied" / "hook"))
        listed = subjects(scene, many_files, fewer, recreated, switched)
        results = measure(listed, runs)
        version = engine.docker("version", "--format", "{{.Client.Version}} {{.Server.Version}}")
    about = {"python": platform.python_version(), "processors": os.cpu_count(), "docker": version}
    console.print(table(results))
    console.print(f"{about}; every figure: {keep(results, about)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
