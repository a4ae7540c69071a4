"""The Test Anything Protocol of a staging check, judged strictly. Source: testanything.org, versions 13 and 14."""

from __future__ import annotations

from dataclasses import dataclass

from tap.line import Bail, Plan, Result
from tap.parser import Parser


@dataclass(frozen=True)
class TapSummary:
    """What a TAP stream adds up to."""

    passed: int
    problem: str
    """Why the stream does not prove that everything passed; "" when it does."""


def read_tap(output: bytes) -> TapSummary:
    """Judge a TAP stream: one plan, every test of it present once, in order and ok, no skip, no todo, no bail-out."""
    lines = list(Parser().parse_text(output.decode(errors="replace")))
    plans = [line for line in lines if isinstance(line, Plan)]
    results = [line for line in lines if isinstance(line, Result)]
    passed = sum(1 for result in results if _plainly_ok(result))
    return TapSummary(passed, _problem(plans, results, any(isinstance(line, Bail) for line in lines)))


def _plainly_ok(result: Result) -> bool:
    return bool(result.ok) and not result.skip and not result.todo


def _problem(plans: list[Plan], results: list[Result], bailed_out: bool) -> str:
    if bailed_out:
        return "it bailed out"
    for result in results:
        if not _plainly_ok(result):
            word = "skipped" if result.skip else "todo" if result.todo else "not ok"
            return f"test {result.number or '?'} is {word}: {result.description or 'no description'}"
    if len(plans) != 1:
        return f"{len(plans)} plans, expected 1"
    planned = plans[0].expected_tests
    if plans[0].skip or not planned:
        return "it plans no test"
    numbers = [result.number or place for place, result in enumerate(results, start=1)]
    if numbers != list(range(1, planned + 1)):
        return f"{len(results)} tests, {planned} planned, expected each of them once and in order"
    return ""
