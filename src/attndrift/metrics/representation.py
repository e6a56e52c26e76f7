"""Metrics of representations: linear CKA, plain and debiased, its chance level, and embedding drift.

All of it runs in float64, whatever comes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from attndrift.metrics.attention import wide_dtype
from attndrift.metrics.deferred import DeferredScalars

_DEGENERATE = 1e-12

_AT_ONCE = 2**22
"""Numbers in the Gram matrices of all layers, at most, that an accelerator makes at once: 32 MB, and some of them."""


def _matrix(values: Tensor, name: str, check: bool = True) -> Tensor:
    if not isinstance(values, Tensor):
        raise ValueError(f"{name}: expected a torch tensor (images, dimensions), got {type(values).__name__}")
    if values.ndim != 2 or 0 in values.shape or not values.is_floating_point():
        raise ValueError(
            f"{name}: expected floating-point values of shape (images, dimensions), "
            f"got {values.dtype} of shape {tuple(values.shape)}"
        )
    wide = values.to(wide_dtype(values))
    if check and not bool(torch.isfinite(wide.detach()).all()):
        raise ValueError(f"{name}: contains NaN or infinite values")
    return wide


def _centred(wide: Tensor, name: str) -> Tensor:
    centred = wide - wide.mean(0, keepdim=True)
    if bool(centred.detach().norm() <= _DEGENERATE * wide.detach().norm()):
        raise ValueError(
            f"{name}: all {len(wide)} rows are equal, so CKA is undefined; "
            "give at least two different images (an input embedding's CLS row is a constant)"
        )
    return centred


def linear_cka(x: Tensor, y: Tensor, *, debiased: bool = False) -> Tensor:
    """Linear centred kernel alignment between two representations of the same images.

    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), K = X X^T and L = Y Y^T, columns of X and Y centred.
    The plain form takes the biased HSIC, which is upwards of 0 for unrelated data when images are fewer
    than dimensions (see :func:`cka_chance_level`); ``debiased`` takes the unbiased HSIC, whose chance
    level is 0. Whichever of the feature form (dimension x dimension) and the Gram form (image x image)
    needs fewer operations is used; both give the same number.

    Args:
        x: (n, p), y: (n, q), row i of both from image i. n >= 2; n >= 4 for ``debiased``.

    Returns:
        0-dimensional float64; in [0, 1], or at most 1 and possibly slightly negative when ``debiased``.
        1 for representations equal up to rotation, isotropic scaling and shift. Differentiable.

    Raises:
        ValueError: wrong shapes, different or too few images, NaN or inf, or rows that are all equal.

    Sources: Kornblith et al. 2019, section 3 (linear form); unbiased HSIC, Song et al. 2012,
    equation 5; its use in CKA, Nguyen et al. 2021, equation 3.
    """
    xc, yc = _pair(x, y, debiased)
    products = _products(xc, yc)
    return _alignment(*(_unbiased_hsic if debiased else _biased_hsic)(xc, yc, *products))


def debiased_linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """:func:`linear_cka` in its debiased form."""
    return linear_cka(x, y, debiased=True)


def linear_cka_both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`linear_cka`, plain and debiased, of the same representations, whose products are made once.

    Args and Raises: as for the debiased form.

    Returns:
        The two numbers that :func:`linear_cka` gives, bit for bit.
    """
    xc, yc = _pair(x, y, debiased=True)
    products = _products(xc, yc)
    return _alignment(*_biased_hsic(xc, yc, *products)), _alignment(*_unbiased_hsic(xc, yc, *products))


