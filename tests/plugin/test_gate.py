"""The gate as a pytest session: exit status, reports, and what a lying or failing host does to them."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import pytest

from pytest_imagefresh.core.chain import Link
from tests.gate_folder import GateFolder
from tests.support import ROOT

GATES = ROOT / "gates"


def record(folder: GateFolder) -> dict[str, Any]:
    """Return the newest record of a run."""
    runs = sorted((folder.path / ".imagefresh" / "shop").iterdir())
    found: dict[str, Any] = json.loads((runs[-1] / "shop" / "chain.json").read_text())
    return found


def test_a_complete_gate_passes_and_leaves_a_record(gate_folder: GateFolder) -> None:
    ended = gate_folder.gate()
    assert ended.status == 0, ended
    assert ended.says("^GATE PASSED$")
    assert ended.says(
        "^  compose: the commit has no compose file; staging runs as the host's own says; see compose-diff"
    )
    kept = record(gate_folder)
    assert kept["complete"] is True
    assert kept["revision"] == gate_folder.revision
    assert [proof["link"] for proof in kept["proofs"]] == [link.name for link in Link]


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("build-fails", "staging was not rebuilt: the build failed: no space left"),
        ("stale-image", "revision label of sha256:.* is 2222.*, expected"),
        ("perfect-json", "the engine has no (image|container) "),
        ("other-image-runs", "image of container shop-staging is sha256:eeee"),
        ("touches-production", "production changed while the gate ran"),
        ("answers-while-paused", "somebody else answers on port 8501 at 127.0.0.1: a byte came while container"),
        ("port-shared", "port 8501 is published by old .* too, expected container shop-staging alone"),
        ("command-replaced", "what container shop-staging runs is sh, expected"),
        ("check-fails", "the staging check ended with 1, expected 0"),
        ("accepts-everything", "the hook would promote a wrong revision"),
        ("refuses-everything", "the hook refuses the validated image"),
    ],
)
def test_any_single_broken_link_refuses(gate_folder: GateFolder, fault: str, sentence: str) -> None:
    ended = gate_folder.gate(faults=[fault])
    assert ended.status == 1, ended
    assert ended.says("^REFUSED$")
    assert ended.says(f"^{sentence}")
    assert ended.says("^FAILED ")
    assert record(gate_folder)["complete"] is False


@pytest.mark.parametrize("fault", ["engine-down", "hook-unknown", "no-deadman", "never-arrives"])
def test_only_infrastructure_errors_are_told_apart(gate_folder: GateFolder, fault: str) -> None:
    ended = gate_folder.gate(faults=[fault])
    assert ended.status == 11, ended
    assert ended.says("^COULD NOT FIND OUT$")
    assert ended.says("^ERROR ")
    assert not ended.says("^FAILED ")


def test_a_refusal_beside_infrastructure_errors_is_a_refusal(gate_folder: GateFolder) -> None:
    tests = _with(gate_folder, "def test_no(): raise SystemError")
    assert gate_folder.gate(faults=["hook-unknown"], tests=tests).status == 1


def _with(folder: GateFolder, source: str) -> list[str]:
    (folder.path / "test_own.py").write_text(source + "\n")
    return [str(GATES), "test_own.py"]


@pytest.mark.parametrize(
    "options",
    [
        ["-k", "hook"],
        ["-k", "not production"],
        ["--collect-only"],
        ["--setup-only"],
        ["--setup-plan"],
        ["--deselect", "test_provenance.py::test_production_is_untouched[shop]"],
        ["--ignore", str(GATES / "test_provenance.py")],
        ["--maxfail=1", "-k", "hook"],
        ["--help"],
    ],
    ids=str,
)
def test_a_run_that_leaves_something_out_is_incomplete(gate_folder: GateFolder, options: list[str]) -> None:
    ended = gate_folder.gate(*options)
    assert ended.status == 10, ended
    assert not ended.says("weakened: "), ended


def test_a_marker_that_selects_nothing_proves_nothing(gate_folder: GateFolder) -> None:
    assert gate_folder.gate("-m", "docker_is_no_mark").status == 5


def test_weakening_options_of_the_environment_do_not_pass(gate_folder: GateFolder) -> None:
    assert gate_folder.gate(addopts="-k hook").status == 10
    assert gate_folder.gate(addopts="-k hook --gate-partial").status == 10


def test_a_partial_run_says_so_and_leaves_no_verdict(gate_folder: GateFolder) -> None:
    ended = gate_folder.gate("--gate-partial", "-k", "hook")
    assert ended.status == 0, ended
    assert ended.says("^PARTIAL: no verdict")
    assert record(gate_folder)["complete"] is False


def test_a_reuse_rebuilds_nothing(gate_folder: GateFolder) -> None:
    ended = gate_folder.gate("--gate-reuse")
    assert ended.status == 1, ended
    assert ended.says("revision label of .* is 1111")
    assert not ended.says("staging was not rebuilt")


SESSION_TRICKS = {
    "exit early in configure": "def pytest_configure(config): import pytest; pytest.exit('done', returncode=0)",
    "exit early at session start": "def pytest_sessionstart(session): import pytest; pytest.exit('done', returncode=0)",
    "exit early in a test": "def pytest_runtest_setup(item): import pytest; pytest.exit('done', returncode=0)",
    "drop all items": "def pytest_collection_modifyitems(items): items.clear()",
    "drop one item": "def pytest_collection_modifyitems(items): items.pop()",
    "skip everything": "def pytest_runtest_setup(item): import pytest; pytest.skip('not today')",
    "skip in the call": "def pytest_runtest_call(item): import pytest; pytest.skip('not today')",
    "expect failures": "def pytest_itemcollected(item): import pytest; item.add_marker(pytest.mark.xfail)",
    "do not call the test": "def pytest_pyfunc_call(pyfuncitem): return True",
    "replace the protocol": "def pytest_runtest_protocol(item): return True",
    "replace the loop": "def pytest_runtestloop(session): return True",
}


@pytest.mark.parametrize("trick", SESSION_TRICKS)
def test_a_session_that_ends_green_without_proof_does_not_pass(gate_folder: GateFolder, trick: str) -> None:
    below = gate_folder.path / "tricks"
    below.mkdir()
    (below / "tricky.py").write_text(SESSION_TRICKS[trick] + "\n")
    ended = gate_folder.gate("-p", "tricks.tricky")
    assert ended.status not in (0, None), ended


def test_a_plugin_cannot_lower_the_exit_status(gate_folder: GateFolder) -> None:
    (gate_folder.path / "lower.py").write_text("def pytest_sessionfinish(session): session.exitstatus = 0\n")
    assert gate_folder.gate("-p", "lower", faults=["stale-image"]).status == 1


def test_a_test_that_proves_nothing_proves_nothing(gate_folder: GateFolder) -> None:
    gates = gate_folder.path / "gates"
    gates.mkdir()
    for name in ("test_staging_fresh.py", "test_provenance.py"):
        (gates / name).write_text((GATES / name).read_text())
    text = (gates / "test_provenance.py").read_text()
    (gates / "test_provenance.py").write_text(text.replace("    prove(check_label(", "    print(check_label("))
    ended = gate_folder.gate(tests=["gates"])
    assert ended.status == 10, ended
    assert ended.says("not proven: shop: image carries the validated revision")


@pytest.mark.parametrize(
    ("folder", "faults", "files", "sentence"),
    [
        ("/app", (), 'content_ignore = ["*.log"]', ""),
        ("/app", ("image-has-more",), 'content_ignore = ["*.log"]', ""),
        (
            "/app",
            ("image-has-more",),
            "",
            r"the image differs from the commit: /app/debug.log \(extra\); expected 1 ",
        ),
        ("/srv", (), "", "the image does not have the declared content: /srv is not there; expected a folder"),
    ],
    ids=str,
)
def test_declared_content_is_compared(
    gate_folder: GateFolder, folder: str, faults: tuple[str, ...], files: str, sentence: str
) -> None:
    with (gate_folder.path / "imagefresh.toml").open("a") as settings:
        settings.write(f'[targets.shop]\n{files}\n[targets.shop.content]\n"{folder}" = "."\n')
    ended = gate_folder.gate(faults=faults)
    assert ended.status == (1 if sentence else 0), ended
    assert ended.says(f"^{sentence}")
    proven = {proof["link"]: proof["reason"] for proof in record(gate_folder)["proofs"]}
    assert sentence or proven["CONTENT"].startswith("the image holds 1 file of the commit, and ")
    evidence = [path.read_text() for path in gate_folder.path.glob(".imagefresh/shop/*/shop/content.txt")]
    assert ("/app/debug.log (extra)\n" in "".join(evidence)) is ("extra" in sentence)


def test_an_own_gate_test_belongs_to_the_gate(gate_folder: GateFolder) -> None:
    own = """
