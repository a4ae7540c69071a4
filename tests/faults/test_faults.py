"""Every fault, injected for real: the verdict, the cause it names, what is served afterwards, what is left behind."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.e2e.conftest import MakePipeline
from tests.faults import commit, container, image, way
from tests.faults.fault import Fault
from tests.faults.scene import Scene
from tests.gate_folder import Ended

FAULTS = [fault for module in (commit, image, container, way) for fault in module.SECTION.faults]
SLACK_SECONDS = 100.0
"""What a whole gate may take beside the timeout that ends a fault, on a busy machine; what hangs ends much later."""
NOT_REBUILT = "staging was not rebuilt: "
CASES = [(fault, host) for fault in FAULTS for host in fault.hosts]


def marked(fault: Fault, host: str) -> object:
    return pytest.param(fault, host, id=f"{fault.name}-{host}", marks=[pytest.mark.root] if fault.root else [])


@pytest.mark.fault
@pytest.mark.parametrize(("fault", "host"), [marked(fault, host) for fault, host in CASES])
def test_fault(
    fault: Fault, host: str, make_pipeline: MakePipeline, record_property: Callable[[str, object], None]
) -> None:
    announce(fault, host, record_property)
    with ExitStack() as servers:
        scene = Scene(make_pipeline(host), servers)
        if fault.deployed:
            scene.deploy()
        before, tag = scene.production(), scene.staging_tag()
        began = time.monotonic()
        ended = fault.inject(scene) or scene.gate()
        assert fault.bound is None or time.monotonic() - began < fault.bound + SLACK_SECONDS, ended.output
        # First nothing works on any more; only then is it settled what is served.
        scene.pipeline.assert_clean()
        staging = scene.staging
        record_property("seen", f"exit {ended.status}, staging {staging}: {telling_line(fault, ended)}")
        assert staging in fault.may_serve
        # Only what the hook itself found to be good becomes the staging image.
        assert scene.staging_tag() == tag or NOT_REBUILT not in ended.output
        check(fault, scene, ended, before)


def announce(fault: Fault, host: str, record_property: Callable[[str, object], None]) -> None:
    """Record what the table says of this fault, whatever becomes of the test."""
    record_property("fault", FAULTS.index(fault))
    record_property("section", fault.section)
    record_property("name", fault.name)
    record_property("host", host)
    record_property("expected", str(fault.expected))


def check(fault: Fault, scene: Scene, ended: Ended, before: dict[str, str]) -> None:
    """Compare what was expected with what is seen."""
    expected = fault.expected
    assert ended.status == expected.status, ended.output
    assert ended.says(expected.reason), ended.output
    assert scene.recorded() is expected.recorded
    if not fault.production_moves:
        assert scene.production() == before
    if not expected.recorded:
        promotion = scene.pipeline.promote()
        assert promotion.status != 0, promotion.output
        assert scene.pipeline.prod == before["serves"]


def telling_line(fault: Fault, ended: Ended) -> str:
    """Return the line that names the cause, or the last one where none does, short enough for a table."""
    lines = ended.output.strip().splitlines() or ["silence"]
    named = [line for line in lines if re.search(fault.expected.reason, line)]
    return (named[0] if named else lines[-1]).strip()[:200]
