"""The end-to-end fixtures, for an engine of scripts/engines.sh."""

from __future__ import annotations

from tests.e2e.conftest import make_pipeline as make_pipeline
from tests.e2e.conftest import pipeline as pipeline
