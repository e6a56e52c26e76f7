"""The package's own face."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import attndrift

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "attndrift"


@pytest.mark.slow
def test_every_public_name_can_be_had_in_any_order() -> None:
    """A submodule of the same name would take the place of a function once it is imported."""
    code = (
        "import attndrift, attndrift.attention, attndrift.drift, attndrift.retention.zero_shot;"
        "assert all(callable(getattr(attndrift, n)) for n in attndrift.__all__ if n != '__version__');"
        "assert attndrift.observe is attndrift.attention.observe and attndrift.observe is attndrift.observe"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_version_is_that_of_the_installed_package() -> None:
    assert attndrift.__version__ == importlib.metadata.version("attndrift")


def test_no_file_names_a_machine_or_is_too_large() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    names = tracked.stdout.split() or [str(p.relative_to(ROOT)) for p in (ROOT / "src").rglob("*.py")]
    forbidden = ["/" + "work" + "/", "/" + "root" + "/"]
    for name in names:
        path = ROOT / name
        if not path.is_file():
            continue
        assert path.stat().st_size < 8_000_000, name
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ".cff", ""}:
            text = path.read_text(errors="ignore")
            assert not any(word in text for word in forbidden), name


def test_an_import_inside_a_function_has_a_reason() -> None:
    """Optional extras and start-up time: said beside the import, or once for the file."""
    without = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        # Every command is started alone: all of them import what they need when they are called.
        if "Imports inside functions" in text or "cli" in path.relative_to(PACKAGE).parts:
            continue
        lines = text.splitlines()
        for function in ast.walk(ast.parse(text)):
            if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            for node in ast.walk(function):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    near = "\n".join(lines[max(function.lineno - 1, node.lineno - 5) : node.lineno])
                    if "#" not in near and "importing(" not in near:
                        without.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert not without
