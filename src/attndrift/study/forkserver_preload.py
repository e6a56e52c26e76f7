"""Imported once by the process that a study's other processes are forked from: all that a run needs, and nothing run yet."""

import gc

from attndrift.study.allocator import without_garbage_collection

with without_garbage_collection():
    import attndrift.study.execution  # noqa: F401

    # What is never looked through is never written to, and its memory is shared by all processes. Inside, or it would be
    # looked through once more.
    gc.freeze()
