"""Making the pixels of a store, and keeping them as a file that exists whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from attndrift.data.cache import cache_folder
from attndrift.data.dataset import ImageSplit
from attndrift.data.decoding import quiet_decoding
from attndrift.data.errors import DataError, UnreadableImageError, some
from attndrift.files import sync_folder, write_json

_LAYOUT = 2
"""Raised when the way that pixels are made changes: older files are then made again."""

_ONLY_NORMALIZING = (
    "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "image_processor_type",
    "processor_class", "return_tensors", "device", "disable_grouping", "data_format", "input_data_format",
)  # fmt: skip

Progress = Callable[[int, int], None]


def image_processor_of(processor: Any) -> Any:
    """The image processor itself, where ``processor`` also holds a tokenizer."""
    return getattr(processor, "image_processor", processor)


def _run(processor: Any, image: Image.Image, **options: Any) -> NDArray[Any]:
    output = processor(image, **options)["pixel_values"]
    return np.asarray(output[0])


def normalization(processor: Any) -> NDArray[np.float32]:
    """What the processor makes of each 8-bit value: (3, 256), float32."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    table = _run(processor, Image.fromarray(ramp), do_resize=False, do_center_crop=False, do_pad=False)
    if table.shape != (3, 1, 256):
        raise DataError(
            f"{type(processor).__name__} turns an image of 1 x 256 pixels into {table.shape} without "
            "resizing and cropping; pixels can be kept only where each channel is normalised value by value"
        )
    return np.ascontiguousarray(table[:, 0, :], dtype=np.float32)


def _resized(processor: Any, image: Image.Image) -> NDArray[np.uint8]:
    pixels = _run(processor, image, do_rescale=False, do_normalize=False)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
        raise DataError(
            f"{type(processor).__name__} gives {pixels.dtype} {pixels.shape} before rescaling and "
            "normalising; 8-bit (3, height, width) is needed to keep pixels"
        )
    return pixels


def _settings(processor: Any) -> dict[str, Any]:
    kept = {k: v for k, v in processor.to_dict().items() if k not in _ONLY_NORMALIZING}
    return json.loads(json.dumps(kept, default=str, sort_keys=True))


def _key(split: ImageSplit, processor: Any, chosen: NDArray[np.int64]) -> dict[str, Any]:
    """Everything that decides the pixels, and its hash."""
    content = {
        "layout": _LAYOUT,
        "dataset": split.dataset,
        "split": split.name,
        "fingerprint": split.fingerprint,
        "images": len(chosen),
        "indices": hashlib.sha256(np.ascontiguousarray(chosen, dtype="<i8").tobytes()).hexdigest(),
        "processor": _settings(processor),
        # Two backends, and two versions of Pillow, do not resize alike to the last bit.
        "backend": str(getattr(processor, "backend", type(processor).__name__)),
        "pillow": PIL.__version__,
    }
    text = json.dumps(content, sort_keys=True)
    return {"key": hashlib.sha256(text.encode()).hexdigest()[:32], **content}


def check_processor(split: ImageSplit, processor: Any, table: NDArray[np.float32], index: int) -> None:
    """See on one image that keeping 8-bit pixels changes nothing."""
    try:
        image = split[index]
    except UnreadableImageError:
        return  # decoding all of them finds it again, and lists it with the others
    whole = _run(processor, image)
    pixels = _resized(processor, image)
    ours = np.stack([table[channel][pixels[channel]] for channel in range(3)])
    if whole.shape != ours.shape or not np.allclose(whole, ours, rtol=0, atol=1e-5):
        raise DataError(
            f"{type(processor).__name__} does not give the same image when it is resized first and "
            "normalised later; its pixels cannot be kept"
        )


def kept_pixels(
    split: ImageSplit,
    processor: Any,
    chosen: NDArray[np.int64],
    cache_dir: str | Path | None,
    progress: Progress | None,
) -> NDArray[np.uint8]:
    """Resized images (images, 3, height, width), uint8, as a memory map; made where not there."""
    key = _key(split, processor, chosen)
    path = cache_folder(cache_dir) / "pixels" / f"{key['key']}.npy"
    _make_folder(path.parent)
    with FileLock(path.with_suffix(".lock")):
        pixels = _stored(path, len(chosen))
        if pixels is None:
            _write(path, key, split, processor, chosen, progress)
            pixels = _stored(path, len(chosen))
    if pixels is None:
        raise DataError(f"{path}: just written, but cannot be read; check the disk")
    return pixels


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the cache folder {folder} cannot be made ({error.strerror}); name another in ATTNDRIFT_CACHE"
        ) from error


def _stored(path: Path, images: int) -> NDArray[np.uint8] | None:
    """The array in ``path``; None where there is none, or one that is damaged."""
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != images or pixels.shape[1] != 3:
        return None
    return pixels


def _write(
    path: Path,
    key: dict[str, Any],
    split: ImageSplit,
    processor: Any,
    chosen: NDArray[np.int64],
    progress: Progress | None,
) -> None:
    # The lock is held: a file of this name is what a killed process left behind.
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            _write_array(file, split, processor, chosen, progress)
            file.flush()
            os.fsync(file.fileno())
        write_json(path.with_suffix(".json"), key)
        os.replace(partial, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise DataError(
                f"the pixels of {split.dataset} cannot be kept in {path.parent} ({error.strerror or error}); "
                "name another folder in ATTNDRIFT_CACHE"
            ) from error
        raise


def _write_array(
    file: Any, split: ImageSplit, processor: Any, chosen: NDArray[np.int64], progress: Progress | None
) -> None:
    shape: tuple[int, ...] | None = None
    first = ""
    unreadable: list[UnreadableImageError] = []
    for done, (index, pixels) in enumerate(_decoded(split, processor, chosen), start=1):
        if isinstance(pixels, UnreadableImageError):
            unreadable.append(pixels)
        elif not unreadable:
            if shape is None:
                shape, first = pixels.shape, split.ids[index]
                _write_header(file, (len(chosen), *shape))
            if pixels.shape != shape:
                raise DataError(
                    f"{split.dataset}: the processor makes images of different sizes: "
                    f"{shape[1]} x {shape[2]} of {first!r}, {pixels.shape[1]} x {pixels.shape[2]} of "
                    f"{split.ids[index]!r}. It must resize or crop to one size (`do_center_crop`)"
                )
            file.write(np.ascontiguousarray(pixels).tobytes())
        if progress is not None:
            progress(done, len(chosen))
    if unreadable:
        listed = some((f"{error.image_id} ({error.reason})" for error in unreadable), limit=10)
        raise DataError(
            f"{split.dataset}, split `{split.name}`: {len(unreadable)} of {len(chosen)} images cannot be "
            f"read: {listed}. Replace them, or leave them out with `unreadable: skip`"
        )


def _decoded(
    split: ImageSplit, processor: Any, chosen: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.uint8] | UnreadableImageError]]:
    for index in chosen.tolist():
        try:
            with quiet_decoding():
                image = split.decode(index)
        except UnreadableImageError as error:
            yield index, error
            continue
        yield index, _resized(processor, image)


def _write_header(file: Any, shape: tuple[int, ...]) -> None:
    needed = int(np.prod(shape))
    folder = Path(file.name).parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{shape[0]:,} images of {shape[2]} x {shape[3]} pixels take {needed / 1e9:.1f} GB; {folder} has "
            f"{free / 1e9:.1f} GB free. Name another folder in ATTNDRIFT_CACHE, or take fewer images"
        )
    header: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
