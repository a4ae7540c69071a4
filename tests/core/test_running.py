"""A container that runs as its image says, and every way in which one may not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_imagefresh.core.evidence import Container, Image, Mount, Port
from pytest_imagefresh.core.identity import ContainerId, ImageId
from pytest_imagefresh.core.running import check_runs_as_built
from pytest_imagefresh.core.settings import Overrides

PATH = {"PATH": "/usr/bin:/bin"}
IMAGE = Image(
    id=ImageId("sha256:" + "4" * 64),
    revision_label="1" * 40,
    entrypoint=("/entry", "a b"),
    command=("serve",),
    user="65534:65534",
    working_dir="/app",
    environment={**PATH, "PYTHONPATH": "/app/src", "LEVEL": "info"},
    volumes=("/data",),
)
CONTAINER = Container(
    id=ContainerId("6" * 64),
    name="shop-staging",
    image_id=IMAGE.id,
    status="running",
    health="",
    started_at="2026-01-02T03:04:05Z",
    restart_count=0,
    network_mode="shop_default",
    ports=(Port("8000/tcp", "127.0.0.1", 8501),),
    argv=("/entry", "a b", "serve"),
    user="65534:65534",
    working_dir="/app",
    environment={**IMAGE.environment, "ROLE": "staging", "LEVEL": "debug"},
    mounts=(Mount("/data", "volume", "f" * 64, seeded=True),),
)
NONE = Overrides()

Change = dict[str, Any]


def test_a_container_that_runs_as_its_image_says_is_accepted() -> None:
    assert check_runs_as_built(CONTAINER, IMAGE, NONE).subject == IMAGE.id


@pytest.mark.parametrize(
    ("image", "container"),
    [
        ({"user": ""}, {"user": ""}),
        ({"working_dir": ""}, {"working_dir": "/"}),
        ({"working_dir": "/app/"}, {"working_dir": "/app"}),
        ({"entrypoint": ()}, {"argv": ("serve",)}),
        ({"entrypoint": (), "command": ()}, {"argv": ()}),
    ],
    ids=str,
)
def test_what_an_image_leaves_open_need_not_be_said(image: Change, container: Change) -> None:
    assert check_runs_as_built(replace(CONTAINER, **container), replace(IMAGE, **image), NONE).ok


MOUNTS: dict[str, Mount] = {
    "code of the host": Mount("/app/src", "bind", "/srv/old"),
    "a folder above it": Mount("/app", "bind", "/srv/old"),
    "one file": Mount("/app/src/service.py", "bind", "/srv/service.py"),
    "a named volume": Mount("/app", "volume", "code"),
    "a volume of an earlier container": Mount("/data", "volume", "e" * 64),
    "a volume that the image does not declare": Mount("/other", "volume", "e" * 64, seeded=True),
    "a folder of the host that nobody asked for": Mount("/data", "bind", "/srv/old", seeded=True),
    "an empty file system": Mount("/app", "tmpfs", ""),
    "an image": Mount("/app", "image", "other"),
}


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": ImageId("sha256:" + "5" * 64)},
        {"status": "paused"},
        {"restart_count": 1},
        {"argv": ("/entry", "a b")},
        {"argv": ("/entry", "a b", "serve", "--old")},
        {"argv": ("/entry", "a", "b", "serve")},
        {"argv": ("sh", "-c", "/entry 'a b' serve")},
        {"argv": ()},
        {"user": "0"},
        {"user": ""},
        {"user": "65534"},
        {"working_dir": "/old"},
        {"working_dir": ""},
        *({"environment": {**CONTAINER.environment, "PYTHONPATH": value}} for value in ("/old", "")),
        {"environment": PATH},
        *(
            {"environment": {**CONTAINER.environment, name: "/old"}}
            for name in (
                "PATH",
                "LD_PRELOAD",
                "LD_LIBRARY_PATH",
                "PYTHONHOME",
                "PYTHONSTARTUP",
                "NODE_OPTIONS",
                "NODE_PATH",
                "RUBYOPT",
                "PERL5LIB",
                "JAVA_TOOL_OPTIONS",
                "_JAVA_OPTIONS",
                "JDK_JAVA_OPTIONS",
                "CLASSPATH",
                "BASH_ENV",
                "ENV",
                "PHP_INI_SCAN_DIR",
                "DOTNET_STARTUP_HOOKS",
                "CORECLR_PROFILER_PATH",
                "BUNDLE_GEMFILE",
                "GUNICORN_CMD_ARGS",
                "LUA_PATH_5_4",
            )
        ),
        *({"mounts": (mount,)} for mount in MOUNTS.values()),
    ],
    ids=str,
)
def test_a_container_with_any_single_difference_is_refused(change: Change) -> None:
    assert not check_runs_as_built(replace(CONTAINER, **change), IMAGE, NONE).ok


@pytest.mark.parametrize(
    ("listed", "change"),
    [
        ({"command": ("serve", "--staging")}, {"argv": ("/entry", "a b", "serve", "--staging")}),
        ({"entrypoint": ("/other",)}, {"argv": ("/other",)}),
        ({"entrypoint": ("/other",), "command": ("x",)}, {"argv": ("/other", "x")}),
        ({"entrypoint": ("",), "command": ("sh",)}, {"argv": ("sh",)}),
        ({"user": "1000"}, {"user": "1000"}),
        ({"working_dir": "/srv/"}, {"working_dir": "/srv"}),
        ({"environment": ("PYTHONPATH",)}, {"environment": {**PATH, "PYTHONPATH": "/other"}}),
        ({"mounts": ("/app/src/",)}, {"mounts": (MOUNTS["code of the host"],)}),
        ({"mounts": ("/data",)}, {"mounts": (MOUNTS["a volume of an earlier container"],)}),
    ],
    ids=str,
)
def test_what_is_listed_may_be_otherwise_and_nothing_else(listed: Change, change: Change) -> None:
    container = replace(CONTAINER, **change)
    assert check_runs_as_built(container, IMAGE, Overrides(**listed)).ok
    assert not check_runs_as_built(container, IMAGE, NONE).ok


@pytest.mark.parametrize(
    "listed", [{"command": ("x",)}, {"entrypoint": ("/x",)}, {"user": "1000"}, {"working_dir": "/x"}], ids=str
)
def test_what_is_listed_must_be_so(listed: Change) -> None:
    assert not check_runs_as_built(CONTAINER, IMAGE, Overrides(**listed)).ok


def test_a_mount_is_listed_by_its_own_path() -> None:
    below = replace(CONTAINER, mounts=(Mount("/app/src", "bind", "/srv/old"),))
    assert not check_runs_as_built(below, IMAGE, Overrides(mounts=("/app",))).ok


def test_the_reason_names_variables_and_never_their_values() -> None:
    redirected = replace(CONTAINER, environment={**CONTAINER.environment, "LD_PRELOAD": "/t0p-s3cret.so"})
    reason = check_runs_as_built(redirected, IMAGE, NONE).reason
    assert "LD_PRELOAD" in reason
    assert "s3cret" not in reason
