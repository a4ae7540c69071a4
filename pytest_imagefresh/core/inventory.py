"""Which tests a file of a gates folder declares, read from its text: what pytest was told to collect has no say."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator


def declared_tests(source: str) -> list[str]:
    """Return the names of the tests in a module, `test_x` or `TestX::test_y`, in order; a shadowed one stands twice.

    Raises SyntaxError.
    """
    return list(_declared(ast.parse(source).body))


def _declared(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test"):
            yield node.name
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from (f"{node.name}::{name}" for name in _declared(node.body))


def shadowed(names: list[str]) -> list[str]:
    """Return the names that stand more than once: of those, pytest runs only the last."""
    return [name for name, count in Counter(names).items() if count > 1]


def bears(node_id: str, declared: str) -> bool:
    """Say whether a node ID, with its parameters, is a run of the declared test `file.py::name`."""
    plain = node_id.partition("[")[0]
    return plain == declared or plain.endswith(f"/{declared}")
