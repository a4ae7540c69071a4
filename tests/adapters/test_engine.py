"""What the engine says: recorded JSON for the shapes, a real engine for everything else."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import http.client
import io
import itertools
import json
import secrets
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_imagefresh.adapters.archive import read_archive
from pytest_imagefresh.adapters.engine import (
    OUTPUT_LIMIT,
    Engine,
    connect_engine,
    parse_container,
    parse_image,
    publishes,
)
from pytest_imagefresh.core.content import EXECUTABLE, PLAIN, SPECIAL, SYMLINK, File
from pytest_imagefresh.core.errors import ConfigError, EvidenceError
from pytest_imagefresh.core.evidence import REVISION_LABEL, Change, Container, Image, Mount, Port, PortOwner
from pytest_imagefresh.core.identity import ContainerId, ImageId, RunId
from pytest_imagefresh.core.rfc3339 import parse_time
from pytest_imagefresh.core.settings import Prod
from tests import support

RECORDED = Path(__file__).parent / "recorded"
REVISION = "0123456789abcdef0123456789abcdef01234567"
NOBODY = ContainerId("0" * 64)
RUN_ID = RunId("20260102T030405Z-89abcdef")


def recorded(name: str) -> dict[str, Any]:
    """Return the inspect JSON of a real engine (20.10.24)."""
    attrs: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))
    return attrs


def changed(attrs: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Return a copy with one value changed; `path` is dotted."""
    result = copy.deepcopy(attrs)
    *parents, last = path.split(".")
    place = result
    for parent in parents:
        place = place[parent]
    place[last] = value
    return result


# --- shapes


@pytest.mark.parametrize(
    ("name", "label"), [("image_labelled", REVISION), ("image_empty_label", ""), ("image_unlabelled", "")]
)
def test_an_image_is_its_id_and_its_revision_label(name: str, label: str) -> None:
    attrs = recorded(name)
    image = parse_image(attrs)
    assert (image.id, image.revision_label) == (ImageId(attrs["Id"]), label)


def test_an_image_says_what_runs_in_it() -> None:
    config = {"Entrypoint": ["/entry"], "User": "app", "WorkingDir": "/app", "Volumes": {"/data/": {}, "/a": {}}}
    config["Env"] = ["PATH=/bin", "EMPTY=", "EQUAL=a=b"]
    attrs = changed(
        recorded("image_unlabelled"), "Config", {**recorded("image_labelled")["Config"], **config, "Labels": None}
    )
    assert parse_image(attrs) == Image(
        id=ImageId(attrs["Id"]),
        revision_label="",
        entrypoint=("/entry",),
        command=("/bin/busybox", "sleep", "3600"),
        user="app",
        working_dir="/app",
        environment={"PATH": "/bin", "EMPTY": "", "EQUAL": "a=b"},
        volumes=("/a", "/data"),
    )


@pytest.mark.parametrize("nothing", [None, "", [], [""]], ids=str)
def test_there_are_four_ways_to_say_no_command(nothing: object) -> None:
    attrs = changed(recorded("image_labelled"), "Config.Cmd", nothing)
    assert parse_image(changed(attrs, "Config.Entrypoint", nothing)).command == ()


@pytest.mark.parametrize("config", [None, {}, {"Labels": None}, {"Labels": {}}], ids=str)
def test_an_image_without_labels_has_no_revision(config: object) -> None:
    assert parse_image(changed(recorded("image_labelled"), "Config", config)).revision_label == ""


def test_the_label_of_the_image_counts_and_not_that_of_the_container_it_was_made_in() -> None:
    attrs = changed(recorded("image_unlabelled"), "ContainerConfig.Labels", {REVISION_LABEL: REVISION})
    assert parse_image(attrs).revision_label == ""


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("Id", "x"),
        ("Id", None),
        ("Id", REVISION),
        ("Config", "x"),
        ("Config.Labels", ["x"]),
        ("Config.Cmd", "x"),
        ("Config.Cmd", [1]),
        ("Config.Entrypoint", {}),
        ("Config.User", 0.5),
        ("Config.Env", [None]),
    ],
    ids=str,
)
def test_a_strange_image_is_no_evidence(path: str, value: object) -> None:
    with pytest.raises(EvidenceError):
        parse_image(changed(recorded("image_labelled"), path, value))


def test_a_revision_label_that_is_no_text_is_no_evidence() -> None:
    with pytest.raises(EvidenceError, match="shape that is not understood"):
        parse_image({**recorded("image_labelled"), "Config": {"Labels": {REVISION_LABEL: None}}})


def test_a_running_container() -> None:
    attrs = recorded("container_running")
    assert parse_container(attrs) == Container(
        id=ContainerId(attrs["Id"]),
        name="e-rec-running",
        image_id=ImageId(recorded("image_labelled")["Id"]),
        status="running",
        health="healthy",
        started_at=attrs["State"]["StartedAt"],
        restart_count=0,
        network_mode="default",
        ports=(
            Port("8000/tcp", "127.0.0.1", 43121),
            Port("9000/udp", "0.0.0.0", 43122),
            Port("9000/udp", "::", 43122),
        ),
        argv=("/bin/busybox", "sleep", "3600"),
        environment={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        networks=(f"bridge {attrs['NetworkSettings']['Networks']['bridge']['EndpointID']}",),
        made_as=parse_container(attrs).made_as,
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("HostConfig.Memory", 1 << 20),
        ("HostConfig.RestartPolicy.Name", "always"),
        ("Config.Env", ["A=1"]),
        ("Name", "/renamed"),
        ("NetworkSettings.Networks.bridge.EndpointID", "another"),
    ],
    ids=str,
)
def test_whatever_was_changed_on_a_container_makes_it_another_one(path: str, value: object) -> None:
    attrs = recorded("container_running")
    assert parse_container(changed(attrs, path, value)) != parse_container(attrs)
    assert parse_container(changed(attrs, "State.Health.FailingStreak", 3)) == parse_container(attrs)


