"""One ssh connection per host: run programs, forward the engine's socket and ports.

Importing this package imports paramiko; only a run against an ssh host does so.
"""

from __future__ import annotations

from pytest_imagefresh.adapters.ssh.restricted import RestrictedHost
from pytest_imagefresh.adapters.ssh.session import SshHost

__all__ = ["RestrictedHost", "SshHost"]
