"""Layers of one's own in place of a linear one, as LoRA written by hand: the weight that they multiply with.

Neither the names nor the classes of such layers are known. So the layer is asked: what it makes of the unit vectors are the
columns of its weight.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import permutations, product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attndrift.models.computed import copy_without_hooks, own_children, own_weights
from attndrift.models.evaluation import preserve_state

_LIBRARIES = frozenset(
    ("torch", "transformers", "timm", "open_clip", "peft", "bitsandbytes", "torchao", "accelerate", "attndrift")
)
"""Packages whose layers are known: their parameters are their weights, or have a rule of their own."""

_MATRICES = (nn.Linear, nn.Conv2d)
_PLAIN = (*_MATRICES, nn.LayerNorm, nn.Embedding)
_CONTAINERS = (nn.ParameterDict, nn.ParameterList)
_OF_ATTENTION = frozenset(
    f"{name}_{kind}" for name in ("in_proj", "q_proj", "k_proj", "v_proj") for kind in ("weight", "bias")
) | {"bias_k", "bias_v", "q_bias", "k_bias", "v_bias"}
"""What the attention of torch and of timm holds beside its layers."""
_MOST_MODULES = 16  # in what may be one layer
_ROWS = 4  # a layer is tried on so many vectors before it is asked for its whole weight
_RELATIVE = 1e-4  # of the largest value: what rounding in float32 may change
OWN_FUNCTION = (
    "pass `weight_drift=` to DriftMonitor, a function that returns (tower drift, projection drift); `lambda: (None, None)` "
    "leaves both out"
)


class Affine(NamedTuple):
    """What a layer computes: x W^T + b, with W of the shape that the plain layer's weight has; without b where it has none."""

    weight: Tensor
    bias: Tensor | None


def own_layer(module: nn.Module, where: str) -> Affine | None:
    """The weight and bias that a layer of one's own multiplies with; None where its parameters are its weights.

    ``where``: its name, for errors. Raises ValueError where there are parts of a weight whose product cannot be told.
    """
    if not _may_compute(module) or sum(1 for _ in module.modules()) > _MOST_MODULES:
        return None
    parts = _parts(module)
    inherited = type(module).forward in {kind.forward for kind in _PLAIN} and "forward" not in vars(module)
    if inherited and not parts and not _hooks(module):
        return None
    with preserve_state(module):
        found = _asked(module)
    if found is not None and not parts and _is_plain(module, found):
        return None
    if found is None and (problem := _unknown_product(module, parts)):
        raise ValueError(
            f"{where or type(module).__name__}: {problem}, and a {type(module).__name__} is no linear map that could be asked "
            f"for its weight, so the weight drift cannot be told; {OWN_FUNCTION}"
        )
    return found


def _may_compute(module: nn.Module) -> bool:
    """Whether the forward pass of ``module`` may be another than its library's."""
    if _package(type(module)) not in _LIBRARIES:
        return True
    replaced = "forward" in vars(module) and not {"_hf_hook", "_original_forward"} & vars(module).keys()
    return replaced or (isinstance(module, _MATRICES) and bool(_hooks(module) or _parts(module)))


def _package(kind: Any) -> str:
    return str(getattr(kind, "__module__", None)).partition(".")[0]


def _hooks(module: nn.Module) -> bool:
    """Whether hooks of somebody's own may change what ``module`` puts out."""
    for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
        function: Any = getattr(hook, "func", hook)
        function = getattr(function, "__func__", function)
        kind = function if hasattr(function, "__code__") else type(function)
        if _package(kind) not in _LIBRARIES:
            return True
    return False


def _parts(module: nn.Module) -> dict[str, Tensor]:
    """Parameters of ``module`` itself, or in its lists and dictionaries, besides those that the plain layer has."""
    found = {name: value for name, value in own_weights(module) if name not in _OF_ATTENTION | {"weight", "bias"}}
    for name, child in own_children(module):
        if isinstance(child, _CONTAINERS):
            found |= {f"{name}.{own}": value for own, value in child.named_parameters()}
    return found


def _asked(module: nn.Module) -> Affine | None:
    """What ``module`` computes, if it is an affine map of each of its inputs alone."""
    weight = next((p for p in module.parameters() if p.is_floating_point()), None)
    if weight is None or weight.device.type == "meta":
        return None
    target, dtype = module, weight.dtype
    if dtype not in (torch.float32, torch.float64):
        # What a low precision rounds off is more than a training moves.
        target, dtype = copy_without_hooks(module).float().eval(), torch.float32
    for shape in _input_shapes(module):
        units = _Units(shape, weight.device, dtype)
        if units.fits(target):
            return units.of(target) if units.fits(_without_zeros(target)) else None
    return None


def _without_zeros(module: nn.Module) -> nn.Module:
    """A copy whose parameters are nowhere all 0: what a branch does that starts at 0, as most do, shows there."""
    if all(p.any() for p in module.parameters()):
        return module
    copied = copy_without_hooks(module)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.is_floating_point() and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return copied


