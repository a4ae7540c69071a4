"""A real host whose production runs behind nginx."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.hook.harness import Outcome, RealHost, changed
from tests.support import ROOT, Orchestrator, run

SERVICE = "orchestrator"
PROXY = "orchestrator-proxy"
PORT = 8000
"""On which the service's containers listen."""

NGINX = f"""
error_log stderr;
events {{}}
http {{
  access_log off;
  upstream {SERVICE} {{
    include /etc/nginx/imagefresh/{SERVICE}.conf;
  }}
  server {{
    listen 80;
    location / {{
      proxy_pass http://{SERVICE};
    }}
  }}
}}
"""

_NAMED = """    container_name: ${PROD_NAME:-orchestrator}
"""
_PORTS = """    ports:
      - "127.0.0.1:${PROD_PORT:-8500}:8000"
"""
_PROXY = f"""
  {PROXY}:
    image: %s
    pull_policy: never
    restart: unless-stopped
    stop_signal: SIGQUIT
    volumes:
      - ./nginx.conf:/etc/nginx/nginx.conf:ro
      - ./.imagefresh/proxy:/etc/nginx/imagefresh:ro
    ports:
      - "127.0.0.1:${{PROD_PORT}}:80"
"""

# A path that takes a while, for requests that are under way.
SLOW = "/slow"
_SLOW_SECONDS = 2
_FIRST_PATH = """        if self.path == "/health":
"""
_SLOW_PATH = f"""        if self.path == "{SLOW}":
            time.sleep({_SLOW_SECONDS})
            self._answer(200, self.server.about)
        elif self.path == "/health":
"""


def put_behind_proxy(copy: Orchestrator) -> None:
    """Let nginx stand before the copy's production, and commit a service that also has the path SLOW."""
    image = run([ROOT / "scripts/nginx-image.sh"], env=copy.engine.env).stdout.strip()
    compose_file = copy.compose_dir / "compose.yaml"
    head, production = compose_file.read_text().split("\n  orchestrator:\n")
    production = production.replace(_NAMED, "").replace(_PORTS, "")
    compose_file.write_text(f"{head}\n  orchestrator:\n{production}{_PROXY % image}")
    (copy.compose_dir / "nginx.conf").write_text(NGINX)
    path = copy.worktree / "src/orchestrator/service.py"
    text = path.read_text()
    assert _FIRST_PATH in text
    copy.commit({"src/orchestrator/service.py": text.replace(_FIRST_PATH, _SLOW_PATH)})


class ProxiedHost(RealHost):
    """The example service on a real engine, its production behind nginx."""

    def __init__(self, copy: Orchestrator, folder: Path) -> None:
        super().__init__(copy, folder)
        self.configuration = copy.compose_dir / "nginx.conf"
        put_behind_proxy(copy)

    @property
    def docker(self) -> Path:
        """The program of these tests."""
        found = shutil.which("docker")
        assert found
        return Path(found)

    def rollback(self, **changes: str | None) -> Outcome:
        """Call `--rollback` with changed variables; None leaves one out."""
        proofs = dict.fromkeys(["SOURCE_IMAGE", "EXPECTED_REVISION", "EXPECTED_IMAGE_ID"])
        return self.hook.call("--rollback", changed(self.promotion_variables(), {**proofs, **changes}))

    def promotion_variables(self) -> dict[str, str]:
        proxy = {"PROD_PROXY": PROXY, "PROD_PROXY_PORT": str(PORT), "PROD_DRAIN": "1"}
        return {**super().promotion_variables(), **proxy}

    @property
    def upstream(self) -> Path:
        """The file by which the hook leads the proxy."""
        return self.copy.compose_dir / ".imagefresh" / "proxy" / f"{SERVICE}.conf"

    def containers(self, service: str = SERVICE) -> list[str]:
        """The IDs of all containers of a service, in any state."""
        names = [f"com.docker.compose.project={self.copy.project}", f"com.docker.compose.service={service}"]
        filters = [word for name in names for word in ("--filter", f"label={name}")]
        return self.engine.docker("container", "ls", "--all", "--quiet", "--no-trunc", *filters).split()

    def production(self) -> list[str]:
        """By what a touched production would be seen: its containers, the proxy's, where that leads, tag and pin."""
        ids = [*self.containers(), *self.containers(PROXY)]
        fields = (".Id", ".Image", ".State.StartedAt", ".State.Status", ".RestartCount")
        seen = [self.container(each, field) for each in ids for field in fields]
        upstream = self.upstream.read_text() if self.upstream.exists() else ""
        return [*seen, upstream, self.image_of(self.copy.prod_image), self.copy.env_file.read_text()]
