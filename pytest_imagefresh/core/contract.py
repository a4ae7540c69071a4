"""The hook's contract, version 1: variables in, one JSON line out. Pure; the caller's side of `docs/deploy-hook.md`."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from pytest_imagefresh.core.audit import Entry, Situation
from pytest_imagefresh.core.errors import ConfigError, EvidenceError
from pytest_imagefresh.core.evidence import Anchor, CheckResult, HookReport
from pytest_imagefresh.core.identity import ImageId, RunId
from pytest_imagefresh.core.settings import Build, Settings, Target

VERSION = "1"
UNKNOWN_MODE = "mode-unknown"
"""The cause by which a hook that is older than its caller says so."""

SELF_TEST = {
    "right": "verified",
    "wrong-revision": "revision-mismatch",
    "empty-revision": "revision-empty",
    "abbreviated-revision": "revision-malformed",
    "upper-case-revision": "revision-malformed",
    "wildcard-revision": "revision-malformed",
    "pattern-revision": "revision-malformed",
    "padded-revision": "revision-malformed",
    "broken-line-revision": "revision-malformed",
    "empty-image-id": "image-id-empty",
    "abbreviated-image-id": "image-id-malformed",
    "padded-image-id": "image-id-malformed",
    "other-image-id": "image-id-mismatch",
    "unlabelled": "revision-missing",
    "unlabelled-and-empty": "revision-empty",
    "frozen": "frozen",
    "missing-image": "image-missing",
    "missing-image-id": "image-missing",
}
"""Case of `--self-test` -> the cause that it must end with."""

SIGNED_SELF_TEST = {
    **SELF_TEST,
    "unsigned": "verdict-missing",
    "second-signature": "verdict-malformed",
    "trailing-junk": "verdict-malformed",
    "replayed": "verdict-used",
    "superseded": "verdict-superseded",
    "unkept": "verdict-ledger",
    "wrong-key": "verdict-signature",
    "wrong-namespace": "verdict-signature",
    "expired": "verdict-expired",
    "future": "verdict-future",
    "other-production": "verdict-production-changed",
    "other-target": "verdict-other-target",
    "edited": "verdict-signature",
}
"""The same on a host whose policy requires a verdict."""

REQUEST_LIMIT = 8192
"""How many bytes a request of a restricted key may have."""

_REQUEST = re.compile(r"[A-Za-z0-9 ._/:@%+=,~?&-]+")
"""What it may be made of."""

_TOKEN = re.compile(r"[0-9a-f]{64}")
_STATUS_OF_KIND = {"done": 0, "refused": 1, "usage": 2, "rolled-back": 3, "broken": 4, "unknown": 11}


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON line as the hook prints it. Keys that this version does not know are ignored."""

    mode: str
    ok: bool
    kind: str
    cause: str
    reason: str
    revision: str = ""
    tree: str = ""
    image_id: str = ""
    container_id: str = ""
    engine_id: str = ""
    prod_runs: str = ""
    compose_sha256: str = ""
    verdict: str = ""
    seconds: dict[str, float] = {}
    check_status: int | None = None
    check_output: str = ""
    cases: dict[str, str] = {}
    history: list[Entry] = []
    status: Situation = Situation()
    observed: dict[str, str] = {}


class Grant(msgspec.Struct, frozen=True):
    """The line in which `--lease` says that it holds the lock."""

    lease: str
    """The token that lets the other modes of the run through."""
    held: float
    """For how many seconds it has been held."""


def encode_list(words: Iterable[str]) -> str:
    """Return words as one harmless word: base64 of each word ended by a NUL byte."""
    return base64.b64encode(b"".join(word.encode() + b"\0" for word in words)).decode()


def staging_variables(
    target: Target, anchor: Anchor, build: Build, settings: Settings, *, clone: str, run_id: RunId
) -> dict[str, str]:
    """Return the variables of `--build-staging`: the staging target in full, and nothing of prod.

    `clone` is the path of the repo's clone as the Docker host sees it, or `-` where it is sent the commit.
    """
    staging, bounds = target.staging, settings.timeouts
    return {
        **_always(target, settings, run_id),
        "GIT_SHA": anchor.revision.hex,
        "BUILD_CONTEXT": clone,
        "BUILD_SUBDIR": build.context,
        "BUILD_DOCKERFILE": build.dockerfile,
        "BUILD_TARGET": build.target,
        "BUILD_ARGS": encode_list(f"{name}={value}" for name, value in build.args.items()),
        "TARGET_IMAGE": target.image,
        "TARGET_SERVICE": staging.service,
        "TARGET_PORT": str(staging.port),
        "COMPOSE_PROFILE": staging.profile,
        "STAGING_CONTAINER": staging.container,
        "STAGING_CHECK_PATH": staging.check_path,
        "STAGING_CHECK_MODE": staging.check_mode,
        "STAGING_CHECK_COMMAND": encode_list(staging.check_argv()),
        "HEALTH_PATH": staging.health_path,
        "HEALTH_TIMEOUT": f"{bounds.health:g}",
        "BUILD_TIMEOUT": f"{bounds.build:g}",
        "CHECK_TIMEOUT": f"{bounds.check:g}",
        "SETTLE": f"{settings.settle:g}",
    }


