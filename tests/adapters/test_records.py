"""The evidence on disk: what is written, what is kept, and which record a promotion takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_imagefresh.adapters.records import Proven, drop_old_runs, find_proven, new_run_id, run_folder, write_text
from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.identity import ImageId, Revision, RunId

REVISION = Revision("a" * 40)


def run_id(number: int) -> RunId:
    return RunId(f"20260102T0304{number:02d}Z-{number:08x}")


def record(rootdir: Path, number: int, **changes: object) -> None:
    """Write the record of a complete run of shop."""
    content = {"complete": True, "target": "shop", "revision": REVISION.hex, "image_id": f"sha256:{number:064x}"}
    write_text(run_folder(rootdir, "shop", run_id(number)) / "shop", "chain.json", json.dumps({**content, **changes}))


def test_bytes_that_are_no_text_are_shown(tmp_path: Path) -> None:
    assert write_text(tmp_path, "hook.log", "caf\udce9 \u00e9\n").read_text(encoding="utf-8") == "caf\\udce9 \u00e9\n"


def test_a_file_is_replaced_whole_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    for text in ("old and longer", "new"):
        path = write_text(tmp_path / "made", "table.txt", text)
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EvidenceError, match=r"evidence .*/file/chain\.json could not be written: "):
        write_text(tmp_path / "file", "chain.json", "{}")


def test_only_the_oldest_runs_are_dropped(tmp_path: Path) -> None:
    for number in range(5):
        record(tmp_path, number)
    runs = tmp_path / ".imagefresh" / "shop"
    (runs / "notes").mkdir()
    drop_old_runs(runs, keep=2)
    assert sorted(path.name for path in runs.iterdir()) == [run_id(3).text, run_id(4).text, "notes"]


def test_the_newest_complete_record_of_the_revision_counts(tmp_path: Path) -> None:
    assert find_proven(tmp_path, "shop", "shop", REVISION) is None
    record(tmp_path, 1)
    record(tmp_path, 2)
    lesser: list[dict[str, object]] = [
        {"complete": False},
        {"complete": "true"},
        {"complete": 1},
        {"target": "jobs"},
        {"revision": "b" * 40},
    ]
    for number, change in enumerate(lesser, start=3):
        record(tmp_path, number, **change)
    assert find_proven(tmp_path, "shop", "shop", REVISION) == Proven(
        ImageId(f"sha256:{2:064x}"), run_folder(tmp_path, "shop", run_id(2)) / "shop"
    )


def test_a_record_that_cannot_be_read_is_no_answer(tmp_path: Path) -> None:
    record(tmp_path, 1)
    write_text(run_folder(tmp_path, "shop", run_id(2)) / "shop", "chain.json", "{")
    with pytest.raises(EvidenceError, match="cannot be read"):
        find_proven(tmp_path, "shop", "shop", REVISION)


def test_run_ids_differ() -> None:
    assert new_run_id() != new_run_id()
