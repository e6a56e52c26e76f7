"""The weights that a model trains, as it computes with them: of adapters the merged weight, which is what may be averaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attndrift.models.computed import copy_without_hooks
from attndrift.models.parameters import adapter_types, plain_low_rank


class EffectiveWeights:
    """The trained weights of a model, by the names that they have once its adapters are merged.

    The mean of two low-rank products is not the product of the means, and rotations and scales do not average either. So a
    layer under adapters is read as the weight that it computes with.

    Args:
        model: with or without adapters of ``peft``; a classifier around the backbone may be part of it.
    """

    def __init__(self, model: nn.Module) -> None:
        tuners, _ = adapter_types()
        modules: dict[str, nn.Module] = dict(model.named_modules())
        self._layers: dict[str, Any] = {
            _plain(name): modules[name]
            for name in modules
            if isinstance(modules[name], tuners) and any(p.requires_grad for p in modules[name].parameters())
        }
        inside = {id(p) for layer in self._layers.values() for p in layer.parameters()}
        self._whole = {
            _plain(name): p for name, p in model.named_parameters() if p.requires_grad and id(p) not in inside
        }

    @torch.no_grad()
    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Name and value of each as it is now; a value may be the parameter itself."""
        yield from ((name, p.detach()) for name, p in self._whole.items())
        for name, layer in self._layers.items():
            adapter, base = plain_low_rank(layer), layer.get_base_layer()
            if adapter is None or layer.merged or layer.disable_adapters:
                # A copy is merged: merging and unmerging would round the weights in training.
                merged: Any = copy_without_hooks(layer)
                merged.merge(safe_merge=False)
                yield from ((f"{name}.{own}", p.detach()) for own, p in merged.get_base_layer().named_parameters())
                continue
            a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            for own, p in base.named_parameters():
                yield f"{name}.{own}", torch.addmm(p, b, a, alpha=layer.scaling[adapter]) if own == "weight" else p


def _plain(name: str) -> str:
    return name.replace("base_model.model.", "", 1)
