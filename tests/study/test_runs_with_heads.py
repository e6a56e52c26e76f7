"""Runs with every head: trained, measured, resumed bit for bit, and refused before anything runs where they cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attndrift.methods import HEADS
from attndrift.study.distributed import SilentReporter
from attndrift.study.executor import Executor
from attndrift.study.resources import StudyResources
from attndrift.study.settings import NamedRun, RunSettings, run_name

SETTINGS: dict[str, Any] = {
    "dataset": "digits", "train_per_class": 4, "validation_per_class": 2, "probe_size": 20, "test_limit": 30,
    "epochs": 2, "batch_size": 10, "learning_rate": 1e-3, "transfer": ["objects"], "transfer_limit": 100,
    "monitor_zero_shot_images": 0, "evaluations_per_epoch": 1, "map_images": 0, "threads": 1,
    "guard": "cka_mean", "guard_at_least": 0.999, "guard_checks_per_epoch": 1,
}  # fmt: skip


class Reporter(SilentReporter):
    """Says nothing, and stops at the first saved state where it is told to."""

    def __init__(self, *, stops: bool = False) -> None:
        self.stops = stops

    def inputs(self, found: Any, places: Any) -> None: ...

    def evaluated(self, step: int, total: int, values: object) -> None:
        pass

    def saved(self, step: int) -> None:
        if self.stops:
            raise KeyboardInterrupt


def _execute(model: Path, folder: Path, resources: StudyResources, reporter: Reporter, **settings: Any) -> Any:
    run = NamedRun(run_id="run", settings=RunSettings(model=str(model), **{**SETTINGS, **settings}))
    with Executor(resources) as execute:
        folder.mkdir(exist_ok=True)
        return execute(run, folder, reporter)


@pytest.mark.one_in(8)
@pytest.mark.parametrize("head", HEADS.names())
def test_a_run_is_resumed_bit_for_bit_behind_every_head(head: str, tiny_clip: Path, tmp_path: Path) -> None:
    resources = StudyResources(tmp_path / "cache")
    whole = _execute(tiny_clip, tmp_path / "whole", resources, Reporter(), head=head)
    assert whole["status"] == "finished"
    with pytest.raises(KeyboardInterrupt):
        _execute(tiny_clip, tmp_path / "run", resources, Reporter(stops=True), head=head)
    again = _execute(tiny_clip, tmp_path / "run", resources, Reporter(), head=head)
    assert again["row"] == whole["row"]
    weights = [tmp_path / name / "checkpoints" / "final" / "model.safetensors" for name in ("whole", "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_heads_and_their_settings_are_in_a_runs_name() -> None:
    names = {head: run_name(RunSettings(dataset="digits", head=head)) for head in HEADS.names()}
    assert len(set(names.values())) == len(names)
    assert "lp-ft-head_lp-c10" in run_name(RunSettings(dataset="digits", head="lp_ft", lp_c=10.0))


def test_a_frozen_head_with_nothing_else_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="`head` cosine is frozen, and method: linear_probe trains nothing else"):
        RunSettings(dataset="digits", head="cosine", method="linear_probe")
    with pytest.raises(ValueError, match=r"`lp_steps` needs head: lp_ft; this run has head: trained"):
        RunSettings(dataset="digits", lp_steps=5)
