"""What a run tells of itself: a run of one step trains, nulls have reasons, and the tables that are there are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from attndrift.cli.main import app
from attndrift.files import read_json
from attndrift.results.tables import columns_of, read_tables, schema

TEXT = """
name: told
shared:
  model: {model}
  dataset: digits
  train_per_class: 4
  validation_per_class: 1
  probe_size: 20
  test_limit: 10
  epochs: 1
  batch_size: 40
  learning_rate: 1e-3
  transfer: []
  threads: 1
  map_images: 0
runs:
"""
# All of one step.
RUNS = {
    "plain": "{method: full}",
    "half": "{method: full, warmup: 0.5}",
    "nearly_all": "{method: lora, lora_rank: 2, warmup: 0.99}",
    "accumulated": "{method: last_block, gradient_accumulation: 4}",
    "larger_batch": "{method: full, batch_size: 64, loss: 'attention_preservation:1'}",
    "two_losses": "{method: full, loss: 'attention_preservation:1+entropy_floor:1'}",
    "no_warmup": "{method: full, warmup: 0, loss: 'entropy_floor:1'}",
}


SEEDS = {name: seed for seed, name in enumerate(RUNS)}


@pytest.fixture(scope="module")
def told(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a study, and what its run printed."""
    folder = tmp_path_factory.mktemp("told")
    runs = "".join(f"  - {text[:-1]}, seed: {seed}}}\n" for seed, text in enumerate(RUNS.values()))
    study = folder / "told.yaml"
    study.write_text(TEXT.format(model=tiny_clip) + runs)
    result = CliRunner().invoke(app, ["run", str(study), "--output", str(folder / "out")])
    assert result.exit_code == 0, result.output
    return folder / "out", result.output


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_one_step_trains(told: tuple[Path, str], name: str) -> None:
    """Whatever share of the steps is the warm-up, whose first step has the rate 0."""
    rows = read_tables(told[0]).runs.set_index("seed")
    assert rows.loc[SEEDS[name], "weight_drift"] > 1e-6


REASONS = {
    "plain": "no preservation loss",
    "nearly_all": "no preservation loss",
    "larger_batch": "attention_preservation counts no activity",
    "two_losses": None,
    "no_warmup": None,
}


@pytest.mark.parametrize("name", REASONS)
def test_an_activity_that_is_null_has_a_reason(told: tuple[Path, str], name: str) -> None:
    records = [read_json(path) for path in (told[0] / "runs").glob("*/record.json")]
    record = next(one for one in records if one["row"]["seed"] == SEEDS[name])
    why = record["nulls"].get("loss_active_fraction")
    assert (record["row"]["loss_active_fraction"] is None) == (why is not None)
    assert (why is None) if REASONS[name] is None else (REASONS[name] in why)


def test_every_table_that_was_written_is_named(told: tuple[Path, str]) -> None:
    written = {path.name for path in told[0].glob("*.parquet")}
    assert "losses.parquet" in written
    line = next(line for line in told[1].splitlines() if "Tables:" in line)
    assert set(line.partition("Tables: ")[2].split(", ")) == written


def test_the_training_loss_says_what_it_holds(told: tuple[Path, str]) -> None:
    tables = read_tables(told[0])
    history, runs = tables.history, tables.runs.set_index("seed")["run_id"]
    column = next(one for one in columns_of("history", history) if one.name == "train_loss")
    assert "preservation losses" in column.meaning
    assert "all terms" in column.label
    assert column in schema("history")
    losses = history.dropna(subset=["train_loss"]).groupby("run_id")["train_loss"].last()
    assert losses[runs[SEEDS["no_warmup"]]] > 0
