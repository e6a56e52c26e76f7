"""The evaluation transforms of timm and open_clip as an image processor of transformers, pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Resampling
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from attndrift.models.errors import ModelError

_RESAMPLING = {
    "bicubic": Resampling.BICUBIC,
    "bilinear": Resampling.BILINEAR,
    "lanczos": Resampling.LANCZOS,
    "nearest": Resampling.NEAREST,
}


class EvalImageProcessor(CLIPImageProcessorPil):
    """Resize, crop at the center, normalise. Where the margins are odd the crop is torchvision's, not that of transformers."""

    def center_crop(self, image: NDArray[Any], size: Any, **options: Any) -> NDArray[Any]:
        """The crop (channels, height, width); an image that is too small is padded as transformers does."""
        height, width = image.shape[-2:]
        if height < size.height or width < size.width:
            return super().center_crop(image, size, **options)
        top, left = round((height - size.height) / 2), round((width - size.width) / 2)
        return np.ascontiguousarray(image[..., top : top + size.height, left : left + size.width])

    def to_dict(self) -> dict[str, Any]:
        """The settings. Kept pixels are told apart by them, so the crop is one."""
        return super().to_dict() | {"crop_rounding": "torchvision"}


def eval_processor(
    source: str,
    *,
    crop: int,
    resize: int | None = None,
    squash: bool = False,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
) -> EvalImageProcessor:
    """The processor of a model.

    Args:
        source: of the model, for messages.
        crop: side of the images that the model takes, in pixels.
        resize: side that the shorter edge is resized to first; None for ``crop``.
        squash: both edges are resized to it instead.
        mean, std: of the colours, 0..1.
        interpolation: ``bicubic``, ``bilinear``, ``lanczos`` or ``nearest``.

    Raises :class:`ModelError` for another interpolation.
    """
    resize = crop if resize is None else resize
    # timm draws one of two at random in training; its evaluation is bicubic then.
    resampling = _RESAMPLING.get("bicubic" if interpolation == "random" else interpolation)
    if resampling is None:
        raise ModelError(f"{source}: resizes by {interpolation!r}; a study resizes by {', '.join(_RESAMPLING)}")
    return EvalImageProcessor(
        size={"height": resize, "width": resize} if squash else {"shortest_edge": resize},
        crop_size={"height": crop, "width": crop},
        resample=resampling,
        image_mean=list(mean),
        image_std=list(std),
    )
