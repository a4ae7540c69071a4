"""The examination of one target's Docker host, from the hook's file to the engine."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator

from pytest_imagefresh import shipped
from pytest_imagefresh.adapters.hook import POLICY_FOLDER
from pytest_imagefresh.adapters.installation import HostFiles
from pytest_imagefresh.core.contract import VERSION, history_variables, status_variables
from pytest_imagefresh.core.errors import ConfigError, EvidenceError, Refused
from pytest_imagefresh.core.evidence import HookReport
from pytest_imagefresh.core.installation import (
    NO,
    OK,
    UNKNOWN,
    Answer,
    Text,
    check_folders,
    check_output,
    check_path,
    check_policy,
    check_report,
    check_same_hook,
    check_signers,
    constants_of,
    find_policy,
    parents,
    parse_policy,
)
from pytest_imagefresh.run import TargetRun

_TOOLS = ("git", "curl", "flock", "timeout", "base64", "sha256sum", "readlink", "logger")
_FILE, _FOLDER = "regular file", "directory"


def examine_host(run: TargetRun) -> Iterator[Answer]:
    """Yield one answer after the other. Raises ConfigError where the settings send a hook of their own."""
    settings = run.settings.host
    if settings.hook == "bundled":
        raise ConfigError('host.hook is "bundled", so that nothing is installed; name the installed hook')
    if settings.restricted:
        yield from _examine_by_hook(run)
        return
    files = HostFiles(run.run.host, timeout=run.settings.timeouts.inspect)
    installed = files.read(settings.hook)
    constants = constants_of(installed.text)
    policy_folder = constants.get("POLICY_DIR", POLICY_FOLDER)
    yield from _examine_hook(files, settings.hook, installed)
    policy: dict[str, str] = {}
    yield from _examine_policy(files, run, policy_folder, policy)
    signed = "verdict" in policy.get("REQUIRE", "").split()
    if signed:
        yield from _examine_signers(files, policy.get("ALLOWED_SIGNERS", ""))
    if "NOTIFY" in policy:
        yield from _examine_notifier(files, policy["NOTIFY"])
    yield from _examine_state(files, settings.repo_path, signed=signed, pinned=bool(run.target.prod.pin))
    yield from _examine_tools(files, constants, signed=signed)


def _examine_by_hook(run: TargetRun) -> Iterator[Answer]:
    """Say what a key can find out that reaches the hook only, and what it cannot."""
    status = status_variables(run.target, run.settings, run_id=run.run.run_id)
    history = history_variables(run.target, run.settings, run_id=run.run.run_id, limit=1)
    yield _ask("contract", "--contract", VERSION, lambda: _contract(run))
    yield _ask("policy, compose folder and engine", "--status", "an answer", lambda: run.operate("--status", status))
    yield _ask("history", "--history", "an answer", lambda: run.operate("--history", history))
    yield _ask("decisions", "--self-test", "to be what they must be", run.self_test)
    yield Answer(
        "owners and modes",
        "of hook, policy, signers and state",
        "as docs/install-host.md has them",
        "out of reach, since this key may ask the hook only; run this on the host itself",
        UNKNOWN,
    )


def _contract(run: TargetRun) -> None:
    run.run.hook.check_contract()


def _ask(subject: str, mode: str, expected: str, call: Callable[[], HookReport | None]) -> Answer:
    """Let a mode of the hook answer; one that brings no report has answered well where nothing raises."""
    try:
        report = call()
    except (Refused, EvidenceError) as error:
        return Answer(subject, mode, expected, str(error), NO if isinstance(error, Refused) else UNKNOWN)
    return check_report(subject, mode, expected, report) if report else Answer(subject, mode, expected, expected, OK)


def _examine_hook(files: HostFiles, path: str, installed: Text) -> Iterator[Answer]:
    seen = files.stat(path)
    yield check_path("hook", seen, kind=_FILE, uid=0)
    yield check_folders("folder of the hook", [files.stat(folder) for folder in parents(path)])
    contract, absent = files.run(["env", "-i", path, "--contract"])
    yield check_output("contract", f"{path} --contract", VERSION, VERSION, contract, absent=absent)
    yield check_same_hook(path, installed, shipped.hook_script().read_text(encoding="utf-8"))


def _examine_policy(files: HostFiles, run: TargetRun, folder: str, found: dict[str, str]) -> Iterator[Answer]:
    """Leave the keys of the target's policy in `found`."""
    yield check_path("policy folder", files.stat(folder), kind=_FOLDER, uid=0)
    names = files.names(folder, "*.conf")
    texts = {name: files.read(name) for name in names or ()}
    problem = next((text.problem for text in texts.values() if text.problem), "")
    if names is None and files.stat(folder).kind:
        problem = "its files cannot be listed"
    policies = {name: parse_policy(text.text) for name, text in texts.items()}
    prod = run.target.prod
    path = find_policy(policies, prod.service, str(prod.port), run.settings.host.repo_path)
    found.update(policies.get(path, {}))
    yield check_policy(folder, path, found, problem)
    for name in texts:
        yield check_path("policy file", files.stat(name), kind=_FILE, uid=0)


