"""Weight drift of an adapted CLIP: full weights and LoRA updates on one scale, without merging."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import CLIPModel

from attndrift.methods.classifier import CLIPClassifier
from attndrift.metrics.weights import LowRankUpdate, squared_norm
from attndrift.metrics.weights import weight_drift as relative_distance


def _values(module: nn.Module) -> dict[str, Tensor | LowRankUpdate]:
    """Parameters under their plain names; a weight with an active adapter as its update."""
    values: dict[str, Tensor | LowRankUpdate] = {}
    for name, parameter in module.named_parameters():
        if ".lora_" not in name:
            values[name.replace(".base_layer.", ".")] = parameter.detach()
    for name, layer in module.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        if layer.merged:
            continue  # its weight already holds the update
        active = [adapter for adapter in layer.active_adapters if adapter in layer.lora_A]
        if layer.disable_adapters:
            raise ValueError(f"{name}: its adapters are disabled; enable them before drift is measured")
        if len(active) != 1:
            raise ValueError(f"{name}: {len(active)} active adapters; drift is measured with exactly one")
        adapter = active[0]
        a, b = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
        values[f"{name}.weight"] = LowRankUpdate(a, b, float(layer.scaling[adapter]))
    return values


def state_for_drift(
    classifier: CLIPClassifier, pretrained: CLIPModel
) -> tuple[dict[str, Tensor], dict[str, Tensor | LowRankUpdate]]:
    """Parameters of the vision transformer by name, pretrained and adapted, for ``metrics.weight_drift``.

    Embeddings, layer norms and blocks; the projection is apart (:func:`projection_drift`). A weight under
    an adapter is given as its :class:`~attndrift.metrics.LowRankUpdate`.
    """
    before = {name: value.detach() for name, value in pretrained.vision_model.named_parameters()}
    return before, _values(classifier.backbone.vision_model)


def squared_norms(pretrained: CLIPModel) -> tuple[float, float]:
    """Squared norms of the vision transformer and of the projection, for :func:`weight_drift` and :func:`projection_drift`."""
    return squared_norm(dict(pretrained.vision_model.named_parameters())), squared_norm(_projection(pretrained))


def weight_drift(classifier: CLIPClassifier, pretrained: CLIPModel, norm: float | None = None) -> float:
    """norm(dW) / norm(W0) over the vision transformer: embeddings, blocks and layer norms, not the projection.

    ``norm``: the first of :func:`squared_norms`, where somebody has it.
    """
    return relative_distance(*state_for_drift(classifier, pretrained), pretrained_squared_norm=norm)


def projection_drift(classifier: CLIPClassifier, pretrained: CLIPModel, norm: float | None = None) -> float:
    """norm(dW) / norm(W0) of the visual projection. ``norm``: the second of :func:`squared_norms`, where somebody has it."""
    return relative_distance(_projection(pretrained), _projection(classifier.backbone), pretrained_squared_norm=norm)


def _projection(clip: CLIPModel) -> dict[str, Tensor]:
    return {"weight": clip.visual_projection.weight.detach()}
