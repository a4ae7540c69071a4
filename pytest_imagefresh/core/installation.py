"""What a Docker host must look like before its hook deserves the keys to production: facts in, answers out. Pure.

Each answer is one line: what was looked at, expected and observed, and `ok`, `no` or `unknown`. What could not be had
is never `ok`.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_imagefresh.core.evidence import HookReport

OK, NO, UNKNOWN = "ok", "no", "unknown"

FORBIDDEN = "mode-forbidden"
"""The cause with which the hook turns away a key that is bound to other modes."""

POLICY_KEYS = ("PROD_IMAGE", "PROD_SERVICE", "PROD_PORT", "COMPOSE_DIR", "REQUIRE")
"""What every policy says."""

_CONSTANT = re.compile(r"(?m)^readonly (SAFE_PATH|ENGINE|DOCKER_CONFIG_DIR|TEMP_DIR|POLICY_DIR)='([^'\n]*)'$")
_PRINCIPAL = r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,254}"
_SIGNER = re.compile(
    rf'{_PRINCIPAL}(,{_PRINCIPAL})* namespaces="imagefresh"(,valid-(after|before)="[0-9]{{8,14}}Z?"){{0,2}}'
    r" [a-z0-9@.-]+ [A-Za-z0-9+/]+=*( [ -~]*)?"
)
"""What the hook takes as the line of a signer."""

_OTHERS_WRITE = 0o022
_STICKY = 0o1000


@dataclass(frozen=True)
class Answer:
    """One line of the examination."""

    subject: str
    looked_at: str
    expected: str
    observed: str
    word: str
    """`ok`, `no` or `unknown`."""


@dataclass(frozen=True)
class Seen:
    """What a host says of one path: `kind` is "" where there is nothing, `problem` is set where it does not say."""

    path: str
    kind: str = ""
    """As stat(1) calls it: `regular file`, `directory`, ..."""
    uid: int = -1
    mode: int = 0
    problem: str = ""

    def __str__(self) -> str:
        if self.problem:
            return self.problem
        return f"{self.kind} of uid {self.uid}, mode {self.mode:04o}" if self.kind else "nothing"


@dataclass(frozen=True)
class Text:
    """The text of a file or the output of a command on the host; `problem` is set where it could not be had."""

    text: str = ""
    problem: str = ""


def exit_status(answers: Sequence[Answer]) -> int:
    """Return 0 where all is well, 1 where something is known to be wrong, 11 where something could not be found out."""
    words = {answer.word for answer in answers}
    return 1 if NO in words else 0 if words == {OK} else 11


def check_path(subject: str, seen: Seen, *, kind: str, uid: int, mode: int | None = None) -> Answer:
    """Expect a file or folder of `uid` that nobody else can change; with `mode`, exactly that one."""
    rights = "not writable by group and others" if mode is None else f"mode {mode:04o}"
    right = seen.mode & 0o7777 == mode if mode is not None else _is_closed(seen)
    good = (seen.kind.replace("empty ", ""), seen.uid) == (kind, uid) and right
    expected = f"{kind} of uid {uid}, {rights}"
    return Answer(subject, seen.path, expected, str(seen), UNKNOWN if seen.problem else _word(good))


def check_folders(subject: str, seen: Sequence[Seen]) -> Answer:
    """Expect folders of root that nobody else can change; in a sticky one nobody can replace what is root's."""
    wrong = [each for each in seen if each.problem or each.kind != "directory" or each.uid != 0 or not _is_closed(each)]
    word = NO if any(not each.problem for each in wrong) else UNKNOWN if wrong or not seen else OK
    observed = "; ".join(f"{each.path}: {each}" for each in wrong) or "so it is"
    where = seen[-1].path if seen else ""
    return Answer(subject, where, "it and every folder above of root, not writable by others", observed, word)


def parents(path: str) -> list[str]:
    """Return every folder above a path, from / on."""
    folders = []
    while path not in ("/", ""):
        path = posixpath.dirname(path)
        folders.append(path)
    return folders[::-1]


