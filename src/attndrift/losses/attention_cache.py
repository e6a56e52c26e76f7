"""The pretrained attention of training images, measured once: a teacher that costs no forward pass."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor, nn

from attndrift.attention.families import find_vision_tower
from attndrift.attention.observer import observe
from attndrift.models.evaluation import preserve_state, unwrapped
from attndrift.models.parameters import bare


class AttentionCache:
    """Pretrained log-attention of training images by number, in both orientations: a teacher that costs no forward.

    ::

        cache = AttentionCache(model, images)                # before training; images[i] has number i
        preserve = AttentionPreservation(model, weight=0.1, teacher=cache)
        ...
        loss = task_loss + preserve(index=numbers, flipped=flips)

    A flip moves patches, and what the model sees, so the two orientations are measured, not mirrored. Takes
    4 x layers x heads x patches bytes an image and orientation, in memory or in ``file`` (ViT-B/32: 28 KB).

    Args:
        model: measured as it is now, without its ``peft`` adapters.
        images: normalised, one tensor (images, 3, height, width) or batches of them in the order of their numbers.
        flips: also measure the images mirrored left to right.
        batch_size: images a forward pass, where ``images`` is one tensor.
        file: keeps the attention on disk. Where it is there already, ``images`` are not looked at: its name must tell
            models, images and preprocessing apart. Needs ``count``.
        count: how many images there are.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor | Iterable[Tensor],
        *,
        flips: bool = True,
        batch_size: int = 200,
        file: Path | None = None,
        count: int | None = None,
    ) -> None:
        inner = unwrapped(model)
        weight = next(p for p in find_vision_tower(inner).module.parameters() if p.is_floating_point())
        self._device = weight.device
        batches = images.split(batch_size) if isinstance(images, Tensor) else images
        rows = _measured(inner, weight, batches, 2 if flips else 1)
        if file is None:
            parts = list(rows)
            if not parts:
                raise ValueError("there are no images to remember the attention of")
            self._maps: NDArray[np.float32] = np.concatenate(parts, axis=1)
        elif count is None:
            raise ValueError("`file` needs `count`, the number of images: a file that was cut short must not be read")
        else:
            self._maps = _on_disk(file, rows, (2 if flips else 1, count))

    def __len__(self) -> int:
        return self._maps.shape[1]

    def layer_entropy(self) -> Tensor:
        """Mean entropy of each layer over images and heads, as they are and not mirrored: (layers,), nats."""
        logs = torch.from_numpy(np.array(self._maps[0])).double()
        return -(logs.exp() * logs).sum(-1).mean(dim=(0, 2))

    def __call__(self, index: Sequence[int], flipped: Sequence[bool]) -> Tensor:
        """(layers, images, heads, patches), float32, on the model's device, which is not waited for.

        Raises IndexError for a number that is not in the cache.
        """
        numbers, mirrored = np.asarray(index, dtype=np.int64), np.asarray(flipped, dtype=np.int64)
        if mirrored.any() and len(self._maps) == 1:
            raise IndexError("the cache holds no mirrored images; make it with flips=True")
        for number in numbers[(numbers < 0) | (numbers >= len(self))]:
            raise IndexError(f"no image has number {number}; the cache holds 0 to {len(self) - 1}")
        rows = torch.from_numpy(self._maps[mirrored, numbers]).transpose(0, 1)
        if self._device.type == "cuda":
            # From pinned memory the copy to the device waits for nothing.
            return rows.contiguous().pin_memory().to(self._device, non_blocking=True)
        return rows.contiguous()


def _measured(
    model: nn.Module, weight: Tensor, batches: Iterable[Tensor], orientations: int
) -> Iterator[NDArray[np.float32]]:
    """Log-attention of each batch: (orientations, images, layers, heads, patches)."""
    tower = find_vision_tower(model).module
    for batch in batches:
        found = []
        with preserve_state(model), bare(model):
            for mirrored in range(orientations):
                pixels = (batch.flip(-1) if mirrored else batch).to(weight.device, weight.dtype)
                with observe(model) as seen:
                    tower(pixels)
                found.append(torch.stack(seen.log_attention, dim=1).float().cpu().numpy())
        yield np.stack(found)


def _on_disk(path: Path, rows: Iterator[NDArray[np.float32]], leading: tuple[int, int]) -> NDArray[np.float32]:
    """The array in ``path``, made there of ``rows`` where it is not; a file that was cut short is made anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        try:
            maps = np.load(path, mmap_mode="r", allow_pickle=False)
            if maps.ndim == 5 and maps.shape[:2] == leading and maps.dtype == np.float32:
                return maps
        except (OSError, ValueError, EOFError):
            pass
        # The lock is held: a file of this name is what a killed process left behind.
        temporary, start = path.with_suffix(".partial"), 0
        array: np.memmap[Any, Any] | None = None
        try:
            for part in rows:
                if array is None:
                    shape = (*leading, *part.shape[2:])
                    array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
                array[:, start : start + part.shape[1]] = part
                start += part.shape[1]
            if array is None or start != leading[1]:
                raise ValueError(
                    f"there are {start} images to remember the attention of, and {leading[1]} were announced"
                )
            array.flush()
            del array
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return np.load(path, mmap_mode="r", allow_pickle=False)
