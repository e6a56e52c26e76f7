"""The package's own face."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import attndrift

ROOT = Path(__file__).parent.parent


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
