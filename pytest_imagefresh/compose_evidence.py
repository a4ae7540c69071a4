"""The host's compose configuration and what the commit's own says otherwise, read while the image is being built."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from dotenv import dotenv_values

from pytest_imagefresh.adapters.compose import read_service
from pytest_imagefresh.adapters.host import Host
from pytest_imagefresh.core import settings
from pytest_imagefresh.core.compose import ComposeEvidence, compare_services, secret_variables, service_of
from pytest_imagefresh.core.errors import EvidenceError, ImagefreshError, Refused
from pytest_imagefresh.core.masking import Masker

_Value = TypeVar("_Value")

# One round trip: the configuration in JSON, a NUL byte, and the .env that it was resolved with.
_READ = 'docker compose "$@" config --format json && printf "\\0" && { [ ! -f .env ] || cat .env; }'


class Meanwhile(Generic[_Value]):
    """Something that is read in a thread of its own while something longer is waited for."""

    def __init__(self, read: Callable[[], _Value]) -> None:
        self._read = read
        self._thread: threading.Thread | None = None
        self._values: list[_Value] = []

    def start(self) -> None:
        """Begin to read; to begin twice is to begin once."""
        if self._thread is None:
            # A daemon: who interrupts the run does not wait for it.
            self._thread = threading.Thread(target=self._try, name="imagefresh-meanwhile", daemon=True)
            self._thread.start()

    def result(self) -> _Value:
        """Return what was read. What did not come is read again: a host may allow one program at a time only."""
        if self._thread is not None:
            self._thread.join()
        return self._values[0] if self._values else self._read()

    def _try(self) -> None:
        with contextlib.suppress(ImagefreshError):
            self._values.append(self._read())


@dataclass(frozen=True)
class HostCompose:
    """The compose folder of the host, as compose there resolves it."""

    text: bytes
    """The configuration in JSON, as it came."""
    env: bytes
    """The folder's `.env`; b"" where there is none."""

    @property
    def configuration(self) -> Mapping[str, object]:
        """The configuration as data. Raises EvidenceError where it is no JSON object."""
        try:
            found = json.loads(self.text)
        except ValueError as error:
            raise EvidenceError(f"compose on the host brought back no JSON: {error}; check its version") from error
        if not isinstance(found, dict):
            raise EvidenceError(f"compose on the host brought back {type(found).__name__}, expected a JSON object")
        return found

    def teach(self, mask: Masker) -> None:
        """Tell a masker the secrets of the configuration and of the `.env`."""
        text = self.env.decode("utf-8", "replace")
        values = dotenv_values(stream=io.StringIO(text), interpolate=False)
        mask.learn({name: value for name, value in values.items() if value is not None})
        mask.learn(secret_variables(self.configuration))


def read_host_compose(host: Host, place: settings.Host, profile: str, *, timeout: float) -> HostCompose:
    """Return the configuration of the host's compose folder, with one profile on. `timeout` is in seconds.

    Raises EvidenceError where compose cannot resolve it.
    """
    config = [f"DOCKER_CONFIG={place.docker_config}"] if place.docker_config else []
    folder = ["--project-directory", place.repo_path, "--profile", profile]
    argv = ["env", "-C", place.repo_path, *config, "sh", "-c", _READ, "sh", *folder]
    done = host.run(argv, timeout=timeout)
    text, end, env = done.stdout.partition(b"\0")
    if done.status != 0 or not end:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["nothing"]
        raise EvidenceError(
            f"compose cannot resolve {place.repo_path} on {host.name}, expected its configuration as evidence; "
            f"it said: {said[0]}; let our user run 'docker compose config' there"
        )
    return HostCompose(text, env)


def compare_with_commit(
    found: HostCompose, files: Mapping[str, bytes], target: settings.Target, folder: str, *, timeout: float
) -> ComposeEvidence:
    """Return the host's configuration as evidence, beside what the commit's own compose file says of the service.

    `files` are the commit's YAML and env files, `folder` is the compose folder of the host. `timeout` in seconds bounds
    the commit's side. Where there is nothing to compare, because the commit has no compose file or one that does not
    resolve with the host's variables, the evidence says why. Raises EvidenceError where either side could not be found
    out.
    """
    service, configuration = target.staging.service, found.configuration
    digest = hashlib.sha256(found.text).hexdigest()
    project = str(configuration.get("name") or target.repo)
    try:
        own = read_service(files, service, env=found.env, project=project, timeout=timeout)
    except Refused as refused:
        return ComposeEvidence(service, configuration, digest, str(refused))
    differences = compare_services(service_of(configuration, service, folder), own)
    return ComposeEvidence(service, configuration, digest, "", tuple(differences))
