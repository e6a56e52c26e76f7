"""A metric: the largest share of attention that one patch has."""

from __future__ import annotations

from typing import Any

from attndrift.metrics.registry import METRICS, Metric


def largest_share(attention: Any) -> Any:
    """The largest of the N shares that the class token gives to the patches, which sum to 1: (..., N) gives (...)."""
    return attention.amax(-1)


METRICS.register(
    Metric(
        name="largest_share",
        compute=largest_share,
        needs="attention",
        label="Largest share",
        meaning="attention of the patch that has most of it",
        source="this package",
        worse="higher",
        unit="share of attention",
        low=0.0,
        high=1.0,
    )
)
