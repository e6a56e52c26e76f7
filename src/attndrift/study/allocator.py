"""What the C library does with memory that is released to it, and Python with what may be garbage."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def keep_freed_memory() -> bool:
    """Make the C library keep what is released, from now on and for the whole process; whether it could be told so.

    glibc gives tens of megabytes back to the system after an operation and takes them again for the next one, page by
    page: 82,000 page faults in a forward pass of ViT-B/32, and from pass to pass 51,000 to 231,000. Kept, they are for a
    process that does the same again and again: a study's, or a benchmark's. False where the C library is another one.

    Source: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    most = 2**31 - 1
    # The second alone says whether it is kept: a trim threshold that was refused changes little without it.
    mallopt(trim_threshold, most)
    return bool(mallopt(mmap_threshold, most))


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Nothing is collected inside: for imports, whose half million objects stay and are looked through again and again.

    Importing what trains a run takes an eighth to a third less processor time.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
