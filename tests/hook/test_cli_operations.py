"""The commands for operators, from the command line to the hook of a pretended host."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.gate_folder import Ended
from tests.hook.desk import Desk
from tests.hook.harness import REVISION, STAGING_ID, PretendedHost


def test_status_shows_what_runs_and_whether_it_was_proven(desk: Desk) -> None:
    before = desk.imagefresh("status")
    assert before.status == 0
    assert "NO" in before.output
    desk.host.promote()
    after = desk.imagefresh("status")
    assert STAGING_ID.removeprefix("sha256:")[:12] in after.output
    assert REVISION[:12] in after.output
    assert f"production runs {STAGING_ID}, as promoted" in after.output
    found = desk.read("status")["shop"]
    assert (found["verified"], found["frozen"], found["promoted"]["image_id"]) == (True, None, STAGING_ID)
    assert [one["image_id"] for one in found["production"]] == [STAGING_ID]


def test_history_shows_every_decision(desk: Desk) -> None:
    assert desk.read("history") == []
    desk.host.promote()
    desk.host.promote(EXPECTED_REVISION="")
    assert [one["cause"] for one in desk.read("history")] == ["promoted", "revision-empty"]
    assert [one["cause"] for one in desk.read("history", "--limit", "1")] == ["revision-empty"]
    shown = desk.imagefresh("history")
    assert shown.status == 0
    assert "refused: revision-empty" in shown.output
    assert "uid:" in shown.output


def test_freezing_stops_promotions_until_it_is_ended(desk: Desk) -> None:
    frozen = desk.imagefresh("freeze", "--reason", "it's [red]moving[/red] day")
    assert frozen.status == 0
    assert "production is frozen: it's [red]moving[/red] day" in frozen.output
    assert desk.host.promote().verdict == (1, "frozen")
    assert "it's [red]moving[/red] day" in desk.imagefresh("status").output
    assert desk.read("status")["shop"]["frozen"]["reason"] == "it's [red]moving[/red] day"
    assert desk.imagefresh("unfreeze").status == 0
    assert desk.host.promote().verdict == (0, "promoted")


@pytest.mark.root
def test_break_glass_is_told_by_everything_that_tells_of_production(desk: Desk) -> None:
    argv = ["break-glass", "--image", STAGING_ID, "--reason", "all is lost"]
    assert desk.imagefresh(*argv).status == 1
    desk.host.policy(BREAK_GLASS="yes", REQUIRE="revision")
    ended = desk.imagefresh(*argv)
    assert ended.status == 0
    assert "WHICH NOTHING HAS PROVEN" in ended.output
    shown = desk.imagefresh("status").output
    assert "by break-glass" in shown
    assert "production was promoted by break-glass" in shown
    assert desk.read("history")[-1]["cause"] == "broke-glass"


@pytest.mark.parametrize(
    "argv",
    [
        ["freeze"],
        ["freeze", "--reason", " "],
        ["history", "--limit", "0"],
        ["break-glass", "--image", STAGING_ID],
        ["break-glass", "--image", "shop-shop-staging", "--reason", "x"],
        ["break-glass", "--image", STAGING_ID, "--reason", "x", "--target", "other"],
    ],
    ids=str,
)
def test_wrong_usage_ends_with_2(desk: Desk, argv: list[str]) -> None:
    assert desk.imagefresh(*argv).status == 2
    assert desk.host.calls == []


def test_an_engine_that_does_not_answer_ends_with_11(desk: Desk) -> None:
    desk.host.fail("docker info", stderr="down\n")
    ended = desk.imagefresh("status")
    assert ended.status == 11
    assert "could not find out" in ended.output


# --- the examination of the host --------------------------------------------------------------------------------------


@pytest.fixture
def installed(desk: Desk) -> Desk:
    """A host on which everything is as docs/install-host.md asks for. Only root can make that."""
    notifier = desk.host.policies / "notify"
    desk.host.policy(REQUIRE="revision image_id verdict", NOTIFY=str(notifier))
    desk.host.policies.chmod(0o755)
    notifier.write_text("#!/bin/sh\n")
    notifier.chmod(0o755)
    (desk.host.policies / "allowed_signers").write_text('gate@ci namespaces="imagefresh" ssh-ed25519 AAAA\n')
    state = desk.host.compose_dir / ".imagefresh"
    state.mkdir(mode=0o700)
    (state / "verdicts").mkdir(mode=0o700)
    compose = desk.host.tools / "docker"
    compose.rename(desk.host.tools / "docker.fake")
    compose.write_text(f'#!/bin/bash\n[ "$1" = compose ] && echo 2.29.1 || exec "{compose}.fake" "$@"\n')
    compose.chmod(0o755)
    return desk


def verdicts(ended: Ended) -> dict[str, str]:
    """Subject and path -> the line of each answer that is not ok."""
    lines = [line.strip() for line in ended.output.splitlines() if line.startswith("  ")]
    return {line.split(":", 1)[0].partition(" ")[2].strip(): line for line in lines if not line.startswith("ok ")}


@pytest.mark.root
def test_a_host_that_is_installed_as_documented_is_all_well(installed: Desk) -> None:
    ended = installed.imagefresh("doctor", "--host")
    assert verdicts(ended) == {}
    assert ended.status == 0
    assert " 0 no, 0 unknown" in ended.output


@pytest.mark.root
@pytest.mark.parametrize(
    ("spoil", "subject"),
    [
        (lambda host: host.hook.path.chmod(0o775), "hook"),
        (lambda host: os.chown(host.hook.path, 1, 0), "hook"),
        (lambda host: host.hook.path.parent.chmod(0o777), "folder of the hook"),
        (lambda host: host.hook.path.write_text(host.hook.path.read_text() + "#\n"), "hook is the shipped one"),
        (lambda host: host.hook.path.write_text("#!/bin/bash\necho 2\n"), "contract"),
        (lambda host: host.policies.chmod(0o777), "policy folder"),
        (lambda host: (host.policies / "shop.conf").unlink(), "policy of the target"),
        (lambda host: (host.policies / "shop.conf").chmod(0o666), "policy file"),
        (lambda host: (host.policies / "allowed_signers").chmod(0o666), "allowed signers"),
        (lambda host: host.policy(ALLOWED_SIGNERS=None, REQUIRE="verdict"), "allowed signers"),
        (lambda host: (host.policies / "notify").chmod(0o777), "notifier"),
        (lambda host: (host.policies / "notify").chmod(0o644), "notifier"),
        (lambda host: (host.policies / "notify").unlink(), "notifier"),
        (lambda host: host.policies.chmod(0o777), "folder of the notifier"),
        (lambda host: host.policies.chmod(0o777), "folder of the allowed signers"),
        (lambda host: (host.policies / "allowed_signers").write_text("* ssh-ed25519 A\n"), "allowed signers are"),
        (lambda host: (host.compose_dir / ".imagefresh").chmod(0o755), "state folder"),
        (lambda host: (host.compose_dir / ".imagefresh/verdicts").rmdir(), "ledger of verdicts"),
        (lambda host: (host.tools / "docker").write_text("#!/bin/bash\necho 1.29.2\n"), "tool docker compose"),
        (lambda host: host.fail("docker info", stderr="down\n"), "engine"),
    ],
)
def test_each_thing_that_is_not_as_documented_is_named(
    installed: Desk, spoil: Callable[[PretendedHost], object], subject: str
) -> None:
    spoil(installed.host)
    ended = installed.imagefresh("doctor", "--host")
    assert any(found.startswith(subject) for found in verdicts(ended)), ended.output
    assert ended.status == (11 if subject == "engine" else 1)


def test_a_host_without_an_installed_hook_is_wrong_usage_and_a_missing_branch_too(desk: Desk) -> None:
    assert desk.imagefresh("doctor").status == 2
    text = (desk.folder / "imagefresh.toml").read_text()
    (desk.folder / "imagefresh.toml").write_text(text.replace(str(desk.host.hook.path), "bundled"))
    assert desk.imagefresh("doctor", "--host").status == 2
