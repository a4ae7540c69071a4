"""Faults of the way to the host."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.faults.fault import BOTH, SSH, Expected, Section, not_promoted, passes, refused, unknown
from tests.faults.scene import NEWS, Scene
from tests.faults.silent_host import silent_host
from tests.gate_folder import Ended
from tests.sshd import make_key

SECTION = Section("The way there")
fault = SECTION.fault

CHECK = "scripts/staging_check.py"
CMD = 'CMD ["python3", "-m", "orchestrator"]'
SHORT = {"inspect": 2, "build": 4, "health": 4, "check": 4}
"""Bounds, in seconds, of a way on which nothing answers."""
BOUND = sum(SHORT.values())

BUILD = rb"POST /v[0-9.]+/build"
CREATE = rb"POST /v[0-9.]+/containers/create"
EXEC = rb"POST /v[0-9.]+/containers/[0-9a-f]+/exec"

# --- the engine -------------------------------------------------------------------------------------------------------


@fault("no engine", unknown("engine .* was asked for its version and did not answer as expected"), hosts=BOTH)
def no_engine(scene: Scene) -> None:
    scene.configure(host={"docker_host": "unix:///nowhere/docker.sock"})


@fault(
    "an engine that takes connections and says nothing",
    unknown("engine .* did not answer as expected"),
    hosts=BOTH,
    bound=BOUND,
)
def engine_hangs(scene: Scene) -> None:
    scene.engine_proxy().stall()
    scene.configure(timeouts=SHORT)


def impatient(scene: Scene) -> None:
    """Let the hook wait 2 seconds for each answer of the engine, not half a minute."""
    scene.replace_in_hook("readonly QUICK=30 ", "readonly QUICK=2 ")
    scene.configure(timeouts=SHORT)


@fault(
    "the engine hangs when the build is to start",
    unknown("expected an end within BUILD_TIMEOUT=4 s"),
    hosts=BOTH,
    bound=BOUND,
)
def engine_hangs_at_build(scene: Scene) -> None:
    proxy = scene.engine_proxy()
    proxy.when(BUILD, proxy.stall)
    impatient(scene)


@fault(
    "the engine hangs when the check is to start",
    unknown("docker info .*: expected an end within 2 s", staging="new"),
    bound=BOUND,
)
def engine_hangs_at_check(scene: Scene) -> Ended:
    proxy = scene.engine_proxy()
    proxy.when(EXEC, proxy.stall)
    impatient(scene)
    return with_the_tag_of_the_run(scene)


@fault("the engine dies when the build is to start", unknown("the engine at .*: expected an answer"), hosts=BOTH)
def engine_dies_at_build(scene: Scene) -> Ended:
    proxy = scene.engine_proxy()
    proxy.when(BUILD, proxy.cut)
    return with_the_tag_of_the_run(scene)


@fault("the engine dies when staging is to be recreated", unknown("the engine at .*: expected an answer"), hosts=BOTH)
def engine_dies_at_recreation(scene: Scene) -> Ended:
    proxy = scene.engine_proxy()
    proxy.when(CREATE, proxy.cut)
    return with_the_tag_of_the_run(scene)


def with_the_tag_of_the_run(scene: Scene) -> Ended:
    """Run a gate whose engine goes away for good: nobody can take the run's own tag from it, but no other one moved."""
    before = scene.staging_tag()
    ended = scene.gate()
    assert scene.staging_tag() == before
    scene.remove_run_tags()
    return ended


# --- host keys, and hosts that are not what they seem -----------------------------------------------------------------

COMPARE = "compare 'ssh-keyscan -p [0-9]+ 127.0.0.1 | ssh-keygen -lf -' with 'ssh-keygen -lf /etc/ssh/ssh_host_ed25519"


@fault("the host key is unknown", refused(f"host key SHA256:.* is unknown.*{COMPARE}".replace("|", r"\|")), hosts=SSH)
def unknown_host_key(scene: Scene) -> None:
    scene.sshd.known_hosts.write_text("")


@fault(
    "the host key has changed",
    refused(f"its host key changed: expected SHA256:.*, observed SHA256:.*{COMPARE}".replace("|", r"\|")),
    hosts=SSH,
)
def changed_host_key(scene: Scene) -> None:
    scene.sshd.replace_host_key()


