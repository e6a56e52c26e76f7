"""Arrays from files that may be damaged, or made to be large: what they would take is known before they are read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

MAX_ARRAY_BYTES = 512 << 20
"""What the arrays of one file may take in memory."""


class ArrayFileError(ValueError):
    """A file that does not hold the arrays that it should; the message says what is wrong."""


def read_arrays(path: Path, names: Sequence[str], most: int = MAX_ARRAY_BYTES) -> dict[str, NDArray[Any]]:
    """The arrays called ``names`` of an ``.npz`` file; together they take at most ``most`` bytes.

    Raises :class:`ArrayFileError` for a file that is damaged, lacks one of them, or holds more than that.
    """
    try:
        # Opened here, because numpy leaves a file open that turns out to be no archive.
        with path.open("rb") as handle:
            with zipfile.ZipFile(handle) as archive:
                total = sum(_bytes(archive, name) for name in names)
            if total > most:
                raise ArrayFileError(f"its arrays take {total:,} bytes; at most {most:,} are read")
            handle.seek(0)
            with np.load(handle, allow_pickle=False) as file:
                return {name: file[name] for name in names}
    except ArrayFileError:
        raise
    # Damaged bytes come out of zipfile, its decompressors and numpy as almost any error, among them of memory.
    except Exception as error:
        raise ArrayFileError(str(error) or type(error).__name__) from error


def _bytes(archive: zipfile.ZipFile, name: str) -> int:
    """What the array ``name`` takes, by its header."""
    if f"{name}.npy" not in archive.namelist():
        raise ArrayFileError(f"it has no array `{name}`")
    with archive.open(f"{name}.npy") as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ArrayFileError(f"the array `{name}` holds Python objects, which are not read")
    return math.prod(shape) * dtype.itemsize
