"""What a Docker engine says: images, containers, production. The only module that imports docker."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import posixpath
import re
import secrets
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import docker
import docker.errors
import requests

from pytest_imagefresh.core.content import Place
from pytest_imagefresh.core.errors import ConfigError, EvidenceError
from pytest_imagefresh.core.evidence import (
    REVISION_LABEL,
    Change,
    CheckResult,
    Container,
    Image,
    Mount,
    Port,
    PortOwner,
    Production,
)
from pytest_imagefresh.core.identity import ContainerId, ImageId, RunId
from pytest_imagefresh.core.settings import Prod

OUTPUT_LIMIT = 1 << 20
"""How much output of a program or a log is kept, in bytes."""

CONTENT_LABEL = "imagefresh.content"
"""Borne by a container that was only created to read an image; its value is the run's ID."""

_PROJECT_LABEL = "com.docker.compose.project"
_SERVICE_LABEL = "com.docker.compose.service"
_FOLDER_LABEL = "com.docker.compose.project.working_dir"

_MADE_AS = ("Name", "Path", "Args", "Config", "HostConfig")
"""What of a container's inspect JSON tells how it was made, and nothing of how it fares."""

_CHANGES = {0: "changed", 1: "added", 2: "deleted"}
"""Source: Docker Engine API, ContainerChanges."""

_IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")
_ABBREVIATED_ID = re.compile(r"(sha256:)?[0-9a-f]{1,63}")
_REFERENCE = re.compile(r"(?P<repository>[a-z0-9][a-z0-9._/:-]*):(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})")
_EMPTY_TAR = bytes(10240)
_PATH_STAT = "X-Docker-Container-Path-Stat"
# Source: Go, io/fs, FileMode.
_GO_TYPES = {1 << 31: "folder", 1 << 27: "symlink", 0: "file"}
_GO_TYPE_BITS = 0x8F280000
_CHUNK = 65536
_ARCHIVE_CHUNK = 1 << 20
_EXIT_GRACE_SECONDS = 2.0
_STOP_GRACE_SECONDS = 1
_POLL_SECONDS = 0.02

_STRANGE = (LookupError, TypeError, ValueError, AttributeError)
"""What an answer of an unexpected shape causes."""


def parse_image(attrs: Mapping[str, Any]) -> Image:
    """Return one image out of the engine's inspect JSON. Raises EvidenceError where it has another shape."""
    with _expected_shape("image"):
        config = attrs.get("Config") or {}
        labels = config.get("Labels") or {}
        return Image(
            id=ImageId(attrs["Id"]),
            revision_label=_text(labels.get(REVISION_LABEL, "")),
            entrypoint=_words(config.get("Entrypoint")),
            command=_words(config.get("Cmd")),
            user=_text(config.get("User") or ""),
            working_dir=_text(config.get("WorkingDir") or ""),
            environment=_parse_environment(config),
            volumes=tuple(sorted(map(posixpath.normpath, config.get("Volumes") or {}))),
        )


def parse_container(attrs: Mapping[str, Any]) -> Container:
    """Return one container out of the engine's inspect JSON. Raises EvidenceError where it has another shape."""
    with _expected_shape("container"):
        state, config = attrs["State"], attrs["Config"]
        return Container(
            id=ContainerId(attrs["Id"]),
            name=_text(attrs["Name"]).removeprefix("/"),
            image_id=ImageId(attrs["Image"]),
            status=_text(state["Status"]),
            health=_text((state.get("Health") or {}).get("Status", "")),
            started_at=_text(state["StartedAt"]),
            restart_count=int(attrs["RestartCount"]),
            network_mode=_text(attrs["HostConfig"]["NetworkMode"]),
            ports=_parse_ports(attrs["NetworkSettings"]["Ports"]),
            argv=(_text(attrs["Path"]), *map(_text, attrs["Args"])),
            user=_text(config.get("User") or ""),
            working_dir=_text(config.get("WorkingDir") or ""),
            environment=_parse_environment(config),
            mounts=_parse_mounts(attrs),
            networks=_parse_networks(attrs["NetworkSettings"].get("Networks")),
            service=_text((config.get("Labels") or {}).get(_SERVICE_LABEL, "")),
            made_as=_digest({name: attrs.get(name) for name in _MADE_AS}),
        )