@fault(
    "our key is not accepted", unknown("was not let in, expected one of our keys to be accepted; tried /"), hosts=SSH
)
def our_key_is_refused(scene: Scene) -> None:
    other = scene.sshd.folder / "other_key"
    make_key(other)
    scene.sshd.authorize(key=other)


@fault(
    "our key is missing", unknown("was not let in, expected one of our keys to be accepted; tried no key"), hosts=SSH
)
def our_key_is_missing(scene: Scene) -> None:
    scene.sshd.user_key.unlink()


@fault("sshd is down", unknown("cannot be reached"), hosts=SSH)
def sshd_is_down(scene: Scene) -> None:
    scene.sshd.stop()


@fault("a port that takes connections and says nothing", unknown("no ssh handshake within 2 s"), hosts=SSH, bound=BOUND)
def silent_port(scene: Scene) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    scene.later(listener.close)
    scene.configure(host={"ssh": f"{scene.sshd.user}@127.0.0.1:{listener.getsockname()[1]}"}, timeouts=SHORT)


@fault(
    "a host that lets everybody in, takes everything, and does nothing",
    unknown("--contract.* was expected to end within 30 s and did not"),
    hosts=SSH,
    bound=30 + BOUND,
)
def host_does_nothing(scene: Scene) -> None:
    port = scene.enter(silent_host(scene.sshd.host_key))
    scene.trust_port(port)
    scene.configure(timeouts=SHORT)


ANSWERS_NOTHING = {
    "true": refused("the hook at .* answers --contract with '' .exit 0., expected '1'"),
    "cat": refused("the hook at .* answers --contract with '' .exit 0., expected '1'"),
    "echo 1": unknown("the hook's --lease printed no valid report"),
    "sleep 10": refused("the hook at .* answers --contract with '' .exit 0., expected '1'"),
}


def enter_yes_host(command: str, expected: Expected) -> None:
    @fault(f"a host on which every command is `{command}`", expected, hosts=SSH)
    def yes_host(scene: Scene) -> None:
        scene.sshd.authorize(f'command="{command}"')
        scene.configure(timeouts=SHORT)


for each, outcome in ANSWERS_NOTHING.items():
    enter_yes_host(each, outcome)


# --- the connection is lost -------------------------------------------------------------------------------------------

LOST = "the connection was lost while"


def and_the_host_changes_nothing_more(scene: Scene, run: Callable[[], Ended]) -> Ended:
    """Run what loses its connection; once nothing works on any more, the staging tag is where it was."""
    before = scene.staging_tag()
    ended = run()
    scene.pipeline.assert_clean()
    assert scene.staging_tag() == before
    return ended


@fault("ssh is dropped during the build", unknown(LOST), hosts=SSH)
def dropped_during_build(scene: Scene) -> Ended:
    scene.replace("Dockerfile", CMD, f"RUN sleep 3; echo done\n{CMD}")
    scene.engine_proxy().when(BUILD, scene.sshd.kill_sessions)
    return and_the_host_changes_nothing_more(scene, scene.gate)


@fault("ssh is dropped during the check", unknown(LOST, staging="new"), hosts=SSH)
def dropped_during_check(scene: Scene) -> Ended:
    scene.commit({CHECK: "import time\ntime.sleep(3)\nprint('ok')\n"})
    scene.engine_proxy().when(EXEC, scene.sshd.kill_sessions)
    return and_the_host_changes_nothing_more(scene, scene.gate)


@fault("ssh is dropped just before production changes", not_promoted(LOST, status=11), hosts=SSH)
def dropped_before_production_changes(scene: Scene) -> Ended:
    proxy = scene.engine_proxy()
    gate = scene.gate()
    assert gate.status == 0, gate.output
    proxy.when(rb"GET /v[0-9.]+/images/[^ ]*staging-image[^ ]*/json", scene.sshd.kill_sessions)
    return scene.pipeline.promote()


def gate_and_await_the_swap(scene: Scene, act: Callable[[], None]) -> None:
    """Gate; from then on something happens as production's container is stopped."""
    proxy = scene.engine_proxy()
    gate = scene.gate()
    assert gate.status == 0, gate.output
    container = scene.copy.engine.docker("inspect", "--format", "{{.Id}}", scene.copy.prod_container)
    proxy.when(rb"POST /v[0-9.]+/containers/%s/stop" % container.encode(), act)


