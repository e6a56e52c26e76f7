"""The pretrained values of training images, measured once: a teacher that costs no forward pass."""

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
from attndrift.files import sync_folder
from attndrift.losses.views import AttentionView, View, stacked
from attndrift.models.evaluation import preserve_state, unwrapped
from attndrift.models.input_images import checked_images, named_size
from attndrift.models.parameters import bare
from attndrift.models.to_device import to_device


class TeacherCache:
    """Pretrained values of training images by number, in both orientations: a teacher that costs no forward.

    ::

        cache = TeacherCache(model, images, view=EmbeddingView())     # before training; images[i] has number i
        preserve = EmbeddingCosine(model, weight=1.0, teacher=cache)
        ...
        loss = task_loss + preserve(index=numbers, flipped=flips)

    A flip moves patches, and what the model sees, so the two orientations are measured, not mirrored. Takes 4 bytes a
    number, image and orientation, in memory or in ``file`` (ViT-B/32: 28 KB of attention, 15 KB of hidden states in
    five layers, 2 KB of an embedding).

    Args:
        model: measured as it is now, without its ``peft`` adapters.
        images: normalised, one tensor (images, 3, height, width) or batches of them in the order of their numbers.
        view: what is measured; a loss has it as ``view``.
        flips: also measure the images mirrored left to right.
        batch_size: images a forward pass, where ``images`` is one tensor.
        file: keeps the values on disk. Where it is there already, ``images`` are not looked at: its name must tell
            models, images, preprocessing and view apart. Needs ``count``.
        count: how many images there are.

    Attributes:
        view: the name of what is measured.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor | Iterable[Tensor],
        *,
        view: View,
        flips: bool = True,
        batch_size: int = 200,
        file: Path | None = None,
        count: int | None = None,
    ) -> None:
        inner = unwrapped(model)
        self.view = view.name
        weight = next(p for p in find_vision_tower(inner).module.parameters() if p.is_floating_point())
        self._device = weight.device
        batches = images.split(batch_size) if isinstance(images, Tensor) else images
        rows = _measured(inner, view, weight, batches, 2 if flips else 1)
        if file is None:
            parts = list(rows)
            if not parts:
                raise ValueError("there are no images to remember the values of")
            self._values: NDArray[np.float32] = np.concatenate(parts, axis=1)
        elif count is None:
            raise ValueError("`file` needs `count`, the number of images: a file that was cut short must not be read")
        else:
            self._values = _on_disk(file, rows, (2 if flips else 1, count))

    def __len__(self) -> int:
        return self._values.shape[1]

    def __call__(self, index: Sequence[int], flipped: Sequence[bool]) -> Tensor:
        """(views, images, ...), float32, on the model's device, which is not waited for.

        Raises IndexError for a number that is not in the cache.
        """
        numbers, mirrored = np.asarray(index, dtype=np.int64), np.asarray(flipped, dtype=np.int64)
        if mirrored.any() and len(self._values) == 1:
            raise IndexError("the cache holds no mirrored images; make it with flips=True")
        for number in numbers[(numbers < 0) | (numbers >= len(self))]:
            raise IndexError(f"no image has number {number}; the cache holds 0 to {len(self) - 1}")
        rows = torch.from_numpy(self._values[mirrored, numbers]).transpose(0, 1)
        return to_device(rows.contiguous(), self._device)


class AttentionCache(TeacherCache):
    """Pretrained log-attention of training images by number: the teacher of attention preservation and of the entropy floor.

    ``AttentionCache(model, images)`` takes what :class:`TeacherCache` takes, without ``view``.
    """

    def __init__(self, model: nn.Module, images: Tensor | Iterable[Tensor], **options: Any) -> None:
        super().__init__(model, images, view=AttentionView(), **options)

    def layer_entropy(self) -> Tensor:
        """Mean entropy of each layer over images and heads, as they are and not mirrored: (layers,), nats."""
        logs = torch.from_numpy(np.array(self._values[0])).double()
        return -(logs.exp() * logs).sum(-1).mean(dim=(0, 2))


def _measured(
    model: nn.Module, view: View, weight: Tensor, batches: Iterable[Tensor], orientations: int
) -> Iterator[NDArray[np.float32]]:
    """What the view sees of each batch: (orientations, images, views, ...)."""
    encoder = view.encoder(model)
    for batch in checked_images(batches, "images"):
        found = []
        with preserve_state(model), bare(model):
            for mirrored in range(orientations):
                pixels = (batch.flip(-1) if mirrored else batch).to(weight.device, weight.dtype)
                with named_size(encoder, pixels, "images"):
                    seen = view.run(encoder, (pixels,), {}, check=True)
                found.append(stacked(seen).float().cpu().numpy())
        yield np.stack(found)


def _on_disk(path: Path, rows: Iterator[NDArray[np.float32]], leading: tuple[int, int]) -> NDArray[np.float32]:
    """The array in ``path``, made there of ``rows`` where it is not; a file that was cut short is made anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        try:
            maps = np.load(path, mmap_mode="r", allow_pickle=False)
            if maps.ndim >= 4 and maps.shape[:2] == leading and maps.dtype == np.float32:
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
                raise ValueError(f"there are {start} images to remember the values of, and {leading[1]} were announced")
            array.flush()
            del array
            # On the disk before it has its name: who finds the name does not look at what is in it.
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return np.load(path, mmap_mode="r", allow_pickle=False)
