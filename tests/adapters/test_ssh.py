"""The way to the host: a real sshd, real keys, real faults."""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import getpass
import hmac
import http.client
import http.server
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import docker
import pytest

from pytest_imagefresh.adapters.engine import connect_engine
from pytest_imagefresh.adapters.host import Host, LocalHost, connect
from pytest_imagefresh.adapters.ssh import forward, known_hosts, route
from pytest_imagefresh.core import settings
from pytest_imagefresh.core.errors import ConfigError, EvidenceError, ImagefreshError, Refused
from pytest_imagefresh.core.identity import ContainerId
from tests.sshd import Sshd, make_key
from tests.support import Engine, await_true

NASTY = ["", "a b", "$(id)", "`id`", "'", '"', "\\", "*", "-x", "~", "ä\n", ";|&<>", "${HOME}", "!!"]
BOUND = settings.Timeouts(inspect=20)
SHORT = settings.Timeouts(inspect=1)


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No thread and no temporary file of ours may outlive a test; looked at after its other fixtures are torn down.

    After `tmp_path`, which must not lie in the folder that is watched.
    """
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield
        assert list(Path(folder).iterdir()) == []
    assert await_true(lambda: not our_threads()), our_threads()


@pytest.fixture
def sshd(nothing_stays: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """A running sshd; the home folder is one whose ~/.ssh/config names the key that it lets in."""
    with Sshd(tmp_path / "sshd") as server:
        use_home(monkeypatch, server)
        yield server


@pytest.fixture
def host(sshd: Sshd) -> Iterator[Host]:
    """A connection to that sshd."""
    with contextlib.closing(connect_to(sshd)) as connected:
        yield connected


def use_home(monkeypatch: pytest.MonkeyPatch, server: Sshd) -> None:
    monkeypatch.setenv("HOME", str(server.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def settings_for(server: Sshd, **changes: str) -> settings.Host:
    values: dict[str, Any] = {"ssh": server.target, "known_hosts": str(server.known_hosts), **changes}
    return settings.Host(**values)


def connect_to(server: Sshd, *, timeouts: settings.Timeouts = BOUND, **changes: str) -> Host:
    return connect(settings_for(server, **changes), timeouts)


def refusal(server: Sshd, kind: type[ImagefreshError], *, timeouts: settings.Timeouts = BOUND, **changes: str) -> str:
    """Return the one line with which connecting fails."""
    with pytest.raises(kind) as caught:
        connect_to(server, timeouts=timeouts, **changes).close()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def our_threads() -> list[str]:
    names = ("imagefresh-", "paramiko", "Transport", "Timer")
    return [repr(thread) for thread in threading.enumerate() if any(name in repr(thread) for name in names)]


# --- running programs -------------------------------------------------------------------------------------------------


def test_returns_status_and_both_outputs(host: Host) -> None:
    done = host.run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=20)
    assert (done.argv[0], done.status, done.stdout) == ("sh", 3, b"out\n")
    assert done.stderr.endswith(b"err\n")


def test_arguments_reach_the_program_as_they_are(host: Host) -> None:
    done = host.run([sys.executable, "-c", "import sys; print(ascii(sys.argv[1:]))", *NASTY], timeout=20)
    assert done.stdout.decode() == f"{NASTY!a}\n"


def test_a_nul_byte_is_refused_before_it_is_sent(host: Host) -> None:
    with pytest.raises(EvidenceError, match="NUL"):
        host.run(["echo", "a\0b"], timeout=20)


def test_standard_input_ends_even_when_empty(host: Host) -> None:
    assert host.run(["cat"], timeout=20).stdout == b""


def test_much_data_goes_both_ways_at_once(host: Host) -> None:
    data = os.urandom(8_000_000)
    done = host.run(["sh", "-c", "tee /dev/stderr"], timeout=120, stdin=data)
    assert (done.status, done.stdout) == (0, data)
    assert done.stderr.endswith(data)


def test_a_program_may_end_without_reading_its_input(host: Host) -> None:
    done = host.run(["sh", "-c", "head -c 1; exit 4"], timeout=60, stdin=b"x" * 8_000_000)
    assert (done.status, done.stdout) == (4, b"x")


def test_lines_of_standard_error_come_while_the_program_runs(host: Host, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if line == "first":
            flag.touch()

    script = f"echo first >&2; until [ -e {flag} ]; do sleep 0.05; done; printf 'b\\377d\\nlast' >&2"
    host.run(["sh", "-c", script], timeout=60, on_line=on_line)
    assert lines[-3:] == ["first", "b\ufffdd", "last"]


def test_a_missing_program_is_the_shells_status(host: Host) -> None:
    assert host.run(["no-such-program-here"], timeout=20).status == 127


def test_a_timeout_hangs_nothing_and_spares_the_connection(host: Host, tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match=r"expected to end within 1 s and did not.*'step 2'"):
        host.run(["sh", "-c", "echo 'step 2' >&2; sleep 600"], timeout=1)
    assert host.run(["echo", "again"], timeout=20).stdout == b"again\n"


def test_a_program_that_closed_its_outputs_is_waited_for(host: Host) -> None:
    assert host.run(["sh", "-c", "exec >&- 2>&-; sleep 0.3; exit 5"], timeout=20).status == 5
    with pytest.raises(EvidenceError, match="did not"):
        host.run(["sh", "-c", "exec >&- 2>&-; sleep 600"], timeout=1)


def test_a_program_ended_by_a_signal_is_never_a_success(host: Host) -> None:
    with pytest.raises(EvidenceError, match="no exit status"):
        host.run(["sh", "-c", "kill -KILL $$"], timeout=20)


def test_output_that_something_else_holds_open_is_not_taken_for_complete(host: Host) -> None:
    with pytest.raises(EvidenceError, match="still holds its output open"):
        host.run(["sh", "-c", "sleep 600 & echo done"], timeout=60)


def test_an_exception_of_the_callback_passes_through(host: Host) -> None:
    def on_line(line: str) -> None:
        if line == "stop":
            raise RuntimeError(line)

    with pytest.raises(RuntimeError, match="stop"):
        host.run(["sh", "-c", "echo stop >&2; sleep 600"], timeout=120, on_line=on_line)
    assert host.run(["true"], timeout=20).status == 0


def test_many_programs_at_once_stay_within_the_sessions_that_a_host_allows(host: Host) -> None:
    with ThreadPoolExecutor(12) as pool:
        jobs = [pool.submit(host.run, ["sh", "-c", f"sleep 0.2; echo {n}"], timeout=60) for n in range(12)]
        assert [job.result().stdout for job in jobs] == [b"%d\n" % n for n in range(12)]


def test_one_session_is_enough_for_programs_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sshd(tmp_path / "sshd", options=["MaxSessions 1"]) as server:
        use_home(monkeypatch, server)
        with contextlib.closing(connect_to(server)) as host:
            assert [host.run(["true"], timeout=20).status for _ in range(30)] == [0] * 30


def test_a_host_that_allows_no_session_is_an_evidence_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sshd(tmp_path / "sshd", options=["MaxSessions 0"]) as server:
        use_home(monkeypatch, server)
        with contextlib.closing(connect_to(server)) as host, pytest.raises(EvidenceError, match="MaxSessions"):
            host.run(["true"], timeout=20)


def test_a_connection_that_breaks_is_an_error_at_once(host: Host, sshd: Sshd) -> None:
    def on_line(line: str) -> None:
        if line == "ready":
            sshd.kill_sessions()

    with pytest.raises(EvidenceError, match=r"connection was lost.*unknown"):
        host.run(["sh", "-c", "echo ready >&2; sleep 600"], timeout=500, on_line=on_line)
    with pytest.raises(EvidenceError, match="could not be started"):
        host.run(["true"], timeout=20)


def test_a_connection_that_breaks_after_the_exit_status_proves_no_complete_output(host: Host, sshd: Sshd) -> None:
    # The program has ended with 0; what it left behind holds the output open until the connection breaks.
    script = "echo half; (sleep 1; echo ready >&2; sleep 600) & exit 0"

    def on_line(line: str) -> None:
        if line == "ready":
            sshd.kill_sessions()

    with pytest.raises(EvidenceError, match="connection was lost"):
        host.run(["sh", "-c", script], timeout=500, on_line=on_line)


def test_a_host_that_stops_reading_is_bounded(host: Host, sshd: Sshd) -> None:
    sessions = sshd.sessions()
    assert sessions
    for pid in sessions:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EvidenceError):
        host.run(["cat"], timeout=1, stdin=b"x" * 50_000_000)


def test_a_host_that_stops_while_it_is_fed_is_bounded(host: Host, sshd: Sshd) -> None:
    def on_line(line: str) -> None:
        for pid in sshd.sessions() if line == "ready" else []:
            os.kill(pid, signal.SIGSTOP)

    script = "echo ready >&2; exec cat >/dev/null"
    with pytest.raises(EvidenceError, match="did not"):
        host.run(["sh", "-c", script], timeout=2, stdin=b"x" * 400_000_000, on_line=on_line)


def test_a_sent_file_is_private_executable_and_gone_afterwards(host: Host) -> None:
    content = b'#!/bin/sh\nprintf \'%s\\n\' "$0" "$1"\n' + b"# filler\n" * 20_000
    with host.put(content, timeout=60) as path:
        assert Path(path).read_bytes() == content
        assert (Path(path).stat().st_mode & 0o777, Path(path).parent.stat().st_mode & 0o777) == (0o700, 0o700)
        assert host.run([path, "a b"], timeout=20).stdout.decode() == f"{path}\na b\n"
    assert not Path(path).parent.exists()


def test_a_sent_file_is_gone_after_an_error_too(host: Host) -> None:
    with pytest.raises(RuntimeError, match="later"), host.put(b"", timeout=60) as path:
        raise RuntimeError("later")
    assert not Path(path).parent.exists()


# --- host keys --------------------------------------------------------------------------------------------------------


def test_an_unknown_host_key_is_refused_with_what_to_compare(sshd: Sshd) -> None:
    offered = fingerprint(sshd.public_host_key())
    sshd.known_hosts.write_text("")
    message = refusal(sshd, Refused)
    assert f"ssh host {sshd.target}" in message
    assert f"{offered} is unknown" in message
    assert f"'ssh-keyscan -p {sshd.port} 127.0.0.1 | ssh-keygen -lf -'" in message
    assert "'ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub'" in message
    assert "publickey" not in sshd.log.read_text(), "no key of ours may be shown to an unknown host"


def test_the_commands_of_the_refusal_work(sshd: Sshd) -> None:
    sshd.known_hosts.write_text("")
    scan = re.findall(r"'(ssh-keyscan [^'|]*)'", refusal(sshd, Refused))[0]
    line = subprocess.run(shlex.split(scan), capture_output=True, check=True, timeout=60).stdout
    sshd.known_hosts.write_bytes(line)
    connect_to(sshd).close()


def test_a_changed_host_key_is_refused_with_both_fingerprints(sshd: Sshd) -> None:
    expected = fingerprint(sshd.public_host_key())
    sshd.replace_host_key()
    offered = fingerprint(sshd.public_host_key())
    message = refusal(sshd, Refused)
    assert f"expected {expected}" in message
    assert f"observed {offered}" in message
    assert f'ssh-keygen -R "{sshd.known_as}" -f {sshd.known_hosts}' in message


@pytest.mark.parametrize("missing", ["default", "named"])
def test_a_missing_known_hosts_file_lists_no_host(sshd: Sshd, missing: str) -> None:
    sshd.known_hosts.unlink()
    if missing == "default":
        message = refusal(sshd, Refused, known_hosts=settings.Host().known_hosts)
        assert f"expected one that {sshd.home}/.ssh/known_hosts lists" in message
    else:
        assert f"host.known_hosts: {sshd.known_hosts} does not exist" in refusal(sshd, ConfigError)


def test_known_hosts_of_ssh_config_have_no_say(sshd: Sshd) -> None:
    other = sshd.folder / "other"
    other.write_bytes(sshd.known_hosts.read_bytes())
    (sshd.home / ".ssh" / "known_hosts").write_bytes(sshd.known_hosts.read_bytes())
    sshd.known_hosts.write_text("")
    sshd.write_config(f"UserKnownHostsFile {other}", "StrictHostKeyChecking no")
    assert "unknown" in refusal(sshd, Refused)


ACCEPTED = {
    "plain": "{name} {key}",
    "comment": "# a comment\n\n{name} {key} somebody@somewhere",
    "list": "elsewhere,{name} {key}",
    "hashed": "{hashed} {key}",
    "wildcard": "[127.0.0.*]:{port} {key}",
    "one of two": "{name} {other}\n{name} {key}",
    "another host's line broken": "elsewhere ssh-ed25519 !!!\n{name} {key}",
    "another host's key revoked": "@revoked elsewhere {key}\n{name} {key}",
}
REFUSED = {
    "another name": "elsewhere {key}",
    "without the port": "127.0.0.1 {key}",
    "another port": "[127.0.0.1]:1 {key}",
    "hash of another name": "{hashed_other} {key}",
    "negated": "!{name},* {key}",
    "another key": "{name} {other}",
    "truncated key": "{name} {short}",
    "certificate authority": "@cert-authority {name} {key}",
    "unknown marker": "@whatever {name} {key}",
    "revoked": "{name} {key}\n@revoked {name} {key}",
    "revoked everywhere": "@revoked * {key}\n{name} {key}",
    "commented out": "#{name} {key}",
}


@pytest.mark.parametrize("line", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepts_every_way_to_list_the_key(line: str, tmp_path: Path) -> None:
    hop, offered, known = host_key_case(line, tmp_path)
    known_hosts.check_host_key(hop, offered, known)


@pytest.mark.parametrize("line", REFUSED.values(), ids=REFUSED.keys())
def test_refuses_everything_that_does_not_list_the_key(line: str, tmp_path: Path) -> None:
    hop, offered, known = host_key_case(line, tmp_path)
    with pytest.raises(Refused):
        known_hosts.check_host_key(hop, offered, known)


def test_a_revoked_line_that_cannot_be_read_is_not_passed_over() -> None:
    with pytest.raises(ConfigError, match="known_hosts line 2: a @revoked key that cannot be read"):
        known_hosts.parse_known_hosts("# first\n@revoked * ssh-ed25519 !!!\n", "known_hosts")


def host_key_case(line: str, tmp_path: Path) -> tuple[route.Hop, known_hosts.HostKey, known_hosts.KnownHosts]:
    for name in ("key", "other"):
        make_key(tmp_path / name)
    key, other = (" ".join((tmp_path / f"{name}.pub").read_text().split()[:2]) for name in ("key", "other"))
    hop = route.Hop(hostname="127.0.0.1", port=2222, user="me", identity_files=())
    text = line.format(
        name=hop.known_as,
        port=hop.port,
        key=key,
        other=other,
        short=key[:-8],
        hashed=hashed(hop.known_as),
        hashed_other=hashed("[127.0.0.1]:2223"),
    )
    kind, blob = key.split()
    return hop, known_hosts.HostKey(kind, base64.b64decode(blob)), known_hosts.parse_known_hosts(text, "known_hosts")


def hashed(name: str) -> str:
    salt = os.urandom(20)
    digest = hmac.new(salt, name.encode(), "sha1").digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def fingerprint(public: str) -> str:
    """Return what ssh-keygen says about a public key."""
    argv = ["ssh-keygen", "-lf", "-"]
    done = subprocess.run(argv, input=public.encode(), capture_output=True, check=True, timeout=60)
    return done.stdout.decode().split()[1]


def test_a_known_hosts_file_that_ssh_keygen_hashed_is_understood(sshd: Sshd) -> None:
    argv = ["ssh-keygen", "-q", "-H", "-f", str(sshd.known_hosts)]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    assert "127.0.0.1" not in sshd.known_hosts.read_text()
    connect_to(sshd).close()


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_a_host_with_several_keys_is_asked_for_the_one_that_we_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    make_key(tmp_path / kind, kind=kind)
    with Sshd(tmp_path / "sshd", options=[f"HostKey {tmp_path / kind}"]) as server:
        use_home(monkeypatch, server)
        server.known_hosts.write_text(f"{server.known_as} {(tmp_path / f'{kind}.pub').read_text()}")
        connect_to(server).close()


# --- our own keys -----------------------------------------------------------------------------------------------------


def test_a_key_that_is_not_let_in_is_an_evidence_error(sshd: Sshd, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    sshd.authorize(key=tmp_path / "other")
    message = refusal(sshd, EvidenceError)
    assert f"user {sshd.user!r} was not let in" in message
    assert f"tried {sshd.user_key} ({fingerprint(sshd.user_key.with_suffix('.pub').read_text())})" in message
    assert "authorized_keys" in message


def test_no_key_at_all_is_an_evidence_error(sshd: Sshd) -> None:
    sshd.config.write_text("Host *\n  IdentityFile /does/not/exist\n  IdentityAgent none\n")
    assert "tried no key at all" in refusal(sshd, EvidenceError)


def test_a_missing_identity_file_falls_to_the_next_one(sshd: Sshd) -> None:
    sshd.write_config("IdentityFile /does/not/exist", f"IdentityFile {sshd.log}")
    connect_to(sshd).close()


def test_a_server_that_tires_of_our_keys_is_an_evidence_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        make_key(tmp_path / name)
    with Sshd(tmp_path / "sshd", options=["MaxAuthTries 2"]) as server:
        use_home(monkeypatch, server)
        server.write_config(*(f"IdentityFile {tmp_path / name}" for name in "abc"))
        message = refusal(server, EvidenceError)
    assert f"{tmp_path / 'a'} (SHA256:" in message
    assert "MaxAuthTries" in message


def test_an_encrypted_key_is_used_through_ssh_agent_only(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "encrypted"
    make_key(key, passphrase="secret words")
    sshd.authorize(key=key)
    sshd.config.write_text(f"Host *\n  IdentityFile {key}\n  IdentitiesOnly yes\n")
    assert f"{key} is encrypted: load it with 'ssh-add {key}' into ssh-agent" in refusal(sshd, EvidenceError)
    with agent(tmp_path, monkeypatch):
        add_to_agent(key, "secret words")
        connect_to(sshd).close()


def test_ssh_agent_serves_without_any_file(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sshd.config.write_text("")
    with agent(tmp_path, monkeypatch):
        add_to_agent(sshd.user_key)
        connect_to(sshd).close()
        sshd.config.write_text("Host *\n  IdentitiesOnly yes\n")
        assert "tried no key at all" in refusal(sshd, EvidenceError)
        sshd.config.write_text("Host *\n  IdentityAgent none\n")
        assert "tried no key at all" in refusal(sshd, EvidenceError)


def test_an_agent_that_never_answers_is_bounded(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "agent"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        connect_to(sshd, timeouts=SHORT).close()


@contextlib.contextmanager
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A private ssh-agent."""
    path = tmp_path / "agent.sock"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        assert await_true(path.exists)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        yield
    finally:
        process.terminate()
        process.wait()