def cross_layer_cka(x: Tensor, y: Tensor, *, debiased: bool = True) -> Tensor:
    """:func:`linear_cka` of every layer of one model with every layer of another, on the same images.

    Args:
        x: (layers of one, n, p), y: (layers of the other, n, q). n >= 2; n >= 4 for ``debiased``. Takes 8 n^2 bytes a layer.

    Returns:
        (layers of one, layers of the other) float64 on the CPU; NaN where all rows of a layer are equal.

    Raises:
        ValueError: wrong shapes, or different or too few images.

    Source: Kornblith et al. 2019, figure 3.
    """
    needed = 4 if debiased else 2
    for name, values in (("x", x), ("y", y)):
        if values.ndim != 3 or values.shape[1] != x.shape[1] or values.shape[1] < needed:
            raise ValueError(
                f"{name}: expected (layers, images, width) of the same images, at least {needed}, got {tuple(values.shape)} "
                f"beside {tuple(x.shape)}"
            )
    one, other = (torch.stack([_unit_gram(layer, debiased) for layer in values]).flatten(1) for values in (x, y))
    return (one @ other.T).clamp_max(1.0)


def _unit_gram(states: Tensor, debiased: bool) -> Tensor:
    """The centred Gram matrix (n, n) of a layer, of norm 1, so that CKA is a product; NaN where all rows are equal."""
    wide = states.detach().cpu().double()
    centred = wide - wide.mean(0, keepdim=True)
    if not bool(centred.norm() > _DEGENERATE * wide.norm()):
        return wide.new_full((len(wide), len(wide)), math.nan)
    gram = centred @ centred.T
    if debiased:
        # U-centring, whose products are the unbiased HSIC: Szekely and Rizzo 2014, section 3.
        n = len(gram)
        gram.fill_diagonal_(0.0)
        sums = gram.sum(0)
        gram = gram - (sums[:, None] + sums) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
        gram.fill_diagonal_(0.0)
    return gram / gram.norm()


