"""Every figure on a study of one seed and on one of three: drawn, legible, honest about its seeds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from collapse_study import attention_arrays, collapse_study
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from PIL import Image

from attndrift.analysis.core import analyze
from attndrift.analysis.result import Analysis, PendingAnalysis
from attndrift.analysis.settings import AnalysisSettings
from attndrift.figures.canvas import WIDTH
from attndrift.figures.draw import draw_figures
from attndrift.figures.drawers import Drawers
from attndrift.figures.registry import FIGURES, figure
from attndrift.figures.source import Drawing, NoData, Source
from attndrift.figures.style import LEAST_CONTRAST, SMALLEST, contrast, new_figure, styled, wrap
from attndrift.registry import UnknownNameError
from attndrift.report.blocks import Block
from attndrift.report.blocks import Text as Paragraph
from attndrift.report.build import write_report
from attndrift.report.page import Page
from attndrift.report.registry import SECTIONS, section
from attndrift.results.attention_maps import MapError, read_maps
from attndrift.results.tables import Tables
from benchmarks.synthetic import synthetic_tables

SEED_REPORT = [
    "fig2_baseline_structure",
    "fig3_triple_curve",
    "fig4_layer_entropy_heatmap",
    "fig5_fullft_vs_lora",
    "fig5b_fullft_vs_lora_pets",
    "fig6_lr_sweep",
    "fig7_collapse_vs_zeroshot",
    "fig8_regularization",
    "fig9_head_diversity",
    "extra_erf95_evolution",
    "extra_frozen_layers",
    "extra_lora_qkvo",
]
FURTHER = [
    "layer_change_heatmap",
    "statistical_summary",
    "training_dynamics",
    "metric_correlations",
    "convergence",
    "dose_response",
    "predictor_ranking",
    "pareto_front",
    "interpolation",
    "attention_maps",
    "transfer_matrix",
    "suite_front",
]


def _with_sweep(tables: Tables) -> Tables:
    rows = [
        {
            "run_id": run_id,
            "alpha": alpha,
            "test_accuracy": 0.1 + 0.85 * alpha,
            "transfer_cifar100_zero_shot_accuracy": 0.6 - 0.4 * alpha,
            "entropy_change_pct": alpha,
            "embedding_drift": 0.7 * alpha,
        }
        for run_id in tables.runs.loc[tables.runs["method"] != "none", "run_id"].iloc[:2]
        for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    return Tables(_with_second_set(tables.runs), tables.history, tables.layers, pd.DataFrame(rows))


def _with_second_set(runs: pd.DataFrame) -> pd.DataFrame:
    """A second transfer set, on which half as much is lost."""
    kept = 50 + runs["transfer_cifar100_zero_shot_retention_pct"] / 2
    return runs.assign(
        transfer_objects_zero_shot_accuracy=0.4 * kept / 100,
        transfer_objects_zero_shot_pretrained=0.4,
        transfer_objects_zero_shot_retention_pct=kept,
        transfer_objects_zero_shot_n=1000,
    )


@pytest.fixture(scope="module", params=["one seed", pytest.param("three seeds", marks=pytest.mark.slow)])
def source(request: pytest.FixtureRequest) -> Source:
    if request.param == "one seed":
        tables = collapse_study()
    else:
        # The longest names that a study is likely to have, and the trouble that they make.
        tables = collapse_study(seeds=(1, 2, 3), selection="validation", names=("$a_b^c$ <i>", "second_very_long_name"))
    names = tables.runs.loc[tables.runs["method"].isin(["full", "lora"]), "run_id"]
    maps = {str(name): attention_arrays(seed=place) for place, name in enumerate(names)}
    return Source(_with_sweep(tables), maps)


@pytest.fixture(scope="module")
def drawings(source: Source) -> dict[str, Drawing]:
    with styled():
        drawn = {spec.name: spec.draw(source) for spec in FIGURES}
        for drawing in drawn.values():
            drawing.figure.canvas.draw()
        return drawn


def test_all_figures_are_listed() -> None:
    assert sorted(FIGURES.names()) == sorted(SEED_REPORT + FURTHER)
    for spec in FIGURES:
        assert len(spec.alt) > 30
        assert spec.section in ("baseline", "rq1", "rq2", "rq3", "rq4", "rq5", "sets")


def _texts(figure: Figure) -> Iterator[Text]:
    """Every text that is drawn; ticks outside the limits of their axis exist but are not."""
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        if axes.axison:
            for axis in (axes.xaxis, axes.yaxis):
                yield from _drawn_labels(axis)
                yield axis.label
        yield from (axes.title, axes._left_title, axes._right_title, *axes.texts)
    for legend in figure.findobj(Legend):
        yield from (*legend.get_texts(), legend.get_title())
    yield from figure.texts


@pytest.mark.parametrize("name", SEED_REPORT + FURTHER)
def test_fits_a_column_and_can_be_read(drawings: dict[str, Drawing], name: str) -> None:
    figure = drawings[name].figure
    assert figure.get_size_inches()[0] == pytest.approx(WIDTH) == pytest.approx(85 / 25.4)
    assert figure.get_size_inches()[1] < 235 / 25.4
    renderer = figure.canvas.get_renderer()
    frame = figure.bbox.padded(0.5)
    for text in _texts(figure):
        assert text.get_fontsize() >= SMALLEST, text.get_text()
        if not text.get_visible() or not text.get_text().strip():
            continue
        box = text.get_window_extent(renderer)
        assert frame.x0 <= box.x0, f"{text.get_text()!r} leaves the figure"
        assert box.x1 <= frame.x1, f"{text.get_text()!r} leaves the figure"
        assert frame.y0 <= box.y0, f"{text.get_text()!r} leaves the figure"
        assert box.y1 <= frame.y1, f"{text.get_text()!r} leaves the figure"


def _drawn_labels(axis: Any) -> list[Text]:
    renderer = axis.figure.canvas.get_renderer()
    ticks = axis._update_ticks()
    labels = [label for tick in ticks for label in (tick.label1, tick.label2) if label.get_visible()]
    return [label for label in labels if label.get_text() and label.get_window_extent(renderer).width > 0]


@pytest.mark.parametrize("name", SEED_REPORT + FURTHER)
def test_nothing_overlaps(drawings: dict[str, Drawing], name: str) -> None:
    figure = drawings[name].figure
    renderer = figure.canvas.get_renderer()
    boxes: list[tuple[str, Any]] = []
    for axes in figure.axes:
        if not axes.get_visible() or not axes.axison:
            continue
        for axis in (axes.xaxis, axes.yaxis):
            labels = [text for text in _drawn_labels(axis) if axis.get_visible()]
            boxes += [(text.get_text(), text.get_window_extent(renderer)) for text in labels]
            if axis.label.get_text():
                boxes.append((axis.label.get_text(), axis.label.get_window_extent(renderer)))
        for title in (axes.title, axes._left_title, axes._right_title):
            if title.get_text():
                boxes.append((title.get_text(), title.get_window_extent(renderer)))
    # Half a point of slack: the box of a rotated or an italic letter is larger than its ink.
    slack = -0.5 * figure.dpi / 72
    for (first, a), (second, b) in combinations(boxes, 2):
        assert not a.padded(slack).overlaps(b.padded(slack)), f"{first!r} overlaps {second!r}"
    for legend in figure.findobj(Legend):
        box = legend.get_window_extent(renderer)
        for axes in figure.axes:
            if axes.get_visible() and axes.axison:
                assert not box.padded(slack).overlaps(axes.get_window_extent(renderer)), "the legend hides data"
        for text, other in boxes:
            assert not box.padded(slack).overlaps(other), f"the legend hides {text!r}"


@pytest.mark.parametrize("name", SEED_REPORT + FURTHER)
def test_title_names_dataset_and_model_above_everything(
    drawings: dict[str, Drawing], source: Source, name: str
) -> None:
    figure = drawings[name].figure
    title, place = figure.texts[-2:]
    assert title.get_text() == FIGURES[name].title
    assert title.get_fontweight() == "bold"
    shown = source.secondary if name.startswith("fig5b") else source.primary
    assert wrap(shown, 21, 1)[:6].rstrip("…") in place.get_text()
    assert source.model in place.get_text() or place.get_text().endswith("…")
    renderer = figure.canvas.get_renderer()
    below = place.get_window_extent(renderer).y0
    for text in _texts(figure):
        if text not in (title, place) and text.get_text().strip() and text.get_visible():
            assert text.get_window_extent(renderer).y1 <= below + 0.5, text.get_text()


@pytest.mark.parametrize("name", SEED_REPORT + FURTHER)
def test_every_mark_is_seen_on_white(drawings: dict[str, Drawing], name: str) -> None:
    checked = 0
    for axes in drawings[name].figure.axes:
        for line in axes.lines:
            if line.get_visible() and (line.get_linestyle() != "None" or line.get_marker() not in ("None", None, "")):
                assert contrast(line.get_color()) >= LEAST_CONTRAST, (line.get_color(), name)
                assert line.get_alpha() in (None, 1)
                checked += 1
    assert checked or name in (
        "fig4_layer_entropy_heatmap",
        "layer_change_heatmap",
        "metric_correlations",
        "attention_maps",
    )


def test_names_of_points_touch_neither_each_other_nor_a_mark(drawings: dict[str, Drawing]) -> None:
    figure = drawings["pareto_front"].figure
    renderer = figure.canvas.get_renderer()
    named = 0
    for axes in figure.axes:
        boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]  # without their lines
        named += len(boxes)
        assert not any(a.overlaps(b) for a, b in combinations([box.padded(-1) for box in boxes], 2))
        for line in axes.lines:
            if line.get_marker() in ("None", None, ""):
                continue
            for point in axes.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()])):
                assert not any(box.padded(-1).contains(*point) for box in boxes)
    assert named >= 4


def test_the_ranking_shows_the_signal_that_the_first_screen_names(drawings: dict[str, Drawing], source: Source) -> None:
    finding = next(one for one in source.analysis.digest.findings if one.topic == "warning")
    signal = source.analysis.tables["signals"].rows[finding.rows[0]]["signal"]
    assert signal in set(drawings["predictor_ranking"].data["signal"])
    labels = drawings["predictor_ranking"].figure.axes[0].get_yticklabels()
    bold = [place for place, label in enumerate(labels) if label.get_fontweight() == "bold"]
    assert bold == [list(drawings["predictor_ranking"].data["signal"]).index(signal)]


_NO_SEEDS = {"fig2_baseline_structure", "attention_maps"}


@pytest.mark.parametrize("name", SEED_REPORT + FURTHER)
def test_one_seed_is_marked_and_captions_tell_n(drawings: dict[str, Drawing], source: Source, name: str) -> None:
    drawing = drawings[name]
    single = source.analysis.data.single_seed
    words = " ".join(text.get_text() for text in _texts(drawing.figure))
    if single and name not in _NO_SEEDS:
        assert "one seed" in words
    elif not single and name not in _NO_SEEDS | {"interpolation"}:
        assert "one seed" not in words
    caption = drawing.caption
    assert "n = " in caption or "seeds)" in caption, caption
    assert ("Selection `test`" in caption) == single
    assert len(drawing.data)
    assert caption.rstrip().endswith(".")


def test_colours_and_deviations_are_the_data(source: Source) -> None:
    """The table beside a figure equals an independent reading of the runs."""
    with styled():
        data = FIGURES["fig6_lr_sweep"].draw(source).data
    runs = source.tables.runs
    chosen = runs[
        (runs["dataset"] == source.primary)
        & (runs["method"] == "full")
        & runs["loss"].isna()
        & runs["freeze_layers"].isna()
        & (runs["weight_decay"] == 0.01)
    ]
    for rate, own in chosen.groupby("learning_rate"):
        row = data[(data["measure"] == "gini_change_pct") & (data["learning_rate"] == rate)].iloc[0]
        assert row["mean"] == pytest.approx(own["gini_change_pct"].mean())
        assert row["n"] == len(own)
        if len(own) > 1:
            assert row["sd"] == pytest.approx(np.std(own["gini_change_pct"], ddof=1))
        else:
            assert np.isnan(row["sd"])
    assert data["learning_rate"].nunique() == 5


def test_changes_are_centred_on_zero(drawings: dict[str, Drawing]) -> None:
    for name in ("fig4_layer_entropy_heatmap", "layer_change_heatmap"):
        meshes = [
            item for axes in drawings[name].figure.axes for item in axes.collections if item.get_array() is not None
        ]
        norms = [mesh.norm for mesh in meshes if hasattr(mesh.norm, "vcenter")]
        assert norms
        for norm in norms:
            assert norm.vcenter == 0
            assert norm.vmin == -norm.vmax


@pytest.mark.slow
def test_figures_that_are_drawn_side_by_side_are_the_same(tmp_path: Path) -> None:
    """Those that need the analysis too, though other processes begin before it is there."""
    tables = collapse_study()
    only = ["fig6_lr_sweep", "statistical_summary", "interpolation", "pareto_front", "fig2_baseline_structure"]
    asked: list[int] = []

    def make() -> Analysis:
        asked.append(os.getpid())
        return analyze(tables)

    pending = PendingAnalysis(AnalysisSettings(), make)
    with Drawers(3) as drawers:
        several = draw_figures(tables, tmp_path / "several", only=only, analysis=pending, drawers=drawers)
        for place in range(6):
            for one in draw_figures(tables, tmp_path / str(place), only=only, analysis=pending, drawers=drawers):
                assert {path.parent for path in one.files} <= {tmp_path / str(place)}
    assert asked == [os.getpid()], "the analysis is made once, here"
    alone = draw_figures(tables, tmp_path / "alone", only=only, analysis=pending)
    assert [(one.name, one.caption, one.left_out) for one in several] == [
        (one.name, one.caption, one.left_out) for one in alone
    ]
    for path in (tmp_path / "alone").iterdir():
        assert path.read_bytes() == (tmp_path / "several" / path.name).read_bytes(), path.name


@pytest.mark.slow
def test_files_are_complete_equal_and_indexed(tmp_path: Path) -> None:
    tables = collapse_study()
    only = ["fig6_lr_sweep", "fig2_baseline_structure", "interpolation"]
    first = draw_figures(tables, tmp_path / "a", only=only)
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": "other"}):
        draw_figures(tables, tmp_path / "b", only=only)
    assert [result.name for result in first] == ["fig6_lr_sweep", "fig2_baseline_structure", "interpolation"]
    for result in first[:2]:
        assert [path.suffix for path in result.files] == [".png", ".svg", ".csv"]
        for path in result.files:
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
        with Image.open(result.files[0]) as image:
            assert image.width == pytest.approx(300 * 85 / 25.4, abs=1)
            assert image.info["dpi"][0] == pytest.approx(300, abs=0.5)
        assert b"<dc:date>" not in result.files[1].read_bytes()
        assert len(pd.read_csv(result.files[2])) > 0
    assert first[2].left_out is not None
    assert "attndrift interpolate" in first[2].left_out
    index = json.loads((tmp_path / "a" / "index.json").read_text())
    assert index["interpolation"]["left_out"] == first[2].left_out
    assert index["fig6_lr_sweep"]["caption"] == first[0].caption
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(
        ["index.json"] + [path.name for result in first for path in result.files]
    )


def test_a_figure_without_data_takes_its_old_files_away(tmp_path: Path) -> None:
    tables = collapse_study()
    name = "fig2_baseline_structure"
    draw_figures(tables, tmp_path, only=[name])
    assert (tmp_path / f"{name}.png").is_file()
    bare = Tables(tables.runs, tables.history)
    (result,) = draw_figures(bare, tmp_path, only=[name])
    assert result.left_out is not None
    assert "layers" in result.left_out
    assert not list(tmp_path.glob(f"{name}*"))


def test_an_unknown_figure_gives_one_near_match(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"there is no figure `fig6_lr`; did you mean `fig6_lr_sweep`\?$"):
        draw_figures(collapse_study(), tmp_path, only=["fig6_lr"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "runs",
    [
        pd.DataFrame({"run_id": [], "dataset": [], "method": [], "seed": []}),
        pd.DataFrame({"run_id": ["a"], "dataset": ["d"], "method": ["none"], "seed": [0]}),
        pd.DataFrame({"run_id": ["a"], "dataset": ["d"], "method": ["full"], "seed": [0], "status": ["diverged"]}),
        pd.DataFrame({"run_id": ["a"], "dataset": ["d"], "method": ["full"], "seed": [0], "test_accuracy": [0.5]}),
        pd.DataFrame(
            {
                "run_id": ["a", "b"],
                "dataset": ["d", "d"],
                "method": ["full", "mine"],
                "seed": [0, 0],
                "learning_rate": [1e-3, 1e-3],
                "test_accuracy": [0.5, 0.6],
                "entropy_change_pct": [0.0, 0.0],
                "entropy_last_layer_change_pct": [0.0, 0.0],
                "transfer_x_zero_shot_retention_pct": [100.0, 100.0],
            }
        ),
    ],
    ids=["no runs", "baseline only", "diverged", "accuracy only", "constant"],
)
def test_poor_tables_leave_figures_out_with_a_reason(tmp_path: Path, runs: pd.DataFrame) -> None:
    results = draw_figures(Tables(runs), tmp_path)
    assert len(results) == len(FIGURES)
    for result in results:
        assert (result.left_out is None) == bool(result.files)
        if result.left_out is not None:
            assert len(result.left_out) > 10
    assert {result.name for result in results if result.left_out} >= {"fig2_baseline_structure", "interpolation"}


def test_other_models_and_protocols_are_named_not_mixed() -> None:
    tables = synthetic_tables(seeds=2, rates=3)
    other = tables.runs.copy().iloc[:5]
    other["run_id"] = other["run_id"] + "_other"
    other["model"] = "another-vit"
    source = Source(Tables(pd.concat([tables.runs, other]), tables.history, tables.layers))
    assert source.model == "synthetic-vit"
    with styled():
        drawing = FIGURES["dose_response"].draw(source)
    assert "Model synthetic-vit only; 5 runs of another model are not shown." in drawing.caption
    assert set(drawing.data["n"]) == {2}


def test_maps_are_checked(tmp_path: Path) -> None:
    good = attention_arrays(images=2)
    np.savez(tmp_path / "maps.npz", **good)
    assert read_maps(tmp_path / "maps.npz").grid == (7, 7)
    for change, words in (
        ({"grid": np.array([7, 6])}, "does not hold the 49 patches"),
        ({"after": good["after"][:1]}, "must both be"),
        ({"images": good["images"].astype(np.float32)}, "must be uint8"),
        ({"ids": good["ids"][:1]}, "one for each"),
    ):
        with pytest.raises(MapError, match=words):
            read_maps(good | change)
    (tmp_path / "maps.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(MapError, match=r"maps\.npz: not a file of attention maps"):
        read_maps(tmp_path / "maps.npz")
    with pytest.raises(NoData):
        FIGURES["attention_maps"].draw(Source(collapse_study(), None))


def test_labels_keep_their_length() -> None:
    assert wrap("a" * 100, 10, 2).count("\n") == 1
    assert max(len(line) for line in wrap("word " * 40, 12, 3).split("\n")) <= 12
    assert wrap("LoRA r=8, frozen projection\u00a0·\u00a01e-4", 20).split("\n")[-1].endswith("·\u00a01e-4")


def test_one_run_carries_the_interval_over_its_images(source: Source) -> None:
    with styled():
        drawing = FIGURES["extra_frozen_layers"].draw(source)
    accuracy = drawing.data[drawing.data["measure"] == source.accuracy].set_index("frozen")
    if not source.analysis.data.single_seed:
        assert accuracy["low"].isna().all()
        assert "where there is one run" not in drawing.caption
        return
    assert "95% intervals over the test images" in drawing.caption
    # Wilson's score interval: the shares at which the observed one is 1.96 standard errors away.
    share, n = accuracy["mean"].iloc[0], float(source.adapted["n_test"].iloc[0])
    for limit in (accuracy["low"].iloc[0], accuracy["high"].iloc[0]):
        assert abs(share - limit) / np.sqrt(limit * (1 - limit) / n) == pytest.approx(1.959964, abs=1e-4)
    changes = drawing.data[drawing.data["measure"] == "entropy_change_pct"]
    assert changes["low"].isna().all()


def test_entropy_of_all_blocks_and_of_the_last_share_a_scale(drawings: dict[str, Drawing]) -> None:
    for name in ("fig5_fullft_vs_lora", "fig8_regularization", "extra_lora_qkvo"):
        panels = {panel.get_xlabel().replace("\n", " "): panel.get_xlim() for panel in drawings[name].figure.axes}
        assert panels["Entropy change (%)"] == panels["Entropy change, last block (%)"], name


def test_runs_of_one_time_stand_side_by_side(drawings: dict[str, Drawing]) -> None:
    panel = drawings["convergence"].figure.axes[0]
    marks = [
        (round(float(x), 6), round(float(y), 6))
        for line in panel.lines
        if line.get_marker() in ("o", "v")
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    ]
    assert len(marks) == len(set(marks)) > 1


def test_the_page_on_figures_lists_them_all() -> None:
    page = (Path(__file__).parents[2] / "docs" / "figures.md").read_text(encoding="utf-8")
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(listed) == sorted(FIGURES.names())


def test_a_registered_figure_is_drawn_and_stands_in_its_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FIGURES.names()
    monkeypatch.setattr(FIGURES, "_members", dict(FIGURES._members))
    monkeypatch.setattr(FIGURES, "_origins", dict(FIGURES._origins))

    @figure("accuracies", title="All accuracies", section="rq2", alt="Dots: one accuracy a run.", needs=("history",))
    def accuracies(source: Source) -> Drawing:
        drawn, axes = new_figure(40)
        axes[0, 0].plot(source.adapted["test_accuracy"], "o")
        return Drawing(drawn, "Every accuracy.", source.adapted[["run_id", "test_accuracy"]])

    tables = collapse_study()
    (result,) = draw_figures(tables, tmp_path / "figures", only=["accuracies"])
    assert [path.suffix for path in result.files] == [".png", ".svg", ".csv"]
    _, page = write_report(tmp_path, analysis=analyze(tables), figures=[result], tables=tables)
    text = page.read_text(encoding="utf-8")
    further = text[text.index('id="figures"') : text.index('id="method"')]
    assert 'alt="All accuracies. Dots: one accuracy a run."' in further
    (bare,) = draw_figures(Tables(tables.runs), tmp_path / "bare", only=["accuracies"])
    assert bare.left_out == "there is no table `history`, or it has no rows"


def test_a_registered_section_stands_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SECTIONS.names()
    monkeypatch.setattr(SECTIONS, "_members", dict(SECTIONS._members))
    monkeypatch.setattr(SECTIONS, "_origins", dict(SECTIONS._origins))

    @section("costs", title="What it cost", order=450)
    def costs(page: Page) -> list[Block]:
        return [Paragraph(f"{len(page.tables.runs)} runs.")]

    section("silent", title="Nothing", order=460)(lambda page: [])
    tables = collapse_study()
    markdown, page = write_report(tmp_path, analysis=analyze(tables), tables=tables)
    headings = [line for line in markdown.read_text(encoding="utf-8").splitlines() if line.startswith("## ")]
    assert headings.index("## What it cost") == headings.index("## All runs") - 1
    assert "## Nothing" not in headings
    assert f"{len(tables.runs)} runs." in page.read_text(encoding="utf-8")
