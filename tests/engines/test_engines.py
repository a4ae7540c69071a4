"""What depends on the engine and its builder: `scripts/engines.sh run NAME pytest tests/engines`, or make engines."""

from __future__ import annotations

import json
import os
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import MakePipeline
from tests.e2e.pipeline import Pipeline
from tests.engines.kinds import KINDS, Kind
from tests.faults.image import BUILDKIT_LINE, gate_with_equal_times, labelled_base, unstamped
from tests.faults.scene import Scene
from tests.support import Engine

pytestmark = pytest.mark.engines


@pytest.fixture(scope="session")
def kind() -> Kind:
    """The engine on which these tests run."""
    name = os.environ.get("ENGINE_NAME", "")
    if name not in KINDS:
        pytest.fail(f"ENGINE_NAME: expected one of {', '.join(KINDS)}, observed {name!r}; run 'make engines'")
    return KINDS[name]


def test_the_image_is_this_builds_own_and_is_promoted(kind: Kind, make_pipeline: MakePipeline, tmp_path: Path) -> None:
    with ExitStack() as servers:
        scene = Scene(make_pipeline(), servers)
        scene.deploy()
        # Another commit's label comes with the base image, and the Dockerfile says nothing of a revision.
        scene.commit({"Dockerfile": unstamped(scene).replace("FROM ${BASE}\n", f"FROM {labelled_base(scene)}\n")})
        scene.configure(targets={scene.copy.name: {"content": {"/app/src": "src", "/app/scripts": "scripts"}}})
        scene.configure_staging(check_command=["true"])
        gate = scene.gate()
        assert gate.status == 0, gate.output
        image = scene.pipeline.properties()["orchestrator.image_id"]
        engine, copy = scene.copy.engine, scene.copy
        assert runs(engine, copy.staging_container) == scene.staging_tag() == image
        assert scene.label_of(image) == scene.new
        assert (kind.builder == "BuildKit") is bool(BUILDKIT_LINE.search(scene.pipeline.build_log()))
        assert named_by_archive(engine, image, tmp_path / "image.tar", by_manifest=kind.by_manifest) == image
        assert runs(engine, copy.prod_container) != image
        promotion = scene.pipeline.promote()
        assert promotion.status == 0, promotion.output
        assert runs(engine, copy.prod_container) == image


def runs(engine: Engine, container: str) -> str:
    """Return the ID of the image that a container runs."""
    return engine.docker("container", "inspect", "--format", "{{.Image}}", container)


def named_by_archive(engine: Engine, image: str, path: Path, *, by_manifest: bool) -> str:
    """Return what the engine's archive of an image calls it: the digest of its manifest, or of its configuration."""
    engine.docker("image", "save", "--output", path, image)
    with tarfile.open(path) as archive:
        if by_manifest:
            [manifest] = read_json(archive, "index.json")["manifests"]
            return str(manifest["digest"])
        [entry] = read_json(archive, "manifest.json")
        # CONFIG.json before the archives were OCI layouts, blobs/sha256/CONFIG since.
        return f"sha256:{Path(entry['Config']).name.removesuffix('.json')}"


def read_json(archive: tarfile.TarFile, name: str) -> Any:
    member = archive.extractfile(name)
    assert member is not None, name
    return json.load(member)


def test_no_old_file_is_taken_for_a_new_one(kind: Kind, make_pipeline: MakePipeline) -> None:
    with ExitStack() as servers:
        scene = Scene(make_pipeline(), servers)
        gate_with_equal_times(scene)
        assert (kind.builder == "BuildKit") is bool(BUILDKIT_LINE.search(scene.pipeline.build_log()))


def test_an_engine_without_an_id_of_its_own_is_refused(kind: Kind, pipeline: Pipeline) -> None:
    engine = pipeline.copy.engine
    # Where these two are alike, the engine has learnt it, and the refusal can go.
    assert engine.docker("info", "--format", "{{.ID}}") != engine.docker("info", "--format", "{{.ID}}")
    gate = pipeline.gate()
    assert gate.status == 1, gate.output
    assert gate.says("expected a Docker engine, observed podman, which has no ID of its own; use dockerd")
    assert pipeline.promote().status == 1
    assert (pipeline.staging, pipeline.prod) == ("", "")
