"""What the gate adds to pytest's JUnit report: properties, stable names, and cases that no test function stands for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest
from _pytest.junitxml import LogXML, bin_xml_escape, xml_key

CLASS_NAME = "gates"
"""First part of the class name of every gate case, wherever the gates are installed."""


def report_of(config: pytest.Config) -> LogXML | None:
    """Return pytest's JUnit report of this session, None where none was asked for."""
    return config.stash.get(xml_key, None)


def path_of(config: pytest.Config) -> str:
    """Return the path of the JUnit report that was asked for, as given; "" for none."""
    return str(config.getoption("xmlpath", None) or "")


def remove_old(path: str) -> None:
    """Remove the report of an earlier run: should this one never come to its end, the old one must not speak for it.

    The path is as given to pytest, which resolves it in the same way.
    """
    place = Path(os.path.expandvars(path)).expanduser()
    if path and place.is_file():
        place.unlink()


def says_no(xml: LogXML) -> bool:
    """Say whether the report holds a failure or an error by now."""
    return bool(xml.stats["failure"] or xml.stats["error"])


def name_case(xml: LogXML, report: pytest.TestReport) -> None:
    """Give a gate test the same class name wherever pytest was started and the gates are installed."""
    module = Path(report.nodeid.partition("::")[0]).stem
    classes = report.nodeid.partition("[")[0].split("::")[1:-1]
    xml.node_reporter(report).add_attribute("classname", ".".join([CLASS_NAME, module, *classes]))


def put_sentence_first(xml: LogXML, report: pytest.TestReport) -> None:
    """Let the message of an error begin with the human sentence, as that of a failure does."""
    crash = getattr(report.longrepr, "reprcrash", None)
    sentence = str(report.longrepr) if crash is None else crash.message
    for node in xml.node_reporter(report).nodes:
        if node.tag == "error":
            node.set("message", bin_xml_escape(sentence))


def add_output(xml: LogXML, report: pytest.TestReport, text: str) -> None:
    """Add output to the case of a test, if there is any."""
    if text:
        output = ElementTree.Element("system-out")
        output.text = bin_xml_escape(text)
        xml.node_reporter(report).append(output)


def add_properties(xml: LogXML, run_id: str, facts: Mapping[str, Mapping[str, str]]) -> None:
    """Add what was proven to the suite: run ID, and revision, image, container and engine ID of each target.

    What is known to be nothing, such as the image of a production that never ran, is left out.
    """
    xml.add_global_property("run_id", run_id)
    for target, named in facts.items():
        for name, value in filter(all, named.items()):
            xml.add_global_property(f"{target}.{name}", value)


def add_case(xml: LogXML, name: str, problem: str = "", *, group: str = "", seconds: float = 0.0) -> None:
    """Add one case that no test function stands for; a problem makes it a failure, its first line the message."""
    node_id = f"{group or CLASS_NAME}.py::{name}"
    call = pytest.TestReport(
        nodeid=node_id,
        location=(f"{CLASS_NAME}.py", None, name),
        keywords={},
        outcome="failed" if problem else "passed",
        longrepr=problem or None,
        when="call",
        duration=seconds,
    )
    teardown = pytest.TestReport(node_id, call.location, {}, "passed", None, "teardown", duration=0.0)
    for report in (call, teardown):
        xml.pytest_runtest_logreport(report)
