"""The evidence of gate runs on disk: a folder per repo, run and target, and in it the record that a promotion takes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.identity import ImageId, Revision, RunId

KEPT_RUNS = 20
RECORD = "chain.json"
VERDICT = "verdict.json"
SIGNATURE = "verdict.json.sig"
TEST_RESULT = "test-result.json"


@dataclass(frozen=True)
class Proven:
    """What the newest complete gate of a revision proved."""

    image_id: ImageId
    folder: Path
    """Its evidence."""


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


def read_verdict(path: Path) -> tuple[bytes, bytes] | None:
    """Return statement and signature of a verdict, which lie beside one another; None where there is none.

    Raises EvidenceError where one of them is missing or cannot be read.
    """
    signature = path.with_name(f"{path.name}.sig")
    if not path.exists() and not signature.exists():
        return None
    try:
        return path.read_bytes(), signature.read_bytes()
    except OSError as error:
        raise EvidenceError(
            f"verdict {path}: expected it and its signature {signature.name}, observed: {error}; run the gate again"
        ) from error


def remove_verdict(folder: Path) -> None:
    """Take back the verdict of a run that did not end well after all."""
    for name in (VERDICT, SIGNATURE, TEST_RESULT):
        (folder / name).unlink(missing_ok=True)


def drop_old_runs(runs: Path, *, keep: int = KEPT_RUNS) -> None:
    """Remove all but the newest runs of one repo. Only folders named like a run ID are touched."""
    for path in sorted(_run_folders(runs), key=lambda path: path.name)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)


def find_proven(rootdir: Path, repo: str, target: str, revision: Revision) -> Proven | None:
    """Return what the newest complete gate run of this revision proved, or None where there is none."""
    for folder in sorted(_run_folders(rootdir / ".imagefresh" / repo), key=lambda path: path.name, reverse=True):
        record = _read_record(folder / target / RECORD)
        if record.get("complete") is True and record.get("revision") == revision.hex and record.get("target") == target:
            return Proven(ImageId(str(record.get("image_id"))), folder / target)
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
