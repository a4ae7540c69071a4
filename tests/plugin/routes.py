"""Ways to run a session: routes that can end green although the gate is not proven, and ways that stay harmless.

A route is data: what is typed, what lies in the folder, what is wrong with the host. Each runs against the gate, which
says no, and where `plain` says so against plain tests of the same names: there a broken one is not noticed.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

PRODUCTION = "test_production_is_untouched"
PRODUCTION_ID = f"gates/test_provenance.py::{PRODUCTION}"
TOUCHED = ("touches-production",)
"""The fault under which the test of that name refuses."""

TWO_TARGETS = """
[targets.shop]
[targets.shop-jobs]
repo = "shop"
image = "jobs-staging"
prod_image = "jobs"
staging = { service = "jobs-staging", container = "jobs-staging", port = 8601 }
prod = { service = "jobs", port = 8600 }
"""


@dataclass(frozen=True)
class Route:
    """One way to run a session."""

    name: str
    options: tuple[str, ...] = ()
    """What is typed, beside what every gate session needs."""
    statuses: tuple[int, ...] = (10,)
    """What a gate session may end with."""
    plain: bool = False
    """Plain pytest ends with 0 although a broken test was there."""
    broken: str = PRODUCTION
    """The plain test that is broken; "" where a file of the route brings one."""
    says: str = ""
    """A line that the gate session says, as a regular expression."""
    tests: tuple[str, ...] = ("gates",)
    files: Mapping[str, str] = field(default_factory=dict)
    """Path below the folder -> text."""
    edit: tuple[str, str] | None = None
    """A regular expression and its replacement, in the text of the gate tests."""
    faults: tuple[str, ...] = ()
    ini: str = ""
    """Lines of pytest.ini."""
    settings: str = ""
    """Lines of imagefresh.toml."""
    environment: Mapping[str, str] = field(default_factory=dict)
    python: tuple[str, ...] = ()
    """Options of the interpreter."""
    fresh: bool = False
    """It is about what an interpreter does before it reaches pytest."""
    before: tuple[str, ...] | None = None
    """Options of an earlier session in the same folder."""
    reports: bool = True
    """A JUnit report is asked for, and one that says yes lies there from an earlier run."""
    blind: bool = False
    """No plugin can see it: of the gate session only the record is looked at."""


def _source(text: str) -> str:
    return f"import os, sys\nimport pytest\n{textwrap.dedent(text).strip()}\n"


def own(name: str, text: str, *options: str, **more: Any) -> Route:
    """A route by a test file of its own in the gates folder; the text holds a broken test."""
    files = {"gates/test_own.py": _source(text), **more.pop("files", {})}
    return Route(name, options, files=files, broken="", **more)


def conftest(name: str, text: str, *options: str, **more: Any) -> Route:
    """A route by a conftest.py beside the gates folder."""
    return Route(name, options, files={"conftest.py": _source(text), **more.pop("files", {})}, **more)


def plugin(name: str, text: str, *options: str, **more: Any) -> Route:
    """A route by a plugin that is loaded with -p."""
    return Route(name, ("-p", "trick", *options), files={"trick.py": _source(text)}, **more)


def edited(name: str, pattern: str, replacement: str, **more: Any) -> Route:
    """A route by a change in the text of the gate tests."""
    return Route(name, edit=(pattern, replacement), **{"plain": True, **more})


ELSEWHERE = {"own/test_own.py": "def test_own(): pass\n"}
BROKEN = "def test_own(): raise SystemError\n"

# --- what is selected -------------------------------------------------------------------------------------------------

SELECTIONS = [
    Route("-k leaves one out", ("-k", "not production"), plain=True),
    Route("-k selects one", ("-k", "test_hook_accepts_this_image"), plain=True),
    Route("-k selects a target", ("-k", "not jobs"), settings=TWO_TARGETS),
    Route("-k leaves out one test of one target", ("-k", "not (jobs and production)"), settings=TWO_TARGETS),
    Route("-m leaves all out", ("-m", "no_such_mark"), (5,)),
    Route("--deselect", ("--deselect", PRODUCTION_ID), plain=True),
    Route("--ignore a file", ("--ignore=gates/test_provenance.py",), plain=True),
    Route("--ignore the folder", ("--ignore=gates",), tests=(".",), files=ELSEWHERE, plain=True),
    Route("--ignore-glob", ("--ignore-glob=*provenance*",), plain=True),
    Route("a single node ID", tests=("gates/test_provenance.py::test_hook_accepts_this_image",), plain=True),
    Route("a single file", tests=("gates/test_staging_fresh.py",), plain=True),
    Route("no gate at all", tests=("own",), files=ELSEWHERE, plain=True),
    Route("--pyargs", ("--pyargs", "own"), tests=(), files={**ELSEWHERE, "own/__init__.py": ""}, plain=True),
    Route("testpaths", tests=(), ini="testpaths = own", files=ELSEWHERE, plain=True),
    Route("an empty folder", statuses=(5,), tests=("empty",), files={"empty/readme": ""}),
    own("--lf", BROKEN, "--lf", before=("-k", "own"), statuses=(1,)),
    own(
        "--lf of a test that passes now",
        """
        from pathlib import Path
        def test_own():
            Path("once").touch(exist_ok=False) if Path("second").exists() else Path("second").touch() or 1 / 0
        """,
        "--lf",
        before=("-k", "own"),
    ),
    Route("--lf without failures", ("--lf", "--lfnf=none"), (5,), before=("-k", "accepts")),
    Route("--sw", ("--sw", "--deselect", PRODUCTION_ID), plain=True),
    Route("python_files", ("-o", "python_files=test_staging*.py"), plain=True),
    Route("python_files in the ini", ini="python_files = test_staging*.py", plain=True),
    Route("python_functions", ("-o", "python_functions=test_[a-o]*"), plain=True),
    Route("python_functions in the ini", ini="python_functions = test_[a-o]*", plain=True),
    own("python_classes", "class TestOwn:\n    def test_own(self): 1 / 0", "-o", "python_classes=No", plain=True),
    Route("norecursedirs", ("-o", "norecursedirs=x"), files={"gates/x/test_x.py": BROKEN}, broken="", plain=True),
    Route(
        "norecursedirs in the ini", ini="norecursedirs = x", files={"gates/x/test_x.py": BROKEN}, broken="", plain=True
    ),
    Route(
        "a marked test beside the one that was asked for",
        tests=("gates", "test_two.py::test_one"),
        files={"test_two.py": "from pytest import mark\npytestmark = mark.gate\ndef test_one(): pass\n" + BROKEN},
        broken="",
        plain=True,
    ),
    Route("another rootdir", ("--rootdir=own",), (4,), files=ELSEWHERE),
    Route("another ini", ("-c", "other.ini"), files={"other.ini": "[pytest]\naddopts = -k accepts\n"}, plain=True),
    Route("collect_ignore", files={"gates/conftest.py": "collect_ignore = ['test_provenance.py']"}, plain=True),
    Route("collect_ignore_glob", files={"gates/conftest.py": "collect_ignore_glob = ['*prov*']"}, plain=True),
    conftest(
        "pytest_ignore_collect",
        "def pytest_ignore_collect(collection_path): return 'prov' in collection_path.name or None",
        plain=True,
    ),
    conftest(
        "pytest_collect_file",
        """
        @pytest.hookimpl(wrapper=True)
        def pytest_collect_file(file_path):
            found = yield
            return [] if "prov" in file_path.name else found
        """,
        plain=True,
    ),
    conftest(
        "pytest_pycollect_makemodule",
        """
        class Empty(pytest.Module):
            def collect(self): return []
        def pytest_pycollect_makemodule(module_path, parent):
            return Empty.from_parent(parent, path=module_path) if "prov" in module_path.name else None
        """,
        plain=True,
    ),
    conftest(
        "pytest_pycollect_makeitem",
        "def pytest_pycollect_makeitem(name): return [] if 'production' in name else None",
        plain=True,
    ),
    conftest(
        "pytest_make_collect_report",
        """
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_make_collect_report(collector):
            report = yield
            report.result = [node for node in report.result if "production" not in node.name]
            return report
        """,
        plain=True,
    ),
    conftest(
        "items dropped",
        "def pytest_collection_modifyitems(items): items[:] = [i for i in items if 'production' not in i.name]",
        plain=True,
    ),
    conftest(
        "items dropped after all others",
        """
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_collection_modifyitems(items):
            yield
            items[:] = [item for item in items if "production" not in item.name]
        """,
        plain=True,
    ),
    conftest("all items dropped", "def pytest_collection_modifyitems(items): items.clear()", statuses=(5,)),
    conftest(
        "items of one target dropped",
        "def pytest_collection_modifyitems(items): items[:] = [i for i in items if 'jobs' not in i.name]",
        settings=TWO_TARGETS,
    ),
    conftest(
        "one item many times",
        "def pytest_collection_modifyitems(items): items[:] = [i for i in items if 'accepts' in i.name] * len(items)",
        statuses=(1,),
    ),
    conftest(
        "items in another order",
        """
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_collection_modifyitems(items):
            yield
            items.reverse()
        """,
        says="out of order",
    ),
    conftest(
        "items replaced",
        """
        class Green(pytest.Item):
            def runtest(self): pass
        def pytest_collection_modifyitems(items):
            items[:] = [Green.from_parent(item.parent, name=item.name) for item in items]
        """,
        plain=True,
    ),
    conftest(
        "bodies replaced",
        """
        def pytest_collection_modifyitems(items):
            for item in items:
                item.obj = lambda **given: None
        """,
        plain=True,
    ),
    conftest(
        "items dropped from the session",
        """
        def pytest_collection_finish(session):
            session.items[:] = [item for item in session.items if "production" not in item.name]
        """,
        plain=True,
    ),
]

# --- how tests end ----------------------------------------------------------------------------------------------------

_IMPORT = r"(?m)^import pytest$"
_LINK = r'(?m)^(@pytest\.mark\.link\("PRODUCTION"\))'
_PROVE = r"(?m)^    (prove\(.*\))$"
_END = r"\Z"

MODULE_LEVEL = {
    "skip at module level": "pytest.skip('not today', allow_module_level=True)",
    "importorskip at module level": "pytest.importorskip('no_such_module')",
    "skip mark of the module": "pytestmark = pytest.mark.skip(reason='not today')",
    "skipif mark of the module": "pytestmark = pytest.mark.skipif(True, reason='not today')",
    "xfail mark of the module": "pytestmark = pytest.mark.xfail",
    "xfail mark of the module, not run": "pytestmark = pytest.mark.xfail(run=False)",
}
MARKS = {
    "skip mark": "@pytest.mark.skip(reason='not today')",
    "skipif mark": "@pytest.mark.skipif('True', reason='not today')",
    "xfail mark": "@pytest.mark.xfail",
    "xfail mark, strict": "@pytest.mark.xfail(strict=True)",
    "xfail mark, not run": "@pytest.mark.xfail(run=False)",
    "xfail mark, one exception": "@pytest.mark.xfail(raises=Exception)",
    "skip of unittest": "@__import__('unittest').skip('not today')",
}
BODIES = {
    "never proves": "print",
    "returns False": r"return False and \1",
    "returns before": r"return\n    \1",
    "loops over nothing": r"for _ in ():\n        \1",
    "swallows the exception": r"try:\n        \1\n    except BaseException:\n        pass",
    "suppresses the exception": r"with __import__('contextlib').suppress(BaseException):\n        \1",
    "expects an exception": r"with pytest.raises(BaseException):\n        \1\n        raise SystemError",
    "calls it later": r"lambda: \1",
    "skips": r"pytest.skip('not today')\n    \1",
    "skips as unittest does": r"raise __import__('unittest').SkipTest\n    \1",
    "xfails": r"pytest.xfail('not today')\n    \1",
    "asserts something else": "assert callable(prove)",
    "proves in a thread": r"__import__('threading').Thread(target=lambda: \1).start()",
}
TAILS = {
    "a test renamed": f"a_{PRODUCTION} = {PRODUCTION}\ndel {PRODUCTION}",
    "a test switched off": f"{PRODUCTION}.__test__ = False",
    "a test replaced": f"{PRODUCTION} = lambda: None",
    "a test that is no function": f"{PRODUCTION} = 'passed'",
    "all tests behind a hook": "def pytest_pycollect_makeitem(): return []\n__test__ = False",
}
OUTCOMES = [
    *[edited(name, _IMPORT, rf"import pytest\n{line}") for name, line in MODULE_LEVEL.items()],
    *[edited(name, _LINK, rf"{mark}\n\1", faults=TOUCHED) for name, mark in MARKS.items()],
    *[edited(f"a body that {name}", _PROVE, rf"    {body}", faults=TOUCHED) for name, body in BODIES.items()],
    *[edited(name, _END, rf"\n{text}\n") for name, text in TAILS.items()],
    edited("a test shadowed", _END, rf"\ndef {PRODUCTION}(): pass\n", says="declares test_production.* more than once"),
    edited("xfail mark that passes", _LINK, r"@pytest.mark.xfail(strict=False)\n\1", plain=False),
    edited("strict xfail mark that passes", _LINK, r"@pytest.mark.xfail(strict=True)\n\1", plain=False, statuses=(1,)),
    own("own test: no parameters", "@pytest.mark.parametrize('x', [])\ndef test_own(x): 1 / 0", plain=True),
    own(
        "own test: no parameters, xfail",
        "@pytest.mark.parametrize('x', [])\ndef test_own(x): 1 / 0",
        ini="empty_parameter_set_mark = xfail",
        plain=True,
    ),
    own("own test: skipped class", "@pytest.mark.skip\nclass TestOwn:\n    def test_own(self): 1 / 0", plain=True),
    own("own test: __test__", "class TestOwn:\n    __test__ = False\n    def test_own(self): 1 / 0", plain=True),
    own(
        "own test: constructor",
        "class TestOwn:\n    def __init__(self): 1 / 0\n    def test_own(self): 1 / 0",
        plain=True,
    ),
    own("own test: shadowed", f"{BROKEN}def test_own(): pass", plain=True),
    own(
        "own test: skipped by its fixture",
        """
        @pytest.fixture
        def engine(): pytest.skip("no engine here")
        def test_own(engine): 1 / 0
        """,
        plain=True,
    ),
    own("own test: skipped in its setup", "def setup_function(): pytest.skip('no')\ndef test_own(): 1 / 0", plain=True),
    own("own test: skipped in its teardown", "def teardown_function(): pytest.skip('no')\ndef test_own(): pass"),
    own(
        "own test: skipped by unittest",
        """
        import unittest
        class TestOwn(unittest.TestCase):
            @unittest.skip("not today")
            def test_own(self): 1 / 0
        """,
        plain=True,
    ),
    own(
        "own test: expected to fail by unittest",
        """
        import unittest
        class TestOwn(unittest.TestCase):
            @unittest.expectedFailure
            def test_own(self): 1 / 0
        """,
        plain=True,
    ),
    own(
        "own test: skipped in the setUp of unittest",
        """
        import unittest
        class TestOwn(unittest.TestCase):
            def setUp(self): self.skipTest("not today")
            def test_own(self): 1 / 0
        """,
        plain=True,
    ),
    own(
        "own test: a teardown that fails",
        "def teardown_function(): 1 / 0\ndef test_own(): pass",
        statuses=(1,),
    ),
    conftest(
        "every test skipped by an autouse fixture",
        """
        @pytest.fixture(autouse=True)
        def engine(): pytest.skip("no engine here")
        """,
        plain=True,
    ),
    conftest(
        "every test marked",
        "def pytest_itemcollected(item): item.add_marker(pytest.mark.xfail)",
        faults=TOUCHED,
        plain=True,
    ),
    conftest("skipped in pytest_runtest_setup", "def pytest_runtest_setup(): pytest.skip('no')", plain=True),
    conftest("skipped in pytest_runtest_call", "def pytest_runtest_call(): pytest.skip('no')", plain=True),
    # A skipped fixture that is asked for again is an assertion inside newer versions of pytest.
    conftest("skipped in pytest_fixture_setup", "def pytest_fixture_setup(): pytest.skip('no')", statuses=(1, 10)),
    conftest(
        "own test: run again until it passes",
        """
        from _pytest.runner import runtestprotocol
        def pytest_runtest_protocol(item, nextitem):
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
            if any(report.failed for report in reports):
                for report in reports:
                    report.outcome = "rerun"
                    item.ihook.pytest_runtest_logreport(report=report)
                reports = runtestprotocol(item, nextitem=nextitem, log=False)
            for report in reports:
                item.ihook.pytest_runtest_logreport(report=report)
            return True
        """,
        files={"gates/test_own.py": "tries = []\ndef test_own():\n    tries.append(1)\n    assert len(tries) > 1\n"},
        broken="",
        plain=True,
    ),
    conftest(
        "own test: silently run again until it passes",
        """
        from _pytest.runner import runtestprotocol
        def pytest_runtest_protocol(item, nextitem):
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
            if any(report.failed for report in reports):
                reports = runtestprotocol(item, nextitem=nextitem, log=False)
            for report in reports:
                item.ihook.pytest_runtest_logreport(report=report)
            return True
        """,
        files={"gates/test_own.py": "tries = []\ndef test_own():\n    tries.append(1)\n    assert len(tries) > 1\n"},
        broken="",
        plain=True,
    ),
]

SUBTESTS = [
    own("a subtest skipped", "def test_own(subtests):\n    with subtests.test(): pytest.skip('no')", plain=True),
    own("a subtest xfailed", "def test_own(subtests):\n    with subtests.test(): pytest.xfail('no')", plain=True),
    own("a subtest failed", "def test_own(subtests):\n    with subtests.test(): 1 / 0", statuses=(1,)),
    own(
        "workers: a subtest skipped",
        "def test_own(subtests):\n    with subtests.test(): pytest.skip('no')",
        "-n2",
        plain=True,
    ),
]
"""For a pytest that has the fixture."""

# --- whose fixtures ---------------------------------------------------------------------------------------------------

REPLACED = (
    "target",
    "target_run",
    "prove",
    "validated_revision",
    "rebuild",
    "staging_image",
    "staging_container",
    "hook",
)
FIXTURES = [
    *[
        conftest(
            f"the fixture {name} replaced",
            f"""
            @pytest.fixture(scope="{"function" if name == "prove" else "session"}")
            def {name}({name}): return {name}
            """,
            says=f"uses the fixture {name} of conftest, not the gate's own",
        )
        for name in REPLACED
    ],
    conftest(
        "a fixture prove that does nothing", "@pytest.fixture\ndef prove(): return print", plain=True, faults=TOUCHED
    ),
    Route(
        "a fixture replaced in a gate module",
        edit=(_END, "\n@pytest.fixture\ndef prove(prove): return prove\n"),
        says="uses the fixture prove of test_provenance",
    ),
    plugin(
        "a fixture replaced by a plugin",
        """
        class Late:
            @pytest.fixture(scope="session")
            def staging_image(self, staging_image): return staging_image
        def pytest_sessionstart(session): session.config.pluginmanager.register(Late(), "late")
        """,
        says="uses the fixture staging_image of trick",
    ),
    conftest(
        "a fixture replaced by a parameter",
        """
        def pytest_generate_tests(metafunc):
            if "production_before" in metafunc.fixturenames:
                metafunc.parametrize("production_before", [None])
        """,
        statuses=(1,),
    ),
    conftest(
        "the target replaced by a parameter",
        """
        def pytest_generate_tests(metafunc):
            metafunc.fixturenames.append("target")
            metafunc.parametrize("target", ["other"])
        """,
        statuses=(2,),
    ),
    conftest(
        "no targets to run for",
        """
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_generate_tests(metafunc):
            yield
            metafunc._calls = []
        """,
        statuses=(1,),
    ),
]

# --- modes that run nothing -------------------------------------------------------------------------------------------

MODES = [
    *[
        Route(f"mode {option}", (option,), plain=True)
        for option in (
            "--collect-only",
            "--co",
            "--setup-plan",
            "--fixtures",
            "--fixtures-per-test",
            "--markers",
            "--help",
            "-h",
            "--cache-show",
        )
    ],
    Route("mode --setup-only", ("--setup-only",), plain=True),
    Route("mode -VV", ("-VV",), plain=True),
    Route("mode --version", ("--version",), (0, 10), plain=True, blind=True),
    Route("-x with a failure first", ("-x",), (1,), faults=("stale-image",)),
    Route("--maxfail with a failure first", ("--maxfail=1",), (1,), faults=("build-fails",)),
    Route("-x with an unreachable engine", ("-x",), (11,), faults=("hook-unknown",)),
    Route("--repo twice, one unknown", ("--repo", "nosuch"), (4,)),
    Route("an option that nobody knows", ("--no-such-option",), (4,), blind=True),
]

# --- who says so ------------------------------------------------------------------------------------------------------

UNTYPED: dict[str, tuple[str, ...]] = {
    "-k": ("-k", "not production"),
    "-m": ("-m", "not nothing"),
    "--deselect": (f"--deselect={PRODUCTION_ID}",),
    "--ignore": ("--ignore=gates/test_provenance.py",),
    "--ignore-glob": ("--ignore-glob=*provenance*",),
    "--lf": ("--lf",),
    "--sw": ("--sw",),
    "--co": ("--collect-only",),
    "--setup-only": ("--setup-only",),
    "--setup-plan": ("--setup-plan",),
    "--maxfail": ("-x",),
    "--runxfail": ("--runxfail",),
    "--continue-on-collection-errors": ("--continue-on-collection-errors",),
    "--gate-partial": ("--gate-partial",),
    "--gate-reuse": ("--gate-reuse",),
}
_HIDING = ("-k", "--deselect", "--ignore", "--ignore-glob", "--co", "--setup-only", "--setup-plan")


def _untyped() -> Iterator[Route]:
    """Switches count wherever they come from but the command line, also while they leave nothing out."""
    for switch, words in UNTYPED.items():
        told: dict[str, Any] = {"says": f"weakened: {switch} ", "plain": switch in _HIDING}
        yield Route(f"{switch} in the ini", ini=f"addopts = {shlex.join(words)}", **told)
        yield Route(f"{switch} in PYTEST_ADDOPTS", environment={"PYTEST_ADDOPTS": shlex.join(words)}, **told)
        lines = "\n".join(words)
        yield Route(f"{switch} in an argument file", ("@more.txt",), files={"more.txt": f"{lines}\n"}, **told)


ORIGINS = [
    *_untyped(),
    Route("-k in -o addopts", ("-o", "addopts=-k accepts"), says="weakened: -k "),
    plugin(
        "-k put among the arguments",
        "@pytest.hookimpl(tryfirst=True)\ndef pytest_load_initial_conftests(args): args += ['-k', 'accepts']",
        plain=True,
        says="changed -k from",
    ),
    plugin(
        "--gate-partial put among the arguments",
        "@pytest.hookimpl(tryfirst=True)\ndef pytest_load_initial_conftests(args): args += ['--gate-partial']",
        says="changed --gate-partial from",
    ),
    plugin(
        "--repo taken from the arguments",
        """
        @pytest.hookimpl(tryfirst=True)
        def pytest_load_initial_conftests(args):
            place = args.index("--repo")
            del args[place:place + 2]
        """,
        statuses=(1,),
    ),
    plugin(
        "--repo added to the arguments",
        """
        @pytest.hookimpl(tryfirst=True)
        def pytest_load_initial_conftests(args): args += ["--repo", "nosuch"]
        """,
        statuses=(4,),
    ),
    conftest("the repos forgotten", "def pytest_configure(config): config.option.gate_repos = []", statuses=(1,)),
    conftest("a repo forgotten", "def pytest_configure(config): config.option.gate_repos.pop()", "--repo", "shop"),
    conftest(
        "the branch changed",
        "def pytest_configure(config): config.option.gate_branch = 'other'",
        statuses=(1,),
    ),
    conftest("a selection changed", "def pytest_configure(config): config.option.keyword = 'accepts'", plain=True),
    conftest(
        "a mode changed",
        "def pytest_configure(config): config.option.collectonly = True",
        plain=True,
    ),
    Route(
        "the plugin loaded by a conftest",
        statuses=(4,),
        files={"conftest.py": "pytest_plugins = ['pytest_docker', 'pytest_timeout', 'pytest_imagefresh.plugin']\n"},
        environment={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        says="too late to have the last word",
    ),
]

# --- tests without teeth ----------------------------------------------------------------------------------------------

_TOOTHLESS: dict[str, Any] = {
    "files": {"helper.py": "def check(): assert False\n"},
    "fresh": True,
    "plain": True,
    "says": "weakened: python -O",
}
TEETH = [
    own(
        "python -O",
        "from helper import check\ndef test_own(): check()",
        python=("-O",),
        **_TOOTHLESS,
    ),
    own(
        "PYTHONOPTIMIZE",
        "from helper import check\ndef test_own(): check()",
        environment={"PYTHONOPTIMIZE": "1"},
        **_TOOTHLESS,
    ),
    Route("--assert=plain", ("--assert=plain",), says="weakened: --assert=plain"),
    Route("--noconftest", ("--noconftest",), says="weakened: --noconftest"),
    Route("-p no:timeout", ("-p", "no:timeout"), says="weakened: the plugin pytest-timeout is blocked"),
    Route("-p no:docker", ("-p", "no:docker"), (10,), says="weakened: the plugin pytest-docker is blocked"),
    Route("-p no:imagefresh", ("-p", "no:imagefresh"), (4,), blind=True),
    Route("-p no:junitxml", ("-p", "no:junitxml"), (4,), blind=True),
    Route("-p no:assertion", ("-p", "no:assertion"), says="weakened: --assert=plain"),
    Route("-p no:terminal", ("-p", "no:terminal", "-k", "accepts"), plain=True),
    *[Route(f"-p no:{name}", ("-p", f"no:{name}"), (4,), blind=True) for name in ("runner", "fixtures", "main")],
    Route("-p no:python", ("-p", "no:python"), (5,)),
    Route("no plugins loaded", statuses=(4,), environment={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, blind=True),
    Route("required plugin missing", statuses=(4,), ini="required_plugins = pytest-nosuch", blind=True),
]

# --- hooks that end the session early ---------------------------------------------------------------------------------

BEFORE_PROOF = (
    "pytest_configure",
    "pytest_sessionstart",
    "pytest_report_header",
    "pytest_collection",
    "pytest_collectstart",
    "pytest_make_collect_report",
    "pytest_collectreport",
    "pytest_itemcollected",
    "pytest_generate_tests",
    "pytest_collection_modifyitems",
    "pytest_collection_finish",
    "pytest_report_collectionfinish",
    "pytest_runtestloop",
    "pytest_runtest_protocol",
    "pytest_runtest_logstart",
    "pytest_runtest_setup",
    "pytest_fixture_setup",
    "pytest_runtest_call",
    "pytest_pyfunc_call",
    "pytest_runtest_teardown",
    "pytest_fixture_post_finalizer",
    "pytest_runtest_makereport",
    "pytest_runtest_logreport",
    "pytest_report_teststatus",
    "pytest_runtest_logfinish",
)
AFTER_TESTS = ("pytest_sessionfinish", "pytest_terminal_summary", "pytest_unconfigure")
EXITS = {"pytest.exit": "pytest.exit('done', returncode=0)", "SystemExit": "raise SystemExit(0)"}


OF_A_TEST = (
    "pytest_runtest_setup",
    "pytest_fixture_setup",
    "pytest_runtest_call",
    "pytest_pyfunc_call",
    "pytest_runtest_teardown",
    "pytest_fixture_post_finalizer",
)
"""Where pytest takes SystemExit for a failure of the test; elsewhere it is an internal error."""

STATUSES = {
    **{f"SystemExit in {hook}": 1 if hook in OF_A_TEST else 3 for hook in BEFORE_PROOF},
    "pytest.exit in pytest_generate_tests": 2,
    "pytest.exit in pytest_fixture_post_finalizer": 1,
}


def _early_ends() -> Iterator[Route]:
    for how, statement in EXITS.items():
        for hook in BEFORE_PROOF:
            name = f"{how} in {hook}"
            hole = how == "pytest.exit" and hook != "pytest_generate_tests"
            yield conftest(name, f"def {hook}(): {statement}", statuses=(STATUSES.get(name, 10),), plain=hole)
        for hook in AFTER_TESTS:
            name = f"{how} in {hook}"
            hole = name != "pytest.exit in pytest_unconfigure"
            yield conftest(name, f"def {hook}(): {statement}", statuses=(1,), faults=TOUCHED, plain=hole)


EARLY_ENDS = [
    *_early_ends(),
    own("pytest.exit in a test", "def test_own(): pytest.exit('done', returncode=0)", plain=True),
    own("pytest.exit in a module", "pytest.exit('done', returncode=0)", statuses=(2,)),
    own("SystemExit in a test", "def test_own(): raise SystemExit(0)", statuses=(1,)),
    conftest("SystemExit in a conftest", "raise SystemExit(0)", plain=True, says="^$"),
    conftest("SystemExit in pytest_addoption", "def pytest_addoption(): raise SystemExit(0)", plain=True),
    conftest("pytest.exit in a conftest", "pytest.exit('done', returncode=0)", statuses=(4,)),
    plugin(
        "SystemExit in pytest_load_initial_conftests",
        "def pytest_load_initial_conftests(): raise SystemExit(0)",
        plain=True,
    ),
    conftest("shouldstop", "def pytest_runtest_logfinish(): raise pytest.Session.Interrupted", statuses=(2,)),
    conftest(
        "the session told to stop",
        "def pytest_collection_finish(session): session.shouldstop = 'enough'",
        statuses=(2,),
    ),
]

# --- hooks that have the last word ------------------------------------------------------------------------------------

LAST_WORDS = [
    conftest(
        "the status set in pytest_sessionfinish",
        "def pytest_sessionfinish(session): session.exitstatus = 0",
        statuses=(1,),
        faults=TOUCHED,
        plain=True,
    ),
    Route(
        "the status set by a later conftest",
        statuses=(1,),
        faults=TOUCHED,
        files={
            "gates/conftest.py": _source(
                """
                @pytest.hookimpl(wrapper=True, tryfirst=True)
                def pytest_sessionfinish(session):
                    yield
                    session.exitstatus = 0
                """
            )
        },
        plain=True,
    ),
    conftest(
        "the status set in pytest_unconfigure",
        """
        def pytest_sessionstart(session): session.config.session = session
        def pytest_unconfigure(config): config.session.exitstatus = 0
        """,
        statuses=(1,),
        faults=TOUCHED,
        plain=True,
    ),
    conftest("pytest_sessionfinish raises", "def pytest_sessionfinish(): 1 / 0", statuses=(1,)),
    conftest(
        "pytest_sessionfinish never reached",
        """
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_sessionfinish():
            pytest.exit("done", returncode=0)
            yield
        """,
        plain=True,
    ),
    conftest(
        "pytest_cmdline_main returns 0",
        "@pytest.hookimpl(tryfirst=True)\ndef pytest_cmdline_main(): return 0",
        plain=True,
    ),
    conftest(
        "pytest_cmdline_main wrapped",
        """
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_cmdline_main():
            yield
            return 0
        """,
        statuses=(1,),
        faults=TOUCHED,
        plain=True,
    ),
    conftest(
        "pytest_cmdline_main ends the process",
        """
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_cmdline_main():
            yield
            raise SystemExit(0)
        """,
        statuses=(1,),
        faults=TOUCHED,
        plain=True,
    ),
    conftest(
        "a cleanup ends the process",
        """
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_cmdline_main(config):
            yield
            config.add_cleanup(lambda: sys.exit(0))
            return 0
        """,
        statuses=(1,),
        faults=TOUCHED,
        plain=True,
    ),
    conftest(
        "pytest_unconfigure ends the process after another main",
        """
        @pytest.hookimpl(tryfirst=True)
        def pytest_cmdline_main(config):
            config._do_configure()
            return 0
        def pytest_unconfigure(): sys.exit(0)
        """,
        plain=True,
    ),
    plugin(
        "a plugin registered late wraps pytest_cmdline_main",
        """
        class Late:
            @pytest.hookimpl(wrapper=True, tryfirst=True)
            def pytest_cmdline_main(self):
                yield
                return 0
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_load_initial_conftests(early_config):
            yield
            early_config.pluginmanager.register(Late(), "late")
        """,
        statuses=(1,),
        faults=TOUCHED,
        plain=True,
    ),
    conftest(
        "the gate's plugins unregistered",
        """
        def pytest_sessionstart(session):
            manager = session.config.pluginmanager
            for name, _ in manager.list_name_plugin():
                if name.startswith("imagefresh"):
                    manager.unregister(name=name)
        """,
        statuses=(1,),
    ),
]

# --- hooks that lie ---------------------------------------------------------------------------------------------------

_GREEN = 'report.outcome, report.longrepr = "passed", None'
LIAR = f"""
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_logreport(report):
    {_GREEN}
    yield
