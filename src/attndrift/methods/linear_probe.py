"""Fitting a linear classifier to fixed embeddings: logistic regression, or steps of AdamW."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOST_ITERATIONS = 1000
SMALL_GRADIENT = 1e-7  # the largest entry of the gradient at which the optimum counts as found


def fit_logistic_regression(layer: nn.Linear, embeddings: Tensor, labels: Tensor, *, c: float = 0.316) -> None:
    """Put ``layer`` at the optimum of penalised multinomial logistic regression.

    The objective is that of scikit-learn: the sum of the cross-entropies, times ``c``, plus half the squared norm of the
    weights; the bias is not penalised. It is solved in float64 by L-BFGS from zero, so that nothing depends on a seed.

    Args:
        layer: (classes, dimensions), with a bias; changed in place.
        embeddings: (images, dimensions).
        labels: (images,), integers from 0.
        c: inverse of the penalty, above 0.
    """
    images, targets = _checked(layer, embeddings, labels)
    weight = torch.zeros(layer.weight.shape, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(layer.weight), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=MOST_ITERATIONS, history_size=20, line_search_fn="strong_wolfe",
        tolerance_grad=SMALL_GRADIENT, tolerance_change=0.0,
    )  # fmt: skip

    def objective() -> float:
        solver.zero_grad()
        loss = nn.functional.cross_entropy(images @ weight.T + bias, targets)
        # Per image: a mean has the same scale for any number of images, and so has the tolerance.
        loss = loss + weight.square().sum() / (2 * c * len(images))
        loss.backward()
        return float(loss.detach())

    with torch.enable_grad():
        solver.step(objective)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


def fit_by_steps(
    layer: nn.Linear, embeddings: Tensor, labels: Tensor, *, steps: int, learning_rate: float = 1e-2
) -> None:
    """Train ``layer`` from where it is: ``steps`` of AdamW on all images at once, with a cosine that ends at 0.

    Args:
        layer, embeddings, labels: see :func:`fit_logistic_regression`.
        steps: at least 1.
        learning_rate: of the first step.
    """
    images, targets = _checked(layer, embeddings, labels)
    weight = layer.weight.detach().double().clone().requires_grad_()
    bias = layer.bias.detach().double().clone().requires_grad_()
    optimizer = torch.optim.AdamW([weight, bias], learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(images @ weight.T + bias, targets).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


def _checked(layer: nn.Linear, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings in float64 and labels on the CPU."""
    if embeddings.dim() != 2 or embeddings.shape[1] != layer.in_features or len(embeddings) != len(labels):
        raise ValueError(
            f"embeddings are {tuple(embeddings.shape)} with {len(labels)} labels; give (images, {layer.in_features}) and a "
            "label for each image"
        )
    targets = labels.cpu().long()
    if len(targets) == 0 or int(targets.min()) < 0 or int(targets.max()) >= layer.out_features:
        raise ValueError(f"labels must be integers from 0 to {layer.out_features - 1}, and at least one")
    return embeddings.detach().double().cpu(), targets
