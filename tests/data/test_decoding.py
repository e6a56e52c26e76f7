"""Whatever an image file holds comes out as 8-bit RGB, or as an error that names it."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from made_data import encoded, picture
from PIL import Image, ImageFile

from attndrift.data.decoding import decode_image, quiet_decoding
from attndrift.data.errors import UnreadableImageError


def decode(raw: object) -> np.ndarray:
    with quiet_decoding():
        image = decode_image(raw, "one")  # type: ignore[arg-type]
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_is_kept_to_the_bit() -> None:
    image = picture(1)
    np.testing.assert_array_equal(decode(encoded(image)), np.asarray(image))
    np.testing.assert_array_equal(decode(np.asarray(image)), np.asarray(image))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.asarray([[0, 257, 32_896, 65_535]], dtype=np.uint16)
    grey = decode(encoded(Image.fromarray(values)))
    np.testing.assert_array_equal(grey[0, :, 0], [0, 1, 128, 255])
    assert (grey == grey[..., :1]).all()


def test_floating_point_is_read_as_fractions() -> None:
    image = Image.fromarray(np.asarray([[0.0, 0.5, 1.0]], dtype=np.float32))
    np.testing.assert_array_equal(decode(encoded(image, "TIFF"))[0, :, 1], [0, 128, 255])
    beyond = Image.fromarray(np.asarray([[0.0, 300.0]], dtype=np.float32))
    with pytest.raises(UnreadableImageError, match="300"):
        decode(encoded(beyond, "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_is_white(mode: str) -> None:
    image = Image.new(mode, (2, 1), (0,) * len(mode))
    np.testing.assert_array_equal(decode(encoded(image)), np.full((1, 2, 3), 255, np.uint8))


def test_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    with io.BytesIO() as stream:
        image.save(stream, "PNG", transparency=0)
        raw = stream.getvalue()
    np.testing.assert_array_equal(decode(raw), [[[255, 255, 255], [40, 50, 60]]])


def test_cmyk() -> None:
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # pure cyan
    red, green, blue = decode(encoded(image, "JPEG")).reshape(-1, 3).mean(0)
    assert red < 10
    assert green > 245
    assert blue > 245


def test_of_an_animation_the_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    with io.BytesIO() as stream:
        frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
        raw = stream.getvalue()
    np.testing.assert_array_equal(decode(raw)[0, 0], [255, 0, 0])


def test_orientation_is_applied() -> None:
    image = picture(3, width=4, height=2)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned right by 90 degrees to be seen upright
    with io.BytesIO() as stream:
        image.save(stream, "PNG", exif=exif)
        raw = stream.getvalue()
    np.testing.assert_array_equal(decode(raw), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("cut", [0, 1, 20, 60, 300])
def test_a_file_that_is_cut_short_is_named(cut: int) -> None:
    with pytest.raises(UnreadableImageError, match="'one'"):
        decode(encoded(picture(2))[:cut])


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="no image format"):
        decode(b"<html>not found</html>")
    with pytest.raises(UnreadableImageError, match="does not exist"):
        decode(tmp_path / "absent.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_damaged_bytes_are_decoded_or_named_but_nothing_else(kind: str) -> None:
    raw = encoded(picture(4), kind)
    refused = 0
    for position in range(min(len(raw), 400)):
        damaged = bytearray(raw)
        damaged[position] ^= 0xFF
        try:
            decode(bytes(damaged))
        except UnreadableImageError:
            refused += 1
    assert refused > 0


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    small_bomb = encoded(Image.new("1", (10_000, 9_000)))  # between the limit and Pillow's own error
    large_bomb = encoded(Image.new("1", (20_000, 10_000)))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(UnreadableImageError, match=r"10000 x 9000 pixels.*decompression bomb"):
        decode(small_bomb)
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        decode(large_bomb)


def test_a_strip_is_refused() -> None:
    with pytest.raises(UnreadableImageError, match="strip"):
        decode(encoded(Image.new("RGB", (1, 5000))))


def test_the_error_survives_pickling() -> None:
    import pickle

    copy = pickle.loads(pickle.dumps(UnreadableImageError("a", "b")))
    assert (copy.image_id, copy.reason) == ("a", "b")


@pytest.mark.parametrize("bits", [1, 8, 10, 11, 12])
def test_few_bits_in_a_sixteen_bit_image_are_refused_and_not_black(bits: int) -> None:
    values = np.linspace(0, 2**bits - 1, 48).astype(np.uint16).reshape(6, 8)
    with pytest.raises(UnreadableImageError, match=f"largest value is {2**bits - 1} of 65535"):
        decode(encoded(Image.fromarray(values)))
    assert decode(encoded(Image.fromarray(np.zeros((6, 8), dtype=np.uint16)))).max() == 0


def _deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, of which Pillow writes only greys: ``values`` (height, width, channels), uint16."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("channels", [1, 2, 3, 4], ids=["grey", "grey and alpha", "colours", "colours and alpha"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_few_bits_in_sixteen_bit_colours_are_refused_and_not_black(channels: int, bits: int) -> None:
    values = np.linspace(0, 2**bits - 1, 48 * channels).astype(np.uint16).reshape(6, 8, channels)
    if channels in (2, 4):
        values[..., -1] = 65_535
    if bits == 16:
        assert decode(_deep_png(values)).max() > 245
        return
    with pytest.raises(UnreadableImageError, match="12 bits or fewer in a 16-bit image come out nearly black"):
        decode(_deep_png(values))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_eight_bit_colours_may_be_dark(mode: str) -> None:
    dark = Image.new(mode, (4, 4), {"RGB": (3, 2, 1), "RGBA": (3, 2, 1, 255), "LA": (3, 255)}[mode])
    assert decode(encoded(dark)).max() == 3
