"""Environments that hold some of the packages installed here, as links: what a fresh installation of an extra would have."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def copy_sources(folder: Path) -> Path:
    """What a wheel is built from, in ``folder``: building leaves files beside the sources."""
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder / name)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return folder


def build_metadata(sources: Path) -> PathDistribution:
    """The metadata of this package, made from its ``pyproject.toml``."""
    code = "import setuptools.build_meta as b; b.prepare_metadata_for_build_wheel('src')"
    subprocess.run([sys.executable, "-c", code], cwd=sources, check=True, capture_output=True, timeout=120)
    shutil.rmtree(sources / "src" / "attndrift.egg-info")
    return PathDistribution(next((sources / "src").glob("*.dist-info")))


def closure(wanted: Iterable[str], start: Distribution) -> dict[str, Distribution]:
    """``wanted`` (``pandas``, ``attndrift[study]``) and all that they need, by name; ``start`` is this package."""
    found: dict[str, Distribution] = {}
    asked, queue = set(), [Requirement(text) for text in wanted]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        try:
            found[name] = start if name == "attndrift" else distribution(name)
        except PackageNotFoundError:  # of an extra that `make install` leaves out
            continue
        for extra in ("", *requirement.extras):
            if (name, extra) in asked:
                continue
            asked.add((name, extra))
            for inner in map(Requirement, found[name].requires or ()):
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    queue.append(inner)
    return found


def link(folder: Path, found: dict[str, Distribution]) -> Path:
    """Links to the files of ``found``, this package excepted, in ``folder``."""
    folder.mkdir()
    for name, one in found.items():
        if name == "attndrift":
            continue
        for top in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
            place = folder / top
            if not place.exists():
                place.symlink_to(Path(str(one.locate_file(top))))
    return folder


def run_linked(arguments: list[str], sources: Path, packages: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with this package's ``sources`` and the linked ``packages``, and no other."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(sources / "src"), str(packages)])}
    return subprocess.run(
        # -S: no site-packages.
        [sys.executable, "-S", "-W", "ignore", *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
