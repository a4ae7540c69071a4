"""The host's own compose configuration is evidence, and what the commit's file says otherwise is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.e2e.pipeline import Pipeline

SECRET = "s3cr3t-of-the-host"


def newest(pipeline: Pipeline) -> Path:
    """Return the folder of the newest run's evidence."""
    return max(pipeline.folder.glob(".imagefresh/*/*/*/chain.json")).parent


def test_the_hosts_configuration_is_kept_and_its_differences_are_named(each_pipeline: Pipeline) -> None:
    pipeline, copy = each_pipeline, each_pipeline.copy
    gate = pipeline.gate()
    assert gate.status == 0, gate.output
    assert "compose-differences.txt" not in gate.output
    assert (newest(pipeline) / "compose-differences.txt").read_text().splitlines()[1:] == ["as in the commit"]

    path = copy.compose_dir / "compose.yaml"
    own = (
        f'      ROLE: staging\n      DATABASE_URL: "postgres://shop:${{DB_PASSWORD}}@db"\n      DB_PASSWORD: {SECRET}\n'
    )
    path.write_text(path.read_text().replace("      ROLE: staging\n", f"{own}    labels:\n      team: shop\n", 1))
    copy.env_file.write_text(f"{copy.env_file.read_text()}DB_PASSWORD={SECRET}\n")
    gate = pipeline.gate()
    assert gate.status == 0, gate.output
    sentence = "service orchestrator-staging of the host's file differs from the commit's: environment, labels"
    assert f"  compose: {sentence}; see compose-differences.txt" in gate.output.splitlines()
    digest, said, *lines = (newest(pipeline) / "compose-differences.txt").read_text().splitlines()
    key = "services.orchestrator-staging"
    assert (said, lines) == (
        sentence,
        [
            f'{key}.environment.DATABASE_URL: host has "postgres://shop:***@db", commit has nothing',
            f'{key}.environment.DB_PASSWORD: host has "***", commit has nothing',
            f'{key}.labels.team: host has "shop", commit has nothing',
        ],
    )
    folder = ["--project-directory", str(copy.compose_dir), "--profile", "staging"]
    printed = copy.compose(*folder, "config", "--format", "json").stdout
    assert digest.endswith(f": {hashlib.sha256(printed.encode()).hexdigest()}")
    assert digest.endswith(pipeline.properties()["orchestrator.compose_sha256"])
    kept = (newest(pipeline) / "compose.json").read_text()
    assert json.loads(kept)["services"]["orchestrator-staging"]["labels"] == {"team": "shop"}
    everything = "".join(file.read_text() for file in newest(pipeline).iterdir())
    assert SECRET not in everything + gate.output + pipeline.junit.read_text()


def test_what_the_check_says_is_kept_and_must_agree_with_its_exit_status(pipeline: Pipeline) -> None:
    check = "import sys\nprint('asked for', *sys.argv[1:])\nprint('not ok 1 - the till')\n"
    revision = pipeline.copy.commit({"scripts/staging_check.py": check})
    pipeline.configure(targets={pipeline.copy.name: {"staging": {"check_mode": "full"}}})
    gate = pipeline.gate()
    assert gate.status == 1, gate.output
    assert gate.says("the staging check ended with 0, but its output says: test 1 the till is not ok; expected both")
    assert (newest(pipeline) / "check.log").read_text() == "asked for --mode full\nnot ok 1 - the till\n"
    assert (pipeline.staging, pipeline.prod) == (revision, "")
