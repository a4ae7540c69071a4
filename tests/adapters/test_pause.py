"""Listening to a port, and the deadman: real sockets, a real engine, processes of this machine as those of the host."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_imagefresh.adapters.engine import Engine, connect_engine
from pytest_imagefresh.adapters.host import LocalHost
from pytest_imagefresh.adapters.pause import Deadman, arm, disarm, first_bytes
from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.identity import ContainerId
from pytest_imagefresh.core.port import parse_host_addresses, parse_listeners
from pytest_imagefresh.core.settings import Host
from tests import support

# --- listening

Key = selectors.SelectorKey
Talk = Callable[[socket.socket], None]


@contextlib.contextmanager
def serving(talk: Talk) -> Iterator[tuple[str, int]]:
    """Accept connections and talk to each; yield address and port. Connections stay open to the end."""
    with contextlib.ExitStack() as clients, socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client = clients.enter_context(listener.accept()[0])
                    with contextlib.suppress(OSError):
                        talk(client)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield "127.0.0.1", int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def answer(client: socket.socket) -> None:
    client.recv(1000)
    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")


def answer_with_one_byte(client: socket.socket) -> None:
    client.recv(1000)
    client.sendall(b"x")


def stay_silent(client: socket.socket) -> None:
    client.recv(1000)


def hang_up(client: socket.socket) -> None:
    client.recv(1000)
    client.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("talk", "heard"),
    [(answer, 3), (answer_with_one_byte, 3), (stay_silent, 0), (hang_up, 0)],
    ids=["answer", "one byte", "silence", "end"],
)
def test_only_a_byte_is_an_answer(talk: Talk, heard: int) -> None:
    with serving(talk) as end:
        times = first_bytes({"own": end}, "/health", connections=3, seconds=0.4, at_most=0.4)
    assert [len(each) for each in times.values()] == [heard]
    assert all(0 < each < 0.4 for each in times["own"])


def test_where_nobody_listens_nobody_answers(free_port: Callable[[], int]) -> None:
    ends = {"v4": ("127.0.0.1", free_port()), "v6": ("::1", free_port()), "nowhere": ("2001:db8::1", 1)}
    assert first_bytes(ends, "/", connections=2, seconds=0.3, at_most=20) == {"v4": [], "v6": [], "nowhere": []}


def test_every_end_is_asked_and_told_apart() -> None:
    with serving(answer) as loud, serving(stay_silent) as silent:
        times = first_bytes({"silent": silent, "loud": loud}, "/", connections=5, seconds=0.4, at_most=20)
    assert (len(times["silent"]), len(times["loud"])) == (0, 5)


def test_one_byte_is_enough_where_one_is_too_much() -> None:
    with serving(stay_silent) as silent, serving(answer) as loud:
        began = time.monotonic()
        times = first_bytes(
            {"silent": silent, "loud": loud}, "/", connections=5, seconds=60, at_most=60, until_one=True
        )
        assert time.monotonic() - began < 30
    assert times["loud"]


def test_a_process_that_was_held_up_has_not_listened_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    select = selectors.DefaultSelector.select

    def held_up(self: selectors.DefaultSelector, _timeout: float) -> list[tuple[Key, int]]:
        found = select(self, 0)
        time.sleep(0.5)
        return found

    def answer_meanwhile(client: socket.socket) -> None:
        time.sleep(0.2)
        answer(client)

    monkeypatch.setattr(selectors.DefaultSelector, "select", held_up)
    with serving(answer_meanwhile) as end:
        assert first_bytes({"own": end}, "/", connections=1, seconds=0.3, at_most=20, until_one=True)["own"]


def test_silence_begins_when_every_connection_has_come_to_its_end() -> None:
    calls: list[None] = []
    through = threading.Event()

    def come_late(client: socket.socket) -> None:
        through.wait(10)
        answer(client)

    def under_way() -> int:
        calls.append(None)
        if len(calls) == 30:  # far more than 0.1 s of listening
            through.set()
        return max(30 - len(calls), 0)

    with serving(come_late) as end:
        assert first_bytes(
            {"own": end}, "/", connections=1, seconds=0.1, at_most=20, until_one=True, under_way=under_way
        )["own"]


def test_nothing_is_listened_to_for_longer_than_a_bound() -> None:
    numbers = itertools.count()
    with serving(stay_silent) as end:
        heard = first_bytes({"own": end}, "/", connections=1, seconds=60, at_most=0.3, under_way=numbers.__next__)
    assert heard == {"own": []}


def test_what_is_asked_is_http() -> None:
    asked: list[bytes] = []

    def listen(client: socket.socket) -> None:
        asked.append(client.recv(1000))
        client.sendall(b"x")

    with serving(listen) as end:
        first_bytes({"own": end}, "/health?deep=1", connections=1, seconds=10, at_most=20)
    assert asked[0].startswith(b"GET /health?deep=1 HTTP/1.1\r\nHost: ")
    assert asked[0].endswith(b"\r\n\r\n")


# --- the deadman


@pytest.fixture
def connected(engine: support.Engine) -> Iterator[Engine]:
    """The adapter on the real engine."""
    with contextlib.closing(connect_engine(engine.socket, timeout=30)) as result:
        yield result


@pytest.fixture
def container_id(engine: support.Engine) -> Iterator[ContainerId]:
    """A running container."""
    name = f"imagefresh-pause-{secrets.token_hex(4)}"
    loop = ("sh", "-c", "trap exit TERM; while :; do sleep 0.1; done")
    yield ContainerId(engine.docker("run", "--detach", "--name", name, engine.base_image, *loop))
    engine.run("container", "rm", "--force", name)


@pytest.fixture
def host(engine: support.Engine) -> LocalHost:
    """This machine."""
    return LocalHost(Host(docker_host=engine.docker_host))


def status(connected: Engine, container_id: ContainerId) -> str:
    container = connected.read_container(container_id.hex)
    return container.status if container is not None else "gone"


def wait_until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def lives(deadman: Deadman) -> bool:
    """Whether the deadman is there: no zombie, and no other process that has its number now."""
    try:
        return "imagefresh-deadman" in Path(f"/proc/{deadman.pid}/cmdline").read_text()
    except OSError:
        return False


def pause_armed(connected: Engine, host: LocalHost, container_id: ContainerId, seconds: float) -> Deadman:
    """Arm a deadman and pause the container, as a session would that is lost right then."""
    deadman = arm(host, connected.socket, container_id, port=1, seconds=seconds, timeout=20)
    connected.client.api.pause(container_id.hex)
    return deadman


def test_a_deadman_ends_a_pause_and_then_itself(connected: Engine, host: LocalHost, container_id: ContainerId) -> None:
    deadman = pause_armed(connected, host, container_id, seconds=0.5)
    wait_until(lambda: status(connected, container_id) == "running")
    wait_until(lambda: not lives(deadman))


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP])
def test_a_deadman_that_is_told_to_end_ends_the_pause_first(
    connected: Engine, host: LocalHost, container_id: ContainerId, end: signal.Signals
) -> None:
    deadman = pause_armed(connected, host, container_id, seconds=60)
    os.kill(int(deadman.pid), end)
    wait_until(lambda: status(connected, container_id) == "running")
    wait_until(lambda: not lives(deadman))


def test_a_disarmed_deadman_does_nothing_and_is_gone(
    connected: Engine, host: LocalHost, container_id: ContainerId
) -> None:
    deadman = pause_armed(connected, host, container_id, seconds=60)
    disarm(host, deadman, timeout=20)
    wait_until(lambda: not lives(deadman))
    assert status(connected, container_id) == "paused"
    connected.client.api.unpause(container_id.hex)
    disarm(host, deadman, timeout=20)


def test_a_deadman_leaves_a_running_container_alone(
    connected: Engine, host: LocalHost, container_id: ContainerId
) -> None:
    before = connected.read_container(container_id.hex)
    deadman = arm(host, connected.socket, container_id, port=1, seconds=0.1, timeout=20)
    wait_until(lambda: not lives(deadman))
    assert connected.read_container(container_id.hex) == before


def test_a_deadman_tells_who_listens_on_the_port(connected: Engine, host: LocalHost, container_id: ContainerId) -> None:
    with socket.create_server(("127.0.0.3", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as other:
        port = int(listener.getsockname()[1])
        deadman = arm(host, connected.socket, container_id, port=port, seconds=60, timeout=20)
        assert "127.0.0.1" in parse_host_addresses(deadman.addresses)
        # A connection is no listener.
        assert parse_listeners(deadman.listeners, port) == ("127.0.0.3",)
        assert parse_listeners(deadman.listeners, int(other.getsockname()[1])) == ()
    disarm(host, deadman, timeout=20)


def test_a_deadman_that_reaches_no_container_is_not_armed(
    connected: Engine, host: LocalHost, container_id: ContainerId, tmp_path: Path
) -> None:
    unreached = [(connected.socket, ContainerId("0" * 64)), (str(tmp_path / "no.sock"), container_id)]
    for engine_socket, container in unreached:
        with pytest.raises(EvidenceError, match="did not confirm that it would end a pause"):
            arm(host, engine_socket, container, port=1, seconds=60, timeout=20)
