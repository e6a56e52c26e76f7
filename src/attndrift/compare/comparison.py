"""What a comparison of two models holds."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attndrift.version import __version__


@dataclass(frozen=True)
class MapPictures:
    """Attention in the last block, mean over heads, on ``k`` of the images.

    ``images`` (k, height, width, 3) uint8 as BASE sees them; ``base`` and ``adapted`` (k, rows, columns),
    shares that sum to 1; ``names`` (k,) of the files.
    """

    images: NDArray[np.uint8]
    base: NDArray[np.float64]
    adapted: NDArray[np.float64]
    names: list[str]


@dataclass(frozen=True)
class Comparison:
    """What two models differ in.

    Attributes:
        base, adapted: the two sides, as plain values.
        images: folder, number of images, names of those skipped with the reason, files left out, names in the maps.
        differences: a row for each setting in which the two differ beside their weights: ``setting``, ``base``,
            ``adapted``, and ``effect``, what it decides.
        summary: every name of :func:`~attndrift.compare.summary.summary_names`; None where it could not be measured.
        reasons: why a value is None, by name.
        cross_layer_cka: debiased CKA of each block of BASE, a row, with each block of ADAPTED; None where it was not asked
            for.
        cka_chance: plain CKA of unrelated representations of as many images and dimensions.
        layers: a row a block (``layer`` counts from 1): ``_baseline``, ``_final`` and ``_change_pct`` of each metric of
            attention, and each metric of hidden states.
        heads: a row for each of the heads that changed most, five a metric.
        weights: a row a module: its drift and number of parameters.
        zero_shot: see :func:`~attndrift.compare.retention.measure_zero_shot`, or None.
        retention: a row a retention measure, see :func:`~attndrift.compare.measures.measure_retention`; empty where it was
            not asked for.
        maps: attention maps of a few images.
        notes: what a reader has to know.
    """

    base: dict[str, Any]
    adapted: dict[str, Any]
    images: dict[str, Any]
    differences: list[dict[str, Any]]
    summary: dict[str, float | None]
    reasons: dict[str, str]
    cka_chance: float
    layers: list[dict[str, Any]]
    heads: list[dict[str, Any]]
    weights: list[dict[str, Any]]
    zero_shot: dict[str, Any] | None
    maps: MapPictures
    cross_layer_cka: list[list[float | None]] | None = None
    retention: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the maps."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "maps"}
        return {"format": 2, "attndrift": __version__, **plain}
