"""The files of a model that is one side of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from attndrift.compare.errors import CompareError
from attndrift.files import read_json
from attndrift.models.errors import CheckpointError, ModelError
from attndrift.models.hub import convert_hint, resolve_model
from attndrift.models.weight_files import INDEX, WEIGHTS
from attndrift.sanitize import printable


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises :class:`CompareError` where it is anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise CompareError(f"{printable(path)}: not a JSON object; the file was changed or belongs to something else")
    return value


def weight_files(source: str) -> list[Path]:
    """The ``safetensors`` files of a model in a folder or on a hub, shards too. Raises :class:`ModelError`."""
    model = resolve_model(source)
    if not model.weights:
        raise ModelError(f"{printable(source)}: holds no {WEIGHTS}. {convert_hint(printable(source))}")
    folder = model.fetch(model.weights)
    if model.weights == [WEIGHTS]:
        return [folder / WEIGHTS]
    shards = read_object(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelError(f"{printable(source)}: {INDEX} has no weight_map; download it again")
    found = []
    for name in sorted({str(name) for name in shards.values()}):
        if name not in model.files:
            raise ModelError(f"{printable(source)}: {INDEX} names {printable(name)}, which is not there")
        found.append(model.fetch([name]) / name)
    return found


def check_unexpected_keys(source: str, model: nn.Module, strange: Sequence[str]) -> None:
    """Raise for stored tensors that ``model`` has no place for, such as adapters not merged."""
    if strange:
        raise CheckpointError(
            f"{printable(source)}: {len(strange)} stored tensors have no place in a {type(model).__name__}, for "
            f"instance {printable(strange[0])}; what they would change is not in the model. Give the adapter's own folder, or "
            "merge it before saving"
        )
