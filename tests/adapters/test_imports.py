"""Importing what talks to the engine costs no more than it must."""

from __future__ import annotations

import sys

import pytest

from tests.support import ROOT, clean_environment, run


def python(script: str) -> str:
    """Return what a script prints in a fresh interpreter."""
    return run([sys.executable, "-c", script], env=clean_environment(PYTHONPATH=str(ROOT))).stdout.strip()


@pytest.mark.parametrize("module", ["engine", "ssh"])
def test_a_library_that_nothing_uses_is_not_loaded(module: str) -> None:
    script = f"import sys, pytest_imagefresh.adapters.{module}; print('invoke.context' in sys.modules)"
    assert python(script) == "False"


def test_a_run_on_this_machine_loads_no_ssh() -> None:
    script = "import sys, pytest_imagefresh.session; print('paramiko.transport' in sys.modules)"
    assert python(script) == "False"


@pytest.mark.parametrize(
    "use",
    [
        "import invoke; print(invoke.run)",
        "from invoke import run; print(run)",
        "import invoke.context, invoke; print(invoke.run)",
        "import paramiko.config; print(paramiko.config.invoke.run)",
    ],
)
def test_it_is_loaded_as_soon_as_somebody_does(use: str) -> None:
    assert python(f"import pytest_imagefresh.adapters.engine; {use}").startswith("<function run at ")


@pytest.mark.parametrize(
    "use",
    [
        "import paramiko; print(paramiko.SSHClient)",
        "from paramiko import SSHClient; print(SSHClient)",
        "import paramiko.client; print(paramiko.client.SSHClient)",
        "import docker.transport.sshconn as used; print(used.paramiko.SSHClient)",
        "import pytest_imagefresh.adapters.ssh.connection as used; print(used.paramiko.SSHClient)",
    ],
)
def test_so_is_the_one_for_ssh(use: str) -> None:
    assert python(f"import pytest_imagefresh.adapters.engine; {use}") == "<class 'paramiko.client.SSHClient'>"
