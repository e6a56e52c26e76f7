"""When a training is measured."""

from __future__ import annotations

from collections.abc import Collection


class Schedule:
    """Measures after every so many optimizer steps, or after the steps that are named.

    A loop need not report every step: with two optimizers Lightning counts two a batch. What fell due in between is
    measured at the next step that is reported.

    Args:
        every: optimizer steps from one measurement to the next, at least 1; or the steps themselves.

    Raises:
        ValueError: ``every`` is below 1.
    """

    def __init__(self, every: int | Collection[int]) -> None:
        if isinstance(every, int) and every < 1:
            raise ValueError(f"every is {every}; it must be at least 1")
        self._every = every if isinstance(every, int) else frozenset(every)

    def due(self, step: int, since: int | None = None) -> bool:
        """Whether a measurement falls due after ``since``, by default the step before, and not after ``step``."""
        since = step - 1 if since is None else since
        if isinstance(self._every, int):
            return step // self._every > since // self._every
        return any(since < due <= step for due in self._every)
