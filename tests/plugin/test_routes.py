"""Every route by which a session can end green although the gate is not proven: none of them passes the gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forks import Forks
from tests.gate_folder import GateFolder
from tests.plugin.place import Place
from tests.plugin.routes import HARMLESS, ROUTES, Route

pytestmark = pytest.mark.sessions

Here = Callable[[Route], Place]


@pytest.fixture
def here(shared: GateFolder, forks: Forks, tmp_path: Path) -> Here:
    """A function that returns the place of a route."""
    return lambda route: Place(shared, forks, tmp_path, route)


def by_name(routes: list[Route]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("route", routes, ids=lambda route: route.name)


@by_name(ROUTES)
def test_no_route_passes_the_gate(here: Here, route: Route) -> None:
    place = here(route)
    place.put_gates()
    ended = place.gate()
    assert ended.status in route.statuses, ended
    assert place.complete_records() == [], ended
    if route.blind:
        return
    assert ended.status != 0, ended
    assert ended.says(route.says), ended
    problems = place.problems()
    if problems is not None:
        assert problems, ended
        assert not [text for text in problems if not text or text.startswith(("Traceback", "None"))]
        if ended.status == 10:
            assert any("the gate is not complete" in text for text in problems), problems


@pytest.mark.plain
@by_name([route for route in ROUTES if route.plain])
def test_the_route_is_a_hole_in_plain_pytest(here: Here, route: Route) -> None:
    place = here(route)
    place.put_plain_tests()
    ended = place.plain()
    assert ended.status == 0, ended


@by_name(HARMLESS)
def test_what_is_harmless_still_passes(here: Here, route: Route) -> None:
    place = here(route)
    place.put_gates()
    ended = place.gate()
    assert ended.status == 0, ended
    assert place.complete_records(), ended
    assert not place.problems(), ended


def test_the_tables_hold_what_they_promise() -> None:
    names = [route.name for route in [*ROUTES, *HARMLESS]]
    assert len(names) == len(set(names))
    assert len(ROUTES) >= 100
    assert len(HARMLESS) >= 15
    assert sum(route.plain for route in ROUTES) >= 100
    assert [route.name for route in ROUTES if 0 in route.statuses and not route.blind] == []
