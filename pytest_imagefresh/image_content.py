"""The files of an image beside those of a commit: the engine's archive, read once from a container that never runs."""

from __future__ import annotations

import time

from pytest_imagefresh.adapters.archive import read_archive
from pytest_imagefresh.adapters.engine import Engine
from pytest_imagefresh.core.content import Content, File, Place, Tree, expect_content, folders_of, outermost
from pytest_imagefresh.core.identity import ContainerId, ImageId, RunId
from pytest_imagefresh.core.settings import Target
from pytest_imagefresh.observed_engine import ObservedEngine


def read_image_content(
    engine: Engine | ObservedEngine, image_id: ImageId, target: Target, tree: Tree, *, run_id: RunId, timeout: float
) -> Content:
    """Return the declared content of a target as commit and image have it.

    `tree` is that of the commit, by path from its top. `timeout` in seconds bounds the reading of all folders. Raises
    Refused for a declaration that the commit does not fit, EvidenceError where the engine cannot tell.
    """
    expected = expect_content(target.content, tree)
    with engine.scratch_container(image_id, run_id) as container_id:
        places = _read_places(engine, container_id, target)
        sound = all(place.kind == "folder" for place in places.values())
        # What lies behind a symlink is not read: it would be another folder than the one that is declared.
        observed = _read_folders(engine, container_id, target, timeout) if sound else {}
    return Content(target.content, target.content_ignore, places, expected, observed)


def _read_places(engine: Engine | ObservedEngine, container_id: ContainerId, target: Target) -> dict[str, Place]:
    """Return what is at each declared folder and above, outer ones first, up to the first that is no folder."""
    places: dict[str, Place] = {}
    for path in folders_of(target.content):
        places[path] = engine.read_place(container_id, path)
        if places[path].kind != "folder":
            break
    return places


def _read_folders(
    engine: Engine | ObservedEngine, container_id: ContainerId, target: Target, timeout: float
) -> dict[str, File]:
    """Return the files of all declared folders by absolute path."""
    deadline = time.monotonic() + timeout
    observed: dict[str, File] = {}
    for folder in outermost(target.content):
        chunks = engine.read_archive(container_id, folder, timeout=deadline - time.monotonic())
        files = read_archive(chunks, f"{folder} in {target.image}")
        observed.update({f"{folder}/{path}": file for path, file in files.items()})
    return observed
