"""`compare` by every retention measure: numbers of a measurement by hand, intervals, costs, and why one is not possible."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from attndrift.cli.main import app
from attndrift.compare import compare_models
from attndrift.compare.comparison import Comparison
from attndrift.compare.summary import summary_names
from attndrift.compare.writing import print_comparison, tables
from attndrift.models import load_model, load_processor
from attndrift.retention.measures import linear_probe


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    base, moved = load_model("config:tiny"), load_model("config:tiny")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in moved.vision_model.parameters():
            parameter.add_(0.3 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator))
    for name, clip in (("base", base), ("moved", moved)):
        clip.save_pretrained(folder / name)
        for part in load_processor("config:tiny"):
            part.save_pretrained(folder / name)
    return folder / "base", folder / "moved"


@pytest.fixture(scope="module")
def found(folders: tuple[Path, Path], photos: Path) -> Comparison:
    return compare_models(*folders, photos, retention="digits+base", retention_limit=100)


def _row(found: Comparison, measure: str) -> dict[str, Any]:
    (row,) = [row for row in found.retention if row["measure"] == measure]
    return row


@pytest.mark.parametrize("measure", ["zero_shot", "knn", "linear_probe"])
def test_every_measure_has_a_row_with_intervals_and_what_it_cost(found: Comparison, measure: str) -> None:
    row = _row(found, measure)
    assert (row["n"], row["classes"]) == (100, 5)
    assert row["seconds"] > 0
    assert row["cost"]
    if row["reason"] is not None:
        assert "chance" in row["reason"]
        assert row["retention_pct"] is row["change_points"] is None
        return
    assert row["retention_pct"] == pytest.approx(100 * row["adapted_accuracy"] / row["base_accuracy"])
    assert row["change_points"] == pytest.approx(100 * (row["adapted_accuracy"] - row["base_accuracy"]))
    for name in ("retention_pct", "change_points"):
        interval = row[f"{name}_interval"]
        assert interval["low"] < row[name] < interval["high"]
        assert interval["n"] == 100


def test_numbers_stand_in_the_summary_under_their_measure(found: Comparison) -> None:
    assert set(found.summary) == set(summary_names())
    row = _row(found, "knn")
    assert found.summary["knn_retention_pct"] == row["retention_pct"] is not None
    assert found.summary["knn_retention_low_pct"] == row["retention_pct_interval"]["low"]
    assert found.summary["linear_probe_change_points"] == _row(found, "linear_probe")["change_points"]
    assert found.summary["zero_shot_base_accuracy"] == _row(found, "zero_shot")["base_accuracy"]
    # Random weights name no class; the reason stands where the number would.
    assert found.summary["retention_pct"] is None
    assert "chance" in found.reasons["retention_pct"]
    (printed,) = [table for table in tables(found) if table["title"] == "Retention on digits+base"]
    assert [line[0] for line in printed["rows"]] == ["knn", "linear_probe", "zero_shot"]
    assert "[" in printed["rows"][0][3]
    assert "training images" in printed["note"]
    for end in ("low", "high"):
        assert found.summary[f"knn_retention_{end}_pct"] == row["retention_pct_interval"][end]
        assert found.summary[f"knn_change_{end}_points"] == row["change_points_interval"][end]


def test_all_numbers_are_printed_on_80_columns(found: Comparison) -> None:
    out = io.StringIO()
    print_comparison(found, [], Console(file=out, width=80))
    printed = out.getvalue().partition("Retention on digits+base")[2].partition("training images")[0]
    for row in found.retention:
        assert f"{100 * row['base_accuracy']:.2f}" in printed
        assert f"{100 * row['adapted_accuracy']:.2f}" in printed
    row = _row(found, "knn")
    for name, form in (("retention_pct", ".1f"), ("change_points", "+.2f")):
        interval = row[f"{name}_interval"]
        assert f" {row[name]:{form}} " in printed
        assert f"[{interval['low']:.1f}, {interval['high']:.1f}]" in printed
    below = " ".join(out.getvalue().split())
    assert f"knn: cost {row['seconds']:.1f} s; embeds the bank too." in below
    assert "No retention: the pretrained accuracy" in below


@pytest.fixture
def _one_step_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The linear probe tries one value of C, for one step."""
    fit = linear_probe.fit_probe
    monkeypatch.setattr(linear_probe, "fit_probe", lambda *given: fit(*given[:3], 1, 1))


@pytest.mark.usefixtures("_one_step_probe")
def test_what_is_not_possible_and_a_fit_that_did_not_converge_say_why(folders: tuple[Path, Path], photos: Path) -> None:
    base, moved = (load_model(folder) for folder in folders)
    _, processor = load_processor(folders[0])
    found = compare_models(base, moved, photos, image_processor=processor, retention="digits", retention_limit=40)
    assert "zero_shot needs class names as text" in _row(found, "zero_shot")["reason"]
    assert _row(found, "zero_shot")["base_accuracy"] is None
    assert _row(found, "knn")["base_accuracy"] is not None
    (note,) = [one for one in found.notes if "probe_iterations" in one]
    assert note.startswith("linear_probe on digits: the fits of the probe to BASE and ADAPTED did not converge")
    bare = compare_models(base, moved, photos, image_processor=processor)
    assert bare.retention == []
    assert bare.reasons["knn_retention_pct"] == "no --retention dataset was given"


@pytest.mark.usefixtures("_one_step_probe")
def test_the_command_prints_the_table_and_fails_where_a_condition_holds(
    folders: tuple[Path, Path], photos: Path, tmp_path: Path
) -> None:
    arguments = ["compare", *map(str, folders), "--images", str(photos), "--retention", "digits", "--limit", "50"]
    result = CliRunner().invoke(
        app, [*arguments, "--output", str(tmp_path / "out"), "--fail-if", "knn_retention_pct<1000"]
    )
    assert result.exit_code == 3, result.output
    assert "Retention on digits" in result.output
    assert "n = 50" in result.output
    assert "Retention on digits" in (tmp_path / "out" / "compare.html").read_text()
