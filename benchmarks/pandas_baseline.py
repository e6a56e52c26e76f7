"""A plain analysis of a study with pandas: the alternative that `benchmarks.analysis` is measured against.

It reads everything with pandas and looks at each run in a Python loop over groups. It computes less than
:func:`attndrift.analysis.analyze`: means and deviations of configurations, onset and convergence of each run, change per
layer, rank correlations with the rate; no intervals and no corrections. The two do not compute the same.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

_CONFIGURATION = ["dataset", "method", "lora_rank", "learning_rate"]
_MEASURES = ["entropy_change_pct", "erf95_change_pct", "gini_change_pct", "head_diversity_change_pct", "cka_mean",
             "embedding_drift", "weight_drift", "test_accuracy"]  # fmt: skip


def pandas_analysis(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Counts of what was computed from the tables in ``folder``, which show that nothing was left out."""
    root = Path(folder)
    runs, history, layers = (pd.read_parquet(root / f"{name}.parquet") for name in ("runs", "history", "layers"))
    adapted = runs[runs["method"] != "none"]
    measures = [*_MEASURES, *(c for c in runs.columns if c.endswith("_retention_pct"))]
    configurations = {
        key: (own[measures].mean(), own[measures].std()) for key, own in adapted.groupby(_CONFIGURATION, dropna=False)
    }
    dynamics: dict[str, tuple[Any, Any]] = {}
    for run_id, own in history.groupby("run_id"):
        own = own.sort_values("step")
        fallen = own[own["entropy_change_pct"] <= -1.0]
        near = own[own["val_accuracy"] >= own["val_accuracy"].max() - 0.01]
        dynamics[str(run_id)] = (
            fallen["epoch"].iloc[0] if len(fallen) else None,
            near["epoch"].iloc[0] if len(near) else None,
        )
    changes = 0
    for _, own in layers[layers["head"].isna()].groupby(["run_id", "metric"]):
        ends = own.sort_values("step").groupby("layer")["value"].agg(["first", "last"])
        changes += len(100 * (ends["last"] - ends["first"]) / ends["first"])
    correlations = [
        stats.spearmanr(own["learning_rate"], own[measure]).statistic
        for _, own in adapted.groupby(["dataset", "method", "lora_rank"], dropna=False)
        for measure in measures
        if own["learning_rate"].nunique() > 2 and own[measure].nunique() > 1
    ]
    return {
        "configurations": len(configurations),
        "runs": len(dynamics),
        "layer_changes": changes,
        "correlations": len(correlations),
    }
