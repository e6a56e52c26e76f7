"""What can go wrong with models and their files."""

from __future__ import annotations

from typing import Literal

Reason = Literal["not found", "gated", "rate limit", "server error", "no route", "offline", "no weights", "no config"]


class ModelError(ValueError):
    """A model that cannot be loaded; the message says why and what to do."""


class HubError(ModelError):
    """A model that a hub does not give.

    Attributes:
        reason: the kind of failure, for programs.
    """

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


class CheckpointError(ValueError):
    """A checkpoint that is damaged or does not fit; the message names file and tensor."""


class FingerprintError(CheckpointError):
    """A loaded model that is not the one that was saved."""