def parse_place(described: str) -> Place:
    """Return one place out of the engine's base64 description of a path; "" stands for nothing there."""
    with _expected_shape("path"):
        if not described:
            return Place("")
        stat = json.loads(base64.b64decode(described))
        return Place(_GO_TYPES.get(int(stat["mode"]) & _GO_TYPE_BITS, "other"), _text(stat["linkTarget"]))


def _parse_ports(ports: Mapping[str, Any] | None) -> tuple[Port, ...]:
    """Return the published ports in a fixed order: the engine's own order changes from call to call."""
    found = [
        Port(container_port=name, host_ip=_text(binding["HostIp"]), host_port=int(binding["HostPort"]))
        for name, bindings in (ports or {}).items()
        for binding in bindings or ()
    ]
    return tuple(sorted(found, key=lambda port: (port.container_port, port.host_ip, port.host_port)))


def _parse_environment(config: Mapping[str, Any]) -> dict[str, str]:
    return dict(_text(entry).partition("=")[::2] for entry in config.get("Env") or ())


def _parse_mounts(attrs: Mapping[str, Any]) -> tuple[Mount, ...]:
    """Return every mount, sorted; those of tmpfs that were asked for in the short way are in a list of their own."""
    asked = _asked_mounts(attrs["HostConfig"])
    found = [
        Mount(
            path=posixpath.normpath(_text(each["Destination"])),
            kind=_text(each["Type"]),
            source=_text(each.get("Name") or each.get("Source") or ""),
            seeded=asked is not None and posixpath.normpath(each["Destination"]) not in asked,
        )
        for each in attrs["Mounts"]
    ]
    known = {each.path for each in found}
    short = map(posixpath.normpath, attrs["HostConfig"].get("Tmpfs") or {})
    found += [Mount(path, "tmpfs", "") for path in short if path not in known]
    return tuple(sorted(found, key=lambda mount: (mount.path, mount.kind, mount.source)))


def _asked_mounts(host_config: Mapping[str, Any]) -> set[str] | None:
    """Return where a container was to have mounts; None where that is not told, as they are those of another one."""
    if host_config.get("VolumesFrom"):
        return None
    # SOURCE:PATH or SOURCE:PATH:OPTIONS.
    binds = {_text(each).split(":")[1] for each in host_config.get("Binds") or ()}
    mounts = {_text(each["Target"]) for each in host_config.get("Mounts") or ()}
    return {posixpath.normpath(path) for path in (*binds, *mounts, *(host_config.get("Tmpfs") or {}))}


def _parse_networks(networks: Mapping[str, Any] | None) -> tuple[str, ...]:
    return tuple(sorted(f"{name} {(each or {}).get('EndpointID', '')}" for name, each in (networks or {}).items()))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def publishes(attrs: Mapping[str, Any], port: int) -> bool:
    """Whether a container publishes a port of the host now, or will when it is started. `attrs` is its inspect JSON."""
    with _expected_shape("container"):
        if any(published.host_port == port for published in _parse_ports(attrs["NetworkSettings"]["Ports"])):
            return True
        wanted = (attrs["HostConfig"].get("PortBindings") or {}).values()
        return any(_covers(_text(binding["HostPort"]), port) for bindings in wanted for binding in bindings or ())


def _covers(host_port: str, port: int) -> bool:
    """Whether a wanted host port is or may become this one: `8500`, a range `8500-8510`, or "" for any free port."""
    first, _, last = host_port.partition("-")
    return bool(first) and int(first) <= port <= int(last or first)


def _words(value: object) -> tuple[str, ...]:
    """Return a command as the engine has it. None, "", [] and [""] all say that there is none."""
    if value is None or value in ("", [], [""]):
        return ()
    if not isinstance(value, list):
        raise TypeError(f"expected a list of words, observed {value!r}")
    return tuple(map(_text, value))


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, observed {value!r}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, observed {value!r}")
    return value


