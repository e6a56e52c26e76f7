"""The inputs of a run that are no settings: the model's files, the images, the class names, the prompts' tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attndrift.data.dataset import ImageDataset, ImageSplit
from attndrift.files import plain
from attndrift.study.pretrained import Pretrained
from attndrift.study.reference_images import ReferenceSet
from attndrift.study.run_images import Target, TransferSet
from attndrift.study.set_descriptions import DatasetSource, description_of
from attndrift.study.settings import RunSettings

_FUNCTION = ("hidden_act", "layer_norm_eps", "num_attention_heads", "patch_size", "image_size", "eos_token_id")
"""What a model computes with besides its weights, as its config states it for each tower."""


def inputs_of(
    settings: RunSettings,
    pretrained: Pretrained,
    target: Target,
    transfer: Sequence[TransferSet],
    reference: ReferenceSet | None = None,
) -> dict[str, dict[str, Any]]:
    """The inputs of a run as plain values, by what they are.

    An input that two runs share has one name. Its ``settings`` say what the runs were told of it: only where these are
    equal must all else be.
    """
    found = {
        f"model {pretrained.source}": _model(pretrained),
        f"dataset {settings.dataset}": _dataset(target.dataset, description_of(settings, settings.dataset)),
    }
    if reference is not None:
        found[f"dataset {reference.name}"] = _dataset(reference.dataset, description_of(settings, reference.name))
    for item in transfer:
        found[f"dataset {item.name}"] = _dataset(item.dataset, description_of(settings, item.name))
        if item.text is not None:
            found[f"prompts of {item.name} for {pretrained.source}"] = {
                "settings": _hash(item.text.templates), "tokens": item.text.tokens,
            }  # fmt: skip
    return plain(found)


def places_of(datasets: Iterable[ImageDataset]) -> dict[str, str]:
    """Where datasets are read from, in words, by the name that :func:`inputs_of` gives them."""
    places = {}
    for one in datasets:
        path, hub = one.source.get("path"), one.source.get("hub")
        if path:
            places[f"dataset {one.name}"] = f"read from {Path(path).resolve()}"
        elif hub:
            places[f"dataset {one.name}"] = f"commit {one.source.get('commit')} of {hub}; `revision` fixes one"
    return places


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode("utf-8", "surrogatepass")).hexdigest()


def _model(pretrained: Pretrained) -> dict[str, Any]:
    config: Any = getattr(pretrained.model, "config", None)
    towers = {name: getattr(config, f"{name}_config", config) for name in ("text", "vision")}
    return {
        "weights": pretrained.sha256,
        **{f"{tower} {name}": getattr(part, name, None) for tower, part in towers.items() for name in _FUNCTION},
        **{f"preprocessing {name}": value for name, value in pretrained.preprocessing.items()},
    }


def _dataset(dataset: ImageDataset, source: DatasetSource | None) -> dict[str, Any]:
    used = (dataset.train, *([dataset.test] if dataset.test_split else []))
    return {
        "settings": _hash(None if source is None else source.where()),
        "class names": list(dataset.class_names),
        **{f"split `{split.name}`": _split(split) for split in used},
    }


def _split(split: ImageSplit) -> dict[str, Any]:
    counts = np.bincount(split.labels, minlength=len(split.class_names)).tolist()
    return {
        "counts": dict(zip(split.class_names, counts, strict=True)),
        "names": _hash(sorted(zip(split.ids, split.labels.tolist(), strict=True))),
        "content": split.digest,
    }