def add_to_agent(key: Path, passphrase: str = "") -> None:
    script = key.with_name("askpass")
    script.write_text(f"#!/bin/sh\necho '{passphrase}'\n")
    script.chmod(0o700)
    environment = {**os.environ, "SSH_ASKPASS": str(script), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"}
    argv = ["ssh-add", "-q", str(key)]
    subprocess.run(argv, env=environment, check=True, stdin=subprocess.DEVNULL, timeout=60)


# --- hosts that cannot be reached -------------------------------------------------------------------------------------


def test_no_listener_is_an_evidence_error(sshd: Sshd) -> None:
    sshd.stop()
    message = refusal(sshd, EvidenceError)
    assert f"ssh host {sshd.target}: cannot be reached: Connection refused" in message


def test_a_name_that_means_nothing_is_an_evidence_error(sshd: Sshd) -> None:
    assert "cannot be reached" in refusal(sshd, EvidenceError, ssh="me@nowhere.invalid:22")


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n"], ids=["silent", "http", "half"]
)
def test_a_listener_that_does_not_speak_ssh_is_bounded(sshd: Sshd, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=hold, args=(listener, answer), daemon=True)
        thread.start()
        message = refusal(sshd, EvidenceError, timeouts=SHORT, ssh=f"me@127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert "no ssh handshake within 1 s" in message


def hold(listener: socket.socket, answer: bytes) -> None:
    """Accept connections, say one thing and keep them open."""
    kept = []
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            client.sendall(answer)
            kept.append(client)
    for client in kept:
        client.close()


# --- ssh_config -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("me@host:2222", route.Asked("host", "me", 2222)),
        ("me@host", route.Asked("host", "me")),
        ("host:22", route.Asked("host", None, 22)),
        ("staging_1.internal", route.Asked("staging_1.internal")),
        ("me@[::1]:22", route.Asked("::1", "me", 22)),
    ],
)
def test_reads_every_form_of_a_target(text: str, asked: route.Asked) -> None:
    assert route.parse_target(text) == asked


