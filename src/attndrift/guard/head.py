"""The classifier behind an encoder that has been rewound: it follows, without labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

RIDGE = 0.1  # of the mean variance of a dimension: directions that few images show keep their weights


@torch.no_grad()
def follow(head: nn.Linear, before: Tensor, now: Tensor) -> None:
    """Change ``head`` so that it makes of ``now`` what it made of ``before``: the nearest such layer, by ridge regression.

    A linear layer that was trained on one embedding reads another one wrongly: scaled down, shifted, turned. The logits of a
    few images, labelled or not, tell how. With X and Y the centred embeddings now and the centred logits before, the new
    weights W minimise |X W^T - Y|^2 + penalty |W - W0|^2, the penalty being ``RIDGE`` times the mean squared norm of a
    column of X; the bias puts the mean logits back.

    Args:
        head: a linear layer on the embedding; changed in place.
        before, now: (images, dimensions), float32, embeddings of the same images.
    """
    weight = head.weight.detach().double().cpu()
    bias = torch.zeros(len(weight), dtype=torch.float64) if head.bias is None else head.bias.detach().double().cpu()
    logits = before.double() @ weight.T + bias
    # Without a bias there is nothing to put the mean back with: the weights have to.
    free = head.bias is not None
    center, mean = (now.double().mean(0), logits.mean(0)) if free else (0.0, 0.0)
    inputs = now.double() - center
    missing = logits - mean - inputs @ weight.T
    width = inputs.shape[1]
    penalty = RIDGE * inputs.square().sum() / width
    gram = inputs.T @ inputs + penalty * torch.eye(width, dtype=torch.float64)
    weight = weight + torch.linalg.solve(gram, inputs.T @ missing).T
    head.weight.copy_(weight)
    if head.bias is not None:
        head.bias.copy_(mean - weight @ center)