def mounted(mounts: list[dict[str, object]], **host_config: object) -> tuple[Mount, ...]:
    attrs = changed(recorded("container_running"), "Mounts", mounts)
    return parse_container(changed(attrs, "HostConfig", {**attrs["HostConfig"], **host_config})).mounts


def test_a_mount_that_nobody_asked_for_is_the_image_s_own_volume() -> None:
    volume: dict[str, object] = {
        "Type": "volume",
        "Name": "a1",
        "Source": "/var/lib/docker/volumes/a1/_data",
        "Destination": "/data/",
    }
    asked: list[dict[str, object]] = [
        {"Binds": ["a1:/data"]},
        {"Binds": ["a1:/data/:rw"]},
        {"Mounts": [{"Type": "volume", "Source": "a1", "Target": "/data"}]},
        {"VolumesFrom": ["another"]},
    ]
    assert mounted([volume]) == (Mount("/data", "volume", "a1", seeded=True),)
    for host_config in asked:
        assert mounted([volume], **host_config) == (Mount("/data", "volume", "a1"),)


def test_binds_and_both_ways_of_tmpfs_are_mounts() -> None:
    bind: dict[str, object] = {"Type": "bind", "Source": "/srv/x", "Destination": "/x"}
    tmpfs: dict[str, object] = {"Type": "tmpfs", "Source": "", "Destination": "/b"}
    found = mounted([tmpfs, bind], Binds=["/srv/x:/x:ro"], Tmpfs={"/a/": "size=1m", "/b": ""})
    assert found == (Mount("/a", "tmpfs", ""), Mount("/b", "tmpfs", ""), Mount("/x", "bind", "/srv/x"))


@pytest.mark.parametrize(
    ("name", "status", "health", "network_mode"),
    [
        ("container_host", "running", "healthy", "host"),
        ("container_nohealth", "running", "", "default"),
        ("container_exited", "exited", "unhealthy", "default"),
        ("container_created", "created", "", "default"),
        ("container_paused", "paused", "unhealthy", "default"),
    ],
)
def test_other_containers(name: str, status: str, health: str, network_mode: str) -> None:
    container = parse_container(recorded(name))
    observed = (container.status, container.health, container.network_mode, container.ports)
    assert observed == (status, health, network_mode, ())


def test_the_order_of_the_ports_does_not_depend_on_the_engine() -> None:
    attrs = recorded("container_running")
    ports = attrs["NetworkSettings"]["Ports"]
    turned = {name: ports[name][::-1] for name in reversed(ports)}
    assert parse_container(changed(attrs, "NetworkSettings.Ports", turned)) == parse_container(attrs)


def test_a_port_that_is_exposed_and_not_published_is_no_port() -> None:
    attrs = changed(recorded("container_running"), "NetworkSettings.Ports", {"8000/tcp": None})
    assert parse_container(attrs).ports == ()


@pytest.mark.parametrize(
    "path",
    [
        "Id",
        "Name",
        "Image",
        "State",
        "State.Status",
        "State.StartedAt",
        "RestartCount",
        "HostConfig",
        "HostConfig.NetworkMode",
        "NetworkSettings",
        "Path",
        "Args",
        "Config",
        "Mounts",
    ],
)
def test_refuses_a_container_with_any_single_thing_missing(path: str) -> None:
    attrs = recorded("container_running")
    with pytest.raises(EvidenceError):
        parse_container(changed(attrs, path, None))
    *parents, last = path.split(".")
    place = attrs
    for parent in parents:
        place = place[parent]
    del place[last]
    with pytest.raises(EvidenceError):
        parse_container(attrs)


@pytest.mark.parametrize("ports", [["x"], {"8000/tcp": [{}]}, {"8000/tcp": [{"HostIp": "", "HostPort": "x"}]}], ids=str)
def test_strange_ports_are_no_evidence(ports: object) -> None:
    with pytest.raises(EvidenceError):
        parse_container(changed(recorded("container_running"), "NetworkSettings.Ports", ports))


@pytest.mark.parametrize(
    ("name", "port", "expected"),
    [
        ("container_running", 43121, True),
        ("container_running", 43122, True),
        ("container_running", 8000, False),
        ("container_exited", 43123, True),
        ("container_exited", 43124, False),
        ("container_created", 43123, False),
        ("container_created", 43124, True),
        ("container_created", 43126, True),
        ("container_created", 43127, False),
        ("container_host", 43121, False),
    ],
)
def test_a_stopped_container_publishes_what_it_would_take(name: str, port: int, expected: bool) -> None:
    assert publishes(recorded(name), port) is expected


def test_a_container_on_any_free_port_publishes_the_one_it_got() -> None:
    attrs = changed(recorded("container_running"), "HostConfig.PortBindings", {"8000/tcp": [{"HostPort": ""}]})
    assert publishes(attrs, 43121)
    assert not publishes(attrs, 1)


# --- a real engine


@pytest.fixture(scope="module")
def connected(engine: support.Engine) -> Iterator[Engine]:
    """The adapter on the real engine."""
    with contextlib.closing(connect_engine(engine.socket, timeout=30)) as result:
        yield result


