"""Who answers on the staging port: the container alone, because the port falls silent with it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest

from pytest_imagefresh.core.chain import Link
from tests.e2e.conftest import MakePipeline
from tests.e2e.pipeline import Pipeline, wait_until
from tests.support import foreign_server

SLOW = """
import http.server, time, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep({delay})
        self.send_response(200)
        self.end_headers()
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


def state(pipeline: Pipeline) -> str:
    """Return whether staging runs, how often it was restarted, and since when it runs."""
    format = "{{.State.Status}} {{.RestartCount}} {{.State.StartedAt}}"
    return pipeline.copy.engine.docker("container", "inspect", "--format", format, pipeline.copy.staging_container)


def publish_on(pipeline: Pipeline, address: str) -> None:
    """Let the compose file publish the staging port on another address than it does by itself."""
    path = pipeline.copy.compose_dir / "compose.yaml"
    path.write_text(path.read_text().replace('"127.0.0.1:${STAGING_PORT', f'"{address}:${{STAGING_PORT'))


def replace_ports(pipeline: Pipeline, service: dict[str, object]) -> None:
    """Start staging without the ports of its compose file, which an override could only add to."""
    path = pipeline.copy.compose_dir / "compose.yaml"
    path.write_text(path.read_text().replace('    ports:\n      - "127.0.0.1:${STAGING_PORT:-8501}:8000"\n', ""))
    pipeline.override(service)


@pytest.mark.parametrize("published", ["127.0.0.1", "127.0.0.9", "0.0.0.0"])
def test_a_port_that_falls_silent_is_proven_and_leaves_no_trace(each_pipeline: Pipeline, published: str) -> None:
    publish_on(each_pipeline, published)
    each_pipeline.stage()
    before = state(each_pipeline)
    gate = each_pipeline.reuse("port")
    assert gate.status == 0, gate.output
    reason = each_pipeline.reason(Link.SILENCE)
    address = "127.0.0.1" if published == "0.0.0.0" else published
    assert f"silenced 5 connections each to port {each_pipeline.copy.staging_port} at {address}" in reason
    assert state(each_pipeline) == before


@pytest.mark.parametrize(
    ("published", "foreign"), [("127.0.0.1", "127.0.0.2"), ("127.0.0.9", "127.0.0.1")], ids=["elsewhere", "in front"]
)
@pytest.mark.fault
def test_a_foreign_process_on_another_address_is_refused(each_pipeline: Pipeline, published: str, foreign: str) -> None:
    publish_on(each_pipeline, published)
    each_pipeline.stage()
    with foreign_server(foreign, each_pipeline.copy.staging_port):
        gate = each_pipeline.reuse("silent")
    assert gate.status == 1, gate.output
    assert gate.says(f"somebody else answers on port {each_pipeline.copy.staging_port} at {foreign}: a byte came")
    assert state(each_pipeline).startswith("running 0 ")


@pytest.mark.fault
def test_an_old_container_on_the_same_port_is_refused(pipeline: Pipeline) -> None:
    image = pipeline.stage()
    port = f"127.0.0.5:{pipeline.copy.staging_port}:8000"
    old = pipeline.copy.engine.docker(
        "run", "--detach", "--name", f"{pipeline.copy.project}-old", "--publish", port, image
    )
    gate = pipeline.reuse("port")
    assert gate.status == 1, gate.output
    assert gate.says(
        rf"is published by {pipeline.copy.project}-old \({old[:12]}\) at 127.0.0.5 too, expected container"
    )
    assert gate.says("somebody else answers on port .* at 127.0.0.5")
    pipeline.copy.engine.docker("rm", "--force", old)


def test_host_networking_is_proven_by_the_silence(each_pipeline: Pipeline) -> None:
    each_pipeline.stage()
    replace_ports(
        each_pipeline, {"network_mode": "host", "environment": {"PORT": str(each_pipeline.copy.staging_port)}}
    )
    gate = each_pipeline.reuse("port")
    assert gate.status == 0, gate.output


@pytest.mark.fault
def test_under_host_networking_a_foreign_server_is_refused(pipeline: Pipeline, free_port: Callable[[], int]) -> None:
    pipeline.stage()
    other = free_port()
    replace_ports(pipeline, {"network_mode": "host", "environment": {"PORT": str(other)}})
    with foreign_server("127.0.0.1", pipeline.copy.staging_port):
        gate = pipeline.reuse("port")
        assert gate.status == 1, gate.output
        assert gate.says("somebody else answers on port .* at 127.0.0.1: a byte came while container")
        pipeline.configure(targets={"orchestrator": {"staging": {"pause_proof": False}}})
        gate = pipeline.reuse("port")
    assert gate.status == 1, gate.output
    assert gate.says("does not publish port .* and the pause proof is switched off: nothing shows")


def test_a_proof_that_is_switched_off_pauses_nothing_and_says_so(pipeline: Pipeline) -> None:
    pipeline.stage()
    pipeline.configure(targets={"orchestrator": {"staging": {"pause_proof": False}}})
    with foreign_server("127.0.0.2", pipeline.copy.staging_port):
        gate = pipeline.reuse("silent")
    assert gate.status == 0, gate.output
    assert "NOT PROVEN that nobody else answers on port" in pipeline.reason(Link.SILENCE)


@pytest.mark.parametrize(
    ("delay", "status", "says"), [(0.25, 0, ""), (0.93, 11, "choose a faster health path"), (5, 11, "brought no byte")]
)
@pytest.mark.fault
def test_a_slow_server_is_waited_for_or_no_evidence(pipeline: Pipeline, delay: float, status: int, says: str) -> None:
    pipeline.stage()
    pipeline.override({"command": ["python3", "-c", SLOW.format(delay=delay)]})
    gate = pipeline.reuse("silent")
    assert gate.status == status, gate.output
    assert gate.says(says), gate.output
    assert state(pipeline).startswith("running 0 ")


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGSTOP])
@pytest.mark.parametrize("host", ["local", "ssh"])
@pytest.mark.fault
def test_a_paused_container_runs_again_whatever_becomes_of_the_session(
    make_pipeline: MakePipeline, host: str, ended_by: signal.Signals
) -> None:
    pipeline = make_pipeline(host)
    pipeline.stage()
    # Slow enough for a pause that can be seen from here.
    pipeline.override({"command": ["python3", "-c", SLOW.format(delay=0.4)]})
    before = state(pipeline)
    with open(pipeline.folder / "output", "wb") as output:
        session = subprocess.Popen(
            pipeline.gate_command("--gate-reuse", "-k", "silent"),
            cwd=pipeline.folder,
            env=pipeline.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        assert wait_until(lambda: state(pipeline).startswith("paused")), (pipeline.folder / "output").read_text()
        os.kill(session.pid, ended_by)
        assert wait_until(lambda: state(pipeline) == before, seconds=8)
    finally:
        os.kill(session.pid, signal.SIGKILL)
        session.wait()
    pipeline.sweep()
