"""Weight drift: how far parameters have moved, full weights and low-rank updates on one scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attndrift.metrics.attention import wide_dtype
from attndrift.metrics.deferred import DeferredScalars

_AT_ONCE = 2**24
"""Numbers of parameters that an accelerator takes at once: 64 MB of differences."""


@dataclass(frozen=True)
class LowRankUpdate:
    """The update dW = scale * B A of one weight matrix (Hu et al. 2021, section 4.1).

    Attributes:
        a: (r, in), peft's ``lora_A.weight``.
        b: (out, r), peft's ``lora_B.weight``.
        scale: alpha / r (alpha / sqrt(r) for rank-stabilised adapters).
    """

    a: Tensor
    b: Tensor
    scale: float

    def __post_init__(self) -> None:
        if self.a.ndim != 2 or self.b.ndim != 2 or self.a.shape[0] != self.b.shape[1]:
            raise ValueError(
                "LowRankUpdate: expected a of shape (r, in) and b of shape (out, r), "
                f"got a {tuple(self.a.shape)} and b {tuple(self.b.shape)}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (out, in) of the update."""
        return self.b.shape[0], self.a.shape[1]

    def squared_norm(self) -> float:
        """Squared Frobenius norm of the update: scale^2 tr((B^T B)(A A^T)), never forming B A."""
        return float(self._squared_norm())

    def _squared_norm(self) -> Tensor:
        a = self.a.detach().to(wide_dtype(self.a))
        b = self.b.detach().to(wide_dtype(self.b))
        return ((b.T @ b) * (a @ a.T)).sum().clamp_min(0.0) * self.scale**2


def squared_norm(pretrained: Mapping[str, Tensor]) -> float:
    """The sum of squares of all parameters together, in float64, for :func:`weight_drift`.

    Raises:
        ValueError: NaN or inf, no parameters, or parameters that are all 0; the message names the parameter.
    """
    return squared_norm_deferred(pretrained, DeferredScalars())()


def squared_norm_deferred(pretrained: Mapping[str, Tensor], deferred: DeferredScalars) -> Callable[[], float]:
    """:func:`squared_norm` without waiting for an accelerator: a function that does the rest, and raises for the values.

    That there are no parameters is raised here.
    """
    if not pretrained:
        raise ValueError("pretrained: holds no parameters")
    later = deferred.defer(_stacked(_squares([value.detach() for value in pretrained.values()])))
    names = [("pretrained", name) for name in pretrained]

    def read() -> float:
        total = math.fsum(_finite(later(), names))
        if total == 0:
            raise ValueError("pretrained: all parameters are 0, so a relative drift is undefined")
        return total

    return read


def weight_drift(
    pretrained: Mapping[str, Tensor],
    adapted: Mapping[str, Tensor | LowRankUpdate],
    *,
    missing: Literal["error", "unchanged"] = "error",
    pretrained_squared_norm: float | None = None,
) -> float:
    """Relative distance of parameters from their pretrained values: norm(dW) / norm(W0).

    Both norms run over all parameters of ``pretrained`` together (the square root of the sum of squares, in
    float64), one parameter at a time. On a CUDA device some at a time, and differences of float32 and half precision are
    taken in float32.

    Args:
        pretrained: parameters by name, for example of the vision transformer.
        adapted: by the same names, a full tensor (dW is the difference) or a :class:`LowRankUpdate`
            (dW is the update). A model may mix the two.
        missing: what a name that only ``pretrained`` has means: an error, or a frozen, unchanged
            parameter. A name that only ``adapted`` has is always an error.
        pretrained_squared_norm: :func:`squared_norm` of ``pretrained``, where somebody has it; computed otherwise.

    Returns:
        A number >= 0; 0.01 means that the weights moved by 1% of their norm.

    Raises:
        ValueError: names or shapes that do not match, NaN or inf, no parameters, parts of a weight (LoRA's A and B, what
            ``parametrize`` computes it from), or pretrained parameters that are all 0; the message names the parameter.

    Source: the relative Frobenius distance of the first study; trace identity
    ||BA||_F^2 = tr((B^T B)(A A^T)).
    """
    return weight_drift_deferred(
        pretrained, adapted, DeferredScalars(), missing=missing, pretrained_squared_norm=pretrained_squared_norm
    )()


