"""The public API: every contract, and that no failure ever comes out as an exception or as a yes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import pytest_imagefresh as api
from tests.gate_folder import GateFolder

ZERO = "0" * 40


@pytest.fixture
def folder(gate_folder: GateFolder, monkeypatch: pytest.MonkeyPatch) -> GateFolder:
    """The gate folder as the current one."""
    monkeypatch.chdir(gate_folder.path)
    return gate_folder


def settings(folder: GateFolder, text: str) -> None:
    (folder.path / "imagefresh.toml").write_text(text)


def test_the_names_are_the_public_ones() -> None:
    assert all(callable(getattr(api, name)) for name in api.__all__)
    assert not hasattr(api, "promote_anything")


def test_applies_to_the_self_hosting_repo_only(folder: GateFolder) -> None:
    assert api.image_freshness_applies("shop")
    assert api.image_freshness_applies(" SHOP ")
    assert not api.image_freshness_applies("other")


def test_doubt_about_the_condition_counts_as_applies(folder: GateFolder) -> None:
    settings(folder, "enabled = maybe\n")
    assert api.image_freshness_applies("other")
    settings(folder, "repos = []\n")
    assert api.image_freshness_applies("other")


def test_the_validated_revision_is_the_head_of_the_worktree(folder: GateFolder) -> None:
    assert api.validated_revision("shop", "work") == folder.revision
    assert api.expected_revision("shop", "work") == folder.revision


def test_where_the_gate_is_off_nothing_is_expected(folder: GateFolder) -> None:
    settings(folder, 'enabled = false\nrepos_dir = "repos"\n')
    assert api.expected_revision("shop", "work") == ""


def test_equal_full_revisions_are_a_yes(folder: GateFolder) -> None:
    assert api.provenance_verdict(ZERO, ZERO)[0] is True
    assert api.provenance_verdict("", "") == (False, "not a full revision: ''; expected 40 lowercase hex characters")


def test_the_deploy_command_binds_the_revision(folder: GateFolder) -> None:
    command = api.build_deploy_command("shop", "work")
    assert f"EXPECTED_REVISION={folder.revision}" in command
    assert {"REPO=shop", "SOURCE_IMAGE=shop-shop-staging", "PROD_IMAGE=shop-shop", "PROD_PORT=8500"} <= set(command)
    assert command[-1] == "--promote"


def test_an_unresolved_revision_is_passed_set_but_empty(folder: GateFolder) -> None:
    command = api.build_deploy_command("shop", "nosuch")
    assert [word for word in command if word.startswith("EXPECTED_REVISION")] == ["EXPECTED_REVISION="]


def test_where_the_gate_is_off_the_revision_is_not_passed(folder: GateFolder) -> None:
    settings(folder, 'enabled = false\nrepos_dir = "repos"\n[host]\nrepo_path = "/srv/shop"\n')
    command = api.build_deploy_command("shop", "work")
    assert not [word for word in command if word.startswith("EXPECTED_REVISION")]
    assert "SOURCE_IMAGE=shop-shop-staging" in command


def test_a_rebuild_of_another_revision_is_refused_before_anything_happens(folder: GateFolder) -> None:
    ok, reason = api.rebuild_staging_image("shop", "work", ZERO)
    assert not ok
    assert f"is at {folder.revision}, expected '{ZERO}'" in reason


def test_a_failed_gate_comes_back_as_a_no(folder: GateFolder) -> None:
    settings(
        folder,
        'self_hosting_repo = "shop"\nrepos_dir = "repos"\n[host]\nssh = "local"\ndocker_host = "unix:///no.sock"\n',
    )
    ok, words = api.check_staging_image_fresh("shop", "ticket-1", "work")
    assert not ok
    assert words.startswith("gate of shop ended with 11, report ")
    assert (folder.path / ".imagefresh" / "shop" / "ticket-1.xml").is_file()


def broken_settings(folder: GateFolder) -> None:
    settings(folder, "this is not TOML")


def no_clone(folder: GateFolder) -> None:
    folder.repo.rename(folder.path / "elsewhere")


def no_engine(folder: GateFolder) -> None:
    settings(
        folder,
        'self_hosting_repo = "shop"\nrepos_dir = "repos"\n[host]\nssh = "local"\ndocker_host = "unix:///no.sock"\n',
    )


def no_host(folder: GateFolder) -> None:
    settings(
        folder,
        'self_hosting_repo = "shop"\nrepos_dir = "repos"\nhost_repos_dir = "/r"\n'
        '[host]\nssh = "me@127.0.0.1:1"\nrepo_path = "/s"\n',
    )


def unreadable_folder(folder: GateFolder) -> None:
    (folder.path / "imagefresh.toml").unlink()
    (folder.path / "imagefresh.toml").mkdir()


@pytest.mark.parametrize("break_it", [broken_settings, no_clone, no_engine, no_host, unreadable_folder])
@pytest.mark.parametrize("work_item", ["ticket-1", "../x"])
def test_no_failure_raises_or_says_yes(
    folder: GateFolder, break_it: Callable[[GateFolder], None], work_item: str
) -> None:
    break_it(folder)
    assert api.validated_revision("shop", "nosuch") == ""
    assert api.expected_revision("shop", "nosuch") == ""
    assert api.image_revision("shop-shop-staging") == ""
    assert api.image_revision("shop-shop-staging", "nobody@127.0.0.1:1") == ""
    assert api.rebuild_staging_image("shop", "work", folder.revision)[0] is False
    assert api.check_staging_image_fresh("shop", work_item, "nosuch")[0] is False
    assert "EXPECTED_REVISION=" in api.build_deploy_command("shop", "nosuch")


@pytest.mark.parametrize("junk", [None, 7, b"shop", "", "..", "-x", "a b", "a\nb", "$(id)"], ids=repr)
def test_no_junk_raises_or_says_yes(folder: GateFolder, junk: str) -> None:
    assert api.validated_revision(junk, "work") == ""
    assert api.validated_revision("shop", junk) == ""
    assert api.image_revision(junk) == ""
    assert api.provenance_verdict(junk, junk)[0] is False
    assert api.rebuild_staging_image(junk, "work", ZERO)[0] is False
    assert api.rebuild_staging_image("shop", "work", junk)[0] is False
    assert api.check_staging_image_fresh(junk, junk, junk)[0] is False
    assert isinstance(api.image_freshness_applies(junk), bool)
    assert "EXPECTED_REVISION=" in api.build_deploy_command("shop", junk)
