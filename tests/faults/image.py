"""Faults of the build and the image."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from tests.faults.fault import BOTH, Section, not_promoted, passes, refused, unknown
from tests.faults.scene import NEWS, Scene
from tests.gate_folder import Ended
from tests.support import run

SECTION = Section("The build and the image")
fault = SECTION.fault

LABEL = "org.opencontainers.image.revision"
STAMPS = ('ARG GIT_SHA=""\n', f'LABEL {LABEL}="${{GIT_SHA}}"\n', 'ENV GIT_SHA="${GIT_SHA}"\n')
CMD = 'CMD ["python3", "-m", "orchestrator"]'

# --- the revision label -----------------------------------------------------------------------------------------------


def unstamped(scene: Scene) -> str:
    """Return the commit's Dockerfile without a word about revisions."""
    text = (scene.worktree / "Dockerfile").read_text()
    for line in STAMPS:
        assert line in text
        text = text.replace(line, "")
    return text


@fault("the compose folder lies in the worktree of the branch", refused("lies in the worktree of branch"))
def compose_of_the_branch(scene: Scene) -> None:
    scene.configure(host={"repo_path": str(scene.worktree)})


@fault("the Dockerfile has neither ARG nor LABEL", passes(staging="unnamed"), hosts=BOTH)
def no_label(scene: Scene) -> Ended:
    scene.commit({"Dockerfile": unstamped(scene)})
    scene.configure_staging(check_command=["true"])
    return gate_and_read_label(scene)


@fault("ARG before FROM only", passes(staging="unnamed"))
def argument_before_from(scene: Scene) -> Ended:
    text = unstamped(scene).replace("USER ", f'LABEL {LABEL}="${{GIT_SHA}}"\nUSER ')
    scene.commit({"Dockerfile": f"ARG GIT_SHA\n{text}"})
    scene.configure_staging(check_command=["true"])
    return gate_and_read_label(scene)


@fault("ARG and LABEL in another stage", passes(staging="unnamed"))
def argument_in_another_stage(scene: Scene) -> Ended:
    other = f'FROM ${{BASE}} AS other\nARG GIT_SHA\nLABEL {LABEL}="${{GIT_SHA}}"\n'
    text = unstamped(scene).replace("FROM ${BASE}\n", f"{other}FROM ${{BASE}}\n")
    scene.commit({"Dockerfile": text})
    scene.configure_staging(check_command=["true"])
    return gate_and_read_label(scene)


@fault("the base image bears the label of another commit", passes(staging="unnamed"))
def inherited_label(scene: Scene) -> Ended:
    scene.commit({"Dockerfile": unstamped(scene).replace("FROM ${BASE}\n", f"FROM {labelled_base(scene)}\n")})
    scene.configure_staging(check_command=["true"])
    return gate_and_read_label(scene)


def labelled_base(scene: Scene) -> str:
    """Return a base image that claims to be the old revision."""
    name = f"{scene.copy.project}-base"
    build_from(scene, name, f"FROM {scene.copy.engine.base_image}\nLABEL {LABEL}={scene.old}\n")
    return name


def build_from(scene: Scene, name: str, dockerfile: str, *options: str) -> None:
    """Build an image by hand, from one Dockerfile."""
    folder = scene.pipeline.folder.parent / name
    folder.mkdir()
    (folder / "Dockerfile").write_text(dockerfile)
    run(["docker", "build", "--quiet", "--tag", name, *options, folder], env=by_hand(scene))


def by_hand(scene: Scene) -> dict[str, str]:
    """Return the environment in which a person builds."""
    return {**scene.copy.engine.env, "DOCKER_BUILDKIT": "0"}


def gate_and_read_label(scene: Scene) -> Ended:
    """Run the gate; the image that it proved must bear this build's own label."""
    ended = scene.gate()
    assert scene.label_of(scene.copy.staging_image) == scene.new
    return ended


# --- another image takes the place of the validated one ---------------------------------------------------------------

MOVED = "expected sha256:[0-9a-f]{64}, observed sha256:[0-9a-f]{64}"


def then_promote(scene: Scene, *commands: list[str]) -> Ended:
    """Run the gate, which must pass, then docker commands by hand, then the promotion."""
    gate = scene.gate()
    assert gate.status == 0, gate.output
    for command in commands:
        scene.copy.engine.docker(*command)
    return scene.pipeline.promote()


@fault(
    "the staging tag is moved while the gate runs",
    refused(f"the hook refuses the validated image: .*{MOVED}", staging="new"),
)
def tag_moves(scene: Scene) -> None:
    engine = scene.copy.engine
    scene.during(f"docker --host {engine.docker_host} tag {scene.copy.prod_image} {scene.copy.staging_image}")


