"""`method: published`: the image tower of a checkpoint, measured without any training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel
from typer.testing import CliRunner

from attndrift.cli.main import app
from attndrift.files import read_json
from attndrift.models.errors import CheckpointError
from attndrift.models.load import load_model, state_hash
from attndrift.models.tower_weights import put_tower
from attndrift.study.settings import RunSettings

STUDY = """
name: published
shared: {{model: {model}, probe_size: 10, transfer: [objects], threads: 1}}
runs:
  - {{dataset: digits, method: none}}
  - {{dataset: digits, method: published, checkpoint: {checkpoint}}}
"""
BY_HAND = """
name: by-hand
shared: {{model: {model}, method: none, probe_size: 10, transfer: [objects, digits], threads: 1}}
runs: [{{dataset: tiles}}]
"""


def run(text: str, folder: Path) -> pd.DataFrame:
    """The table `runs` of a study, by method."""
    folder.mkdir()
    (folder / "study.yaml").write_text(text)
    done = CliRunner().invoke(app, ["run", str(folder / "study.yaml"), "--output", str(folder / "out")])
    assert done.exit_code == 0, done.output
    return pd.read_parquet(folder / "out" / "runs.parquet").set_index("method")


@pytest.fixture(scope="module")
def tuned(tiny_clip: Path) -> Any:
    """The tiny model with other weights in its image tower."""
    clip = load_model(str(tiny_clip))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in clip.vision_model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return clip


@pytest.fixture(scope="module")
def tower(tuned: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That tower alone, as `transformers` saves it."""
    folder = tmp_path_factory.mktemp("tower")
    model = CLIPVisionModel(tuned.config.vision_config)
    inner = getattr(model, "vision_model", model)
    inner.load_state_dict(tuned.vision_model.state_dict())
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.ci("study")
def test_a_run_measures_the_published_weights(tiny_clip: Path, tower: Path, tuned: Any, tmp_path: Path) -> None:
    runs = run(STUDY.format(model=tiny_clip, checkpoint=tower), tmp_path / "study")
    row = runs.loc["published"]
    assert (row["status"], row["trainable_parameters"], row["checkpoint"]) == ("finished", 0, str(tower))
    assert row["weight_drift"] > 0.01
    assert row["projection_drift"] == 0
    assert row["cka_mean"] < 1
    assert row["transfer_objects_zero_shot_pretrained"] == runs.loc["none", "transfer_objects_zero_shot_accuracy"]
    # The numbers are those of the model that somebody puts together by hand.
    whole = tmp_path / "whole"
    shutil.copytree(tiny_clip, whole)
    tuned.save_pretrained(whole)
    by_hand = run(BY_HAND.format(model=whole), tmp_path / "by-hand").loc["none"]
    assert row["transfer_objects_zero_shot_accuracy"] == by_hand["transfer_objects_zero_shot_accuracy"]
    assert row["test_accuracy"] == by_hand["transfer_digits_zero_shot_accuracy"]
    record = read_json(next((tmp_path / "study/out/runs").glob("*published*")) / "record.json")
    assert record["checkpoint"] == {"source": str(tower), "revision": None, "weights_sha256": state_hash(tuned)}


def changed(tower: Path, folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], **config: Any) -> Path:
    """A copy of a saved tower with other tensors or another config."""
    shutil.copytree(tower, folder)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    stated = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(stated))
    return folder


def bare(name: str) -> str:
    return name.removeprefix("vision_model.")


@pytest.mark.parametrize(
    "rename",
    [bare, lambda name: f"vision_model.{bare(name)}", lambda name: f"vision_model.vision_model.{bare(name)}"],
    ids=["flat", "under vision_model", "under it twice"],
)
def test_towers_of_every_layout_are_put_in_place(
    tiny_clip: Path, tower: Path, tuned: Any, tmp_path: Path, rename: Callable[[str], str]
) -> None:
    beside = {"visual_projection.weight": torch.zeros(2), "classifier.weight": torch.zeros(3)}
    saved = changed(
        tower, tmp_path / "saved", lambda own: {rename(name): value for name, value in own.items()} | beside
    )
    clip = load_model(str(tiny_clip))
    put_tower(clip.vision_model, str(saved))
    assert state_hash(clip) == state_hash(tuned)


def without(place: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda own: dict(list(own.items())[:place] + list(own.items())[place + 1 :])


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (without(3), {}, "1 tensors of the image tower are missing"),
        (lambda own: own | {"encoder.extra": torch.zeros(1)}, {}, "1 have no place in it"),
        (lambda own: own | {"embeddings.position_ids": torch.tensor([[1, 0]])}, {}, "position_ids do not count up"),
        (lambda own: {name: value[:1].clone() for name, value in own.items()}, {}, "fine-tuned from another model"),
        (dict, {"hidden_act": "gelu"}, "an image tower with hidden_act gelu"),
        (dict, {"num_attention_heads": 1}, "an image tower with num_attention_heads 1"),
        (dict, {"layer_norm_eps": 1e-3}, "an image tower with layer_norm_eps"),
    ],
)
def test_towers_of_other_models_are_refused(
    tiny_clip: Path, tower: Path, tmp_path: Path, change: Any, config: dict[str, Any], said: str
) -> None:
    clip = load_model(str(tiny_clip))
    before = state_hash(clip)
    with pytest.raises(CheckpointError, match=said):
        put_tower(clip.vision_model, str(changed(tower, tmp_path / "saved", change, **config)))
    assert state_hash(clip) == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "`checkpoint` must name the image tower"),
        ({"checkpoint": ""}, "`checkpoint` must name the image tower"),
        ({"checkpoint": "x", "outcomes": "ema:0.9"}, "which trains nothing"),
        ({"checkpoint": "x", "loss": "l2_sp:1"}, "leaves the image encoder as it is"),
        ({"checkpoint": "x", "train_projection": True}, "`train_projection` cannot be true"),
    ],
)
def test_settings_that_do_not_go_with_it(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RunSettings(dataset="tiles", method="published", **settings)
