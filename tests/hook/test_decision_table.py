"""The decision itself: every combination of facts, against a model of its own, and as the documentation shows it."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Iterator, Mapping

from tests.hook.harness import SCRIPT

DOCUMENT = SCRIPT.parents[1] / "docs" / "deploy-hook.md"

FORMS = ["missing", "empty", "malformed", "wrong", "right"]
# As they are found: what contradicts an observation, who signed, when, and whether it was used.
DOUBTS = [
    *("other-target", "other-image", "other-revision", "other-engine", "production-changed", "compose-changed"),
    *("signers", "signature", "future", "expired", "ledger", "used", "superseded"),
]
FACTS = {
    "revision": [*FORMS, "unlabelled"],
    "image_id": FORMS,
    "image": ["missing", "right"],
    "production": ["unknown", "right"],
    "verdict": ["missing", "empty", "malformed", "contract", "given", *DOUBTS, "right"],
    "frozen": ["unknown", "no", "yes"],
}
POLICIES = [
    {"policy": "no"},
    *(
        {"policy": "yes", **{f"require_{name}": "yes" for name, asked in zip(names, chosen, strict=True) if asked}}
        for names in [("revision", "image_id", "verdict")]
        for chosen in itertools.product([False, True], repeat=3)
    ),
]


def combinations() -> Iterator[dict[str, str]]:
    """Every combination of facts, with every policy and without one."""
    for policy in POLICIES:
        for states in itertools.product(*FACTS.values()):
            yield {**policy, **dict(zip(FACTS, states, strict=True))}


def expected(facts: Mapping[str, str]) -> str:
    """The decision as a person would explain it: what is said, what the image is, the verdict, last a freeze."""
    needed = {name for name in ("revision", "image_id", "verdict") if facts.get(f"require_{name}") == "yes"}
    refusal = what_is_said(facts, needed) or what_the_image_is(facts)
    if refusal or facts["verdict"] in DOUBTS:
        return refusal or f"verdict-{facts['verdict']}"
    if facts["verdict"] == "missing" and "verdict" in needed and facts["production"] == "right":
        return "verdict-missing"
    if facts["frozen"] == "yes":
        return "frozen"
    return (
        "verified"
        if facts["production"] == "right" and facts["verdict"] != "given" and facts["frozen"] == "no"
        else "undecided"
    )


def what_is_said(facts: Mapping[str, str], needed: set[str]) -> str:
    """What the caller says must be well formed, and be there where it is required."""
    for name, word in [("revision", "revision"), ("image_id", "image-id")]:
        if facts[name] in ("empty", "malformed"):
            return f"{word}-{facts[name]}"
        if facts[name] == "missing" and name in needed:
            return f"{word}-required"
    if facts["verdict"] in ("empty", "malformed", "contract"):
        return f"verdict-{facts['verdict']}"
    return "verdict-no-policy" if facts["verdict"] == "given" and facts["policy"] == "no" else ""


def what_the_image_is(facts: Mapping[str, str]) -> str:
    """It must be there, and be the very one, of the very revision."""
    if facts["image"] == "missing":
        return "image-missing"
    if facts["image_id"] == "wrong":
        return "image-id-mismatch"
    return {"unlabelled": "revision-missing", "wrong": "revision-mismatch"}.get(facts["revision"], "")


def decide(all_facts: list[dict[str, str]]) -> list[str]:
    """Let the hook's own function decide, in one process."""
    script = f"""
        source {SCRIPT}
        reset_state
        while read -ra words; do
          FACT=()
          for word in "${{words[@]}}"; do FACT[${{word%%=*}}]=${{word#*=}}; done
          judge
          printf '%s\\n' "${{REPLY}}"
        done"""
    lines = "".join(" ".join(f"{name}={state}" for name, state in facts.items()) + "\n" for facts in all_facts)
    done = subprocess.run(["bash", "-c", script], input=lines, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def rules() -> list[list[str]]:
    """The lines of DECISION, as words."""
    body = re.search(r"readonly DECISION=\(\n(.*?)\n\)", SCRIPT.read_text(), re.DOTALL)
    assert body is not None
    return [line.strip().strip("'").split() for line in body[1].splitlines()]


def test_every_combination_is_decided_as_the_model_decides() -> None:
    """Whatever is missing, empty, malformed or wrong, with every policy: the same cause, and one way to `verified`."""
    facts = list(combinations())
    observed = decide(facts)
    assert len(observed) == len(facts) > 50_000
    different = [
        (each, expected(each), cause) for each, cause in zip(facts, observed, strict=True) if expected(each) != cause
    ]
    assert different[:3] == []
    accepted = [each for each, cause in zip(facts, observed, strict=True) if cause == "verified"]
    assert accepted
    for each in accepted:
        assert {each["image"], each["production"]} == {"right"}
        assert each["frozen"] == "no"
        for name in ("revision", "image_id", "verdict"):
            assert each[name] == "right" or (each[name] == "missing" and f"require_{name}" not in each)


def test_what_is_not_known_yet_is_never_accepted() -> None:
    good = {"policy": "no", "revision": "right", "image_id": "right", "image": "right", "production": "right"}
    good |= {"verdict": "missing", "frozen": "no"}
    assert decide([good]) == ["verified"]
    for name in ("revision", "image_id", "image", "production", "verdict", "frozen"):
        partly = {fact: state for fact, state in good.items() if fact != name}
        odd = [{**partly, name: state} for state in ("unknown", "Right", "right|missing", "", "*", "true")]
        assert set(decide([partly, *odd])) == {"undecided"}, name


def test_the_documentation_shows_the_decision_as_it_is() -> None:
    table = ["| # | facts | decision |", "|---|---|---|"]
    for number, (cause, *facts) in enumerate(rules(), start=1):
        shown = ", ".join(f"{fact.replace('=', ' ').replace('|', ' or ')}" for fact in facts)
        table.append(f"| {number} | {shown} | `{cause}` |")
    assert "\n".join(table) in DOCUMENT.read_text(), "\n".join(["expected in docs/deploy-hook.md:", *table])