def constants_of(script: str) -> dict[str, str]:
    """Return the constants at the top of a hook."""
    return {match[1]: match[2] for match in _CONSTANT.finditer(script)}


def check_same_hook(path: str, installed: Text, shipped: str) -> Answer:
    """Expect the installed hook to be the shipped one, but for its constants."""
    subject, expected = "hook is the shipped one", f"sha256 {_sum_without_constants(shipped)} without its constants"
    if installed.problem:
        return Answer(subject, path, expected, installed.problem, UNKNOWN)
    observed = _sum_without_constants(installed.text)
    return Answer(subject, path, expected, f"sha256 {observed}", _word(observed in expected))


def check_output(subject: str, looked_at: str, expected: str, pattern: str, observed: Text, *, absent: bool) -> Answer:
    """Expect a command to print what a pattern matches; `absent` says that it is known not to be there."""
    if observed.problem:
        return Answer(subject, looked_at, expected, observed.problem, NO if absent else UNKNOWN)
    text = observed.text.strip()
    return Answer(subject, looked_at, expected, text[:80] or "nothing", _word(re.fullmatch(pattern, text) is not None))


def check_report(subject: str, mode: str, expected: str, report: HookReport) -> Answer:
    """Expect a mode of the hook to end well. One that the key may not ask for has said nothing about the host."""
    word = UNKNOWN if report.cause == FORBIDDEN else _word(report.ok)
    return Answer(subject, mode, expected, report.reason, word)


def parse_policy(text: str) -> dict[str, str]:
    """Return the keys of a policy file. The hook is the one that judges it; here it is only read."""
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def find_policy(policies: Mapping[str, Mapping[str, str]], service: str, port: str, folder: str) -> str:
    """Return the path of the policy that claims a production by its service and port in a compose folder, or ""."""
    wanted = (service, port, folder.rstrip("/"))
    for path, keys in policies.items():
        claim = (keys.get("PROD_SERVICE"), keys.get("PROD_PORT"), keys.get("COMPOSE_DIR", "").rstrip("/"))
        if claim == wanted:
            return path
    return ""


def check_policy(folder: str, path: str, keys: Mapping[str, str], problem: str) -> Answer:
    """Expect a policy that claims the target and says everything that a policy must."""
    missing = [key for key in POLICY_KEYS if not keys.get(key)]
    subject, expected = "policy of the target", f"one that claims it, with {' '.join(POLICY_KEYS)}"
    if problem:
        return Answer(subject, folder, expected, problem, UNKNOWN)
    observed = "none claims its service, port and compose folder" if not path else f"without {' '.join(missing)}"
    good = bool(path) and not missing
    observed = f"requires {keys.get('REQUIRE', '')}" if good else observed
    return Answer(subject, path or folder, expected, observed, _word(good))


def check_signers(path: str, signers: Text) -> Answer:
    """Expect plain principals, each with the namespace of verdicts and no other. The hook decides; this explains."""
    expected = 'lines of PRINCIPAL namespaces="imagefresh" KEY, without wildcards'
    subject = "allowed signers are well-formed"
    if signers.problem:
        return Answer(subject, path, expected, signers.problem, UNKNOWN)
    lines = [line for line in signers.text.splitlines() if line.strip() and not line.startswith("#")]
    wrong = [line for line in lines if not _SIGNER.fullmatch(line)]
    observed = f"{len(lines)} lines" if lines and not wrong else f"observed {wrong[0][:60]!r}" if wrong else "no line"
    return Answer(subject, path, expected, observed, _word(bool(lines) and not wrong))


def _is_closed(seen: Seen) -> bool:
    return not seen.mode & _OTHERS_WRITE or (seen.kind == "directory" and bool(seen.mode & _STICKY))


def _sum_without_constants(script: str) -> str:
    return hashlib.sha256(_CONSTANT.sub(r"readonly \1=", script).encode()).hexdigest()


def _word(good: bool) -> str:
    return OK if good else NO
