"""Synthetic tables of any size, for the benchmark and the tests of the analysis.

The numbers follow simple laws (drift grows with the rate, full fine-tuning forgets more than LoRA)
plus noise between seeds. They are no measurement of anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from attndrift.metrics.registry import structure_metrics
from attndrift.results.tables import Tables

_RATES = (1e-6, 3e-6, 5e-6, 1e-5, 3e-5, 5e-5, 1e-4, 3e-4, 1e-3, 3e-3)
_BASELINE = {"entropy": 3.68, "erf95": 0.86, "gini": 0.31, "head_diversity": 0.075}
_SLOPE = {"entropy": -1.6, "erf95": -2.4, "gini": 9.0, "head_diversity": 6.0}


def synthetic_tables(
    *,
    methods: tuple[str, ...] = ("full", "lora"),
    datasets: tuple[str, ...] = ("eurosat", "pets"),
    rates: int = 4,
    seeds: int = 3,
    evaluations: int = 5,
    layers: int = 12,
    heads: int = 0,
    transfer: tuple[str, ...] = ("cifar100",),
    baseline: bool = True,
    lora_ranks: tuple[int, ...] = (8,),
    seed: int = 0,
) -> Tables:
    """Tables of datasets x methods (LoRA once a rank) x rates x seeds runs, and a pretrained one a dataset.

    ``rates`` is at most 10. ``evaluations`` counts rows of ``history`` a run, step 0 included. ``layers``
    holds layer means at the first and the selected step (and, with ``heads``, the heads at step 0 of the
    pretrained runs). Equal arguments give equal tables.
    """
    generator = np.random.default_rng(seed)
    runs = _runs(methods, datasets, rates, seeds, lora_ranks)
    runs["selected_epoch"] = 6.0
    structure = _outcomes(runs, transfer, generator)
    if baseline:
        rows = [_pretrained(dataset) for dataset in datasets]
        structure = pd.concat([structure, pd.DataFrame(rows)], ignore_index=True)
    return Tables(
        runs=structure,
        history=_history(structure[structure["method"] != "none"], evaluations),
        layers=_layers(structure, layers, heads, max(evaluations - 1, 1) * 50, generator),
    )


def _runs(
    methods: tuple[str, ...],
    datasets: tuple[str, ...],
    rates: int,
    seeds: int,
    ranks: tuple[int, ...],
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for dataset in datasets:
        for method in methods:
            for rank in ranks if method == "lora" else (None,):
                for rate in _RATES[:rates]:
                    for seed in range(seeds):
                        name = f"{dataset}_{method}{'' if rank is None else rank}_{rate:g}_{seed}"
                        rows.append(
                            {
                                "run_id": name,
                                "study": "synthetic",
                                "selection": "validation",
                                "model": "synthetic-vit",
                                "dataset": dataset,
                                "method": method,
                                "learning_rate": rate,
                                "seed": seed,
                                "data_seed": 0,
                                "epochs": 6.0,
                                "batch_size": 32,
                                "weight_decay": 0.01,
                                "lora_rank": rank,
                                "lora_alpha": None if rank is None else 2.0 * rank,
                                "lora_targets": None if rank is None else "q,v",
                                "train_projection": method in ("full", "lora"),
                                "status": "finished",
                                "n_train": 1600,
                                "n_validation": 300,
                                "n_test": 2700,
                                "n_probe": 200,
                            }
                        )
    return pd.DataFrame(rows)


def _outcomes(runs: pd.DataFrame, transfer: tuple[str, ...], generator: np.random.Generator) -> pd.DataFrame:
    n = len(runs)
    # 0 at 1e-6, 1 at 1e-3 for full; LoRA moves a third as far.
    strength = (np.log10(runs["learning_rate"].to_numpy(dtype=float)) + 6) / 3
    strength = strength * runs["method"].map({"full": 1.0, "last_block": 0.5}).fillna(0.35).to_numpy()

    def noise(scale: float) -> Any:
        return scale * generator.standard_normal(n)

    result = runs.copy()
    for metric in structure_metrics():
        change = 0.8 + _SLOPE[metric] * strength + noise(0.3)
        result[f"{metric}_baseline"] = _BASELINE[metric]
        result[f"{metric}_change_pct"] = change
        result[f"{metric}_final"] = _BASELINE[metric] * (1 + change / 100)
    result["entropy_last_layer_change_pct"] = 1.5 - 4.0 * strength + noise(0.6)
    result["cka_mean"] = np.clip(1 - 0.3 * strength - np.abs(noise(0.01)), 0, 1)
    result["cka_last"] = np.clip(1 - 0.6 * strength - np.abs(noise(0.01)), 0, 1)
    result["cka_debiased_mean"] = result["cka_mean"] - 0.02
    result["embedding_drift"] = np.clip(0.7 * strength + np.abs(noise(0.01)), 0, 2)
    result["weight_drift"] = np.clip(0.02 * strength + np.abs(noise(2e-4)), 0, None)
    result["projection_drift"] = np.clip(0.01 * strength + np.abs(noise(1e-4)), 0, None)
    accuracy = 0.9 + 0.07 * np.sin(np.clip(3 * strength, 0, np.pi)) + noise(0.005)
    result["best_val_accuracy"] = np.clip(np.round(accuracy * 300) / 300, 0, 1)
    result["test_accuracy"] = np.clip(accuracy + noise(0.004), 0, 1)
    for name in transfer:
        kept = np.clip(1 - 0.9 * strength + noise(0.02), 0.01, 1.2)
        result[f"transfer_{name}_zero_shot_pretrained"] = 0.6133
        result[f"transfer_{name}_zero_shot_accuracy"] = np.clip(0.6133 * kept, 0, 1)
        result[f"transfer_{name}_zero_shot_retention_pct"] = 100 * kept
        result[f"transfer_{name}_zero_shot_n"] = 10_000
    return result


def _pretrained(dataset: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "run_id": f"{dataset}_none",
        "study": "synthetic",
        "model": "synthetic-vit",
        "dataset": dataset,
        "method": "none",
        "seed": 0,
        "status": "finished",
    }
    return row | {f"{metric}_baseline": value for metric, value in _BASELINE.items()}


_PATHS = (
    *(f"{metric}_change_pct" for metric in structure_metrics()),
    "entropy_last_layer_change_pct",
    "embedding_drift",
    "weight_drift",
)


def _history(runs: pd.DataFrame, evaluations: int) -> pd.DataFrame:
    """Every measure moves evenly from nothing to its final value."""
    n = len(runs)
    share = np.tile(np.linspace(0, 1, evaluations) if evaluations > 1 else np.zeros(evaluations), n)

    def final(column: str) -> Any:
        return np.repeat(runs[column].to_numpy(dtype=float), evaluations)

    frame: dict[str, Any] = {
        "run_id": np.repeat(runs["run_id"].to_numpy(dtype=object), evaluations),
        "step": np.tile(np.arange(evaluations) * 50, n),
        "epoch": 6 * share,
        "train_loss": 2.3 - 2 * share,
        "train_accuracy": 0.1 + 0.8 * share,
        "val_accuracy": np.where(share > 0, final("best_val_accuracy") * np.sqrt(share), np.nan),
    }
    for name in _PATHS:
        frame[name] = final(name) * share
    for metric, value in _BASELINE.items():
        frame[metric] = value * (1 + frame[f"{metric}_change_pct"] / 100)
    for name in ("cka_mean", "cka_last"):
        frame[name] = 1 - (1 - final(name)) * share
    for name in [c for c in runs.columns if c.startswith("transfer_") and c.endswith("_retention_pct")][:1]:
        frame["monitor_zero_shot_retention_pct"] = 100 + (final(name) - 100) * share
    return pd.DataFrame(frame)


def _layers(runs: pd.DataFrame, layers: int, heads: int, last: int, generator: np.random.Generator) -> pd.DataFrame:
    """Layer means: later layers change more; noise differs between runs."""
    if layers == 0:
        return pd.DataFrame({"run_id": [], "step": [], "layer": [], "metric": [], "value": []})
    adapted = runs[runs["method"] != "none"]
    depth = np.linspace(-1, 1, layers)
    parts: list[pd.DataFrame] = []
    for metric in structure_metrics():
        start = _BASELINE[metric] * (1 + 0.02 * np.cos(np.arange(layers)))
        change = adapted[f"{metric}_change_pct"].to_numpy(dtype=float)[:, None] * (1 + 0.8 * depth)
        change = change + 0.1 * generator.standard_normal((len(adapted), layers))
        for owner, step, values in (
            (runs, 0, np.tile(start, (len(runs), 1))),
            (adapted, last, start * (1 + change / 100)),
        ):
            parts.append(
                pd.DataFrame(
                    {
                        "run_id": np.repeat(owner["run_id"].to_numpy(dtype=object), layers),
                        "step": np.repeat(step, len(owner) * layers),
                        "layer": np.tile(np.arange(1, layers + 1), len(owner)),
                        "metric": metric,
                        "value": values.ravel(),
                    }
                )
            )
    frame = pd.concat(parts, ignore_index=True)
    frame["head"] = None
    if heads:
        frame = pd.concat([frame, _heads(runs, layers, heads, generator)], ignore_index=True)
    return frame


def _heads(runs: pd.DataFrame, layers: int, heads: int, generator: np.random.Generator) -> pd.DataFrame:
    rows = [
        {"run_id": run_id, "step": 0, "layer": layer, "head": head, "metric": metric, "value": value * factor}
        for run_id in runs.loc[runs["method"] == "none", "run_id"]
        for layer in range(1, layers + 1)
        for head in range(1, heads + 1)
        for metric, value in _BASELINE.items()
        for factor in [float(1 + 0.05 * generator.uniform(-1, 1))]
    ]
    return pd.DataFrame(rows)
