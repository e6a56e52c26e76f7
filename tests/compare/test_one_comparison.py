"""A command's comparison and a monitor's drift are one: the same numbers, metrics of anybody's, and None with its reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPModel

from attndrift.compare import CompareError, compare_models, parse_condition, summary_names, write_comparison
from attndrift.drift import DriftMonitor, Snapshot, compare_snapshots, take_snapshot
from attndrift.metrics.registry import METRICS, Metric
from attndrift.models import load_model
from attndrift.process_group import DivergedError
from attndrift.results.columns import metric_columns


@pytest.fixture(scope="module")
def pair() -> tuple[CLIPModel, CLIPModel]:
    base, moved = load_model("config:tiny"), load_model("config:tiny")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moved.vision_model.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
    return base, moved


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The metrics there are, and those of one test."""
    METRICS.names()  # loads them
    monkeypatch.setattr(METRICS, "_members", dict(METRICS._members))
    return METRICS


SOMEBODYS = {
    "attention": (lambda rows: rows.max(-1).values, {}, "top_share_last_layer_change_pct"),
    "mean maps": (lambda maps: maps.max(-1).values, {}, "top_share_final"),
    "hidden states": (lambda x, y: (x - y).norm() / x.norm(), {"pretrained": 0.0}, "top_share_last"),
    "embeddings": (lambda x, y: (x - y).abs().max(), {"pretrained": 0.0}, "top_share"),
    "own embeddings": (lambda x: x.abs().max(), {}, "top_share_final"),
    "weights": (lambda x, y: max(float((y[name] - x[name]).abs().max()) for name in x), {"pretrained": 0.0}, "top_share"),
}  # fmt: skip


@pytest.mark.one_in(2)
@pytest.mark.parametrize("needs", SOMEBODYS)
def test_a_metric_of_somebody_else_is_compared_named_and_written(
    needs: Any, pair: tuple[CLIPModel, CLIPModel], photos: Path, tmp_path: Path, registry: Any
) -> None:
    function, facts, column = SOMEBODYS[needs]
    assert column not in summary_names()
    registry.register(
        Metric("top_share", function, needs, "Largest share", "what is largest", "a test", "higher", low=0.0, **facts)
    )
    found = compare_models(*pair, photos)
    assert column in summary_names()
    assert found.summary[column] not in (None, 0.0)
    assert parse_condition(f"{column}>-1e9", summary_names()).holds(found.summary, found.reasons)
    write_comparison(found, tmp_path)
    assert column in (tmp_path / "compare.html").read_text()
    if needs in ("attention", "mean maps", "hidden states"):
        assert "top_share" in (tmp_path / "layers.csv").read_text().splitlines()[0]


def test_every_block_is_compared_with_every_block_on_request(
    pair: tuple[CLIPModel, CLIPModel], photos: Path, tmp_path: Path
) -> None:
    plain, found = (compare_models(*pair, photos, cross_layer=wanted) for wanted in (False, True))
    assert plain.cross_layer_cka is None
    values = found.cross_layer_cka
    assert values is not None
    diagonal = [row[place] for place, row in enumerate(values)]
    assert diagonal == pytest.approx([row["cka_debiased"] for row in found.layers], abs=1e-9)
    assert write_comparison(plain, tmp_path / "plain")
    written = {path.name for path in write_comparison(found, tmp_path / "asked")}
    assert "cross_layer_cka.png" in written
    assert not (tmp_path / "plain" / "cross_layer_cka.png").exists()
    (tmp_path / "two").mkdir()
    for name in "ab":
        shutil.copy(photos / "0.png", tmp_path / "two" / f"{name}.png")
    with pytest.raises(CompareError, match="--cross-layer-cka: debiased CKA needs at least 4 images, and there are 2"):
        compare_models(*pair, tmp_path / "two", cross_layer=True)
    heading = "CKA of every block with every block"
    assert heading in (tmp_path / "asked" / "compare.html").read_text()
    assert heading not in (tmp_path / "plain" / "compare.html").read_text()


def test_the_summary_has_the_columns_of_the_table_of_runs_and_the_monitors_numbers(
    pair: tuple[CLIPModel, CLIPModel], photos: Path
) -> None:
    found = compare_models(*pair, photos)
    assert {column.name for column in metric_columns("runs")} - LABELLED < set(found.summary) == set(summary_names())
    from attndrift.compare.image_folder import open_images
    from attndrift.models.from_config import image_processor

    processor = image_processor("CLIPImageProcessorPil", pair[0].config.vision_config.image_size)
    pixels = torch.cat(list(open_images(photos).batches(processor, 64)))
    drift = DriftMonitor(pair[1], pixels, reference=pair[0]).measure()
    for name, value in drift.columns("runs").items():
        if name in TEXT:  # the monitor was given none to measure, and nothing of the text side differs
            assert value is None
            assert found.summary[name] == (None if name == "text_embedding_drift" else 0.0)
            continue
        if name in LABELLED:
            assert value is None
            continue
        if name in ON_REQUEST:
            assert found.summary[name] is value is None, name
            continue
        assert found.summary[name] == pytest.approx(value, rel=1e-5), name


