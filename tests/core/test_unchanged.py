"""Declared content of a running container: what the engine's list of changes tells, and what it does not."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from pytest_imagefresh.core.content import Place
from pytest_imagefresh.core.evidence import Change, Container, Mount
from pytest_imagefresh.core.identity import ContainerId, ImageId
from pytest_imagefresh.core.settings import default_target
from pytest_imagefresh.core.unchanged import check_unchanged, folders_in_doubt
from pytest_imagefresh.core.verdict import Verdict

TARGET = msgspec.structs.replace(
    default_target("shop", "shop"),
    content={"/app/src": "src", "/app/scripts": "scripts"},
    content_ignore=("__pycache__", "logs/*.txt"),
)
FOLDER = Place("folder")
BYTECODE = ["changed /app", "changed /app/src", "added /app/src/__pycache__", "added /app/src/__pycache__/a.pyc"]


def container(*mounts: Mount) -> Container:
    return Container(
        id=ContainerId("6" * 64),
        name="shop-staging",
        image_id=ImageId("sha256:" + "4" * 64),
        status="running",
        health="",
        started_at="2026-01-02T03:04:05Z",
        restart_count=0,
        network_mode="shop_default",
        ports=(),
        mounts=mounts,
    )


def changes(*lines: str) -> list[Change]:
    """Return changes out of lines such as `added /a/b`."""
    return [Change(path, kind) for kind, _, path in (line.partition(" ") for line in lines)]


def judge(*lines: str, mounts: tuple[Mount, ...] = (), places: Mapping[str, Place] | None = None) -> Verdict:
    return check_unchanged(container(*mounts), changes(*lines), places or {}, TARGET)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        BYTECODE,
        ["changed /tmp", "added /tmp/a", "deleted /etc/motd"],
        ["changed /app", "added /app/run", "added /app/run/pid"],
        ["changed /app", "added /app/srcs", "added /app/src.bak"],
        ["changed /app", "changed /app/src", "added /app/src/logs", "added /app/src/logs/today.txt"],
    ],
    ids=str,
)
def test_what_is_no_content_may_change(lines: list[str]) -> None:
    assert judge(*lines).ok


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["changed /app", "changed /app/src", "changed /app/src/a.py"], "/app/src/a.py (changed)"),
        (["changed /app", "changed /app/src", "added /app/src/b.py"], "/app/src/b.py (added)"),
        (["changed /app", "changed /app/src", "deleted /app/src/a.py"], "/app/src/a.py (deleted)"),
        (["changed /app/scripts", "changed /app/scripts/x", "added /app/scripts/x/y"], "/app/scripts/x/y (added)"),
        (["changed /app/src", "changed /app/src/sub"], "/app/src/sub (changed)"),
        (["changed /app", "deleted /app/src"], "/app/src (deleted)"),
        (["deleted /app", "added /app/src", "added /app/src/__pycache__"], "/app (deleted)"),
        ([*BYTECODE, "changed /app/src/a.py"], "/app/src/a.py (changed)"),
        (["changed /app/src/__pycache__/a.pyc"], "/app/src/__pycache__/a.pyc (changed)"),
        (["deleted /app/src/logs/a.txt"], "/app/src/logs/a.txt (deleted)"),
        (["added /app/src/logs/deep/a.py", "added /app/src/logs/a.py"], "/app/src/logs/a.py (added)"),
        (["added /app/src/a\nb"], r"/app/src/a\nb (added)"),
    ],
    ids=str,
)
def test_any_single_change_of_content_is_refused_by_name(lines: list[str], named: str) -> None:
    verdict = judge(*lines)
    assert not verdict.ok
    assert named in verdict.reason


def test_a_long_list_is_cut() -> None:
    reason = judge(*(f"added /app/src/{number}.py" for number in range(9))).reason
    assert "/app/src/4.py (added) and 4 more" in reason


@pytest.mark.parametrize(
    ("lines", "doubtful"),
    [
        (BYTECODE, []),
        (["changed /app"], ["/app"]),
        (["changed /app", "changed /app/src"], ["/app/src"]),
        (["changed /app/src", "changed /app/scripts"], ["/app/scripts", "/app/src"]),
        (["added /app/src"], ["/app/src"]),
        (["deleted /app/src", "changed /tmp", "changed /app/src/x"], []),
    ],
    ids=str,
)
def test_a_folder_that_changed_and_nothing_in_it_is_in_doubt(lines: list[str], doubtful: list[str]) -> None:
    assert folders_in_doubt(changes(*lines), TARGET.content) == doubtful


@pytest.mark.parametrize(
    ("place", "accepted"),
    [
        (FOLDER, True),
        (Place("symlink", "/old"), False),
        (Place("file"), False),
        (Place("other"), False),
        (Place(""), False),
    ],
    ids=str,
)
def test_a_folder_must_still_be_one(place: Place, accepted: bool) -> None:
    assert judge("changed /app", places={"/app": place}).ok is accepted


@pytest.mark.parametrize(
    ("path", "accepted"),
    [
        ("/data", True),
        ("/app/run", True),
        ("/app/src/__pycache__", True),
        ("/app/src", False),
        ("/app", False),
        ("/app/src/static", False),
        ("/app/src/a.py", False),
    ],
)
def test_no_mount_may_lie_over_content_listed_or_not(path: str, accepted: bool) -> None:
    assert judge(mounts=(Mount(path, "volume", "v", seeded=True),)).ok is accepted


def test_where_nothing_is_declared_nothing_is_judged_and_that_is_said() -> None:
    target = msgspec.structs.replace(TARGET, content={})
    verdict = check_unchanged(container(), changes("changed /app/src/a.py"), {}, target)
    assert verdict.ok
    assert verdict.reason.startswith("no content is declared, so that no file")