def promote_and_lose_the_way(scene: Scene) -> tuple[Ended, str]:
    """Gate and promote; ssh is dropped as production's container is stopped. Return the end and the new image's ID.

    The hook works on by itself: status and history must tell how it ended.
    """
    gate_and_await_the_swap(scene, scene.sshd.kill_sessions)
    ended = scene.pipeline.promote()
    scene.pipeline.assert_clean()
    return ended, scene.staging_tag()


def told(scene: Scene, command: str) -> Any:
    """Return what a command of ours tells about the target, in JSON."""
    ended = scene.pipeline.imagefresh(command, "--repo", scene.copy.name, "--json")
    assert ended.status == 0, ended.output
    return json.loads(ended.output)


@fault(
    "ssh is dropped while production is recreated",
    not_promoted(LOST, status=11),
    hosts=SSH,
    production_moves=True,
)
def dropped_while_production_changes(scene: Scene) -> Ended:
    ended, image = promote_and_lose_the_way(scene)
    production_is_promoted(scene, image)
    return ended


def production_is_promoted(scene: Scene, image: str) -> None:
    """Whatever became of the caller, the hook has finished, and says so."""
    production = scene.production()
    assert (production["serves"], production["tag"]) == (scene.new, image)
    assert image in production["container"]
    assert image in production["pin"]
    status = told(scene, "status")[scene.copy.name]
    assert (status["verified"], status["open"]) == (True, None)
    assert told(scene, "history")[-1]["cause"] == "promoted"


@fault(
    "the client is stopped while production is recreated, its connection open",
    passes("production runs"),
    hosts=BOTH,
    production_moves=True,
)
def stopped_while_production_changes(scene: Scene) -> Ended:
    began = threading.Event()
    gate_and_await_the_swap(scene, began.set)
    argv = scene.pipeline.imagefresh_command("promote", "--repo", scene.copy.name, "--branch", scene.copy.branch)
    ended = scene.run_and_stop(argv, began)
    production_is_promoted(scene, scene.staging_tag())
    return ended


@fault(
    "ssh is dropped while production is recreated, and the new one dies",
    not_promoted(LOST, status=11),
    hosts=SSH,
    production_moves=True,
)
def dropped_and_rolled_back(scene: Scene) -> Ended:
    before = scene.production()
    die = '[ "$ROLE" != production ] || exit 5; exec python3 -m orchestrator'
    scene.replace("Dockerfile", CMD, f"CMD {json.dumps(['sh', '-c', die])}")
    scene.configure_staging(check_command=["true"])
    ended, _ = promote_and_lose_the_way(scene)
    production = scene.production()
    assert {name: production[name] for name in ("serves", "tag", "pin")} == {
        name: before[name] for name in ("serves", "tag", "pin")
    }
    assert told(scene, "status")[scene.copy.name]["open"] is None
    assert told(scene, "history")[-1]["kind"] == "rolled-back"
    return ended


@fault(
    "the host falls silent during the build, its connection open",
    # For 20 s the hook cannot know that nobody hears it any more.
    unknown("was expected to end within", staging="old or new"),
    hosts=SSH,
    bound=30 + BOUND,
)
def silent_during_build(scene: Scene) -> Ended:
    ssh = scene.ssh_proxy()
    scene.engine_proxy().when(BUILD, ssh.stall)
    scene.configure(timeouts={"git": 1, "inspect": 0.5, "build": 4, "health": 2, "check": 2})
    scene.replace("Dockerfile", CMD, f"RUN sleep 3; echo done\n{CMD}")
    ended = scene.gate()
    ssh.cut()
    return ended


LEASE_LOST = "the lease of this run was lost|expected run .* to hold its lease"


@fault("the client is stopped during the build, its connection open", unknown(LEASE_LOST), hosts=BOTH)
def client_stopped(scene: Scene) -> Ended:
    began = threading.Event()
    scene.engine_proxy().when(BUILD, began.set)
    scene.replace("Dockerfile", CMD, f"RUN sleep 40; echo done\n{CMD}")
    return and_the_host_changes_nothing_more(scene, lambda: scene.run_and_stop(scene.pipeline.gate_command(), began))


@fault(
    "a firewall drops every packet during the build",
    unknown(f"{LOST}|was expected to end within"),
    hosts=SSH,
    root=True,
)
def packets_dropped(scene: Scene) -> None:
    drop = scene.into_a_network_of_its_own()
    scene.engine_proxy().when(BUILD, drop)
    scene.replace("Dockerfile", CMD, f"RUN sleep 25; echo done\n{CMD}")


