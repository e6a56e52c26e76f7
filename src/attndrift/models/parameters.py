"""Parameters under their plain names, adapted and bare: full weights and ``peft`` adapters on one scale."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attndrift.metrics.weights import LowRankUpdate
from attndrift.models.module_utils import named_modules

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def copy_without_hooks(module: nn.Module) -> nn.Module:
    """A deep copy of ``module`` that nobody's hooks watch."""
    # What is in the memo counts as copied already: an empty dictionary stands in for each one of hooks.
    memo: dict[int, Any] = {id(getattr(part, name)): OrderedDict() for part in module.modules() for name in _HOOKS}
    return copy.deepcopy(module, memo)


def _adapted_layers(model: nn.Module, modules: Iterable[nn.Module] | None = None) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return [
        part for part in modules or named_modules(model) if isinstance(part, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    ]


def has_adapters(model: nn.Module) -> bool:
    """Whether ``peft`` has put anything into ``model``."""
    return bool(_adapted_layers(model))


@contextmanager
def bare(model: nn.Module, modules: Iterable[nn.Module] | None = None) -> Iterator[None]:
    """``model`` with its ``peft`` adapters switched off; which parameters are trained is as before afterwards.

    ``modules``: the model's own, where somebody has them.

    Raises ValueError where adapters are merged into the weights: switching those off would change the weights.
    """
    layers = _adapted_layers(model, modules)
    if any(getattr(layer, "merged", False) for layer in layers):
        raise ValueError(
            "the adapters are merged into the weights, so the bare model cannot be seen; unmerge them "
            "(`unmerge_adapter()`), or give the pretrained model as the reference"
        )
    enabled = [layer for layer in layers if not layer.disable_adapters]
    if not enabled:
        yield
        return
    # peft also freezes and unfreezes parameters when it switches adapters.
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for layer in enabled:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in enabled:
            layer.enable_adapters(True)
        for parameter, flag in trained:
            parameter.requires_grad_(flag)


def bare_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Parameters of ``module`` by the names that they have without adapters, with the values beneath those.

    Detached, and not copied. Raises as :func:`bare` does.
    """
    with bare(module):
        values = dict(_parameters(module, "", {}))
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def live_parameters(module: nn.Module, pretrained: Mapping[str, Tensor]) -> dict[str, Tensor | LowRankUpdate]:
    """Parameters of ``module`` as it computes with them, for :func:`attndrift.metrics.weight_drift`.

    A weight under one plain LoRA adapter, otherwise equal to its value in ``pretrained``, is given as its
    :class:`~attndrift.metrics.LowRankUpdate`; under any other adapter of ``peft`` as the merged weight.
    """
    return dict(_parameters(module, "", pretrained))


def _parameters(
    module: nn.Module, prefix: str, pretrained: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor | LowRankUpdate]]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    inner: Any = module
    if isinstance(module, BaseTunerLayer):
        yield from _tuned(inner, prefix, pretrained)
    elif isinstance(module, AuxiliaryTrainingWrapper):
        chosen = inner.original_module
        if not inner.disable_adapters:
            if not hasattr(inner, "modules_to_save") or len(inner.active_adapters) != 1:
                raise ValueError(
                    f"{prefix.rstrip('.')}: the weights of a {type(module).__name__} with the adapters "
                    f"{inner.active_adapters} cannot be told; pass `weight_drift=` to DriftMonitor"
                )
            chosen = inner.modules_to_save[inner.active_adapters[0]]
        yield from _parameters(chosen, prefix, pretrained)
    elif isinstance(getattr(inner, "_orig_mod", None), nn.Module):
        yield from _parameters(inner._orig_mod, prefix, pretrained)
    else:
        for name, parameter in module.named_parameters(recurse=False):
            yield prefix + name, parameter.detach()
        for name, child in module.named_children():
            yield from _parameters(child, f"{prefix}{name}.", pretrained)


def _tuned(layer: Any, prefix: str, pretrained: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor | LowRankUpdate]]:
    base = layer.get_base_layer()
    if layer.disable_adapters or layer.merged or not layer.active_adapters:
        yield from _parameters(base, prefix, pretrained)
        return
    adapter = plain_low_rank(layer)
    weight = f"{prefix}weight"
    if (
        adapter is not None
        and weight in pretrained
        and torch.equal(base.weight.to(pretrained[weight]), pretrained[weight])
    ):
        for name, value in _parameters(base, prefix, pretrained):
            if name != weight:
                yield name, value
        a, b = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
        yield weight, LowRankUpdate(a, b, float(layer.scaling[adapter]))
        return
    # The copy is merged, never the layer itself: merging and unmerging would round the user's weights.
    merged: Any = copy_without_hooks(layer)
    merged.merge(safe_merge=False)
    yield from _parameters(merged.get_base_layer(), prefix, pretrained)


def plain_low_rank(layer: Any) -> str | None:
    """The adapter of ``layer`` where it is one LoRA pair and nothing else (no DoRA, no bias, no other adapter)."""
    from peft.tuners.lora import Linear

    if not isinstance(layer, Linear) or layer.fan_in_fan_out or len(layer.active_adapters) != 1:
        return None
    adapter = str(layer.active_adapters[0])
    if adapter not in layer.lora_A or layer.use_dora.get(adapter) or layer.lora_bias.get(adapter):
        return None
    return None if adapter in getattr(layer, "lora_variant", {}) else adapter
