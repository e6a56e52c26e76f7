"""The files of figures in the forms and widths of papers, and figures in a notebook's own axes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collapse_study import collapse_study
from matplotlib import pyplot

import attndrift.figures
from attndrift.analysis.core import analyze
from attndrift.analysis.result import Analysis
from attndrift.figures import NoData, draw_figures
from attndrift.figures.canvas import parse_width
from attndrift.results.tables import Tables

Study = tuple[Tables, Analysis]


@pytest.fixture(scope="module")
def study() -> Study:
    tables = collapse_study()
    return tables, analyze(tables)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    pyplot.close("all")


def test_a_figure_is_a_pdf_of_the_width_that_a_journal_wants(study: Study, tmp_path: Path) -> None:
    tables, analysis = study
    name = "pareto_front"
    draw_figures(tables, tmp_path, analysis=analysis, only=[name])
    assert {path.name for path in tmp_path.glob(f"{name}.*")} == {f"{name}.png", f"{name}.svg", f"{name}.csv"}
    written = []
    for _ in range(2):
        width = parse_width("170mm")
        (drawn,) = draw_figures(tables, tmp_path, analysis=analysis, only=[name], formats=["pdf"], width=width)
        written.append((tmp_path / f"{name}.pdf").read_bytes())
    assert [path.name for path in drawn.files] == [f"{name}.pdf", f"{name}.csv"]
    assert {path.name for path in tmp_path.glob(f"{name}.*")} == {f"{name}.pdf", f"{name}.csv"}, "no older form is left"
    assert written[0] == written[1], "equal tables give equal bytes"
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ", written[0])
    assert box is not None
    assert float(box[1]) == pytest.approx(170 / 25.4 * 72, abs=0.1)


def test_a_png_is_the_same_whichever_form_is_written_before_it(study: Study, tmp_path: Path) -> None:
    tables, analysis = study
    for forms in (["png"], ["svg", "png"], ["pdf", "png"]):
        draw_figures(tables, tmp_path / forms[0], analysis=analysis, only=["pareto_front"], formats=forms)
    first, *others = ((tmp_path / form / "pareto_front.png").read_bytes() for form in ("png", "svg", "pdf"))
    assert all(other == first for other in others)


@pytest.mark.parametrize("width", ["85", "mm", "85 px", "5mm", "900mm", "-85mm", "1e2mm"])
def test_another_width_is_refused_with_what_is_allowed(width: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(width)) + ".*60mm to 400mm, as 85mm"):
        parse_width(width)


def test_another_form_is_refused_before_anything_is_drawn(study: Study, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format is jpg; choose from png, svg, pdf"):
        draw_figures(study[0], tmp_path / "new", formats=["png", "jpg"])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "name", ["pareto_front", "fig6_lr_sweep", "metric_correlations", "fig3_triple_curve", "convergence"]
)
def test_a_figure_takes_the_place_of_an_axes_and_returns_its_own(study: Study, name: str) -> None:
    draw = getattr(attndrift.figures, name)
    whole, grid = pyplot.subplots(2, 2, figsize=(12, 10), layout="constrained")
    left_alone = [grid[0, 1], grid[1, 0], grid[1, 1]]
    found: Any = np.atleast_1d(draw(study[0], ax=grid[0, 0], analysis=study[1]))
    assert all(panel.has_data() for panel in found)
    assert {panel.get_figure(root=True) for panel in found} == {whole}
    assert [one for one in whole.axes if one in left_alone] == left_alone
    assert grid[0, 0] not in whole.axes
    for panel in found:
        box = panel.get_position(original=False)
        middle = panel.get_figure().transSubfigure.transform((box.x0 + box.width / 2, box.y0 + box.height / 2))
        assert (middle[0] < 600, middle[1] > 500) == (True, True), "within the upper left quarter"


def test_a_figure_of_its_own_is_one_that_a_notebook_shows(study: Study) -> None:
    panel = attndrift.figures.pareto_front(study[0], analysis=study[1])
    assert pyplot.get_fignums(), "of pyplot"
    assert all(one.get_xlabel() for one in np.atleast_1d(panel))
    assert "pareto_front" in dir(attndrift.figures)
    assert "retention" in (attndrift.figures.pareto_front.__doc__ or "")


def test_what_the_tables_do_not_hold_and_no_figure_are_said(study: Study) -> None:
    tables, analysis = study
    with pytest.raises(NoData, match="no table `history`"):
        attndrift.figures.fig3_triple_curve(
            Tables(tables.runs, tables.history.iloc[:0], tables.layers), analysis=analysis
        )
    with pytest.raises(AttributeError, match="did you mean `pareto_front`"):
        attndrift.figures.pareto_frnt  # noqa: B018


def test_a_figure_is_drawn_again_only_where_something_changed(tmp_path: Path) -> None:
    """Its inputs, its form, or a file of it: everything else is left as it lies."""
    tables = collapse_study()
    only = ["fig6_lr_sweep", "interpolation"]

    def drawn(tables: Tables = tables, **options: Any) -> set[str]:
        before = {path: path.stat().st_ino for path in tmp_path.glob("fig*")}
        results = draw_figures(tables, tmp_path, only=only, reuse=True, **options)
        assert [one.name for one in results] == only
        assert results[0].caption
        assert results[1].left_out
        return {path.suffix for path in tmp_path.glob("fig*") if before.get(path) != path.stat().st_ino}

    every = {".png", ".svg", ".csv"}
    assert drawn() == every
    index = (tmp_path / "index.json").read_bytes()
    assert drawn() == set()
    assert (tmp_path / "index.json").read_bytes() == index
    for change in ("changed", "removed"):
        path = tmp_path / "fig6_lr_sweep.csv"
        path.unlink() if change == "removed" else path.write_text("other numbers")
        assert drawn() == every
    assert drawn(width=5.0) == every
    assert drawn(width=5.0, formats=["png", "svg"]) == set()
    other = Tables(tables.runs.assign(test_accuracy=tables.runs["test_accuracy"] * 0.99), tables.history)
    assert drawn(other) == every
    (tmp_path / ".drawn.json").write_text("[damaged")
    assert drawn(other) == every
