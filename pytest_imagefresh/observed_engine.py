"""The engine of a host whose key reaches the hook only: its own answers, brought by `--observe`, parsed as ever."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from pytest_imagefresh.adapters.engine import EngineReader, parse_place
from pytest_imagefresh.core.content import Place
from pytest_imagefresh.core.errors import EvidenceError, Refused
from pytest_imagefresh.core.evidence import Answer, CheckResult, HookReport
from pytest_imagefresh.core.identity import ContainerId, ImageId, RunId
from pytest_imagefresh.core.settings import Prod, Target


class Observe(Protocol):
    """Ask the hook to observe something; see `TargetRun.observe`."""

    def __call__(
        self, word: str, *, image: ImageId | None = None, paths: Sequence[str] = (), timeout: float | None = None
    ) -> HookReport:
        """Return its report. Raises Refused where it does not show it."""


class ObservedEngine(EngineReader):
    """One target's view of an engine that is out of reach. What needs the engine itself is refused in one line."""

    def __init__(self, observe: Observe, target: Target, name: str) -> None:
        """`name` is that of the host. Raises EvidenceError where its engine has no ID."""
        self._observe = observe
        self._target = target
        self._images: set[str] = set()
        self.name = f"behind the hook on {name}"
        engine_id = self.info().get("ID")
        if not isinstance(engine_id, str) or not engine_id:
            raise EvidenceError(
                f"engine {self.name} has the ID {engine_id!r}, expected text; check the engine's version"
            )
        self.id = engine_id

    def close(self) -> None:
        """Do nothing: nothing is held."""

    @contextlib.contextmanager
    def asking(self, subject: str) -> Iterator[None]:
        """Translate what an answer of an unexpected shape causes."""
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise EvidenceError(
                f"engine {self.name} was asked for {subject} and its answer is not understood: "
                f"{type(error).__name__}: {error}; is it really deploy-hook.sh?"
            ) from error

    def info(self) -> Mapping[str, Any]:
        """Return ID and SystemTime of the engine."""
        found = self._json("engine")
        if not isinstance(found, Mapping):
            raise self._strange("engine", found)
        return found

    def inspect(self, kind: str, name: str) -> Mapping[str, Any] | None:
        """Return the engine's JSON of an image, or of a container of the staging service; None where there is none."""
        found = self._inspect_image(name) if kind == "image" else self._inspect_container(name)
        if found is not None and not isinstance(found, Mapping):
            raise self._strange(kind, found)
        return found

    def _inspect_image(self, name: str) -> object:
        if name == self._target.image:
            return self._json("image")
        if name == self._target.prod_image:
            return self._load(self._observe("production"), "production_image")
        return self._json("image", image=ImageId(name))

    def _inspect_container(self, name: str) -> object:
        listed = self._json("container")
        if not isinstance(listed, list) or not all(isinstance(each, Mapping) for each in listed):
            raise self._strange("container", listed)
        found = [each for each in listed if name in (each.get("Id"), str(each.get("Name")).removeprefix("/"))]
        return found[0] if found else None

    def may_be_production(self, prod: Prod) -> Sequence[Mapping[str, Any]]:  # noqa: ARG002
        """Return the inspect JSON of containers that may be production, without their environment."""
        found = self._json("production")
        if not isinstance(found, list):
            raise self._strange("production", found)
        return found

    def list_changes(self, container_id: ContainerId) -> object:
        """Return the engine's JSON of what changed in the staging container's files."""
        return self._load(self._of(container_id, self._observe("changes")), "changes")

    def list_publishers(self, port: int) -> object:  # noqa: ARG002
        """Return the engine's list of the running containers that publish the staging port."""
        return self._json("owners")

    def logs_tail(self, container_id: ContainerId, lines: int) -> bytes:
        """Return the last lines that the staging container wrote, 500 at most."""
        log = self._bytes(self._of(container_id, self._observe("log")), "log")
        return b"".join(log.splitlines(keepends=True)[-lines:])

    def read_answer(self, container_id: ContainerId) -> Answer:
        """Return what one GET of the health path brings back, asked on the host at the container's own address."""
        found = self._load(self._of(container_id, self._observe("answer")), "answer")
        if not isinstance(found, Mapping) or not all(isinstance(found.get(key), str) for key in ("url", "answer")):
            raise self._strange("answer", found)
        return parse_answer(found["url"], found["answer"])

    # What lies in an image. The hook makes a container of its own for each look: the image's ID stands for it here.

    @contextlib.contextmanager
    def scratch_container(self, image_id: ImageId, run_id: RunId) -> Iterator[ContainerId]:  # noqa: ARG002
        """Yield what stands for a container of an image that is read only."""
        stand_in = ContainerId(image_id.digest.removeprefix("sha256:"))
        self._images.add(stand_in.hex)
        yield stand_in

    def read_place(self, container_id: ContainerId, path: str) -> Place:
        """Return what an image, or the staging container, has at an absolute path, symlinks at its end not followed."""
        staging = container_id.hex not in self._images
        image = None if staging else ImageId(f"sha256:{container_id.hex}")
        report = self._observe("places", image=image, paths=[path])
        found = self._load(self._of(container_id, report) if staging else report, "places")
        if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], str):
            raise self._strange("places", found)
        return parse_place(found[0])

    def read_archive(self, container_id: ContainerId, path: str, *, timeout: float) -> Iterator[bytes]:
        """Yield the tar archive of a folder of an image. `timeout` is in seconds."""
        image = ImageId(f"sha256:{container_id.hex}")
        yield self._bytes(self._observe("archive", image=image, paths=[path], timeout=timeout), "archive")

    # What needs the engine itself.

    @property
    def client(self) -> NoReturn:
        """Raise Refused: there is no client."""
        raise self._out_of_reach("docker_client")

    def run_in_container(self, container_id: ContainerId, argv: Sequence[str], *, timeout: float) -> CheckResult:  # noqa: ARG002
        """Raise Refused: nothing is run in a container but the staging check of a rebuild."""
        raise self._out_of_reach("a program in the staging container (staging_exec, the check of --gate-reuse)")

    @contextlib.contextmanager
    def paused(self, container_id: ContainerId) -> Iterator[None]:  # noqa: ARG002
        """Raise Refused: the hook alone pauses, and tells what it heard."""
        raise self._out_of_reach("a pause")
        yield

    @contextlib.contextmanager
    def unlabelled_image(self, tag: str) -> Iterator[ImageId]:  # noqa: ARG002
        """Raise Refused: no image is made; the hook's self-test makes one of its own."""
        raise self._out_of_reach("unlabelled_image")
        yield ImageId("")

    def _out_of_reach(self, what: str) -> Refused:
        return Refused(
            f"{what} needs the engine itself, which is {self.name} and out of reach (host.restricted is true); leave "
            "it out, or use a key that reaches the engine"
        )

    # What the hook brought.

    def _json(self, word: str, *, image: ImageId | None = None) -> object:
        return self._load(self._observe(word, image=image), word)

    def _load(self, report: HookReport, word: str) -> object:
        try:
            found: object = json.loads(self._bytes(report, word))
        except ValueError as error:
            raise self._strange(word, report.observed[word][:80]) from error
        return found

    def _bytes(self, report: HookReport, word: str) -> bytes:
        if word not in report.observed:
            raise self._strange(word, "nothing")
        return report.observed[word]

    def _of(self, container_id: ContainerId, report: HookReport) -> HookReport:
        """Return the report where it speaks of this container."""
        if report.container_id != container_id.hex:
            raise EvidenceError(
                f"the hook observed container {report.container_id or 'none'}, expected {container_id}; see who else "
                "works on staging, then run again"
            )
        return report

    def _strange(self, word: str, found: object) -> EvidenceError:
        return EvidenceError(
            f"engine {self.name}: --observe {word} brings {str(found)[:80]!r}, expected the engine's own answer; "
            "is it really deploy-hook.sh?"
        )


def parse_answer(url: str, answer: str) -> Answer:
    """Return an answer out of its HTTP status as text, or of the words why there was none."""
    status = int(answer) if answer.isascii() and answer.isdigit() and len(answer) == 3 else 0
    return Answer(url, status, "" if status else answer or "no answer")
