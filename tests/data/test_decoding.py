"""Whatever an image file holds comes out as 8-bit RGB, or as an error that names it."""

from __future__ import annotations

import base64
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


def _tiff(values: np.ndarray, photometric: int, **tags: int) -> bytes:
    """A TIFF of one strip: ``values`` (height, width, channels), any integer type; ``tags``: ``t339=2`` (signed)."""
    height, width, channels = values.shape
    bits = values.dtype.itemsize * 8
    given = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: channels, 278: height,
             279: values.nbytes, 339: 1} | {int(name[1:]): value for name, value in tags.items()}  # fmt: skip
    size = 8 + 2 + 12 * len(given) + 4
    given[273] = size + 2 * channels
    head = struct.pack("<2sHIH", b"II", 42, 8, len(given))
    for tag, value in sorted(given.items()):
        if tag in (258, 339) and channels > 1:  # one a channel, all the same, after the table
            assert given[258] == 16
            place = size if tag == 258 else None
            head += struct.pack("<HHII", tag, 3, channels if place else 1, place or value)
        else:
            head += struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value)
    return (
        head + b"\0" * 4 + struct.pack("<H", bits) * channels + values.astype(values.dtype.newbyteorder("<")).tobytes()
    )


def _sgi(values: np.ndarray) -> bytes:
    height, width, channels = values.shape
    head = struct.pack(">hBBHHHH", 474, 0, 2, 3 if channels > 1 else 2, width, height, channels).ljust(512, b"\0")
    return head + values[::-1].transpose(2, 0, 1).astype(">u2").tobytes()


def _pnm(values: np.ndarray, largest: int = 65_535, plain: bool = False) -> bytes:
    height, width, channels = values.shape
    kind = {(1, False): 5, (3, False): 6, (1, True): 2, (3, True): 3}[channels, plain]
    body = " ".join(map(str, values.reshape(-1))).encode() if plain else values.astype(">u2").tobytes()
    return f"P{kind} {width} {height} {largest}\n".encode() + body


def _jpeg2000_grey(values: np.ndarray) -> bytes:
    with io.BytesIO() as stream:
        Image.fromarray(values[..., 0]).save(stream, "JPEG2000")
        return stream.getvalue()


IN_SIXTEEN_BITS = {
    "png grey": (_deep_png, 1),
    "png grey and alpha": (_deep_png, 2),
    "png colours": (_deep_png, 3),
    "png colours and alpha": (_deep_png, 4),
    "tiff grey": (lambda values: _tiff(values, 1), 1),
    "tiff 32 bits": (lambda values: _tiff(values.astype(np.int32), 1, t339=2), 1),
    "tiff colours": (lambda values: _tiff(values, 2), 3),
    "tiff by pillow": (lambda values: encoded(Image.fromarray(values[..., 0]), "TIFF"), 1),
    "pgm": (_pnm, 1),
    "pgm as text": (lambda values: _pnm(values, plain=True), 1),
    "ppm": (_pnm, 3),
    "ppm as text": (lambda values: _pnm(values, plain=True), 3),
    "sgi grey": (_sgi, 1),
    "sgi colours": (_sgi, 3),
    "jpeg 2000 grey": (_jpeg2000_grey, 1),
}


def _ramp(channels: int, bits: int) -> np.ndarray:
    values = np.linspace(0, 2**bits - 1, 48 * channels).astype(np.uint16).reshape(6, 8, channels)
    if channels in (2, 4):
        values[..., -1] = 65_535
    return values


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", IN_SIXTEEN_BITS)
def test_few_bits_in_a_sixteen_bit_image_are_refused_and_not_black(kind: str, bits: int) -> None:
    encode, channels = IN_SIXTEEN_BITS[kind]
    raw = encode(_ramp(channels, bits))
    if bits == 16:
        assert decode(raw).max() > 245
        return
    with pytest.raises(UnreadableImageError, match="14 bits or fewer in a 16-bit image come out nearly black"):
        decode(raw)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [9, 10, 12, 14])
