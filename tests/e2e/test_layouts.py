"""Repos that are laid out otherwise: the Dockerfile in a subfolder, two images in one repo."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_imagefresh.core.chain import Link
from tests.e2e.conftest import MakePipeline
from tests.e2e.pipeline import Pipeline
from tests.e2e.shop import PARTS, Shop
from tests.support import Engine, Orchestrator

FLAVOUR = "two words, 'quotes' and $5"
STAGE = 'AS app\nARG FLAVOUR=none\nENV FLAVOUR="${FLAVOUR}"\n'
TRAP = "\nFROM app AS trap\nRUN exit 7\n"
"""A stage behind the target: whoever builds without the target ends in it."""


def move_into_subfolder(copy: Orchestrator) -> str:
    """Commit the same service below service/, its Dockerfile one folder deeper, and a build section that says so."""
    (copy.worktree / "service/docker").mkdir(parents=True)
    for name in ("src", "scripts", ".dockerignore"):
        copy.git("mv", name, f"service/{name}")
    copy.git("mv", "Dockerfile", "service/docker/Dockerfile")
    dockerfile = (copy.worktree / "service/docker/Dockerfile").read_text()
    dockerfile = dockerfile.replace("FROM ${BASE}\n", "FROM ${BASE} " + STAGE) + TRAP
    build = {"context": "./service", "dockerfile": "docker/Dockerfile", "target": "app"}
    arguments = {"BASE": copy.engine.base_image, "FLAVOUR": FLAVOUR.replace("$", "$$")}
    service = {"profiles": ["staging"], "image": "any", "build": {**build, "args": arguments}}
    compose = json.dumps({"services": {"orchestrator-staging": service}})
    return copy.commit({"compose.yaml": compose, "service/docker/Dockerfile": dockerfile}, "moved")


def test_builds_as_the_compose_file_of_the_commit_says(each_pipeline: Pipeline) -> None:
    pipeline, copy = each_pipeline, each_pipeline.copy
    revision = move_into_subfolder(copy)
    gate = pipeline.gate()
    assert gate.status == 0, gate.output
    image = pipeline.properties()["orchestrator.image_id"]
    env = json.loads(copy.engine.docker("image", "inspect", "--format", "{{json .Config.Env}}", image))
    assert f"FLAVOUR={FLAVOUR}" in env
    assert (pipeline.staging, pipeline.prod) == (revision, "")


@pytest.mark.fault
def test_a_host_without_a_clone_is_sent_the_commit(each_pipeline: Pipeline) -> None:
    pipeline, copy = each_pipeline, each_pipeline.copy
    pipeline.configure(host_repos_dir="-")
    for news in ("one", "two"):
        revision = copy.commit({"src/orchestrator/NEWS": news})
        gate = pipeline.gate()
        assert gate.status == 0, gate.output
        assert (pipeline.staging, pipeline.prod) == (revision, "")
    promotion = pipeline.promote()
    assert promotion.status == 0, promotion.output
    assert pipeline.prod == revision


@pytest.fixture
def shop(engine: Engine, free_port: Callable[[], int], tmp_path: Path) -> Iterator[Shop]:
    """A repo with two images."""
    unique = f"if-{secrets.token_hex(4)}"
    shop = Shop(engine, tmp_path / unique, unique=unique, free_port=free_port)
    yield shop
    shop.remove()


def proven(pipeline: Pipeline, target: str) -> int:
    """Return how many of a target's links the JUnit report shows as passed."""
    outcomes = [outcome for name, outcome in pipeline.cases().items() if name.endswith(f"[{target}]")]
    return outcomes.count("passed")


def serving(pipeline: Pipeline, ports: dict[str, int]) -> dict[str, str]:
    return {part: pipeline.serves(port) for part, port in ports.items()}


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["serially", "xdist"])
def test_gates_and_promotes_every_image_of_a_repo(shop: Shop, make_pipeline: MakePipeline, options: list[str]) -> None:
    pipeline = make_pipeline(copy=shop)
    gate = pipeline.gate(*options)
    assert gate.status == 0, gate.output
    assert min(proven(pipeline, part) for part in PARTS) >= len(Link)
    facts = pipeline.properties()
    assert {facts[f"{part}.revision"] for part in PARTS} == {shop.revision}
    assert facts["web.image_id"] != facts["worker.image_id"]
    assert serving(pipeline, shop.staging_ports) == dict.fromkeys(PARTS, shop.revision)
    assert serving(pipeline, shop.prod_ports) == dict.fromkeys(PARTS, "")
    promotion = pipeline.promote()
    assert promotion.status == 0, promotion.output
    assert serving(pipeline, shop.prod_ports) == dict.fromkeys(PARTS, shop.revision)
    for part in PARTS:
        runs = shop.engine.docker("container", "inspect", "--format", "{{.Image}}", f"{shop.project}-{part}-prod")
        assert runs == facts[f"{part}.image_id"]


@pytest.mark.fault
@pytest.mark.parametrize(
    ("deed", "options"),
    [
        ("rm -f {}-web-staging", []),
        ("restart --time 0 {}-web-prod", []),
        ("restart --time 0 {}-web-staging", ["-n", "2"]),
    ],
    ids=["staging removed", "production restarted", "staging restarted, xdist"],
)
def test_what_happens_to_one_target_in_the_turn_of_another_is_seen(
    shop: Shop, make_pipeline: MakePipeline, deed: str, options: list[str]
) -> None:
    pipeline = make_pipeline(copy=shop)
    assert pipeline.gate().status == 0
    assert pipeline.promote().status == 0
    shop.commit({"src/orchestrator/NEWS": "more"})
    command = f"docker --host {shop.engine.docker_host} container {deed.format(shop.project)} >/dev/null"
    turn = '"$1" == --build-staging && "$TARGET_SERVICE" == worker-staging'
    pipeline.wrap_hook(f"if [[ {turn} ]]; then {command}; fi")
    gate = pipeline.gate(*options)
    assert gate.status == 1, gate.output
    assert gate.says(r"^  refused +(container is still the same|production untouched): "), gate.output
    assert "failure" in pipeline.cases()["gate complete"]
    assert pipeline.promote().status == 1


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["serially", "xdist"])
@pytest.mark.fault
def test_one_broken_image_refuses_the_repo(shop: Shop, make_pipeline: MakePipeline, options: list[str]) -> None:
    pipeline = make_pipeline(copy=shop)
    dockerfile = (shop.worktree / "worker/Dockerfile").read_text()
    shop.commit({"worker/Dockerfile": f'{dockerfile}CMD ["sh", "-c", "echo out of luck; exit 3"]\n'})
    gate = pipeline.gate(*options)
    assert gate.status == 1, gate.output
    assert gate.says(r"expected it to stay up, observed exited \(exit status 3\); its log ends: out of luck"), (
        gate.output
    )
    assert proven(pipeline, "web") >= len(Link)
    assert proven(pipeline, "worker") < len(Link)
    assert serving(pipeline, shop.staging_ports) == {"web": shop.revision, "worker": ""}
    promotion = pipeline.promote()
    assert promotion.status == 1, promotion.output
    assert serving(pipeline, shop.prod_ports) == dict.fromkeys(PARTS, "")
