"""`attndrift baseline`: the pretrained model's zero-shot accuracy, and what it is an accuracy of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from statsmodels.stats.proportion import proportion_confint
from transformers import CLIPModel, CLIPProcessor
from typer.testing import CliRunner

import attndrift
from attndrift.cli.main import app
from attndrift.data import load_dataset
from attndrift.retention.baseline import zero_shot_baseline

FOLDER = Path(attndrift.__file__).parent / "models" / "embedded"
LIMIT = 100


def _reference() -> float:
    """The same accuracy by transformers alone: its processor, its logits."""
    model = CLIPModel.from_pretrained(FOLDER).float().eval()
    processor = CLIPProcessor.from_pretrained(FOLDER)
    dataset = load_dataset("objects")
    split = dataset.test
    # The first of each class, as many of each: which ones the command takes is in its record.
    found = zero_shot_baseline("embedded", ["objects"], limit=LIMIT)
    assert found.scores[0].n == LIMIT
    from attndrift.data import evaluation_part

    part, _ = evaluation_part(dataset, limit=LIMIT, data_seed=0)
    assert found.scores[0].evidence["ids_sha256"] == part.hash
    images: list[Image.Image] = [split[int(index)] for index in part.indices]
    texts = [f"a photo of a {name}." for name in dataset.class_names]
    logits = model(**processor(text=texts, images=images, return_tensors="pt", padding=True)).logits_per_image
    return float(np.mean(logits.argmax(1).numpy() == part.labels))


def test_the_command_prints_what_transformers_alone_computes() -> None:
    printed = CliRunner().invoke(
        app, ["baseline", "embedded", "--zero-shot", "objects", "--limit", str(LIMIT), "--json"]
    )
    assert printed.exit_code == 0, printed.output
    score = json.loads(printed.stdout)["scores"][0]
    assert score["accuracy"] == pytest.approx(_reference(), abs=1e-12)
    low, high = proportion_confint(round(score["accuracy"] * LIMIT), LIMIT, method="wilson")
    assert (score["low"], score["high"]) == (pytest.approx(low), pytest.approx(high))
    evidence = score["evidence"]
    assert evidence["templates"] == ["a photo of a {class}."]
    assert len(evidence["class_names"]) == 100
    assert evidence["split"] == "test"
    assert evidence["preprocessing"]["size"]


def test_a_set_that_is_out_of_reach_is_named_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATTNDRIFT_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    printed = CliRunner().invoke(app, ["baseline", "embedded", "--limit", "100"])
    assert printed.exit_code == 0, printed.output
    assert "zero-shot objects (test): " in printed.stdout
    assert "100 images, chance 1.00%" in printed.stdout
    assert "zero-shot cifar100: not measured" in printed.stdout
    assert "ATTNDRIFT_DATA" in printed.stdout


def test_a_model_that_knows_nothing_has_nothing_to_retain() -> None:
    found = zero_shot_baseline("config:small", ["objects"], limit=300)
    assert found.scores[0].accuracy < 0.02 or found.scores[0].remark is None
    assert found.scores[0].accuracy >= 0.02 or "nothing to retain" in str(found.scores[0].remark)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["embedded", "--zero-shot", "nothing"], "there is no dataset `nothing`"),
        (["embedded", "--zero-shot", "objects", "--limit", "100", "--template", "a photo"], "exactly once"),
        (["/no/such/folder"], "not a folder here"),
    ],
)
def test_wrong_input_is_an_error_in_words(arguments: list[str], words: str) -> None:
    printed = CliRunner().invoke(app, ["baseline", *arguments])
    assert printed.exit_code != 0
    assert words in str(printed.exception)


@pytest.mark.parametrize(
    ("model", "name", "words"),
    [
        ("config:dinov2-tiny", "digits", "has no text tower, and zero-shot accuracy needs one"),
        ("embedded", "nothing", "there is no dataset `nothing`"),
    ],
)
def test_what_has_no_zero_shot_is_refused_before_maps_are_written(
    model: str, name: str, words: str, tmp_path: Path
) -> None:
    for number in range(2):
        Image.new("RGB", (32, 32), (90 * number, 0, 0)).save(tmp_path / f"{number}.png")
    out = tmp_path.parent / f"{tmp_path.name}-out"
    arguments = ["baseline", model, "--images", str(tmp_path), "--zero-shot", name, "--output", str(out)]
    printed = CliRunner().invoke(app, arguments)
    assert words in str(printed.exception)
    assert not out.exists()
