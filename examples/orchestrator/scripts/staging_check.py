"""The staging check: runs inside the staging container and prints TAP.

`--mode stub` asks the running service about itself; `--mode full` also has it do a job. Exit status 0 exactly when
every line says ok.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable

SERVICE = f"http://127.0.0.1:{os.environ.get('PORT', '8000')}"
READY_SECONDS = 30.0
JOB_SECONDS = 10.0


class Failed(Exception):
    """A check does not hold; the text says what was expected and what was observed."""


def ask(path: str, content: object = None) -> tuple[int, dict[str, object]]:
    """Return status and JSON body of one request: a POST where there is content, else a GET."""
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(SERVICE + path, data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, {}
    except (OSError, ValueError) as error:
        raise Failed(f"{path}: expected an answer, observed {error}") from error


def expect(name: str, expected: object, observed: object) -> None:
    """Raise Failed unless both are equal."""
    if expected != observed:
        raise Failed(f"{name}: expected {expected!r}, observed {observed!r}")


def wait_for(path: str, reached: Callable[[int, dict[str, object]], bool], seconds: float) -> dict[str, object]:
    """Return the first body that is good enough. Raises Failed after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        status, body = ask(path)
        if reached(status, body):
            return body
        if time.monotonic() >= deadline:
            raise Failed(f"{path}: not reached within {seconds:g} s, last observed {status} {body}")
        time.sleep(0.05)


def check_health() -> None:
    """The service answers."""
    status, body = ask("/health")
    expect("/health", (200, {"status": "ok"}), (status, body))


def check_ready() -> None:
    """The service gets ready to work."""
    wait_for("/ready", lambda status, _: status == 200, READY_SECONDS)


def check_revision() -> None:
    """The running code was built from the revision that its image was stamped with."""
    _, body = ask("/version")
    stamped = os.environ.get("GIT_SHA", "")
    if not re.fullmatch(r"[0-9a-f]{40}", stamped):
        raise Failed(f"GIT_SHA of the image: expected a full commit ID, observed {stamped!r}")
    expect("/version revision", stamped, body.get("revision"))


def check_role() -> None:
    """This is staging, not production."""
    expect("/version role", "staging", ask("/version")[1].get("role"))


def check_unknown_path() -> None:
    """What does not exist is not answered with a cheerful 200."""
    expect("/no-such-path", 404, ask("/no-such-path")[0])


def check_job() -> None:
    """A job is accepted and finished, its steps in order."""
    steps = ["checkout", "build", "test"]
    status, job = ask("/jobs", {"steps": steps})
    expect("/jobs", 202, status)
    finished = wait_for(f"/jobs/{job['id']}", lambda _, body: body.get("state") == "finished", JOB_SECONDS)
    expect("steps done", steps, finished.get("done"))


def check_bad_job() -> None:
    """A job that makes no sense is refused."""
    expect("/jobs with steps that are no texts", 400, ask("/jobs", {"steps": [1]})[0])


STUB = [check_health, check_ready, check_revision, check_role]
FULL = [*STUB, check_unknown_path, check_job, check_bad_job]


def run(number: int, check: Callable[[], None]) -> bool:
    """Run one check, print its TAP line and return whether it holds."""
    name = (check.__doc__ or check.__name__).rstrip(".")
    try:
        check()
    except Exception as problem:
        # A check that breaks down is a check that does not hold, and the lines after it still count.
        reason = " ".join(str(problem).split())
        print(f"not ok {number} - {name}\n# {type(problem).__name__}: {reason}", flush=True)
        return False
    print(f"ok {number} - {name}", flush=True)
    return True


def main() -> int:
    """Run the checks of one mode. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Check the service in this container; prints TAP.")
    parser.add_argument("--mode", choices=("stub", "full"), default="stub")
    checks = FULL if parser.parse_args().mode == "full" else STUB
    print(f"TAP version 13\n1..{len(checks)}", flush=True)
    results = [run(number, check) for number, check in enumerate(checks, start=1)]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
