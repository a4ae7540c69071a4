"""The programs `docker` and `curl` of a pretended host; small wrappers call `main`.

The state is one JSON file: what is on the host, which commands fail, and every call with its environment. Only what the
deploy hook asks is understood; anything else ends with status 99, so that a new question of the hook cannot go unseen.

A test calls it dozens of times, so it imports little, and late.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    State = dict[str, Any]


def main(tool: str, path: str, argv: list[str]) -> int:
    """Answer one call; what it changed is written back to the state."""
    # A call that is ended must not leave half of a state behind.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with open(path, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        state = json.load(file)
        state["calls"].append({"argv": [tool, *argv], "env": dict(os.environ)})
        fault = take_fault(state, " ".join([tool, *argv]))
        status = 0 if fault else answer(state, tool, argv)
        file.seek(0)
        file.truncate()
        json.dump(state, file)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if fault:
        time.sleep(fault.get("sleep", 0))
        sys.stderr.write(fault.get("stderr", "it was told to fail\n"))
        return int(fault.get("status", 1))
    sys.stdout.flush()
    if tool == "docker" and argv[:2] == ["container", "exec"]:
        time.sleep(state["check"].get("sleep", 0))
    return status


def take_fault(state: State, line: str) -> State | None:
    """Return the first fault whose pattern is found in the call, and count it. `after` lets that many calls pass."""
    for fault in state["faults"]:
        if re.search(fault["match"], line):
            fault["seen"] = fault.get("seen", 0) + 1
            if fault.get("after", 0) < fault["seen"] <= fault.get("after", 0) + fault.get("times", 1000):
                return dict(fault)
    return None


def answer(state: State, tool: str, argv: list[str]) -> int:
    """Do what the call asks, print what the real program would print, and return its status."""
    if tool == "curl":
        return probe(state, argv[-1])
    if argv == ["--version"]:
        print(f"Docker version {state['client']}, build 0123456")
        return 0
    words = [word for word in argv if not word.startswith("-")]
    group = " ".join(words[:2])
    if words[0] == "compose":
        return compose(state, argv)
    if words[0] == "build":
        return build(state, argv)
    if words[0] == "import":
        return import_image(state, argv)
    if words[0] == "info":
        print(info(state, argv[-1]))
        return 0
    actions = {
        "image inspect": inspect_image,
        "image tag": tag_image,
        "image rm": remove_image,
        "container inspect": inspect_container,
        "container ls": list_containers,
        "container exec": run_check,
        "container logs": lambda *_: print("the log of the container"),
        "container restart": lambda *_: None,
        "container stop": stop_container,
        "container create": create_container,
        "container rm": remove_container,
        "buildx version": lambda *_: 0 if state["buildx"] else fail("unknown command: docker buildx"),
    }
    return int(actions[group](state, argv) or 0) if group in actions else 99


def info(state: State, template: str) -> str:
    """Return what the engine says about itself, for a template of the fields that it knows."""
    fields = {"ID": "engine_id", "Plugins.Log": "log_drivers", "DriverStatus": "driver_status"}
    for field, key in fields.items():
        template = template.replace("{{." + field + "}}", state[key])
    return re.sub(r"{{range \.ClientInfo\.Plugins}}.*{{end}}", lambda _: state["compose_program"], template)


def fail(text: str, status: int = 1) -> int:
    sys.stderr.write(text + "\n")
    return status


def probe(state: State, url: str) -> int:
    port = url.split("/")[2].rpartition(":")[2]
    images = [one["image"] for one in state["containers"] if port in [each[2] for each in one["ports"]]]
    code = state["answers"].pop(0) if len(state["answers"]) > 1 else state["answers"][0]
    print(state["answer_of"].get(images[0], code) if images else code, end="")
    return 0


def full(reference: str) -> str:
    return reference if reference.startswith("sha256:") or ":" in reference else f"{reference}:latest"


def inspect_image(state: State, argv: list[str]) -> int:
    name = full(argv[-1])
    image = name if name in state["labels"] else state["images"].get(name)
    if image is None:
        return fail(f"Error response from daemon: No such image: {argv[-1]}")
    if "{{json .Cmd}}" in option(argv, "--format")[0]:
        print("null", '["run"]', '""', "/volume", sep="\n", end="\n\n")
    elif "{{len .RepoTags}}" in option(argv, "--format")[0]:
        print(list(state["images"].values()).count(image), 0)
    elif option(argv, "--format") == ["{{.Id}}"]:
        print(image)
    else:
        print(f"{image} {state['labels'][image]}")
    return 0


def tag_image(state: State, argv: list[str]) -> None:
    state["images"][full(argv[-1])] = argv[-2] if argv[-2] in state["labels"] else state["images"][full(argv[-2])]


def remove_image(state: State, argv: list[str]) -> int:
    names = [full(word) for word in argv[2:] if not word.startswith("-")]
    if names[0] in [one["image"] for one in state["containers"]]:
        return fail(f"conflict: unable to delete {names[0]}: image is being used by a container")
    if names[0] in state["labels"]:
        del state["labels"][names[0]]
        return 0
    missing = [name for name in names if state["images"].pop(name, None) is None]
    return fail(f"Error: No such image: {missing[0]}") if missing else 0


def option(argv: list[str], name: str) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv) if word == name]


def pipes(folder: str, names: list[str]) -> list[str]:
    """Return what a builder does not read."""
    import stat

    return [name for name in names if stat.S_ISFIFO(os.lstat(os.path.join(folder, name)).st_mode)]


def build(state: State, argv: list[str]) -> int:
    """Keep a copy of the context, meddled with or not, and pretend an image whose ID follows from the arguments."""
    import shutil

    for path, text in state["meddling"].items():
        with open(os.path.join(argv[-1], path), "w") as file:
            file.write(text)
    state["meddling"] = {}
    shutil.rmtree(state["context"], ignore_errors=True)
    shutil.copytree(argv[-1], state["context"], symlinks=True, ignore=pipes)
    state["dockerfile"] = os.path.relpath(option(argv, "--file")[0], argv[-1])
    print("Step 1/1 : the one line of the build", flush=True)
    label = json.dumps(option(argv, "--label")[0].split("=", 1)[1])
    image = "sha256:" + digest(json.dumps(option(argv, "--build-arg")))
    state["labels"][image] = state["stamped"] if state["stamped"] is not None else label
    state["images"][full(option(argv, "--tag")[0])] = image
    with open(option(argv, "--iidfile")[0], "w") as file:
        file.write(state["iid"] if state["iid"] is not None else image)
    for path in option(argv, "--metadata-file"):
        with open(path, "w") as file:
            json.dump({"containerimage.digest": state["told"] or image, **state["metadata"]}, file, indent=2)
    return 0


def import_image(state: State, argv: list[str]) -> int:
    """Take an archive from standard input, which must be an empty one, and pretend its image."""
    if any(sys.stdin.buffer.read()):
        return fail("this is no empty archive")
    change = [words.removeprefix("LABEL ") for words in option(argv, "--change")]
    image = "sha256:" + digest(json.dumps(argv))
    state["labels"][image] = json.dumps(change[0].split("=", 1)[1]) if change else ""
    if argv[-1] != "-":
        state["images"][full(argv[-1])] = image
    print(image)
    return 0


def digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def compose(state: State, argv: list[str]) -> int:
    if "--services" in argv:
        print("\n".join(state["always"]))
    elif "config" in argv:
        print(json.dumps(resolve(state), indent=2))
    elif "run" in argv:
        run_beside(state, argv)
    elif "up" in argv:
        up(state, argv)
    else:
        return 99
    return 0


def resolve(state: State) -> Any:
    value = os.environ.get("PIN", "")
    if not value and os.path.exists(".env"):
        found = re.findall(r"(?m)^\s*(?:export )?PIN\s*=\s*(.*)$", read(".env"))
        value = found[-1] if found else ""
    return json.loads(json.dumps(state["compose"]).replace("${PIN}", value or "unpromoted:run-deploy-hook"))


def run_beside(state: State, argv: list[str]) -> None:
    """Start one more container of a service, as `compose run` does, at a port that the engine chooses."""
    service, label = argv[-1], option(argv, "--label")[0]
    image = image_for(state, argv)
    container = {
        "id": digest(option(argv, "--name")[0]),
        "name": option(argv, "--name")[0],
        "image": image,
        "project": "project",
        "service": service,
        "oneoff": "True",
        "precheck": label.partition("=")[2],
        "ports": [[f"{option(argv, '--publish')[0].rpartition(':')[2]}/tcp", "127.0.0.1", "49153"]],
        **state["beside"],
    }
    state["containers"].append(container)


def image_for(state: State, argv: list[str]) -> str:
    """Return the image that a call of compose runs its service from."""
    override = [read(name) for name in option(argv, "-f") if name.endswith("override.yaml")]
    return str(
        re.findall(r'image: "(.*)"', override[0])[0] if override else resolve(state)["services"][argv[-1]]["image"]
    )


def up(state: State, argv: list[str]) -> None:
    service = argv[-1]
    section = state["compose"]["services"][service]
    image = image_for(state, argv)
    state["count"] += 1
    container = {
        "id": digest(str(state["count"])),
        "name": section.get("container_name", f"project-{service}-1"),
        "image": image,
        "project": "project",
        "service": service,
        "ports": [["8000/tcp", "127.0.0.1", port["published"]] for port in section.get("ports", [])],
        **state["after_up"].get(image, state["after_up"].get("", {})),
    }
    beside = [each for each in state["containers"] if each.get("oneoff") == "True"]
    state["containers"] = [each for each in state["containers"] if each["service"] != service] + beside
    state["containers"] += [container, *state["left_behind"]]


def inspect_container(state: State, argv: list[str]) -> int:
    found = [each for each in state["containers"] if each["id"] == argv[-1]]
    if not found:
        return fail(f"Error: No such container: {argv[-1]}")
    if "{{json .Cmd}}" in option(argv, "--format")[0]:
        told = {"entrypoint": None, "command": ["run"], "user": "", "mounts": [], **found[0]}
        lines = [*(json.dumps(told[key]) for key in ("entrypoint", "command", "user")), *told["mounts"]]
        print(*lines, sep="\n", end="\n\n")
        return 0
    one = {"status": "running", "exit": 0, "started": "2026-01-02T03:04:05Z", "restarts": 0, "network": "n", **found[0]}
    ports = "".join(f"{'|'.join(port)} " for port in one["ports"])
    print(one["id"], f"/{one['name']}", one["image"], one["status"], one["exit"], one["started"], sep="\n")
    print(one["restarts"], one["network"], one.get("health", ""), f"{ports}.", sep="\n")
    return 0


def list_containers(state: State, argv: list[str]) -> None:
    for one in state["containers"]:
        if all(matches(one, each) for each in option(argv, "--filter")):
            words = option(argv, "--format")[0] if "--format" in argv else "{{.ID}}"
            for field, value in {
                "{{.ID}}": one["id"],
                "{{.Names}}": one["name"],
                '{{.Label "com.docker.compose.project"}}': one["project"],
                '{{.Label "com.docker.compose.service"}}': one["service"],
                '{{.Label "com.docker.compose.oneoff"}}': one.get("oneoff", "False"),
                '{{.Label "imagefresh.kept-since"}}': one.get("kept-since", ""),
                '{{.Label "imagefresh.left-by"}}': one.get("left-by", ""),
            }.items():
                words = words.replace(field, value)
            print(words)


def matches(one: State, condition: str) -> bool:
    key, _, value = condition.partition("=")
    if key == "publish":
        return one.get("status", "running") == "running" and value in [port[2] for port in one["ports"]]
    if key == "name":
        return re.search(value, f"/{one['name']}") is not None
    label, _, wanted = value.partition("=")
    return bool(one.get(label.rpartition(".")[2], "False") == wanted)


def run_check(state: State, argv: list[str]) -> int:
    print(state["check"].get("output", "PASS"))
    return int(state["check"].get("status", 0))


def create_container(state: State, argv: list[str]) -> int:
    """Make a container that does not run, with its labels by the last part of their names."""
    name = option(argv, "--name")[0]
    if name in [one["name"] for one in state["containers"]]:
        return fail(f"Conflict. The container name {name} is already in use")
    labels = [label.partition("=") for label in option(argv, "--label")]
    container = {"id": digest(name), "name": name, "image": argv[-1], "status": "created", "ports": []}
    nobody = {"project": "", "service": ""}
    state["containers"].append({**container, **nobody, **{key.rpartition(".")[2]: value for key, _, value in labels}})
    return 0


def remove_container(state: State, argv: list[str]) -> int:
    left = [one for one in state["containers"] if one["id"] != argv[-1]]
    gone = len(left) < len(state["containers"])
    state["containers"] = left
    return 0 if gone else fail(f"Error: No such container: {argv[-1]}")


def stop_container(state: State, argv: list[str]) -> None:
    for one in state["containers"]:
        if one["id"] == argv[-1]:
            one["status"] = "exited"
