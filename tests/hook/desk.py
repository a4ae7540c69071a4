"""The command line of people, in a folder with settings for a pretended host."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.gate_folder import Ended
from tests.hook.harness import RUN_ID, STAGING_ID, Clone, PretendedHost
from tests.support import clean_environment, run

IMAGEFRESH = str(Path(sys.executable).with_name("imagefresh"))

SETTINGS = """
self_hosting_repo = "shop"
repos_dir = "repos"
settle = 0
[host]
hook = "{hook}"
repo_path = "{folder}"
[targets.shop]
repo = "shop"
prod_image = "shop-shop"
[targets.shop.prod]
port = 43100
pin = "PIN"
"""


class Desk:
    """A folder with settings for a pretended host, and the command line in it."""

    def __init__(self, host: PretendedHost, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.clone = Clone(folder / "repos" / "shop")
        (folder / "imagefresh.toml").write_text(SETTINGS.format(hook=host.hook.path, folder=host.compose_dir))

    def imagefresh(self, *argv: str) -> Ended:
        """Run a command to its end, as a log would show it."""
        command = [IMAGEFRESH, *argv, "--repo", "shop"]
        done = run(command, cwd=self.folder, env=clean_environment(COLUMNS="220"), check=False)
        return Ended(done.returncode, done.stdout + done.stderr)

    def read(self, *argv: str) -> Any:
        """Return the one JSON document of a command that ended with 0."""
        status, document = self.answer(*argv)
        assert status == 0, document
        return document

    def answer(self, *argv: str, **environment: str) -> tuple[int, Any]:
        """Return exit status and JSON document of a command."""
        command = [IMAGEFRESH, *argv, "--json", "--repo", "shop"]
        done = run(command, cwd=self.folder, env=clean_environment(**environment), check=False)
        return done.returncode, json.loads(done.stdout)

    def gate(self) -> None:
        """Leave what a complete gate of the clone's commit leaves here and on the host."""
        revision = self.clone.revision
        self.host.set(labels={**self.host.state["labels"], STAGING_ID: json.dumps(revision)})
        record = {"complete": True, "target": "shop", "revision": revision, "image_id": STAGING_ID}
        folder = self.folder / ".imagefresh" / "shop" / RUN_ID / "shop"
        folder.mkdir(parents=True)
        (folder / "chain.json").write_text(json.dumps(record))
