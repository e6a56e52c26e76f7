"""Whether there is room for what a study downloads and writes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attndrift.methods.frozen_blocks import blocks_named
from attndrift.study.check_findings import Check, listed, size
from attndrift.study.settings import RunSettings
from attndrift.study.storage_url import is_url
from attndrift.study.text_needs import lacks_text_tower

RECORD_BYTES = 100_000
"""Less than what the records, histories and maps of any run take."""
# What ``transformers`` takes for a vision tower of CLIP where its config leaves a number out.
_USUAL = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "patch_size": 32,
    "image_size": 224,
    "num_channels": 3,
}


def least_bytes(settings: Iterable[RunSettings], configs: Mapping[str, Mapping[str, Any]], jobs: int) -> float:
    """Bytes that these runs write at least, told from the configs of their models alone.

    Checkpoints that stay, records, and the resumable states of the ``jobs`` largest runs. No image is counted and no
    model is made, so what depends on them (classifiers, fingerprints, adapters) is left out.

    Args:
        settings: of the runs that are still to be done.
        configs: of the models, by model; of another model nothing is known.
    """
    kept, states = 0.0, []
    for one in settings:
        weights = 4.0 * _trained(one, _vision(configs[one.model])) if one.model in configs else 0.0
        checkpoints = {"best": 1, "best+final": 2}.get(one.keep, 2 + one.epochs)
        kept += RECORD_BYTES + checkpoints * weights
        # Weights and two moments; another one is written before the last is removed.
        states.append(2 * 3 * weights)
    return kept + sum(sorted(states, reverse=True)[:jobs])


def _vision(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the vision tower: the config itself where that tower is the whole model."""
    if not lacks_text_tower("", config):
        vision: Mapping[str, Any] = config["vision_config"]
        return vision
    if config.get("intermediate_size") is not None or config.get("mlp_ratio") is None:
        return config
    with suppress(TypeError, ValueError, KeyError):  # what is wrong with a config is not said here
        return {**config, "intermediate_size": int(config["hidden_size"] * config["mlp_ratio"])}
    return {"hidden_size": None}


def _trained(settings: RunSettings, vision: Mapping[str, Any]) -> int:
    """Parameters of the vision tower that are trained, at least."""
    try:
        width, inner, blocks, patch, image, channels = (int(vision.get(name, usual)) for name, usual in _USUAL.items())
        tokens = (image // patch) ** 2 + 1
    except (TypeError, ValueError, ZeroDivisionError, AttributeError):
        # What is wrong with a config is not said here.
        return 0
    block = 4 * width * (width + 1) + 2 * width * inner + inner + width + 4 * width
    embeddings = width * (1 + channels * patch**2 + tokens)
    whole = settings.facts.least_trained(embeddings=embeddings, block=block, blocks=blocks)
    frozen = set(range(min(settings.freeze_layers, blocks)))
    with suppress(ValueError):  # a block that is not there, which is said elsewhere
        frozen |= blocks_named(settings.freeze_blocks, blocks, "freeze_blocks")
    return max(0, whole - len(frozen) * block)


def check_disk(found: Check, where: str, *, written: float) -> None:
    """Add a finding for each file system: what is downloaded and written there, against the room that is left.

    ``written``: bytes that the study writes into ``where``.
    """
    needed: dict[str, float] = {}
    for download in found.downloads:
        needed[download.folder] = needed.get(download.folder, 0.0) + download.bytes
    if not is_url(where):
        needed[where] = needed.get(where, 0.0) + written
    together: dict[int, list[str]] = {}
    for folder in needed:
        together.setdefault(os.stat(existing(Path(folder))).st_dev, []).append(folder)
    for folders in together.values():
        total = sum(needed[folder] for folder in folders)
        free = shutil.disk_usage(existing(Path(folders[0]))).free
        detail = f"{size(total)} to be written, {size(free)} free"
        if len(folders) > 1:
            detail += f"; {listed(f'{size(needed[folder])} into {folder}' for folder in folders)}"
        if total > free:
            found.add(f"disk {listed(folders)}", "problem", detail,
                      "make room, or choose another place (--output, HF_HOME)")  # fmt: skip
        else:
            found.add(f"disk {listed(folders)}", "ok", detail)


def existing(folder: Path) -> Path:
    """``folder``, or the nearest folder above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
