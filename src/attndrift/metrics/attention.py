"""Metrics of attention: entropy, effective receptive field, Gini coefficient, head diversity, rollout.

The input is the attention of one query (the class token) to the N patches, in the last dimension. It
must be finite and non-negative with a positive sum, and is normalised here to sum to 1, so its scale
never matters. Half precision is computed in float32; float32 and float64 stay what they are. Means
over images, heads and layers are the caller's (see :class:`attndrift.metrics.StructureAccumulator`).

Every function raises :class:`ValueError`, naming the argument, for input that is not such a tensor.
``check=False`` skips only the look at the values (one fused pass and, on an accelerator, one
synchronisation); what comes out for invalid values is then undefined.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Reversible

import torch
from torch import Tensor

TIE = 1e-12
"""Share of a row's sum by which a partial sum may fall short of p and count as having reached it."""


def working_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, float32 for every other floating-point type."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """float64, or float32 on devices that have no float64 (Apple's)."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def validate(tensor: Tensor, name: str, *, shape: str, dims: int, check: bool = True) -> Tensor:
    """``tensor`` in its working precision, or ValueError.

    ``shape`` is the expected shape in words and ``dims`` the fewest dimensions it has. Values are
    looked at only with ``check``.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: expected a torch tensor {shape}, got {type(tensor).__name__}")
    if tensor.ndim < dims or 0 in tensor.shape:
        raise ValueError(f"{name}: expected shape {shape}, every size at least 1, got {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: expected floating-point values, got {tensor.dtype}")
    values = tensor.to(working_dtype(tensor))
    if check:
        with torch.no_grad():
            low, high = torch.aminmax(values)
            sums = torch.aminmax(values.sum(-1))
            smallest, largest, least, most = torch.stack((low, high, sums.min, sums.max)).tolist()
        # A comparison with NaN is false, and aminmax hands NaN through, so this order finds it.
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            raise ValueError(f"{name}: contains NaN or infinite values; attention must be finite")
        if smallest < 0:
            raise ValueError(
                f"{name}: contains negative values (the smallest is {smallest:g}); attention must be "
                "non-negative (are these logits? apply softmax first)"
            )
        if least < torch.finfo(values.dtype).tiny or not math.isfinite(most):
            raise ValueError(
                f"{name}: cannot be normalised, a row of the last dimension sums to "
                f"{least if math.isfinite(most) else most:g}; every row needs a positive, finite sum"
            )
    return values


def normalise(attention: Tensor, name: str = "attention", *, check: bool = True) -> Tensor:
    """``attention`` (..., N), validated and divided by its sum over the last dimension."""
    values = validate(attention, name, shape="(..., patches)", dims=1, check=check)
    return values / values.sum(-1, keepdim=True)


def entropy(attention: Tensor, *, base: float | None = None, normalized: bool = False, check: bool = True) -> Tensor:
    """Shannon entropy of attention, H = -sum_j a_j ln a_j, with 0 ln 0 = 0.

    Args:
        attention: (..., N), non-negative, any positive scale.
        base: base of the logarithm; None gives nats, 2 gives bits.
        normalized: divide by the entropy of uniform attention, ln N (the base then cancels). Needs N >= 2.

    Returns:
        (...,), in [0, ln N] nats: 0 for one-hot, ln N for uniform attention (ln 49 = 3.892).
        Differentiable; an entry that is exactly 0 receives a finite gradient, as if its own term
        were absent (the true one-sided derivative is infinite).

    Raises:
        ValueError: invalid attention; a base that is not positive or is 1; ``normalized`` with one patch.

    Source: Shannon 1948, section 6; here for the renormalised class-to-patch row.
    """
    if base is not None and not (base > 0 and base != 1 and math.isfinite(base)):
        raise ValueError(f"base: expected a positive number other than 1 (None for nats), got {base!r}")
    a = normalise(attention, check=check)
    if normalized and a.shape[-1] < 2:
        raise ValueError("normalized: one patch has no normalised entropy (ln 1 = 0); pass normalized=False")
    nats = entropy_of_normalised(a)
    if normalized:
        return nats / math.log(a.shape[-1])
    return nats if base is None else nats / math.log(base)


def entropy_of_normalised(a: Tensor) -> Tensor:
    # log(1) instead of log(0): the value is 0 either way, but the gradient stays finite.
    logs = torch.where(a > 0, a, torch.ones((), dtype=a.dtype, device=a.device)).log()
    return (-(a * logs).sum(-1)).clamp_min(0.0)


def erf(attention: Tensor, p: float = 0.95, *, check: bool = True) -> Tensor:
    """Effective receptive field ERF@p: the share of patches that carries the share p of attention.

    k/N with k the fewest patches whose attention, sorted downwards, sums to at least p. k is at most N,
    also where rounding keeps the whole sum below p.

    Exactness near ties: the given values are summed in float64 and compared with p times their own sum
    (they are not divided first), and a sum that falls short by less than 1e-12 of the total counts as
    having reached p. So 19 of 20 equal patches reach 0.95 in every precision, while values that were
    rounded before they came here (in float32 to 6e-8, in bfloat16 to 4e-3) are taken as they are.

    Args:
        attention: (..., N), non-negative, any positive scale.
        p: share in (0, 1].

    Returns:
        (...,), in [1/N, 1]: 1/N for one-hot attention, ceil(pN)/N for uniform. Piecewise constant, so it
        carries no gradient.

    Raises:
        ValueError: invalid attention, or p outside (0, 1].
    """
    _require_share(p)
    values = validate(attention, "attention", shape="(..., patches)", dims=1, check=check)
    return erf_of_sorted(values.detach().sort(-1, descending=True).values, p)


def _require_share(p: float) -> None:
    if not 0 < p <= 1:
        raise ValueError(f"p: expected a share in (0, 1], got {p!r}")


def erf_of_sorted(descending: Tensor, p: float) -> Tensor:
    patches = descending.shape[-1]
    cumulative = descending.cumsum(-1, dtype=wide_dtype(descending))
    short = cumulative < (p - TIE) * cumulative[..., -1:]
    return (short.sum(-1) + 1).clamp_max(patches).to(descending.dtype) / patches


def gini(attention: Tensor, *, check: bool = True) -> Tensor:
    """Gini coefficient of attention, G = 2 sum_i i a_(i) / (N sum_i a_i) - (N + 1)/N, a_(i) ascending.

    Args:
        attention: (..., N), non-negative, any positive scale.

    Returns:
        (...,), in [0, (N - 1)/N]: 0 for uniform attention (and for one patch), (N - 1)/N for one-hot.
        Differentiable where no two entries are equal.

    Raises:
        ValueError: invalid attention.

    Source: Gini 1912; the form on sorted values of Hurley and Rickard 2009, table 1.
    """
    return gini_of_sorted(normalise(attention, check=check).sort(-1, descending=True).values)


def gini_of_sorted(descending: Tensor) -> Tensor:
    patches = descending.shape[-1]
    # The rank weights sum to 0, so equal values cancel instead of leaving (N + 1)/N - (N + 1)/N rounded.
    rank = torch.arange(patches, 0, -1, dtype=descending.dtype, device=descending.device)
    return (descending * ((2 * rank - patches - 1) / patches)).sum(-1).clamp_min(0.0)


def head_diversity(mean_maps: Tensor, *, per_head: bool = False, check: bool = True) -> Tensor:
    """Head diversity: 1 - mean over pairs of different heads of cos(m_h, m_h').

    ``m_h`` is the mean attention map of head h over **all** images. Averaging this metric over batches
    is another quantity, one that depends on the batch size; average the maps first
    (:class:`attndrift.metrics.StructureAccumulator` does).

    Args:
        mean_maps: (..., H, N), non-negative, any positive scale a head; H >= 2.
        per_head: give 1 - mean over the other heads of the cosine, for each head; its mean over the heads
            is the value without ``per_head``.

    Returns:
        (...,), or (..., H) with ``per_head``, in [0, 1]: 0 when all heads have the same map (with one
        patch always), 1 when no two heads share a patch. Cosines are taken in float64. Differentiable.

    Raises:
        ValueError: invalid maps, or fewer than two heads.
    """
    maps = validate(mean_maps, "mean_maps", shape="(..., heads, patches)", dims=2, check=check)
    heads = maps.shape[-2]
    if heads < 2:
        raise ValueError("mean_maps: head diversity compares heads and needs at least 2, got 1")
    unit = torch.nn.functional.normalize(maps.to(wide_dtype(maps)), dim=-1, eps=0.0)
    others = (unit * (unit.sum(-2, keepdim=True) - unit)).sum(-1) / (heads - 1)
    diversity = (1 - others).clamp_min(0.0).to(maps.dtype)
    return diversity if per_head else diversity.mean(-1)


def diversity_of_heads(mean_maps: Tensor) -> Tensor:
    """:func:`head_diversity` of each head, (..., H), unchecked: the mean over the heads is that of the layer."""
    return head_diversity(mean_maps, per_head=True, check=False)


def rollout(
    layers: Iterable[Tensor],
    *,
    residual: float = 0.5,
    prefix_tokens: int = 1,
    last_first: bool = False,
    check: bool = True,
) -> Tensor:
    """Attention rollout from the class token to the patches.

    With A_l the head mean of layer l, B_l = residual * I + (1 - residual) * A_l, rows normalised, this is
    the class token's row of B_L ... B_1, without the columns of the class and register tokens. The row is
    carried from the last layer to the first, one row-vector product a layer; the T x T products of the
    usual form are never made.

    The last layer is therefore needed first. A sequence (list, tuple, or anything with ``reversed``, such
    as an observation's lazy full maps) is walked backwards, one layer at a time. Any other iterable is
    read to its end and its head means, (images, T, T) a layer, are stored, unless it already yields the
    last layer first and ``last_first=True`` says so.

    Args:
        layers: from the first layer to the last, each (images, heads, T, T), rows (queries) summing to 1.
        residual: weight of the residual connection, in [0, 1).
        prefix_tokens: tokens before the patches; the first of them is the class token.
        last_first: whether ``layers`` yields the last layer first.

    Returns:
        (images, T - prefix_tokens), non-negative. A row sums to 1 minus what stays on the prefix tokens;
        divide by the sum for a distribution.

    Raises:
        ValueError: no layer, shapes that differ, invalid maps, or a residual outside [0, 1).

    Source: Abnar and Zuidema 2020, equations 1 and 2 (residual weight 0.5, mean over heads).
    """
    if not 0 <= residual < 1:
        raise ValueError(f"residual: expected a weight in [0, 1), got {residual!r}")
    if prefix_tokens < 1:
        raise ValueError(f"prefix_tokens: rollout starts at the class token and needs 1, got {prefix_tokens}")
    ordered: Iterable[Tensor]
    if last_first:
        ordered = layers
    elif isinstance(layers, Reversible):
        ordered = reversed(layers)
    else:
        ordered = reversed([_head_mean(layer, check).unsqueeze(1) for layer in layers])
    row: Tensor | None = None
    for layer in ordered:
        mean = _head_mean(layer, check)
        if row is None:
            if not prefix_tokens < mean.shape[-1]:
                raise ValueError(f"prefix_tokens: {prefix_tokens} of {mean.shape[-1]} tokens leave no patch")
            row = torch.zeros_like(mean[:, 0])
            row[:, 0] = 1.0
        if mean.shape[:2] != row.shape:
            raise ValueError(
                f"layers: every layer must have the same images and tokens; got (images, tokens) "
                f"{tuple(mean.shape[:2])} after {tuple(row.shape)}"
            )
        # Autocast would take this product, alone among the operations here, down to half precision.
        with torch.autocast(mean.device.type, enabled=False):
            carried = torch.matmul((row / mean.sum(-1)).unsqueeze(1), mean).squeeze(1)
        row = residual * row + (1 - residual) * carried
    if row is None:
        raise ValueError("layers: no layer was given; rollout needs at least one")
    return row[:, prefix_tokens:]


def _head_mean(layer: Tensor, check: bool) -> Tensor:
    shape = "(images, heads, tokens, tokens) in every layer"
    maps = validate(layer, "layers", shape=shape, dims=4, check=check)
    if maps.ndim != 4 or maps.shape[-1] != maps.shape[-2]:
        raise ValueError(f"layers: expected shape {shape}, got {tuple(maps.shape)}")
    return maps.mean(1)
