"""Fixtures of the end-to-end tests: everything real, nothing shared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.conftest import MakeOrchestrator
from tests.e2e.pipeline import Pipeline
from tests.sshd import Sshd
from tests.support import Orchestrator


class MakePipeline(Protocol):
    """The type of the fixture `make_pipeline`."""

    def __call__(self, host: str = "local", copy: Orchestrator | None = None) -> Pipeline:
        """Return a pipeline around a copy of the example service, a new one by default; `host` is local or ssh."""


@pytest.fixture
def make_pipeline(orchestrator: MakeOrchestrator, tmp_path: Path) -> Iterator[MakePipeline]:
    """A function that makes pipelines. When the test ends, none of their runs may have left anything behind."""
    made: list[Pipeline] = []
    with ExitStack() as servers:

        def make(host: str = "local", copy: Orchestrator | None = None) -> Pipeline:
            copy = copy or orchestrator()
            sshd = servers.enter_context(Sshd(tmp_path / f"sshd-{len(made)}")) if host == "ssh" else None
            made.append(Pipeline(copy, copy.compose_dir.parent / "pipeline", sshd))
            return made[-1]

        yield make
        for pipeline in made:
            pipeline.assert_clean()


@pytest.fixture
def pipeline(make_pipeline: MakePipeline) -> Pipeline:
    """A pipeline with the Docker host on this machine."""
    return make_pipeline()


@pytest.fixture(params=["local", "ssh"])
def each_pipeline(request: pytest.FixtureRequest, make_pipeline: MakePipeline) -> Pipeline:
    """A pipeline, once with the Docker host on this machine and once behind ssh."""
    host: str = request.param
    return make_pipeline(host)
