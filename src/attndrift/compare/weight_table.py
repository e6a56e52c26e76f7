"""How far each part of a model's weights has moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attndrift.methods.parameter_drift import TextWeights, projection_parameters, tower_parameters
from attndrift.metrics.registry import METRICS
from attndrift.metrics.weights import weight_drift
from attndrift.models.backbone import Backbone, backbone_of


@dataclass(frozen=True)
class WeightTable:
    """Weight drift between two models.

    Attributes:
        rows: a row a part: ``module``, ``drift`` and number of ``parameters``.
        numbers: every registered metric of the image side's weights, by name.
        text: those of the text side; empty where the two have text towers of different shapes.
    """

    rows: list[dict[str, Any]]
    numbers: dict[str, float]
    text: dict[str, float]

    @property
    def moved(self) -> float:
        """How far the weights that embed images have moved; 0 where all of them are equal."""
        return self.numbers["weight_drift"] + self.numbers["projection_drift"]


def weight_table(base: nn.Module, adapted: nn.Module) -> WeightTable:
    """The weight drift from ``base`` to ``adapted``, whose image towers have the same shapes."""
    sides = [backbone_of(model) for model in (base, adapted)]
    before, after = (tower_parameters(side) for side in sides)
    modules, groups = _modules(sides[0]), dict[str, list[str]]()
    for name in before:
        groups.setdefault(modules[name], []).append(name)
    rows = [
        _row(module, *({n: side[n] for n in names} for side in (before, after))) for module, names in groups.items()
    ]
    rows.sort(key=lambda row: (row["module"] == "layer norms") + 2 * (row["module"] == "pooling head"))
    whole = _row("vision transformer", before, after)
    numbers = {"weight_drift": whole["drift"], "projection_drift": 0.0}
    ends = [projection_parameters(side) for side in sides]
    if ends[0]:
        projection = _row("projection", *ends)
        numbers["projection_drift"] = projection["drift"]
        rows.append(projection)
    rows.append(whole)
    text: dict[str, float] = {}
    towers, ends = map(list, zip(*map(_text_parts, sides), strict=True))
    if towers[0] and all(_shapes(one) == _shapes(other) for one, other in (towers, ends)):
        rows += [_row("text transformer", *towers)] + ([_row("text projection", *ends)] if ends[0] else [])
        text = TextWeights.of(sides[0]).drift(sides[1])
    for metric in METRICS:
        if metric.needs == "weights" and metric.name not in numbers:
            numbers[metric.name] = float(metric.function(before, after))
    return WeightTable(rows, numbers, text)


def _text_parts(backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters of the text tower and of its projection, where there are such."""
    text = backbone.text
    return ({}, {}) if text is None else (tower_parameters(text), projection_parameters(text))


def _shapes(parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in parameters.items()}


def _modules(backbone: Backbone) -> dict[str, str]:
    """The row that each parameter of the image tower belongs to, by its name in the tower."""
    block_of = {part: number for number, block in enumerate(backbone.blocks, start=1) for part in block.modules()}
    found: dict[str, str] = {}
    for path, part in backbone.tower.named_modules():
        for own, _ in part.named_parameters(recurse=False):
            name = f"{path}.{own}".lstrip(".")
            found[name] = _row_of(path, own, block_of.get(part))
    return found


def _row_of(path: str, own: str, block: int | None) -> str:
    parts = path.split(".")
    if block is not None:
        kinds = {"attention": ("attn", "attention"), "MLP": ("mlp", "intermediate")}
        found = next((kind for kind, words in kinds.items() if any(w in p for p in parts for w in words)), None)
        return f"block {block} {found}" if found else "layer norms"
    if any(part in ("head", "attn_pool", "pooler", "attnpool") for part in parts):
        return "pooling head"
    return "layer norms" if any("norm" in part or part.startswith("ln_") for part in parts) else "embeddings"


def _row(module: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Any]:
    parameters = sum(value.numel() for value in before.values())
    return {"module": module, "drift": weight_drift(before, after), "parameters": parameters}
