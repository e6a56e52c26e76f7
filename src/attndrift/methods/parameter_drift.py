"""Weight drift of an adapted CLIP: full weights and LoRA updates on one scale, without merging."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from attndrift.methods.classifier import ImageClassifier
from attndrift.metrics.weights import LowRankUpdate, squared_norm
from attndrift.metrics.weights import weight_drift as relative_distance
from attndrift.models.backbone import Backbone, backbone_of
from attndrift.models.parameters import bare_parameters, live_parameters


def _values(module: nn.Module, pretrained: Mapping[str, Tensor]) -> dict[str, Tensor | LowRankUpdate]:
    for name, layer in module.named_modules():
        if getattr(layer, "disable_adapters", False) is True:
            raise ValueError(f"{name}: its adapters are disabled; enable them before drift is measured")
    return live_parameters(module, pretrained)


def state_for_drift(
    classifier: ImageClassifier, pretrained: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Tensor | LowRankUpdate]]:
    """Parameters of the vision transformer by name, pretrained and adapted, for ``metrics.weight_drift``.

    Embeddings, layer norms and blocks; the projection is apart (:func:`projection_drift`). A weight under
    an adapter is given as its :class:`~attndrift.metrics.LowRankUpdate`.
    """
    before = tower_parameters(backbone_of(pretrained))
    inside = classifier.view.projection_in_tower
    after = _values(classifier.view.tower, before)
    return before, {name: value for name, value in after.items() if name not in inside}


def tower_parameters(backbone: Backbone) -> dict[str, Tensor]:
    """The tower's parameters beneath adapters, without a projection that it may hold."""
    inside = backbone.projection_in_tower
    return {name: value for name, value in bare_parameters(backbone.tower).items() if name not in inside}


def projection_parameters(backbone: Backbone) -> dict[str, Tensor]:
    """The parameters of the projection beneath adapters, behind the tower or in it; empty without one."""
    if backbone.projection is not None:
        return bare_parameters(backbone.projection)
    return {name: backbone.tower.get_parameter(name).detach() for name in backbone.projection_in_tower}


def _projection_now(backbone: Backbone, pretrained: Mapping[str, Tensor]) -> Mapping[str, Tensor | LowRankUpdate]:
    return projection_parameters(backbone) if backbone.projection is None else _values(backbone.projection, pretrained)


def squared_norms(pretrained: nn.Module) -> tuple[float, float]:
    """Squared norms of the vision transformer and of the projection, for :func:`weight_drift` and :func:`projection_drift`."""
    backbone = backbone_of(pretrained)
    projection = projection_parameters(backbone)
    return squared_norm(tower_parameters(backbone)), squared_norm(projection) if projection else 0.0


def weight_drift(classifier: ImageClassifier, pretrained: nn.Module, norm: float | None = None) -> float:
    """norm(dW) / norm(W0) over the vision transformer: embeddings, blocks and layer norms, not the projection.

    ``norm``: the first of :func:`squared_norms`, where somebody has it.
    """
    return relative_distance(*state_for_drift(classifier, pretrained), pretrained_squared_norm=norm)


def projection_drift(classifier: ImageClassifier, pretrained: nn.Module, norm: float | None = None) -> float:
    """norm(dW) / norm(W0) of the projection to the embedding; 0 without one. ``norm``: the second of :func:`squared_norms`, where somebody has it."""
    before = projection_parameters(backbone_of(pretrained))
    if not before:
        return 0.0
    return relative_distance(before, _projection_now(classifier.view, before), pretrained_squared_norm=norm)


@dataclass(frozen=True)
class TextWeights:
    """The parameters of a text side at one time: the text transformer, its projection, and the logarithm of the inverse temperature."""

    tower: Mapping[str, Tensor]
    projection: Mapping[str, Tensor]
    logit_scale: float

    @classmethod
    def of(cls, backbone: Backbone, *, copied: bool = False) -> TextWeights:
        """Those of ``backbone`` now, without adapters; ``copied`` where it will be trained.

        Raises ``ValueError`` for a model without a text tower that can be trained.
        """
        text, scale = _text_of(backbone), backbone.logit_scale
        assert scale is not None
        parts = (tower_parameters(text), projection_parameters(text))
        tower, projection = (
            {name: value.clone() if copied else value for name, value in part.items()} for part in parts
        )
        return cls(tower, projection, float(scale))

    def drift(self, backbone: Backbone) -> dict[str, float]:
        """How far ``backbone`` is from them, by the name of the metric.

        ``text_weight_drift`` and ``text_projection_drift`` are norm(dW) / norm(W0); ``logit_scale_change`` is a difference.
        """
        text, scale = _text_of(backbone), backbone.logit_scale
        assert scale is not None
        projection = 0.0
        if self.projection:
            projection = relative_distance(self.projection, _projection_now(text, self.projection))
        tower = {name: now for name, now in _values(text.tower, self.tower).items() if name in self.tower}
        return {
            "text_weight_drift": relative_distance(self.tower, tower),
            "text_projection_drift": projection,
            "logit_scale_change": float(scale) - self.logit_scale,
        }


def _text_of(backbone: Backbone) -> Backbone:
    if backbone.text is None or backbone.logit_scale is None:
        raise ValueError(f"{type(backbone.model).__name__} has no text tower whose drift could be measured")
    return backbone.text
