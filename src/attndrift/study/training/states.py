"""Resumable states that exist whole or not at all.

A state is written file by file into a scratch folder. Then a manifest of checksums is added, and one rename makes it a
state. A state is used only if every file has the checksum of its manifest; otherwise the one before is.

Weights are safetensors. Optimizer, schedule, scaler and random states are a file of ``torch.save`` that is read with
``weights_only=True``, which refuses everything that could run code.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attndrift.files import apply_umask, read_json, replace_folder, sha256, write_json
from attndrift.formats import FormatError, check_format, numbered
from attndrift.sanitize import redact
from attndrift.study.record import differing_settings, name_differences
from attndrift.study.settings import RunSettings
from attndrift.study.training.metric_buffer import Progress

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
WEIGHTS = "model.safetensors"
TRAINING = "training.pt"
KEPT_STATES = 2
_NAME = re.compile(r"step-(0|[1-9][0-9]{0,17})")  # digits of ASCII alone: others have `isdigit`, and no `int`
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
    for name, weight in weights.items():
        if stored[name].shape != weight.shape:
            raise ValueError(
                f"{state}: `{name}` has shape {tuple(stored[name].shape)} there and {tuple(weight.shape)} in the run's model; "
                "it is of another run: remove the folder `resume` of this run, and it is trained anew"
            )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(stored[name])


def read_training(state: Path) -> dict[str, Any]:
    """The states of the training. Raises :class:`StateError` for a file that holds more than tensors and numbers."""
    try:
        return dict(torch.load(state / TRAINING, map_location="cpu", weights_only=True))
    except Exception as error:  # what is no file of torch.save ends in almost any error
        raise StateError(
            f"{state}: holds something else than tensors and numbers, which reading it could run; it is not read. "
            "No run wrote it: remove the folder `resume` of this run, and it is trained anew"
        ) from error


def read_progress(state: Path) -> Progress:
    """What :func:`publish` was given. Raises ``ValueError`` for what no run wrote."""
    return Progress.from_json(read_json(state / PROGRESS))


def step_of(state: Path | None) -> int:
    """The step of a state; 0 without one."""
    return int(state.name.removeprefix("step-")) if state else 0


def _states(root: Path) -> list[Path]:
    """Resumable states, newest first."""
    return sorted((p for p in root.glob("step-*") if _NAME.fullmatch(p.name)), key=step_of, reverse=True)


def publish(scratch: Path, root: Path, step: int, progress: Progress, settings: RunSettings) -> Path:
    """Make the finished checkpoint in ``scratch`` the state of ``step``; keep the newest two.

    ``settings``: of the run; a state is used by a run of the same settings alone.
    """
    write_json(scratch / PROGRESS, progress.to_json())
    apply_umask(scratch)
    files = sorted(p for p in scratch.rglob("*") if p.is_file())
    for path in files:
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    checksums = {str(p.relative_to(scratch)): sha256(p) for p in files}
    content = {"step": step, "settings": redact(settings.to_json()), "files": checksums}
    write_json(scratch / MANIFEST, numbered("state", content))
    target = root / f"step-{step}"
    replace_folder(scratch, target)
    for old in _states(root)[KEPT_STATES:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def damage(state: Path, settings: RunSettings) -> str | None:
    """Why a run of ``settings`` cannot go on from a state, in words; None if it can.

    Raises :class:`~attndrift.formats.FormatError` for a state of another version.
    """
    try:
        manifest = read_json(state / MANIFEST)
    except (OSError, ValueError, RecursionError) as error:
        return f"its manifest cannot be read ({error})"
    try:
        check_format("state", manifest, state)
    except FormatError as error:
        if isinstance(manifest, dict) and PROGRESS in manifest:  # the form of version 0.1; anything else is damage
            raise
        return str(error)
    files, there = manifest.get("files"), manifest.get("settings")
    if not isinstance(files, dict) or not isinstance(there, dict):
        return "its manifest names no files, or no settings"
    if manifest.get("step") != step_of(state):
        return f"its manifest is that of step {str(manifest.get('step'))[:20]}"
    for name in (WEIGHTS, TRAINING, PROGRESS):  # nothing else is read
        if not (state / name).is_file():
            return f"{name} is missing"
        if sha256(state / name) != files.get(name):
            return f"{name} does not have its recorded checksum"
    differences = differing_settings(there, settings)
    if differences:
        return f"it was saved with other settings: {name_differences(differences)}"
    try:
        read_progress(state)
    except (OSError, ValueError, RecursionError) as error:
        return f"{PROGRESS} holds what no run wrote ({str(error).splitlines()[0]})"
    return None


def newest(root: Path, settings: RunSettings, warn: Callable[[str], object]) -> Path | None:
    """The newest state below ``root`` that a run of ``settings`` can go on from.

    ``warn`` is told of each one that is passed over.
    """
    for path in sorted(root.glob("step-*")):
        if not _NAME.fullmatch(path.name):
            warn(f"{path.name} is not the name of a state and is passed over")
    for state in _states(root):
        problem = damage(state, settings)
        if problem is None:
            return state
        warn(f"{state.name} is damaged ({problem}); an earlier state is used")
    return None


def clear(root: Path) -> None:
    """Remove all states and what an interrupted write left behind."""
    shutil.rmtree(root, ignore_errors=True)
