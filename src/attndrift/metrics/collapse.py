"""Metrics of a cloud of embeddings: does it fill its space, and has it kept its shape?

All of it runs in float64, whatever comes in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attndrift.metrics.attention import wide_dtype

_DEGENERATE = 1e-12


def effective_rank(embeddings: Tensor) -> Tensor:
    """How many dimensions the embeddings spread over: exp of the entropy of their normalised singular values.

    The columns are centred, so that what all images share counts for nothing. The rows keep their lengths.

    Args:
        embeddings: (n, d), a row an image.

    Returns:
        0-dimensional float64 from 1 to min(n - 1, d); NaN where all rows are equal.

    Source: Roy and Vetterli 2007, equation 2, on the centred matrix.
    """
    centred = _centred(embeddings)
    if centred is None:
        return torch.tensor(torch.nan, dtype=wide_dtype(embeddings))
    values = torch.linalg.svdvals(centred)
    # 0 ln 0 is 0.
    return torch.special.entr(values / values.sum()).sum().exp()


def mean_pairwise_cosine(embeddings: Tensor) -> Tensor:
    """Mean cosine of the embeddings of two different images, over all pairs.

    Args:
        embeddings: (n, d), a row an image, n at least 2; not centred.

    Returns:
        0-dimensional float64 from -1 / (n - 1) to 1; NaN where a row is all zeros.

    Source: the average cosine of Ethayarajh 2019, section 4.1, on images.
    """
    n = len(embeddings)
    units = embeddings.to(wide_dtype(embeddings))
    units = units / units.norm(dim=1, keepdim=True)
    return (units.sum(0).square().sum() - n) / (n * (n - 1))


def procrustes_residual(pretrained: Tensor, adapted: Tensor) -> Tensor:
    """What no rotation undoes: half the squared distance of the two clouds after the best orthogonal map.

    Both are centred and scaled to norm 1, X and Y; the result is min over orthogonal R of norm(X R - Y)^2 / 2, which is
    1 - the sum of the singular values of X^T Y.

    Args:
        pretrained: (n, d), adapted: (n, d), row i of both from image i.

    Returns:
        0-dimensional float64 from 0 (equal up to rotation, reflection, scale and shift) to 1; NaN where all rows of one are
        equal.

    Source: Schoenemann 1966; as a distance of representations, Ding et al. 2021.
    """
    x, y = _centred(pretrained), _centred(adapted)
    if x is None or y is None:
        return torch.tensor(torch.nan, dtype=wide_dtype(pretrained))
    if x.shape[0] < x.shape[1]:
        # X^T = Q R: the singular values of X^T Y are those of a matrix as small as the images are few.
        x, y = (torch.linalg.qr(values.T, mode="r").R.T for values in (x, y))
    nuclear = torch.linalg.svdvals(x.T @ y).sum() / (x.norm() * y.norm())
    return (1 - nuclear).clamp_min(0.0)


def modality_gap(images: Tensor, texts: Tensor) -> Tensor:
    """Distance of the mean of the image embeddings from the mean of the text embeddings, each embedding of length 1.

    Args:
        images: (n, d), texts: (m, d), of one space.

    Returns:
        0-dimensional float64 from 0 to 2; NaN where a row is all zeros.

    Source: Liang et al. 2022, section 4.
    """
    means = []
    for values in (images, texts):
        wide = values.to(wide_dtype(values))
        means.append((wide / wide.norm(dim=1, keepdim=True)).mean(0))
    return (means[0] - means[1]).norm()


def _centred(embeddings: Tensor) -> Tensor | None:
    """The centred columns in float64; None where all rows are equal, or one is not finite."""
    wide = embeddings.to(wide_dtype(embeddings))
    centred = wide - wide.mean(0, keepdim=True)
    # False for what is not finite too.
    return centred if bool(centred.norm() > _DEGENERATE * wide.norm()) else None
