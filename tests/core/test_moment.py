"""What is told of a step: lines that fit, and foreign text that can do nothing to a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_imagefresh.core.moment import Moment, fit, printable, shows_live

MOMENT = Moment("", 12.34, f"building shop at {'0123456789' * 4}", 8.06, "#7 RUN make")


def test_a_step_has_one_line_at_its_start_and_one_at_its_end() -> None:
    assert MOMENT.started() == f"imagefresh  12.3 s  building shop at {'0123456789' * 4}"
    assert MOMENT.ended(broken_off=False) == f"{MOMENT.started()}  (8.1 s)"
    assert MOMENT.ended(broken_off=True) == f"{MOMENT.started()}  (8.1 s, broken off)"
    assert MOMENT.lasts() == f"{MOMENT.started()}  (8.1 s so far)  #7 RUN make"


def test_a_live_line_leaves_room_for_the_output() -> None:
    assert MOMENT.live(79) == "imagefresh  12.3 s  building shop at 012345678901  (8.1 s)  #7 RUN make"
    assert MOMENT.live(30) == "imagefresh  12.3 s  building s"


def test_a_worker_names_its_target() -> None:
    assert Moment("shop", 1, "checking", 0, "").started() == "imagefresh   1.0 s  shop: checking"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("#7 RUN make", "#7 RUN make"),
        ("  two \t words \n", "two words"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[1;1Hgone", "gone"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jgone", "gone"),
        ("10%\r20%\r30%", "30%"),
        ("30%\r\x1b[K", "30%"),
        ("bell\x07 back\x08 null\x00", "bell back null"),
        ("left\u202eright\u2028next", "left right next"),
        ("half \x1b[", "half"),
        ("grün 漢字", "grün 漢字"),
        ("", ""),
    ],
)
def test_foreign_output_is_only_text(text: str, seen: str) -> None:
    assert printable(text) == seen


@given(st.text(alphabet=st.sampled_from("\x1b[]0;mKJ\x07\x9b\r\n\\ab \x08\x00"), max_size=40))
def test_nothing_that_controls_a_terminal_is_left(text: str) -> None:
    assert printable(text).isprintable()


@given(st.text(max_size=60), st.integers(0, 40))
def test_what_fits_is_a_beginning_and_no_wider_than_asked(text: str, columns: int) -> None:
    assert text.startswith(fit(text, columns))
    assert len(fit("漢" * 40, columns)) == min(40, columns // 2)


@pytest.mark.parametrize(
    ("terminal", "environment", "live"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "CI": ""}, True),
        (False, {"TERM": "xterm"}, False),
        (True, {"TERM": "dumb"}, False),
        (True, {}, False),
        (True, {"TERM": "xterm", "CI": "true"}, False),
        (True, {"TERM": "xterm", "BUILD_NUMBER": "7"}, False),
    ],
)
def test_only_a_person_at_a_terminal_gets_a_live_line(terminal: bool, environment: dict[str, str], live: bool) -> None:
    assert shows_live(terminal, environment) is live
