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


@pytest.mark.parametrize("library", ["paramiko.transport", "yaml.reader"])
def test_a_session_on_this_machine_loads_no_library_before_its_time(library: str) -> None:
    script = f"import sys, pytest_imagefresh.session; print('{library}' in sys.modules)"
    assert python(script) == "False"


def test_diagnostics_of_a_check_are_read_all_the_same() -> None:
    tap = "TAP version 13\\n1..1\\nok 1\\n  ---\\n  a: 1\\n  ...\\n"
    script = "import pytest_imagefresh.session; from tap.parser import Parser"
    assert python(f"{script}; print([*Parser().parse_text('{tap}')][-1].yaml_block)") == "{'a': 1}"


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
