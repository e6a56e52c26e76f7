"""Parameters under their plain names, adapted and bare: full weights and ``peft`` adapters on one scale."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attndrift.metrics.weights import LowRankUpdate
from attndrift.models.computed import copy_without_hooks, own_children, own_weights
from attndrift.models.module_utils import named_modules
from attndrift.models.own_layers import own_layer

# Imports inside functions: these packages take time to load, which only who needs them pays.


def adapter_types() -> tuple[tuple[type, ...], tuple[type, ...]]:
    """The layers of ``peft`` that hold adapters, and those that hold a trained copy of a module (``modules_to_save``).

    Both are empty where nobody has imported ``peft``: then no model has such layers, and ``peft`` need not be installed.
    """
    if "peft" not in sys.modules:
        return (), ()
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return (BaseTunerLayer,), (AuxiliaryTrainingWrapper,)


def _adapted_layers(model: nn.Module, modules: Iterable[nn.Module] | None = None) -> list[Any]:
    tuners, copies = adapter_types()
    return [part for part in modules or named_modules(model) if isinstance(part, tuners + copies)]


def has_adapters(model: nn.Module) -> bool:
    """Whether ``peft`` has put anything into ``model``."""
    return bool(_adapted_layers(model))


_DECOMPOSING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of peft's ``init_lora_weights`` that take what the adapters start from out of the weights beneath."""


def decomposed_by(modules: Iterable[nn.Module]) -> str | None:
    """How LoRA adapters started that took a part of the weights beneath out; None where the weights are the pretrained ones."""
    for part in modules:
        configs = getattr(part, "peft_config", None)
        for config in configs.values() if isinstance(configs, dict) else ():
            start = getattr(config, "init_lora_weights", None)
            if isinstance(start, str) and start.startswith(_DECOMPOSING):
                return start
    return None


@contextmanager
def bare(model: nn.Module, modules: Iterable[nn.Module] | None = None) -> Iterator[None]:
    """``model`` with its ``peft`` adapters switched off; which parameters are trained is as before afterwards.

    ``modules``: the model's own, where somebody has them.

    Raises ValueError where adapters are merged into the weights, as switching those off would change the weights; and where
    adapters started from a part of the weights, as without them the model is not the pretrained one.
    """
    modules = None if modules is None else list(modules)
    layers = _adapted_layers(model, modules)
    decomposed = decomposed_by(modules or model.modules()) if layers else None
    if decomposed is not None:
        raise ValueError(
            f"the adapters started from a part of the weights (init_lora_weights={decomposed!r}), so that without them the "
            "model is not the pretrained one; give the pretrained model as the reference"
        )
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

    Detached, and not copied; without a classifier of timm. Raises as :func:`bare` does.
    """
    with bare(module):
        values = dict(_parameters(module, "", {}, task_classifiers(module)))
    return {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}


def live_parameters(module: nn.Module, pretrained: Mapping[str, Tensor]) -> dict[str, Tensor | LowRankUpdate]:
    """Parameters of ``module`` as it computes with them, for :func:`attndrift.metrics.weight_drift`.

    A weight that torch computes from other parameters (``parametrize``, ``weight_norm``, ``spectral_norm``, ``prune``) is given
    as computed, under the name it had before. So is the weight of a layer of one's own that stands for a linear one. A weight
    under one plain LoRA adapter, otherwise equal to its value in ``pretrained``, is given as its
    :class:`~attndrift.metrics.LowRankUpdate`; under any other adapter of ``peft`` as the merged weight. A classifier of timm, which sits inside the transformer, is left out.
    """
    found = _parameters(module, "", pretrained, task_classifiers(module))
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in found}


def parameter_names(
    module: nn.Module, pretrained: Mapping[str, Tensor], *, adapted: bool = True
) -> dict[nn.Parameter, str]:
    """The names that :func:`live_parameters` has for the parameters that are a whole weight: none of an adapter, no part of one.

    ``adapted``: false leaves out all of a layer that carries an adapter, its bias too.
    """
    without = task_classifiers(module)
    if not adapted:
        tuners, _ = adapter_types()
        without |= {part for part in named_modules(module) if isinstance(part, tuners)}
        if module in without:
            return {}
    found = _parameters(module, "", pretrained, without)
    return {value: name for name, value in found if isinstance(value, nn.Parameter)}


def task_classifiers(module: nn.Module) -> frozenset[nn.Module]:
    """What timm's ``get_classifier`` names: new for each task, so that it has no pretrained state to drift from."""
    named = [part.get_classifier() for part in module.modules() if callable(getattr(part, "get_classifier", None))]  # type: ignore[operator]
    heads = [head for found in named for head in (found if isinstance(found, (tuple, list)) else (found,))]
    return frozenset(head for head in heads if isinstance(head, nn.Module))


