"""Developer switches only: the product's behaviour is in the plugin."""

from __future__ import annotations

pytest_plugins = ["pytester"]