@fault(
    "other code, built with the expected revision as argument, takes the staging tag", not_promoted(MOVED), hosts=BOTH
)
def other_code_same_argument(scene: Scene) -> Ended:
    revision = scene.new
    (scene.worktree / NEWS).write_text("never committed")
    other = scene.copy.build_image(f"{scene.copy.project}-other", revision)
    return then_promote(scene, ["tag", other, scene.copy.staging_image])


@fault("a hot-fixed container, committed with the expected label, takes the staging tag", not_promoted(MOVED))
def committed_container(scene: Scene) -> Ended:
    copy = scene.copy
    return then_promote(
        scene,
        ["exec", "--user", "0", copy.staging_container, "sh", "-c", "echo fixed >/app/src/orchestrator/NEWS"],
        ["commit", "--change", f"LABEL {LABEL}={scene.new}", copy.staging_container, copy.staging_image],
    )


@fault("the same commit is built again on a moved base", not_promoted(MOVED))
def moved_base(scene: Scene) -> Ended:
    base = f"{scene.copy.project}-base"
    scene.copy.engine.docker("tag", scene.copy.engine.base_image, base)
    text = (scene.worktree / "Dockerfile").read_text().replace("FROM ${BASE}\n", f"FROM {base}\n")
    scene.commit({"Dockerfile": text})
    gate = scene.gate()
    assert gate.status == 0, gate.output
    build_from(scene, f"{base}-newer", f"FROM {scene.copy.engine.base_image}\nENV MOVED=1\n")
    scene.copy.engine.docker("tag", f"{base}-newer", base)
    scene.copy.build_image(scene.copy.staging_image)
    return scene.pipeline.promote()


@fault("the image is pruned before the promotion", not_promoted("observed none at", staging="nothing"))
def pruned(scene: Scene) -> Ended:
    copy = scene.copy
    return then_promote(
        scene, ["rm", "--force", copy.staging_container], ["image", "rm", "--force", copy.staging_image]
    )


# --- the files of the commit ------------------------------------------------------------------------------------------


def declare_content(scene: Scene) -> None:
    """Declare that the image holds the commit's sources, byte for byte."""
    scene.configure(targets={scene.copy.name: {"content": {"/app/src": "src"}}})


@fault(
    ".dockerignore drops a tracked folder that is declared as content",
    refused(r"the image differs from the commit: /app/src/more/jobs.py \(missing\)", staging="new"),
)
def dockerignore(scene: Scene) -> None:
    declare_content(scene)
    (scene.worktree / "src/more").mkdir()
    scene.commit({"src/more/jobs.py": "", ".dockerignore": "src/more\n"})


@fault(
    "the Dockerfile edits a file that is declared as content",
    refused(r"the image differs from the commit: /app/src/orchestrator/NEWS \(other bytes\)", staging="new"),
    hosts=BOTH,
)
def edited_by_dockerfile(scene: Scene) -> None:
    declare_content(scene)
    scene.replace("Dockerfile", CMD, f"USER 0\nRUN echo edited >/app/{NEWS}\nUSER 65534\n{CMD}")


@fault(
    "the Dockerfile adds a file to what is declared as content",
    refused(r"the image differs from the commit: /app/src/added.py \(extra\)", staging="new"),
)
def added_by_dockerfile(scene: Scene) -> None:
    declare_content(scene)
    scene.replace("Dockerfile", CMD, f"USER 0\nRUN touch /app/src/added.py\nUSER 65534\n{CMD}")


# --- BuildKit's memory ------------------------------------------------------------------------------------------------

BUILDKIT_CLIENT = Path("/usr/bin/docker")
"""The client of the engine's own package: up to version 22 it has BuildKit built in."""
BUILDKIT_LINE = re.compile(r"^#[0-9]+ \[", re.MULTILINE)


def use_buildkit(scene: Scene) -> None:
    """Let the hook have a docker client that builds with BuildKit, on whatever engine."""
    if scene.copy.engine.run("buildx", "version", check=False).returncode != 0:
        tools = scene.pipeline.folder.parent / "tools"
        tools.mkdir()
        (tools / "docker").symlink_to(BUILDKIT_CLIENT)
        scene.replace_in_hook("readonly SAFE_PATH='", f"readonly SAFE_PATH='{tools}:")


@fault("BuildKit knows a file of the same name, size and time", passes())
def stale_copy(scene: Scene) -> Ended:
    use_buildkit(scene)
    ended = gate_with_equal_times(scene)
    assert BUILDKIT_LINE.search(scene.pipeline.build_log()), scene.pipeline.build_log()
    return ended


