"""The Test Anything Protocol of a staging check, judged strictly. Source: testanything.org, versions 13 and 14."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tap.line import Bail, Plan, Result
from tap.parser import Parser

_NOT_OK = "not ok"
_BAILED_OUT = "it bailed out"
_NOTHING_PLANNED = "it plans no test"

_LOOKS_LIKE_PLAN = re.compile(r"1(?!\.\.)..\d")
_INNER_NO = re.compile(rb"^[ \t]+(not ok\b|Bail out!).*", re.MULTILINE)


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
    inner = _INNER_NO.search(output)
    if inner is not None:
        # A parser of TAP 13 passes over subtests, whose end their parent may well deny.
        said = inner[0].decode(errors="replace").strip()
        return TapSummary((TapTest(said, _NOT_OK),), f"a subtest says: {said}")
    try:
        lines = _parse(output)
    except ValueError as error:
        return TapSummary((), f"it is no TAP: {error}")
    plans = [line for line in lines if isinstance(line, Plan)]
    results = [line for line in lines if isinstance(line, Result)]
    numbers = [result.number or place for place, result in enumerate(results, start=1)]
    tests = tuple(
        TapTest(_name(number, result), _word(result)) for number, result in zip(numbers, results, strict=True)
    )
    if any(isinstance(line, Bail) for line in lines):
        return TapSummary(tests, _BAILED_OUT)
    return TapSummary(tests, _problem(plans, numbers, tests))


def find_contradiction(output: bytes) -> str:
    """Return how the output of a check that ended with 0 says no, in the words of TAP; "" where it does not.

    For a check that need not speak TAP: a test that is not ok, a bail-out, or a stream in which nothing was tried.
    """
    tap = read_tap(output)
    failed = next((test.name for test in tap.tests if test.problem == _NOT_OK), "")
    if failed:
        return f"test {failed} is {_NOT_OK}"
    if tap.tests and not tap.passed:
        return "no test of it was tried"
    return tap.problem if tap.problem in (_BAILED_OUT, _NOTHING_PLANNED) else ""


def _parse(output: bytes) -> list[object]:
    """Return the lines of a stream. Raises ValueError for a version or a number that no stream can have."""
    text = output.decode(errors="replace")
    # To tap.py "1x23" is a plan, too.
    return list(Parser().parse_text("\n".join(line for line in text.split("\n") if not _LOOKS_LIKE_PLAN.match(line))))


def _name(number: int, result: Result) -> str:
    description = str(result.description).removeprefix("-").strip()
    return f"{number} {description}".rstrip()


def _word(result: Result) -> str:
    if result.skip:
        return "skipped"
    return "todo" if result.todo else "" if result.ok else _NOT_OK


def _problem(plans: list[Plan], numbers: list[int], tests: tuple[TapTest, ...]) -> str:
    for test in tests:
        if test.problem:
            return f"test {test.name} is {test.problem}"
    if len(plans) != 1:
        return f"{len(plans)} plans, expected 1"
    planned = plans[0].expected_tests
    if plans[0].skip or not planned:
        return _NOTHING_PLANNED
    if numbers != list(range(1, planned + 1)):
        return f"{len(tests)} tests, {planned} planned, expected each of them once and in order"
    return ""
