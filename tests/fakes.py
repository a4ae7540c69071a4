"""A Docker host that exists only in memory: the interface of the adapters, and a world that they see and change.

Used where the plugin is tested and no engine is needed. The world's `faults` make its hook lie or fail.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer

from pytest_imagefresh.adapters.command import Completed, Sent
from pytest_imagefresh.core.content import Place
from pytest_imagefresh.core.contract import SELF_TEST
from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.evidence import (
    Change,
    CheckResult,
    Container,
    HookReport,
    Image,
    Port,
    PortOwner,
    Production,
    Tenure,
)
from pytest_imagefresh.core.identity import ContainerId, ImageId, RunId
from pytest_imagefresh.core.settings import Prod
from pytest_imagefresh.core.statement import parse_statement

ENVIRONMENT = {"API_TOKEN": "s3cr3t-of-staging", "ROLE": "staging"}
"""Of the staging container."""


def digest(text: str) -> str:
    """Return 64 hex characters that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def image(revision: str, salt: str = "") -> Image:
    """Return an image labelled with a revision."""
    return Image(ImageId(f"sha256:{digest(revision + salt)}"), revision)


def folder_archive(name: str, files: Mapping[str, bytes]) -> bytes:
    """Return the archive of a folder as an engine hands it out."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        folder = tarfile.TarInfo(name)
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for path, content in files.items():
            member = tarfile.TarInfo(f"{name}/{path}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@dataclass
class World:
    """Images by ID and by reference, containers by name, and what goes wrong."""

    port: int
    tree: str
    faults: frozenset[str] = frozenset()
    images: dict[str, Image] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    built: int = 0
    files: dict[str, bytes] = field(default_factory=lambda: {"file": b"one"})
    """What every image holds below /app: path -> bytes."""

    def add(self, found: Image, *references: str) -> Image:
        """Keep an image under its ID and references."""
        for name in (found.id.digest, *references):
            self.images[name] = found
        return found

    def start(self, name: str, found: Image, port: int) -> Container:
        """Replace the container of that name."""
        self.built += 1
        container = Container(
            id=ContainerId(digest(f"{name} {self.built}")),
            name=name,
            image_id=found.id,
            status="running",
            health="",
            started_at=f"2026-01-02T03:04:{self.built:02d}Z",
            restart_count=0,
            network_mode="default",
            ports=(Port("8000/tcp", "127.0.0.1", port),),
            environment=dict(ENVIRONMENT),
        )
        self.containers[name] = container
        return container


class FakeEngine:
    """The interface of adapters.engine.Engine over a world."""

    id = "FAKE:ENGINE"
    client = None

    def __init__(self, world: World) -> None:
        self.world = world

    def read_image(self, name: str) -> Image | None:
        if "engine-down" in self.world.faults:
            raise EvidenceError("engine unix:///fake.sock does not answer; start it")
        return self.world.images.get(name)

    def read_container(self, name: str) -> Container | None:
        found = [each for each in self.world.containers.values() if name in (each.name, each.id.hex)]
        return found[0] if found else None

    def read_production(self, prod: Prod, prod_image: str, repo_path: str) -> Production:
        containers = tuple(each for each in self.world.containers.values() if each.name == prod.service)
        tagged = self.world.images.get(prod_image)
        return Production(containers, tagged.id if tagged else None)

    def describe_image(self, image_id: ImageId) -> dict[str, object]:
        return {"Id": image_id.digest}

    def describe_container(self, container_id: ContainerId) -> dict[str, object]:
        return {"Id": container_id.hex, "Config": {"Env": [f"{name}={value}" for name, value in ENVIRONMENT.items()]}}

    def logs_tail(self, container_id: ContainerId, lines: int) -> bytes:
        return b"listening with s3cr3t-of-staging\n"

    def run_in_container(self, container_id: ContainerId, argv: Sequence[str], *, timeout: float) -> CheckResult:
        return CheckResult(1 if "check-fails" in self.world.faults else 0, b"checked\n")

    @contextmanager
    def scratch_container(self, image_id: ImageId, run_id: RunId) -> Iterator[ContainerId]:
        yield ContainerId(digest(run_id.text))

    def read_place(self, container_id: ContainerId, path: str) -> Place:
        return Place("folder" if path == "/app" else "")

    def read_archive(self, container_id: ContainerId, path: str, *, timeout: float) -> Iterator[bytes]:
        added = {"debug.log": b""} if "image-has-more" in self.world.faults else {}
        yield folder_archive("app", {**self.world.files, **added})

    @contextmanager
    def unlabelled_image(self, name: str) -> Iterator[ImageId]:
        found = self.world.add(Image(ImageId(f"sha256:{digest(name)}"), ""), name)
        yield found.id
        del self.world.images[name], self.world.images[found.id.digest]

    def read_changes(self, container_id: ContainerId) -> tuple[Change, ...]:
        return (Change("/tmp", "changed"), Change("/tmp/lock", "added"))

    def read_clock(self) -> str:
        return "2026-01-02T03:05:00Z"

    def read_port_owners(self, port: int) -> tuple[PortOwner, ...]:
        return tuple(
            PortOwner(each.id, each.name, bound.host_ip)
            for each in self.world.containers.values()
            for bound in each.ports
            if bound.host_port == port
        )

    @contextmanager
    def paused(self, container_id: ContainerId) -> Iterator[None]:
        running = self.read_container(container_id.hex)
        if running is None:
            raise EvidenceError(f"no container {container_id}; start it")
        self.world.containers[running.name] = replace(running, status="paused")
        if "answers-while-paused" not in self.world.faults:
            SERVES.clear()
        try:
            yield
        finally:
            SERVES.set()
            self.world.containers[running.name] = running

    def close(self) -> None:
        pass


class FakeHost:
    """The part of adapters.host.Host that gate tests reach."""

    name = "fake"

    def __init__(self, world: World) -> None:
        self.world = world

    def reach(self, port: int, address: str = "127.0.0.1") -> tuple[str, int]:
        return "127.0.0.1", self.world.port

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        stdin: bytes = b"",
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        if any("docker compose" in word for word in argv):
            return self._resolve(argv)
        addresses = b"  |-- 127.0.0.1\n"
        if not any("imagefresh-deadman" in word for word in argv):
            return Completed(tuple(argv), 0, addresses if any("fib_trie" in word for word in argv) else b"", b"")
        confirmed = b"" if "no-deadman" in self.world.faults else b"armed 1\naddresses\n" + addresses
        return Completed(tuple(argv), 0, confirmed, b"")

    def _resolve(self, argv: Sequence[str]) -> Completed:
        """Resolve the compose folder, as compose on the host would."""
        if "compose-unknown" in self.world.faults:
            return Completed(tuple(argv), 1, b"", b"no compose here\n")
        service = {"profiles": ["staging"], "environment": {**ENVIRONMENT, "LEVEL": "s3cr3t-of-the-host"}}
        configuration = json.dumps({"name": "shop", "services": {"shop-staging": service}})
        return Completed(tuple(argv), 0, configuration.encode() + b"\0DB_PASSWORD=s3cr3t-of-the-host\n", b"")

    def under_way(self) -> int:
        # A number that is never the same: something arrives all the time.
        return time.monotonic_ns() if "never-arrives" in self.world.faults else 0

    def require_reached(self) -> None:
        pass

    def engine_socket(self) -> str:
        return "/fake.sock"

    def close(self) -> None:
        pass


class FakeLease:
    """The interface of adapters.hook.Lease. The fault `lease-lost` ends it before its last question."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.token = "1" * 64

    def await_grant(self, *, on_line: Callable[[str], None] | None = None) -> None:
        if "locked" in self.world.faults:
            raise EvidenceError("another run holds the lock")

    def tenure(self, *, timeout: float) -> Tenure:
        if "lease-lost" in self.world.faults:
            raise EvidenceError("the lease of this run was lost")
        return Tenure(held=5.0 if "lease-renewed" not in self.world.faults else 0.5, needed=5.0)

    def keep(self) -> None:
        pass

    def close(self) -> None:
        pass


