"""What a study says of collapse: with two towers the gap between them too, and on request the change of activations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attndrift.study.distributed import SilentReporter
from attndrift.study.executor import Executor
from attndrift.study.resources import StudyResources
from attndrift.study.settings import NamedRun, RunSettings

SETTINGS: dict[str, Any] = {
    "dataset": "digits", "train_per_class": 3, "validation_per_class": 1, "probe_size": 12, "test_limit": 10,
    "epochs": 1, "batch_size": 15, "learning_rate": 1e-2, "evaluations_per_epoch": 1, "map_images": 0, "threads": 1,
    "trackers": (), "monitor_zero_shot_images": 0,
}  # fmt: skip


class _Reporter(SilentReporter):
    def inputs(self, found: Any, places: Any) -> None: ...

    def evaluated(self, step: int, total: int, values: object) -> None: ...

    def saved(self, step: int) -> None: ...


@pytest.mark.parametrize(("model", "asked"), [("config:tiny", True), ("config:dinov2-tiny", False)])
def test_a_run_has_the_columns_that_its_model_allows(model: str, asked: bool, tmp_path: Path) -> None:
    settings = RunSettings(model=model, method="lora", activation_change=asked, **SETTINGS)
    record = Executor(StudyResources(tmp_path / "cache"))(
        NamedRun(run_id="run", settings=settings), tmp_path, _Reporter()
    )
    row = record["row"]
    for name in ("effective_rank", "mean_cosine", *(["modality_gap"] if asked else [])):
        before, after = row[f"{name}_baseline"], row[f"{name}_final"]
        assert row[f"{name}_change_pct"] == pytest.approx(100 * (after - before) / before)
        assert before != after
    assert row["procrustes_residual"] > 0
    assert (row["activation_change_mean"] is not None) is asked
    assert (row["modality_gap_final"] is not None) is asked, "there is no text tower"
    first = json.loads((tmp_path / "history.jsonl").read_text().splitlines()[0])
    assert first["effective_rank"] == row["effective_rank_baseline"]
    assert first["procrustes_residual"] == 0
    if asked:
        assert first["activation_change_mean"] == 0 < row["activation_change_mean"]
        assert first["modality_gap"] == row["modality_gap_baseline"]
