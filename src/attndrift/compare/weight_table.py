"""How far each part of a model's weights has moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import CLIPModel

from attndrift.methods.parameter_drift import TextWeights
from attndrift.metrics.registry import METRICS
from attndrift.metrics.weights import weight_drift
from attndrift.models.backbone import backbone_of


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


def weight_table(base: CLIPModel, adapted: CLIPModel) -> WeightTable:
    """The weight drift from ``base`` to ``adapted``, whose vision towers have the same shapes."""
    before, after = (_parameters(clip.vision_model) for clip in (base, adapted))
    groups: dict[str, list[str]] = {}
    for name in before:
        groups.setdefault(_module_of(name), []).append(name)
    rows = [
        _row(module, *({n: side[n] for n in names} for side in (before, after))) for module, names in groups.items()
    ]
    rows.sort(key=lambda row: row["module"] == "layer norms")
    projections = (_parameters(clip.visual_projection) for clip in (base, adapted))
    projection, whole = _row("projection", *projections), _row("vision transformer", before, after)
    rows += [projection, whole]
    text: dict[str, float] = {}
    towers, ends = ([_parameters(getattr(clip, part)) for clip in (base, adapted)] for part in _TEXT)
    if all(_shapes(one) == _shapes(other) for one, other in (towers, ends)):
        rows += [_row("text transformer", *towers), _row("text projection", *ends)]
        text = TextWeights.of(backbone_of(base)).drift(backbone_of(adapted))
    numbers = {"weight_drift": whole["drift"], "projection_drift": projection["drift"]}
    for metric in METRICS:
        if metric.needs == "weights" and metric.name not in numbers:
            numbers[metric.name] = float(metric.function(before, after))
    return WeightTable(rows, numbers, text)


_TEXT = ("text_model", "text_projection")


def _shapes(parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in parameters.items()}


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def _module_of(name: str) -> str:
    """The row that a parameter of the vision tower belongs to."""
    parts = name.split(".")
    if parts[0] == "embeddings":
        return "embeddings"
    if parts[0] == "encoder":
        kind = {"self_attn": "attention", "mlp": "MLP"}.get(parts[3])
        return f"block {int(parts[2]) + 1} {kind}" if kind else "layer norms"
    return "layer norms"


def _row(module: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Any]:
    parameters = sum(value.numel() for value in before.values())
    return {"module": module, "drift": weight_drift(before, after), "parameters": parameters}
