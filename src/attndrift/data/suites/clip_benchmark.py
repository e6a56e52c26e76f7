"""The classification sets of CLIP_benchmark, with class names and templates from their repositories."""

from __future__ import annotations

from attndrift.data.registry import DATASETS, SUITES, Suite

SUITES.register(
    Suite(
        name="clip-benchmark",
        title="the classification sets of CLIP_benchmark, with the class names and templates of their repositories",
        sets=tuple(row.name for row in DATASETS if (row.hub or "").startswith("clip-benchmark/")),
        source="LAION, CLIP_benchmark 1.6",
    )
)