@contextlib.contextmanager
def _expected_shape(kind: str) -> Iterator[None]:
    try:
        yield
    except _STRANGE as error:
        raise EvidenceError(
            f"the engine describes a {kind} in a shape that is not understood: {_one_line(error)}; "
            "expected that of the Docker Engine API; check the engine's version"
        ) from error


def _one_line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def connect_engine(socket: str, *, timeout: float) -> Engine:
    """Return the engine behind a unix socket, asked for its version and its ID.

    `socket` is an absolute path. `timeout` in seconds bounds this and every later call. The environment has no say:
    neither DOCKER_HOST nor a context nor a proxy. Raises EvidenceError where no engine answers, ConfigError for a
    relative path.
    """
    if not socket.startswith("/"):
        raise ConfigError(f"engine socket {socket!r}, expected an absolute path; correct host.docker_host")
    with _asking(socket, "its version"):
        # Fractions of a second are fine; only the published types of docker-py know nothing of them.
        client = docker.DockerClient(base_url=f"unix://{socket}", version="auto", timeout=cast(int, timeout))
    try:
        with _asking(socket, "its ID"):
            engine_id = client.info()["ID"]
        return Engine(client, engine_id, socket, timeout)
    except BaseException:
        client.close()
        raise


@contextlib.contextmanager
def _asking(socket: str, subject: str) -> Iterator[None]:
    """Translate everything foreign that can happen while the engine is asked for something."""
    try:
        yield
    # Whatever requests raises is an OSError.
    except (docker.errors.DockerException, OSError, http.client.HTTPException, *_STRANGE) as error:
        raise EvidenceError(
            f"engine {socket} was asked for {subject} and did not answer as expected: {_one_line(error)}; "
            f"see that 'docker --host unix://{socket} info' works, then run again"
        ) from error


