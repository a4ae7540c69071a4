"""The Test Anything Protocol of a staging check, judged strictly. Source: testanything.org, versions 13 and 14."""

from __future__ import annotations

from dataclasses import dataclass

from tap.line import Bail, Plan, Result
from tap.parser import Parser


@dataclass(frozen=True)
class TapTest:
    """One line of a TAP stream that says how a test ended."""

    name: str
    problem: str
    """`not ok`, `skipped` or `todo`; "" when it is plainly ok."""


@dataclass(frozen=True)
class TapSummary:
    """What a TAP stream adds up to."""

    tests: tuple[TapTest, ...]
    problem: str
    """Why the stream does not prove that everything passed; "" when it does."""

    @property
    def passed(self) -> int:
        """How many tests are plainly ok."""
        return sum(1 for test in self.tests if not test.problem)


def read_tap(output: bytes) -> TapSummary:
    """Judge a TAP stream: one plan, every test of it present once, in order and ok, no skip, no todo, no bail-out."""
    lines = list(Parser().parse_text(output.decode(errors="replace")))
    plans = [line for line in lines if isinstance(line, Plan)]
    results = [line for line in lines if isinstance(line, Result)]
    numbers = [result.number or place for place, result in enumerate(results, start=1)]
    tests = tuple(
        TapTest(_name(number, result), _word(result)) for number, result in zip(numbers, results, strict=True)
    )
    if any(isinstance(line, Bail) for line in lines):
        return TapSummary(tests, "it bailed out")
    return TapSummary(tests, _problem(plans, numbers, tests))


def _name(number: int, result: Result) -> str:
    description = str(result.description).removeprefix("-").strip()
    return f"{number} {description}".rstrip()


def _word(result: Result) -> str:
    if result.skip:
        return "skipped"
    return "todo" if result.todo else "" if result.ok else "not ok"


def _problem(plans: list[Plan], numbers: list[int], tests: tuple[TapTest, ...]) -> str:
    for test in tests:
        if test.problem:
            return f"test {test.name} is {test.problem}"
    if len(plans) != 1:
        return f"{len(plans)} plans, expected 1"
    planned = plans[0].expected_tests
    if plans[0].skip or not planned:
        return "it plans no test"
    if numbers != list(range(1, planned + 1)):
        return f"{len(tests)} tests, {planned} planned, expected each of them once and in order"
    return ""
