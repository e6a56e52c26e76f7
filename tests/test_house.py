"""The shape of the code: no function over 80 lines, no class with more than 15 methods."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import attndrift

PACKAGE = Path(attndrift.__file__).parent


def _definitions() -> Iterator[tuple[Path, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield path.relative_to(PACKAGE), node


def test_functions_and_classes_are_small() -> None:
    large = []
    for path, node in _definitions():
        if isinstance(node, ast.ClassDef):
            methods = sum(isinstance(one, (ast.FunctionDef, ast.AsyncFunctionDef)) for one in node.body)
            large += [f"{path}: {node.name} has {methods} methods"] if methods > 15 else []
        elif node.end_lineno is not None and node.end_lineno - node.lineno + 1 > 80:
            large.append(f"{path}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert not large