class EngineReader:
    """What is read of an engine, whichever way its answers come. Each method raises EvidenceError for a strange one."""

    id: str
    """The engine's own ID."""

    def asking(self, subject: str) -> contextlib.AbstractContextManager[None]:
        """Translate everything foreign that can happen while the engine is asked for something."""
        raise NotImplementedError

    def inspect(self, kind: str, name: str) -> Mapping[str, Any] | None:
        """Return the engine's JSON of an image or a container; None only where the engine says that there is none."""
        raise NotImplementedError

    def may_be_production(self, prod: Prod) -> Iterable[Mapping[str, Any]]:
        """Return the inspect JSON of every container that is worth a closer look."""
        raise NotImplementedError

    def list_changes(self, container_id: ContainerId) -> object:
        """Return the engine's JSON of what changed in a container's files."""
        raise NotImplementedError

    def list_publishers(self, port: int) -> object:
        """Return the engine's list of running containers; those that do not publish the port may be left out."""
        raise NotImplementedError

    def info(self) -> Mapping[str, Any]:
        """Return what the engine says of itself; ID and SystemTime at least."""
        raise NotImplementedError

    def read_image(self, reference_or_id: str) -> Image | None:
        """Return the image that bears this reference or full ID; None only where the engine says that there is none."""
        attrs = self.inspect("image", reference_or_id)
        if attrs is None:
            return None
        image = parse_image(attrs)
        if _IMAGE_ID.fullmatch(reference_or_id) and reference_or_id != image.id.digest:
            raise EvidenceError(
                f"asked for image {reference_or_id}, the engine answers with {image.id}; check its store"
            )
        # The engine takes a name that reads like an ID for an abbreviated one.
        reads_like_id = _ABBREVIATED_ID.fullmatch(reference_or_id)
        bears_it = {reference_or_id, f"{reference_or_id}:latest"}.intersection(attrs.get("RepoTags") or ())
        return None if reads_like_id and not bears_it else image

    def read_container(self, name_or_id: str) -> Container | None:
        """Return the container of this exact name or full ID; None only where the engine says that there is none."""
        attrs = self.inspect("container", name_or_id)
        if attrs is None:
            return None
        container = parse_container(attrs)
        # The engine also answers to an abbreviated ID.
        return container if name_or_id in (container.name, container.id.hex) else None

    def describe_image(self, image_id: ImageId) -> Mapping[str, Any]:
        """Return the engine's whole inspect JSON of an image, for people; empty where there is none."""
        return self.inspect("image", image_id.digest) or {}

    def describe_container(self, container_id: ContainerId) -> Mapping[str, Any]:
        """Return the engine's whole inspect JSON of a container, for people; empty where there is none."""
        return self.inspect("container", container_id.hex) or {}

    def read_compose_project(self, container_id: ContainerId) -> str:
        """Return the compose project that a container belongs to. Raises EvidenceError where it has none."""
        attrs = self.inspect("container", container_id.hex)
        project = _labels(attrs).get(_PROJECT_LABEL) if attrs is not None else None
        if not project:
            raise EvidenceError(
                f"container {container_id} has no label {_PROJECT_LABEL}, expected one; start it with compose"
            )
        return _text(project)

    def read_production(self, prod: Prod, prod_image: str, repo_path: str) -> Production:
        """Return production as it is now: every container of the prod service or on its port, and the prod image.

        `repo_path` is the compose folder of the host, as the engine's labels have it. Containers count in any state,
        also one that would take the port only when it is started.
        """
        containers = [
            parse_container(attrs)
            for attrs in self.may_be_production(prod)
            if _is_service(attrs, prod.service, repo_path) or publishes(attrs, prod.port)
        ]
        image = self.read_image(prod_image)
        return Production(tuple(sorted(containers, key=lambda each: each.id.hex)), image.id if image else None)

    def read_changes(self, container_id: ContainerId) -> tuple[Change, ...]:
        """Return every path at which a container's files are not its image's. Nothing is seen below a mount."""
        with self.asking(f"the changed files of container {container_id}"):
            changes = self.list_changes(container_id)
            # The engine's word for none is null.
            listed = () if changes is None else _list(changes)
            return tuple(Change(_text(each["Path"]), _CHANGES[each["Kind"]]) for each in listed)

    def read_clock(self) -> str:
        """Return the engine's own time, in RFC 3339."""
        with self.asking("its time"):
            return _text(self.info()["SystemTime"])

    def read_port_owners(self, port: int) -> tuple[PortOwner, ...]:
        """Return every container that publishes a TCP port of the host now, once per address."""
        with self.asking(f"the owners of port {port}"):
            return tuple(
                PortOwner(ContainerId(each["Id"]), _text(each["Names"][0]).removeprefix("/"), bound.get("IP") or "")
                for each in _list(self.list_publishers(port))
                for bound in each.get("Ports") or ()
                if bound.get("PublicPort") == port and bound.get("Type") == "tcp"
            )


