"""Runs that differ in any setting of a method, a head, a loss or an outcome are different methods, never seeds of one."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from attndrift.analysis.configurations import prepare
from attndrift.analysis.core import analyze
from attndrift.results.tables import Tables

RUN = {
    "dataset": "tiles", "model": "m", "selection": "validation", "learning_rate": 1e-5, "seed": 0, "status": "finished",
    "entropy_baseline": 3.0, "entropy_final": 2.9, "test_accuracy": 0.5, "best_val_accuracy": 0.5,
}  # fmt: skip


def _tables(*runs: dict[str, Any]) -> Tables:
    return Tables(runs=pd.DataFrame([{**RUN, "run_id": f"r{place}", **run} for place, run in enumerate(runs)]))


DIFFERENT = [
    ({"method": "lora"}, {"method": "lora", "lora_dropout": 0.2}, "LoRA dropout=0.2"),
    ({"method": "lora", "lora_rank": 4}, {"method": "lora", "lora_rank": 8}, "LoRA r=8"),
    ({"method": "full"}, {"method": "full", "head": "text"}, "full, text head"),
    ({"method": "full"}, {"method": "full", "outcome": "wise_ft:0.5", "parent_run": "r0"}, "full, WiSE-FT 0.5"),
    (
        {"method": "full", "loss": "entropy_floor:1"},
        {"method": "full", "loss": "entropy_floor:1", "entropy_floor_fraction": 0.9},
        "full + entropy floor 1 (floor 0.9)",
    ),
    # Of a method that is not installed nobody can say which settings are its own, so that none is dropped.
    ({"method": "loha", "lora_rank": 4}, {"method": "loha", "lora_rank": 8}, "loha, lora rank 8"),
    ({"method": "dora", "lora_rank": 4}, {"method": "dora", "lora_rank": 8}, "DoRA r=8"),
    ({"method": "full"}, {"method": "full", "optimisation": "layer_decay:0.75+spd:1"}, "full, layer decay 0.75, SPD 1"),
]


@pytest.mark.parametrize(("one", "other", "label"), DIFFERENT)
def test_a_setting_tells_runs_apart(one: dict[str, Any], other: dict[str, Any], label: str) -> None:
    runs = prepare(_tables(one, other)).runs.set_index("run_id")
    assert runs.loc["r0", "configuration"] != runs.loc["r1", "configuration"]
    assert runs.loc["r1", "variant"] == label


SAME = [
    ({"method": "lora", "lora_rank": 8}, {"method": "lora", "lora_rank": 8, "lora_alpha": 16.0, "lora_targets": "q_proj v_proj"}),
    ({"method": "full"}, {"method": "full", "head": "trained", "freeze_layers": 0, "train_projection": True}),
    ({"method": "full"}, {"method": "full", "lora_rank": 8}),
    ({"method": "full", "loss": "entropy_floor:1"}, {"method": "full", "loss": "entropy_floor:1", "entropy_floor_fraction": 0.7}),
    ({"method": "full"}, {"method": "full", "entropy_floor_fraction": 0.7}),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME)
def test_defaults_and_settings_without_an_owner_do_not(one: dict[str, Any], other: dict[str, Any]) -> None:
    runs = prepare(_tables(one, {**other, "seed": 1})).runs
    assert runs["configuration"].nunique() == 1, runs["configuration"].tolist()


def test_a_loss_with_settings_of_its_own_stands_beside_the_run_without_it() -> None:
    tables = _tables(
        {"method": "full"},
        {"method": "full", "loss": "entropy_floor:1", "entropy_floor_fraction": 0.7},
        {"method": "full", "loss": "entropy_floor:1", "entropy_floor_fraction": 0.9},
    )
    found = analyze(tables)
    rows = found.tables["sweep_loss"].rows
    assert [row["setting"] for row in rows] == ["none", "entropy_floor 1", "entropy_floor 1 (floor 0.9)"]
