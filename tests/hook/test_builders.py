"""The image ID is the one that this build made, whoever builds; and no builder takes an old file for a new one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hook.harness import PretendedHost, RealHost

CONFIG, OTHER = "sha256:" + "c" * 64, "sha256:" + "d" * 64


def build_call(host: PretendedHost) -> tuple[str, str]:
    """Return the one call of the builder and its DOCKER_BUILDKIT."""
    [call] = [each for each in host.state["calls"] if each["argv"][1:2] == ["build"]]
    return " ".join(call["argv"]), call["env"]["DOCKER_BUILDKIT"]


@pytest.mark.parametrize(
    ("host", "buildkit", "told"),
    [
        ({"client": "28.2.2", "buildx": True}, "1", True),
        ({"client": "28.2.2", "buildx": False}, "0", False),
        ({"client": "20.10.24+dfsg1"}, "1", False),
        ({"client": "20.10.24", "driver_status": "[[driver-type io.containerd.snapshotter.v1]]"}, "0", False),
    ],
    ids=["buildx", "no buildx", "old client", "old client, containerd store"],
)
def test_the_builder_is_one_whose_answer_can_be_compared(
    pretended: PretendedHost, host: dict[str, object], buildkit: str, told: bool
) -> None:
    pretended.set(**host)
    assert pretended.staging().verdict == (0, "built")
    call, used = build_call(pretended)
    assert used == buildkit
    assert ("--metadata-file" in call) is told


def test_the_manifest_digest_counts_where_the_builder_tells_it(pretended: PretendedHost) -> None:
    pretended.set(buildx=True, iid=CONFIG, metadata={"containerimage.config.digest": CONFIG})
    outcome = pretended.staging()
    assert outcome.verdict == (0, "built")
    assert outcome.image_id != CONFIG


def nested(made: str) -> dict[str, object]:
    return {"buildx": True, "told": OTHER, "metadata": {"x": {"containerimage.digest": made}}}


def in_a_text(made: str) -> dict[str, object]:
    text = f'\n  "containerimage.digest": "{made}",\n'
    return {"buildx": True, "told": OTHER, "metadata": {"x": text}}


@pytest.mark.parametrize("mode", ["staging", "verify", "promote"])
def test_podman_is_refused_since_no_two_of_its_answers_have_the_same_engine_id(
    pretended: PretendedHost, mode: str
) -> None:
    pretended.set(log_drivers="[k8s-file none passthrough journald]")
    outcome = getattr(pretended, mode)()
    assert outcome.verdict == (1, "engine-unsupported")
    assert "observed podman" in outcome.line["reason"]
    asked = {" ".join(call["argv"][:2]) for call in pretended.state["calls"]}
    assert asked - {"docker --version", "docker buildx"} == {"docker info"}  # those two ask the client alone


@pytest.mark.parametrize("drivers", ["", "<no value>", "[json-file"])
def test_an_engine_that_does_not_say_what_it_is_could_not_be_found_out(pretended: PretendedHost, drivers: str) -> None:
    pretended.set(log_drivers=drivers)
    assert pretended.staging().verdict == (11, "engine-down")


@pytest.mark.parametrize(
    "lie",
    [
        lambda _: {"iid": OTHER},
        lambda _: {"iid": ""},
        lambda made: {"buildx": True, "iid": made, "told": OTHER},
        nested,
        in_a_text,
    ],
    ids=["other ID", "no ID", "other digest", "digest further down", "digest in a text"],
)
def test_an_image_that_the_builder_did_not_name_is_refused(
    pretended: PretendedHost, lie: Callable[[str], dict[str, object]]
) -> None:
    made = pretended.staging().image_id
    pretended.set(**lie(made))
    assert pretended.staging().verdict == (1, "image-id-mismatch")


# --- a real engine ----------------------------------------------------------------------------------------------------

BUILDKIT_CLIENT = Path("/usr/bin/docker")
"""The client of Debian's engine package, 20.10: it has BuildKit without a plugin."""
CLIENTS = [str(path) for path in (Path("/usr/local/bin/docker"), BUILDKIT_CLIENT) if path.exists()]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_file_of_equal_name_and_size_is_never_an_old_one(real: RealHost, client: str) -> None:
    real.install("with-client", client=client)
    tree = real.copy.compose_dir / ".imagefresh/.checkout/orchestrator/orchestrator-staging/tree"
    path = "src/orchestrator/NEWS"
    real.copy.commit({path: "first"})
    assert real.staging().verdict == (0, "built")
    first = (tree / path).stat()
    for news in ("other", "third", "first", "other"):
        # Somebody makes the kept file look like the one that the builder knows.
        os.utime(tree / path, ns=(first.st_atime_ns, first.st_mtime_ns))
        real.copy.commit({path: news})
        assert real.staging().verdict == (0, "built")
        assert real.engine.docker("exec", real.copy.staging_container, "cat", f"/app/{path}") == news
