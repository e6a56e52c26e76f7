"""The probe images of a monitor, whatever they are given as, as batches that are the same at every measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from attndrift.models.evaluation import same_random_state

Batches = Callable[[], Iterable[Tensor]]
"""Called at each measurement; yields the normalised probe images, float (images, 3, height, width)."""

Probe = Tensor | Mapping[str, Any] | Iterable[Any] | Batches
"""What a monitor takes for its probe images, see :class:`~attndrift.DriftMonitor`."""

_REMEDY = "give normalised images, processor(images, return_tensors='pt')['pixel_values']"


def batches_of(probe: Probe, size: Callable[[], int], model: nn.Module) -> Batches:
    """Batches of ``size()`` images of ``probe``; a callable's as it yields them.

    Anything but a tensor or a callable is read here, once: a ``DataLoader`` may shuffle, and a generator ends. The
    random states that reading may draw from (``model``'s devices' among them) are put back.

    Raises TypeError for what holds no normalised images, and ValueError for images of different sizes or none.
    """
    if isinstance(probe, Mapping):
        probe = _images(probe)
    if not isinstance(probe, Tensor):
        if _is_function(probe):
            return cast(Batches, probe)
        with same_random_state(model):
            probe = _collected(probe)
    images = _checked(probe)
    return lambda: images.split(size())


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
            f"probe: images of {len(shapes)} different sizes, {', '.join(map(str, sorted(shapes)))}; {_REMEDY}"
        )
    return torch.cat(parts)


def _items(probe: Any) -> Iterator[Any]:
    if hasattr(probe, "__getitem__") and hasattr(probe, "__len__"):
        # A dataset need not raise IndexError at its end, which is how Python would find it.
        return (probe[index] for index in range(len(probe)))
    if hasattr(probe, "__iter__"):
        return iter(probe)
    raise TypeError(f"probe: a {type(probe).__name__} holds no images; {_REMEDY}")


def _images(item: Any) -> Tensor:
    """The images of a tensor, of a batch or row with ``pixel_values``, or of (images, labels)."""
    value = item
    if isinstance(value, Mapping):
        if "pixel_values" not in value:
            raise TypeError(f"probe: a row with {', '.join(map(str, value))} and no `pixel_values`; {_REMEDY}")
        value = value["pixel_values"]
    elif isinstance(value, (tuple, list)) and value:
        value = value[0]
    if not isinstance(value, Tensor) or value.dim() not in (3, 4):
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise TypeError(f"probe: {what} is not an image as the model takes it; {_REMEDY}")
    return value


def _checked(images: Tensor) -> Tensor:
    if images.dim() != 4 or not images.is_floating_point():
        raise TypeError(
            f"probe: expected floating-point images (images, 3, height, width), got {str(images.dtype).removeprefix('torch.')} "
            f"{tuple(images.shape)}; {_REMEDY}"
        )
    return images
