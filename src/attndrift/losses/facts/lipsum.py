"""Lipsum-FT."""

from typing import Annotated, Any

from pydantic import Field

from attndrift.losses.registry import LOSSES, Loss
from attndrift.own_settings import OwnSettings, setting


class LipsumSettings(OwnSettings):
    """Of the random texts."""

    lipsum_texts: Annotated[int, Field(ge=1, le=10_000)] = setting(80, "random texts", label="texts ")
    lipsum_tokens: Annotated[int, Field(ge=1, le=1000)] = setting(8, "tokens of a random text", label="tokens ")


def _texts_can_be_drawn(settings: Any, model: Any) -> None:
    from attndrift.losses.lipsum import random_texts  # needs torch, without which facts are read
    from attndrift.losses.pretrained_weights import encoder_of
    from attndrift.models.backbone import backbone_of

    encoder = backbone_of(encoder_of(model)).text_encoder
    if encoder is None:
        raise ValueError("the model has no text tower")
    random_texts(encoder, 1, settings.lipsum_tokens)


LOSSES.register(
    Loss(
        name="lipsum",
        make="attndrift.losses.lipsum:Lipsum",
        label="Lipsum-FT",
        short_label="Lipsum-FT",
        meaning="half the squared difference of the zero-shot logits for random texts, mean over texts and images",
        source="Nam et al. 2024",
        formula="1/2 mean (l - l0)^2",
        Settings=LipsumSettings,
        needs=("registered backbone", "text tower"),
        # Both orientations of every training image.
        cached_passes=2.0,
        check=_texts_can_be_drawn,
    )
)