@fault("the host falls silent while the engine is asked", unknown("did not answer"), hosts=SSH, bound=BOUND)
def silent_engine_question(scene: Scene) -> None:
    ssh = scene.ssh_proxy()
    scene.engine_proxy().when(rb"GET /v[0-9.]+/containers/json", ssh.stall)
    scene.configure(timeouts=SHORT)


@fault(
    "one session per connection (MaxSessions 1), which the lease needs",
    unknown("could not be started within 2 s: .*MaxSessions"),
    hosts=SSH,
    bound=BOUND,
)
def one_session(scene: Scene) -> None:
    scene.sshd.restart("MaxSessions 1")
    scene.configure(timeouts=SHORT)


@fault("two sessions per connection (MaxSessions 2)", passes(), hosts=SSH)
def two_sessions(scene: Scene) -> None:
    scene.sshd.restart("MaxSessions 2")


@fault(
    "no session at all (MaxSessions 0)",
    unknown("could not be started within 2 s: .*MaxSessions"),
    hosts=SSH,
    bound=BOUND,
)
def no_session(scene: Scene) -> None:
    scene.sshd.restart("MaxSessions 0")
    scene.configure(timeouts=SHORT)


@fault(
    "the host forbids every forwarding",
    refused("/health answers .*reset by peer, expected HTTP 200", staging="new"),
    hosts=SSH,
    bound=BOUND,
)
def no_forwarding(scene: Scene) -> None:
    scene.sshd.restart("DisableForwarding yes")
    scene.configure(timeouts=SHORT)


@fault(
    "compose cannot be run for the evidence",
    unknown("compose cannot resolve .*, expected its configuration as evidence", staging="new"),
    hosts=BOTH,
)
def no_compose_for_us(scene: Scene) -> None:
    # The hook brings its own folder of plugins.
    scene.configure(host={"docker_config": "/nowhere"})


# --- layouts that are right -------------------------------------------------------------------------------------------


@fault("the clone on the host is elsewhere, bare, and its worktrees are not visible there", passes(), hosts=SSH)
def clone_elsewhere(scene: Scene) -> None:
    hidden = scene.copy.worktrees_dir
    assert str(hidden) not in str(scene.pipeline.clones_on_host())


@fault("the clone on the host belongs to another user", passes(), hosts=SSH, root=True)
def clone_of_another_user(scene: Scene) -> None:
    scene.give_away(scene.pipeline.clones_on_host())


@fault("a host without the repo is sent the commit", passes(), hosts=SSH)
def sent(scene: Scene) -> None:
    scene.configure(host_repos_dir="-")
    shutil.rmtree(scene.pipeline.clones_on_host())


def enter_tampered(name: str, stream: str, reason: str) -> None:
    @fault(f"a commit that is sent arrives {name}", refused(reason), hosts=SSH)
    def tampered(scene: Scene) -> None:
        scene.pipeline.wrap_hook(f'[[ "$1" != --build-staging ]] || exec < <({stream})')
        scene.configure(host_repos_dir="-", host={"hook": str(scene.pipeline.hook.with_name("wrapped.sh"))})


enter_tampered("with one byte changed", "head -c 200; head -c 1 >/dev/null; printf X; cat", "pack")
enter_tampered("cut off", "head -c 200; cat >/dev/null", "pack")
enter_tampered("as nothing", "cat >/dev/null", "pack")


# --- two at once ------------------------------------------------------------------------------------------------------


