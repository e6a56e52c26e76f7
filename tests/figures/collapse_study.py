"""A made-up study in the form of the original study's matrix: E1 and 21 runs, one seed, 8 blocks of 4 heads.

The end values are those of the original study where it prints them; the paths to them are smooth curves.
No number here is a measurement.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attndrift.metrics.registry import structure_metrics
from attndrift.results.tables import Tables

LAYERS, HEADS, EVALUATIONS = 8, 4, 20
_BASE = {
    "eurosat": {"entropy": 3.683, "erf95": 0.863, "gini": 0.309, "head_diversity": 0.075},
    "pets": {"entropy": 3.638, "erf95": 0.838, "gini": 0.348, "head_diversity": 0.105},
}
_FULL = {"method": "full", "learning_rate": 1e-5}
_LORA = {"method": "lora", "learning_rate": 1e-4, "lora_targets": "q,v"}

# id, experiment, settings, accuracy, changes of entropy, ERF, Gini, head diversity (percent), retention (percent)
_ROWS: list[tuple[str, str, dict[str, Any], float, tuple[float, ...], float]] = [
    ("E2_full", "E2", _FULL, 0.9930, (-0.14, -1.73, -3.53, -0.73), 21.1),
    ("E3_full_pets", "E3", {**_FULL, "dataset": "pets"}, 0.9079, (-1.82, -4.22, 10.53, -35.85), 9.8),
    ("E4_lora4", "E4", {**_LORA, "lora_rank": 4}, 0.9867, (0.98, 1.10, -9.96, 3.81), 88.0),
    ("E5_lora8", "E5", {**_LORA, "lora_rank": 8}, 0.9896, (0.58, 0.37, -6.48, 7.11), 86.4),
    ("E6_lora16", "E6", {**_LORA, "lora_rank": 16}, 0.9893, (0.44, 0.03, -5.43, 5.11), 84.1),
    ("E7_lora8_pets", "E7", {**_LORA, "lora_rank": 8, "dataset": "pets"}, 0.9207, (-0.73, -2.63, 3.24, -14.97), 80.3),
    ("A1_1e-6", "A1", {**_FULL, "learning_rate": 1e-6}, 0.9885, (1.45, 1.93, -16.63, -12.0), 61.0),
    ("A1_5e-6", "A1", {**_FULL, "learning_rate": 5e-6}, 0.9911, (0.33, -0.49, -6.66, -4.0), 34.0),
    ("A1_5e-5", "A1", {**_FULL, "learning_rate": 5e-5}, 0.9889, (-4.19, -8.49, 23.42, 50.7), 5.2),
    ("A1_1e-4", "A1", {**_FULL, "learning_rate": 1e-4}, 0.9785, (-10.40, -18.02, 56.90, 144.0), 2.1),
    ("A2_qkvo", "A2", {**_LORA, "lora_rank": 8, "lora_targets": "q,k,v,out"}, 0.9893, (0.67, 0.4, -6.9, 2.89), 82.5),
    ("A3_freeze3", "A3", {**_FULL, "freeze_layers": 3}, 0.9911, (-0.04, -1.4, -4.5, -2.7), 24.0),
    ("A3_freeze6", "A3", {**_FULL, "freeze_layers": 6}, 0.9885, (-0.02, -1.4, -3.2, -4.0), 33.0),
    ("A3_freeze9", "A3", {**_FULL, "freeze_layers": 9}, 0.9867, (0.06, -0.3, -1.0, 0.0), 52.0),
    ("R1_apr0.01", "R1", {**_FULL, "loss": "attention_preservation:0.01"}, 0.9926, (0.86, 1.4, -8.7, -5.3), 23.0),
    ("R1_apr0.1", "R1", {**_FULL, "loss": "attention_preservation:0.1"}, 0.9919, (0.56, 0.9, -5.2, -1.3), 27.0),
    ("R1_apr1", "R1", {**_FULL, "loss": "attention_preservation:1"}, 0.9896, (0.09, 0.1, -0.6, 0.0), 39.0),
    ("R2_floor0.01", "R2", {**_FULL, "loss": "entropy_floor:0.01"}, 0.9911, (0.58, -0.1, -6.1, -2.7), 22.0),
    ("R2_floor0.1", "R2", {**_FULL, "loss": "entropy_floor:0.1"}, 0.9907, (0.79, 0.2, -8.1, -4.0), 22.4),
    ("R3_wd0", "R3", {**_FULL, "weight_decay": 0.0}, 0.9919, (-0.18, -1.9, -2.9, 1.3), 20.6),
    ("R3_wd0.1", "R3", {**_FULL, "weight_decay": 0.1}, 0.9915, (-0.25, -2.0, -2.3, -1.3), 20.9),
]  # fmt: skip


def collapse_study(
    *, seeds: tuple[int, ...] = (42,), selection: str = "test", names: tuple[str, str] = ("eurosat", "pets")
) -> Tables:
    """The tables of the study; with several ``seeds`` every run is repeated with noise.

    ``names`` are what the two data sets are called.
    """
    generator = np.random.default_rng(0)
    runs: list[dict[str, Any]] = []
    history: list[pd.DataFrame] = []
    layers: list[pd.DataFrame] = []
    called = dict(zip(("eurosat", "pets"), names, strict=True))
    for dataset, base in _BASE.items():
        row = _common(f"E1_{dataset}", "E1", {"method": "none"}, seeds[0], selection) | {"dataset": called[dataset]}
        runs.append(row | {f"{metric}_baseline": value for metric, value in base.items()})
        layers.append(_layers(row["run_id"], base, dict.fromkeys(base, 0.0), [0], heads=True))
    for name, experiment, settings, accuracy, changes, kept in _ROWS:
        for seed in seeds:
            noise = generator.standard_normal(8) * (0.0 if len(seeds) == 1 else 1.0)
            dataset = settings.get("dataset", "eurosat")
            base = _BASE[dataset]
            run_id = name if len(seeds) == 1 else f"{name}_s{seed}"
            change = {m: c + 0.2 * z for m, c, z in zip(structure_metrics(), changes, noise, strict=False)}
            row = _common(run_id, experiment, settings, seed, selection) | {"dataset": called[dataset]}
            score = round(min(accuracy + 0.002 * float(noise[4]), 1.0) * 2700) / 2700
            row |= {"best_val_accuracy": score, "test_accuracy": score, "selected_epoch": row["epochs"] - 2}
            for metric, value in base.items():
                row |= {
                    f"{metric}_baseline": value,
                    f"{metric}_final": value * (1 + change[metric] / 100),
                    f"{metric}_change_pct": change[metric],
                }
            kept_now = max(kept + 1.5 * float(noise[5]), 0.5)
            row |= {
                "entropy_last_layer_change_pct": 1.7 * change["entropy"] - 0.4,
                "cka_mean": 0.72 + 0.0026 * kept_now,
                "cka_last": 0.45 + 0.005 * kept_now,
                "cka_debiased_mean": 0.70 + 0.0027 * kept_now,
                "embedding_drift": 0.78 - 0.005 * kept_now,
                "weight_drift": 0.002 * (row["learning_rate"] / 1e-5) ** 0.5,
                "projection_drift": 0.001 * (row["learning_rate"] / 1e-5) ** 0.5,
                "transfer_cifar100_zero_shot_accuracy": min(0.6022 * kept_now / 100, 1.0),
                "transfer_cifar100_zero_shot_pretrained": 0.6022,
                "transfer_cifar100_zero_shot_retention_pct": kept_now,
                "transfer_cifar100_zero_shot_n": 10_000,
            }
            runs.append(row)
            history.append(_history(row, base, change, kept_now, generator))
            steps = [0, *(int(s) for s in history[-1]["step"].iloc[4::5])]
            layers.append(_layers(run_id, base, change, steps, heads=False))
    return Tables(
        runs=pd.DataFrame(runs),
        history=pd.concat(history, ignore_index=True),
        layers=pd.concat(layers, ignore_index=True),
    )


def _common(run_id: str, experiment: str, settings: dict[str, Any], seed: int, selection: str) -> dict[str, Any]:
    pets = settings.get("dataset") == "pets"
    row: dict[str, Any] = {
        "run_id": run_id,
        "study": "collapse",
        "experiment": experiment,
        "selection": selection,
        "model": "clip-small",
        "seed": seed,
        "data_seed": 42,
        "status": "finished",
        "n_probe": 200,
    }
    if settings["method"] != "none":
        row |= {
            "epochs": 30.0 if pets else 20.0,
            "batch_size": 64,
            "weight_decay": 0.01,
            "train_projection": True,
            "n_train": 3680 if pets else 21600,
            "n_validation": 3669 if pets else 2700,
            "n_test": 3669 if pets else 2700,
            "trainable_parameters": 700_000 if settings["method"] == "lora" else 87_850_000,
            "total_parameters": 151_300_000,
        }
        if "lora_rank" in settings:
            row["lora_alpha"] = 2.0 * settings["lora_rank"]
    return row | settings


def _history(
    row: dict[str, Any], base: dict[str, float], change: dict[str, float], kept: float, generator: Any
) -> pd.DataFrame:
    share = np.linspace(0, 1, EVALUATIONS + 1)
    path = 1 - np.exp(-4 * share)
    path = path / path[-1]
    epochs = row["epochs"]
    wobble = 0.002 * generator.standard_normal(len(share))
    frame: dict[str, Any] = {
        "run_id": row["run_id"],
        "step": (share * epochs * row["n_train"] / row["batch_size"]).astype(int),
        "epoch": epochs * share,
        "train_loss": np.where(share > 0, 2.3 * np.exp(-5 * share) + 0.03, np.nan),
        "train_accuracy": np.where(share > 0, 1 - 0.6 * np.exp(-6 * share), np.nan),
        "val_accuracy": np.where(share > 0, row["best_val_accuracy"] * (1 - 0.4 * np.exp(-9 * share)) + wobble, np.nan).clip(0, 1),
        "embedding_drift": row["embedding_drift"] * path,
        "weight_drift": row["weight_drift"] * path,
        "cka_mean": 1 - (1 - row["cka_mean"]) * path,
        "entropy_last_layer_change_pct": row["entropy_last_layer_change_pct"] * path,
        "monitor_zero_shot_retention_pct": 100 - (100 - kept) * path,
        "monitor_zero_shot_accuracy": 0.6022 * (100 - (100 - kept) * path) / 100,
    }  # fmt: skip
    for metric, value in base.items():
        frame[f"{metric}_change_pct"] = change[metric] * path
        frame[metric] = value * (1 + frame[f"{metric}_change_pct"] / 100)
    return pd.DataFrame(frame)


def _layers(
    run_id: str, base: dict[str, float], change: dict[str, float], steps: list[int], *, heads: bool
) -> pd.DataFrame:
    rows: list[tuple[str, int, int, int | None, str, float]] = []
    depth = np.arange(LAYERS)
    for metric, value in base.items():
        start = value * (1 + 0.04 * np.cos(1.3 * depth))
        for step in steps:
            share = step / steps[-1] if steps[-1] else 0.0
            now = start * (1 + share * change[metric] * (0.3 + 1.4 * depth / (LAYERS - 1)) / 100)
            rows += [(run_id, step, layer + 1, None, metric, float(now[layer])) for layer in depth]
        if heads:
            spread = np.array([-0.06, -0.02, 0.02, 0.06])
            rows += [
                (run_id, 0, layer + 1, head + 1, metric, float(start[layer] * (1 + spread[head] * (1 + 0.1 * layer))))
                for layer in depth
                for head in range(HEADS)
            ]
    return pd.DataFrame(rows, columns=["run_id", "step", "layer", "head", "metric", "value"])


def attention_arrays(*, images: int = 6, seed: int = 0, sharpen: float = 1.0, side: int = 7) -> dict[str, Any]:
    """The arrays of a ``maps.npz``: blobs of colour, and attention that follows them."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:224, 0:224] / 224
    pictures = np.zeros((images, 224, 224, 3), dtype=np.uint8)
    before = np.zeros((images, LAYERS, HEADS, side * side), dtype=np.float32)
    after = np.zeros_like(before)
    grid = np.stack(np.mgrid[0:side, 0:side], axis=-1).reshape(-1, 2) / (side - 1)
    picture = np.random.default_rng(7)
    for index in range(images):
        y, x = picture.uniform(0.2, 0.8, 2)
        blob = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 0.03)
        for channel, weight in enumerate(picture.uniform(60, 255, 3)):
            pictures[index, :, :, channel] = (40 + blob * (weight - 40)).astype(np.uint8)
        distance = (grid[:, 0] - y) ** 2 + (grid[:, 1] - x) ** 2
        for layer in range(LAYERS):
            for head in range(HEADS):
                logits = -distance * (2 + layer) + 0.5 * generator.standard_normal(side * side)
                for array, factor in ((before, 1.0), (after, 1.0 + sharpen * layer / LAYERS)):
                    weights = np.exp(factor * logits)
                    array[index, layer, head] = weights / weights.sum()
    return {
        "images": pictures,
        "before": before,
        "after": after,
        "labels": np.arange(images) % 3,
        "class_names": np.array(["forest", "river", "sea_lake"]),
        "grid": np.array([side, side]),
        "ids": np.array([f"image-{i}" for i in range(images)]),
    }


def write_maps(study: Path, run_ids: list[str]) -> None:
    """``maps.npz`` in the folders of these runs."""
    for place, run_id in enumerate(run_ids):
        folder = study / "runs" / run_id
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            folder / "maps.npz", **attention_arrays(sharpen=1.5 if place % 2 == 0 else -0.3, seed=place)
        )