ODD = ["", "-oProxyCommand=id", "me@-x", "-x@host", "a b", "a;b", "$(id)", "a\n", "h:0", "h:65536", "h:", "@h", "a@b@c"]
ODD += ["ssh://h", "h/", "::1", "[::1", "h:22:22", "ä", "me@host:22 ", "local host", "a'b", "%h"]


@pytest.mark.parametrize("text", ODD)
def test_an_odd_target_is_refused_before_any_command(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trap = tmp_path / "ssh"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    trap.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="not an ssh target"):
        connect(settings.Host(ssh=text), BOUND)
    assert not (tmp_path / "called").exists()


def test_an_alias_brings_host_port_user_and_key(sshd: Sshd) -> None:
    sshd.config.write_text(
        f"Host staging\n  HostName 127.0.0.1\n  Port {sshd.port}\n  User {sshd.user}\n  IdentityFile {sshd.user_key}\n"
    )
    with contextlib.closing(connect_to(sshd, ssh="staging")) as host:
        assert host.name == "staging"
        assert host.run(["id", "-un"], timeout=20).stdout.decode() == f"{sshd.user}\n"


def test_an_included_file_and_tokens_are_honoured(sshd: Sshd) -> None:
    included = sshd.folder / "included"
    (sshd.home / ".ssh" / f"{sshd.user}-key").symlink_to(sshd.user_key)
    included.write_text(f"Host inner\n  HostName 127.0.0.1\n  Port {sshd.port}\n  IdentityFile ~/.ssh/%r-key\n")
    sshd.config.write_text(f"Include {included}\n")
    connect_to(sshd, ssh=f"{sshd.user}@inner").close()


