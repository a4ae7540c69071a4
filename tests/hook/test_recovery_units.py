"""What is shipped for boot and a timer: run as systemd and cron would, it recovers what a crash has interrupted."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.hook.crash import Crashing
from tests.hook.harness import PROD_ID, STAGING_ID, PretendedHost
from tests.hook.test_operations import told
from tests.hook.test_recovery import COMMIT, interrupt, journal
from tests.support import ROOT

SERVICE = ROOT / "hooks/systemd/imagefresh-recover@.service"
TIMER = ROOT / "hooks/systemd/imagefresh-recover@.timer"
CRON = ROOT / "hooks/cron/imagefresh-recover"
INSTALLED = "/usr/local/lib/imagefresh/deploy-hook.sh"
CRON_LINES = [line for line in CRON.read_text().splitlines() if " --recover " in line]


def unit(path: Path) -> configparser.ConfigParser:
    """Read a unit in which no key comes twice."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=["="])
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # keys are what they are
    parser.read_string(path.read_text())
    return parser


def escape(path: Path) -> str:
    """Return an instance name as `systemd-escape --path` makes it."""
    plain = str(path).strip("/")
    return re.sub(r"[^A-Za-z0-9:_./]|^\.", lambda found: f"\\x{ord(found[0]):02x}", plain).replace("/", "-")


def unescape(instance: str) -> str:
    """Return what `%f` stands for. Source: systemd.unit(5), specifiers and string escaping."""
    return "/" + re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), instance.replace("-", "/"))


def run(argv: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    words = [f"{name}={value}" for name, value in environment.items()]
    return subprocess.run(["env", "-i", *words, *argv], cwd="/", capture_output=True, check=False, timeout=120)


def start_service(host: PretendedHost) -> subprocess.CompletedProcess[bytes]:
    """Do what systemd does for the instance of the host's compose folder."""
    section = unit(SERVICE)["Service"]
    folder = unescape(escape(host.compose_dir))
    name, _, value = section["Environment"].replace("%f", folder).partition("=")
    program, *arguments = shlex.split(section["ExecStart"])
    assert program == INSTALLED
    own = {"LANG": "C.UTF-8", "PATH": "/usr/local/bin:/usr/bin", "HOME": "/root", "INVOCATION_ID": "0" * 32}
    return run([str(host.hook.path), *arguments], {**own, name: value})


def run_cron_line(host: PretendedHost, line: str) -> subprocess.CompletedProcess[bytes]:
    """Do what cron does with one line of a file of /etc/cron.d."""
    when = 1 if line.startswith("@") else 5
    user, command = line.split(maxsplit=when)[-1].split(maxsplit=1)
    assert user == "imagefresh"
    assert "%" not in command, "cron takes it for a newline"
    assert command.count(INSTALLED) == command.count("COMPOSE_DIR=/srv/shop ") == 1
    command = command.replace(INSTALLED, str(host.hook.path)).replace("/srv/shop", str(host.compose_dir))
    own = {"SHELL": "/bin/sh", "PATH": "/usr/bin:/bin", "HOME": "/root", "LOGNAME": "imagefresh"}
    return run(["/bin/sh", "-c", command], own)


@pytest.mark.parametrize(("killed_at", "image"), [(" up ", PROD_ID), (COMMIT, STAGING_ID)], ids=["undo", "finish"])
@pytest.mark.parametrize("line", ["", *CRON_LINES], ids=["systemd", *(line.split()[0] for line in CRON_LINES)])
def test_an_interrupted_promotion_is_recovered(
    pretended: PretendedHost, crashing: Crashing, line: str, killed_at: str, image: str
) -> None:
    interrupt(pretended, crashing, killed_at)
    done = run_cron_line(pretended, line) if line else start_service(pretended)
    assert done.returncode == 0, done.stderr
    assert pretended.production == [image]
    assert pretended.state["images"]["shop-shop:latest"] == image
    assert not journal(pretended).exists()
    assert told(pretended.history())[-1]["mode"] == "--recover"


def test_there_are_two_lines_for_cron_at_boot_and_every_two_minutes() -> None:
    assert [line.split()[0] for line in CRON_LINES] == ["@reboot", "*/2"]
    assert "." not in CRON.name, "cron skips such files"
    assert CRON.read_text().endswith("\n"), "cron ignores a file whose last line does not end"


def test_with_nothing_to_do_cron_has_nothing_to_mail(pretended: PretendedHost) -> None:
    for line in CRON_LINES:
        done = run_cron_line(pretended, line)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_timer_starts_the_service_of_its_own_folder_at_boot_and_again_and_again() -> None:
    assert TIMER.stem == SERVICE.stem
    timer = unit(TIMER)
    assert "Unit" not in timer["Timer"]
    assert (timer["Timer"]["OnUnitActiveSec"], timer["Install"]["WantedBy"]) == ("2min", "timers.target")
    assert timer["Timer"]["OnBootSec"]
    service = unit(SERVICE)
    assert service["Service"]["Type"] == "oneshot"
    assert "docker.service" in service["Unit"]["After"]


@pytest.mark.parametrize("folder", ["/srv/shop", "/srv/my-shop/a_b", "/srv/with space/.hidden"])
def test_a_compose_folder_survives_its_way_through_the_name_of_a_unit(folder: str) -> None:
    assert unescape(escape(Path(folder))) == folder


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this machine has no systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_units(pretended: PretendedHost, tmp_path: Path) -> None:
    folder = tmp_path / "units"
    folder.mkdir()
    names = [f"{path.stem}{escape(pretended.compose_dir)}{path.suffix}" for path in (SERVICE, TIMER)]
    for path in (SERVICE, TIMER):
        (folder / path.name).write_text(path.read_text().replace(INSTALLED, str(pretended.hook.path)))
    environment = {"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{folder}:"}
    program = shutil.which("systemd-analyze") or ""
    done = run([program, "verify", "--man=no", *names], environment)
    assert (done.returncode, done.stderr) == (0, b"")
