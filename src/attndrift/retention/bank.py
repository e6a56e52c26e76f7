"""What is asked of the labelled images that a retention measure learns from, beside those that it is evaluated on."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_SHOWN = 5


def refuse_bank_labels(measure: str, labels: NDArray[np.int64], bank: NDArray[np.int64]) -> None:
    """Raise ``ValueError`` for a bank that lacks a class of the queries, or has one class alone."""
    classes = np.unique(bank)
    missing = np.setdiff1d(labels, classes).tolist()
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ValueError(
            f"bank: no image of class {', '.join(map(str, missing[:_SHOWN]))}{more}, which the queries have; {measure} can "
            "name no class that its bank lacks. Give the bank images of every class of the queries"
        )
    if len(classes) < 2:
        raise ValueError(
            f"bank: images of class {classes[0]} alone; {measure} needs at least 2 classes to tell apart. Give images of more"
        )


def refuse_shared_images(name: str, images: Tensor, bank: Tensor) -> None:
    """Raise ``ValueError`` where an image of ``images``, called ``name``, is in the bank too."""
    known = {_digest(image): place for place, image in enumerate(bank)}
    for place, image in enumerate(images):
        found = known.get(_digest(image))
        if found is not None:
            raise ValueError(
                f"bank: its image {found} is image {place} of the {name}, so its label would be read off, not predicted. "
                f"Give the bank other images than the {name}"
            )


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.detach().float().cpu().contiguous().numpy().data, digest_size=16).digest()
