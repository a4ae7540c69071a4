"""Promote exactly what was tested: a gate before an image is re-tagged to production.

The names below are the public API. None of them raises; on doubt each gives the answer under which nothing is promoted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_imagefresh.api import (
        build_deploy_command,
        check_staging_image_fresh,
        expected_revision,
        image_freshness_applies,
        image_revision,
        provenance_verdict,
        rebuild_staging_image,
        validated_revision,
    )

__all__ = [
    "build_deploy_command",
    "check_staging_image_fresh",
    "expected_revision",
    "image_freshness_applies",
    "image_revision",
    "provenance_verdict",
    "rebuild_staging_image",
    "validated_revision",
]


def __getattr__(name: str) -> Any:
    """Load the API on first use: pytest imports this package in every session, also where nothing is gated."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pytest_imagefresh import api

    return getattr(api, name)