def _parameters(
    module: nn.Module, prefix: str, pretrained: Mapping[str, Tensor], without: frozenset[nn.Module]
) -> Iterator[tuple[str, Tensor | LowRankUpdate]]:
    tuners, copies = adapter_types()
    inner: Any = module
    if isinstance(module, tuners):
        yield from _tuned(inner, prefix, pretrained)
    elif isinstance(module, copies):
        chosen = inner.original_module
        if not inner.disable_adapters:
            if not hasattr(inner, "modules_to_save") or len(inner.active_adapters) != 1:
                raise ValueError(
                    f"{prefix.rstrip('.')}: the weights of a {type(module).__name__} with the adapters "
                    f"{inner.active_adapters} cannot be told; pass `weight_drift=` to DriftMonitor"
                )
            chosen = inner.modules_to_save[inner.active_adapters[0]]
        yield from _parameters(chosen, prefix, pretrained, without)
    elif isinstance(getattr(inner, "_orig_mod", None), nn.Module):
        yield from _parameters(inner._orig_mod, prefix, pretrained, without)
    elif (asked := own_layer(module, prefix.rstrip("."))) is not None:
        yield f"{prefix}weight", asked.weight
        if asked.bias is not None:
            yield f"{prefix}bias", asked.bias
    else:
        for name, weight in own_weights(module):
            yield prefix + name, weight
        for name, child in own_children(module):
            if child not in without:
                yield from _parameters(child, f"{prefix}{name}.", pretrained, without)


def _tuned(layer: Any, prefix: str, pretrained: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor | LowRankUpdate]]:
    base = layer.get_base_layer()
    if layer.disable_adapters or layer.merged or not layer.active_adapters:
        yield from _parameters(base, prefix, pretrained, frozenset())
        return
    adapter = plain_low_rank(layer)
    weight = f"{prefix}weight"
    if adapter is not None and weight in pretrained:
        values = dict(_parameters(base, prefix, pretrained, frozenset()))
        now = values.pop(weight, None)
        if isinstance(now, Tensor) and torch.equal(now.to(pretrained[weight]), pretrained[weight]):
            yield from values.items()
            a, b = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
            yield weight, LowRankUpdate(a, b, float(layer.scaling[adapter]))
            return
    # The copy is merged, never the layer itself: merging and unmerging would round the user's weights.
    merged: Any = copy_without_hooks(layer)
    merged.merge(safe_merge=False)
    yield from _parameters(merged.get_base_layer(), prefix, pretrained, frozenset())


def plain_low_rank(layer: Any) -> str | None:
    """The adapter of ``layer`` where it is one LoRA pair and nothing else (no DoRA, no bias, no other adapter)."""
    from peft.tuners.lora import Linear

    if not isinstance(layer, Linear) or layer.fan_in_fan_out or len(layer.active_adapters) != 1:
        return None
    adapter = str(layer.active_adapters[0])
    if adapter not in layer.lora_A or layer.use_dora.get(adapter) or layer.lora_bias.get(adapter):
        return None
    return None if adapter in getattr(layer, "lora_variant", {}) else adapter
