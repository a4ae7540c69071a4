"""`python3 -m orchestrator`: serve until SIGTERM."""

from __future__ import annotations

from orchestrator.service import main

main()
