"""The HTTP side: /health, /ready, /version and /jobs on one port."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType

from orchestrator.jobs import Runner


class Service(ThreadingHTTPServer):
    """The server and what its requests share."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], *, revision: str, role: str, warmup: float) -> None:
        super().__init__(address, Handler)
        self.about = {"service": "orchestrator", "revision": revision, "role": role}
        self.runner = Runner()
        self.ready = threading.Event()
        self._warmup = warmup

    def warm_up(self) -> None:
        """Get ready to work; `/ready` says 503 until then."""
        time.sleep(self._warmup)
        self.runner.start()
        self.ready.set()

    def stop(self, _signal: int, _frame: FrameType | None) -> None:
        """End `serve_forever`, which runs in the very thread that handles signals and would wait for itself."""
        threading.Thread(target=self.shutdown, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Service
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_GET(self) -> None:
        """Answer the questions of load balancers, people and checks."""
        if self.path == "/health":
            self._answer(200, {"status": "ok"})
        elif self.path == "/ready":
            ready = self.server.ready.is_set()
            self._answer(200 if ready else 503, {"ready": ready})
        elif self.path == "/version":
            self._answer(200, self.server.about)
        elif self.path.startswith("/jobs/"):
            self._show_job(self.path.removeprefix("/jobs/"))
        else:
            self._answer(404, {"error": f"no such path: {self.path}"})

    def do_POST(self) -> None:
        """Take a job: `{"steps": ["checkout", "test"]}`."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/jobs":
            self._answer(404, {"error": f"no such path: {self.path}"})
        elif (steps := _parse_steps(body)) is None:
            self._answer(400, {"error": "expected a JSON object with a list of texts named steps"})
        else:
            self._answer(202, self.server.runner.submit(steps).as_json())

    def log_message(self, format: str, *args: object) -> None:
        """Write one plain line per request; the engine keeps the time."""
        print(format % args, flush=True)

    def _show_job(self, number: str) -> None:
        job = self.server.runner.find(int(number)) if number.isdecimal() else None
        if job is None:
            self._answer(404, {"error": f"no such job: {number}"})
        else:
            self._answer(200, job.as_json())

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _parse_steps(body: bytes) -> list[str] | None:
    try:
        content = json.loads(body)
    except ValueError:
        return None
    steps = content.get("steps") if isinstance(content, dict) else None
    if isinstance(steps, list) and all(isinstance(step, str) for step in steps):
        return steps
    return None


def main() -> None:
    """Serve on PORT until SIGTERM or SIGINT, then end at once with status 0.

    PID 1 has no default reaction to SIGTERM: without a handler the engine waits its whole grace period and kills.
    """
    service = Service(
        ("", int(os.environ.get("PORT", "8000"))),
        revision=os.environ.get("GIT_SHA", ""),
        role=os.environ.get("ROLE", ""),
        warmup=float(os.environ.get("WARMUP_SECONDS", "0.2")),
    )
    signal.signal(signal.SIGTERM, service.stop)
    signal.signal(signal.SIGINT, service.stop)
    threading.Thread(target=service.warm_up, daemon=True).start()
    with service:
        service.serve_forever(poll_interval=0.05)
