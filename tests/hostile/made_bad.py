"""Bad input, made from good input: images, tables and study files that are cut, flipped, spliced and inflated.

Everything is a function of a seed, so that a finding can be made again. ``within`` is the time limit of one
input: its exception is no ``Exception``, so that nothing on the way takes it for a damaged file.
"""

from __future__ import annotations

import io
import os
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
from PIL import Image


class HangError(BaseException):
    """An input took longer than its time limit."""


@contextmanager
def within(seconds: float, what: object) -> Iterator[None]:
    """Fail where the block takes more processor time; a machine that is busy with other things does not count."""

    def ring(_: int, __: FrameType | None) -> None:
        raise HangError

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    except HangError:
        raise AssertionError(f"{what}: more than {seconds} s") from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def surroundings(root: Path, leave_out: Path | None = None) -> dict[str, tuple[int, int]]:
    """Every entry below ``root`` with size and time of change, without those below ``leave_out``."""
    found = {}
    for where, folders, files in os.walk(os.fsencode(root)):
        if leave_out is not None and os.fsencode(leave_out) == where:
            folders[:] = []
            continue
        for name in (*folders, *files):
            path = os.path.join(where, name)
            state = os.lstat(path)
            if not os.path.isdir(path):
                found[os.fsdecode(path)] = (state.st_size, state.st_mtime_ns)
    return found


# -- bytes -----------------------------------------------------------------------------------------


def _flip(content: bytearray, random: np.random.Generator) -> bytearray:
    for place in random.integers(0, len(content), int(random.integers(1, 9))):
        content[place] ^= 1 << int(random.integers(0, 8))
    return content


def _cut(content: bytearray, random: np.random.Generator) -> bytearray:
    return content[: int(random.integers(0, len(content)))]


def _cut_front(content: bytearray, random: np.random.Generator) -> bytearray:
    return content[int(random.integers(1, max(2, len(content) // 4))) :]


def _drop(content: bytearray, random: np.random.Generator) -> bytearray:
    start = int(random.integers(0, len(content)))
    del content[start : start + int(random.integers(1, 64))]
    return content


def _insert(content: bytearray, random: np.random.Generator) -> bytearray:
    start = int(random.integers(0, len(content)))
    content[start:start] = random.bytes(int(random.integers(1, 64)))
    return content


def _overwrite(content: bytearray, random: np.random.Generator) -> bytearray:
    start = int(random.integers(0, len(content)))
    filling = [b"\0", b"\xff", b"\x7f"][int(random.integers(0, 3))]
    length = min(int(random.integers(1, 64)), len(content) - start)
    content[start : start + length] = filling * length
    return content


def _double(content: bytearray, random: np.random.Generator) -> bytearray:
    start = int(random.integers(0, len(content)))
    part = content[start : start + int(random.integers(1, 512))]
    content[start:start] = part
    return content


def _inflate(content: bytearray, random: np.random.Generator) -> bytearray:
    """A large number somewhere among the first or last 64 bytes, where sizes stand."""
    if len(content) < 80:
        return content
    start = int(random.integers(0, 64))
    if random.integers(0, 2):
        start = len(content) - 8 - start
    order = "<>"[int(random.integers(0, 2))]
    content[start : start + 4] = struct.pack(f"{order}I", int(random.choice([2**31 - 1, 2**32 - 1, 65_535, 20_000])))
    return content


MUTATIONS: tuple[Callable[[bytearray, np.random.Generator], bytearray], ...] = (
    _flip, _flip, _cut, _cut_front, _drop, _insert, _overwrite, _double, _inflate,
)  # fmt: skip


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """``content`` after one to three mutations."""
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 4))):
        if not changed:
            break
        changed = MUTATIONS[int(random.integers(0, len(MUTATIONS)))](changed, random)
    return bytes(changed)


# -- images ----------------------------------------------------------------------------------------


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def good_images() -> dict[str, bytes]:
    """Images of every form that is read, by name."""
    random = np.random.default_rng(0)
    rgb = Image.fromarray(random.integers(0, 256, (24, 30, 3), dtype=np.uint8))
    wide = Image.fromarray(random.integers(0, 65_536, (24, 30), dtype=np.uint16))
    frames = [rgb.rotate(90 * turn) for turn in range(3)]
    moving = {"save_all": True, "append_images": frames, "duration": 40, "loop": 0}
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "rgb.jpg": _saved(rgb, "JPEG"),
        "turned.jpg": _saved(rgb, "JPEG", exif=exif),
        "progressive.jpg": _saved(rgb, "JPEG", progressive=True),
        "grey.jpg": _saved(rgb.convert("L"), "JPEG"),
        "cmyk.jpg": _saved(rgb.convert("CMYK"), "JPEG"),
        "rgb.png": _saved(rgb, "PNG"),
        "alpha.png": _saved(rgb.convert("RGBA"), "PNG"),
        "grey-alpha.png": _saved(rgb.convert("LA"), "PNG"),
        "palette.png": _saved(rgb.convert("P"), "PNG", transparency=3),
        "one-bit.png": _saved(rgb.convert("1"), "PNG"),
        "sixteen-bit.png": _saved(wide, "PNG"),
        "moving.png": _saved(rgb, "PNG", **moving),
        "one-pixel.png": _saved(rgb.resize((1, 1)), "PNG"),
        "lossy.webp": _saved(rgb, "WEBP"),
        "lossless.webp": _saved(rgb.convert("RGBA"), "WEBP", lossless=True),
        "moving.webp": _saved(rgb, "WEBP", **moving),
        "moving.gif": _saved(rgb.convert("P"), "GIF", **moving),
        "rgb.bmp": _saved(rgb, "BMP"),
        "sixteen-bit.tif": _saved(wide, "TIFF"),
        "float.tif": _saved(Image.fromarray(random.random((24, 30), dtype=np.float32)), "TIFF"),
        "cmyk.tif": _saved(rgb.convert("CMYK"), "TIFF"),
        "rgb.tga": _saved(rgb, "TGA"),
        "rgb.ppm": _saved(rgb, "PPM"),
        "rgb.jp2": _saved(rgb, "JPEG2000"),
    }


def bomb_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises ``width`` x ``height`` pixels, all of them black."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * min((width + 1) * height, 1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def bad_image(seed: int) -> tuple[str, bytes]:
    """The name and the content of the bad image of ``seed``."""
    random = np.random.default_rng([1, seed])
    images = good_images()
    name = list(images)[seed % len(images)]
    kind = int(random.integers(0, 20))
    if kind == 0:
        return "empty-" + name, b""
    if kind == 1:
        return "noise-" + name, random.bytes(int(random.integers(1, 3000)))
    if kind == 2:
        other = list(images.values())[int(random.integers(0, len(images)))]
        return "spliced-" + name, images[name][: len(images[name]) // 2] + other[len(other) // 2 :]
    if kind == 3:
        side = [1, 2, 300, 9_000, 30_000, 2**31 - 1]
        return "bomb.png", bomb_png(int(random.choice(side)), int(random.choice(side)))
    if kind == 4:
        return name, images[name]
    return name, mutated(images[name], random)