def at_once(*calls: Callable[[], Ended]) -> list[Ended]:
    """Run several commands at once, each to its end."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def second_branch(scene: Scene) -> str:
    """Check out one more branch, with a commit of its own; return its name."""
    branch = "feature/y"
    other = scene.worktree.with_name("feature-y")
    scene.copy.git("worktree", "add", "--quiet", "-b", branch, str(other))
    (other / NEWS).write_text("other")
    scene.copy.git("commit", "--quiet", "--all", "--message", f"other ({scene.copy.project})", cwd=other)
    return branch


def assert_no_mixed_record(scene: Scene) -> None:
    """Fail where a complete record names an image that was built from another revision than its own."""
    for record in scene.records():
        if record["complete"]:
            assert scene.label_of(record["image_id"]) == record["revision"]


@fault("two branches are gated at once", passes("another run holds the lock"), hosts=BOTH)
def two_gates(scene: Scene) -> Ended:
    branch = second_branch(scene)
    report = scene.pipeline.folder / "other.xml"
    first, second = at_once(scene.gate, lambda: scene.gate(f"--junitxml={report}", branch=branch))
    assert_no_mixed_record(scene)
    both = Ended(first.status or second.status, first.output + second.output)
    # The one that came last is what staging serves; that the table speaks of one, it is gated once more.
    last = scene.gate()
    return both if both.status else Ended(last.status, both.output + last.output)


@fault(
    "a promotion at the same time as another branch's gate",
    not_promoted("the tag moved after the gate", staging="third"),
)
def gate_and_promotion(scene: Scene) -> Ended:
    gate = scene.gate()
    assert gate.status == 0, gate.output
    branch = second_branch(scene)
    began = scene.pipeline.folder / "began"
    scene.during(f": >{began}; sleep 1", mode="--build-staging")

    def promote() -> Ended:
        while not began.exists():
            time.sleep(0.02)
        return scene.pipeline.promote()

    report = scene.pipeline.folder / "other.xml"
    second, promotion = at_once(lambda: scene.gate(f"--junitxml={report}", branch=branch), promote)
    assert second.status == 0, second.output
    assert_no_mixed_record(scene)
    return promotion


# --- the caller's environment, secrets --------------------------------------------------------------------------------


@fault("DOCKER_HOST, DOCKER_CONTEXT, COMPOSE_* of the caller point elsewhere", passes(), hosts=BOTH)
def callers_environment(scene: Scene) -> Ended:
    scene.pipeline.more_environment = {
        "DOCKER_HOST": "unix:///nowhere.sock",
        "DOCKER_CONTEXT": "elsewhere",
        "DOCKER_CONFIG": "/nowhere",
        "DOCKER_TLS_VERIFY": "1",
        "COMPOSE_FILE": "/nowhere.yaml",
        "COMPOSE_PROJECT_NAME": "elsewhere",
        "COMPOSE_PROFILES": "elsewhere",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    ended = scene.gate()
    engine = scene.copy.engine.docker("info", "--format", "{{.ID}}")
    assert scene.pipeline.properties()["orchestrator.engine_id"] == engine
    return ended


SECRETS = {name: f"s3cret-{name}-of-nobody" for name in ("caller", "argument", "container")}


def leak_everywhere(scene: Scene, status: int) -> Ended:
    """Let build and check print every secret; return how the gate ended, without a secret anywhere."""
    scene.pipeline.more_environment = {"CI_TOKEN": SECRETS["caller"]}
    build = {"context": ".", "args": {"DEPLOY_PASSWORD": SECRETS["argument"]}}
    service = {"profiles": ["staging"], "image": "any", "build": build}
    text = (scene.worktree / "Dockerfile").read_text()
    leak = f'ARG DEPLOY_PASSWORD\nRUN echo "built with ${{DEPLOY_PASSWORD}} for {SECRETS["caller"]}"\n{CMD}'
    scene.commit(
        {
            "compose.yaml": json.dumps({"services": {"orchestrator-staging": service}}),
            "Dockerfile": text.replace("python:3.12-slim", scene.copy.engine.base_image).replace(CMD, leak),
            CHECK: f"import os\nprint(os.environ['API_KEY'], {SECRETS['caller']!r})\nraise SystemExit({status})\n",
        }
    )
    scene.override_staging(f"environment: {{API_KEY: {SECRETS['container']}}}")
    ended = scene.gate("-v", "-rA", "--tb=long")
    files = [path for path in scene.pipeline.folder.rglob("*") if path.is_file() and path.name != "imagefresh.toml"]
    for name, secret in SECRETS.items():
        assert secret not in ended.output, f"the secret of the {name} is printed"
        leaking = [path for path in files if secret.encode() in path.read_bytes()]
        assert not leaking, f"the secret of the {name} is written: {leaking}"
    return ended


@fault("secrets in build output, check output and environment, of a gate that passes", passes(), hosts=BOTH)
def secrets_of_a_pass(scene: Scene) -> Ended:
    return leak_everywhere(scene, 0)


@fault(
    "secrets in build output, check output and environment, of a gate that refuses",
    refused("the staging check", staging="new"),
)
def secrets_of_a_refusal(scene: Scene) -> Ended:
    return leak_everywhere(scene, 1)
