"""Secrets, and digests of them, are compared in a time that says nothing about them: nowhere by `==`, `!=` or `in`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import emp_pipe

PACKAGE = Path(emp_pipe.__file__).parent
_SECRET = re.compile(r"(^|_)(secret|token|tokens|password|passwords|digest|hexdigest|shared_key|shared_keys|authorization)(_|$)")
_NO_SECRET = {
    "certificates.py": "public keys",
}
COMPARES = {"bearer.py": 1, "forward_handshake.py": 3, "http_server.py": 1}
"""Where secrets of peers are compared, and how many times."""


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return _name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def careless(source: str) -> list[int]:
    """Return the lines on which something named like a secret is compared by content."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Compare):
            continue
        sides = [node.left, *node.comparators]
        by_content = any(isinstance(operator, (ast.Eq, ast.NotEq, ast.In, ast.NotIn)) for operator in node.ops)
        empty = any(isinstance(side, ast.Constant) and side.value in ("", b"", None) for side in sides)
        if by_content and not empty and any(_SECRET.search(_name(side)) for side in sides):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("source", ["token == given", "if digest != theirs: pass", "x = given in self._tokens", "a.reveal() == password"])
def test_a_careless_comparison_is_found(source: str) -> None:
    assert careless(source)


def test_no_secret_is_compared_by_its_content() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if path.name not in _NO_SECRET]
    found = [f"{path.relative_to(PACKAGE)}:{line}" for path in files for line in careless(path.read_text())]
    assert found == []


@pytest.mark.parametrize(("name", "times"), COMPARES.items())
def test_what_peers_show_is_compared_by_compare_digest(name: str, times: int) -> None:
    calls = [node for node in ast.walk(ast.parse((PACKAGE / name).read_text())) if isinstance(node, ast.Call)]
    assert sum(_name(call) == "compare_digest" for call in calls) == times
