"""What a run trains, counted on a model without weights; here its method and its losses are tried on the model's shape."""

from __future__ import annotations

import torch

from attndrift.losses.registry import LOSSES
from attndrift.methods.adaptation import blank
from attndrift.models.load import build_model
from attndrift.study.resolved import adaptation
from attndrift.study.settings import RunSettings


def trained_parameters(settings: RunSettings, n_classes: int) -> tuple[int, int]:
    """Trainable and total parameters of a run, without making or loading any weights.

    Raises ``ValueError`` naming the setting for a method that the model has no place for, and a loss that cannot see it.
    """
    with torch.device("meta"):
        model = blank(adaptation(settings), build_model(settings.model), n_classes)
    for loss in map(LOSSES.__getitem__, settings.losses):
        try:
            if loss.check is not None:
                loss.check(settings.settings_of(loss), model.model)
        except ValueError as error:
            raise ValueError(
                f"`loss`: {loss.name} cannot be had with method {settings.method} on this model: {error}"
            ) from error
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters())
