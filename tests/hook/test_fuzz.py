"""Generated requests, variables and policies: never a crash, a command, or a yes; always an end in time.

One process of bash tries many, each in a subshell of its own; others are whole calls of an installed hook, on a host
whose policy requires a verdict that nobody has. `make fuzz` tries more than 100,000, `make test` some of them.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.hook.harness import PROD_ID, REVISION, RUN_ID, SCRIPT, STAGING_ID, STATUS_OF_KIND, Outcome, PretendedHost

pytestmark = pytest.mark.root  # a policy is root's

INPUTS = int(os.environ.get("FUZZ_INPUTS", "300"))
"""How many inputs of each kind."""

CALLS = int(os.environ.get("FUZZ_CALLS", "40"))
"""How many whole calls of each kind."""

BATCH = 500
SECONDS = 240.0

TRAPS = [
    *("a[$(touch {0})]", "$(touch {0})", "`touch {0}`", "; touch {0}", "| touch {0}", "\ntouch {0}", "&& touch {0}"),
    *(
        "x[$(touch {0})0]",
        "<(touch {0})",
        "' ; touch {0} '",
        '" ; touch {0} "',
        "\\$(touch {0})",
        "${{x:=$(touch {0})}}",
    ),
    *("%n%s", "*", "?", "[a-z]*", "~root", "-e", "--", "--help", "..", "/", "//", "../../etc", "\x00", "\r", "\t"),
    *("", " ", "0", "-1", "08", "1e9", "0x10", "99999999999999999999", "é", "\udce9", "a" * 5000, "=", "==", "a=b"),
]
"""What bash, printf, a path, a number or a pattern could take for more than a text. `{0}` is a file that none makes."""

EXECUTING = 13
"""How many of these, the first ones, are commands."""

GOOD = {
    "REPO": "shop",
    "RUN_ID": RUN_ID,
    "COMPOSE_DIR": "/",
    "HEALTH_PATH": "/health",
    "HEALTH_TIMEOUT": "5",
    "SETTLE": "0",
    "SOURCE_IMAGE": "shop-shop-staging",
    "EXPECTED_REVISION": REVISION,
    "EXPECTED_IMAGE_ID": STAGING_ID,
    "VERDICT": base64.b64encode(b"{}\n-----BEGIN").decode(),
    "PROD_IMAGE": "shop-shop",
    "PROD_SERVICE": "shop",
    "PROD_PORT": "8500",
    "PROD_PROFILE": "",
    "PROD_PIN": "PIN",
    "PRECHECK": "no",
    "PROD_PROXY": "",
    "PROD_PROXY_PORT": "8000",
    "PROD_DRAIN": "10",
}
POLICY = {
    "PROD_IMAGE": "shop-shop",
    "PROD_SERVICE": "shop",
    "PROD_PORT": "8500",
    "COMPOSE_DIR": "/srv/shop",
    "REPO": "shop",
    "REQUIRE": "revision image_id verdict",
    "ALLOWED_SIGNERS": "/etc/imagefresh/allowed_signers",
    "MAX_AGE": "60",
}
MODES = ["--verify", "--promote", "--build-staging", "--observe", "--lease", "--self-test", "--status", "--shell", ""]

texts = st.one_of(st.sampled_from(TRAPS), st.text(max_size=40), st.text("$`(){}[];&|<>'\"\\ \n*?~=A0", max_size=40))
names = st.one_of(st.sampled_from([*GOOD, "PATH", "LD_PRELOAD", "BASH_ENV", "IFS", "FACT", "POLICY", "x[0]"]), texts)


def raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request of a bound key: right ones with something wrong, and texts."""
    pairs = draw(st.lists(st.tuples(names, st.one_of(texts, st.sampled_from(list(GOOD.values())))), max_size=8))
    words = [draw(st.one_of(st.sampled_from(MODES), texts)), *(f"{name}={value}" for name, value in pairs)]
    return raw(draw(st.sampled_from([" ", "  ", "\n", "\t"])).join(words))


@st.composite
def variables(draw: st.DrawFn) -> bytes:
    """The variables of a promotion, of which some are something else; NAME=value, a byte 1 after each."""
    chosen = {**GOOD, **draw(st.dictionaries(st.sampled_from(list(GOOD)), texts, min_size=1, max_size=4))}
    return b"".join(raw(f"{name}={value}".replace("\x01", "")) + b"\x01" for name, value in chosen.items())


@st.composite
def policies(draw: st.DrawFn) -> bytes:
    """A policy, with lines that are changed, added, or something else."""
    lines = [f"{name}={value}" for name, value in POLICY.items()]
    for _ in range(draw(st.integers(1, 3))):
        line = draw(st.one_of(texts, st.builds("{}={}".format, st.sampled_from(list(POLICY)), texts)))
        lines.insert(draw(st.integers(0, len(lines))), line)
    return raw("\n".join(lines))