@pytest.fixture
def unique() -> str:
    """A name that nothing else on the engine has."""
    return f"imagefresh-engine-{secrets.token_hex(4)}"


@pytest.fixture
def start(engine: support.Engine, unique: str) -> Iterator[Callable[..., str]]:
    """A function that starts (or, with start=False, creates) a container of the base image and returns its ID."""
    made: list[str] = []

    def begin(*argv: str, name: str = unique, options: tuple[str, ...] = (), start: bool = True) -> str:
        command = argv or ("sh", "-c", "trap exit TERM; while :; do sleep 0.1; done")
        verb = ("run", "--detach") if start else ("create",)
        made.append(engine.docker(*verb, "--name", name, *options, engine.base_image, *command))
        return made[-1]

    yield begin
    for container in made:
        engine.run("container", "rm", "--force", "--volumes", container)


def wait_until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 30
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_the_engine_names_itself(connected: Engine, engine: support.Engine) -> None:
    assert connected.id == engine.docker("info", "--format", "{{.ID}}")
    assert connected.client.ping()


def test_the_environment_has_no_say(engine: support.Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = {"currentContext": "elsewhere", "proxies": {"default": {"httpProxy": "http://127.0.0.1:9"}}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("DOCKER_HOST", "ALL_PROXY", "HTTP_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "tcp://127.0.0.1:9")
    monkeypatch.setenv("DOCKER_CONTEXT", "elsewhere")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_API_VERSION", "1.1")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with contextlib.closing(connect_engine(engine.socket, timeout=30)) as connected:
        assert connected.read_image(engine.base_image) is not None
        assert connected.read_container("imagefresh-nobody") is None


def test_reads_images_by_reference_and_by_full_id(connected: Engine, engine: support.Engine) -> None:
    image_id = engine.docker("image", "inspect", "--format", "{{.Id}}", engine.base_image)
    image = connected.read_image(engine.base_image)
    assert image is not None
    assert image.id.digest == image_id
    assert connected.read_image(image_id) == image


def test_an_abbreviated_id_is_no_reference_to_an_image(connected: Engine, engine: support.Engine) -> None:
    image = connected.read_image(engine.base_image)
    assert image is not None
    digest = image.id.digest
    for short in (digest.removeprefix("sha256:")[:12], digest[:30]):
        assert engine.docker("image", "inspect", "--format", "{{.Id}}", short) == digest
        assert connected.read_image(short) is None


def test_a_tag_that_reads_like_an_abbreviated_id_is_a_reference(connected: Engine, engine: support.Engine) -> None:
    tag = secrets.token_hex(6)
    engine.docker("image", "tag", engine.base_image, tag)
    try:
        assert connected.read_image(tag) == connected.read_image(engine.base_image)
    finally:
        engine.docker("image", "rm", "--no-prune", tag)


@pytest.mark.parametrize("name", ["imagefresh-nobody", "imagefresh-nobody:1", "sha256:" + "0" * 64, "0" * 64])
def test_an_image_that_is_not_there_is_none(connected: Engine, name: str) -> None:
    assert connected.read_image(name) is None


@pytest.mark.parametrize("name", ["", "a b", "UPPER", "../info", "..", "x?y=z", "x#y"])
def test_a_name_that_is_none_never_finds_an_image(connected: Engine, name: str) -> None:
    with contextlib.suppress(EvidenceError):
        assert connected.read_image(name) is None


def test_reads_containers_by_exact_name_and_by_full_id(
    connected: Engine, engine: support.Engine, start: Callable[..., str], unique: str, free_port: Callable[[], int]
) -> None:
    port = free_port()
    container_id = start(options=("--publish", f"127.0.0.1:{port}:80", "--label", f"{REVISION_LABEL}={REVISION}"))
    container = connected.read_container(unique)
    assert container is not None
    assert (container.id.hex, container.name, container.status) == (container_id, unique, "running")
    assert container.image_id.digest == engine.docker("image", "inspect", "--format", "{{.Id}}", engine.base_image)
    assert container.ports == (Port("80/tcp", "127.0.0.1", port),)
    assert connected.read_container(container_id) == container
    assert connected.read_container(container_id[:12]) is None
    assert connected.read_container(unique[:-1]) is None
    assert connected.read_container(f"/{unique}") is None


def test_what_a_container_runs_is_its_image_and_not_its_reference(
    connected: Engine, engine: support.Engine, start: Callable[..., str], unique: str
) -> None:
    start()
    with connected.unlabelled_image(f"{unique}:later"):
        container = connected.read_container(unique)
        base = connected.read_image(engine.base_image)
        assert container is not None
        assert base is not None
        assert container.image_id == base.id


def test_a_name_that_reads_like_an_abbreviated_id_is_that_of_a_container(
    connected: Engine, start: Callable[..., str], unique: str
) -> None:
    named_like_it = start(name=start()[:12])
    container = connected.read_container(named_like_it)
    assert container is not None
    by_name = connected.read_container(container.name)
    assert by_name == container


@pytest.mark.parametrize("name", ["", "a b", "..", "../info", "x?y=z", "json"])
def test_a_name_that_is_none_never_finds_a_container(connected: Engine, name: str) -> None:
    with contextlib.suppress(EvidenceError):
        assert connected.read_container(name) is None


def test_the_compose_project_of_a_container(connected: Engine, start: Callable[..., str], unique: str) -> None:
    made = start(options=("--label", f"com.docker.compose.project={unique}"), start=False)
    plain = start(name=f"{unique}-plain", start=False)
    assert connected.read_compose_project(ContainerId(made)) == unique
    for container_id in (ContainerId(plain), NOBODY):
        with pytest.raises(EvidenceError, match=r"has no label .*; start it with compose"):
            connected.read_compose_project(container_id)


def test_the_owners_of_a_port_are_the_running_containers_that_publish_it(
    connected: Engine, start: Callable[..., str], unique: str, free_port: Callable[[], int]
) -> None:
    port = free_port()
    one = start(options=("--publish", f"127.0.0.1:{port}:8000"))
    two = start(name=f"{unique}-2", options=("--publish", f"127.0.0.2:{port}:9000"))
    start(name=f"{unique}-3", options=("--publish", f"127.0.0.3:{port}:8000"), start=False)
    start(name=f"{unique}-4", options=("--publish", f"127.0.0.4:{port}:8000/udp"))
    assert set(connected.read_port_owners(port)) == {
        PortOwner(ContainerId(one), unique, "127.0.0.1"),
        PortOwner(ContainerId(two), f"{unique}-2", "127.0.0.2"),
    }
    with connected.paused(ContainerId(one)):
        assert len(connected.read_port_owners(port)) == 2


def test_changed_files_are_told(connected: Engine, engine: support.Engine, start: Callable[..., str]) -> None:
    container_id = start()
    assert connected.read_changes(ContainerId(container_id)) == ()
    # The host's name is a file of the engine's own, which lies over the image's.
    script = "echo 1 >/new; echo 1 >>/etc/hostname; echo 1 >>/etc/passwd; rm /etc/group"
    engine.docker("exec", container_id, "sh", "-c", script)
    assert set(connected.read_changes(ContainerId(container_id))) == {
        Change("/new", "added"),
        Change("/etc", "changed"),
        Change("/etc/passwd", "changed"),
        Change("/etc/group", "deleted"),
    }


def test_the_engine_s_clock_is_that_of_its_containers(connected: Engine, start: Callable[..., str]) -> None:
    container = connected.read_container(start())
    assert container is not None
    assert parse_time(connected.read_clock()) >= parse_time(container.started_at)


def status_of(connected: Engine, container_id: str) -> str:
    container = connected.read_container(container_id)
    return container.status if container is not None else "gone"


def test_a_pause_ends_with_its_body_whatever_happens(connected: Engine, start: Callable[..., str]) -> None:
    container_id = start()
    with connected.paused(ContainerId(container_id)):
        assert status_of(connected, container_id) == "paused"
    assert status_of(connected, container_id) == "running"
    with pytest.raises(KeyboardInterrupt), connected.paused(ContainerId(container_id)):
        raise KeyboardInterrupt
    assert status_of(connected, container_id) == "running"


def test_a_pause_that_others_end_or_began_ends_all_the_same(
    connected: Engine, engine: support.Engine, start: Callable[..., str]
) -> None:
    container_id = start()
    with connected.paused(ContainerId(container_id)):
        engine.docker("unpause", container_id)
    engine.docker("pause", container_id)
    with pytest.raises(EvidenceError, match="was asked for a pause"), connected.paused(ContainerId(container_id)):
        pass
    assert status_of(connected, container_id) == "running"


def test_nothing_that_does_not_run_is_paused(connected: Engine, start: Callable[..., str]) -> None:
    for container_id in (ContainerId(start(start=False)), NOBODY):
        with pytest.raises(EvidenceError), connected.paused(container_id):
            pass


def prod(service: str, port: int) -> Prod:
    return Prod(service=service, port=port, profile="", health_path="/health", pin="")


def compose_labels(service: str, folder: str) -> tuple[str, ...]:
    service_label = f"com.docker.compose.service={service}"
    return ("--label", service_label, "--label", f"com.docker.compose.project.working_dir={folder}")


def test_production_is_its_service_in_any_state_and_its_port(
    connected: Engine, engine: support.Engine, start: Callable[..., str], unique: str, free_port: Callable[[], int]
) -> None:
    port, other = free_port(), free_port()
    labels = compose_labels(unique, "/srv/shop")
    publish = ("--publish", f"127.0.0.1:{port}:80")
    mine = {
        start(name=f"{unique}-running", options=(*labels, "--publish", f"127.0.0.1:{other}:80")),
        start("true", name=f"{unique}-exited", options=labels),
        start(name=f"{unique}-created", options=labels, start=False),
        start(name=f"{unique}-foreign", options=publish),
        start(name=f"{unique}-waiting", options=publish, start=False),
        start(name=f"{unique}-range", options=("--publish", f"127.0.0.1:{port - 1}-{port + 1}:80"), start=False),
    }
    engine.docker("container", "pause", f"{unique}-running")
    start(name=f"{unique}-elsewhere", options=compose_labels(unique, "/srv/other"))
    start(name=f"{unique}-staging", options=compose_labels(f"{unique}-staging", "/srv/shop"))
    start("true", name=f"{unique}-done")

    production = connected.read_production(prod(unique, port), engine.base_image, "/srv/shop/")

    assert [each.id.hex for each in production.containers] == sorted(mine)
    base = connected.read_image(engine.base_image)
    assert base is not None
    assert production.image_id == base.id
    assert connected.read_production(prod(unique, port), engine.base_image, "/srv/shop") == production


def test_production_may_not_be_there_yet(connected: Engine, unique: str, free_port: Callable[[], int]) -> None:
    production = connected.read_production(prod(unique, free_port()), f"{unique}:x", "/srv/shop")
    assert (production.containers, production.image_id) == ((), None)


def test_runs_a_program_and_returns_status_and_output(connected: Engine, start: Callable[..., str]) -> None:
    container_id = ContainerId(start())
    script = "echo out; echo err >&2; sleep 0.1; printf last; exit 3"
    result = connected.run_in_container(container_id, ["sh", "-c", script], timeout=30)
    assert result.exit_status == 3
    assert sorted(result.output.split()) == [b"err", b"last", b"out"]
    assert connected.run_in_container(container_id, ["true"], timeout=30).output == b""
    literal = connected.run_in_container(container_id, ["echo", "$HOME; `id`", "a  b"], timeout=30)
    assert literal.output == b"$HOME; `id` a  b\n"


def test_output_is_never_lost(connected: Engine, start: Callable[..., str]) -> None:
    container_id = ContainerId(start())
    for number in range(30):
        result = connected.run_in_container(container_id, ["echo", str(number)], timeout=30)
        assert (result.exit_status, result.output) == (0, f"{number}\n".encode())


def test_output_is_capped_and_the_program_is_not_blocked(connected: Engine, start: Callable[..., str]) -> None:
    script = "import sys; [sys.stdout.write('x' * 65536) for _ in range(80)]; sys.exit(4)"
    result = connected.run_in_container(ContainerId(start()), ["python3", "-c", script], timeout=60)
    assert (result.exit_status, len(result.output)) == (4, OUTPUT_LIMIT)


def test_a_program_that_is_not_there_has_the_engine_s_exit_status(connected: Engine, start: Callable[..., str]) -> None:
    result = connected.run_in_container(ContainerId(start()), ["imagefresh-nobody"], timeout=30)
    assert result.exit_status in (126, 127)
    assert b"not found" in result.output


@pytest.mark.parametrize("script", ["sleep 600", "while :; do echo busy; done", "trap '' TERM; sleep 600; sleep 600"])
def test_a_program_that_hangs_is_ended_with_its_container(
    connected: Engine, engine: support.Engine, start: Callable[..., str], script: str
) -> None:
    container_id = start()
    with pytest.raises(
        EvidenceError, match=r"did not end in time, expected 0\.5 s at most; its container was restarted"
    ):
        connected.run_in_container(ContainerId(container_id), ["sh", "-c", f"{script} # hung"], timeout=0.5)
    assert "# hung" not in engine.docker("top", container_id, "-eo", "pid,args")
    container = connected.read_container(container_id)
    assert container is not None
    assert container.status == "running"


def test_a_program_that_leaves_something_behind_ends_when_it_ends(connected: Engine, start: Callable[..., str]) -> None:
    result = connected.run_in_container(ContainerId(start()), ["sh", "-c", "sleep 600 & echo done; exit 5"], timeout=30)
    assert (result.exit_status, result.output) == (5, b"done\n")


def test_runs_nothing_in_a_container_that_does_not_run(
    connected: Engine, engine: support.Engine, start: Callable[..., str], unique: str
) -> None:
    created = ContainerId(start(start=False))
    paused = ContainerId(start(name=f"{unique}-paused"))
    engine.docker("container", "pause", paused.hex)
    for container_id in (created, paused, NOBODY):
        with pytest.raises(EvidenceError, match=rf"{container_id}.*did not answer as expected"):
            connected.run_in_container(container_id, ["true"], timeout=30)


def test_a_program_whose_container_dies_is_no_evidence_or_a_failure(
    connected: Engine, engine: support.Engine, start: Callable[..., str]
) -> None:
    container_id = start()
    killer = threading.Timer(0.5, lambda: engine.docker("container", "kill", container_id))
    killer.start()
    try:
        # The engine knows the exit status of the killed program, or it does not.
        with contextlib.suppress(EvidenceError):
            result = connected.run_in_container(ContainerId(container_id), ["sleep", "600"], timeout=30)
            assert result.exit_status != 0
    finally:
        killer.join()


def test_the_tail_of_the_log(connected: Engine, start: Callable[..., str]) -> None:
    container_id = ContainerId(start("sh", "-c", "echo error >&2; sleep 0.3; for i in 1 2 3; do echo line $i; done"))
    wait_until(lambda: b"line 3" in connected.logs_tail(container_id, 9))
    assert connected.logs_tail(container_id, 2) == b"line 2\nline 3\n"
    assert b"error\n" in connected.logs_tail(container_id, 9)
    with pytest.raises(EvidenceError, match="the log of container"):
        connected.logs_tail(NOBODY, 2)


def test_the_tail_of_a_log_with_long_lines_is_capped(connected: Engine, start: Callable[..., str]) -> None:
    container_id = start("python3", "-c", "for _ in range(400): print('x' * 8000)")
    wait_until(lambda: len(connected.logs_tail(ContainerId(container_id), 400)) == OUTPUT_LIMIT)


def test_an_unlabelled_image_is_there_and_gone_again(connected: Engine, unique: str) -> None:
    with connected.unlabelled_image(f"{unique}:x") as image_id:
        assert connected.read_image(image_id.digest) == Image(image_id, "")
        assert connected.read_image(f"{unique}:x") == Image(image_id, "")
    assert connected.read_image(image_id.digest) is None
    assert connected.read_image(f"{unique}:x") is None


def test_an_unlabelled_image_is_removed_whatever_happens(
    connected: Engine, engine: support.Engine, unique: str
) -> None:
    seen: list[ImageId] = []

    def interrupted() -> None:
        with connected.unlabelled_image(f"{unique}:x") as image_id:
            seen.append(image_id)
            engine.docker("image", "tag", image_id.digest, f"{unique}:another")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert connected.read_image(seen[0].digest) is None
    assert connected.read_image(f"{unique}:another") is None


def test_an_unlabelled_image_may_be_removed_by_others(connected: Engine, engine: support.Engine, unique: str) -> None:
    with connected.unlabelled_image(f"{unique}:x") as image_id:
        engine.docker("image", "rm", image_id.digest)
    assert connected.read_image(image_id.digest) is None


def test_an_unlabelled_image_never_takes_a_reference_from_another(
    connected: Engine, engine: support.Engine, unique: str
) -> None:
    engine.docker("image", "tag", engine.base_image, f"{unique}:taken")
    try:
        before = connected.read_image(f"{unique}:taken")
        with pytest.raises(EvidenceError, match="no image bears"), connected.unlabelled_image(f"{unique}:taken"):
            pytest.fail("the reference was taken")
        assert connected.read_image(f"{unique}:taken") == before
    finally:
        engine.docker("image", "rm", "--no-prune", f"{unique}:taken")


@pytest.mark.parametrize(
    "tag", ["", "name", "name:", ":tag", "name:a b", "Name:tag", "-x:y", "name@sha256:" + "0" * 64]
)
def test_an_unlabelled_image_needs_a_full_reference(connected: Engine, tag: str) -> None:
    with pytest.raises(EvidenceError, match="expected name:tag"), connected.unlabelled_image(tag):
        pytest.fail("the reference was taken")


# --- the files of an image

ODD = {"plain": b"one", "odd \n name": b"", "\udcff\udcfe": b"bytes", "ü": b"u", "volume/seed": b"two"}
LONG = "long/" * 50 + "name"


def image_tar(path: Path) -> Path:
    """Write the files of an image that holds every kind below /app/src; return the archive's path."""
    with tarfile.open(path, "w", encoding="utf-8", errors="surrogateescape") as archive:
        for name, content in {**ODD, LONG: b"deep", "big": bytes(3 << 20)}.items():
            add(archive, f"app/src/{name}", size=len(content), content=content)
        add(archive, "app/src/run", mode=0o755)
        add(archive, "app/src/again", type=tarfile.LNKTYPE, linkname="app/src/run", mode=0o755)
        add(archive, "app/src/link", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "app/src/pipe", type=tarfile.FIFOTYPE)
        add(archive, "app/src/empty", type=tarfile.DIRTYPE, mode=0o755)
        add(archive, "alias", type=tarfile.SYMTYPE, linkname="app")
    return path


def add(archive: tarfile.TarFile, name: str, *, content: bytes = b"", **attributes: object) -> None:
    """Add one member to an archive."""
    info = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def odd_image(engine: support.Engine, unique: str, tmp_path: Path) -> Iterator[ImageId]:
    """An image that holds every kind of file, with a volume among them."""
    archive = image_tar(tmp_path / "image.tar")
    yield ImageId(engine.docker("import", "--change", "VOLUME /app/src/volume", archive, f"{unique}:odd"))
    engine.docker("image", "rm", f"{unique}:odd")


def test_every_file_of_an_image_is_read_as_git_names_it(connected: Engine, odd_image: ImageId) -> None:
    with connected.scratch_container(odd_image, RUN_ID) as container_id:
        files = read_archive(connected.read_archive(container_id, "/app/src", timeout=30), "x")
    plain = {name: File(PLAIN, blob(content)) for name, content in {**ODD, LONG: b"deep"}.items()}
    run = File(EXECUTABLE, blob(b""))
    special = {"link": File(SYMLINK, blob(b"/etc/passwd")), "pipe": File(SPECIAL, "")}
    assert files == {**plain, **special, "run": run, "again": run, "big": File(PLAIN, blob(bytes(3 << 20)))}


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def test_places_are_told_by_kind_and_symlinks_not_followed(connected: Engine, odd_image: ImageId) -> None:
    with connected.scratch_container(odd_image, RUN_ID) as container_id:
        paths = ("/app", "/app/src/plain", "/alias", "/app/src/pipe", "/nowhere", "/app/src/empty")
        kinds = {path: connected.read_place(container_id, path).kind for path in paths}
        assert list(kinds.values()) == ["folder", "file", "symlink", "other", "", "folder"], kinds
        assert connected.read_place(container_id, "/alias").leads_to == "/app"


def test_a_scratch_container_never_runs_and_leaves_nothing(
    connected: Engine, engine: support.Engine, odd_image: ImageId
) -> None:
    shape = '{{.State.Status}} {{.HostConfig.NetworkMode}} {{index .Config.Labels "imagefresh.content"}}'
    with connected.scratch_container(odd_image, RUN_ID) as container_id:
        assert engine.docker("inspect", "--format", shape, container_id.hex) == f"created none {RUN_ID}"
        volume = engine.docker("inspect", "--format", "{{(index .Mounts 0).Name}}", container_id.hex)
        assert engine.docker("volume", "ls", "--quiet", "--filter", f"name={volume}") == volume
    assert connected.read_container(container_id.hex) is None
    assert engine.docker("volume", "ls", "--quiet", "--filter", f"name={volume}") == ""


def test_a_scratch_container_is_removed_whatever_happens(connected: Engine, odd_image: ImageId) -> None:
    seen: list[str] = []

    def interrupted() -> None:
        with connected.scratch_container(odd_image, RUN_ID) as container_id:
            seen.append(container_id.hex)
            next(connected.read_archive(container_id, "/app/src", timeout=30))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert connected.read_container(seen[0]) is None


def test_a_scratch_container_may_be_removed_by_others(
    connected: Engine, engine: support.Engine, odd_image: ImageId
) -> None:
    with connected.scratch_container(odd_image, RUN_ID) as container_id:
        engine.docker("container", "rm", "--volumes", container_id.hex)
        with pytest.raises(EvidenceError, match="the files of '/app/src' in container"):
            list(connected.read_archive(container_id, "/app/src", timeout=30))


def test_an_image_that_is_gone_has_no_content(connected: Engine) -> None:
    with (
        pytest.raises(EvidenceError, match="a container of image"),
        connected.scratch_container(ImageId("sha256:" + "0" * 64), RUN_ID),
    ):
        pytest.fail("there is no such image")


def test_reading_an_image_is_bounded(connected: Engine, odd_image: ImageId) -> None:
    with connected.scratch_container(odd_image, RUN_ID) as container_id:
        chunks = connected.read_archive(container_id, "/app/src", timeout=0)
        with pytest.raises(EvidenceError, match=r"not all of it came within 0 s; raise timeouts.content"):
            read_archive(chunks, "x")


# --- an engine that does not answer


class Relay:
    """A unix socket that passes everything on to an engine until `mode` says otherwise: pass, hang, or cut."""

    def __init__(self, path: Path, engine_socket: str) -> None:
        self.path = str(path)
        self.mode = "pass"
        self._engine_socket = engine_socket
        self._open: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._engine_socket)
            self._open += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.mode == "hang":
                    continue
                if self.mode == "cut":
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening and end every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def relay(engine: support.Engine, tmp_path: Path) -> Iterator[Relay]:
    """A relay to the real engine."""
    with contextlib.closing(Relay(tmp_path / "s", engine.socket)) as result:
        yield result


def every_question(connected: Engine, container_id: ContainerId) -> dict[str, Callable[[], object]]:
    """Return everything that can be asked, by name."""
    return {
        "image": lambda: connected.read_image("x"),
        "container": lambda: connected.read_container("x"),
        "project": lambda: connected.read_compose_project(container_id),
        "production": lambda: connected.read_production(prod("x", 1), "x", "/srv"),
        "exec": lambda: connected.run_in_container(container_id, ["true"], timeout=1),
        "log": lambda: connected.logs_tail(container_id, 1),
        "unlabelled": lambda: connected.unlabelled_image("x:y").__enter__(),
        "scratch": lambda: connected.scratch_container(ImageId("sha256:" + "0" * 64), RUN_ID).__enter__(),
        "archive": lambda: read_archive(connected.read_archive(container_id, "/app", timeout=1), "x"),
        "owners": lambda: connected.read_port_owners(8501),
        "changes": lambda: connected.read_changes(container_id),
        "clock": connected.read_clock,
        "pause": lambda: connected.paused(container_id).__enter__(),
    }


QUESTIONS = [
    *("image", "container", "project", "production", "exec", "log", "unlabelled", "scratch", "archive"),
    *("owners", "changes", "clock", "pause"),
]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("fault", ["hang", "cut", "gone"])
def test_an_engine_lost_between_two_calls_is_no_evidence(relay: Relay, fault: str, question: str) -> None:
    with contextlib.closing(connect_engine(relay.path, timeout=0.5)) as connected:
        assert connected.read_container("imagefresh-nobody") is None
        if fault == "gone":
            relay.close()
        relay.mode = fault
        began = time.monotonic()
        with pytest.raises(
            EvidenceError, match=rf"engine {relay.path} was asked for .*; see that 'docker --host unix://"
        ):
            every_question(connected, NOBODY)[question]()
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("fault", ["hang", "cut"])
def test_an_engine_lost_in_the_middle_of_an_archive_is_no_evidence(
    relay: Relay, fault: str, connected: Engine, odd_image: ImageId
) -> None:
    with (
        connected.scratch_container(odd_image, RUN_ID) as container_id,
        contextlib.closing(connect_engine(relay.path, timeout=0.5)) as lost,
    ):
        chunks = lost.read_archive(container_id, "/app/src", timeout=30)
        first = next(chunks)
        relay.mode = fault
        with pytest.raises(EvidenceError, match="the files of '/app/src' in container"):
            read_archive(itertools.chain([first], chunks), "x")


@pytest.mark.parametrize("fault", ["hang", "cut"])
def test_an_engine_lost_during_a_program_is_no_evidence(relay: Relay, fault: str, start: Callable[..., str]) -> None:
    container_id = ContainerId(start())
    with contextlib.closing(connect_engine(relay.path, timeout=0.5)) as connected:
        timer = threading.Timer(0.3, setattr, (relay, "mode", fault))
        timer.start()
        argv = ["sh", "-c", "while :; do echo busy; sleep 0.05; done"]
        with pytest.raises(EvidenceError, match=r"in container|run of"):
            connected.run_in_container(container_id, argv, timeout=1)
        timer.join()


def test_no_engine_is_no_evidence(tmp_path: Path) -> None:
    nobody = tmp_path / "nobody.sock"
    with pytest.raises(EvidenceError, match="was asked for its version") as refusal:
        connect_engine(str(nobody), timeout=1)
    assert "\n" not in str(refusal.value)
    nobody.write_text("no socket", encoding="utf-8")
    with pytest.raises(EvidenceError, match="was asked for its version"):
        connect_engine(str(nobody), timeout=1)


def test_an_engine_that_never_speaks_is_no_evidence(relay: Relay) -> None:
    relay.mode = "hang"
    with pytest.raises(EvidenceError, match="was asked for its version"):
        connect_engine(relay.path, timeout=0.3)


@pytest.mark.parametrize("path", ["", "docker.sock", "tcp://127.0.0.1:2375"])
def test_a_socket_needs_an_absolute_path(path: str) -> None:
    with pytest.raises(ConfigError, match="expected an absolute path"):
        connect_engine(path, timeout=1)


class Impostor:
    """Answers every request on a unix socket with the same HTTP answer."""

    def __init__(self, path: Path, answer: Callable[[str], tuple[str, str]]) -> None:
        self.path = str(path)
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                status, body = self._answer(self._request_line(client))
                head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n"
                client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())

    def _request_line(self, client: socket.socket) -> str:
        """Read one request to its end: closing before would reset the connection of whoever still sends."""
        with client.makefile("rb") as request:
            line = request.readline().decode()
            headers = http.client.parse_headers(request)
            request.read(int(headers.get("Content-Length", "0")))
        return line

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("404 Not Found", '{"message": "page not found"}'),
        ("404 Not Found", "no such thing"),
        ("500 Oops", '{"message": "No such image: x"}'),
        ("200 OK", "[]"),
        ("200 OK", "{}"),
        ("200 OK", "null"),
        ("200 OK", "no JSON"),
        ("200 OK", '{"Id": "sha256:short"}'),
    ],
    ids=str,
)
# A list may well be empty, and what became of a pause is looked at while it lasts.
@pytest.mark.parametrize("question", [each for each in QUESTIONS if each not in ("owners", "changes", "pause")])
def test_an_answer_that_is_not_the_engine_s_own_is_no_evidence(
    status: str, body: str, question: str, tmp_path: Path
) -> None:
    refusal = answered_with(status, body, question, tmp_path)
    assert "\n" not in str(refusal)