def test_a_depth_that_the_file_declares_is_taken(bits: int, channels: int, plain: bool) -> None:
    values = _ramp(channels, bits)
    bright = decode(_pnm(values, 2**bits - 1, plain))
    assert (bright.min(), bright.max()) == (0, 255)
    dark = decode(_pnm(values // 8, 2**bits - 1, plain))
    assert 30 <= dark.max() <= 32


def test_twelve_packed_bits_are_scaled_by_what_they_can_hold() -> None:
    values = [[0, 1365], [2730, 4095]]
    packed = b"".join(((a << 12) | b).to_bytes(3, "big") for a, b in values)
    raw = bytearray(_tiff(np.zeros((2, 2, 1), np.uint16), 1))
    raw = raw[:-8] + packed
    place = raw.index(struct.pack("<HHII", 258, 3, 1, 16))
    raw[place + 8 : place + 12] = struct.pack("<I", 12)
    np.testing.assert_array_equal(decode(bytes(raw))[..., 0], [[0, 85], [170, 255]])


def test_black_and_eight_bits_scaled_to_sixteen_are_dark_images() -> None:
    assert decode(encoded(Image.fromarray(np.zeros((6, 8), dtype=np.uint16)))).max() == 0
    assert decode(encoded(Image.fromarray(np.full((6, 8), 3 * 257, dtype=np.uint16)))).max() == 3


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_a_tiff_in_which_white_is_zero_is_no_negative(depth: type) -> None:
    full = np.iinfo(depth).max
    raw = _tiff(np.asarray([[[0], [full]]], depth), 0)
    np.testing.assert_array_equal(decode(raw)[0, :, 0], [255, 0])


def test_signed_sixteen_bits_are_refused_and_not_half_as_bright() -> None:
    with pytest.raises(UnreadableImageError, match="signed"):
        decode(_tiff(np.linspace(0, 32_767, 48).astype(np.int16).reshape(6, 8, 1), 1, t339=2))


# 8 x 8, from 0 to the brightest, written by openjpeg
_TWELVE_BIT_COLOURS = base64.b64decode(
    "/0//UQAvAAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAADCwEBCwEBCwEB/1IADAAAAAEBAAQEAAH/XAAEQGD/ZAAlAAFDcmVhdGVk"
    "IGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAABjAAH/k9/hQBKOLM+H+Q6zZEp44GfsMo3GzIGR1CuhJZI8ml8O5W8/exQACn5W9qw+"
    "LVGugQVSpSc54tzDW3sUAAp+VvasQMrwTEpUQRlVTlVAAAAAAAAPgID/2Q=="
)


def test_deep_jpeg2000_colours_are_refused_as_white_would_be_black() -> None:
    with pytest.raises(
        UnreadableImageError, match=r"12 bits, of which Pillow turns the brightest to black\. Save it as PNG"
    ):
        decode(_TWELVE_BIT_COLOURS)
    assert decode(encoded(Image.new("RGB", (8, 8), (3, 2, 1)), "JPEG2000")).max() == 3


def test_five_and_six_bits_a_colour_are_no_sixteen_bits() -> None:
    head = struct.pack("<2sIHHI", b"BM", 14 + 52 + 8, 0, 0, 14 + 52)
    head += struct.pack("<IiiHHIIiiIIIII", 52, 2, 2, 1, 16, 3, 8, 0, 0, 0, 0, 0xF800, 0x07E0, 0x001F)
    assert 0 < decode(head + struct.pack("<4H", *[1 << 11 | 1 << 5 | 1] * 4)).max() < 16


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_eight_bit_colours_may_be_dark(mode: str) -> None:
    dark = Image.new(mode, (4, 4), {"RGB": (3, 2, 1), "RGBA": (3, 2, 1, 255), "LA": (3, 255)}[mode])
    assert decode(encoded(dark)).max() == 3
