"""The one error of observing."""

from __future__ import annotations


class ObservationError(RuntimeError):
    """Attention that could not be seen, or not as promised; the message says what, where and what to do."""
