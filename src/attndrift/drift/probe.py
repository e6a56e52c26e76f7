"""The probe images of a monitor, whatever they are given as, as batches that are the same at every measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from attndrift.models.input_images import HOW_TO_NORMALIZE

Batches = Callable[[], Iterable[Tensor]]
"""Called at each measurement; yields the normalised probe images, float (images, 3, height, width)."""

Probe = Tensor | Mapping[str, Any] | Iterable[Any] | Batches
"""What a monitor takes for its probe images, see :class:`~attndrift.DriftMonitor`."""

FEWEST_IMAGES = 4
"""Debiased CKA has no value for fewer."""


def read_probe(probe: Probe) -> Tensor | Batches:
    """The images of ``probe`` in one tensor; a function as it is.

    Anything but a tensor or a function is read here, once: a ``DataLoader`` may shuffle, and a generator ends. Reading may
    draw from the random states.

    Raises TypeError for what holds no normalised images, and ValueError for images of different sizes or none.
    """
    if isinstance(probe, Mapping):
        probe = _images(probe)
    if not isinstance(probe, Tensor):
        if _is_function(probe):
            return cast(Batches, probe)
        probe = _collected(probe)
    if probe.dim() != 4 or not probe.is_floating_point():
        raise TypeError(
            f"probe: expected floating-point images (images, 3, height, width), got {str(probe.dtype).removeprefix('torch.')} "
            f"{tuple(probe.shape)}; {HOW_TO_NORMALIZE}"
        )
    return probe


def refuse_few(hidden: Tensor) -> None:
    """Raise ValueError where the images are too few to compare two models on, or too few different ones.

    ``hidden``: hidden states (layers, images, width) of the reference.
    """
    count = hidden.shape[1]
    need = f"CKA needs at least {FEWEST_IMAGES} different images to have a value; give about a hundred"
    if count < FEWEST_IMAGES:
        raise ValueError(f"probe: {count} image{'s' if count > 1 else ''}; {need}")
    states = hidden.transpose(0, 1).flatten(1)
    different, left = 0, states
    while len(left) and different < FEWEST_IMAGES:
        different += 1
        # Copies of an image differ by rounding where they come in batches of different sizes.
        left = left[(left - left[0]).norm(dim=1) > 1e-5 * left[0].norm()]
    if different < FEWEST_IMAGES:
        raise ValueError(
            f"probe: {count} images, of which the pretrained model tells only {different} apart; {need}, and see that "
            "they are not copies of each other"
        )


def _is_function(probe: Any) -> bool:
    # A dataset may have a __call__ of its own.
    return callable(probe) and (
        isinstance(probe, type) or (not hasattr(probe, "__iter__") and not hasattr(probe, "__getitem__"))
    )


def _collected(probe: Any) -> Tensor:
    parts = [_images(item) for item in _items(probe)]
    if not parts:
        raise ValueError("the probe set is empty")
    parts = [part if part.dim() == 4 else part.unsqueeze(0) for part in parts]
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise ValueError(
            f"probe: images of {len(shapes)} different sizes, {', '.join(map(str, sorted(shapes)))}; {HOW_TO_NORMALIZE}"
        )
    return torch.cat(parts)


def _items(probe: Any) -> Iterator[Any]:
    if hasattr(probe, "__getitem__") and hasattr(probe, "__len__"):
        # A dataset need not raise IndexError at its end, which is how Python would find it.
        return (probe[index] for index in range(len(probe)))
    if hasattr(probe, "__iter__"):
        return iter(probe)
    raise TypeError(f"probe: a {type(probe).__name__} holds no images; {HOW_TO_NORMALIZE}")


def _images(item: Any) -> Tensor:
    """The images of a tensor, of a batch or row with ``pixel_values``, or of (images, labels)."""
    value = item
    if isinstance(value, Mapping):
        if "pixel_values" not in value:
            raise TypeError(f"probe: a row with {', '.join(map(str, value))} and no `pixel_values`; {HOW_TO_NORMALIZE}")
        value = value["pixel_values"]
    elif isinstance(value, (tuple, list)) and value:
        value = value[0]
    if not isinstance(value, Tensor) or value.dim() not in (3, 4):
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise TypeError(f"probe: {what} is not an image as the model takes it; {HOW_TO_NORMALIZE}")
    return value
