"""What can go wrong when two models are compared."""

from __future__ import annotations


class CompareError(ValueError):
    """Two models, images or conditions that cannot be compared as asked; the message says what to do."""
