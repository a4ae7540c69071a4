"""A real sshd on 127.0.0.1 with keys of its own, for tests that go the whole way."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

_START_SECONDS = 20.0
_STOP_SECONDS = 5.0
_ATTEMPTS = 5


class Sshd:
    """A context manager: a running sshd that lets this user in with a generated key.

    `folder` receives everything: keys, known_hosts, log, and `home`, a home folder whose ~/.ssh/config names the key.
    `options` are sshd_config lines (`MaxSessions 2`), `key_options` is put before the key in authorized_keys
    (`command="..."`).
    """

    def __init__(self, folder: Path, *, options: Sequence[str] = (), key_options: str = "") -> None:
        self.folder = folder
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.host = "127.0.0.1"
        self.port = 0
        self.host_key = folder / "host_key"
        self.user_key = folder / "user_key"
        self.known_hosts = folder / "known_hosts"
        self.home = folder / "home"
        self.config = self.home / ".ssh" / "config"
        self.log = folder / "log"
        self._authorized_keys = folder / "authorized_keys"
        self._options = tuple(options)
        self.prefix: list[str] = []
        """What the server is started through, such as nsenter."""
        self._process: subprocess.Popen[bytes] | None = None
        self.config.parent.mkdir(parents=True)
        make_key(self.host_key)
        make_key(self.user_key)
        self.authorize(key_options)

    @property
    def target(self) -> str:
        """What a settings file says: `user@127.0.0.1:port`."""
        return f"{self.user}@{self.host}:{self.port}"

    @property
    def known_as(self) -> str:
        """The name under which known_hosts lists this server."""
        return f"[{self.host}]:{self.port}"

    def __enter__(self) -> Sshd:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def authorize(self, key_options: str = "", key: Path | None = None) -> None:
        """Let exactly one key in, with these options."""
        public = (key or self.user_key).with_suffix(".pub").read_text()
        self._authorized_keys.write_text(f"{key_options} {public}".lstrip())
        self._authorized_keys.chmod(0o600)

    def start(self) -> None:
        """Start on a free port, the same one again after a stop, and write known_hosts and ~/.ssh/config for it."""
        attempts = 1 if self.port else _ATTEMPTS
        for _ in range(attempts):
            port = self.port or _free_port()
            process = self._spawn(port)
            if _speaks(process, port, self.prefix):
                self.port, self._process = port, process
                break
            _end(process)
        else:
            raise RuntimeError(f"sshd did not start: {self.log.read_text()}")
        self.trust()
        self.write_config()

    def restart(self, *options: str) -> None:
        """Go on with other sshd_config lines, on the same port."""
        self.stop()
        self._options = options
        self.start()

    def trust(self) -> None:
        """Write a known_hosts file that lists exactly the present host key."""
        kind, blob = self.public_host_key().split()[:2]
        self.known_hosts.write_text(f"{self.known_as} {kind} {blob}\n")

    def public_host_key(self) -> str:
        """Return the line of the present public host key."""
        return self.host_key.with_suffix(".pub").read_text()

    def write_config(self, *lines: str) -> None:
        """Write a ~/.ssh/config of the private home: the given lines, then the user key for every host."""
        own = f"Host *\n  IdentityFile {self.user_key}\n  IdentitiesOnly yes\n"
        self.config.write_text("".join(f"{line}\n" for line in lines) + own)
        self.config.chmod(0o600)

    def replace_host_key(self) -> None:
        """Go on with another host key, on the same port; known_hosts keeps the old one."""
        before = self.known_hosts.read_bytes()
        self.stop()
        for path in (self.host_key, self.host_key.with_suffix(".pub")):
            path.unlink()
        make_key(self.host_key)
        self.start()
        self.known_hosts.write_bytes(before)

    def sessions(self) -> list[int]:
        """Return the processes of open connections, by pid."""
        return _children(self._process.pid) if self._process else []

    def kill_sessions(self) -> None:
        """Break every open connection without a word, as a crash of the server would."""
        for pid in self.sessions():
            _send(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End the server, its connections, and whatever they left running."""
        if self._process is None:
            return
        descendants = list(_descendants(self._process.pid))
        _end(self._process)
        for pid in descendants:
            # A stopped process would keep the signal for later.
            _send(pid, signal.SIGKILL)
        _await_gone(descendants)
        self._process = None

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        options = [
            f"Port {port}",
            f"ListenAddress {self.host}",
            f"HostKey {self.host_key}",
            f"AuthorizedKeysFile {self._authorized_keys}",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "PermitRootLogin prohibit-password",
            "LogLevel VERBOSE",
        ]
        # The first value that sshd reads counts.
        chosen = [word for option in (*self._options, *options) for word in ("-o", option)]
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*self.prefix, _program("sshd"), "-D", "-e", "-f", "/dev/null", *chosen],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def make_key(path: Path, *, passphrase: str = "", kind: str = "ed25519") -> None:
    """Generate a key pair, `path` and `path`.pub."""
    argv = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", path.name, "-f", str(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, timeout=60)


def _program(name: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if path is None:
        raise RuntimeError(f"{name} is not installed; install openssh-server")
    return path


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _speaks(process: subprocess.Popen[bytes], port: int, prefix: Sequence[str]) -> bool:
    """Whether this very process soon greets on the port."""
    give_up = time.monotonic() + _START_SECONDS
    while time.monotonic() < give_up and process.poll() is None:
        if _greeting(port, prefix) == b"SSH-" and process.poll() is None:
            return True
        time.sleep(0.02)
    return False


def _greeting(port: int, prefix: Sequence[str]) -> bytes:
    """Return the first four bytes that a port says, b"" for none. A prefix may lead into another network."""
    if prefix:
        argv = [*prefix, "bash", "-c", 'exec 3<>"/dev/tcp/127.0.0.1/$1"; head -c 4 <&3', "bash", str(port)]
        return subprocess.run(argv, capture_output=True, check=False, timeout=_START_SECONDS).stdout
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.settimeout(_START_SECONDS)
            return connection.recv(4)
    except OSError:
        return b""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _children(pid: int) -> list[int]:
    """Return the children of a process. Source: proc(5), status."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _parent(entry) == pid]


def _parent(entry: Path) -> int:
    try:
        status = (entry / "status").read_text()
    except OSError:
        return -1
    return int(status.partition("\nPPid:")[2].split()[0])


def _descendants(pid: int) -> Iterator[int]:
    for child in _children(pid):
        yield child
        yield from _descendants(child)


def _await_gone(pids: Sequence[int]) -> None:
    give_up = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < give_up and any(_lives(pid) for pid in pids):
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    """Whether a process runs. A zombie waiting for a parent that never looks does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