# Each reads one input, base64 in LINE, and ends as the hook itself would; CANARY must never be made.
PROGRAMS = {
    "requests": """
        SSH_ORIGINAL_COMMAND=$(base64 -d <<<"${LINE}" | tr -d '\\0')
        read_request --ssh --target shop --allow gate
        printf '{"kind":"bound"}\\n' >&3""",
    "variables": """
        mapfile -d $'\\1' -t pairs < <(base64 -d <<<"${LINE}" | tr -d '\\0')
        for pair in "${pairs[@]}"; do printf -v "${pair%%=*}" '%s' "${pair#*=}"; done
        MODE=--verify
        read_common_variables
        read_promotion_variables
        read_facts
        printf '{"kind":"asked"}\\n' >&3""",
    "policies": """
        base64 -d <<<"${LINE}" >"${POLICY_DIR}/shop.conf"
        REPO=shop PROD_IMAGE=shop-shop PROD_SERVICE=shop PROD_PORT=8500 PROD_PROXY="" COMPOSE_DIR=/srv/shop
        MODE=--verify
        find_policy
        printf '{"kind":"claimed"}\\n' >&3""",
}


def tried(kind: str, folder: Path, inputs: list[bytes]) -> list[dict[str, object]]:
    """Let the hook's own functions take each input, and return the line that each of them ended with."""
    (folder / "policies").mkdir(exist_ok=True)
    (folder / "policies" / "shop.conf").write_text("".join(f"{key}={value}\n" for key, value in POLICY.items()))
    hook = folder / "hook.sh"
    hook.write_text(SCRIPT.read_text().replace("/etc/imagefresh'", f"{folder}/policies'", 1))
    script = f"""
        source {hook}
        exec 4>/dev/null
        set +e
        while IFS= read -r LINE <&5; do
          ( set -e; exec 3>&1 >/dev/null 2>&1; reset_state; REHEARSAL=1; set_traps; {PROGRAMS[kind]}; CONCLUDED=1 )
        done"""
    lines = b"".join(base64.b64encode(each) + b"\n" for each in inputs)
    (folder / "inputs").write_bytes(lines)
    argv = ["bash", "-p", "-c", f"exec 5<{folder}/inputs; {script}"]
    done = subprocess.run(argv, cwd=folder, capture_output=True, check=False, timeout=SECONDS)
    assert done.returncode in STATUS_OF_KIND.values(), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


_Made = TypeVar("_Made")