def weight_drift_deferred(
    pretrained: Mapping[str, Tensor],
    adapted: Mapping[str, Tensor | LowRankUpdate],
    deferred: DeferredScalars,
    *,
    missing: Literal["error", "unchanged"] = "error",
    pretrained_squared_norm: float | None = None,
) -> Callable[[], float]:
    """:func:`weight_drift` without waiting for an accelerator: a function that does the rest, and raises for the values.

    What names and shapes do not match is raised here.
    """
    if not pretrained:
        raise ValueError("pretrained: holds no parameters")
    strangers = [name for name in adapted if name not in pretrained]
    if strangers:
        raise ValueError(
            f"adapted: {len(strangers)} names are not in pretrained, the first is `{strangers[0]}`; both "
            f"must use the same names (pretrained starts with `{next(iter(pretrained))}`)"
        )
    absent = [name for name in pretrained if name not in adapted]
    if absent and missing == "error":
        raise ValueError(
            f"adapted: {len(absent)} parameters of pretrained are missing, the first is `{absent[0]}`; "
            "both must be of the same architecture, and frozen parameters belong to it"
        )
    _refuse_sources(pretrained)
    squares: list[Tensor] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, after in adapted.items():
        before = pretrained[name]
        if tuple(after.shape) != tuple(before.shape):
            raise ValueError(f"adapted: `{name}` has shape {tuple(after.shape)}, in pretrained {tuple(before.shape)}")
        if isinstance(after, LowRankUpdate):
            squares.append(after._squared_norm())
        else:
            pairs.append((before.detach(), after.detach()))
    squares += _squared_differences(pairs)
    updates = [name for name, after in adapted.items() if isinstance(after, LowRankUpdate)]
    names = updates + [name for name in adapted if not isinstance(adapted[name], LowRankUpdate)]
    moved = deferred.defer(_stacked(squares))
    known = pretrained_squared_norm
    norm = squared_norm_deferred(pretrained, deferred) if known is None else (lambda: known)
    found = [("adapted", name) for name in names]

    def read() -> float:
        total = norm()
        return math.sqrt(math.fsum(_finite(moved(), found)) / total)

    return read


def _refuse_sources(names: Collection[str]) -> None:
    """Raise for parameters that only become a weight together: their distances say nothing about its distance."""
    for name in names:
        hooked = name.endswith("_g") and f"{name[:-1]}v" in names
        if hooked or name.startswith("parametrizations.") or ".parametrizations." in name or ".lora_" in name:
            raise ValueError(
                f"pretrained: `{name}` is a part of a weight, not the weight; give the weights that the model computes with, "
                "as attndrift.models.parameters.live_parameters yields them"
            )


def _squared_differences(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Squared distances of (before, after), each with the device of ``before``."""
    found: list[Tensor] = []
    if _together([value for pair in pairs for value in pair]):
        for group in _groups(pairs):
            before, after = ([_single(value) for value in side] for side in zip(*group, strict=True))
            found += _squared_norms(torch._foreach_sub(after, before))
        return found
    for old, new in pairs:
        difference = new.to(device=old.device, dtype=wide_dtype(old), copy=True).sub_(old).flatten()
        found.append(torch.dot(difference, difference))
    return found


def _squares(values: Sequence[Tensor]) -> list[Tensor]:
    """The sum of squares of each."""
    if _together(values):
        return [
            square
            for group in _groups([(value,) for value in values])
            for square in _squared_norms([_single(one) for (one,) in group])
        ]
    return [_wide(value).square().sum() for value in values]


def _together(values: Sequence[Tensor]) -> bool:
    """Whether an accelerator can take many parameters in a few launches."""
    return len({value.device for value in values}) == 1 and values[0].device.type == "cuda"


def _groups(tuples: Sequence[tuple[Tensor, ...]]) -> Iterator[list[tuple[Tensor, ...]]]:
    """A few parameters at a time, so that what is transient stays small beside a training's memory."""
    group: list[tuple[Tensor, ...]] = []
    for one in tuples:
        if group and sum(first[0].numel() for first in group) + one[0].numel() > _AT_ONCE:
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def _squared_norms(values: Sequence[Tensor]) -> list[Tensor]:
    """Summed in float64."""
    norms = torch._foreach_norm(list(values), 2, torch.float64)
    return list(torch.stack(list(norms)).square().unbind(0))


def _single(value: Tensor) -> Tensor:
    """In float32 at least. There two numbers within a factor of 2 have an exact difference, others one to 6e-8 of it."""
    return value if value.dtype == torch.float64 else value.float()


def _wide(parameter: Tensor) -> Tensor:
    return parameter.detach().to(wide_dtype(parameter))


def _stacked(squares: Sequence[Tensor]) -> Tensor:
    """Numbers of any devices as one tensor on that of the first."""
    return torch.stack([square.to(squares[0].device) for square in squares]) if squares else torch.empty(0)


def _finite(values: Tensor, found: list[tuple[str, str]]) -> list[float]:
    """The numbers; raises for one that is not finite."""
    numbers: list[float] = values.tolist()
    for (argument, name), value in zip(found, numbers, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"{argument}: `{name}` contains NaN or infinite values")
    return numbers
