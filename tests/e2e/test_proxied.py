"""A gate, promotions and a rollback of a production behind nginx, by settings alone."""

from __future__ import annotations

import pytest

from tests.crowd import crowd
from tests.e2e.pipeline import Pipeline
from tests.hook.proxied import PROXY, put_behind_proxy

pytestmark = pytest.mark.fault  # too long for make test


def test_what_a_gate_has_proven_is_promoted_while_everybody_is_answered(pipeline: Pipeline) -> None:
    copy = pipeline.copy
    put_behind_proxy(copy)
    pipeline.configure(targets={copy.name: {"prod": {"strategy": "proxy", "proxy": {"drain": 1}}}})
    for number in range(2):
        revision = copy.commit({"src/orchestrator/NEWS": f"{number}"})
        gate = pipeline.gate()
        assert gate.status == 0, gate.output
        if number == 0:
            assert pipeline.promote().status == 0
        else:
            with crowd(copy.prod_port) as seen:
                done = pipeline.promote()
            assert (done.status, seen.failed) == (0, []), done.output
        assert pipeline.prod == revision
    assert pipeline.imagefresh("rollback", "--repo", copy.name).status == 0
    assert pipeline.prod == copy.git("rev-parse", "HEAD~1")
    copy.compose("stop", PROXY)
    (proxy,) = pipeline.read("status")[copy.name]["proxy"]
    assert (proxy["service"], proxy["state"]) == (PROXY, "exited")
    assert pipeline.imagefresh("status", "--repo", copy.name).says("proxy .* exited")