def test_a_host_key_alias_is_the_name_in_known_hosts(sshd: Sshd) -> None:
    sshd.write_config("HostKeyAlias the-staging-host")
    assert "lists for the-staging-host" in refusal(sshd, Refused)
    sshd.known_hosts.write_text(f"the-staging-host {sshd.public_host_key()}")
    connect_to(sshd).close()


def test_what_the_target_says_wins_over_ssh_config(sshd: Sshd) -> None:
    sshd.write_config("Port 1", "User nobody")
    connect_to(sshd).close()


def test_a_broken_ssh_config_is_the_operators_mistake(sshd: Sshd) -> None:
    sshd.write_config("NoSuchKeyword yes")
    assert "ssh -G refuses the configuration" in refusal(sshd, ConfigError)


def test_a_proxy_command_is_the_operators_mistake(sshd: Sshd) -> None:
    sshd.write_config("ProxyCommand nc %h %p")
    assert "ProxyJump" in refusal(sshd, ConfigError)


def test_without_an_ssh_client_a_plain_target_works(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (sshd.home / ".ssh" / "id_ed25519").write_bytes(sshd.user_key.read_bytes())
    monkeypatch.setenv("PATH", str(tmp_path))
    connect_to(sshd).close()
    assert route.resolve("host", timeout=1)[0].label == f"{getpass.getuser()}@host:22"


@pytest.fixture
def jump(sshd: Sshd, tmp_path: Path) -> Iterator[Sshd]:
    """A second sshd on the way to the first one."""
    with Sshd(tmp_path / "jump") as server:
        server.authorize(key=sshd.user_key)
        yield server


def lead_over(target: Sshd, *jumps: Sshd) -> None:
    """Write a ~/.ssh/config that leads to the target over jump hosts."""
    ways = ",".join(f"hop{index}" for index, _ in enumerate(jumps))
    lines = [f"Host inner\n  HostName 127.0.0.1\n  Port {target.port}\n  User {target.user}\n  ProxyJump {ways}"]
    for index, server in enumerate(jumps):
        lines.append(f"Host hop{index}\n  HostName 127.0.0.1\n  Port {server.port}\n  User {server.user}")
    target.write_config(*lines)


def test_a_jump_host_is_part_of_the_way(sshd: Sshd, jump: Sshd) -> None:
    lead_over(sshd, jump)
    sshd.known_hosts.write_text(sshd.known_hosts.read_text() + jump.known_hosts.read_text())
    with contextlib.closing(connect_to(sshd, ssh="inner")) as host:
        done = host.run(["cat"], timeout=60, stdin=b"x" * 1_000_000)
        assert done.stdout == b"x" * 1_000_000
        assert (len(jump.sessions()), len(sshd.sessions())) == (1, 1)
        jump.kill_sessions()
        with pytest.raises(EvidenceError):
            host.run(["true"], timeout=20)


def test_a_list_of_jump_hosts_is_walked_in_order(sshd: Sshd, jump: Sshd, tmp_path: Path) -> None:
    with Sshd(tmp_path / "third") as third:
        third.authorize(key=sshd.user_key)
        lead_over(sshd, third, jump)
        sshd.known_hosts.write_text("".join(server.known_hosts.read_text() for server in (sshd, jump, third)))
        assert [hop.port for hop in route.resolve("inner", timeout=20)] == [third.port, jump.port, sshd.port]
        with contextlib.closing(connect_to(sshd, ssh="inner")) as host:
            assert host.run(["true"], timeout=20).status == 0


@pytest.mark.parametrize("unknown", ["jump", "target"])
def test_every_hop_must_show_a_known_key(sshd: Sshd, jump: Sshd, unknown: str) -> None:
    lead_over(sshd, jump)
    if unknown == "jump":
        assert f":{jump.port}: its" in refusal(sshd, Refused, ssh="inner")
    else:
        sshd.known_hosts.write_bytes(jump.known_hosts.read_bytes())
        assert f":{sshd.port}: its" in refusal(sshd, Refused, ssh="inner")


def test_a_target_behind_the_jump_host_that_does_not_answer_is_an_evidence_error(sshd: Sshd, jump: Sshd) -> None:
    lead_over(sshd, jump)
    sshd.known_hosts.write_text(sshd.known_hosts.read_text() + jump.known_hosts.read_text())
    sshd.stop()
    assert f"cannot be reached from jump host {jump.target}" in refusal(sshd, EvidenceError, ssh="inner")


def test_jump_hosts_that_lead_in_a_circle_are_the_operators_mistake(sshd: Sshd) -> None:
    sshd.write_config("Host a\n  ProxyJump b", "Host b\n  ProxyJump a")
    assert "leads back" in refusal(sshd, ConfigError, ssh="a")


# --- ports ------------------------------------------------------------------------------------------------------------


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers a POST with its own body, and a GET with its path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(self.path.encode())

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def web() -> Iterator[int]:
    """The port of a small web server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def ask(address: tuple[str, int], method: str, path: str, body: bytes | None = None) -> bytes:
    connection = http.client.HTTPConnection(*address, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        return connection.getresponse().read()


def test_a_port_of_the_host_is_reached(host: Host, web: int) -> None:
    address = host.reach(web)
    assert address[0] == "127.0.0.1"
    assert address[1] != web
    assert host.reach(web) == address
    assert ask(address, "GET", "/health") == b"/health"
    data = os.urandom(3_000_000)
    assert ask(address, "POST", "/", data) == data


def test_a_connection_is_under_way_until_its_far_end_is_open_or_known_not_to_be(host: Host, web: int) -> None:
    through = threading.Event()

    @contextlib.contextmanager
    def dial() -> Iterator[forward.FarEnd]:
        through.wait(60)
        raise EvidenceError("no way")
        yield

    listener = socket.create_server(("127.0.0.1", 0))
    slow = forward.Forward(listener, dial, forward.reset)
    assert not slow.connecting()
    with contextlib.ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(socket.create_connection(listener.getsockname()))
            assert slow.connecting()
        through.set()
        assert await_true(lambda: not slow.connecting())
    slow.stop()
    slow.join()
    assert ask(host.reach(web), "GET", "/health") == b"/health"
    assert not host.under_way()


def test_a_connection_for_which_no_file_descriptor_is_left_is_no_silence(
    host: Host, web: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def accept(_self: socket.socket) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    end = host.reach(web)
    host.require_reached()
    monkeypatch.setattr(socket.socket, "accept", accept)
    with socket.create_connection(end):
        assert await_true(lambda: unreached(host) != "")
    assert "Too many open files" in unreached(host)


@pytest.mark.parametrize("name", ["imagefresh-forward-client", "imagefresh-forward-requests"])
def test_a_connection_for_which_no_thread_is_left_is_no_silence(
    host: Host, web: int, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == name:
            raise RuntimeError("can't start new thread")
        start(self)

    end = host.reach(web)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with socket.create_connection(end):
        assert await_true(lambda: unreached(host) != "")
    assert "can't start new thread" in unreached(host)
    monkeypatch.undo()
    assert ask(end, "GET", "/health") == b"/health"


def unreached(host: Host) -> str:
    """What a host says of connections that never came to their ends, "" for nothing."""
    try:
        host.require_reached()
    except EvidenceError as error:
        return str(error)
    return ""


def test_many_requests_at_once_each_get_their_own_answer(host: Host, web: int) -> None:
    address = host.reach(web)
    with ThreadPoolExecutor(16) as pool:
        paths = [f"/{n}" for n in range(100)]
        assert [answer.decode() for answer in pool.map(functools.partial(ask, address, "GET"), paths)] == paths


def test_a_port_on_which_nothing_listens_is_reset_not_answered(host: Host, web: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = int(unused.getsockname()[1])
    with socket.create_connection(host.reach(port), 60) as client, pytest.raises(ConnectionResetError):
        client.recv(1)
    assert ask(host.reach(web), "GET", "/still") == b"/still"


def test_each_direction_may_end_by_itself(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_at_the_end, args=(listener,), daemon=True)
        thread.start()
        with socket.create_connection(host.reach(int(listener.getsockname()[1])), 60) as client:
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            assert client.makefile("rb").read() == b"answer to question"
        thread.join()


def answer_at_the_end(listener: socket.socket) -> None:
    client, _ = listener.accept()
    with client:
        question = client.makefile("rb").read()
        time.sleep(0.3)
        client.sendall(b"answer to " + question)


def test_a_service_may_stop_answering_and_still_listen(host: Host) -> None:
    heard: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client:
            client.sendall(b"bye")
            client.shutdown(socket.SHUT_WR)
            heard.append(client.makefile("rb").read())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        with socket.create_connection(host.reach(int(listener.getsockname()[1])), 60) as client:
            assert client.makefile("rb").read() == b"bye"
            time.sleep(0.3)
            client.sendall(b"later")
        thread.join()
    assert heard == [b"later"]


@pytest.mark.parametrize("step", ["start", "end"])
def test_a_host_that_takes_no_more_bytes_is_bounded(host: Host, sshd: Sshd, web: int, step: str) -> None:
    # Each connection may send 2 MB unread; together they fill every buffer on the way, and a write then never returns.
    with ThreadPoolExecutor(2) as pool, contextlib.ExitStack() as stack:
        running = pool.submit(host.run, ["sleep", "600"], timeout=4 if step == "end" else 600)
        clients = [stack.enter_context(socket.create_connection(host.reach(web), 60)) for _ in range(16)]
        for client in clients:
            client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n")
        assert host.run(["true"], timeout=20).status == 0
        for pid in sshd.sessions():
            os.kill(pid, signal.SIGSTOP)
        for client in clients:
            client.settimeout(0.5)
            with contextlib.suppress(OSError):
                client.sendall(b"x" * 8_000_000)
        stuck = running if step == "end" else pool.submit(host.run, ["true"], timeout=1)
        # The kernel gives such a connection up after 30 s; nobody may have to wait for that.
        assert isinstance(stuck.exception(20), EvidenceError)
        assert isinstance(running.exception(20), EvidenceError)


# --- the engine -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["by socket", "by command"])
def engine_host(
    request: pytest.FixtureRequest, engine: Engine, nothing_stays: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Host]:
    """A connection to an sshd behind which the engine is: one that forwards sockets, and one that does not."""
    options = ["AllowStreamLocalForwarding no"] if request.param == "by command" else []
    with Sshd(tmp_path / "sshd", options=options) as server:
        use_home(monkeypatch, server)
        with contextlib.closing(connect_to_engine(server, engine)) as connected:
            yield connected


def connect_to_engine(server: Sshd, engine: Engine, timeouts: settings.Timeouts = BOUND) -> Host:
    changes = {"docker_host": engine.docker_host, "docker_config": engine.docker_config}
    return connect(settings_for(server, **changes), timeouts)


def client_for(host: Host) -> docker.DockerClient:
    return docker.DockerClient(base_url=f"unix://{host.engine_socket()}", timeout=60)


def docker_cli(host: Host, engine: Engine, *argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**engine.env, "DOCKER_HOST": f"unix://{host.engine_socket()}"}
    done = subprocess.run(["docker", *argv], env=environment, input=stdin, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


def test_docker_py_reaches_the_engine(engine_host: Host, engine: Engine) -> None:
    path = Path(engine_host.engine_socket())
    assert path != Path(engine.socket)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with contextlib.closing(client_for(engine_host)) as client:
        assert client.info()["ID"] == engine.docker("info", "--format", "{{.ID}}")


def test_the_docker_command_line_and_compose_reach_the_engine(engine_host: Host, engine: Engine) -> None:
    assert b"CONTAINER ID" in docker_cli(engine_host, engine, "ps").stdout
    assert b"Docker Compose" in docker_cli(engine_host, engine, "compose", "version").stdout
    assert docker_cli(engine_host, engine, "compose", "ls").returncode == 0


def test_many_clients_at_once_are_all_served(engine_host: Host) -> None:
    def identify(_: int) -> str:
        with contextlib.closing(client_for(engine_host)) as client:
            return str(client.info()["ID"])

    with ThreadPoolExecutor(20) as pool:
        assert len(set(pool.map(identify, range(24)))) == 1
    assert engine_host.run(["true"], timeout=20).status == 0


def test_streams_end_in_each_direction_by_itself(engine_host: Host, engine: Engine) -> None:
    data = os.urandom(2_000_000)
    run = ("run", "--rm", "-i", "--network", "none", engine.base_image, "sh", "-c")
    assert docker_cli(engine_host, engine, *run, "cat", stdin=data).stdout == data
    assert docker_cli(engine_host, engine, *run, "sleep 0.5; wc -c", stdin=data).stdout.strip() == b"2000000"


def test_exec_with_input_in_a_running_container(engine_host: Host, engine: Engine) -> None:
    start = ("run", "--rm", "-d", "--network", "none", engine.base_image, "sleep", "600")
    container = docker_cli(engine_host, engine, *start).stdout.decode().strip()
    try:
        exec_in = functools.partial(docker_cli, engine_host, engine, "exec", "-i", container, "sh", "-c")
        counted = exec_in("read line; echo got $line; cat | wc -c", stdin=b"a\n" + b"x" * 300_000)
        assert counted.stdout.split() == [b"got", b"a", b"300000"]
        # Not through docker-py, which loses output that comes along with the headers (docker/docker-py#3332).
        with contextlib.closing(connect_engine(engine_host.engine_socket(), timeout=60)) as ours:
            result = ours.run_in_container(ContainerId(container), ["sh", "-c", "echo out; exit 7"], timeout=60)
            assert (result.exit_status, result.output) == (7, b"out\n")
    finally:
        engine.docker("rm", "-f", container)


def test_a_client_that_goes_away_frees_its_session(engine_host: Host) -> None:
    for _ in range(15):
        with contextlib.closing(client_for(engine_host)) as client:
            client.events(decode=True).close()
    with contextlib.closing(client_for(engine_host)) as client:
        assert client.ping()


def test_a_client_that_leaves_a_silent_stream_frees_its_session(engine_host: Host, engine: Engine) -> None:
    container = engine.docker("run", "--rm", "-d", "--network", "none", engine.base_image, "sleep", "600")
    try:
        for _ in range(8):
            with contextlib.closing(client_for(engine_host)) as client:
                ident = client.api.exec_create(container, ["sleep", "600"])["Id"]
            start_and_leave(engine_host.engine_socket(), ident)
        with contextlib.closing(client_for(engine_host)) as client:
            assert client.ping()
    finally:
        engine.docker("rm", "-f", container)


def start_and_leave(path: str, ident: str) -> None:
    """Start a prepared command in a container with its streams attached, and go away."""
    body = '{"Detach": false, "Tty": false}'
    head = f"POST /v1.41/exec/{ident}/start HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(path)
        client.sendall((head + body).encode())
        assert b"101" in client.recv(4096)


def test_a_client_that_asks_many_questions_is_served(engine_host: Host) -> None:
    # docker-py keeps an idle connection for each of them.
    with contextlib.closing(client_for(engine_host)) as client:
        for number in range(15):
            assert client.api.images(name=f"no-such-image-{number}") == []
    assert engine_host.run(["true"], timeout=20).status == 0


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_request_is_told_to_be_the_last_one_however_it_arrives(size: int) -> None:
    edit = forward.OneRequest()
    sent = b"POST /x HTTP/1.1\r\nHost: docker\r\nConnection: keep-alive\r\n\r\nbody\r\n\r\nmore"
    parts = [edit(sent[start : start + size]) for start in range(0, len(sent), size)]
    assert b"".join(parts) == sent.replace(b"1.1\r\n", b"1.1\r\nConnection: close\r\n", 1)


def test_a_request_for_a_stream_is_left_as_it_is() -> None:
    sent = b"POST /exec/x/start HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nbody"
    assert forward.OneRequest()(sent) == sent


def test_sessions_that_are_all_in_use_are_told_so(
    engine: Engine, nothing_stays: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sshd(tmp_path / "sshd", options=["AllowStreamLocalForwarding no"]) as server, contextlib.ExitStack() as stack:
        use_home(monkeypatch, server)
        host = stack.enter_context(contextlib.closing(connect_to_engine(server, engine, settings.Timeouts(inspect=3))))
        for _ in range(6):
            stack.callback(stack.enter_context(contextlib.closing(client_for(host))).events().close)
        with pytest.raises(docker.errors.DockerException, match="every session is in use"):
            client_for(host)


def test_an_engine_that_cannot_be_reached_says_why(sshd: Sshd) -> None:
    with (
        contextlib.closing(connect_to(sshd, docker_host="unix:///does/not/exist.sock")) as host,
        pytest.raises(docker.errors.DockerException, match=r"503.*/does/not/exist"),
    ):
        client_for(host)


def test_a_connection_that_breaks_ends_the_engines_clients(engine: Engine, sshd: Sshd) -> None:
    with contextlib.closing(connect_to_engine(sshd, engine)) as host, contextlib.closing(client_for(host)) as client:
        assert client.ping()
        sshd.kill_sessions()
        with pytest.raises((docker.errors.DockerException, OSError)):
            client.ping()


# --- the end ----------------------------------------------------------------------------------------------------------


def test_close_leaves_nothing(sshd: Sshd, web: int) -> None:
    host = connect_to(sshd)
    folder = Path(host.engine_socket()).parent
    idle = http.client.HTTPConnection(*host.reach(web), timeout=60)
    with contextlib.closing(idle):
        idle.request("GET", "/")
        assert idle.getresponse().read() == b"/"
        host.close()
        host.close()
        assert idle.sock.recv(1) == b""
    assert not folder.exists()
    assert await_true(lambda: not sshd.sessions())
    for use in (lambda: host.run(["true"], timeout=20), host.engine_socket, lambda: host.reach(web)):
        with pytest.raises(EvidenceError, match="was closed"):
            use()


def test_a_process_that_forgets_to_close_still_ends_and_leaves_nothing(sshd: Sshd) -> None:
    code = (
        "from pytest_imagefresh.adapters.host import connect; from pytest_imagefresh.core import settings; "
        f"h = connect(settings.Host(ssh={sshd.target!r}, known_hosts={str(sshd.known_hosts)!r}), settings.Timeouts()); "
        "print(h.engine_socket()); h.reach(1)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(route.__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, timeout=60)
    assert done.stderr == b""
    assert not Path(done.stdout.decode().strip()).parent.exists()
    assert await_true(lambda: not sshd.sessions())


# --- this machine as the host -----------------------------------------------------------------------------------------


def test_this_machine_is_a_host_like_any_other(tmp_path: Path) -> None:
    host = connect(settings.Host(docker_host="unix:///some/docker.sock"), BOUND)
    assert isinstance(host, LocalHost)
    assert (host.name, host.engine_socket(), host.reach(8501)) == ("local", "/some/docker.sock", ("127.0.0.1", 8501))
    lines: list[str] = []
    done = host.run(["sh", "-c", "cat; echo err >&2; exit 3"], timeout=20, stdin=b"in", on_line=lines.append)
    assert (done.status, done.stdout, lines) == (3, b"in", ["err"])
    with host.put(b"#!/bin/sh\necho sent\n", timeout=20) as path:
        assert (Path(path).stat().st_mode & 0o777, Path(path).parent.stat().st_mode & 0o777) == (0o700, 0o700)
        assert host.run([path], timeout=20).stdout == b"sent\n"
    assert not Path(path).parent.exists()
    host.close()


@pytest.mark.parametrize("ssh", ["local", "me@host"])
@pytest.mark.parametrize(
    "address", ["", "tcp://127.0.0.1:2375", "ssh://host", "unix://", "unix://relative", "/var/run/x"]
)
def test_only_the_hosts_own_engine_is_examined(ssh: str, address: str) -> None:
    with pytest.raises(ConfigError, match=r"host\.docker_host is"):
        connect(settings.Host(ssh=ssh, docker_host=address), BOUND)


def test_a_local_host_never_pays_for_ssh() -> None:
    code = (
        "import sys; from pytest_imagefresh.adapters.host import connect; from pytest_imagefresh.core import settings; "
        "connect(settings.Host(), settings.Timeouts()); print('paramiko.transport' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(route.__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, timeout=60)
    assert done.stdout == b"False\n"
