"""Weights that torch computes from other parameters: ``parametrize``, ``weight_norm``, ``spectral_norm``, ``prune``."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from attndrift.models.evaluation import preserve_state

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def own_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of ``module`` itself, without its children, by the names that its forward pass uses.

    A parameter is given as it is. A weight that torch computes from other parameters is computed as in evaluation mode, under
    the name it had before; its sources are left out.
    """
    computed = dict(_parametrized(module))
    sources: set[str] = set()
    for name, value, made_of in _hooked(module):
        computed[name] = value
        sources.update(made_of)
    for own, parameter in module.named_parameters(recurse=False):
        if own not in sources:
            yield own, parameter
    yield from computed.items()


def own_children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children of ``module`` that hold weights of their own: all but its parametrizations."""
    for name, child in module.named_children():
        if name != "parametrizations" or not parametrize.is_parametrized(module):
            yield name, child


def _parametrized(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    if not parametrize.is_parametrized(module):
        return
    # Spectral norm iterates in training mode, and a parametrization may draw.
    with preserve_state(module):
        for name, made in module.parametrizations.items():  # type: ignore[operator, union-attr]
            # Skip a parametrized buffer whose parametrization has no parameters. No getattr: it would fill the cache of
            # `parametrize.cached()`.
            if any(True for _ in made.parameters()):
                yield name, made()


def _hooked(module: nn.Module) -> Iterator[tuple[str, Tensor, tuple[str, ...]]]:
    """Name, value and sources of weights that a hook computes before each forward pass, and which are stale after a step."""
    for hook in module._forward_pre_hooks.values():
        made: Any = hook
        with torch.no_grad():
            if isinstance(made, WeightNorm):
                yield made.name, made.compute_weight(module), (f"{made.name}_g", f"{made.name}_v")
            elif isinstance(made, SpectralNorm):
                yield made.name, made.compute_weight(module, do_power_iteration=False), (f"{made.name}_orig",)
            elif isinstance(made, BasePruningMethod):
                pruned = made._tensor_name
                yield pruned, made.apply_mask(module), (f"{pruned}_orig",)


def copy_without_hooks(module: nn.Module) -> nn.Module:
    """A deep copy of ``module`` that nobody's hooks watch, with computed weights as plain parameters."""
    # What is in the memo counts as copied already: an empty dictionary stands in for each one of hooks.
    memo: dict[int, Any] = {id(getattr(part, name)): OrderedDict() for part in module.modules() for name in _HOOKS}
    # A weight that a hook has computed hangs in a graph, and cannot be copied there.
    attributes = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    memo |= {id(value): value.detach() for value in attributes if not value.is_leaf}
    found = copy.deepcopy(module, memo)
    for part, original in zip(list(found.modules()), list(module.modules()), strict=True):
        _make_plain(part, original)
    return found


def _make_plain(copied: nn.Module, original: nn.Module) -> None:
    """Give ``copied`` the weights that ``original`` computes as parameters of its own."""
    values = {name: value.detach().clone() for name, value in _parametrized(original)}
    for name, value, made_of in _hooked(original):
        values[name] = value.detach().clone()
        for source in made_of:
            delattr(copied, source)
        vars(copied).pop(name, None)
    if parametrize.is_parametrized(copied):
        # torch puts properties into a class of its own, which the copy shares with the original.
        copied.__class__ = type(copied).__bases__[0]
        del copied.parametrizations
    for name, value in values.items():
        copied.register_parameter(name, nn.Parameter(value, requires_grad=value.is_floating_point()))
