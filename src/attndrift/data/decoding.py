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
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from attndrift.data.errors import UnreadableImageError

MAX_PIXELS = 89_478_485
"""Images with more pixels are refused before they are decoded (the limit at which Pillow warns)."""

MAX_ASPECT = 200
"""A longer strip would be resized to a picture of gigabytes: its short side grows to the crop's."""

RawImage = bytes | Path | NDArray[np.uint8]
"""An encoded image, the file that holds one, or pixels (height, width, 3)."""

_ORIENTATION, _PHOTOMETRIC = 0x0112, 0x0106
_FEW_BITS = 14
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
        f"its largest value {largest} of 65535: values of {_FEW_BITS} bits or fewer in a 16-bit image come out nearly black "
        "(nearly white in CMYK). Scale them to 16 bits, or save 8 bits"
    )


@dataclass(frozen=True)
class _Stored:
    """How a file stores its values, which loading forgets: Pillow's word for it (``I;16B``) and the bits a channel."""

    mode: str = ""
    bits: int = 8
    white_is_zero: bool = False


def _stored(image: ImageFile.ImageFile) -> _Stored:
    coder, given = (image.tile[0].codec_name, image.tile[0].args) if image.tile else ("", "")
    mode = str(given[0] if isinstance(given, tuple) else given)
    if image.format == "JPEG2000":
        bits = _declared_bits(image)
        if bits > 8 and image.mode not in _SIXTEEN_BIT_GREY:
            raise ValueError(
                f"its colours have {bits} bits, of which Pillow turns the brightest to black. Save it as PNG"
            )
    elif coder.startswith("ppm") and isinstance(given, tuple):
        bits = int(given[-1]).bit_length()
    elif mode == "I;12":
        bits = 12
    else:  # `BGR;16` is 5, 6 and 5 bits
        deep = coder == "SGI16" or image.mode == "I" or (";16" in mode and not mode.startswith("BGR"))
        bits = 16 if deep else 8
    return _Stored(mode, bits, image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0)  # type: ignore[attr-defined]


def _declared_bits(image: ImageFile.ImageFile) -> int:
    """Bits a channel that a JPEG 2000 file declares; its decoder scales by them."""
    assert image.fp is not None
    place = image.fp.tell()
    image.fp.seek(0)
    head = image.fp.read(65_536)
    image.fp.seek(place)
    begin = head.find(b"\xff\x4f\xff\x51")  # the codestream's first two markers; channels follow 40 bytes of sizes
    return (head[begin + 42] & 0x7F) + 1 if 0 <= begin < len(head) - 42 else 16


def _refuse_dark_colours(image: Image.Image) -> None:
    """Of 16-bit colours Pillow keeps the upper 8 bits, which hold next to nothing of smaller values."""
    bands = np.asarray(image).reshape(-1, len(image.getbands()))
    colours = bands[:, [name not in ("A", "a", "X") for name in image.getbands()]]
    if colours.max() <= 2 ** (_FEW_BITS - 8):  # PPM rounds up
        raise _nearly_black(f"is below {2**_FEW_BITS}")


def _deep_grey(values: NDArray[np.float64], stored: _Stored) -> Image.Image:
    if stored.mode == "I;12":
        return _grey(values, 4095.0)
    if stored.mode in ("I;16S", "I;16BS"):
        raise ValueError(
            "its 16-bit values are signed, and nothing says which is white. Save unsigned 16 bits, or 8 bits"
        )
    # Multiples of 257 are 8-bit values that were scaled to 16.
    if stored.bits > _FEW_BITS and 0 < values.max() < 2**_FEW_BITS and (values % 257).any():
        raise _nearly_black(f"is {values.max():g}")
    return _grey(65535.0 - values if stored.white_is_zero else values, 65535.0)


def _to_rgb(image: Image.Image, stored: _Stored) -> Image.Image:
    """8-bit RGB. Integer greys of more than 8 bits are read as 16-bit, floating-point ones as 0..1.

    Raises ``ValueError`` for values outside those ranges, and for 16-bit images that hold 14 bits or fewer.
    """
    if image.mode in _SIXTEEN_BIT_GREY or image.mode == "I":
        image = _deep_grey(np.asarray(image).astype(np.float64), stored)
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
        stored = _stored(image)
        image.load()
        if stored.bits > _FEW_BITS and image.mode not in (*_SIXTEEN_BIT_GREY, "I", "F"):
            _refuse_dark_colours(image)
        turned: Image.Image = image
        if image.getexif().get(_ORIENTATION) is not None:
            turned = ImageOps.exif_transpose(image)
        rgb = _to_rgb(turned, stored)
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