def answered_with(status: str, body: str, question: str, folder: Path) -> EvidenceError:
    """Return the error of a question to which an impostor gives this answer."""

    def answer(line: str) -> tuple[str, str]:
        if "/version" in line:
            return "200 OK", '{"ApiVersion": "1.41"}'
        return ("200 OK", '{"ID": "IMPOSTOR"}') if "/info" in line else (status, body)

    with contextlib.ExitStack() as stack:
        impostor = stack.enter_context(contextlib.closing(Impostor(folder / "s", answer)))
        connected = stack.enter_context(contextlib.closing(connect_engine(impostor.path, timeout=5)))
        with pytest.raises(EvidenceError) as refusal:
            every_question(connected, NOBODY)[question]()
    return refusal.value


@pytest.mark.parametrize("question", ["owners", "changes"])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("404 Not Found", '{"message": "x"}'),
        ("500 Oops", "[]"),
        *(("200 OK", body) for body in ("{}", "x", "[1]", "[{}]")),
    ],
)
def test_a_list_that_is_none_is_no_evidence(status: str, body: str, question: str, tmp_path: Path) -> None:
    if question == "owners" and body == "[{}]":
        body = '[{"Ports": [{"PublicPort": 8501, "Type": "tcp"}]}]'
    answered_with(status, body, question, tmp_path)