def linear_cka_layers(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`linear_cka_both` of every layer: an accelerator does all layers at once and is waited for once.

    Args:
        x: (layers, n, p), y: (layers, n, q), on one device.

    Returns:
        The plain and the debiased form, (layers,) float64 on the CPU each.

    Raises:
        ValueError: as for :func:`linear_cka_both`.
    """
    return linear_cka_layers_deferred(x, y, DeferredScalars())()


def linear_cka_layers_deferred(x: Tensor, y: Tensor, deferred: DeferredScalars) -> Callable[[], tuple[Tensor, Tensor]]:
    """:func:`linear_cka_layers` without waiting for an accelerator: a function that does the rest, and raises."""

    def each() -> tuple[Tensor, Tensor]:
        pairs = [linear_cka_both(one, other) for one, other in zip(x, y, strict=True)]
        plain, debiased = (torch.stack(list(values)).cpu() for values in zip(*pairs, strict=True))
        return plain, debiased

    if (
        x.ndim == y.ndim == 3
        and x.device.type in deferred.TOGETHER
        and len(x) == len(y)
        and x.shape[1] == y.shape[1] >= 4
    ):
        xs, ys = (values.detach().to(wide_dtype(values)) for values in (x, y))
        if not _by_features(xs[0], ys[0]) and len(xs) * xs.shape[1] ** 2 <= _AT_ONCE:
            found = _gram_layers(xs, ys, deferred)
            # One by one they find the words for what has no value.
            return lambda: found() or each()
    return each


def _gram_layers(xs: Tensor, ys: Tensor, deferred: DeferredScalars) -> Callable[[], tuple[Tensor, Tensor] | None]:
    """Both forms of all layers from their Gram matrices; a function that gives None where a layer has none."""
    grams, usable = [], []
    for wide in (xs, ys):
        centred = wide - wide.mean(1, keepdim=True)
        # Also false for what is not finite.
        usable.append(centred.flatten(1).norm(dim=1) > _DEGENERATE * wide.flatten(1).norm(dim=1))
        grams.append(centred @ centred.transpose(1, 2))
    k, m = grams
    plain = _parts_of(k, m)
    own = torch.eye(k.shape[1], dtype=torch.bool, device=k.device)
    k, m = k.masked_fill(own, 0.0), m.masked_fill(own, 0.0)
    sums_k, sums_m, n = k.sum(2), m.sum(2), k.shape[1]
    pairs = ((sums_k, sums_m), (sums_k, sums_k), (sums_m, sums_m))
    cross = [a.sum(1) * b.sum(1) / ((n - 1) * (n - 2)) - 2 * (a * b).sum(1) / (n - 2) for a, b in pairs]
    debiased = [(inner + more) / (n * (n - 3)) for inner, more in zip(_parts_of(k, m), cross, strict=True)]
    later = deferred.defer(torch.stack([*plain, *debiased, *(one.to(k.dtype) for one in usable)]))

    def read() -> tuple[Tensor, Tensor] | None:
        values = later()
        if not bool((values[[1, 2, 4, 5, 6, 7]] > 0).all()):
            return None
        both = [inner / (of_x.sqrt() * of_y.sqrt()) for inner, of_x, of_y in (values[:3], values[3:6])]
        return both[0].clamp_max(1.0), both[1].clamp_max(1.0)

    return read


def _parts_of(k: Tensor, m: Tensor) -> list[Tensor]:
    """tr(KM), tr(KK) and tr(MM) of symmetric matrices, (layers,) each."""
    return [(one * other).sum((1, 2)) for one, other in ((k, m), (k, k), (m, m))]


def _pair(x: Tensor, y: Tensor, debiased: bool) -> tuple[Tensor, Tensor]:
    """Both representations, checked, in float64 and centred."""
    needed = 4 if debiased else 2
    wide = []
    for name, values in (("x", x), ("y", y)):
        wide.append(_matrix(values, name))
        if len(values) < needed:
            form = "debiased CKA" if debiased else "CKA"
            raise ValueError(f"{name}: {form} needs at least {needed} images (rows), got {len(values)}")
    if len(x) != len(y):
        raise ValueError(f"y: has {len(y)} rows and x has {len(x)}; row i of both must be the same image")
    return _centred(wide[0], "x"), _centred(wide[1], "y")


def _alignment(cross: Tensor, own_x: Tensor, own_y: Tensor) -> Tensor:
    for name, own in (("x", own_x), ("y", own_y)):
        if not bool(own.detach() > 0):
            raise ValueError(f"{name}: its HSIC with itself is 0, so CKA is undefined")
    # Two roots, as the product of two large HSICs could leave the range of the type.
    value = cross / (own_x.sqrt() * own_y.sqrt())
    return value.clamp_max(1.0)


def _squared(matrix: Tensor) -> Tensor:
    return (matrix * matrix).sum()


def _by_features(x: Tensor, y: Tensor) -> bool:
    """Whether products of the dimensions take fewer operations than those of the images."""
    n, p, q = len(x), x.shape[1], y.shape[1]
    return p * q + p * p + q * q <= n * (p + q)


def _products(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """X^T Y, X^T X and Y^T Y, or K = X X^T and L = Y Y^T, whichever takes fewer operations."""
    return (x.T @ y, x.T @ x, y.T @ y) if _by_features(x, y) else (x @ x.T, y @ y.T)


def _biased_hsic(x: Tensor, y: Tensor, *products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if _by_features(x, y):
        cross, own_x, own_y = products
        return _squared(cross), _squared(own_x), _squared(own_y)
    k, m = products
    return (k * m).sum(), _squared(k), _squared(m)


def _unbiased(inner: Tensor, sums_k: Tensor, sums_m: Tensor) -> Tensor:
    """Song 2012, equation 5, from tr(KL) and the row sums of the two kernels without their diagonals."""
    n = len(sums_k)
    cross = sums_k.sum() * sums_m.sum() / ((n - 1) * (n - 2)) - 2 * (sums_k * sums_m).sum() / (n - 2)
    return (inner + cross) / (n * (n - 3))


def _unbiased_hsic(x: Tensor, y: Tensor, *products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _unbiased_features(x, y, *products) if _by_features(x, y) else _unbiased_gram(*products)


def _unbiased_features(
    x: Tensor, y: Tensor, cross: Tensor, own_x: Tensor, own_y: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    norms_x, norms_y = (x * x).sum(1), (y * y).sum(1)
    sums_x, sums_y = x @ x.sum(0) - norms_x, y @ y.sum(0) - norms_y
    return (
        _unbiased(_squared(cross) - (norms_x * norms_y).sum(), sums_x, sums_y),
        _unbiased(_squared(own_x) - _squared(norms_x), sums_x, sums_x),
        _unbiased(_squared(own_y) - _squared(norms_y), sums_y, sums_y),
    )


def _unbiased_gram(k: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    k, m = k - torch.diag(k.diagonal()), m - torch.diag(m.diagonal())
    sums_k, sums_m = k.sum(1), m.sum(1)
    return (
        _unbiased((k * m).sum(), sums_k, sums_m),
        _unbiased(_squared(k), sums_k, sums_k),
        _unbiased(_squared(m), sums_m, sums_m),
    )


def cka_chance_level(n: int, p: int, q: int | None = None) -> float:
    """Plain (biased) linear CKA that two unrelated representations of the same images would show.

    The ratio of the expectations for independent standard Gaussian features, columns centred:
    sqrt(p q / ((n + p)(n + q))). It follows from E tr(KL) = pq(n-1) and E tr(KK) = p(n-1)(n+p) for
    Wishart matrices of n - 1 effective images. n = 200 with p = 768 gives 0.79. Real features are not
    isotropic: their effective dimension is below p, so this is the upper end of chance.

    Args:
        n: images (at least 2), p and q: dimensions of the two representations (q defaults to p).

    Returns:
        A number in (0, 1); the debiased form has chance level 0.

    Raises:
        ValueError: a size that is too small.
    """
    q = p if q is None else q
    if n < 2 or p < 1 or q < 1:
        raise ValueError(f"n, p, q: expected n >= 2 images and p, q >= 1 dimensions, got {n}, {p}, {q}")
    return math.sqrt(p * q / ((n + p) * (n + q)))


def embedding_drift(pretrained: Tensor, adapted: Tensor, *, check: bool = True) -> Tensor:
    """How far image embeddings have turned: 1 - mean over images of cos(z0_i, z_i).

    Args:
        pretrained: (n, d), adapted: (n, d), row i of both from image i; any positive scale a row.
        check: look at the values, for which an accelerator waits; without, rows that have no direction make the result NaN.

    Returns:
        0-dimensional float64 in [0, 2]: 0 for equal directions, 1 for orthogonal ones. Differentiable.

    Raises:
        ValueError: wrong or different shapes; with ``check``, NaN or inf, or a row of zeros (it has no direction).

    Source: the embedding drift of the first study.
    """
    z0, z = _matrix(pretrained, "pretrained", check), _matrix(adapted, "adapted", check)
    if z0.shape != z.shape:
        raise ValueError(f"adapted: has shape {tuple(z.shape)} and pretrained {tuple(z0.shape)}; they must be equal")
    units = []
    for name, values in (("pretrained", z0), ("adapted", z)):
        norms = values.norm(dim=1, keepdim=True)
        if check and bool((norms.detach() == 0).any()):
            row = int((norms.detach()[:, 0] == 0).nonzero()[0])
            raise ValueError(f"{name}: row {row} is all zeros and has no direction")
        units.append(values / norms)
    # |u - v|^2 / 2 = 1 - cos keeps its digits where the two directions are nearly equal.
    return (units[0] - units[1]).square().sum(1).mean() / 2


def embedding_distance(pretrained: Tensor, adapted: Tensor) -> Tensor:
    """Mean L2 distance of image embeddings over the mean norm of the pretrained ones.

    Args:
        pretrained: (n, d), adapted: (n, d), row i of both from image i.

    Returns:
        0-dimensional float64, at least 0; NaN where a value is.
    """
    wide = wide_dtype(pretrained)
    return (adapted - pretrained).to(wide).norm(dim=1).mean() / pretrained.to(wide).norm(dim=1).mean()
