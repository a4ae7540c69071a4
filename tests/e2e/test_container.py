"""What runs in staging is what was built: nothing replaces its program, its user or its files."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.e2e.pipeline import Pipeline, wait_until

REPLACED: dict[str, tuple[Mapping[str, object], str]] = {
    "command": (
        {"command": ["python3", "-m", "orchestrator", "--old"]},
        "what container .* runs is python3 -m orchestrator --old, expected python3 -m orchestrator; take it out",
    ),
    "entrypoint": (
        {"entrypoint": ["env", "OLD=1"], "command": ["python3", "-m", "orchestrator"]},
        "what container .* runs is env OLD=1 python3 -m orchestrator, expected python3 -m orchestrator",
    ),
    "user": ({"user": "0:0"}, "user of container .* is 0:0, expected 65534:65534"),
    "working folder": ({"working_dir": "/tmp"}, "working folder of container .* is /tmp, expected /app"),
    "code from the host": ({"volumes": ["./old:/app/src:ro"]}, r"/app/src \(bind /.*/old\), expected none"),
    "code from a volume": ({"volumes": ["old:/app/src"]}, r"/app/src \(volume .*_old\), expected none"),
    "an empty file system": ({"tmpfs": ["/app/logs"]}, r"/app/logs \(tmpfs\), expected none"),
    "a secret": ({"secrets": ["code"]}, r"/run/secrets/code \(bind /.*/code\), expected none"),
    "where Python looks for code": (
        {"environment": {"PYTHONPATH": "/tmp:/app/src"}},
        "sets PYTHONPATH otherwise than its image, which takes code from elsewhere",
    ),
    "a library before all others": ({"environment": {"LD_PRELOAD": "/x.so"}}, "sets LD_PRELOAD otherwise than"),
}


TOP_LEVEL: dict[str, object] = {"volumes": {"old": {}}, "secrets": {"code": {"file": "./code"}}}


@pytest.fixture
def staged(pipeline: Pipeline) -> Pipeline:
    """Staging runs the branch's commit; beside the compose file lie old code and a secret."""
    pipeline.stage()
    add_files(pipeline)
    return pipeline


def add_files(pipeline: Pipeline) -> None:
    (pipeline.copy.compose_dir / "old" / "orchestrator").mkdir(parents=True)
    (pipeline.copy.compose_dir / "code").write_text("no secret")


@pytest.mark.fault
def test_whatever_compose_replaces_is_refused_unless_it_is_listed(staged: Pipeline) -> None:
    for name, (service, reason) in REPLACED.items():
        staged.override(service, **TOP_LEVEL)
        gate = staged.reuse("container_runs_built_image")
        assert gate.status == 1, (name, gate.output)
        assert gate.says(reason), (name, gate.output)
    staged.copy.compose("down", "--volumes")


def test_what_the_settings_list_may_be_otherwise(staged: Pipeline) -> None:
    listed: dict[str, object] = {
        "entrypoint": ["env", "NEW=1"],
        "command": ["python3", "-m", "orchestrator"],
        "user": "1234",
        "working_dir": "/tmp",
        "mounts": ["/data", "/run/secrets/code"],
        "environment": ["LD_PRELOAD"],
    }
    service = {
        **{name: value for name, value in listed.items() if name != "mounts"},
        "environment": {"LD_PRELOAD": ""},
        "volumes": ["./old:/data"],
        "secrets": ["code"],
    }
    staged.override(service, **TOP_LEVEL)
    staged.configure(targets={"orchestrator": {"staging": {"overrides": listed}}})
    gate = staged.reuse("container_runs_built_image")
    assert gate.status == 0, gate.output
    staged.configure(targets={"orchestrator": {"staging": {"overrides": {**listed, "mounts": ["/data"]}}}})
    gate = staged.reuse("container_runs_built_image")
    assert gate.status == 1, gate.output


@pytest.mark.fault
def test_a_volume_of_the_image_is_fine_until_another_container_has_filled_it(pipeline: Pipeline) -> None:
    copy = pipeline.copy
    dockerfile = (copy.worktree / "Dockerfile").read_text()
    copy.commit({"Dockerfile": f"{dockerfile}VOLUME /app/src\n"})
    pipeline.stage()
    fresh = pipeline.reuse("container_runs_built_image")
    assert fresh.status == 0, fresh.output
    pipeline.recreate_staging()
    taken_over = pipeline.reuse("container_runs_built_image")
    assert taken_over.status == 1, taken_over.output
    assert taken_over.says(r"/app/src \(volume of an earlier container; remove it with")
    copy.compose("rm", "--stop", "--force", "--volumes", "orchestrator-staging")