import pytest
pytestmark = pytest.mark.gate
def test_own(staging_url, validated_revision, staging_exec, target):
    if target.name != "shop" or staging_exec(["true"]).exit_status != 0:
        raise RuntimeError(target.name)
def test_left_out():
    pytest.skip("later")
"""
    ended = gate_folder.gate(tests=_with(gate_folder, own))
    assert ended.status == 10, ended
    assert ended.says(r"test_own.py::test_left_out\[shop\]")
    assert gate_folder.gate(tests=_with(gate_folder, own.replace('pytest.skip("later")', "pass"))).status == 0


def test_every_link_is_a_case_of_the_junit_report(gate_folder: GateFolder) -> None:
    gate_folder.gate("--junitxml=gate.xml")
    suite = ElementTree.parse(gate_folder.path / "gate.xml").getroot()[0]
    assert len(suite.findall("testcase")) == len(Link) + len(["gate complete"])
    properties = {each.get("name"): each.get("value") for each in suite.iter("property")}
    assert properties["shop.revision"] == gate_folder.revision
    assert str(properties["shop.image_id"]).startswith("sha256:")


def test_failures_and_errors_are_told_apart_in_the_junit_report(gate_folder: GateFolder) -> None:
    gate_folder.gate("--junitxml=gate.xml", faults=["stale-image"])
    refused = ElementTree.parse(gate_folder.path / "gate.xml").getroot()[0]
    assert (int(refused.get("failures", 0)) > 0, int(refused.get("errors", 0))) == (True, 0)
    gate_folder.gate("--junitxml=gate.xml", faults=["hook-unknown"])
    unknown = ElementTree.parse(gate_folder.path / "gate.xml").getroot()[0]
    assert (int(unknown.get("failures", 0)), int(unknown.get("errors", 0)) > 0) == (0, True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--repo", "nosuch"], "nosuch"),
        (["--repo", "../shop"], "not a repo name"),
        (["--repo", ""], "not a repo name"),
        (["--branch", ""], "the branch is empty"),
        (["--branch", "a b"], "not a branch name"),
        (["--gate-config", "missing.toml"], "missing.toml"),
        (["--gate-revision", "abc"], "abc"),
        (["--gate-revision", ""], "''"),
    ],
    ids=str,
)
def test_wrong_usage_is_one_clear_line(gate_folder: GateFolder, options: list[str], sentence: str) -> None:
    ended = gate_folder.gate(*options)
    assert ended.status == 4, ended
    assert ended.says(f"^ERROR: imagefresh: .*{sentence}")
    assert "Traceback" not in ended.output


def test_a_bad_setting_is_one_clear_line(gate_folder: GateFolder) -> None:
    (gate_folder.path / "imagefresh.toml").write_text("enabeld = false\n")
    ended = gate_folder.gate()
    assert ended.status == 4, ended
    assert ended.says("^ERROR: imagefresh: .*enabeld")


def test_a_branch_that_is_not_checked_out_is_refused_everywhere(gate_folder: GateFolder) -> None:
    gate_folder.git("checkout", "-q", "--detach")
    ended = gate_folder.gate()
    assert ended.status == 1, ended
    assert not ended.says("^ERROR gates")
    assert gate_folder.gate("--gate-revision", gate_folder.revision).status == 0


def test_off_is_loud_green_and_no_verdict(gate_folder: GateFolder) -> None:
    (gate_folder.path / ".env").write_text("IMAGEFRESH_ENABLED=false\n")
    ended = gate_folder.gate()
    assert ended.status == 0, ended
    assert ended.says("NOT GATED: ")
    assert not (gate_folder.path / ".imagefresh").exists()


@pytest.mark.parametrize(
    ("source", "status"),
    [("import no_such_module", 2), ("import pytest; pytest.skip('all', allow_module_level=True)", 0)],
)
def test_a_module_beside_the_gates_that_cannot_be_collected(gate_folder: GateFolder, source: str, status: int) -> None:
    ended = gate_folder.gate(tests=_with(gate_folder, source))
    assert ended.status == status, ended
    assert "INTERNALERROR" not in ended.output


def test_without_repo_the_plugin_is_inert(gate_folder: GateFolder) -> None:
    heavy = ("docker", "paramiko", "requests", "rich", "msgspec", "click")
    (gate_folder.path / "test_other.py").write_text(
        "import sys\n"
        "def test_own_docker_fixtures(docker_cleanup, docker_setup, docker_compose_command):\n"
        "    assert docker_cleanup == ['down -v'] and docker_setup == ['up --build --wait']\n"
        "    assert docker_compose_command == 'docker compose'\n"
        f"def test_nothing_heavy():\n    assert not set({heavy!r}) & set(sys.modules)\n"
    )
    gate_folder.forks = None
    ended = gate_folder.pytest("test_other.py")
    assert ended.status == 0, ended
    assert "imagefresh:" not in ended.output


def test_docker_fixtures_point_at_staging_for_gate_tests_only(gate_folder: GateFolder) -> None:
    (gate_folder.path / "test_other.py").write_text(
        "def test_plain(docker_cleanup):\n    assert docker_cleanup == ['down -v']\n"
    )
    (gate_folder.path / "test_mine.py").write_text(
        "import pytest\n"
        "@pytest.mark.gate\n"
        "def test_mine(docker_cleanup, docker_setup, docker_ip):\n"
        "    assert (docker_cleanup, docker_setup, docker_ip) == ([], [], '127.0.0.1')\n"
    )
    ended = gate_folder.gate(tests=[str(GATES), "test_other.py", "test_mine.py"])
    assert ended.status == 0, ended


@pytest.mark.parametrize("below", ["", "/deploy"], ids=["the worktree", "below it"])
def test_a_compose_folder_that_the_branch_can_change_is_refused(gate_folder: GateFolder, below: str) -> None:
    """A compose file may mount the host's root: nothing of it may be the branch's."""
    path = gate_folder.path / "imagefresh.toml"
    own = f'repo_path = "{gate_folder.repo}{below}"\n' if below else ""
    path.write_text(path.read_text().replace('repo_path = "/srv/shop"\n', own))
    ended = gate_folder.gate()
    assert ended.status == 1
    assert ended.says("lies in the worktree of branch work, expected a folder that no branch can change")
    assert "--build-staging" not in ended.output
