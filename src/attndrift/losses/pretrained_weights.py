"""The trained weights of an encoder beside their pretrained values, for the losses that hold weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attndrift.attention.families import find_vision_tower
from attndrift.models.backbone import find_backbone
from attndrift.models.evaluation import unwrapped
from attndrift.models.module_utils import named_modules
from attndrift.models.parameters import (
    adapter_types,
    bare_parameters,
    decomposed_by,
    parameter_names,
    plain_low_rank,
    task_classifiers,
)


class PretrainedWeights:
    """The trained weights of a model as it computes with them, and where each one started.

    A plain parameter starts at its value now, the trained copy of a module (``modules_to_save``) at the original. A weight
    under one plain LoRA adapter counts as a whole: base plus update. To be made while the model is the pretrained one.

    Args:
        model: the model, with or without adapters.
        whole: also what is trained outside the image tower and its projection: text tower, temperature. By default the
            image encoder alone: a text tower that no step uses must get no gradient.

    Attributes:
        names: of the weights, plain ones first: ``tower.`` and ``projection.`` before the names without adapters.

    Raises:
        ValueError: nothing is trained, or the weights cannot be told as numbers with a gradient (other adapters than LoRA,
            computed weights); the message names the layer.
    """

    def __init__(self, model: nn.Module, *, whole: bool = False) -> None:
        self._plain: dict[str, tuple[nn.Parameter, Tensor]] = {}
        self._updates: dict[str, Callable[[], Tensor]] = {}
        inner, seen = unwrapped(model), set[int]()
        backbone = find_backbone(encoder_of(inner))
        roots = {"tower": find_vision_tower(inner).module}
        if backbone is not None and backbone.projection is not None:
            roots["projection"] = backbone.projection
        if whole and backbone is not None:
            roots["model"] = backbone.model
        for root, module in roots.items():
            self._add(root, module, decomposed_by(named_modules(inner)) is not None, seen)
        if not self.names:
            raise ValueError("no weight of the image encoder is trained, so there is nothing to hold")

    def _add(self, root: str, module: nn.Module, decomposed: bool, seen: set[int]) -> None:
        start = bare_parameters(module)
        whole = parameter_names(module, start, adapted=False)
        plain = {parameter: name for parameter, name in whole.items() if id(parameter) not in seen}
        tuners, _ = adapter_types()
        for parameter, name in plain.items():
            if parameter.requires_grad:
                self._plain[f"{root}.{name}"] = parameter, start[name].clone()
        left = {id(part) for head in task_classifiers(module) for part in head.parameters()}
        left |= {id(parameter) for parameter in plain} | seen
        for layer, name in named_modules(module).items():
            if not isinstance(layer, tuners) or id(layer) in seen:
                continue
            own = [p for p in layer.parameters() if id(p) not in left]
            left |= {id(p) for p in own} | {id(layer)}
            for inner, parameter in _base_layer(layer).named_parameters():
                if parameter.requires_grad and inner != "weight":
                    self._plain[f"{root}.{name}.{inner}"] = parameter, parameter.detach().clone()
            if any(p.requires_grad for p in own):
                self._updates[f"{root}.{name}.weight"] = _low_rank(layer, f"{root}.{name}", decomposed)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and id(parameter) not in left:
                raise ValueError(
                    f"{root}.{name}: torch computes a weight from this parameter (parametrize, weight_norm, spectral_norm, "
                    "prune), which this loss cannot hold; train the plain weight, or hold the embeddings instead "
                    "(embedding_cosine)"
                )
        seen |= left | {id(parameter) for parameter in module.parameters()}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the weights, as :meth:`squared_distance` takes factors for them."""
        return (*self._plain, *self._updates)

    def squared_distance(self, factors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Sum of the squared differences from the start: a scalar >= 0, differentiable, exactly 0 at the start.

        Args:
            factors: by name, of the shape of the weight, what each difference is multiplied with before it is squared.
        """
        terms = []
        if self._plain:
            live, start = zip(*self._plain.values(), strict=True)
            scales = None if factors is None else [factors[name] for name in self._plain]
            terms.append(_SquaredDistance.apply(start, scales, *live))
        for name, update in self._updates.items():
            difference = update() if factors is None else update() * factors[name]
            terms.append(
                difference.float().square().sum() if difference.dtype != torch.float64 else difference.square().sum()
            )
        return torch.stack([term.to(terms[0]) for term in terms]).sum()


def encoder_of(model: nn.Module) -> nn.Module:
    """The part of ``model`` that is a registered backbone: the model itself, or the one that a classifier of it holds."""
    if find_backbone(model) is not None:
        return model
    return next((part for part in named_modules(model) if part is not model and find_backbone(part) is not None), model)


def _base_layer(layer: Any) -> nn.Module:
    base: nn.Module = layer.get_base_layer()
    return base


def _low_rank(layer: Any, name: str, decomposed: bool) -> Callable[[], Tensor]:
    """The update of one LoRA layer from the pretrained weight, (out, in), with its gradient."""
    adapter = plain_low_rank(layer)
    if adapter is None or layer.merged or layer.disable_adapters or layer.get_base_layer().weight.requires_grad:
        raise ValueError(
            f"{name}: the {type(layer).__module__.split('.')[-2]} adapter is no single plain LoRA adapter, so the loss cannot see "
            "the weight; use method lora or full, or hold the embeddings instead (embedding_cosine)"
        )
    a, b, scaling = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, float(layer.scaling[adapter])
    if not decomposed:
        return lambda: scaling * (b @ a)
    # The base is what the adapter left of the pretrained weight, which is their sum at the start.
    start = scaling * (b.detach() @ a.detach())
    return lambda: scaling * (b @ a) - start


class _SquaredDistance(torch.autograd.Function):
    """The sum over tensors of ||scale * (live - start)||^2, in few kernels, and without keeping the differences."""

    @staticmethod
    def forward(ctx: Any, start: Sequence[Tensor], scales: Sequence[Tensor] | None, *live: Tensor) -> Tensor:
        ctx.start, ctx.scales = start, scales
        ctx.save_for_backward(*live)
        found = _norms(live, start, scales)
        return torch.stack([norm.to(found[0].device) for norm in found]).square().sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        live = ctx.saved_tensors
        found = _scaled(live, ctx.start, ctx.scales)
        if ctx.scales is not None:
            torch._foreach_mul_(found, list(ctx.scales))
        torch._foreach_mul_(found, 2.0 * gradient)
        return (None, None, *(part.to(one.dtype) for part, one in zip(found, live, strict=True)))


def _norms(live: Sequence[Tensor], start: Sequence[Tensor], scales: Sequence[Tensor] | None) -> Sequence[Tensor]:
    """Of the differences. On a CPU one after the other: all of them at once would be a second copy of the model."""
    if live[0].device.type != "cpu":
        return torch._foreach_norm(_scaled(live, start, scales))
    factors = [None] * len(live) if scales is None else [[one] for one in scales]
    return [
        torch.linalg.vector_norm(_scaled([one], [was], factor)[0])
        for one, was, factor in zip(live, start, factors, strict=True)
    ]


def _scaled(live: Sequence[Tensor], start: Sequence[Tensor], scales: Sequence[Tensor] | None) -> list[Tensor]:
    """The differences, times ``scales``, in float32 or wider: squares of half precision would underflow."""
    found = list(torch._foreach_sub(list(live), list(start)))
    found = [part.float() if part.dtype in (torch.float16, torch.bfloat16) else part for part in found]
    if scales is not None:
        torch._foreach_mul_(found, list(scales))
    return found