TEXT = {column.name for column in metric_columns("runs") if METRICS[column.metric].needs in ("texts", "text weights")}


LABELLED = {column.name for column in metric_columns("runs") if METRICS[column.metric].needs == "labelled images"}
ON_REQUEST = {
    "activation_change_last",
    *(column.name for column in metric_columns("runs") if column.metric in ("activation_change", "modality_gap")),
}
"""What nobody has asked for here, or given the texts for."""

CLOUD = {
    column.name
    for column in metric_columns("runs")
    if column.metric in ("effective_rank", "mean_cosine", "procrustes_residual")
}
CLOUD_WITHOUT = {"one image": CLOUD, "an embedding of zero": {"mean_cosine_final", "mean_cosine_change_pct"}}
"""Of the metrics of all embeddings together, those that have no value."""


def _equal_images(snapshot: Snapshot) -> Snapshot:
    return Snapshot(snapshot.structure, snapshot.hidden[:, :1].expand_as(snapshot.hidden), snapshot.embeddings)


def _one_block(snapshot: Snapshot) -> Snapshot:
    hidden = snapshot.hidden.clone()
    hidden[1] = hidden[1, :1]
    return Snapshot(snapshot.structure, hidden, snapshot.embeddings)


def _no_embedding(snapshot: Snapshot) -> Snapshot:
    embeddings = snapshot.embeddings.clone()
    embeddings[2] = 0
    return Snapshot(snapshot.structure, snapshot.hidden, embeddings)


def _few(images: int) -> Callable[[Snapshot], Snapshot]:
    return lambda snapshot: Snapshot(snapshot.structure, snapshot.hidden[:, :images], snapshot.embeddings[:images])


NOTHING_TO_COMPARE = {
    "all images alike": (_equal_images, ("cka_mean", "cka_last", "cka_debiased_mean"), "undefined"),
    "alike in one block": (_one_block, ("cka_mean", "cka_debiased_mean"), "undefined"),
    "an embedding of zero": (_no_embedding, ("embedding_drift",), "no direction"),
    "one image": (_few(1), ("cka_mean", "cka_last", "cka_debiased_mean"), "needs at least"),
    "two images": (_few(2), ("cka_debiased_mean",), "needs at least 4"),
    "three images": (_few(3), ("cka_debiased_mean",), "needs at least 4"),
}


@pytest.mark.parametrize("case", NOTHING_TO_COMPARE)
def test_what_has_no_value_is_none_with_its_reason_and_everything_else_has_one(
    case: str, pair: tuple[CLIPModel, CLIPModel]
) -> None:
    """The monitor raises for the same states: a training has something to stop for."""
    collapse, names, words = NOTHING_TO_COMPARE[case]
    pixels = torch.randn(6, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    before, after = (take_snapshot(model, [pixels]) for model in pair)
    if "image" in case and case != "all images alike":
        before = collapse(before)
    drift = compare_snapshots(before, collapse(after), strict=False)
    reasons = {column.name: drift.reason(column) for column in metric_columns("runs")}
    values = drift.columns("runs") | {"cka_last": drift.cka_last}
    without = {name for name, value in values.items() if value is None}
    assert without - CLOUD == {*names, "weight_drift", "projection_drift", *ON_REQUEST, *LABELLED, *TEXT}
    assert without & CLOUD == CLOUD_WITHOUT.get(case, set())
    assert all(reasons[name] == "what was measured is no finite number" for name in without & CLOUD)
    assert all(words in reasons[name] for name in names)
    assert drift.line()
    assert all(value is None or isinstance(value, float) for value in drift.layers()["cka"]["layer"])
    with pytest.raises((ValueError, DivergedError)):
        compare_snapshots(before, collapse(after))


def test_images_that_are_alike_leave_a_whole_comparison_with_reasons(
    pair: tuple[CLIPModel, CLIPModel], photos: Path, tmp_path: Path
) -> None:
    for name in "abcd":
        shutil.copy(photos / "0.png", tmp_path / f"{name}.png")
    found = compare_models(*pair, tmp_path)
    assert set(found.reasons) == {name for name, value in found.summary.items() if value is None}
    assert found.summary["embedding_drift"] is not None
    assert [row["cka"] for row in found.layers] == [None] * 3


def _constant(x: Tensor, y: Tensor) -> Tensor:
    raise ValueError("there is nothing to measure")


def test_a_metric_that_refuses_and_one_that_is_no_number_are_none(
    pair: tuple[CLIPModel, CLIPModel], photos: Path, registry: Any
) -> None:
    facts = {"label": "x", "meaning": "x", "source": "a test", "worse": "higher", "pretrained": 0.0}
    registry.register(Metric(name="refusing", compute=_constant, needs="embeddings", **facts))
    registry.register(Metric(name="endless", compute=lambda x, y: x.sum() * torch.nan, needs="hidden states", **facts))
    found = compare_models(*pair, photos)
    assert found.summary["refusing"] is found.summary["endless_mean"] is found.summary["endless_last"] is None
    assert found.reasons["refusing"] == "there is nothing to measure"
    assert found.reasons["endless_mean"] == "what was measured is no finite number"
