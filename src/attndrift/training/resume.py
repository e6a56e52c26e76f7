"""Resumable states that exist whole or not at all.

``transformers.Trainer`` writes a checkpoint file by file. Here it writes into a scratch folder; when
it is done, our own progress and a manifest of checksums are added, and one rename makes it a state.
A state is used only if every file has the checksum of its manifest; otherwise the one before is.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from attndrift.files import read_json, replace_folder, sha256, write_json

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
KEPT_STATES = 2


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _states(root: Path) -> list[Path]:
    """Resumable states, newest first."""
    found = [p for p in root.glob("step-*") if p.name.removeprefix("step-").isdigit()]
    return sorted(found, key=_step_of, reverse=True)


def publish(scratch: Path, root: Path, step: int, progress: dict[str, Any]) -> Path:
    """Make the finished checkpoint in ``scratch`` the state of ``step``; keep the newest two."""
    write_json(scratch / PROGRESS, progress)
    files = sorted(p for p in scratch.rglob("*") if p.is_file())
    for path in files:
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    write_json(scratch / MANIFEST, {str(p.relative_to(scratch)): sha256(p) for p in files})
    target = root / f"step-{step}"
    replace_folder(scratch, target)
    for old in _states(root)[KEPT_STATES:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def damage(state: Path) -> str | None:
    """What is wrong with a state, in words; None if every file is as it was written."""
    try:
        manifest = read_json(state / MANIFEST)
    except (OSError, ValueError) as error:
        return f"its manifest cannot be read ({error})"
    for name, expected in manifest.items():
        path = state / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256(path) != expected:
            return f"{name} does not have its recorded checksum"
    return None


def newest(root: Path, warn: Any) -> Path | None:
    """The newest undamaged state below ``root``; ``warn`` is told of each damaged one that is passed over."""
    for state in _states(root):
        problem = damage(state)
        if problem is None:
            return state
        warn(f"{state.name} is damaged ({problem}); an earlier state is used")
    return None


def clear(root: Path) -> None:
    """Remove all states and what an interrupted write left behind."""
    shutil.rmtree(root, ignore_errors=True)
