"""Faults of the container and the port."""

from __future__ import annotations

import os
import shutil
import socket

from tests.e2e.pipeline import wait_until
from tests.faults.fault import BOTH, SSH, Section, passes, refused, unknown
from tests.faults.scene import Scene
from tests.gate_folder import Ended
from tests.support import Ports, foreign_server

SECTION = Section("The container and the port")
fault = SECTION.fault

SERVICE = "src/orchestrator/service.py"
CHECK = "scripts/staging_check.py"
HEALTHY = 'self._answer(200, {"status": "ok"})'
CMD = 'CMD ["python3", "-m", "orchestrator"]'

# --- what runs --------------------------------------------------------------------------------------------------------


@fault("a hot-fixed container of the same image runs beforehand", passes(), hosts=BOTH)
def hot_fixed_before(scene: Scene) -> Ended:
    copy = scene.copy
    # Compose itself would find nothing to do: same image, same configuration.
    gate = scene.gate()
    assert gate.status == 0, gate.output
    copy.engine.docker("exec", "--user", "0", copy.staging_container, "sh", "-c", "echo fixed >/app/HOTFIX")
    ended = scene.gate()
    assert copy.engine.run("exec", copy.staging_container, "test", "-e", "/app/HOTFIX", check=False).returncode == 1
    return ended


@fault("staging is paused beforehand", passes())
def paused_before(scene: Scene) -> None:
    scene.copy.engine.docker("pause", scene.copy.staging_container)


@fault("compose does not recreate", refused("was not recreated; expected a new container", staging="new"))
def not_recreated(scene: Scene) -> Ended:
    gate = scene.gate()
    assert gate.status == 0, gate.output
    scene.forget_records()
    tools = scene.pipeline.folder.parent / "lib"
    keep = 'for word in "$@"; do [[ "${word}" == --force-recreate ]] || kept+=("${word}"); done'
    scene.pipeline.write_hook("docker", f'#!/bin/bash -p\n{keep}\nPATH=${{PATH#*:}} exec docker "${{kept[@]}}"\n')
    scene.replace_in_hook("readonly SAFE_PATH='", f"readonly SAFE_PATH='{tools}:")
    return scene.gate()


@fault(
    "a file is hot-fixed while the gate runs",
    refused(r"/app/src/orchestrator/NEWS \(changed\)", staging="new"),
    hosts=BOTH,
)
def hot_fixed_during(scene: Scene) -> None:
    copy = scene.copy
    scene.configure(targets={copy.name: {"content": {"/app/src": "src"}}})
    edit = "sh -c 'echo fixed >/app/src/orchestrator/NEWS'"
    scene.during(f"docker --host {copy.engine.docker_host} exec --user 0 {copy.staging_container} {edit}")


@fault(
    "staging is restarted while the gate runs", refused("the staging container is [0-9a-f]{64} since ", staging="new")
)
def restarted(scene: Scene) -> None:
    scene.during(f"docker --host {scene.copy.engine.docker_host} restart --time 0 {scene.copy.staging_container}")


@fault(
    "staging is paused while the gate runs", refused("is paused with 0 restarts, expected running", staging="nothing")
)
def paused_during(scene: Scene) -> None:
    scene.during(f"docker --host {scene.copy.engine.docker_host} pause {scene.copy.staging_container}")


@fault(
    "production is restarted while the gate runs",
    refused("production changed while the gate ran: it was ", staging="new"),
    hosts=BOTH,
    production_moves=True,
)
def production_restarted(scene: Scene) -> None:
    scene.during(f"docker --host {scene.copy.engine.docker_host} restart --time 0 {scene.copy.prod_container}")


@fault(
    "production's image is tagged anew while the gate runs",
    refused("production changed while the gate ran: it was ", staging="new"),
    production_moves=True,
)
def production_tagged(scene: Scene) -> None:
    copy = scene.copy
    scene.during(f"docker --host {copy.engine.docker_host} tag {copy.staging_image} {copy.prod_image}")


MEDDLING = {
    "is given another restart policy": "update --restart no",
    "is put on another network": "network connect bridge",
}


def enter_meddling(name: str, words: str) -> None:
    reason = "production changed while the gate ran: it was "

    @fault(f"production {name} while the gate runs", refused(reason, staging="new"), production_moves=True)
    def meddling(scene: Scene) -> None:
        scene.during(f"docker --host {scene.copy.engine.docker_host} {words} {scene.copy.prod_container}")


for each_deed, command in MEDDLING.items():
    enter_meddling(each_deed, command)


@fault("staging depends on production, whose configuration changed", passes(), hosts=BOTH)
def depends_on_production(scene: Scene) -> None:
    scene.edit_compose("ROLE: production", "ROLE: production\n      CHANGED: really")
    scene.override_staging("depends_on: [orchestrator]")
    with scene.copy.env_file.open("a") as file:
        file.write("COMPOSE_REMOVE_ORPHANS=true\n")