@pytest.mark.parametrize("info", ["{}", '{"ID": ""}', '{"ID": null}', "[]"])
def test_an_engine_without_an_id_is_no_evidence(info: str, tmp_path: Path) -> None:
    def answer(line: str) -> tuple[str, str]:
        return "200 OK", info if "/info" in line else '{"ApiVersion": "1.41"}'

    with contextlib.closing(Impostor(tmp_path / "s", answer)) as impostor, pytest.raises(EvidenceError, match="ID"):
        connect_engine(impostor.path, timeout=5)


def test_an_image_under_another_id_than_asked_for_is_no_evidence(tmp_path: Path) -> None:
    def answer(line: str) -> tuple[str, str]:
        if "/images/" in line:
            return "200 OK", json.dumps(recorded("image_labelled"))
        return "200 OK", '{"ApiVersion": "1.41", "ID": "IMPOSTOR"}'

    with contextlib.ExitStack() as stack:
        impostor = stack.enter_context(contextlib.closing(Impostor(tmp_path / "s", answer)))
        connected = stack.enter_context(contextlib.closing(connect_engine(impostor.path, timeout=5)))
        with pytest.raises(EvidenceError, match="the engine answers with"):
            connected.read_image(recorded("image_unlabelled")["Id"])


@pytest.mark.parametrize(
    ("stream", "problem"),
    [
        (b"\x01\x00\x00\x00\x00\x00\x00\x05cut", "cut off"),
        (b"\x01\x00\x00", "cut off"),
        (b"plain text, no frames", "expected the header of a frame"),
        (b"\x07\x00\x00\x00\x00\x00\x00\x01x", "expected the header of a frame"),
        (b"", "no exit status is known"),
    ],
    ids=repr,
)
def test_an_output_that_is_not_complete_is_no_evidence(stream: bytes, problem: str, tmp_path: Path) -> None:
    def answer(line: str) -> tuple[str, str]:
        if "/start" in line:
            return "200 OK", stream.decode("latin-1")
        return "200 OK", '{"ApiVersion": "1.41", "ID": "IMPOSTOR", "Id": "x", "Running": true, "ExitCode": 0}'

    with contextlib.ExitStack() as stack:
        impostor = stack.enter_context(contextlib.closing(Impostor(tmp_path / "s", answer)))
        connected = stack.enter_context(contextlib.closing(connect_engine(impostor.path, timeout=5)))
        with pytest.raises(EvidenceError, match=problem):
            connected.run_in_container(NOBODY, ["true"], timeout=5)
