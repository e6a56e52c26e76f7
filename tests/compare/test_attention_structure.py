"""`attndrift baseline MODEL --images`: the attention of one model, with its spread, as a program and a person read it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel
from typer.testing import CliRunner, Result

from attndrift import metrics
from attndrift.cli.main import app
from attndrift.compare import measure_structure
from attndrift.drift import take_snapshot
from attndrift.models import load_processor

IMAGES, BLOCKS, HEADS = 8, 8, 4


def _baseline(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["baseline", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def measured(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("structure") / "out"
    result = _baseline("embedded", "--images", photos, "--output", folder, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), folder


@pytest.fixture(scope="module")
def eager(photos: Path, embedded: CLIPModel) -> list[torch.Tensor]:
    """The class token's attention to the patches from the model's own full maps: (images, heads, patches) a block."""
    _, processor = load_processor("embedded")
    paths = [photos / f"{i}.png" for i in (0, 2, 4, 6)] + [photos / "deep" / "er" / f"{i}.png" for i in (1, 3, 5, 7)]
    pixels = torch.cat(
        [torch.as_tensor(np.asarray(processor(Image.open(path).convert("RGB"))["pixel_values"])) for path in paths]
    )
    embedded.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = embedded.vision_model(pixel_values=pixels, output_attentions=True).attentions
    finally:
        embedded.set_attn_implementation("sdpa")
    return [full[:, :, 0, 1:].double() / full[:, :, 0, 1:].double().sum(-1, keepdim=True) for full in maps]


def test_means_and_deviations_are_those_of_the_full_maps(
    measured: tuple[dict, Path], eager: list[torch.Tensor]
) -> None:
    structure = measured[0]["structure"]
    assert structure["images"]["n"] == IMAGES
    assert len(structure["layers"]) == len(eager) == BLOCKS
    assert [(row["layer"], row["head"]) for row in structure["heads"]] == [
        (layer, head) for layer in range(1, BLOCKS + 1) for head in range(1, HEADS + 1)
    ]
    for name, metric in (("entropy", metrics.entropy), ("erf95", metrics.erf), ("gini", metrics.gini)):
        values = np.stack([metric(layer).numpy() for layer in eager], axis=1)  # images, blocks, heads
        for row in structure["layers"]:
            block = values[:, row["layer"] - 1]
            assert row[name] == pytest.approx(block.mean(), abs=1e-5)
            assert row[f"{name}_sd_images"] == pytest.approx(block.mean(1).std(ddof=1), abs=1e-5)
            assert row[f"{name}_sd_heads"] == pytest.approx(block.mean(0).std(ddof=1), abs=1e-5)
        for row in structure["heads"]:
            head = values[:, row["layer"] - 1, row["head"] - 1]
            assert row[name] == pytest.approx(head.mean(), abs=1e-5)
            assert row[f"{name}_sd_images"] == pytest.approx(head.std(ddof=1), abs=1e-5)
        whole = structure["summary"][name]
        assert whole["mean"] == pytest.approx(values.mean(), abs=1e-5)
        assert whole["sd_images"] == pytest.approx(values.mean((1, 2)).std(ddof=1), abs=1e-5)
    for row, layer in zip(structure["layers"], eager, strict=True):
        assert row["head_diversity"] == pytest.approx(float(metrics.head_diversity(layer.mean(0))), abs=1e-5)
        assert row["head_diversity_sd_images"] is None
    assert "mean maps of all images" in structure["reasons"]["head_diversity_sd_images"]


def test_the_means_are_those_of_a_snapshot_whatever_the_batches(photos: Path, embedded: CLIPModel) -> None:
    found = [measure_structure("embedded", photos, batch_size=size) for size in (3, 64)]
    for one, two in zip(found[0].layers, found[1].layers, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            assert value == (None if value is None else pytest.approx(two[name], rel=1e-5, abs=1e-7)), name
    from attndrift.compare.image_folder import open_images

    _, processor = load_processor("embedded")
    opened = open_images(photos)
    snapshot = take_snapshot(embedded, opened.batches(processor, 64))
    for name in metrics.structure_metrics():
        layers = [row[name] for row in found[1].layers]
        np.testing.assert_allclose(layers, snapshot.structure.layers(name).numpy(), rtol=1e-6)


def test_the_files_hold_what_was_printed_and_the_page_asks_for_nothing(measured: tuple[dict, Path]) -> None:
    printed, folder = measured
    assert printed["scores"] == []
    assert printed["model"]["source"] == "embedded"
    names = ["attention.png", "heads.csv", "layers.csv", "structure.html", "structure.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    record = json.loads((folder / "structure.json").read_text())
    assert {**record, "files": [str(folder / name) for name in names]} == {
        **printed["structure"],
        "files": sorted(printed["structure"]["files"]),
    }
    with open(folder / "heads.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == BLOCKS * HEADS
    assert float(rows[5]["gini"]) == pytest.approx(record["heads"][5]["gini"])
    assert rows[5]["head_diversity_sd_images"] == ""
    with Image.open(folder / "attention.png") as picture:
        assert min(picture.size) > 200
        # Maps of four images in four blocks: many colours, not an empty frame.
        assert len(set(picture.convert("RGB").resize((60, 60)).get_flattened_data())) > 100
    page = (folder / "structure.html").read_text()
    assert "<script" not in page
    assert "http://" not in page.replace("http-equiv", "")
    assert "https://" not in page
    assert "By head" in page


def test_zero_shot_stands_beside_it_where_it_is_asked_for(photos: Path, tmp_path: Path) -> None:
    asked = ["--zero-shot", "digits", "--limit", "20"]
    both = _baseline("embedded", "--images", photos, "-o", tmp_path, *asked)
    assert both.exit_code == 0, both.output
    assert "zero-shot digits (test): " in both.stdout
    assert "Entropy (nats) by block" in both.stdout
    found = json.loads(_baseline("embedded", "--images", photos, "-o", tmp_path, *asked, "--json").stdout)
    assert len(found["scores"]) == 1
    assert len(found["structure"]["layers"]) == BLOCKS
    alone = json.loads(_baseline("embedded", *asked, "--json").stdout)
    assert alone["structure"] is None
    assert alone["scores"] == found["scores"]


def test_an_adapter_is_seen_with_its_weights_in_place(photos: Path, adapter: Path, measured: tuple[dict, Path]) -> None:
    """It names the model that it was trained on by that model's name; here that is the one which ships."""
    settings = json.loads((adapter / "adapter_config.json").read_text())
    folder = adapter.parent / "named"
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "embedded"}))
    found = measure_structure(folder, photos)
    assert found.model["kind"] == "adapter"
    assert any("merged" in note for note in found.notes)
    assert found.layers[-1]["entropy"] != pytest.approx(measured[0]["structure"]["layers"][-1]["entropy"], abs=1e-3)


def test_what_cannot_be_measured_is_one_line_and_exit_code_1(photos: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(photos, damaged)
    (damaged / "torn.png").write_bytes(b"no image")
    for arguments, words in (
        (["embedded", "--images", tmp_path / "nothing"], "not a folder"),
        (["embedded", "--images", damaged], "torn.png"),
        ([tmp_path, "--images", photos], "neither a model folder"),
    ):
        result = _baseline(*arguments, "-o", tmp_path / "out")
        assert result.exit_code != 0
        assert words in str(result.exception)
    assert not (tmp_path / "out").exists()
    skipping = _baseline("embedded", "--images", damaged, "--skip-unreadable", "-o", tmp_path / "out")
    assert skipping.exit_code == 0, skipping.output
    assert "skipped: torn.png" in skipping.stdout
    assert f"n = {IMAGES}" in " ".join(skipping.stdout.split())