@fault("staging would be pulled or built by compose itself", passes())
def pulls_and_builds(scene: Scene) -> None:
    scene.override_staging("pull_policy: always\nbuild: /nowhere")


@fault(
    "container_name is gone from the compose file, and an old container of that name lives on",
    refused("STAGING_CONTAINER: expected if-[0-9a-f]+-orchestrator-staging-1, the name in the compose file"),
)
def name_dropped(scene: Scene) -> None:
    scene.edit_compose("    container_name: ${STAGING_NAME:-orchestrator-staging}\n", "")


OTHERWISE = "what container [^ ]+ runs is .*, expected "
OVERRIDES = {
    "the command": ('command: ["python3", "-u", "-m", "orchestrator"]', OTHERWISE),
    "the entrypoint": ('entrypoint: ["python3", "-u", "-m", "orchestrator"]', OTHERWISE),
    "the user": ("user: root", "user of container [^ ]+ is root, expected "),
    "the working folder": ("working_dir: /app/src", "working folder of container [^ ]+ is /app/src, expected /app"),
    "a loader's variable": ("environment: {PYTHONPATH: '/tmp:/app/src'}", "sets PYTHONPATH otherwise than its image"),
}


def enter_override(name: str, line: str, reason: str) -> None:
    @fault(f"the compose file replaces {name}", refused(reason, staging="new"))
    def override(scene: Scene) -> None:
        scene.configure_staging(check_command=["true"])
        scene.override_staging(line)


for each_name, (replacement, cause) in OVERRIDES.items():
    enter_override(each_name, replacement, cause)


@fault(
    "a mount replaces the image's code",
    refused("has mounts over the image's files: /app/src", staging="new"),
    hosts=BOTH,
)
def mounted_code(scene: Scene) -> None:
    # As in the image, but for one file: everything else works as before.
    source = scene.copy.compose_dir / "src"
    shutil.copytree(scene.worktree / "src", source)
    (source / "orchestrator/NEWS").write_text("mounted")
    scene.override_staging(f"volumes: ['{source}:/app/src']")


@fault(
    "the check comes from a mount, older than the commit",
    refused("mounts over the image's files: /app/scripts", staging="new"),
)
def mounted_check(scene: Scene) -> None:
    source = scene.copy.compose_dir / "scripts"
    shutil.copytree(scene.worktree / "scripts", source)
    scene.commit({CHECK: "print('the newer check fails'); raise SystemExit(1)"})
    (source / "staging_check.py").write_text("print('the older check passes')")
    scene.override_staging(f"volumes: ['{source}:/app/scripts:ro']")


# --- the port ---------------------------------------------------------------------------------------------------------


OWNER = "service orchestrator-staging: expected compose to recreate it, observed: .* is owned by "
OWN_PROCESS = f'{OWNER}process "[^"]+",pid={os.getpid()},'
START = rb"POST /v[0-9.]+/containers/[0-9a-f]+/start"
"""What compose asks of the engine once the container that it replaces is gone: the port is free at that moment."""


@fault("a foreign process owns the port", refused(OWN_PROCESS, staging="nothing"), hosts=BOTH, deployed=False)
def foreign_process(scene: Scene) -> None:
    listener = socket.create_server(("127.0.0.1", scene.copy.staging_port))
    scene.later(listener.close)


@fault(
    "a foreign container owns the port",
    refused("expected nobody or service orchestrator-staging, observed container "),
    hosts=BOTH,
    deployed=False,
)
def foreign_container(scene: Scene) -> None:
    copy = scene.copy
    name = f"{copy.project}-foreign"
    publish = ["--publish", f"127.0.0.1:{copy.staging_port}:8000", "--name", name]
    copy.engine.docker("run", "--detach", "--rm", *publish, "--label", "com.docker.compose.service=foreign",
                       copy.engine.base_image, "sleep", "3600")  # fmt: skip
    scene.later(lambda: copy.engine.docker("rm", "--force", name))


@fault(
    "staging is down, and `compose run` started an old container of it that owns the port",
    refused("expected nobody or service orchestrator-staging, observed container .*-by-hand"),
    hosts=BOTH,
)
def run_by_hand(scene: Scene) -> None:
    copy = scene.copy
    name = f"{copy.project}-by-hand"
    copy.compose("stop", "orchestrator-staging")
    copy.compose("run", "--detach", "--no-deps", "--service-ports", "--name", name, "orchestrator-staging")
    scene.later(lambda: copy.engine.docker("rm", "--force", name))


