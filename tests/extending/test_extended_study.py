"""A study of what a package from outside brings: trained, measured, drawn and reported like what is built in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

HERE = Path(__file__).parent
pytestmark = [pytest.mark.slow, pytest.mark.ci("extension")]
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def runs(extended_study: Path) -> pd.DataFrame:
    found = pd.read_parquet(extended_study / "runs.parquet")
    assert (found["status"] == "finished").all()
    return found


def test_the_tables_hold_settings_and_losses(runs: pd.DataFrame, extended_study: Path) -> None:
    biases = runs[runs["method"] == "biases"]
    assert sorted(biases["bias_blocks"]) == [1, 2]
    assert biases["bias_norms"].tolist() == [False, False], "a shared setting reaches its method, and no other"
    assert runs[runs["method"] != "biases"]["bias_norms"].isna().all()
    assert runs.set_index("experiment").loc["cosine", "cosine_scale"] == 50
    losses = pd.read_parquet(extended_study / "losses.parquet")
    several = losses[losses.groupby("run_id")["loss"].transform("count") == 2].set_index("loss")
    assert several["weight"].to_dict() == {"entropy_floor": 1.0, "l1_sp": 1.0}
    assert several["active_fraction"].notna().to_dict() == {"entropy_floor": True, "l1_sp": False}
    drift = runs[runs["loss"].isin(["l1_sp:0.0001", "l1_sp:0.01"])].set_index("loss")["weight_drift"]
    free = runs[(runs["experiment"] == "full") & runs["outcome"].isna()]["weight_drift"].item()
    assert drift["l1_sp:0.01"] < drift["l1_sp:0.0001"] < free


def test_a_backbone_is_trained_adapted_and_guarded(runs: pd.DataFrame, extended_study: Path) -> None:
    toys = runs[runs["model"] == "toy:2"].set_index("experiment")
    assert set(toys.index) == {"toy", "toy-lora", "toy-guarded"}
    assert (toys.drop("toy-guarded")["weight_drift"] > 0).all()
    assert (toys.drop("toy-guarded")["cka_mean"] < 1).all()
    assert toys.loc["toy-lora", "lora_rank"] == 2
    assert toys.loc["toy-lora", "weight_drift"] < toys.loc["toy", "weight_drift"]
    assert toys.loc["toy-guarded", "cka_mean"] >= 0.5
    layers = pd.read_parquet(extended_study / "layers.parquet")
    own = layers[layers["run_id"] == toys.loc["toy", "run_id"]]
    assert set(own["layer"]) == {1, 2}
    assert set(own[own["metric"] == "entropy"]["head"].dropna()) == {1, 2}
    checkpoints = extended_study / "runs" / toys.loc["toy-lora", "run_id"] / "checkpoints" / "best"
    assert (checkpoints / "adapter" / "adapter_model.safetensors").is_file()


def test_a_suite_a_dataset_and_a_measure_give_columns(runs: pd.DataFrame, extended_study: Path) -> None:
    others = runs[runs["dataset"] == "tiles"]
    for name in ("stripes", "objects"):
        for measure in ("zero_shot", "nearest_centroid"):
            assert others[f"transfer_{name}_{measure}_accuracy"].between(0, 1).all()
            assert others[f"transfer_{name}_{measure}_pretrained"].notna().all()
    pretrained = runs[runs["method"] == "none"].iloc[0]
    assert pretrained["transfer_objects_nearest_centroid_accuracy"] > 0.3
    assert pretrained["transfer_objects_nearest_centroid_retention_pct"] == 100
    target = runs[runs["dataset"] == "stripes"].iloc[0]
    assert target["test_accuracy"] >= 0
    assert pd.isna(target["transfer_stripes_zero_shot_accuracy"])
    record = json.loads((extended_study / "runs" / pretrained["run_id"] / "record.json").read_text())
    assert {"zero_shot", "nearest_centroid"} <= set(record["transfer"]["objects"])


def test_a_tracker_is_told_the_history(runs: pd.DataFrame, extended_study: Path) -> None:
    trained = runs[(runs["experiment"] == "full") & runs["outcome"].isna()].iloc[0]
    lines = (extended_study / "runs" / trained["run_id"] / "lines.jsonl").read_text().splitlines()
    history = pd.read_parquet(extended_study / "history.parquet")
    own = history[history["run_id"] == trained["run_id"]].set_index("step")
    logged = {row["step"]: row for row in map(json.loads, lines)}
    assert set(own.index) == set(logged) | {0}, "the pretrained model is not a step of the training"
    last = max(logged)
    assert logged[last]["drift/cka_mean"] == pytest.approx(own.loc[last, "cka_mean"])
    assert not (extended_study / "runs" / trained["run_id"] / "tensorboard").exists()


def test_a_launcher_runs_a_study(command: Callable[..., Any], tmp_path: Path) -> None:
    command(
        "run", HERE / "study.yaml", "-o", tmp_path / "s", "--only", "none", "--only", "toy", "--engine", "backwards"
    )
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "s" / "runs").glob("*/record.json"))]
    ended = {record["row"]["experiment"]: record["ended"] for record in records}
    assert ended["toy"] < ended["none"], "the last one first"
    refused = command("run", HERE / "study.yaml", "-o", tmp_path / "t", "--engine", "backwards", "--jobs", "2", code=1)
    assert "--jobs is not an option of --engine backwards" in refused.stderr


def test_adapters_are_saved_loaded_and_merged(runs: pd.DataFrame, extended_study: Path) -> None:
    own = runs.assign(made=runs["outcome"].fillna("itself"))[runs["method"] == "loha"].set_index("made")
    assert own["loha_rank"].tolist() == [2, 2]
    # The selected checkpoint was loaded, against its fingerprint, and merged for the interpolation.
    half, whole = own.loc["wise_ft:0.5", "weight_drift"], own.loc["itself", "weight_drift"]
    assert half == pytest.approx(whole / 2, rel=1e-3)
    assert (extended_study / "runs" / own.loc["itself", "run_id"] / "checkpoints" / "best" / "adapter").is_dir()


def test_the_history_holds_the_metric(runs: pd.DataFrame, extended_study: Path) -> None:
    history = pd.read_parquet(extended_study / "history.parquet")
    assert history["largest_share"].between(0, 1).all()
    assert history["largest_share_change_pct"].notna().all()
    layers = pd.read_parquet(extended_study / "layers.parquet")
    assert "largest_share" in set(layers["metric"])
    assert runs["largest_share_final"].notna().all()


def test_an_outcome_is_a_row_of_its_own(runs: pd.DataFrame) -> None:
    made = runs[runs["outcome"].notna() & (runs["method"] == "full")].set_index("outcome")
    parent = runs[(runs["experiment"] == "full") & runs["outcome"].isna()].iloc[0]
    assert set(made.index) == {"mean_weights:1", "wise_ft:0.5"}
    assert set(made["parent_run"]) == {parent["run_id"]}
    assert made.loc["wise_ft:0.5", "weight_drift"] == pytest.approx(parent["weight_drift"] / 2, rel=1e-4)
    assert 0 < made.loc["mean_weights:1", "weight_drift"] < parent["weight_drift"]
    assert made["transfer_objects_zero_shot_retention_pct"].notna().all()


def test_analysis_figures_and_report_call_everything_by_its_label(
    command: Callable[..., Any], extended_study: Path
) -> None:
    command("report", extended_study)
    analysis = json.loads((extended_study / "analysis.json").read_text(encoding="utf-8"))
    variants = {row["variant"] for row in analysis["tables"]["configurations"]["rows"]}
    assert {
        "last biases, blocks=1, bias norms False",
        "last biases, bias norms False",
        "full, sharp cosine head, scale=50",
        "full + L1-SP 0.01",
        "full, WiSE-FT 0.5",
        "full, mean weights 1",
        "LoHa, r=2",
        "LoHa, r=2, WiSE-FT 0.5",
    } <= variants
    swept = analysis["tables"]["sweep_bias_blocks"]
    assert swept["title"].startswith("Blocks with trained biases")
    assert [row["setting"] for row in swept["rows"]] == ["1", "2"]
    held = {row["setting"] for row in analysis["tables"]["sweep_loss"]["rows"]}
    assert {"none", "l1_sp 0.0001", "l1_sp 0.01"} <= held
    assert "## Largest shares" in (extended_study / "report.md").read_text(encoding="utf-8")
    page = (extended_study / "report.html").read_text(encoding="utf-8")
    for label in ("last biases", "Largest share", "objects nearest-centroid accuracy"):
        assert label in page
    assert (extended_study / "figures" / "share_over_time.svg").is_file()
    svg = (extended_study / "figures" / "pareto_front.svg").read_text(encoding="utf-8")
    assert "#882255" in svg, "the method's own colour"


def test_the_metric_and_the_loss_serve_a_loop_of_ones_own(python: Callable[[str], Any]) -> None:
    program = """
