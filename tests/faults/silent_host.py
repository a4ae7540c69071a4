"""An ssh server that lets everybody in, opens every channel, takes every command, and does nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import paramiko


class Agreeable(paramiko.ServerInterface):
    """Says yes to everything."""

    def get_allowed_auths(self, username: str) -> str:
        """Return that a key is enough."""
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        """Let everybody in."""
        return paramiko.common.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        """Open every kind of channel."""
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        """Take every command."""
        return True

    def check_channel_direct_tcpip_request(
        self, chanid: int, origin: tuple[str, int], destination: tuple[str, int]
    ) -> int:
        """Reach every port."""
        return paramiko.common.OPEN_SUCCEEDED


@contextlib.contextmanager
def silent_host(host_key: Path) -> Iterator[int]:
    """Yield the port of such a server, which shows this host key."""
    key = paramiko.PKey.from_path(host_key)
    transports: list[paramiko.Transport] = []

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError, paramiko.SSHException, EOFError):
            while True:
                transport = paramiko.Transport(listener.accept()[0])
                transports.append(transport)
                transport.add_server_key(key)
                transport.start_server(threading.Event(), Agreeable())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for transport in transports:
        transport.close()
