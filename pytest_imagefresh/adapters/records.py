"""The evidence of gate runs on disk: a folder per repo, run and target, and in it the record that a promotion takes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.identity import ImageId, Revision, RunId

KEPT_RUNS = 20
RECORD = "chain.json"


def new_run_id() -> RunId:
    """Return a fresh run ID: now, in UTC, and 8 random hex characters."""
    return RunId(f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{os.urandom(4).hex()}")


def run_folder(rootdir: Path, repo: str, run_id: RunId) -> Path:
    """Return where the evidence of one run of one repo is written by default."""
    return rootdir / ".imagefresh" / repo / run_id.text


def write_text(folder: Path, name: str, text: str) -> Path:
    """Write one file of evidence by rename, so that a reader finds all of it or none. Raises EvidenceError."""
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{name}.new")
        # Names of files and output may hold bytes that are no text; they are shown, not lost.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    except OSError as error:
        raise EvidenceError(
            f"evidence {path} could not be written: {error.strerror}; is the disk full or read-only?"
        ) from error
    return path


def render(record: Mapping[str, Any]) -> str:
    """Return the record of one target as text: what was proven, link by link, and whether that is complete."""
    return json.dumps(record, indent=2) + "\n"


def drop_old_runs(runs: Path, *, keep: int = KEPT_RUNS) -> None:
    """Remove all but the newest runs of one repo. Only folders named like a run ID are touched."""
    for path in sorted(_run_folders(runs), key=lambda path: path.name)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def find_proven_image(rootdir: Path, repo: str, target: str, revision: Revision) -> ImageId | None:
    """Return the image of the newest complete gate run of this revision, or None where there is none."""
    for folder in sorted(_run_folders(rootdir / ".imagefresh" / repo), key=lambda path: path.name, reverse=True):
        record = _read_record(folder / target / RECORD)
        if record.get("complete") is True and record.get("revision") == revision.hex and record.get("target") == target:
            return ImageId(str(record.get("image_id")))
    return None


def _run_folders(runs: Path) -> Iterable[Path]:
    if not runs.is_dir():
        return []
    return [path for path in runs.iterdir() if path.is_dir() and _is_run_id(path.name)]


def _is_run_id(name: str) -> bool:
    try:
        return bool(RunId(name))
    except EvidenceError:
        return False


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EvidenceError(
            f"the record {path} cannot be read: {error}; remove its folder and run the gate again"
        ) from error
    return record if isinstance(record, dict) else {}