class FakeHook:
    """The interface of adapters.hook.InstalledHook, acting on a world."""

    path = "/fake/deploy-hook.sh"

    def __init__(self, world: World) -> None:
        self.world = world

    def lease(self, variables: Mapping[str, str], *, patience: float) -> FakeLease:
        self.world.calls.append(("--lease", dict(variables)))
        return FakeLease(self.world)

    def call(
        self,
        mode: str,
        variables: Mapping[str, str],
        *,
        timeout: float,
        stdin: Sent = b"",
        on_line: Callable[[str], None] | None = None,
        lease: FakeLease | None = None,
    ) -> HookReport:
        if lease is not None:
            variables = {**variables, "LEASE": lease.token}
        self.world.calls.append((mode, dict(variables)))
        for line in (
            f"imagefresh: step: {'building' if mode == '--build-staging' else 'verifying'} shop",
            "Step 1/2 : FROM scratch with s3cr3t-of-pipeline",
        ):
            on_line(line) if on_line is not None else None
        if "hook-unknown" in self.world.faults:
            raise EvidenceError("the hook could not find out: the engine does not answer")
        if mode == "--build-staging":
            return self._build(variables)
        if mode == "--self-test":
            return self._self_test()
        return self._verify(mode, variables)

    def _build(self, variables: Mapping[str, str]) -> HookReport:
        revision = variables["GIT_SHA"]
        base = HookReport("--build-staging", 1, False, "refused", "build-failed", "the build failed: no space left")
        if "build-fails" in self.world.faults:
            return base
        found = image("2" * 40) if "stale-image" in self.world.faults else image(revision)
        if "perfect-json" in self.world.faults:
            return self._built(revision, found.id.digest, digest("no such container"))
        self.world.add(found, variables["TARGET_IMAGE"])
        container = self.world.start(variables["STAGING_CONTAINER"], found, int(variables["TARGET_PORT"]))
        if "other-image-runs" in self.world.faults:
            self.world.containers[container.name] = replace(container, image_id=ImageId("sha256:" + "e" * 64))
        if "command-replaced" in self.world.faults:
            self.world.containers[container.name] = replace(container, argv=("sh",))
        if "port-shared" in self.world.faults:
            self.world.start("old", found, int(variables["TARGET_PORT"]))
        if "touches-production" in self.world.faults:
            self.world.start("shop", found, 8500)
        return self._built(revision, found.id.digest, container.id.hex)

    def _built(self, revision: str, image_id: str, container_id: str) -> HookReport:
        return HookReport(
            mode="--build-staging",
            exit_status=0,
            ok=True,
            kind="done",
            cause="",
            reason="rebuilt",
            revision=revision,
            tree=self.world.tree,
            image_id=image_id,
            container_id=container_id,
            engine_id=FakeEngine.id,
            check=CheckResult(1 if "check-fails" in self.world.faults else 0, b"checked\n"),
        )

    def _self_test(self) -> HookReport:
        cases = dict(SELF_TEST)
        if "accepts-everything" in self.world.faults:
            cases["wrong-revision"] = "verified"
        if "forgets-a-case" in self.world.faults:
            del cases["unlabelled"]
        return HookReport("--self-test", 0, True, "done", "self-tested", "all is well", cases=cases)

    def _verify(self, mode: str, variables: Mapping[str, str]) -> HookReport:
        # What another worker's hook built is not in this world.
        found = self.world.images.get(variables["SOURCE_IMAGE"]) or image(variables["EXPECTED_REVISION"])
        cause = self._cause(variables["EXPECTED_REVISION"], found)
        if not cause and self.world.faults & {"requires-verdict", "rejects-verdict", "verdict-unknown"}:
            return self._judge(mode, variables.get("VERDICT"), found)
        if "accepts-everything" in self.world.faults or (not cause and "refuses-everything" not in self.world.faults):
            return HookReport(mode, 0, True, "done", "", "would promote", found.revision_label, "", found.id.digest)
        return HookReport(mode, 1, False, "refused", cause or "image-missing", f"refused: {cause}")

    def _judge(self, mode: str, verdict: str | None, found: Image) -> HookReport:
        """Answer as a host whose policy requires a verdict; it does not look at the signature."""
        if verdict is None:
            refused = HookReport(mode, 1, False, "refused", "verdict-missing", "none", image_id=found.id.digest)
            return replace(refused, compose_sha256="c" * 64, verdict="required")
        if "verdict-unknown" in self.world.faults:
            raise EvidenceError("the hook could not find out: the engine does not answer")
        said = parse_statement(base64.b64decode(verdict).partition(b"-----BEGIN")[0])
        runs = ImageId(said.prod_runs) == self.world.images["shop-shop"].id
        if "rejects-verdict" in self.world.faults or said.image_id != found.id or not runs:
            return HookReport(mode, 1, False, "refused", "verdict-signature", "VERDICT: no signature of the gate")
        done = HookReport(mode, 0, True, "done", "verified", "would promote", image_id=found.id.digest)
        return replace(done, verdict="accepted")

    @staticmethod
    def _cause(expected: str, found: Image) -> str:
        if not expected:
            return "revision-empty"
        if not found.revision_label:
            return "revision-missing"
        return "" if found.revision_label == expected else "revision-mismatch"


SERVES = threading.Event()
"""Whether the server answers; it does until its container is paused."""

SERVES.set()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        SERVES.wait()
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[int]:
    """Serve HTTP 200 on a port of 127.0.0.1; yield the port."""
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
