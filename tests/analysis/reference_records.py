"""Turns the reference's run records (its README describes them) into the project's tables."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from attndrift.analysis import Analysis, analyze
from attndrift.results.tables import Tables

METHODS: dict[str, dict[str, Any]] = {
    "full_ft": {"method": "full", "train_projection": True},
    "last_block": {"method": "last_block", "train_projection": True},
    "linear_probe": {"method": "linear_probe", "train_projection": False},
    "lora_r8": {
        "method": "lora",
        "train_projection": True,
        "lora_rank": 8,
        "lora_alpha": 16.0,
        "lora_targets": "q,v",
    },
    "lora_r8_frozen_proj": {
        "method": "lora",
        "train_projection": False,
        "lora_rank": 8,
        "lora_alpha": 16.0,
        "lora_targets": "q,v",
    },
}
METRICS = ("entropy", "erf95", "gini")


def reference_folder() -> Path:
    """The folder of the reference; skips the test where it is not given."""
    given = os.environ.get("ATTNDRIFT_REFERENCE")
    data = os.environ.get("ATTNDRIFT_DATA")
    folder = Path(given) if given else Path(data).parent / "reference" if data else None
    if folder is None or not (folder / "runs-eurosat-b32").is_dir():
        pytest.skip("the reference records are not here: set ATTNDRIFT_REFERENCE to their folder")
    return folder


def read_records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "runs-eurosat-b32").glob("*.json"))]


@functools.cache
def reference_analysis() -> Analysis:
    """The analysis of all records, made once."""
    return analyze(convert(read_records(reference_folder())))


def convert(records: list[dict[str, Any]]) -> Tables:
    """The four tables of ``records``; percentages there stay percent, retentions become percent."""
    runs: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    interpolation: list[dict[str, Any]] = []
    for record in records:
        runs.append(_settings(record))
        if "sweep" in record:
            # The sweep's own training is no further run of its configuration, only the holder of the sweep.
            interpolation += _sweep(record)
            continue
        runs[-1] |= _outcomes(record)
        history += _history(record)
        layers += _layers(record)
    return Tables(
        runs=pd.DataFrame(runs),
        history=pd.DataFrame(history),
        layers=pd.DataFrame(layers),
        interpolation=pd.DataFrame(interpolation if interpolation else {"run_id": [], "alpha": []}),
    )


def _settings(record: dict[str, Any]) -> dict[str, Any]:
    config = record["config"]
    splits = config["splits"]
    return {
        "run_id": record["run_id"],
        "study": "reference",
        "selection": "validation",
        "model": config["model_name"],
        "dataset": config["dataset"],
        "learning_rate": config["lr"],
        "seed": config["seed"],
        "data_seed": 0,
        "epochs": config["epochs"],
        "batch_size": config["batch_size"],
        "weight_decay": config.get("weight_decay", 0.01),
        "n_train": splits["train"],
        "n_validation": splits["val"],
        "n_probe": splits["probe"],
        "n_test": splits["test"],
        "status": "diverged" if record.get("diverged") else "finished",
        **METHODS[config["method"]],
    }


def _outcomes(record: dict[str, Any]) -> dict[str, Any]:
    baseline, final = record["baseline"]["attention"], record["final"]
    row: dict[str, Any] = {
        "selected_epoch": record["selected_epoch"],
        "best_val_accuracy": record["best_val_acc"],
        "test_accuracy": record["test_acc"],
        "trainable_parameters": record["parameters"]["trainable"],
        "total_parameters": record["parameters"]["total"],
        "entropy_last_layer_change_pct": final["delta_entropy_per_layer_pct"][-1],
        "cka_mean": final["cka_mean"],
        "cka_last": final["cka_per_layer"][-1],
        "embedding_drift": final["embedding_drift"],
        "weight_drift": final["weight_drift_rel"],
    }
    for metric in METRICS:
        row[f"{metric}_baseline"] = baseline[f"{metric}_mean"]
        row[f"{metric}_final"] = final["attention"][f"{metric}_mean"]
        row[f"{metric}_change_pct"] = final[f"delta_{metric}_pct"]
    for name, transfer in record["transfer"].items():
        row[f"transfer_{name}_zero_shot_accuracy"] = transfer["accuracy"]
        row[f"transfer_{name}_zero_shot_pretrained"] = transfer["pretrained"]
        row[f"transfer_{name}_zero_shot_retention_pct"] = 100 * transfer["retention"]
        row[f"transfer_{name}_zero_shot_n"] = transfer["n_images"]
    return row


def _history(record: dict[str, Any]) -> list[dict[str, Any]]:
    baseline = record["baseline"]
    start: dict[str, Any] = {
        "run_id": record["run_id"],
        "step": 0,
        "epoch": 0.0,
        "cka_mean": 1.0,
        "embedding_drift": 0.0,
        "weight_drift": 0.0,
        "monitor_zero_shot_accuracy": baseline["transfer_track_acc"],
        "monitor_zero_shot_retention_pct": 100.0,
    }
    for metric in METRICS:
        start[metric] = baseline["attention"][f"{metric}_mean"]
        start[f"{metric}_change_pct"] = 0.0
    rows = [start]
    for entry in record["history"]:
        row = {
            "run_id": record["run_id"],
            "step": entry["epoch"] * record["config"]["steps_per_epoch"],
            "epoch": entry["epoch"],
            "train_loss": entry["train_loss"],
            "train_accuracy": entry["train_acc"],
            "val_accuracy": entry["val_acc"],
            "cka_mean": entry["cka_mean"],
            "embedding_drift": entry["embedding_drift"],
            "weight_drift": entry["weight_drift_rel"],
            "monitor_zero_shot_accuracy": entry["transfer_track_acc"],
            "monitor_zero_shot_retention_pct": 100 * entry["transfer_track_retention"],
        }
        for metric in METRICS:
            row[metric] = entry[f"{metric}_mean"]
            row[f"{metric}_change_pct"] = entry[f"delta_{metric}_pct"]
        first, last = baseline["attention"]["entropy_per_layer"][-1], entry["entropy_per_layer"][-1]
        row["entropy_last_layer_change_pct"] = 100 * (last - first) / first
        rows.append(row)
    return rows


def _layers(record: dict[str, Any]) -> list[dict[str, Any]]:
    steps = record["config"]["steps_per_epoch"]
    selected = record["selected_epoch"] * steps
    values = {(0, m): record["baseline"]["attention"][f"{m}_per_layer"] for m in METRICS}
    values |= {(entry["epoch"] * steps, "entropy"): entry["entropy_per_layer"] for entry in record["history"]}
    values |= {(selected, m): record["final"]["attention"][f"{m}_per_layer"] for m in METRICS}
    values[selected, "cka"] = record["final"]["cka_per_layer"]
    return [
        {
            "run_id": record["run_id"],
            "step": step,
            "layer": layer,
            "head": None,
            "metric": metric,
            "value": value,
        }
        for (step, metric), per_layer in values.items()
        for layer, value in enumerate(per_layer, start=1)
    ]


def _sweep(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "run_id": record["run_id"],
            "alpha": point["alpha"],
            "test_accuracy": point["test_acc"],
            "transfer_cifar100_zero_shot_accuracy": point["transfer_acc"],
            "entropy_change_pct": point["delta_entropy_pct"],
            "cka_mean": point["cka_mean"],
            "embedding_drift": point["embedding_drift"],
            "weight_drift": point["weight_drift_rel"],
        }
        for point in record["sweep"]
    ]
