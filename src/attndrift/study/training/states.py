"""Resumable states that exist whole or not at all.

A state is written file by file into a scratch folder. Then a manifest of checksums is added, and one rename makes it a
state. A state is used only if every file has the checksum of its manifest; otherwise the one before is.

Weights are safetensors. Optimizer, schedule, scaler and random states are a file of ``torch.save`` that is read with
``weights_only=True``, which refuses everything that could run code.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attndrift.files import read_json, replace_folder, sha256, write_json
from attndrift.formats import FormatError, check_format, numbered

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
WEIGHTS = "model.safetensors"
TRAINING = "training.pt"
KEPT_STATES = 2
LITTLE_ROOM = 1 << 20
"""Bytes: a disk with less is what a failed write of a state has met."""


class StateError(ValueError):
    """A resumable state that holds what no state holds."""


def write_tensors(scratch: Path, weights: Mapping[str, Tensor], training: Mapping[str, Any]) -> None:
    """Write the trained ``weights`` and the states of the training into an empty folder ``scratch``.

    Raises OSError where the disk is full.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_file({name: weight.detach().contiguous().cpu() for name, weight in weights.items()}, scratch / WEIGHTS)
    try:
        torch.save(dict(training), scratch / TRAINING)
    except RuntimeError as error:
        # torch says at which byte its writer stopped, not why.
        if shutil.disk_usage(scratch).free < LITTLE_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(scratch)) from error
        raise


def read_weights(state: Path, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights of ``state`` into ``weights``. Raises ValueError where they are of other parameters."""
    stored = load_file(state / WEIGHTS)
    if set(stored) != set(weights):
        differing = sorted(set(stored) ^ set(weights))[:3]
        raise ValueError(f"{state}: its weights are of another run ({', '.join(differing)}, ...)")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(stored[name])


def read_training(state: Path) -> dict[str, Any]:
    """The states of the training. Raises :class:`StateError` for a file that holds more than tensors and numbers."""
    try:
        return dict(torch.load(state / TRAINING, map_location="cpu", weights_only=True))
    except UnpicklingError as error:
        raise StateError(
            f"{state}: holds something else than tensors and numbers, which reading it could run; it is not read. "
            "No run wrote it: remove the folder `resume` of this run, and it is trained anew"
        ) from error


def read_progress(state: Path) -> dict[str, Any]:
    """What :func:`publish` was given."""
    return dict(read_json(state / PROGRESS))


def step_of(state: Path | None) -> int:
    """The step of a state; 0 without one."""
    return int(state.name.removeprefix("step-")) if state else 0


def _states(root: Path) -> list[Path]:
    """Resumable states, newest first."""
    found = [p for p in root.glob("step-*") if p.name.removeprefix("step-").isdigit()]
    return sorted(found, key=step_of, reverse=True)


def publish(scratch: Path, root: Path, step: int, progress: dict[str, Any]) -> Path:
    """Make the finished checkpoint in ``scratch`` the state of ``step``; keep the newest two."""
    write_json(scratch / PROGRESS, progress)
    files = sorted(p for p in scratch.rglob("*") if p.is_file())
    for path in files:
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    checksums = {str(p.relative_to(scratch)): sha256(p) for p in files}
    write_json(scratch / MANIFEST, numbered("state", {"files": checksums}))
    target = root / f"step-{step}"
    replace_folder(scratch, target)
    for old in _states(root)[KEPT_STATES:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def damage(state: Path) -> str | None:
    """What is wrong with a state, in words; None if every file is as it was written.

    Raises :class:`~attndrift.formats.FormatError` for a state of another version.
    """
    try:
        manifest = read_json(state / MANIFEST)
    except (OSError, ValueError) as error:
        return f"its manifest cannot be read ({error})"
    try:
        check_format("state", manifest, state)
    except FormatError as error:
        if isinstance(manifest, dict) and PROGRESS in manifest:  # the form of version 0.1; anything else is damage
            raise
        return str(error)
    files = manifest.get("files")
    if not isinstance(files, dict):
        return "its manifest names no files"
    for name, expected in files.items():
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
