"""Drift in a notebook: what is drawn is what was measured, and what a notebook shows instead of a line."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib import pyplot
from PIL import Image

from attndrift import Budget, DriftMonitor, Guard
from attndrift.analysis.core import analyze
from attndrift.drift import Alert, DriftWatch
from attndrift.models import load_model
from attndrift.results.tables import read_tables, write_tables
from benchmarks.synthetic import synthetic_tables

STEPS = 3


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    pyplot.close("all")


def _trained(monitor: DriftMonitor, after_step: Any) -> None:
    torch.manual_seed(0)
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            for parameter in monitor.model.vision_model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        after_step(step)


@pytest.fixture
def monitor() -> DriftMonitor:
    images = torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    return DriftMonitor(load_model("config:tiny"), images)


def test_a_monitor_draws_what_it_has_measured_over_the_steps(monitor: DriftMonitor) -> None:
    with pytest.raises(ValueError, match="nothing has been measured yet"):
        monitor.plot()
    with DriftWatch(monitor, every=1, echo=None) as watch:
        _trained(monitor, watch.step)
    panels = {panel.get_ylabel().partition("\n")[0]: panel for panel in monitor.plot()}
    line = panels["CKA, mean over blocks"].get_lines()[0]
    assert list(line.get_xdata()) == [step for step, _ in watch.drift] == [0, 1, 2, 3]
    assert list(line.get_ydata()) == pytest.approx([drift.cka_mean for _, drift in watch.drift])


def test_a_monitor_draws_every_block_against_every_block(monitor: DriftMonitor) -> None:
    panel = monitor.plot_cross_layer_cka()
    shown = panel.get_images()[0].get_array()
    assert shown.shape == (3, 3)
    assert shown.diagonal().tolist() == pytest.approx([1, 1, 1])
    _trained(monitor, lambda step: None)
    values = monitor.cross_layer_cka()
    assert values.diagonal().tolist() == pytest.approx(monitor.measure().compared["cka_debiased"].tolist(), abs=1e-6)
    assert monitor.cross_layer_cka(debiased=False).min() >= 0
    square = pyplot.figure().subplots()
    assert monitor.plot_cross_layer_cka(square).get_xlabel() == "Block of the adapted model"


def test_a_monitor_draws_no_state_that_a_guard_only_tried(monitor: DriftMonitor) -> None:
    guard = Guard(monitor, Budget("cka_mean", at_least=0.995), every=1)
    with DriftWatch(monitor, every=1, guard=guard, echo=None) as watch:
        _trained(monitor, watch.step)
    assert {event.action for event in guard.events} > {"rewound"}
    assert list(monitor.measured) == [step for step, _ in watch.drift]


def test_a_drift_draws_its_blocks_in_the_place_of_an_axes(monitor: DriftMonitor) -> None:
    _trained(monitor, lambda step: None)
    drift = monitor.measure()
    whole, (left, right) = pyplot.subplots(1, 2, layout="constrained")
    change, same = drift.plot(ax=left)
    assert {change.get_figure(root=True), same.get_figure(root=True)} == {whole}
    assert right in whole.axes
    drawn = {
        line.get_label(): list(line.get_ydata()) for line in change.get_lines() if not line.get_label().startswith("_")
    }
    assert drawn["Entropy"] == pytest.approx(drift.layer_change_pct("entropy").tolist())
    assert list(same.get_lines()[0].get_ydata()) == pytest.approx(drift.compared["cka"].tolist())


def test_a_watch_draws_anew_after_each_measurement(monitor: DriftMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, Any]] = []

    class Handle:
        def update(self, picture: Any) -> None:
            shown.append(("update", picture))

    def display(picture: Any, display_id: bool) -> Handle:
        shown.append(("new", picture))
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    with DriftWatch(monitor, every=1, echo=None, live=True, alerts=[Alert("cka_mean", below=0.5)]) as watch:
        _trained(monitor, watch.step)
    assert [kind for kind, _ in shown] == ["new", "update", "update", "update"]
    found, _ = DisplayFormatter().format(shown[-1][1])
    assert Image.open(io.BytesIO(found["image/png"])).size[0] > 600
    assert found["text/plain"].startswith("step 3: entropy")


def test_a_notebook_shows_a_table_of_a_drift_a_guard_and_an_analysis(monitor: DriftMonitor, tmp_path: Path) -> None:
    guard = Guard(monitor, Budget("cka_mean", at_least=0.999), every=1, echo=None)
    with guard:
        _trained(monitor, guard.step)
    tables = synthetic_tables(seeds=1, rates=3, datasets=("<eurosat>",), evaluations=2, layers=2)
    write_tables(tables, tmp_path)
    shown = {"drift": monitor.measure(), "guard": guard.report(), "analysis": analyze(read_tables(tmp_path))}
    pages = {name: DisplayFormatter().format(value)[0]["text/html"] for name, value in shown.items()}
    assert "<td>CKA, mean over blocks</td>" in pages["drift"]
    assert pages["guard"].count("<tr>") == 1 + len(guard.events)
    assert str(guard.report()).splitlines()[0].startswith("guard: "), "printed, it is the lines as ever"
    assert pages["analysis"].count("<tr>") == 1 + len(shown["analysis"].findings)
    for name, page in pages.items():
        assert page.startswith("<table>"), name
        assert "<eurosat>" not in page, "text is never markup"
        assert not re.search(r"<(script|img)", page)


def test_a_study_draws_its_front_and_any_figure(tmp_path: Path) -> None:
    write_tables(synthetic_tables(seeds=1, rates=3, datasets=("eurosat",), evaluations=2, layers=2), tmp_path)
    study = read_tables(tmp_path)
    _, grid = pyplot.subplots(1, 2, layout="constrained")
    front = study.plot(ax=grid[0])
    assert front.has_data() if not hasattr(front, "__len__") else all(panel.has_data() for panel in front)
    assert study.plot("fig6_lr_sweep", ax=grid[1]) is not None
