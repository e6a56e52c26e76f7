"""Callbacks that put a drift monitor into ``transformers.Trainer`` and Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attndrift.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from attndrift.callbacks.lightning import LightningDriftCallback
    from attndrift.callbacks.trainer import DriftCallback

__all__ = [
    "DriftCallback",
    "LightningDriftCallback",
]

__getattr__, __dir__ = lazy_imports(
    __name__,
    {
        "attndrift.callbacks.lightning": ("LightningDriftCallback",),
        "attndrift.callbacks.trainer": ("DriftCallback",),
    },
)