def gate_with_equal_times(scene: Scene) -> Ended:
    """Gate commits whose one file differs in its bytes alone: staging must have those of the commit each time."""
    kept = scene.copy.compose_dir / ".imagefresh/.checkout/orchestrator/orchestrator-staging/tree" / NEWS
    scene.commit({NEWS: "the first"})
    ended = gate_and_read_news(scene, "the first")
    first = kept.stat()
    for news in ("the other", "the first", "the third"):
        # Somebody makes the kept file look like the one that the builder knows.
        os.utime(kept, ns=(first.st_atime_ns, first.st_mtime_ns))
        scene.commit({NEWS: news})
        ended = gate_and_read_news(scene, news)
    return ended


def gate_and_read_news(scene: Scene, expected: str) -> Ended:
    ended = scene.gate()
    assert ended.status == 0, ended.output
    assert scene.copy.engine.run("exec", scene.copy.staging_container, "cat", f"/app/{NEWS}").stdout == expected
    return ended


# --- what reaches out of the commit -----------------------------------------------------------------------------------


def commit_build(scene: Scene, **section: object) -> None:
    """Let the branch's own compose file say how staging is built."""
    service = {"profiles": ["staging"], "image": "any", "build": {"context": ".", **section}}
    services: dict[str, object] = {"services": {"orchestrator-staging": service}}
    secrets = section.get("secrets")
    if secrets:
        services["secrets"] = {"host": {"file": "/etc/hostname"}}
    scene.commit({"compose.yaml": json.dumps(services)})


REACHING: dict[str, tuple[dict[str, object], str]] = {
    "builds from /": ({"context": "/"}, "context"),
    "builds from a folder above": ({"context": "../.."}, "context"),
    "takes a Dockerfile of the host": ({"dockerfile": "/etc/hostname"}, "dockerfile"),
    "adds a host folder as a context": ({"additional_contexts": {"host": "/etc"}}, "additional_contexts"),
    "asks for a host file as a secret": ({"secrets": ["host"]}, "secrets"),
    "asks for the host's ssh agent": ({"ssh": ["default"]}, "ssh"),
    "asks for the host's network": ({"network": "host"}, "network"),
    "asks for privileges": ({"privileged": True}, "privileged"),
    "asks for entitlements": ({"entitlements": ["security.insecure"]}, "entitlements"),
}


def enter_reaching(name: str, section: dict[str, object], key: str) -> None:
    expected = refused(f"build section of compose service orchestrator-staging: {key} ")

    @fault(f"the branch's compose file {name}", expected, deployed=False)
    def reaching(scene: Scene) -> None:
        commit_build(scene, **section)


for each, (asked, named) in REACHING.items():
    enter_reaching(each, asked, named)


@fault("a link in the commit leads the build to the host's files", refused("expected a path inside the tree"))
def link_outside(scene: Scene) -> None:
    (scene.worktree / "outside").symlink_to("/etc")
    scene.commit({})
    commit_build(scene, context="./outside")


# --- the build fails --------------------------------------------------------------------------------------------------


@fault(
    "the build fails",
    refused("the build of orchestrator at [0-9a-f]{40}: expected an image, observed: .*no-such-compiler: not found"),
    hosts=BOTH,
)
def build_fails(scene: Scene) -> None:
    scene.replace("Dockerfile", CMD, f"RUN no-such-compiler --all\n{CMD}")


@fault(
    "the disk is full while the image is built", refused("expected an image, observed: .*[Nn]o space left on device")
)
def disk_full_in_build(scene: Scene) -> None:
    scene.replace("Dockerfile", CMD, f"RUN cat /dev/zero >/dev/shm/full\n{CMD}")


@fault(
    "the disk is full while the commit is exported",
    refused("(expected to write its files|expected room for).*(look for|free some) (free )?space"),
    root=True,
)
def disk_full_in_export(scene: Scene) -> None:
    small = scene.copy.compose_dir / ".imagefresh"
    small.mkdir(mode=0o700)
    run(["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs", small])
    scene.later(lambda: run(["umount", small]))
    scene.commit({f"src/big-{number}": "0123456789abcdef" * 4096 + str(number) for number in range(16)})


@fault("a build that hangs", unknown("expected an end within BUILD_TIMEOUT=2 s"), hosts=BOTH, bound=2)
def build_hangs(scene: Scene) -> None:
    scene.replace("Dockerfile", CMD, f"RUN sleep 3600\n{CMD}")
    scene.configure(timeouts={"build": 2})
