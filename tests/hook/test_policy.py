"""The host's policy: found by what production is, strictly parsed, and never passed by."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hook.harness import PretendedHost

pytestmark = pytest.mark.root  # a policy is root's

NO_VERDICT = {"REQUIRE": "revision image_id"}


def test_what_a_policy_claims_is_promoted_as_it_says(pretended: PretendedHost) -> None:
    pretended.policy(**NO_VERDICT)
    assert pretended.promote().verdict == (0, "promoted")


@pytest.mark.parametrize(
    ("variable", "require", "cause"),
    [
        ("EXPECTED_REVISION", "revision", "revision-required"),
        ("EXPECTED_IMAGE_ID", "image_id", "image-id-required"),
        ("EXPECTED_IMAGE_ID", "revision image_id", "image-id-required"),
    ],
)
def test_what_a_policy_requires_cannot_be_left_out(
    pretended: PretendedHost, variable: str, require: str, cause: str
) -> None:
    assert pretended.verify(**{variable: None}).verdict == (0, "verified")
    pretended.policy(REQUIRE=require)
    assert pretended.verify(**{variable: None}).verdict == (1, cause)
    assert pretended.promote(**{variable: None}).verdict == (1, cause)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"PROD_IMAGE": "shop-other"}, "policy-mismatch"),
        ({"PROD_SERVICE": "other"}, "policy-mismatch"),
        ({"PROD_PORT": "43199"}, "policy-mismatch"),
        ({"PROD_IMAGE": "x", "PROD_SERVICE": "x"}, "policy-mismatch"),
        ({"PROD_IMAGE": "x", "PROD_SERVICE": "x", "PROD_PORT": "1"}, "policy-unclaimed"),
    ],
    ids=str,
)
def test_no_caller_finds_a_way_round_by_naming_another_target(
    pretended: PretendedHost, changes: dict[str, str], cause: str
) -> None:
    pretended.policy(**NO_VERDICT)
    for outcome in (pretended.verify(**changes), pretended.promote(**changes), pretended.self_test(**changes)):
        assert outcome.verdict == (1, cause), outcome.reason
    assert pretended.changes() == []


def test_another_compose_folder_is_another_target(pretended: PretendedHost, tmp_path: Path) -> None:
    pretended.policy(**NO_VERDICT)
    (tmp_path / "elsewhere").mkdir()
    assert pretended.verify(COMPOSE_DIR=str(tmp_path / "elsewhere")).verdict == (1, "policy-mismatch")
    (tmp_path / "link").symlink_to(pretended.compose_dir)
    assert pretended.verify(COMPOSE_DIR=str(tmp_path / "link")).verdict == (0, "verified")


@pytest.mark.parametrize("image", ["shop-shop:latest", "docker.io/shop-shop", "docker.io/library/shop-shop:latest"])
def test_a_reference_is_what_the_engine_makes_of_it(pretended: PretendedHost, image: str) -> None:
    pretended.policy(**NO_VERDICT, PROD_IMAGE=image)
    assert pretended.verify().verdict == (0, "verified")


def test_a_folder_without_a_policy_promotes_nothing(pretended: PretendedHost) -> None:
    pretended.policies.mkdir()
    assert pretended.promote().verdict == (1, "policy-unclaimed")
    (pretended.policies / "README").write_text("no policy\n")
    assert pretended.promote().verdict == (1, "policy-unclaimed")


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"PROD_SERVICE": "b", "PROD_PORT": "2"}, "image shop-shop:latest"),
        ({"PROD_IMAGE": "b", "PROD_SERVICE": "b"}, "port 43100"),
        ({"PROD_IMAGE": "b", "PROD_PORT": "2"}, "service shop of "),
    ],
    ids=str,
)
def test_two_policies_may_not_claim_one_target(pretended: PretendedHost, changes: dict[str, str], claim: str) -> None:
    pretended.policy(**NO_VERDICT)
    pretended.policy("other", **NO_VERDICT, **changes)
    outcome = pretended.verify()
    assert outcome.verdict == (1, "policy-conflict")
    assert claim in outcome.reason


def test_two_policies_for_two_targets(pretended: PretendedHost) -> None:
    pretended.policy(**NO_VERDICT)
    pretended.policy("other", PROD_IMAGE="b", PROD_SERVICE="b", PROD_PORT="2")
    assert pretended.verify().verdict == (0, "verified")


@pytest.mark.parametrize(
    "line",
    [
        "UNKNOWN=1",
        "prod_image=shop",
        "PROD_PORT=43100",
        " MAX_AGE=5",
        "MAX_AGE = 5",
        "MAX_AGE=",
        "MAX_AGE=0",
        "MAX_AGE=-1",
        "MAX_AGE=5 ",
        'MAX_AGE="5"',
        "MAX_AGE=$(id)",
        "MAX_AGE=5; touch /tmp/x",
        "BREAK_GLASS=maybe",
        "REPO=../shop",
        "REPOS_DIR=relative",
        "export MAX_AGE=5",
        "a sentence",
        "\tMAX_AGE=5",
        "MAX_AGE=5\r",
        "MAX_AGE=5\0",
        "MAX_\xe9=5",
        "x[$(id)]=5",
    ],
    ids=ascii,
)
def test_any_other_line_is_refused(pretended: PretendedHost, line: str) -> None:
    path = pretended.policy(**NO_VERDICT)
    path.write_text(f"{path.read_text()}{line}\n")
    outcome = pretended.verify()
    assert outcome.verdict == (1, "policy-invalid"), outcome.reason
    assert str(path) in outcome.reason


@pytest.mark.parametrize(
    "key", ["PROD_IMAGE", "PROD_SERVICE", "PROD_PORT", "COMPOSE_DIR", "REQUIRE", "ALLOWED_SIGNERS"]
)
def test_a_key_that_is_needed_is_not_guessed(pretended: PretendedHost, key: str) -> None:
    pretended.policy(**{key: None})
    outcome = pretended.verify()
    assert outcome.verdict == (1, "policy-invalid")
    assert f"{key}=" in outcome.reason


@pytest.mark.parametrize("require", ["nothing", "revision,verdict", "revision  verdict", " revision", "Revision"])
def test_a_requirement_that_is_none_is_refused(pretended: PretendedHost, require: str) -> None:
    pretended.policy(REQUIRE=require)
    assert pretended.verify().verdict == (1, "policy-invalid")


def test_comments_and_a_last_line_without_its_end(pretended: PretendedHost) -> None:
    path = pretended.policy(**NO_VERDICT)
    path.write_text(f"# production of the shop\n\n{path.read_text()}MAX_AGE=60")
    assert pretended.verify().verdict == (0, "verified")


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    """Let something else be where a file, or a folder with one file, was."""
    if path.is_dir():
        next(path.iterdir()).unlink()
        path.rmdir()
    else:
        path.unlink()
    make(path)


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def _unsafe(host: PretendedHost) -> dict[str, Callable[[], object]]:
    path, folder = host.policy(**NO_VERDICT), host.policies
    return {
        "a group may write the file": lambda: path.chmod(0o664),
        "all may write the file": lambda: path.chmod(0o646),
        "the file is somebody else's": lambda: os.chown(path, 1000, 0),
        "all may write the folder": lambda: folder.chmod(0o777),
        "the folder is somebody else's": lambda: os.chown(folder, 1000, 0),
        "the file is a link": lambda: _link(path),
        "the file is a folder": lambda: _replace(path, Path.mkdir),
        "the link leads nowhere": lambda: _replace(path, lambda each: each.symlink_to("nowhere")),
        "the folder is a file": lambda: _replace(folder, Path.touch),
        "the folder is a link that leads nowhere": lambda: _replace(folder, lambda each: each.symlink_to("nowhere")),
    }


@pytest.mark.parametrize("fault", list(range(10)))
def test_a_policy_that_others_could_have_written_is_none(pretended: PretendedHost, fault: int) -> None:
    name, inject = list(_unsafe(pretended).items())[fault]
    inject()
    for outcome in (pretended.verify(), pretended.promote(), pretended.staging()):
        assert outcome.verdict == (1, "policy-unsafe"), name


def test_no_variable_of_the_caller_moves_the_policy(pretended: PretendedHost, tmp_path: Path) -> None:
    pretended.policy(REQUIRE="verdict")
    for name in ("POLICY_DIR", "POLICY", "POLICIES", "FACT", "SIGNERS_UID", "LEDGER", "POLICED"):
        assert pretended.verify(**{name: str(tmp_path)}).verdict == (1, "verdict-missing")


# --- staging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"PROD_IMAGE": "shop-shop-staging", "PROD_SERVICE": "b", "PROD_PORT": "2"},
        {"PROD_IMAGE": "b", "PROD_SERVICE": "shop-staging", "PROD_PORT": "2"},
        {"PROD_IMAGE": "b", "PROD_SERVICE": "b", "PROD_PORT": "43101"},
    ],
    ids=str,
)
def test_staging_is_nothing_that_a_policy_claims_as_production(
    pretended: PretendedHost, changes: dict[str, str]
) -> None:
    pretended.policy("other", **NO_VERDICT, **changes)
    assert pretended.staging().verdict == (1, "staging-is-claimed")
    assert pretended.changes() == []


def test_a_production_belongs_to_the_repo_that_the_policy_names(pretended: PretendedHost) -> None:
    pretended.policy(**NO_VERDICT, REPO="other")
    for outcome in (pretended.verify(), pretended.promote()):
        assert outcome.verdict == (1, "policy-mismatch")
        assert outcome.reason.startswith("REPO: expected other, ")
    assert pretended.calls == []
    pretended.policy(**NO_VERDICT, REPO="shop")
    assert pretended.verify().verdict == (0, "verified")


def test_a_clone_lies_where_the_policy_says(pretended: PretendedHost) -> None:
    clone = pretended.clone.path
    pretended.policy(REPOS_DIR=str(clone.parent))
    assert pretended.staging().verdict == (0, "built")
    pretended.policy(REPOS_DIR=str(clone.parent / "other"))
    assert pretended.staging().verdict == (1, "clone-outside")
    pretended.policy(REPOS_DIR=str(clone))
    assert pretended.staging().verdict == (1, "clone-outside")