class Engine(EngineReader):
    """One engine, kept connected. Every call is bounded and raises EvidenceError where no proper answer comes back."""

    def __init__(self, client: docker.DockerClient, engine_id: str, socket: str, timeout: float) -> None:
        if not engine_id or not isinstance(engine_id, str):
            raise EvidenceError(f"engine {socket} has the ID {engine_id!r}, expected text; check the engine's version")
        self.client = client
        self.id = engine_id
        self.socket = socket
        self._timeout = timeout

    def close(self) -> None:
        """Close the kept connections."""
        self.client.close()

    def asking(self, subject: str) -> contextlib.AbstractContextManager[None]:
        """Translate everything foreign, and advise to try the same socket."""
        return _asking(self.socket, subject)

    def inspect(self, kind: str, name: str) -> Mapping[str, Any] | None:
        """Return the engine's JSON; None only for its own words `No such ...`, never for any other 404."""
        ask = self.client.api.inspect_image if kind == "image" else self.client.api.inspect_container
        with _asking(self.socket, f"{kind} {name!r}"):
            try:
                attrs = ask(name)
            except docker.errors.NotFound as error:
                if f"no such {kind}" in str(error.explanation).lower():
                    return None
                raise
            if not isinstance(attrs, Mapping):
                raise TypeError(f"expected a JSON object, observed {type(attrs).__name__}")
            return attrs

    def may_be_production(self, prod: Prod) -> Iterator[Mapping[str, Any]]:
        """Yield the inspect JSON of containers that may be production; one that was removed meanwhile is none."""
        with _asking(self.socket, "the list of its containers"):
            listed = self.client.api.containers(all=True)
            container_ids = [each["Id"] for each in listed if _may_be_production(each, prod)]
        found = (self.inspect("container", container_id) for container_id in container_ids)
        return (attrs for attrs in found if attrs is not None)

    def list_changes(self, container_id: ContainerId) -> object:
        """Return the engine's JSON of what changed in a container's files."""
        changes: object = self.client.api.diff(container_id.hex)
        return changes

    def list_publishers(self, port: int) -> object:  # noqa: ARG002
        """Return the engine's list of running containers."""
        listed: object = self.client.api.containers()
        return listed

    def info(self) -> Mapping[str, Any]:
        """Return what the engine says of itself."""
        found: Mapping[str, Any] = self.client.info()
        return found

    @contextlib.contextmanager
    def paused(self, container_id: ContainerId) -> Iterator[None]:
        """Pause a running container for as long as the body lasts; it runs again afterwards, whatever happens."""
        try:
            with _asking(self.socket, f"a pause of container {container_id}"):
                self.client.api.pause(container_id.hex)
            yield
        finally:
            self._unpause(container_id)

    def _unpause(self, container_id: ContainerId) -> None:
        with _asking(self.socket, f"an end of the pause of container {container_id}"):
            try:
                self.client.api.unpause(container_id.hex)
            except docker.errors.APIError:
                # Somebody else was faster, or the pause never came.
                if self.client.api.inspect_container(container_id.hex)["State"]["Paused"]:
                    raise

    def logs_tail(self, container_id: ContainerId, lines: int) -> bytes:
        """Return the last lines that a container wrote to standard output and error, 1 MiB at most."""
        with _asking(self.socket, f"the log of container {container_id}"):
            log: bytes = self.client.api.logs(container_id.hex, stdout=True, stderr=True, tail=lines)
            return log[-OUTPUT_LIMIT:]

    def run_in_container(self, container_id: ContainerId, argv: Sequence[str], *, timeout: float) -> CheckResult:
        """Run a program in a running container and return its exit status and output.

        `timeout` is in seconds. The engine has no call that ends such a program: where it outlives its timeout, the
        whole container is restarted. For a program that the container does not have, the engine's exit status is 126
        or 127. Raises EvidenceError after the timeout, where the container does not run, or where the exit status
        stays unknown.
        """
        program = f"{' '.join(argv)!r} in container {container_id}"
        with _asking(self.socket, f"the run of {program}"):
            exec_id = self.client.api.exec_create(container_id.hex, list(argv))["Id"]
            try:
                output = self._exec_output(exec_id, time.monotonic() + timeout)
                return CheckResult(self._exec_status(exec_id), output)
            except TimeoutError as error:
                ended = self._end_exec(exec_id, container_id)
                raise EvidenceError(
                    f"{program} did not end in time, expected {timeout:g} s at most; {ended}"
                ) from error

    def _exec_output(self, exec_id: str, deadline: float) -> bytes:
        """Start a prepared exec and return its output. Raises TimeoutError at the deadline.

        docker-py has no read with a deadline, and its raw socket can lose output that came along with the headers.
        """
        body = json.dumps({"Detach": False, "Tty": False})
        connection = _UnixConnection(self.socket, min(self._timeout, _left(deadline)))
        with contextlib.closing(connection):
            path = f"/v{self.client.api.api_version}/exec/{exec_id}/start"
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            stream = connection.sock  # getresponse() forgets it: a reply without a length ends with its connection
            with connection.getresponse() as response:
                if response.status != http.HTTPStatus.OK:
                    raise docker.errors.DockerException(f"{response.status} {response.read(1000)!r}")
                return _read_frames(response, stream, deadline)

    def _exec_status(self, exec_id: str) -> int:
        """Return the exit status of an exec whose output has ended. The engine may take a moment to write it down."""
        deadline = time.monotonic() + _EXIT_GRACE_SECONDS
        while True:
            state = self.client.api.exec_inspect(exec_id)
            if not state["Running"] and isinstance(state["ExitCode"], int):
                return state["ExitCode"]
            if time.monotonic() > deadline:
                raise docker.errors.DockerException("the output ended, and no exit status is known")
            time.sleep(_POLL_SECONDS)

    def _end_exec(self, exec_id: str, container_id: ContainerId) -> str:
        """End a program that outlived its timeout, and return what was done about it."""
        try:
            with _asking(self.socket, f"a restart of container {container_id}"):
                if not self.client.api.exec_inspect(exec_id)["Running"]:
                    return "it has ended since, but something it left behind holds its output"
                self.client.api.restart(container_id.hex, timeout=_STOP_GRACE_SECONDS)
                return "its container was restarted to end it"
        except EvidenceError as error:
            return f"it may still run: {error}"

    @contextlib.contextmanager
    def scratch_container(self, image_id: ImageId, run_id: RunId) -> Iterator[ContainerId]:
        """Create a container of an image, never started and without network; yield its ID; remove it afterwards.

        It bears the label `imagefresh.content`. It is removed with its volumes whatever happens; where that fails
        although all else went well, EvidenceError names it.
        """
        handle = f"imagefresh-content-{secrets.token_hex(8)}"
        try:
            container_id = self._create_scratch(handle, image_id, run_id)
            handle = container_id.hex
            yield container_id
        except BaseException:
            # What went wrong first is what the caller wants to hear.
            with contextlib.suppress(EvidenceError):
                self._remove_container(handle)
            raise
        self._remove_container(handle)

    def _create_scratch(self, name: str, image_id: ImageId, run_id: RunId) -> ContainerId:
        with _asking(self.socket, f"a container of image {image_id}"):
            created = self.client.api.create_container(
                image_id.digest,
                # An image may have no command of its own, and the engine wants one.
                command=["never-started"],
                name=name,
                labels={CONTENT_LABEL: run_id.text},
                network_disabled=True,
                host_config=self.client.api.create_host_config(network_mode="none"),
            )
            return ContainerId(_text(created["Id"]))

    def _remove_container(self, handle: str) -> None:
        with _asking(self.socket, f"the removal of container {handle}"), contextlib.suppress(docker.errors.NotFound):
            self.client.api.remove_container(handle, v=True, force=True)

    def read_place(self, container_id: ContainerId, path: str) -> Place:
        """Return what a container has at an absolute path, symlinks at its end not followed."""
        with _asking(self.socket, f"{path!r} in container {container_id}"):
            answer = self._ask_archive("HEAD", container_id, path)
            answer.close()
            if answer.status_code == http.HTTPStatus.NOT_FOUND:
                return Place("")
            answer.raise_for_status()
            return parse_place(answer.headers[_PATH_STAT])

    def read_archive(self, container_id: ContainerId, path: str, *, timeout: float) -> Iterator[bytes]:
        """Yield the tar archive of a folder of a container as it comes. `timeout` is in seconds, for all of it."""
        deadline = time.monotonic() + timeout
        subject = f"the files of {path!r} in container {container_id}"
        with _asking(self.socket, subject), self._ask_archive("GET", container_id, path) as answer:
            answer.raise_for_status()
            for chunk in answer.iter_content(_ARCHIVE_CHUNK):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not all of it came within {timeout:g} s; raise timeouts.content")
                yield chunk

    def _ask_archive(self, method: str, container_id: ContainerId, path: str) -> requests.Response:
        """Ask for a path of a container. Not by docker-py's get_archive: that waits for lost bytes without an end."""
        api = self.client.api
        url = f"{api.base_url}/v{api.api_version}/containers/{container_id}/archive"
        # Compressed content would be unpacked on the way, and its size is not bounded by what was sent.
        headers = {"Accept-Encoding": "identity"}
        return api.request(method, url, params={"path": path}, headers=headers, stream=True, timeout=self._timeout)

    @contextlib.contextmanager
    def unlabelled_image(self, tag: str) -> Iterator[ImageId]:
        """Import an empty image without any label, yield its ID, and remove it by that ID afterwards.

        `tag` is a full reference that no image may bear yet, `name:tag`. The image is removed whatever happens; where
        that fails although all else went well, EvidenceError names it.
        """
        parts = _REFERENCE.fullmatch(tag)
        if not parts or self.read_image(tag) is not None:
            raise EvidenceError(f"scratch reference {tag!r}, expected name:tag that no image bears; choose another")
        handle = tag
        try:
            image_id = self._import_empty(parts["repository"], parts["tag"])
            handle = image_id.digest
            yield image_id
        except BaseException:
            # What went wrong first is what the caller wants to hear.
            with contextlib.suppress(EvidenceError):
                self._remove_image(handle)
            raise
        self._remove_image(handle)

    def _import_empty(self, repository: str, tag: str) -> ImageId:
        with _asking(self.socket, f"an import as {repository}:{tag}"):
            said = self.client.api.import_image(src=_EMPTY_TAR, repository=repository, tag=tag)
            found = re.findall(r"sha256:[0-9a-f]{64}", said)
            if not found:
                raise ValueError(f"expected an image ID, observed {said!r}")
            return ImageId(found[-1])

    def _remove_image(self, handle: str) -> None:
        with _asking(self.socket, f"the removal of image {handle}"), contextlib.suppress(docker.errors.ImageNotFound):
            self.client.api.remove_image(handle, force=True, noprune=True)