def promotion_variables(
    target: Target,
    settings: Settings,
    *,
    run_id: RunId,
    expected_revision: str,
    expected_image: ImageId | None,
    verdict: str = "",
) -> dict[str, str]:
    """Return the variables of `--verify` and `--promote`.

    `expected_revision` is always passed: "" is what the hook refuses. Without `expected_image` only the revision binds;
    `verdict` is a packed one, "" for none.
    """
    variables = {
        **_always(target, settings, run_id),
        "SOURCE_IMAGE": target.image,
        "EXPECTED_REVISION": expected_revision,
        **_production(target),
        "HEALTH_PATH": target.prod.health_path,
        "HEALTH_TIMEOUT": f"{settings.timeouts.health:g}",
        "SETTLE": f"{settings.settle:g}",
    }
    if expected_image is not None:
        variables["EXPECTED_IMAGE_ID"] = expected_image.digest
    if verdict:
        variables["VERDICT"] = verdict
    return variables


def self_test_variables(target: Target, settings: Settings, *, run_id: RunId) -> dict[str, str]:
    """Return the variables of `--self-test`: a promotion, of which it chooses image and expectations itself."""
    variables = promotion_variables(target, settings, run_id=run_id, expected_revision="", expected_image=None)
    return {name: value for name, value in variables.items() if name not in ("SOURCE_IMAGE", "EXPECTED_REVISION")}


def lease_variables(target: Target, settings: Settings, *, run_id: RunId) -> dict[str, str]:
    """Return the variables of `--lease`."""
    return _always(target, settings, run_id)


def status_variables(target: Target, settings: Settings, *, run_id: RunId) -> dict[str, str]:
    """Return the variables of `--status`."""
    return {
        **_always(target, settings, run_id),
        **_production(target),
        "TARGET_IMAGE": target.image,
        "TARGET_SERVICE": target.staging.service,
    }


def history_variables(target: Target, settings: Settings, *, run_id: RunId, limit: int) -> dict[str, str]:
    """Return the variables of `--history`; `limit` is from 1 to 1000."""
    return {**_always(target, settings, run_id), "HISTORY_LIMIT": str(limit)}


def freeze_variables(target: Target, settings: Settings, *, run_id: RunId, reason: str) -> dict[str, str]:
    """Return the variables of `--freeze`. Those of `--unfreeze` are those of `--lease`."""
    return {**_always(target, settings, run_id), "REASON": encode_list([reason])}


def break_glass_variables(
    target: Target, settings: Settings, *, run_id: RunId, image: ImageId, reason: str
) -> dict[str, str]:
    """Return the variables of `--break-glass`: a promotion by image ID, for a reason, without expectations."""
    variables = promotion_variables(target, settings, run_id=run_id, expected_revision="", expected_image=None)
    del variables["EXPECTED_REVISION"]
    return {**variables, "SOURCE_IMAGE": image.digest, "REASON": encode_list([reason])}


def rollback_variables(target: Target, settings: Settings, *, run_id: RunId, image: ImageId | None) -> dict[str, str]:
    """Return the variables of `--rollback`; without `image` the hook chooses the previous one."""
    variables = self_test_variables(target, settings, run_id=run_id)
    return variables if image is None else {**variables, "SOURCE_IMAGE": image.digest}


def recover_variables(target: Target, settings: Settings, *, run_id: RunId) -> dict[str, str]:
    """Return the variables of `--recover`: the journal says the rest."""
    return _always(target, settings, run_id)


def observation_variables(
    target: Target, settings: Settings, *, run_id: RunId, words: str, image: ImageId | None, paths: Sequence[str]
) -> dict[str, str]:
    """Return the variables of `--observe`. `words` say what is wanted, `image` and `paths` of what."""
    staging, bounds = target.staging, settings.timeouts
    variables = {
        **_always(target, settings, run_id),
        "OBSERVE": words,
        "TARGET_IMAGE": target.image,
        "TARGET_SERVICE": staging.service,
        "TARGET_PORT": str(staging.port),
        "COMPOSE_PROFILE": staging.profile,
        "STAGING_CONTAINER": staging.container,
        "PROD_IMAGE": target.prod_image,
        "PROD_SERVICE": target.prod.service,
        "PROD_PORT": str(target.prod.port),
        "HEALTH_PATH": staging.health_path,
        "HEALTH_TIMEOUT": f"{bounds.health:g}",
        "SETTLE": f"{settings.settle:g}",
    }
    if image is not None:
        variables["OBSERVE_IMAGE"] = image.digest
    if paths:
        variables["OBSERVE_PATHS"] = encode_list(paths)
    return variables


def parse_grant(line: str) -> Grant | None:
    """Return what a line of `--lease` grants; None where it is another line, such as its report."""
    try:
        grant = msgspec.json.decode(line, type=Grant)
    except msgspec.DecodeError:
        return None
    return grant if _TOKEN.fullmatch(grant.lease) else None


def _always(target: Target, settings: Settings, run_id: RunId) -> dict[str, str]:
    return {"REPO": target.repo, "RUN_ID": run_id.text, "COMPOSE_DIR": settings.host.repo_path}


