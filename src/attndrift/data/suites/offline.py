"""Sets that need no download."""

from __future__ import annotations

from attndrift.data.registry import SUITES, Suite

SUITES.register(
    Suite(
        name="offline",
        title="generated images and scikit-learn's digits: no download",
        sets=("objects", "tiles", "critters", "digits"),
        source="this package",
    )
)
