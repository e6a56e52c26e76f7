"""From an image file to 8-bit RGB, whatever the file holds.

Colour images with more bits, CMYK, palettes, greys and alpha (over white, as the CLIP processor does)
are brought to 8-bit RGB; of an animation the first frame is taken; the EXIF orientation is applied, as
the ``datasets`` library does.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from attndrift.data.errors import UnreadableImageError

MAX_PIXELS = 89_478_485
"""Images with more pixels are refused before they are decoded (the limit at which Pillow warns)."""

MAX_ASPECT = 200
"""A longer strip would be resized to a picture of gigabytes: its short side grows to the crop's."""

RawImage = bytes | Path | NDArray[np.uint8]
"""An encoded image, the file that holds one, or pixels (height, width, 3)."""

_ORIENTATION = 0x0112
_SIXTEEN_BIT_GREY = ("I;16", "I;16L", "I;16B", "I;16N")


@contextmanager
def quiet_decoding() -> Iterator[None]:
    """Silence Pillow's warnings: what they warn of is either handled here or an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\..*")
        yield


def _refuse_size(image: Image.Image) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"it is {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"it is {width} x {height} pixels; more than {MAX_PIXELS:,} are refused as a decompression bomb. "
            "Scale it down if it is genuine"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"it is {width} x {height} pixels, a strip longer than {MAX_ASPECT} times its width")


def _grey(values: NDArray[np.float64], full: float) -> Image.Image:
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > full:
        raise ValueError(f"its values run from {values.min():g} to {values.max():g}; {full:g} is the largest allowed")
    return Image.fromarray(np.round(values * (255.0 / full)).astype(np.uint8))


def _nearly_black(largest: str) -> ValueError:
    return ValueError(
        f"its largest value {largest} of 65535: values of 12 bits or fewer in a 16-bit image come out nearly black. "
        "Scale them to 16 bits, or save 8 bits"
    )


def _refuse_dark_colours(image: Image.Image) -> None:
    """Of 16-bit colours Pillow keeps the upper 8 bits, which hold next to nothing of smaller values."""
    bands = np.asarray(image).reshape(-1, len(image.getbands()))
    colours = bands[:, [name not in ("A", "X") for name in image.getbands()]]
    if colours.max() < 16:
        raise _nearly_black("is below 4096")


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB. Integer greys of more than 8 bits are read as 16-bit, floating-point ones as 0..1.

    Raises ``ValueError`` for values outside those ranges, and for 16-bit images that hold 12 bits or fewer.
    """
    if image.mode in _SIXTEEN_BIT_GREY or image.mode == "I":
        values = np.asarray(image).astype(np.float64)
        if 0 < values.max() < 4096:
            raise _nearly_black(f"is {values.max():g}")
        image = _grey(values, 65535.0)
    elif image.mode == "F":
        image = _grey(np.asarray(image).astype(np.float64), 1.0)
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    if has_alpha or image.info.get("transparency") is not None:
        if image.mode == "La":  # premultiplied grey converts to its straight form only
            image = image.convert("LA")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _decode_stream(stream: IO[bytes]) -> Image.Image:
    with Image.open(stream) as image:
        _refuse_size(image)
        # Read before loading, which forgets how the file stores its values.
        sixteen = any(";16" in str(tile[3]) for tile in image.tile) and image.mode in ("RGB", "RGBA", "RGBX", "LA")
        image.load()
        if sixteen:
            _refuse_dark_colours(image)
        turned: Image.Image = image
        if image.getexif().get(_ORIENTATION) is not None:
            turned = ImageOps.exif_transpose(image)
        rgb = to_rgb(turned)
        # An image of the file's own class keeps the file; a plain copy keeps nothing.
        return Image.frombytes("RGB", rgb.size, rgb.tobytes())


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no image format that Pillow knows"
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    return str(error) or type(error).__name__


def decode_image(raw: RawImage, image_id: str) -> Image.Image:
    """Decode ``raw`` to 8-bit RGB.

    Raises :class:`UnreadableImageError`, naming ``image_id``, for a file that is damaged, cut short, no
    image, or of unreasonable size.
    """
    try:
        if isinstance(raw, np.ndarray):
            if raw.ndim != 3 or raw.shape[2] != 3 or raw.dtype != np.uint8:
                raise ValueError(f"pixels must be uint8 (height, width, 3), got {raw.dtype} {raw.shape}")
            return Image.fromarray(np.ascontiguousarray(raw))
        if isinstance(raw, bytes):
            if not raw:
                raise ValueError("it is empty")
            with io.BytesIO(raw) as stream:
                return _decode_stream(stream)
        with raw.open("rb") as file:
            return _decode_stream(file)
    except Exception as error:
        # Decoders of damaged files raise almost anything: OSError, SyntaxError, struct.error, KeyError.
        raise UnreadableImageError(image_id, _reason(error)) from error