@pytest.mark.fault
def test_a_gate_over_replaced_code_promotes_nothing(pipeline: Pipeline) -> None:
    before = pipeline.deploy()
    add_files(pipeline)
    pipeline.override({"volumes": ["./code:/app/src/orchestrator/NEWS:ro"]})
    pipeline.copy.commit({"src/orchestrator/NEWS": "newer"})
    gate = pipeline.gate()
    assert gate.status == 1, gate.output
    assert gate.says("container .* has mounts over the image's files: /app/src/orchestrator/NEWS")
    assert pipeline.promote().status == 1
    assert pipeline.prod == before


DECLARED: dict[str, object] = {"content": {"/app/src": "src"}, "content_ignore": ["__pycache__"]}

FIXES: dict[str, tuple[str, str]] = {
    "a file is edited": ("echo 1 >>/app/src/orchestrator/jobs.py", r"/app/src/orchestrator/jobs.py \(changed\)"),
    "a file is replaced": (
        "cp /app/src/orchestrator/jobs.py /tmp/j; cp /tmp/j /tmp/k; mv /tmp/k /app/src/orchestrator/jobs.py",
        r"/app/src/orchestrator/jobs.py \(changed\)",
    ),
    "a file is added": ("echo 1 >/app/src/sitecustomize.py", r"/app/src/sitecustomize.py \(added\)"),
    "a file is removed": ("rm /app/src/orchestrator/jobs.py", r"/app/src/orchestrator/jobs.py \(deleted\)"),
    "a folder is replaced by a symlink": (
        "cp -r /app/src /tmp/src; rm -r /app/src; ln -s /tmp/src /app/src",
        r"/app/src \((is now a symlink|deleted|changed)\)",
    ),
    "a folder above is replaced by a symlink": (
        "cp -r /app /tmp/app; rm -r /app; ln -s /tmp/app /app",
        r"/app \((is now a symlink|deleted)\)",
    ),
    "a folder above is replaced by a folder": (
        "cp -r /app /tmp/app; rm -r /app; cp -r /tmp/app /app",
        r"/app(/\S+)? \((deleted|changed|added)\)",
    ),
}


def execute(pipeline: Pipeline, script: str) -> None:
    """Run a script in the staging container, once it answers: a service that has not read its files yet would end."""
    copy = pipeline.copy
    assert wait_until(lambda: pipeline.staging != ""), copy.compose("ps", "--all").stdout
    copy.engine.docker("exec", "--user", "0", copy.staging_container, "sh", "-c", script)


@pytest.mark.fault
def test_a_hot_fixed_container_is_refused_by_the_name_of_the_file(staged: Pipeline) -> None:
    staged.configure(targets={"orchestrator": DECLARED})
    for name, (script, reason) in FIXES.items():
        staged.recreate_staging()
        execute(staged, script)
        gate = staged.reuse("unchanged_files")
        assert gate.status == 1, (name, gate.output)
        assert gate.says(f"does not run the files of its image: .*{reason}"), (name, gate.output)


def test_what_a_container_may_write_is_no_hot_fix(each_pipeline: Pipeline) -> None:
    each_pipeline.stage()
    each_pipeline.configure(targets={"orchestrator": DECLARED})
    execute(each_pipeline, "cd /app; mkdir -p src/__pycache__ run; touch src/__pycache__/a.pyc run/pid /tmp/a x; rm x")
    gate = each_pipeline.reuse("unchanged_files or still_the_same")
    assert gate.status == 0, gate.output
    execute(each_pipeline, "cd /app; touch src/b.py")
    gate = each_pipeline.reuse("unchanged_files")
    assert gate.status == 1, gate.output


@pytest.mark.fault
def test_a_mount_over_declared_content_is_refused_although_it_is_listed(staged: Pipeline) -> None:
    listed = {"staging": {"overrides": {"mounts": ["/app/src"]}}, **DECLARED}
    staged.configure(targets={"orchestrator": listed})
    staged.override({"volumes": ["old:/app/src"]}, **TOP_LEVEL)
    gate = staged.reuse("unchanged_files or built_image")
    assert gate.status == 1, gate.output
    assert gate.says(r"does not run the files of its image: /app/src \(a volume lies over it\)")
    assert not gate.says("has mounts over")
    staged.copy.compose("down", "--volumes")
