"""Settings from real files and given environments."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from pytest_imagefresh.adapters.configuration import load_configuration
from pytest_imagefresh.core.errors import ConfigError
from pytest_imagefresh.core.layers import DEFAULT, Configuration
from pytest_imagefresh.core.settings import Settings


def load(
    rootdir: Path, config_file: Path | None = None, options: dict[str, object] | None = None, **environ: str
) -> Configuration:
    return load_configuration(rootdir, config_file, {"HOME": "/home/a", **environ}, options or {})


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# Which file.


def test_no_file_gives_the_defaults(tmp_path: Path) -> None:
    configuration = load(tmp_path)
    assert configuration.settings.repos == Settings().repos
    assert configuration.settings.host.known_hosts == "/home/a/.ssh/known_hosts"
    assert set(configuration.sources.values()) == {DEFAULT}


def test_imagefresh_toml_comes_before_pyproject(tmp_path: Path) -> None:
    write(tmp_path, "pyproject.toml", "[tool.imagefresh]\nsettle = 2\n")
    configuration = load(tmp_path)
    assert (configuration.settings.settle, configuration.sources["settle"]) == (2, "pyproject.toml [tool.imagefresh]")
    write(tmp_path, "imagefresh.toml", "[host]\nengine_id = 'x'\n")
    configuration = load(tmp_path)
    assert (configuration.settings.settle, configuration.sources["settle"]) == (5, DEFAULT)
    assert configuration.sources["host.engine_id"] == "imagefresh.toml"


@pytest.mark.parametrize("text", ["", "[tool.other]\nx = 1\n", "[tool.imagefresh]\n", "tool = 1\n"])
def test_pyproject_without_settings_gives_the_defaults(tmp_path: Path, text: str) -> None:
    write(tmp_path, "pyproject.toml", text)
    assert set(load(tmp_path).sources.values()) == {DEFAULT}


def test_a_named_file_comes_before_every_other(tmp_path: Path) -> None:
    write(tmp_path, "imagefresh.toml", "settle = 1\n")
    named = write(tmp_path, "ci/gate.toml", "settle = 2\n")
    for path in (named, Path("ci/gate.toml")):
        configuration = load(tmp_path, path)
        assert (configuration.settings.settle, configuration.sources["settle"]) == (2, "ci/gate.toml")


def test_a_named_pyproject_is_read_by_its_table(tmp_path: Path) -> None:
    path = write(tmp_path, "x/pyproject.toml", "[tool.imagefresh]\nsettle = 3\n")
    assert load(tmp_path, path).settings.settle == 3
    path.write_text("[tool.other]\n")
    with pytest.raises(ConfigError, match=r"^x/pyproject\.toml: no table \[tool\.imagefresh\]"):
        load(tmp_path, path)


def _folder(path: Path) -> None:
    path.mkdir()


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _too_large(path: Path) -> None:
    path.write_bytes(b"#" * (1024 * 1024 + 1))


def _not_toml(path: Path) -> None:
    path.write_text("settle = 1\nsecret = hunter2\n")


def _duplicate(path: Path) -> None:
    path.write_text("settle = 1\nsettle = 2\n")


def _not_utf8(path: Path) -> None:
    path.write_bytes(b"settle = 1 # \xff\n")


BROKEN = [
    (_folder, "cannot be read: Is a directory"),
    (_dangling, "cannot be read: No such file or directory"),
    (_too_large, "larger than 1048576 bytes"),
    (_not_toml, r"not valid TOML: .*line 2, column \d+"),
    (_duplicate, r"not valid TOML: .*line 2"),
    (_not_utf8, "not valid TOML: .*0xff in position 13"),
]


@pytest.mark.parametrize("name", ["imagefresh.toml", "pyproject.toml"])
@pytest.mark.parametrize(("make", "reason"), BROKEN, ids=[make.__name__[1:] for make, _ in BROKEN])
def test_a_broken_file_is_one_line_and_never_the_defaults(tmp_path: Path, name: str, make: object, reason: str) -> None:
    assert callable(make)
    make(tmp_path / name)
    for config_file in (None, tmp_path / name):
        with pytest.raises(ConfigError, match=f"^{name}: {reason}") as caught:
            load(tmp_path, config_file)
        assert str(caught.value).isprintable()
        assert "hunter2" not in str(caught.value)


def test_a_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^nosuch\.toml: cannot be read: No such file or directory"):
        load(tmp_path, Path("nosuch.toml"))


def test_values_of_the_file_are_checked(tmp_path: Path) -> None:
    write(tmp_path, "imagefresh.toml", "[timeouts]\ngit = 2026-01-01\n")
    with pytest.raises(
        ConfigError, match=r"^timeouts\.git: datetime.date\(2026, 1, 1\) is not .*; set by imagefresh.toml$"
    ):
        load(tmp_path)


# Layers.


def test_environment_beats_dotenv_beats_file_and_options_beat_all(tmp_path: Path) -> None:
    write(tmp_path, "imagefresh.toml", "settle = 1\n[timeouts]\ngit = 1\ncheck = 1\nbuild = 1\n")
    write(
        tmp_path,
        ".env",
        "IMAGEFRESH_TIMEOUTS__GIT=2\nIMAGEFRESH_TIMEOUTS__CHECK=2\nIMAGEFRESH_TIMEOUTS__BUILD=2\nTOKEN=hunter2\n",
    )
    configuration = load(
        tmp_path,
        options={"timeouts.build": 4, "host.engine_id": None},
        IMAGEFRESH_TIMEOUTS__CHECK="3",
        IMAGEFRESH_TIMEOUTS__BUILD="3",
    )
    timeouts = configuration.settings.timeouts
    assert (configuration.settings.settle, timeouts.git, timeouts.check, timeouts.build) == (1, 2, 3, 4)
    assert [configuration.sources[key] for key in ("settle", "timeouts.git", "timeouts.check", "timeouts.build")] == [
        "imagefresh.toml",
        ".env IMAGEFRESH_TIMEOUTS__GIT",
        "environment IMAGEFRESH_TIMEOUTS__CHECK",
        "option timeouts.build",
    ]
    assert configuration.sources["host.engine_id"] == DEFAULT


def test_unknown_options_and_variables_are_errors(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^host\.shh: unknown key, did you mean 'ssh'\?; .*; set by option host\.shh$"
    ):
        load(tmp_path, options={"host.shh": "x"})
    write(tmp_path, ".env", "IMAGEFRESH_HOST_SSH=x\n")
    with pytest.raises(ConfigError, match=r"^IMAGEFRESH_HOST_SSH: unknown variable, .*; set by \.env$"):
        load(tmp_path)


# .env


def test_dotenv_is_taken_as_it_stands_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FROM_OUTSIDE", "expanded")
    write(
        tmp_path,
        ".env",
        "\ufeff# a comment\n\nexport IMAGEFRESH_REPOS='shop, web'\nIMAGEFRESH_TARGETS__SHOP__STAGING__CHECK_COMMAND="
        '"sh,-c,${FROM_OUTSIDE}" # why\nOTHER="${IMAGEFRESH_REPOS}"\nBROKEN: x\n',
    )
    before = dict(os.environ)
    settings = load(tmp_path).settings
    assert settings.repos == ("shop", "web")
    assert settings.targets["shop"].staging.check_command == ("sh", "-c", "${FROM_OUTSIDE}")
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A=1\nIMAGEFRESH_ENABLED: false\n", r"^\.env: line 2 cannot be read; expected NAME=value"),
        ('IMAGEFRESH_ENABLED="false\n', r"^\.env: line 1 cannot be read"),
        ("IMAGEFRESH_ENABLED\n", r"^IMAGEFRESH_ENABLED: has no value; .*; set by \.env$"),
        ("imagefresh_enabled=false\n", r"^imagefresh_enabled: unknown variable"),
        ("IMAGEFRESH_ENABLED=\n", r"^enabled: '' is not accepted; .*; set by \.env IMAGEFRESH_ENABLED$"),
    ],
)
def test_a_line_of_ours_is_never_dropped_silently(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, ".env", text)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


def test_dotenv_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"A=\xff\n")
    with pytest.raises(ConfigError, match=r"^\.env: not valid UTF-8 at byte 2"):
        load(tmp_path)


def test_nothing_of_foreign_lines_is_logged_or_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, ".env", "TOKEN: hunter2\nIMAGEFRESH_ENABLED=maybe\n")
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert "hunter2" not in caplog.text + str(caught.value)


# Paths.


def test_relative_paths_start_where_they_are_written(tmp_path: Path) -> None:
    write(tmp_path, "ci/key", "x")
    named = write(
        tmp_path,
        "ci/gate.toml",
        "repos_dir = '../repos'\nworktrees_dir = 'wt'\n[host]\nssh = 'local'\nknown_hosts = 'known'\n"
        "[signing]\nkey = 'key'\nprincipal = 'gate@x'\n",
    )
    settings = load(tmp_path, named, IMAGEFRESH_WORKTREES_DIR="wt").settings
    assert settings.repos_dir == str(tmp_path / "repos")
    assert settings.worktrees_dir == str(tmp_path / "wt")
    assert settings.host.known_hosts == str(tmp_path / "ci/known")
    assert settings.signing is not None
    assert settings.signing.key == str(tmp_path / "ci/key")


def test_tilde_is_the_home_of_the_given_environment(tmp_path: Path) -> None:
    settings = load(tmp_path, IMAGEFRESH_REPOS_DIR="~/repos", IMAGEFRESH_WORKTREES_DIR="~", HOME=str(tmp_path)).settings
    assert (settings.repos_dir, settings.worktrees_dir) == (str(tmp_path / "repos"), str(tmp_path))


def test_home_of_nobody_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^repos_dir: '~nosuchuser/x' names no home folder; .*IMAGEFRESH_REPOS_DIR$"):
        load(tmp_path, IMAGEFRESH_REPOS_DIR="~nosuchuser/x")


def test_a_missing_key_file_is_the_operators_mistake(tmp_path: Path) -> None:
    write(tmp_path, "imagefresh.toml", "[signing]\nkey = 'nosuch'\nprincipal = 'gate@x'\n")
    with pytest.raises(ConfigError, match=r"^signing\.key: no file .*/nosuch; .*; set by imagefresh\.toml$"):
        load(tmp_path)


def test_the_documented_example_is_accepted(tmp_path: Path) -> None:
    document = (Path(__file__).resolve().parents[2] / "docs/settings.md").read_text()
    write(tmp_path, "imagefresh.toml", document.partition("```toml\n")[2].partition("```")[0])
    settings = load(tmp_path).settings
    assert (settings.repos, settings.targets["shop"].prod.pin) == (("shop",), "SHOP_PROD_IMAGE")
