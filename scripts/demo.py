"""The main job, for real: gate a commit, promote it, see a stale image refused, gate and promote the next commit.

Everything is below .demo/ of the project; containers and images are taken away at the end.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pytest_imagefresh import build_deploy_command  # noqa: E402
from pytest_imagefresh.core.contract import render_hook  # noqa: E402
from tests.support import Orchestrator, Ports, ask, run, start_engine  # noqa: E402

DEMO = ROOT / ".demo"
BRANCH = "feature/demo"
console = Console(highlight=False)


def main() -> int:
    """Run the demo; return its exit status: 0 exactly when every step ended as it should."""
    begun = time.monotonic()
    shutil.rmtree(DEMO, ignore_errors=True)
    announce("An engine and a base image")
    engine = start_engine()
    ports = Ports()
    names = {"branch": BRANCH, "unique": f"imagefresh-demo-{secrets.token_hex(3)}"}
    copy = Orchestrator(engine, DEMO, **names, staging_port=ports.claim(), prod_port=ports.claim())
    try:
        table = play(copy)
    finally:
        copy.remove()
        ports.release()
    console.print(table)
    console.print(
        f"JUnit reports: {DEMO}/gate-1.xml, {DEMO}/gate-2.xml\nevidence:      {DEMO}/.imagefresh/orchestrator/"
    )
    console.print(f"[green]The demo ended as it should, after {time.monotonic() - begun:.0f} s.[/green]")
    return 0


def play(copy: Orchestrator) -> Table:
    """Play the story on one copy of the example service. Raises SystemExit where a step ends otherwise than told."""
    install(copy)
    table = Table("commit", "image ID", "staging", "prod", title="what ran after each promotion")
    announce("Commit 1: the gate")
    first = copy.commit({"src/orchestrator/NEWS": "one\n"}, "commit 1")
    gate(1)
    announce("Commit 1: promotion")
    imagefresh("promote")
    table.add_row(*observe(copy, first))
    announce("Commit 2, while staging still runs commit 1: the deploy command is refused")
    second = copy.commit({"src/orchestrator/NEWS": "two\n"}, "commit 2")
    deploy_stale(copy, first)
    announce("Commit 2: the gate")
    gate(2)
    announce("Commit 2: promotion")
    imagefresh("promote")
    table.add_row(*observe(copy, second))
    return table


def install(copy: Orchestrator) -> None:
    """Install the hook for this engine, and write the settings."""
    hook = DEMO / "lib" / "deploy-hook.sh"
    hook.parent.mkdir()
    constants = {"ENGINE": copy.engine.docker_host, "DOCKER_CONFIG_DIR": copy.engine.docker_config}
    hook.write_text(render_hook((ROOT / "hooks/deploy-hook.sh").read_text(), constants))
    hook.chmod(0o755)
    check = {"check_mode": "full", "check_format": "tap"}
    settings = copy.settings_toml(host={"hook": str(hook)}, targets={"orchestrator": {"staging": check}})
    (DEMO / "imagefresh.toml").write_text(settings)
    os.chdir(DEMO)


def gate(number: int) -> None:
    """Run the complete gate, its output visible."""
    report = f"--junitxml=gate-{number}.xml"
    words = ["-m", "pytest", "--color=yes", "-p", "no:cacheprovider", f"--rootdir={DEMO}", "-c", os.devnull]
    expect(0, sys.executable, *words, str(ROOT / "gates"), "--repo", "orchestrator", "--branch", BRANCH, report)


def imagefresh(command: str) -> None:
    """Run one command of the command line, its output visible."""
    expect(0, str(Path(sys.executable).with_name("imagefresh")), command, "--repo", "orchestrator", "--branch", BRANCH)


def expect(status: int, *argv: str) -> None:
    """Run a command with its output visible; end the demo unless it ends with this exit status."""
    console.print(
        f"[dim]$ {' '.join(Path(argv[0]).name if place == 0 else word for place, word in enumerate(argv))}[/dim]"
    )
    observed = os.spawnv(os.P_WAIT, argv[0], list(argv))
    if observed != status:
        raise SystemExit(f"demo: {Path(argv[0]).name} ended with {observed}, expected {status}; see its output above")


def deploy_stale(copy: Orchestrator, promoted: str) -> None:
    """Try what a pipeline without a gate would do, and see the hook refuse it and production stay."""
    done = run(build_deploy_command("orchestrator", BRANCH), check=False)
    reason = [line for line in done.stderr.splitlines() if "refused" in line][-1:] or [done.stderr]
    console.print(f"the hook ended with {done.returncode}: [yellow]{reason[0]}[/yellow]")
    serving = ask(copy.prod_port, "/version")["revision"]
    if done.returncode != 1 or serving != promoted:
        raise SystemExit(
            f"demo: expected a refusal and prod at {promoted}, observed exit {done.returncode} and {serving}"
        )
    console.print(f"prod still serves {promoted[:12]}")


def observe(copy: Orchestrator, commit: str) -> tuple[str, str, str, str]:
    """Return one row of the table: what staging and prod answer. Raises SystemExit where prod serves another commit."""
    image = copy.engine.docker("container", "inspect", "--format", "{{.Image}}", copy.prod_container)
    staging, prod = (str(ask(port, "/version")["revision"]) for port in (copy.staging_port, copy.prod_port))
    if prod != commit:
        raise SystemExit(f"demo: prod serves {prod}, expected {commit}")
    return commit[:12], image.removeprefix("sha256:")[:12], staging[:12], prod[:12]


def announce(text: str) -> None:
    """Print the heading of one step."""
    console.rule(f"[bold]{text}", align="left")


if __name__ == "__main__":
    sys.exit(main())