def _examine_signers(files: HostFiles, path: str) -> Iterator[Answer]:
    if not path.startswith("/"):
        yield Answer(
            "allowed signers", path, "ALLOWED_SIGNERS in the policy that requires verdicts", path or "none", NO
        )
        return
    yield check_folders("folder of the allowed signers", [files.stat(folder) for folder in parents(path)])
    yield check_path("allowed signers", files.stat(path), kind=_FILE, uid=0)
    yield check_signers(path, files.read(path))


def _examine_notifier(files: HostFiles, path: str) -> Iterator[Answer]:
    yield check_path("folder of the notifier", files.stat(posixpath.dirname(path)), kind=_FOLDER, uid=0)
    yield check_path("notifier", files.stat(path), kind=_FILE, uid=0)
    found, absent = files.run(["sh", "-c", 'test -x "$1" && echo executable || echo not executable', "sh", path])
    yield check_output("notifier", path, "executable for this user", "executable", found, absent=absent)


def _examine_state(files: HostFiles, compose: str, *, signed: bool, pinned: bool) -> Iterator[Answer]:
    """The state folder belongs to the user that the hook runs as: the one of this connection."""
    who, _ = files.run(["id", "-u"])
    uid = int(who.text) if who.text.strip().isdecimal() else -1
    state = f"{compose}/.imagefresh"
    yield check_path("state folder", files.stat(state), kind=_FOLDER, uid=uid, mode=0o700)
    if signed:
        yield check_path("ledger of verdicts", files.stat(f"{state}/verdicts"), kind=_FOLDER, uid=uid)
    history = files.stat(f"{state}/history")
    if history.kind or history.problem:
        yield check_path("history", history, kind=_FILE, uid=uid, mode=0o600)
    pin = files.stat(f"{compose}/.env")
    if pinned and uid != 0 and (pin.kind or pin.problem):
        yield check_path("pin file", pin, kind=_FILE, uid=uid)


def _examine_tools(files: HostFiles, constants: dict[str, str], *, signed: bool) -> Iterator[Answer]:
    """On the path of the installed hook, and with its engine: nothing else counts."""
    path = constants.get("SAFE_PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    environment = ["env", "-i", f"PATH={path}", "LC_ALL=C", f"DOCKER_HOST={constants.get('ENGINE', '')}"]
    for tool in (*_TOOLS, *(("ssh-keygen",) if signed else ())):
        where, _ = files.run([*environment, "sh", "-c", 'command -v -- "$1" || exit 127', "sh", tool])
        absent = where.problem.endswith("ended with 127")
        yield check_output("tool", tool, f"in {path}", "/.*", where, absent=absent)
    compose, absent = files.run([*environment, "docker", "compose", "version", "--short"])
    yield check_output("tool", "docker compose", "version 2 or later", r"v?([2-9]|\d\d)\..*", compose, absent=absent)
    engine, absent = files.run([*environment, "docker", "info", "--format", "{{.ID}}"])
    yield check_output("engine", constants.get("ENGINE", ""), "an ID", r"[A-Za-z0-9:_-]+", engine, absent=absent)
