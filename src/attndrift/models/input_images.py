"""Whether images are as a model takes them: normalised, and of its size. Asked wherever somebody gives images."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger("attndrift.images")

HOW_TO_NORMALIZE = "give normalised images, processor(images, return_tensors='pt')['pixel_values']"
_LARGEST = 20.0  # of a normalised pixel; processors end within 4


def checked_images(batches: Iterable[Tensor], what: str, *, warn: bool = True, wait: bool = True) -> Iterator[Tensor]:
    """``batches`` as they are, without those of no image; looks at all of their values, and says so where these are none of normalised images.

    Args:
        what: the argument that they were given as, for messages.
        warn: values of 0 to 1, which some models take, are warned of.
        wait: look at values on an accelerator too, which has to be waited for.

    Raises TypeError for what no processor gives: whole numbers, values such as 0 to 255, NaN, another number of dimensions.
    """
    low, high = math.inf, -math.inf
    for batch in batches:
        _check_kind(batch, what)
        if not len(batch):
            continue
        if wait or batch.device.type == "cpu":
            ends = torch.stack(torch.aminmax(batch.detach())).tolist()
            if not all(math.isfinite(end) for end in ends):
                raise TypeError(f"{what}: some values are NaN or infinite; {HOW_TO_NORMALIZE}")
            low, high = min(low, ends[0]), max(high, ends[1])
            if max(high, -low) > _LARGEST:
                raise TypeError(
                    f"{what}: values from {low:.4g} to {high:.4g} are not normalised, as of pixels 0 to 255; {HOW_TO_NORMALIZE}"
                )
        yield batch
    if warn and math.isfinite(low):
        _warn_of_rescaled(low, high, what)


def _check_kind(batch: Any, what: str) -> None:
    if not isinstance(batch, Tensor):
        raise TypeError(f"{what}: a {type(batch).__name__} is no batch of images; {HOW_TO_NORMALIZE}")
    if not batch.is_floating_point():
        kind = str(batch.dtype).removeprefix("torch.")
        raise TypeError(f"{what}: images of {kind} are not normalised, as of pixels; {HOW_TO_NORMALIZE}")
    if batch.dim() != 4:
        raise TypeError(
            f"{what}: expected batches (images, 3, height, width), got the shape {tuple(batch.shape)}; {HOW_TO_NORMALIZE}"
        )


def _warn_of_rescaled(low: float, high: float, what: str) -> None:
    if low >= 0 and high <= 1:
        logger.warning(
            "%s: all values lie between 0 and 1, so the images seem to be rescaled and not normalised. Unless the model "
            "takes them so, %s",
            what,
            HOW_TO_NORMALIZE,
        )
    elif high - low < 0.1:
        logger.warning(
            "%s: all values lie between %.4g and %.4g, as of images that were rescaled twice: %s, once",
            what,
            low,
            high,
            HOW_TO_NORMALIZE,
        )


@contextmanager
def named_size(model: nn.Module, images: Tensor, what: str) -> Iterator[None]:
    """Around a forward pass of ``images``: where it fails and they have another size than ``model`` takes, say so.

    Not before it: some models take images of any size.
    """
    try:
        yield
    except (RuntimeError, ValueError, AssertionError) as error:
        expected, given = _image_shape(model), tuple(images.shape[1:])
        if expected is None or all(wanted in (None, size) for wanted, size in zip(expected, given, strict=False)):
            raise
        shape = ", ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(
            f"{what}: images of (channels, height, width) {given}; the model takes ({shape}): {HOW_TO_NORMALIZE}, with the "
            "model's own processor"
        ) from error


def _image_shape(model: nn.Module) -> Sequence[int | None] | None:
    """(channels, height, width) of the images of ``model``, None for what it does not tell."""
    patches = next(
        (part for part in model.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == part.stride), None
    )
    if patches is None:
        return None
    for part in model.modules():
        for holder in (part, getattr(part, "config", None)):
            size: Any = getattr(holder, "image_size", None) or getattr(holder, "img_size", None)
            sides = (size, size) if isinstance(size, int) else size
            if isinstance(sides, (tuple, list)) and len(sides) == 2:
                return [patches.in_channels, *sides]
    return [patches.in_channels, None, None]
