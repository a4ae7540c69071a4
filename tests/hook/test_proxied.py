"""`PROD_PROXY`: the next container runs beside the one that serves, and nginx leads from one to the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakeOrchestrator
from tests.hook.proxied import PROXY, ProxiedHost, crowd

pytestmark = pytest.mark.docker


@pytest.fixture
def proxied(orchestrator: MakeOrchestrator, tmp_path: Path) -> ProxiedHost:
    """Production behind nginx, nothing of it running yet; staging's image is built."""
    host = ProxiedHost(orchestrator(), tmp_path / "hook")
    host.copy.build_image(host.copy.staging_image)
    return host


def test_first(proxied: ProxiedHost) -> None:
    outcome = proxied.promote()
    print(outcome.stderr, outcome.line["seconds"])
    assert outcome.verdict == (0, "promoted"), outcome.stderr
    proxied.copy.commit({"src/orchestrator/more.py": "MORE = 1\n"})
    proxied.copy.build_image(proxied.copy.staging_image)
    with crowd(proxied.copy.prod_port, slow=True) as seen:
        outcome = proxied.promote(PROD_DRAIN="3")
    print(outcome.stderr, outcome.line["seconds"])
    print(seen)
    assert outcome.verdict == (0, "promoted"), outcome.stderr
    assert seen.failed == []