@fault("an old container takes the port while staging is recreated", refused(f"{OWNER}container .*-old"), hosts=BOTH)
def old_container_during(scene: Scene) -> None:
    copy = scene.copy
    name = f"{copy.project}-old"
    publish = ["--publish", f"127.0.0.1:{copy.staging_port}:8000", "--name", name]
    old = ["run", "--detach", *publish, "--label", "com.docker.compose.service=old", f"{copy.project}-by-hand"]
    scene.engine_proxy().when(START, lambda: copy.engine.run(*old))
    scene.later(lambda: copy.engine.docker("rm", "--force", name))


@fault(
    "a foreign process takes the port while staging is recreated",
    refused(OWN_PROCESS, staging="nothing"),
    hosts=BOTH,
)
def foreign_process_during(scene: Scene) -> None:
    address = ("127.0.0.1", scene.copy.staging_port)
    scene.engine_proxy().when(START, lambda: scene.later(socket.create_server(address).close))


@fault(
    "another process answers on another address of the port",
    refused("somebody else answers on port [0-9]+ at 127.0.0.2: a byte came while container", staging="new"),
    hosts=BOTH,
)
def answers_elsewhere(scene: Scene) -> None:
    scene.enter(foreign_server("127.0.0.2", scene.copy.staging_port))


@fault(
    "published everywhere, and a rule of the host leads one address elsewhere",
    refused("somebody else answers on port [0-9]+ at .*198.18.[0-9.]+: a byte came while container", staging="new"),
    hosts=BOTH,
    root=True,
)
def led_elsewhere(scene: Scene) -> None:
    scene.edit_compose("127.0.0.1:${STAGING_PORT:-8501}:8000", "0.0.0.0:${STAGING_PORT:-8501}:8000")
    foreign = scene.enter(foreign_server("127.0.0.1", 0))
    scene.redirect_port(scene.copy.staging_port, to=foreign)


@fault("the compose file publishes another port", refused("expected it to publish port", staging="nothing"))
def another_port(scene: Scene) -> None:
    scene.edit_compose("127.0.0.1:${STAGING_PORT:-8501}:8000", "127.0.0.1::8000")


# --- the host's network ----------------------------------------------------------------------------------------------


def use_host_network(scene: Scene, port: int) -> None:
    """Let staging listen on a port of the host itself."""
    scene.edit_compose('    ports:\n      - "127.0.0.1:${STAGING_PORT:-8501}:8000"\n', "")
    scene.override_staging(f"network_mode: host\nenvironment: {{PORT: '{port}'}}")


@fault("staging uses the host's network", passes(), hosts=BOTH)
def host_network(scene: Scene) -> None:
    use_host_network(scene, scene.copy.staging_port)


@fault(
    "staging uses the host's network, and a foreign process owns its port",
    refused("somebody else answers on port [0-9]+ at 127.0.0.1: a byte came while container", staging="nothing"),
    deployed=False,
)
def foreign_process_on_host_network(scene: Scene) -> Ended:
    # The service itself listens elsewhere, so that it stays up.
    ports = Ports()
    scene.later(ports.release)
    use_host_network(scene, ports.claim())
    scene.configure_staging(check_command=["true"])
    with foreign_server("127.0.0.1", scene.copy.staging_port):
        return scene.gate()


# --- dying, late, unhealthy -------------------------------------------------------------------------------------------


@fault(
    "sshd forbids the way to another address on which a foreign process answers",
    unknown("expected every connection to come as far as its port, observed that 127.0.0.2", staging="new"),
    hosts=SSH,
)
def forbidden_way(scene: Scene) -> None:
    scene.sshd.restart("PermitOpen 127.0.0.1:*")
    scene.enter(foreign_server("127.0.0.2", scene.copy.staging_port))


@fault(
    "dies at start",
    refused(r"expected it to stay up, observed exited \(exit status 3\); its log ends: out of luck", staging="nothing"),
    hosts=BOTH,
)
def dies_at_start(scene: Scene) -> None:
    scene.replace("Dockerfile", CMD, 'CMD ["sh", "-c", "echo out of luck; exit 3"]')
    # Far longer than the test may take: waiting has to end with the container.
    scene.configure(timeouts={"health": 3600})


@fault(
    "dies during the settle time",
    refused("expected it to stay up, observed .*; its log ends: .*gone by itself", staging="nothing"),
)
def dies_while_settling(scene: Scene) -> None:
    start = 'CMD ["sh", "-c", "python3 -m orchestrator & sleep 2; echo gone by itself; exit 5"]'
    scene.replace("Dockerfile", CMD, start)
    scene.configure_staging(check_command=["true"])
    scene.configure(settle=20)