def generated(strategy: st.SearchStrategy[_Made], count: int) -> list[_Made]:
    """Return what hypothesis makes of a strategy."""
    made: list[_Made] = []

    @settings(max_examples=count, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(each: _Made) -> None:
        made.append(each)

    collect()
    return made


EXPECTED: dict[str, Callable[[dict[str, object]], bool]] = {
    "requests": lambda line: line["kind"] in ("usage", "refused", "bound") and line.get("cause") != "internal",
    "variables": lambda line: line["kind"] in ("usage", "refused", "asked") and line.get("cause") != "internal",
    "policies": lambda line: line["kind"] in ("refused", "claimed") and line.get("cause") != "internal",
}
MAKERS = {"requests": requests(), "variables": variables(), "policies": policies()}


@pytest.mark.parametrize("kind", list(PROGRAMS))
def test_whatever_comes_it_is_a_no_and_nothing_is_run(kind: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    inputs = [each.replace(b"{0}", os.fsencode(canary)) for each in generated(MAKERS[kind], INPUTS)]
    for first in range(0, len(inputs), BATCH):
        batch = inputs[first : first + BATCH]
        lines = tried(kind, tmp_path, batch)
        assert len(lines) == len(batch)
        wrong = [(each, line) for each, line in zip(batch, lines, strict=True) if not EXPECTED[kind](line)]
        assert wrong[:1] == []
        assert not canary.exists()
        assert {path.name for path in tmp_path.iterdir()} == {"policies", "hook.sh", "inputs"}


# --- whole calls ------------------------------------------------------------------------------------------------------

POISON = {
    "BASH_ENV": "{0}.sh",
    "ENV": "{0}.sh",
    "BASH_FUNC_docker%%": "() { touch {0}; }",
    "BASH_FUNC_printf%%": "() { touch {0}; }",
    "SHELLOPTS": "xtrace",
    "PS4": "$(touch {0})",
    "IFS": "-",
    "POSIXLY_CORRECT": "1",
    "LD_PRELOAD": "/nowhere.so",
    "PATH": "/nowhere",
    "POLICY_DIR": "/nowhere",
    "DOCKER_HOST": "unix:///nowhere.sock",
    "EUID": "x[$(touch {0})]",
    "SIGNERS_UID": "x[$(touch {0})]",
    "PHASE": "swapping",
    "REHEARSAL": "1",
    "FACT": "verified",
}
"""What a caller could hope to have a say with beside the variables of the contract."""

poison = st.dictionaries(st.sampled_from(list(POISON)), st.none(), max_size=4).map(
    lambda some: {n: POISON[n] for n in some}
)


PLAUSIBLE = {
    "REPO": ["shop2", "Shop"],
    "RUN_ID": ["99990102T030405Z-89abcdef"],
    "HEALTH_PATH": ["/", "/$(x)", "/a?b=c&d"],
    "SETTLE": ["0.000001"],
    "SOURCE_IMAGE": [STAGING_ID, PROD_ID, PROD_ID[:19], "shop-shop", "missing:latest", "imagefresh-run:x"],
    "EXPECTED_REVISION": ["2" * 40, "", "*", REVISION[:12]],
    "EXPECTED_IMAGE_ID": [PROD_ID, "", "*", STAGING_ID[:19]],
    "VERDICT": ["", GOOD["VERDICT"], base64.b64encode(b'{"_type":"https://in-toto.io/Statement/v1"}\n').decode()],
    "PROD_IMAGE": ["shop-shop-staging", "docker.io/library/shop-shop:latest", "other"],
    "PROD_SERVICE": ["shop-staging", "db", "other"],
    "PROD_PORT": ["43101", "1", "65535"],
    "PROD_PROFILE": ["staging", ""],
    "PROD_PIN": ["", "OTHER", "PATH", "IFS", "FACT"],
    "LEASE": ["1" * 64, ""],
    "GIT_SHA": ["2" * 40, REVISION[:12]],
    "BUILD_CONTEXT": ["-", "/", "/etc", "."],
    "BUILD_ARGS": [base64.b64encode(b"A=$(touch {0})\0").decode(), "QQ=="],
    "TARGET_IMAGE": ["shop-shop", "imagefresh-run:x"],
    "TARGET_SERVICE": ["shop", "db"],
    "TARGET_PORT": ["43100"],
}
"""Values that get past the grammar, or nearly, and are wrong."""


def spoilt(good: Mapping[str, str]) -> st.SearchStrategy[dict[str, str]]:
    """Variables of which some are something else, or missing."""
    wrong = [(name, text) for name, texts_ in PLAUSIBLE.items() for text in texts_ if name in (*good, *GOOD)]
    plausible = st.lists(st.sampled_from(wrong), min_size=1, max_size=3)
    values = st.one_of(st.none(), st.sampled_from(TRAPS[:EXECUTING]), texts)
    odd = st.lists(st.tuples(st.sampled_from(list(good)), values), max_size=1)
    changes = st.builds(lambda some, more: {**dict(some), **dict(more)}, plausible, st.one_of(st.just([]), odd))
    return changes.map(lambda some: {name: text for name, text in {**good, **some}.items() if text is not None})


def whole_calls(kind: str, host: PretendedHost) -> st.SearchStrategy[tuple[list[str], dict[str, str]]]:
    """Arguments and environment of a call. None of them brings a verdict, and the commit is one that no clone has."""
    promotion, staging = host.promotion_variables(), {**host.staging_variables(), "GIT_SHA": "1" * 40}
    if kind != "--ssh":
        return st.tuples(st.just([kind]), st.builds(lambda some, more: {**more, **some}, spoilt(promotion), poison))
    modes = {"--verify": promotion, "--promote": promotion, "--build-staging": staging, "--lease": promotion}
    words = st.sampled_from(list(modes)).flatmap(
        lambda mode: spoilt(modes[mode]).map(lambda each: " ".join([mode, *(f"{name}={each[name]}" for name in each)]))
    )
    request = st.builds(
        "{0}{1}".format, words, st.sampled_from(["", "", "", "", " ", "\n", " REPO=shop", "; touch {0}"])
    )
    argv = st.sampled_from(["gate", "promote"]).map(lambda word: ["--ssh", "--target", "shop", "--allow", word])
    return st.tuples(argv, st.builds(lambda text, more: {**more, "SSH_ORIGINAL_COMMAND": text}, request, poison))


@pytest.mark.parametrize("kind", ["--verify", "--promote", "--ssh"])
def test_no_whole_call_is_a_yes_or_changes_anything(kind: str, pretended: PretendedHost, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "canary.sh").write_text(f"touch {canary}\n")
    pretended.policy(REPOS_DIR=str(pretended.clone.path.parent))
    seen = set()
    for argv, variables in generated(whole_calls(kind, pretended), CALLS):
        pairs = [(raw(name), raw(text.replace("{0}", str(canary)))) for name, text in variables.items()]
        env = {name: text.replace(b"\0", b"") for name, text in pairs}
        command = [str(pretended.hook.path), *argv]
        done = subprocess.run(command, env=env, input=b"", capture_output=True, check=False, timeout=SECONDS)
        if done.stdout.startswith(b'{"lease"'):  # granted, and given back since nobody speaks
            done.stdout = done.stdout.partition(b"\n")[2]
        outcome = Outcome.of(done)
        assert outcome.status in (1, 2, 11), (env, outcome)
        assert outcome.cause != "internal", (env, outcome)
        assert pretended.changes() == [], env
        assert not canary.exists(), env
        assert list(pretended.hook.temp_dir.iterdir()) == []
        pretended.set(calls=[])
        seen.add(outcome.status)
    assert seen >= {1, 2}, seen
    assert {path.name for path in pretended.compose_dir.iterdir()} <= {"compose.yaml", ".imagefresh"}
