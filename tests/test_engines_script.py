"""scripts/engines.sh, as far as it starts nothing; `make engines` does the rest."""

from __future__ import annotations

import pytest

from tests.engines.kinds import KINDS
from tests.support import ROOT, run

SCRIPT = ROOT / "scripts/engines.sh"
USAGE = "engines: usage: scripts/engines.sh list | up NAME | down [NAME] | run NAME COMMAND...\n"


def test_its_engines_are_those_that_the_matrix_knows() -> None:
    assert run([SCRIPT, "list"]).stdout.split() == list(KINDS)


@pytest.mark.parametrize("words", [[], ["up"], ["list", "podman"], ["run", "podman"], ["start", "podman"]], ids=str)
def test_a_wrong_call_says_how_it_is_called(words: list[str]) -> None:
    done = run([SCRIPT, *words], check=False)
    assert (done.returncode, done.stderr) == (1, USAGE)


@pytest.mark.parametrize("words", [["up", "docker"], ["down", "sid"], ["run", "", "true"]], ids=str)
def test_an_unknown_engine_is_named_and_nothing_happens(words: list[str]) -> None:
    done = run([SCRIPT, *words], check=False)
    assert done.returncode == 1
    assert done.stderr == f"engines: no engine is called '{words[1]}'; there are: {' '.join(KINDS)}\n"