@fault(
    "crash loop after the first good answer",
    refused("expected it to stay up, observed .*; its log ends: .*once more", staging="new or nothing"),
)
def crash_loop(scene: Scene) -> None:
    start = 'CMD ["sh", "-c", "python3 -m orchestrator & sleep 1; echo once more; exit 5"]'
    scene.replace("Dockerfile", CMD, start)
    scene.override_staging("restart: always")
    scene.configure_staging(check_command=["true"])
    scene.configure(settle=20)


REDIRECT = "; ".join(
    [
        "self.send_response(302)",
        'self.send_header("Location", "/version")',
        'self.send_header("Content-Length", "0")',
        "self.end_headers()",
    ]
)
UNHEALTHY = {
    "500": ("self._answer(500, {})", "observed 500", "new"),
    "a redirect": (REDIRECT, "observed 302", "new"),
    "204": ("self.send_response(204); self.end_headers()", "observed 204", "new"),
    "nothing": ("self.close_connection = True", "observed .*[Ee]mpty reply", "new"),
    "nothing for ever": ("import time; time.sleep(3600)", "observed .*timed out", "new"),
}


def enter_unhealthy(name: str, body: str, reason: str, staging: str) -> None:
    @fault(f"the health path answers {name}", refused(f"/health: expected 200, {reason}", staging=staging), bound=1)
    def unhealthy(scene: Scene) -> None:
        scene.replace(SERVICE, HEALTHY, body)
        scene.configure(timeouts={"health": 1})


for each, row in UNHEALTHY.items():
    enter_unhealthy(each, *row)


@fault(
    "healthy long before it is ready, with a readiness path",
    refused("/ready: expected 200, observed 503", staging="new"),
)
def never_ready(scene: Scene) -> None:
    scene.override_staging("environment: {WARMUP_SECONDS: '3600'}")
    scene.configure_staging(health_path="/ready")
    scene.configure(timeouts={"health": 1})


@fault("ready only after a while, with a readiness path", passes())
def ready_late(scene: Scene) -> None:
    scene.override_staging("environment: {WARMUP_SECONDS: '2'}")
    scene.configure_staging(health_path="/ready")


# --- the staging check ------------------------------------------------------------------------------------------------


@fault("the check is missing", refused("expected exit status 0, observed 2; .*No such file", staging="new"))
def check_missing(scene: Scene) -> None:
    scene.configure_staging(check_path="scripts/no_such_check.py")


@fault(
    "the check says PASS and exits with 1",
    refused("the staging check: expected exit status 0, observed 1; it ended with: PASS", staging="new"),
    hosts=BOTH,
)
def check_fails(scene: Scene) -> None:
    scene.commit({CHECK: "print('PASS'); raise SystemExit(1)"})


def enter_tap(name: str, text: str, reason: str) -> None:
    @fault(f"the check {name}, and exits with 0", refused(reason, staging="new"))
    def tap(scene: Scene) -> None:
        scene.commit({CHECK: f"print({text!r})"})
        scene.configure_staging(check_format="tap")


enter_tap("says not ok", "1..2\nok 1 - lights\nnot ok 2 - the till", "ended with 0, but its TAP says: .*the till")
enter_tap("skips everything", "1..2\nok 1 - a # SKIP no\nok 2 - b # SKIP no", "its TAP says: ")
enter_tap("prints no plan", "ok 1 - lights", "its TAP says: ")
enter_tap("ends before its plan", "1..3\nok 1 - lights", "its TAP says: ")
enter_tap(
    "says not ok in a subtest that its parent calls ok",
    "TAP version 14\n1..1\n# Subtest: till\n    1..1\n    not ok 1 - the till\nok 1 - till",
    "its TAP says: a subtest says: not ok 1 - the till",
)


@fault(
    "a check without a format says not ok, and exits with 0",
    refused("ended with 0, but its output says: test .*the till is not ok", staging="new"),
)
def untapped(scene: Scene) -> None:
    scene.commit({CHECK: "print('1..1\\nnot ok 1 - the till')"})


enter_tap("bails out", "1..1\nok 1 - lights\nBail out! no power", "its TAP says: ")


@fault(
    "the check hangs",
    refused("the staging check: expected an end within CHECK_TIMEOUT=1 s, observed none", staging="new"),
    hosts=BOTH,
    bound=1,
)
def check_hangs(scene: Scene) -> Ended:
    scene.commit({CHECK: "import time\nprint('patience', flush=True)\ntime.sleep(3600)\n"})
    scene.configure(timeouts={"check": 1})
    ended = scene.gate()
    listed = scene.copy.engine.docker("container", "top", scene.copy.staging_container, "-eo", "pid,args")
    assert "orchestrator" in listed
    assert "staging_check" not in listed
    # The hook restarts the container to end the check in it.
    assert wait_until(lambda: scene.staging == "new")
    return ended
