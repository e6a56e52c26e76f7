"""What can be wrong with images, said before training starts."""

from __future__ import annotations

from collections.abc import Iterable


class DataError(ValueError):
    """Data that cannot be used as asked; the message names the place, what is allowed and what to do."""


class DatasetUnavailable(DataError):
    """A dataset that is neither on this machine nor to be had from the hub now."""


class UnreadableImageError(DataError):
    """An image that cannot be decoded. ``image_id`` and ``reason`` say which and why."""

    def __init__(self, image_id: str, reason: str) -> None:
        super().__init__(f"image {image_id!r} cannot be read: {reason}")
        self.image_id = image_id
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableImageError], tuple[str, str]]:
        return type(self), (self.image_id, self.reason)


def some(names: Iterable[str], limit: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    listed = [str(name) for name in names]
    more = f", ... ({len(listed) - limit} more)" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
