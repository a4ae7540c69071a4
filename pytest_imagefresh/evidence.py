"""What a person needs after a run, as files: settings, logs, what the engine said, the chain."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from pytest_imagefresh.core.chain import Ledger, Link
from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.identity import ContainerId, ImageId
from pytest_imagefresh.core.layers import Configuration
from pytest_imagefresh.core.masking import Masker
from pytest_imagefresh.run import TargetRun

_LOG_LINES = 500
_TAIL_LINES = 30
_TAIL = "imagefresh: last lines of"


def observed_files(run: TargetRun) -> dict[str, str]:
    """Return the files of what one target's run said and saw, by name, secrets masked. What cannot be had says why."""
    return {
        # Masked as they came, and once more: the secrets of a container are known when it runs.
        "hook.log": run.run.mask(_lines(run.hook_log)),
        "build.log": run.run.mask(_lines(run.build_log)),
        "check.log": run.run.mask(run.check.output.decode(errors="replace")) if run.check else "",
        "container.log": _container_log(run, _LOG_LINES),
        "content.txt": _content(run),
        "compose.json": _compose(run),
        "compose-differences.txt": _compose_differences(run),
        "image.json": _inspected(run, "image_id"),
        "container.json": _inspected(run, "container_id"),
    }


def settings_file(configuration: Configuration, mask: Masker) -> str:
    """Return the settings as JSON: every value, and beside it where each one that is no default came from."""
    sources = {key: source for key, source in configuration.sources.items() if source != "default"}
    values = mask.deep(msgspec.to_builtins(configuration.settings))
    return json.dumps({"settings": values, "sources": sources}, indent=2) + "\n"


def chain_table(ledger: Ledger, target: str) -> str:
    """Return the chain of one target as a table for people: link, state, what was observed."""
    rows = [(link.value, *ledger.state(target, link)) for link in Link]
    width = max(len(row[0]) for row in rows)
    return _lines([f"{name:{width}}  {state:10}  {words}" for name, state, words in rows])


def failure_sections(run: TargetRun) -> list[tuple[str, str]]:
    """Return the last lines of hook and container, to stand beside a failed test."""
    sections = [
        (f"{_TAIL} the hook", _lines(run.hook_log[-_TAIL_LINES:])),
        (f"{_TAIL} the staging container", _container_log(run, _TAIL_LINES)),
    ]
    return [(title, text) for title, text in sections if text]


def tails(report: pytest.TestReport) -> str:
    """Return those sections of a report as one text; "" where it has none."""
    return "\n".join(f"{title}\n{text}" for title, text in report.sections if title.startswith(_TAIL))


def _inspected(run: TargetRun, fact: str) -> str:
    try:
        described = _describe(run, fact)
    except EvidenceError as error:
        return f"{error}\n"
    return json.dumps(run.run.mask.deep(described), indent=2) + "\n" if described else ""


def _describe(run: TargetRun, fact: str) -> Mapping[str, Any]:
    found = run.facts.get(fact)
    if found is None:
        return {}
    engine = run.engine
    return (
        engine.describe_image(ImageId(found)) if fact == "image_id" else engine.describe_container(ContainerId(found))
    )


def _compose(run: TargetRun) -> str:
    """Return the host's compose configuration as it was resolved, secrets masked."""
    found = run.compose.configuration if run.compose else {}
    return json.dumps(run.run.mask.deep(found), indent=2) + "\n" if found else ""


def _compose_differences(run: TargetRun) -> str:
    return run.run.mask(_lines(run.compose.lines(run.run.mask))) if run.compose else ""


def _content(run: TargetRun) -> str:
    """Return every difference of the declared content, of which a reason names the first few only."""
    if run.content is None:
        return ""
    return _lines([*run.content.misplaced(), *run.content.differences()] or ["no difference"])


def _container_log(run: TargetRun, lines: int) -> str:
    found = run.facts.get("container_id")
    if found is None:
        return ""
    try:
        return run.run.mask(run.engine.logs_tail(ContainerId(found), lines).decode(errors="replace"))
    except EvidenceError as error:
        return f"{error}\n"


def _lines(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
