"""What several losses have in common: a run that has two of them has one value of such a setting for both."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from attndrift.own_settings import OwnSettings, setting


class TemperatureSettings(OwnSettings):
    """Of a loss on softened logits."""

    distillation_temperature: Annotated[float, Field(gt=0, le=100)] = setting(
        2.0, "what logits are divided by before the softmax", label="T="
    )


def check_weights_seen(settings: Any, model: Any) -> None:
    """Raise ``ValueError`` naming the layer, for a model whose trained weights a loss on weights cannot see."""
    from attndrift.losses.pretrained_weights import PretrainedWeights  # needs torch, without which facts are read

    PretrainedWeights(model, whole=True)