"""
LIES = [
    conftest(
        f"{where} says passed, {what}",
        f"""
        @pytest.hookimpl(wrapper=True, tryfirst={first})
        def pytest_runtest_makereport():
            report = yield
            {_GREEN}
            return report
        """,
        files={"gates/test_own.py": BROKEN} if what == "own test" else {},
        faults=TOUCHED if what == "gate test" else (),
        broken=PRODUCTION if what == "gate test" else "",
        statuses=(1,),
        plain=True,
    )
    for where, first in (("the last wrapper of makereport", True), ("a wrapper of makereport", False))
    for what in ("gate test", "own test")
] + [
    conftest(
        "makereport replaced",
        """
        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_makereport(item, call):
            call.excinfo = None
            return pytest.TestReport.from_item_and_call(item, call)
        """,
        files={"gates/test_own.py": BROKEN},
        broken="",
        statuses=(1,),
        plain=True,
    ),
    conftest(
        "logreport says passed",
        LIAR,
        files={"gates/test_own.py": BROKEN},
        broken="",
        statuses=(1,),
        plain=True,
    ),
    conftest(
        "logreport says passed of what was skipped",
        LIAR,
        files={"gates/test_own.py": "import pytest\n@pytest.mark.xfail\ndef test_own(): 1 / 0\n"},
        broken="",
        plain=True,
    ),
    conftest(
        "pyfunc_call swallows",
        """
        @pytest.hookimpl(wrapper=True)
        def pytest_pyfunc_call():
            try:
                return (yield)
            except Exception:
                return True
        """,
        files={"gates/test_own.py": BROKEN},
        broken="",
        statuses=(1,),
        plain=True,
    ),
    conftest(
        "runtest_call swallows",
        """
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_call():
            try:
                return (yield)
            except Exception:
                return None
        """,
        files={"gates/test_own.py": BROKEN},
        broken="",
        statuses=(1,),
        plain=True,
    ),
    conftest("pyfunc_call does nothing", "def pytest_pyfunc_call(): return True", plain=True),
    conftest(
        "runtest_call does nothing",
        """
        def pytest_itemcollected(item): item.runtest = lambda: None
        """,
        plain=True,
    ),
    conftest("runtest_protocol does nothing", "def pytest_runtest_protocol(): return True", plain=True),
    conftest("runtestloop does nothing", "def pytest_runtestloop(): return True", plain=True),
    conftest("collection does nothing", "def pytest_collection(): return True", statuses=(5,)),
    conftest(
        "no failure is counted",
        """
        def pytest_sessionfinish(session): session.testsfailed = 0
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtestloop(session):
            try:
                yield
            finally:
                session.testsfailed = 0
            return True
        """,
        statuses=(1,),
        faults=TOUCHED,
        plain=True,
    ),
    conftest(
        "failures are collection warnings",
        """
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_make_collect_report(collector):
            report = yield
            report.outcome, report.longrepr = "passed", None
            report.result = report.result or []
            return report
        """,
        files={"gates/test_own.py": f"{BROKEN}1 / 0\n"},
        broken="",
        plain=True,
    ),
]

# --- reports ----------------------------------------------------------------------------------------------------------

REPORTS = [
    Route("JUnit below a file", ("--junitxml=pytest.ini/gate.xml",), (11,), reports=False),
    Route("JUnit on a full disk", ("--junitxml=/dev/full",), (11,), reports=False),
    Route("JUnit is a folder", ("--junitxml=gates",), (4,), reports=False),
    Route("evidence below a file", ("--gate-evidence=pytest.ini/evidence",), (11,)),
    Route("JUnit of an earlier run, mode that runs nothing", ("--markers",)),
    Route("JUnit of an earlier run, unknown branch", ("--branch", ""), (4,)),
    Route("JUnit of an earlier run, unknown repo", ("--repo", "nosuch"), (4,)),
    Route("JUnit without passing tests", ("-o", "junit_log_passing_tests=false", "-k", "accepts")),
    Route("JUnit of another family", ("-o", "junit_family=xunit1", "-k", "accepts")),
]

# --- workers ----------------------------------------------------------------------------------------------------------

_IN_WORKER = 'os.environ.get("PYTEST_XDIST_WORKER") and '
WORKERS = [
    Route("workers: -k", ("-n2", "-k", "not production"), plain=True),
    Route("workers: --deselect", ("-n2", "--deselect", PRODUCTION_ID)),
    Route("workers: --ignore", ("-n2", "--ignore=gates/test_provenance.py")),
    Route(
        "workers: a single node ID",
        ("-n2",),
        tests=("gates/test_provenance.py::test_hook_accepts_this_image",),
        plain=True,
    ),
    Route("workers: --collect-only", ("-n2", "--collect-only"), plain=True),
    Route("workers: -x", ("-n2", "-x"), (1, 2), faults=("stale-image",)),
    Route("workers: -k in the ini", ("-n2",), ini="addopts = -k accepts", says="weakened: -k "),
    Route("workers: -n in the ini and -k", ("-k", "accepts"), ini="addopts = -n2"),
    Route("workers: -n0", ("-n0", "-k", "accepts"), plain=True),
    Route("workers: --maxprocesses", ("-n4", "--maxprocesses=1", "-k", "accepts")),
    *[
        Route(f"workers: --dist={how}", ("-n2", f"--dist={how}", "-k", "not production"))
        for how in ("load", "worksteal", "each", "no")
    ],
    Route("workers: python -O", ("-n2",), python=("-O",), fresh=True, says="weakened: python -O"),
    Route("workers: engine that does not answer", ("-n2",), (11,), faults=("engine-down",)),
    Route("workers: one target left out", ("-n2", "-k", "not jobs"), settings=TWO_TARGETS),
    Route("workers: xfail", ("-n2",), edit=(_LINK, r"@pytest.mark.xfail\n\1"), faults=TOUCHED, plain=True),
    own("workers: skip", "def test_own(): pytest.skip('no')", "-n2", plain=True),
    own("workers: an exit", f"def test_own(): {_IN_WORKER}os._exit(0)", "-n2", statuses=(1,)),
    own(
        "workers: an exit, no restart",
        f"def test_own(): {_IN_WORKER}os._exit(0)",
        "-n2",
        "--max-worker-restart=0",
        statuses=(1,),
    ),
    own("workers: pytest.exit", "def test_own(): pytest.exit('done', returncode=0)", "-n2", statuses=(2, 3)),
    conftest(
        "workers: an exit in configure",
        f"def pytest_configure(): {_IN_WORKER}os._exit(0)",
        "-n2",
        statuses=(3, 5),
    ),
    conftest(
        "workers: an exit in sessionfinish",
        f"def pytest_sessionfinish(): {_IN_WORKER}os._exit(0)",
        "-n2",
        statuses=(10,),
    ),
    conftest(
        "workers: SystemExit in sessionstart",
        f"def pytest_sessionstart(): {_IN_WORKER}sys.exit(0)",
        "-n2",
        statuses=(3, 5),
    ),
    conftest("workers: items dropped", "def pytest_collection_modifyitems(items): items.pop(2)", "-n2"),
    conftest(
        "workers: the gate on two of them",
        """
        from xdist.scheduler import LoadScheduling
        @pytest.hookimpl(tryfirst=True)
        def pytest_xdist_make_scheduler(config, log): return LoadScheduling(config, log)
        """,
        "-n2",
        says="tried on several workers",
    ),
    conftest(
        "workers: logreport says passed",
        LIAR,
        "-n2",
        files={"gates/test_own.py": BROKEN},
        broken="",
        statuses=(1,),
        plain=True,
    ),
    conftest(
        "workers: the status set",
        "def pytest_sessionfinish(session): session.exitstatus = 0",
        "-n2",
        statuses=(1,),
        faults=TOUCHED,
        plain=True,
    ),
    conftest(
        "workers: a fixture replaced",
        "@pytest.fixture(scope='session')\ndef hook(hook): return hook",
        "-n2",
        says="uses the fixture hook of conftest",
    ),
]

# --- what no plugin can see -------------------------------------------------------------------------------------------

BLIND = [
    own("os._exit in a test", "def test_own(): os._exit(0)", statuses=(0,), plain=True, blind=True),
    conftest("os._exit in a conftest", "os._exit(0)", statuses=(0,), plain=True, blind=True),
    *[
        conftest(f"os._exit in {hook}", f"def {hook}(): os._exit(0)", statuses=(0,), plain=True, blind=True)
        for hook in ("pytest_configure", "pytest_sessionstart", "pytest_sessionfinish", "pytest_unconfigure")
    ],
    conftest(
        "os._exit at exit",
        "import atexit\natexit.register(os._exit, 0)",
        statuses=(0,),
        faults=TOUCHED,
        plain=True,
        blind=True,
    ),
    plugin("SystemExit in a plugin", "raise SystemExit(0)", statuses=(0,), plain=True, blind=True),
    Route(
        "os._exit before pytest",
        statuses=(0,),
        files={"sitecustomize.py": "import os\nos._exit(0)\n"},
        fresh=True,
        plain=True,
        blind=True,
    ),
]

ROUTES = [
    *SELECTIONS,
    *OUTCOMES,
    *(SUBTESTS if hasattr(pytest, "Subtests") else []),
    *FIXTURES,
    *MODES,
    *ORIGINS,
    *TEETH,
    *EARLY_ENDS,
    *LAST_WORDS,
    *LIES,
    *REPORTS,
    *WORKERS,
    *BLIND,
]

# --- what must stay harmless ------------------------------------------------------------------------------------------

_PASSES = "def test_own(staging_url, validated_revision, target): assert target.name == 'shop'"
HARMLESS = [
    *[
        Route(f"harmless: {' '.join(options)}", options, (0,))
        for options in (
            ("-v",),
            ("-q", "-q"),
            ("-rA",),
            ("--tb=no",),
            ("--color=yes",),
            ("--durations=0",),
            ("-s",),
            ("--capture=sys",),
            ("-p", "no:cacheprovider"),
            ("-o", "junit_family=xunit1"),
            ("-o", "junit_logging=all"),
            ("--junit-prefix=gate",),
            ("-n1",),
            ("-n2",),
            ("-n2", "--dist=each"),
            ("-n2", "--dist=worksteal"),
            ("-x",),
            ("-qx",),
            ("--maxfail=2",),
            ("-k", "test"),
            ("--lf",),
            ("--ff",),
            ("--nf",),
            ("--runxfail",),
            ("--strict-markers",),
            ("-W", "error::RuntimeWarning"),
            ("--repo", "shop"),
            ("--import-mode=importlib",),
            ("--gate-evidence=evidence",),
        )
    ],
    Route("harmless: verbosity in the ini", ("--no-header",), (0,), ini="addopts = -v -rA --color=no"),
    Route(
        "harmless: a skip without the plugin for it",
        ("-p", "no:skipping"),
        (0,),
        edit=(_LINK, r"@pytest.mark.skip\n\1"),
    ),
    Route("harmless: no JUnit", (), (0,), reports=False),
    Route("harmless: two targets", ("-n2",), (0,), settings=TWO_TARGETS),
    own("harmless: an own gate test", _PASSES, statuses=(0,)),
    own("harmless: parameters", "@pytest.mark.parametrize('x', [1, 2])\ndef test_own(x): pass", statuses=(0,)),
    own("harmless: a class", "class TestOwn:\n    def test_own(self, target): pass", statuses=(0,)),
    own(
        "harmless: unittest",
        "import unittest\nclass TestOwn(unittest.TestCase):\n    def test_own(self): pass",
        statuses=(0,),
    ),
    own(
        "harmless: an own fixture",
        "@pytest.fixture\ndef page(staging_url): return 1\ndef test_own(page): pass",
        statuses=(0,),
    ),
    Route(
        "harmless: ordinary tests beside it",
        ("-rs",),
        (0,),
        tests=("gates", "own"),
        files={"own/test_own.py": "import pytest\ndef test_one(): pass\n@pytest.mark.skip\ndef test_two(): pass\n"},
    ),
    conftest(
        "harmless: ordinary fixtures",
        "@pytest.fixture\ndef client(): return 1\n@pytest.fixture(autouse=True)\ndef each(): yield",
        statuses=(0,),
    ),
    conftest(
        "harmless: docker fixtures of other tests",
        "@pytest.fixture(scope='session')\ndef docker_ip(): 1 / 0",
        statuses=(0,),
    ),
    conftest(
        "harmless: a shuffle",
        """
        @pytest.hookimpl(tryfirst=True)
        def pytest_collection_modifyitems(items): __import__("random").shuffle(items)
        """,
        statuses=(0,),
    ),
    Route("harmless: file by file", (), (0,), tests=("gates/test_staging_fresh.py", "gates/test_provenance.py")),
    Route(
        "harmless: the other file first", (), (0,), tests=("gates/test_provenance.py", "gates/test_staging_fresh.py")
    ),
    Route("harmless: --pyargs", ("--pyargs",), (0,), files={"gates/__init__.py": ""}),
]
