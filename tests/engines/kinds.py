"""The engines and builders of scripts/engines.sh: what each is, and the tests that run there."""

from __future__ import annotations

from dataclasses import dataclass

HERE = "tests/engines/test_engines.py"


def fault(name: str) -> str:
    """Return the node ID of a fault test."""
    return f"tests/faults/test_faults.py::test_fault[{name}-local]"


SUPPORTED = (
    f"{HERE}::test_the_image_is_this_builds_own_and_is_promoted",
    "tests/e2e/test_gate.py::test_an_image_that_took_the_staging_tag_since_is_not_promoted",
    "tests/e2e/test_content.py::test_the_commits_own_files_pass_and_are_counted[local]",
    "tests/e2e/test_content.py::test_every_file_that_is_not_the_commits_is_named",
    f"{HERE}::test_no_old_file_is_taken_for_a_new_one",
    fault("other code, built with the expected revision as argument, takes the staging tag"),
    fault("a hot-fixed container, committed with the expected label, takes the staging tag"),
    fault("the build fails"),
    fault("staging uses the host's network"),
    fault("staging uses the host's network, and a foreign process owns its port"),
)
"""What must hold on every engine on which a gate can pass."""

REFUSED = (f"{HERE}::test_an_engine_without_an_id_of_its_own_is_refused",)


@dataclass(frozen=True)
class Kind:
    """One engine with one builder."""

    name: str
    """As scripts/engines.sh knows it."""
    builder: str
    """`classic` or `BuildKit`; none is asked where the engine is refused."""
    by_manifest: bool = False
    """Whether the image ID is the digest of the manifest (containerd image store), not that of the configuration."""
    tests: tuple[str, ...] = SUPPORTED


KINDS = {
    kind.name: kind
    for kind in (
        Kind("classic", "classic"),
        Kind("buildkit", "BuildKit"),
        Kind("buildx", "BuildKit"),
        Kind("docker26", "BuildKit"),
        Kind("containerd", "BuildKit", by_manifest=True),
        Kind("containerd-classic", "classic", by_manifest=True),
        Kind("podman", "none", tests=REFUSED),
    )
}
