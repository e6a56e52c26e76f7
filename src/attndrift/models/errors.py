"""What can go wrong with models and their files."""

from __future__ import annotations


class ModelError(ValueError):
    """A model that cannot be loaded; the message says why and what to do."""


class CheckpointError(ValueError):
    """A checkpoint that is damaged or does not fit; the message names file and tensor."""


class FingerprintError(CheckpointError):
    """A loaded model that is not the one that was saved."""
