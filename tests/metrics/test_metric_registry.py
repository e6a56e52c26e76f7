"""The registry of metrics: its facts, and a metric of somebody else that appears wherever metrics do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from attndrift.analysis.measures import outcomes
from attndrift.analysis.signal_sources import signals
from attndrift.drift import ActivationChange, Alert, DriftMonitor, DriftWatch, watchable
from attndrift.guard.budget import Budget
from attndrift.metrics import METRICS, Metric
from attndrift.registry import UnknownNameError
from attndrift.results.columns import metric_columns
from attndrift.results.tables import read_tables, schema
from attndrift.trackers import scalars


def test_facts_are_whole_and_need_no_torch() -> None:
    code = (
        "import sys; from attndrift.metrics import METRICS; from attndrift.results.columns import metric_columns;"
        "facts = [(m.name, m.label, m.meaning, m.source, m.range, m.cost) for m in METRICS];"
        "columns = metric_columns('runs') + metric_columns('history');"
        "assert len(facts) >= 12 and all(all(one) for one in facts) and columns, facts;"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_functions_are_those_that_the_facts_name() -> None:
    row, x = torch.tensor([0.5, 0.5]), torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert float(METRICS["erf95"].function(row)) == 1.0
    assert float(METRICS["cka_debiased"].function(x, x)) == pytest.approx(1)
    assert float(METRICS["embedding_distance"].function(x, 3 * x)) == pytest.approx(2)
    assert all(callable(metric.function) for metric in METRICS if metric.compute is not None)


def test_what_a_metric_of_the_reference_itself_is() -> None:
    pixels = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    model = _model()
    drift = DriftMonitor(model, pixels, activations=ActivationChange(model, pixels)).measure()
    for column in metric_columns("history"):
        pretrained = METRICS[column.metric].pretrained
        if METRICS[column.metric].needs.startswith(("text", "labelled")):
            assert drift.values()[column.name] is None, "nothing of a text side is trained, and no labels are given"
        elif pretrained is not None and column.name != "projection_drift":  # this model has none
            assert drift.values()[column.name] == pytest.approx(pretrained, abs=1e-9), column.name


def test_an_unknown_name_gives_one_near_match() -> None:
    with pytest.raises(UnknownNameError, match=r"there is no metric `entrpy`; did you mean `entropy`\?$"):
        METRICS["entrpy"]
    with pytest.raises(ValueError, match=r"alert: there is no metric `cka_meen`; did you mean `cka_mean`\?$"):
        Alert("cka_meen", below=0.9)
    with pytest.raises(ValueError, match="give `pretrained`"):
        Metric("moved", lambda x, y: 0.0, "embeddings", "Moved", "how far", "a test", "higher")


def top_share(attention: Tensor) -> Tensor:
    return attention.amax(-1)


def shrinkage(before: Tensor, after: Tensor) -> Tensor:
    return 1 - after.norm() / before.norm()


def _model() -> CLIPVisionModel:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    return CLIPVisionModel(config)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three metrics of somebody else, for one test."""
    METRICS.names()
    monkeypatch.setattr(METRICS, "_members", dict(METRICS._members))
    monkeypatch.setattr(METRICS, "_origins", dict(METRICS._origins))
    METRICS.register(
        Metric(
            "top_share", top_share, "attention", "Largest share", "attention of the patch that has most", "a test",
            "higher", low=0.0, high=1.0,
        )
    )  # fmt: skip
    for name, needs in (("state_shrinkage", "hidden states"), ("shrinkage", "embeddings")):
        METRICS.register(
            Metric(name, shrinkage, needs, name.capitalize(), "loss of norm", "a test", "higher", pretrained=0.0)
        )  # type: ignore[arg-type]


def test_a_registered_metric_appears_wherever_metrics_do(registered: None, tmp_path: Path) -> None:
    model, pixels = _model(), torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    monitor = DriftMonitor(model, pixels)
    alerts = [Alert("top_share_change_pct", above=0.0), Alert("shrinkage", below=-10.0)]
    watch = DriftWatch(monitor, every=1, alerts=alerts, folder=tmp_path, echo=None)
    watch.start()
    with torch.no_grad():
        for block in model.vision_model.encoder.layers if hasattr(model, "vision_model") else model.encoder.layers:
            block.self_attn.q_proj.weight.mul_(8)
    watch.measure(1)
    watch.finish()

    drift = watch.drift[-1][1]
    names = {"top_share", "top_share_change_pct", "state_shrinkage_mean", "shrinkage"}
    assert names <= set(watchable())
    assert names <= set(drift.values())
    assert Budget("shrinkage", at_most=0.5).read(drift).met
    assert [event.metric for event in watch.alerts] == ["top_share_change_pct"]
    assert drift.top_share_change_pct > 0
    flat = scalars(drift.row())
    assert {"drift/top_share", "drift_top_share/layer_02", "drift_state_shrinkage/layer_01"} <= set(flat)

    tables = read_tables(tmp_path)
    assert tables.history["top_share"].iloc[-1] == drift.top_share
    layers = tables.layers[(tables.layers["metric"] == "top_share") & (tables.layers["step"] == 1)]
    assert layers["head"].isna().sum() == 2
    assert layers[layers["head"].isna()]["value"].mean() == pytest.approx(drift.top_share)
    run = tables.runs.iloc[0]
    change = 100 * (run["top_share_final"] / run["top_share_baseline"] - 1)
    assert run["top_share_change_pct"] == pytest.approx(change)
    assert run["shrinkage"] == drift.shrinkage
    assert pd.notna(run["state_shrinkage_mean"])

    columns = {column.name: column for column in schema("runs")}
    assert (columns["top_share_final"].low, columns["top_share_final"].high) == (0.0, 1.0)
    assert {"top_share_change_pct", "shrinkage"} <= {measure.name for measure in outcomes([])}
    signs = {signal.name: signal.expected_sign for signal in signals()}
    assert signs["top_share_change"] == signs["shrinkage"] == -1


def test_a_metric_that_gives_no_such_values_is_told(registered: None) -> None:
    METRICS.register(Metric("flat", lambda rows: rows, "attention", "Flat", "nothing", "a test", "lower"))
    with pytest.raises(ValueError, match=r"metric `flat`: of attention .* it must give"):
        DriftMonitor(_model(), torch.randn(4, 3, 16, 16))