def _production(target: Target) -> dict[str, str]:
    return {
        "PROD_IMAGE": target.prod_image,
        "PROD_SERVICE": target.prod.service,
        "PROD_PORT": str(target.prod.port),
        "PROD_PROFILE": target.prod.profile,
        "PROD_PIN": target.prod.pin,
        "PRECHECK": "yes" if target.prod.precheck else "no",
        **_proxy(target),
    }


def _proxy(target: Target) -> dict[str, str]:
    """Return what tells the hook of a proxy; nothing where there is none."""
    if not target.prod.is_proxied:
        return {}
    proxy = target.prod.proxy
    return {"PROD_PROXY": proxy.service, "PROD_PROXY_PORT": str(proxy.port), "PROD_DRAIN": f"{proxy.drain:g}"}


def hook_command(hook: str, mode: str, variables: Mapping[str, str]) -> list[str]:
    """Return one call of the hook as argv: nothing of the caller's environment reaches it but these variables."""
    return ["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in variables.items()), hook, mode]


def request_command(mode: str, variables: Mapping[str, str]) -> list[str]:
    """Return one call as a restricted key makes it: its words, joined by blanks, are the whole ssh command.

    Raises ConfigError for a value that such a request cannot carry.
    """
    for name, value in variables.items():
        if value and (" " in value or not _REQUEST.fullmatch(value)):
            raise ConfigError(
                f"{name} is {value!r}, which a restricted key cannot pass on; expected letters, digits and "
                "._/:@%+=,~?&-; correct the setting"
            )
    words = [mode, *(f"{name}={value}" for name, value in variables.items())]
    size = len(" ".join(words))
    if size > REQUEST_LIMIT:
        raise ConfigError(
            f"the request of {mode} has {size} bytes, expected {REQUEST_LIMIT} at most for a restricted key; "
            "shorten the check's command or the build arguments"
        )
    return words


def deploy_command(hook: str, variables: Mapping[str, str], expected_revision: str | None) -> list[str]:
    """Return the promote call for a caller's own ssh. None leaves EXPECTED_REVISION unset: no provenance check."""
    chosen = {name: value for name, value in variables.items() if name != "EXPECTED_REVISION"}
    if expected_revision is not None:
        chosen["EXPECTED_REVISION"] = expected_revision
    return hook_command(hook, "--promote", chosen)


def parse_report(stdout: bytes, exit_status: int, mode: str) -> HookReport:
    """Return the hook's report. Raises EvidenceError unless there is one line, of this mode, that fits its status."""
    lines = [line for line in stdout.decode(errors="replace").splitlines() if line.strip()]
    if len(lines) != 1:
        raise EvidenceError(
            f"the hook's {mode} ended with {exit_status} and printed {len(lines)} lines, expected its one JSON line; "
            "is the configured hook really deploy-hook.sh?"
        )
    try:
        line = msgspec.json.decode(lines[0], type=_Line)
        output = base64.b64decode(line.check_output, validate=True)
        observed = {name: base64.b64decode(data, validate=True) for name, data in line.observed.items()}
    except (msgspec.DecodeError, binascii.Error) as error:
        raise EvidenceError(
            f"the hook's {mode} printed no valid report: {error}; observed {lines[0][:200]!r}"
        ) from error
    # A mode that the hook does not know it does not name either.
    named = mode if line.cause == UNKNOWN_MODE else line.mode
    if named != mode or _STATUS_OF_KIND.get(line.kind) != exit_status or line.ok != (exit_status == 0):
        raise EvidenceError(
            f"the hook's {mode} contradicts itself: exit {exit_status}, "
            f"but it reports mode {line.mode}, ok {line.ok}, kind {line.kind}"
        )
    return HookReport(
        mode=line.mode,
        exit_status=exit_status,
        ok=line.ok,
        kind=line.kind,
        cause=line.cause,
        reason=line.reason,
        revision=line.revision,
        tree=line.tree,
        image_id=line.image_id,
        container_id=line.container_id,
        engine_id=line.engine_id,
        prod_runs=line.prod_runs,
        compose_sha256=line.compose_sha256,
        verdict=line.verdict,
        seconds=line.seconds,
        check=None if line.check_status is None else CheckResult(line.check_status, output),
        cases=line.cases,
        history=tuple(line.history),
        situation=line.status,
        observed=observed,
    )


def render_hook(script: str, constants: Mapping[str, str]) -> str:
    """Return the hook with constants of the installed file replaced: `readonly NAME='value'` lines at its top.

    Raises EvidenceError when a constant has no such line or the value could end the quoting.
    """
    for name, value in constants.items():
        if not re.fullmatch(r"[A-Za-z0-9_./:@%+=-]*", value):
            raise EvidenceError(
                f"hook constant {name} cannot be {value!r}; expected plain characters of a path or address"
            )
        script, count = re.subn(rf"(?m)^readonly {name}='[^'\n]*'$", f"readonly {name}='{value}'", script)
        if count != 1:
            raise EvidenceError(f"the hook has {count} lines for its constant {name}, expected 1")
    return script
