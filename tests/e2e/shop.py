"""A repo that makes two images: `web` and `worker`, each with staging and production of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.support import Engine, Orchestrator

PARTS = ("web", "worker")


class Shop(Orchestrator):
    """A copy of the example service under the name `shop`, twice: one image with PART=web, one with PART=worker."""

    name = "shop"

    def __init__(self, engine: Engine, folder: Path, *, unique: str, free_port: Callable[[], int]) -> None:
        self.staging_ports = {part: free_port() for part in PARTS}
        self.prod_ports = {part: free_port() for part in PARTS}
        ports = {"staging_port": self.staging_ports["web"], "prod_port": self.prod_ports["web"]}
        super().__init__(engine, folder, branch="feature/two", unique=unique, **ports)

    def _make_repo(self) -> None:
        super()._make_repo()
        common = (self.repo / "Dockerfile").read_text()
        dockerfiles = {f"{part}/Dockerfile": f"{common}ENV PART={part}\n" for part in PARTS}
        # JSON is YAML, and nobody has to count blanks.
        services = {name: body for part in PARTS for name, body in self._services(part).items()}
        self.git("rm", "--quiet", "Dockerfile")
        self.commit({"compose.yaml": json.dumps({"services": services}), **dockerfiles}, "two images")

    def _services(self, part: str) -> dict[str, object]:
        build = {"context": ".", "dockerfile": f"{part}/Dockerfile"}
        return {
            f"{part}-staging": {
                "profiles": ["staging"],
                "container_name": f"{self.project}-{part}-staging",
                "image": f"{self.project}-{part}-staging-image",
                "build": build,
                "environment": {"ROLE": "staging"},
                "ports": [f"127.0.0.1:{self.staging_ports[part]}:8000"],
            },
            part: {
                "container_name": f"{self.project}-{part}-prod",
                "image": f"${{{part.upper()}_PROD_IMAGE:-unpromoted:run-deploy-hook}}",
                "pull_policy": "never",
                "environment": {"ROLE": "production"},
                "ports": [f"127.0.0.1:{self.prod_ports[part]}:8000"],
            },
        }

    def _make_compose_dir(self) -> None:
        self.compose_dir.mkdir(parents=True)
        shutil.copy(self.worktree / "compose.yaml", self.compose_dir)
        self.env_file.write_text(f"COMPOSE_PROJECT_NAME={self.project}\n")

    def settings(self, **changes: object) -> dict[str, object]:
        """Return the settings of this copy: two target tables of one repo."""
        targets = {part: self._target(part) for part in PARTS}
        return super().settings(**{"repos": ["shop"], "targets": {"shop": None, **targets}, **changes})

    def _target(self, part: str) -> dict[str, object]:
        return {
            "repo": "shop",
            "image": f"{self.project}-{part}-staging-image",
            "prod_image": f"{self.project}-{part}-prod-image",
            "staging": {"container": f"{self.project}-{part}-staging", "port": self.staging_ports[part]},
            "prod": {"port": self.prod_ports[part], "pin": f"{part.upper()}_PROD_IMAGE"},
        }
