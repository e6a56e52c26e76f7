"""The image embedding of a model, however it is asked for."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn


def image_embeddings(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Image embeddings of ``model``: (images, dimensions), not normalised.

    A classifier of ours is asked for its ``embed``, a CLIP model for its image features (through its
    projection), any other vision transformer for its pooled output.
    """
    module: Any = model
    if hasattr(module, "embed"):
        return cast(Tensor, module.embed(pixel_values))
    if hasattr(module, "get_image_features"):
        output = module.get_image_features(pixel_values=pixel_values)
    else:
        output = module(pixel_values=pixel_values)
    if isinstance(output, Tensor):
        return output
    for name in ("image_embeds", "pooler_output"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    raise TypeError(
        f"{type(model).__name__} yields no image embedding: give the model an `embed(pixel_values)` method, "
        "or pass `embed=` to DriftMonitor"
    )