class _Units(NamedTuple):
    """Inputs of a layer, each of ``shape``: (in,) or (channels, height, width)."""

    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    def fits(self, module: nn.Module) -> bool:
        """Whether ``module`` takes such inputs, each by itself, and is affine in them."""
        generator = torch.Generator().manual_seed(0)
        first, second = torch.randn(2, _ROWS, *self.shape, generator=generator, dtype=torch.float64)
        rows = torch.cat([torch.zeros_like(first[:1]), first, second, first + second, 3 * first])
        try:
            with torch.no_grad():
                made = module(rows.to(self.device, self.dtype))
                alone = module(rows[1:2].to(self.device, self.dtype))
        except Exception:
            # Not the input of this layer: anything may be raised.
            return False
        if not isinstance(made, Tensor) or made.shape[:1] != rows.shape[:1] or not made.is_floating_point():
            return False
        made, alone = made.flatten(1).double(), alone.flatten(1).double()
        if len(self.shape) == 1 and made.dim() != 2:
            return False
        zero, a, b, both, thrice = made.split([1, _ROWS, _ROWS, _ROWS, _ROWS])
        a, b, both, thrice = a - zero, b - zero, both - zero, thrice - zero
        allowed = _RELATIVE * max(float(made.abs().max()), 1e-30)
        gaps = (a + b - both, 3 * a - thrice, alone - zero - a[:1])
        return all(float(gap.abs().max()) <= allowed for gap in gaps)

    def of(self, module: nn.Module) -> Affine:
        """Its weight and bias."""
        size = int(torch.tensor(self.shape).prod())
        eye = torch.eye(size, device=self.device, dtype=self.dtype).view(size, *self.shape)
        with torch.no_grad():
            bias = module(torch.zeros_like(eye[:1])).flatten(1)
            columns = module(eye).flatten(1) - bias
        biased = bool(bias.any()) or any(name.rpartition(".")[2] == "bias" for name, _ in module.named_parameters())
        return Affine(columns.T.reshape(-1, *self.shape).contiguous(), bias[0].clone() if biased else None)


def _input_shapes(module: nn.Module) -> Iterator[tuple[int, ...]]:
    """What the inputs of ``module`` may look like, the most probable first."""
    layers: list[Any] = [part for part in module.modules() if isinstance(part, _MATRICES)]
    if layers and isinstance(layers[0], nn.Conv2d):
        yield (layers[0].in_channels, *layers[0].kernel_size)
        return
    if layers:
        yield (layers[0].in_features,)
        return
    matrices = sorted(
        ((name, value) for name, value in module.named_parameters() if value.dim() == 2),
        key=lambda one: one[0] != "weight",
    )
    yield from dict.fromkeys((size,) for _, value in matrices for size in reversed(value.shape))


def _is_plain(module: nn.Module, found: Affine) -> bool:
    """Whether the module's own ``weight`` and ``bias`` are what it multiplies with, and there is nothing else."""
    own = dict(module.named_parameters())
    weight, bias = own.pop("weight", None), own.pop("bias", None)
    if own or weight is None or weight.shape != found.weight.shape:
        return False
    if (bias is None) != (found.bias is None):
        return False
    pairs = [(weight, found.weight)] + ([] if bias is None or found.bias is None else [(bias, found.bias)])
    largest = max(float(known.detach().abs().max()) for known, _ in pairs)
    return all(float((known.detach() - now).abs().max()) <= 1e-5 * largest for known, now in pairs)


def _unknown_product(module: nn.Module, parts: Mapping[str, Tensor]) -> str | None:
    """What says that parameters of ``module`` change its weights, though it is no linear map; None where nothing does."""
    if isinstance(module, _PLAIN):
        return f"`{next(iter(parts))}` is a part of its weight" if parts else None
    held: list[tuple[str, Any]] = [
        (name, child)
        for name, child in own_children(module)
        if not isinstance(child, _CONTAINERS) and any(True for _ in child.parameters())
    ]
    if not _is_of_library(type(module)):
        if len(held) != 1:
            # An architecture of one's own, unless a layer of it has branches that no bias sets apart.
            # Those of an adapter of peft are known as its own.
            adapted = tuple(f"{name}." for name, part in module.named_modules() if _package(type(part)) == "peft")
            held = [
                (name, part)
                for name, part in module.named_modules()
                if isinstance(part, nn.Linear) and not name.startswith(adapted)
            ]
            parts = {name: value for name, value in parts.items() if value.dim() == 2}
            inner = None
        else:
            inner = held[0][1]
        # A wrapper of one layer, or of a library's attention or MLP.
        if inner is not None and not isinstance(inner, _MATRICES) and _is_of_library(type(inner)):
            held = list(own_children(inner))
    shapes = {tuple(layer.weight.shape) for _, layer in held if isinstance(layer, nn.Linear)}
    if not shapes:
        return None
    shapes |= {tuple(value.shape) for name, value in own_weights(module) if name in _OF_ATTENTION and value.dim() == 2}
    matrices: dict[str, Tensor] = {name: value for name, value in parts.items() if value.dim() == 2} | {
        f"{name}.weight": layer.weight for name, layer in held if isinstance(layer, nn.Linear) and layer.bias is None
    }
    pair = _low_rank_pair(matrices, shapes)
    if pair is not None:
        return f"`{pair[0]}` and `{pair[1]}` are a low-rank update of one of its weights"
    scales = [name for name, value in parts.items() if value.dim() == 1]
    return f"`{scales[0]}` scales what its layers put out" if scales else None


def _is_of_library(kind: type) -> bool:
    """Whether the class is made of a library's, beyond ``nn.Module``."""
    return any(
        issubclass(base, nn.Module) and base is not nn.Module and _package(base) in _LIBRARIES for base in kind.__mro__
    )


def _low_rank_pair(matrices: Mapping[str, Tensor], shapes: Collection[tuple[int, ...]]) -> tuple[str, str] | None:
    """The names of two matrices whose product has one of ``shapes`` and a lower rank, whichever way round they lie."""
    for (one, left), (other, right) in permutations(matrices.items(), 2):
        for (rank, columns), (same, rows) in product(*((v.shape, v.shape[::-1]) for v in (left, right))):
            if rank == same and 2 * rank <= min(rows, columns) and (rows, columns) in shapes:
                return one, other
    return None
