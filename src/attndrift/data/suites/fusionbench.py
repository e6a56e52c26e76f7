"""The eight sets of FusionBench and of task arithmetic."""

from __future__ import annotations

from attndrift.data.registry import SUITES, Suite

SUITES.register(
    Suite(
        name="fusionbench-8",
        title="the eight sets of FusionBench; `prompts: own` takes its templates",
        sets=("sun397", "stanford_cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd"),
        source="Ilharco et al. 2023; Tang et al. 2024",
    )
)