import json, torch
from attndrift import DriftMonitor
from attndrift.drift.alerts import Alert, AlertBook
from attndrift.losses import LOSSES
from attndrift.models import load_model

torch.manual_seed(0)
model = load_model("config:tiny").train()
model.text_model.requires_grad_(False)
pixels = torch.randn(8, 3, 28, 28)
monitor = DriftMonitor(model, pixels)
preserve = LOSSES["l1_sp"].cls(model, weight=0.5)
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
losses = []
for _ in range(3):
    task = -model.get_image_features(pixel_values=pixels).pooler_output.square().mean()
    added = preserve(model)
    losses.append(added.item())
    optimizer.zero_grad()
    (task + added).backward()
    optimizer.step()
drift = monitor.measure()
book = AlertBook([Alert("largest_share_change_pct", above=-1e9)])
fired = [event.metric for _, event in book.check(3, 1.0, drift)]
try:
    Alert("largest_shar_change_pct", above=1)
except ValueError as error:
    print(json.dumps({"losses": losses, "fired": fired, "said": str(error)}))
"""
    found = python(program)
    assert found["losses"][0] == 0
    assert found["losses"][2] > 0
    assert found["fired"] == ["largest_share_change_pct"]
    assert "did you mean `largest_share_change_pct`?" in found["said"]