def _may_be_production(listed: Mapping[str, Any], prod: Prod) -> bool:
    """Whether a container in the engine's list is worth a closer look: the list has no ports of stopped containers."""
    service = (listed.get("Labels") or {}).get(_SERVICE_LABEL)
    ports = [port.get("PublicPort") for port in listed.get("Ports") or ()]
    return listed["State"] != "running" or service == prod.service or prod.port in ports


def _is_service(attrs: Mapping[str, Any], service: str, repo_path: str) -> bool:
    """Whether compose made a container for this service of this folder. `attrs` is its inspect JSON."""
    labels = _labels(attrs)
    folder = posixpath.normpath(labels.get(_FOLDER_LABEL) or "/")
    return labels.get(_SERVICE_LABEL) == service and folder == posixpath.normpath(repo_path)


def _labels(attrs: Mapping[str, Any]) -> Mapping[str, Any]:
    with _expected_shape("container"):
        return dict(attrs["Config"].get("Labels") or {})


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket; `timeout` in seconds bounds each wait of it."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Frames:
    """The engine's stream of frames, put together again. Source: Docker Engine API, ContainerAttach, stream format."""

    def __init__(self) -> None:
        self.payload = bytearray()
        self._header = bytearray()
        self._missing = 0

    @property
    def at_boundary(self) -> bool:
        """Whether the last frame is complete."""
        return not self._header and not self._missing

    def feed(self, data: bytes) -> None:
        """Take the next bytes; keep the first 1 MiB of what they carry."""
        while data:
            if self._missing:
                part, data = data[: self._missing], data[self._missing :]
                self._missing -= len(part)
                self.payload += part[: max(0, OUTPUT_LIMIT - len(self.payload))]
            else:
                wanted = 8 - len(self._header)
                self._header += data[:wanted]
                data = data[wanted:]
                self._open_frame()

    def _open_frame(self) -> None:
        if len(self._header) < 8:
            return
        if self._header[0] > 2 or any(self._header[1:4]):
            raise ValueError(f"expected the header of a frame, observed {bytes(self._header)!r}")
        self._missing = int.from_bytes(self._header[4:], "big")
        self._header.clear()


def _read_frames(response: http.client.HTTPResponse, stream: socket.socket, deadline: float) -> bytes:
    """Read a stream of frames to its end. What passes the limit is read too, so that the program never blocks on it."""
    frames = _Frames()
    while True:
        stream.settimeout(_left(deadline))
        data = response.read1(_CHUNK)
        if not data:
            break
        frames.feed(data)
    if not frames.at_boundary:
        raise ValueError("the output was cut off")
    return bytes(frames.payload)


def _left(deadline: float) -> float:
    """Return the seconds until a deadline. Raises TimeoutError when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
