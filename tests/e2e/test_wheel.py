"""The product as it is installed: a wheel in an environment of its own, far from the checkout."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from pytest_imagefresh.core.chain import Link
from tests.e2e.conftest import MakePipeline
from tests.gate_folder import Ended
from tests.support import ROOT, run

SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "pytest_imagefresh", "gates", "hooks")


def build_wheel(folder: Path) -> Path:
    """Build the wheel of the checkout, without network, out of a copy; return its path."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in SHIPPED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "dist"], cwd=source)
    [wheel] = (folder / "dist").glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """Install a wheel into a fresh environment that sees the test's libraries, but not the checkout; return bin/."""
    run([sys.executable, "-m", "venv", "--without-pip", folder])
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        folder / "bin/python",
        "--quiet",
        "--disable-pip-version-check",
    ]
    run([*pip, "install", "--no-deps", "--no-index", wheel])
    [packages] = folder.glob("lib/python*/site-packages")
    # A path file that is reached through another one is not read: the checkout's own stays unseen.
    (packages / "libraries.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    return folder / "bin"


def test_an_installed_wheel_gates_and_promotes_over_ssh(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    pipeline = make_pipeline("ssh")
    programs = install(build_wheel(tmp_path / "build"), tmp_path / "venv")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copy(pipeline.folder / "imagefresh.toml", folder)
    revision = pipeline.copy.revision

    def execute(*argv: str) -> Ended:
        environment = {name: value for name, value in pipeline.environment.items() if name != "PYTHONPATH"}
        done = run([programs / argv[0], *argv[1:]], cwd=folder, env=environment, check=False, timeout=240)
        return Ended(done.returncode, done.stdout + done.stderr)

    imported = execute("python", "-c", "import pytest_imagefresh; print(pytest_imagefresh.__file__)")
    assert imported.output.startswith(str(tmp_path / "venv"))
    asked = ["--repo", "orchestrator", "--branch", pipeline.copy.branch]
    gates = ["-m", "pytest", "--pyargs", "pytest_imagefresh.gates"]
    gate = execute("python", *gates, *asked, "--junitxml=gate.xml")
    assert gate.status == 0, gate.output
    assert gate.says("^GATE PASSED$")
    pipeline.junit = folder / "gate.xml"
    cases = pipeline.cases()
    assert len([name for name in cases if name.startswith("test_")]) == len(Link)
    assert set(cases.values()) == {"passed"}
    assert pipeline.properties()["orchestrator.revision"] == revision
    assert {"orchestrator.image_id", "orchestrator.container_id", "orchestrator.engine_id"} <= set(
        pipeline.properties()
    )
    assert (pipeline.staging, pipeline.prod) == (revision, "")
    promotion = execute("imagefresh", "promote", *asked)
    assert promotion.status == 0, promotion.output
    assert pipeline.prod == revision
