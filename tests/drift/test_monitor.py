"""The monitor on a tiny CLIP: what it measures, and that it leaves the model as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import CLIPConfig, CLIPModel
from typer.testing import CliRunner

from attndrift import metrics
from attndrift.cli.main import app
from attndrift.drift import Alert, AlertEvent, Drift, DriftMonitor, DriftWatch, Snapshot, take_snapshot, watchable
from attndrift.drift.alerts import AlertBook
from attndrift.drift.measured_model import MeasuredModel
from attndrift.drift.snapshot import begin_snapshot
from attndrift.metrics.deferred import DeferredScalars
from attndrift.models import load_model
from attndrift.process_group import DivergedError
from attndrift.results.tables import TableError, read_tables


@pytest.fixture
def clip() -> CLIPModel:
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": 28, "patch_size": 7,
        },
        projection_dim=16,
    )  # fmt: skip
    return CLIPModel(config)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def test_an_unchanged_model_has_not_drifted(clip: CLIPModel, images: Tensor) -> None:
    drift = DriftMonitor(clip, images).measure()
    assert {value for name, value in drift.values().items() if name.endswith("_change_pct")} - {None} == {0.0}
    assert drift.embedding_drift == pytest.approx(0.0, abs=1e-7)
    assert drift.weight_drift == 0.0
    torch.testing.assert_close(drift.compared["cka"], torch.ones(3, dtype=torch.float64))


def test_a_changed_model_has(clip: CLIPModel, images: Tensor) -> None:
    monitor = DriftMonitor(clip, images)
    with torch.no_grad():
        for name, parameter in clip.vision_model.named_parameters():
            if "q_proj.weight" in name:
                parameter.mul_(30.0)
    drift = monitor.measure()
    assert drift.entropy_change_pct is not None
    assert drift.entropy_change_pct < -0.01
    assert drift.weight_drift is not None
    assert drift.weight_drift > 0.1
    row = drift.columns("history")
    before, after = monitor.reference.structure.mean("entropy"), row["entropy"]
    assert after is not None
    assert row["entropy_change_pct"] == pytest.approx(100 * (after - before) / before)


def test_a_measurement_waits_for_nothing_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on the meta device have no values, so whatever would fetch one to the host raises."""
    monkeypatch.setattr(DeferredScalars, "TOGETHER", frozenset({"meta"}))
    model, pixels = load_model("config:tiny"), torch.randn(6, 3, 28, 28)
    before = take_snapshot(model, [pixels])
    reference = Snapshot(before.structure, before.hidden.to("meta"), before.embeddings.to("meta"))
    under_way = begin_snapshot(MeasuredModel.of(model.to("meta")), pixels.to("meta").split(4))
    assert under_way.images == 6
    looked_at = []

    def weight_drift() -> tuple[float | None, float | None]:
        looked_at.append("weights")
        return None, None

    with pytest.raises(RuntimeError, match="meta"):
        under_way.drift(reference, weight_drift)
    assert looked_at, "something was waited for before the weights were looked at"
    with pytest.raises(RuntimeError, match="meta"):
        under_way.read()


def test_a_measurement_as_an_accelerator_makes_it_is_the_same(
    clip: CLIPModel, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = copy.deepcopy(clip)
    found = []
    for together in (frozenset({"cuda"}), frozenset({"cpu"})):
        monkeypatch.setattr(DeferredScalars, "TOGETHER", together)
        trained.load_state_dict(clip.state_dict())
        monitor = DriftMonitor(trained, images, batch_size=3)
        with torch.no_grad():
            for parameter in trained.vision_model.parameters():
                parameter += 0.01 * torch.arange(parameter.numel()).view_as(parameter).sin()
        found.append(monitor.measure())
        # Everything is represented alike.
        with torch.no_grad():
            trained.vision_model.embeddings.position_embedding.weight.zero_()
            trained.vision_model.embeddings.patch_embedding.weight.zero_()
        with pytest.raises(DivergedError, match="the hidden state is the same"):
            monitor.measure()
    with pytest.raises(DivergedError, match="not finite"):
        DriftMonitor(_broken(clip), images)
    here, there = found
    assert _measured(here) == pytest.approx(_measured(there), rel=1e-9, abs=1e-12)
    assert here.layers()["entropy"] == there.layers()["entropy"]
    torch.testing.assert_close(here.compared["cka_debiased"], there.compared["cka_debiased"], rtol=1e-9, atol=1e-9)


def test_a_diverged_model_is_called_so_before_its_weights_are_looked_at(clip: CLIPModel, images: Tensor) -> None:
    monitor = DriftMonitor(clip, images)
    _broken(clip)
    for _ in range(2):
        with pytest.raises(DivergedError, match=r"^the model's .* not finite"):
            monitor.measure()
    with pytest.raises(DivergedError, match="not finite"):
        DriftMonitor(clip, images)
    with pytest.raises(ValueError, match="looked at in vain"):
        DriftMonitor(load_model("config:tiny"), images, weight_drift=_in_vain).measure()


def _broken(clip: CLIPModel) -> CLIPModel:
    with torch.no_grad():
        clip.vision_model.encoder.layers[1].mlp.fc1.weight[0, 0] = torch.nan
    return clip


def _in_vain() -> tuple[float | None, float | None]:
    raise ValueError("looked at in vain")


def test_the_probe_may_come_in_any_batches(clip: CLIPModel, images: Tensor) -> None:
    whole = take_snapshot(clip, [images])
    for size in (1, 5, 8):
        parts = take_snapshot(clip, images.split(size))
        for name in ("entropy", "erf95", "gini", "head_diversity"):
            torch.testing.assert_close(parts.structure.heads(name), whole.structure.heads(name), atol=1e-6, rtol=0)
        torch.testing.assert_close(parts.embeddings, whole.embeddings, atol=1e-5, rtol=1e-5)


def test_nothing_of_the_model_is_touched(clip: CLIPModel, images: Tensor) -> None:
    clip.train()
    clip.text_model.eval()
    next(clip.parameters()).grad = torch.ones_like(next(clip.parameters()))
    flags = [module.training for module in clip.modules()]
    state, random = copy.deepcopy(clip.state_dict()), torch.get_rng_state()
    DriftMonitor(clip, images).measure()
    assert [module.training for module in clip.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in clip.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert float(next(clip.parameters()).grad.mean()) == 1.0
    assert all(p.grad is None for p in list(clip.parameters())[1:])


def test_numbers_that_are_not_finite_are_called_divergence(clip: CLIPModel, images: Tensor) -> None:
    monitor = DriftMonitor(clip, images)
    with torch.no_grad():
        clip.visual_projection.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match="not finite"):
        monitor.measure()


def _lora(model: CLIPModel, *, spread: float = 0.2, targets: str = "q_proj|v_proj", **settings: Any) -> Any:
    config = LoraConfig(r=2, lora_alpha=4, target_modules=rf".*vision_model.*\.({targets})", **settings)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=spread)
    return adapted


def _measured(drift: Drift) -> dict[str, float]:
    return {name: value for name, value in drift.values().items() if value is not None}


def _same(left: Drift, right: Drift, tolerance: float = 1e-6) -> None:
    first, second = _measured(left), _measured(right)
    assert first == pytest.approx(second, abs=tolerance, rel=tolerance)
    for name, values in left.layers().items():
        for kind, numbers in values.items():
            np.testing.assert_allclose(numbers, right.layers()[name][kind], atol=tolerance, rtol=tolerance)


# -- adapters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"targets": "q_proj|k_proj|v_proj|out_proj", "lora_dropout": 0.4},
        {"use_rslora": True},
        {"use_dora": True},
        {"modules_to_save": ["visual_projection", "post_layernorm"]},
    ],
)
def test_the_reference_under_adapters_is_the_bare_model(clip: CLIPModel, images: Tensor, options: dict) -> None:
    """Drift of a model that was wrapped first is that of one whose monitor was made before, and of the merged one."""
    before = DriftMonitor(copy.deepcopy(clip), images)
    adapted = _lora(clip, **options).train()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    trained = {name: parameter.requires_grad for name, parameter in adapted.named_parameters()}
    monitor = DriftMonitor(adapted, images)
    assert {name: parameter.requires_grad for name, parameter in adapted.named_parameters()} == trained
    torch.testing.assert_close(monitor.reference.embeddings, before.reference.embeddings)
    drift = monitor.measure()
    before.model.load_state_dict(copy.deepcopy(adapted).merge_and_unload().state_dict())
    merged = before.measure()
    _same(drift, merged, 1e-4)
    assert drift.weight_drift == pytest.approx(merged.weight_drift, rel=1e-5)
    assert drift.projection_drift == pytest.approx(merged.projection_drift, abs=1e-9)
    assert drift.embedding_drift > 1e-4
    assert (drift.projection_drift > 0) == ("modules_to_save" in options)  # type: ignore[operator]


def test_adapters_may_come_after_the_monitor(clip: CLIPModel, images: Tensor) -> None:
    monitor = DriftMonitor(clip, images)
    adapted = _lora(clip)
    assert monitor.measure().weight_drift == pytest.approx(DriftMonitor(adapted, images).measure().weight_drift)
    assert monitor.measure().embedding_drift > 1e-4
    with adapted.disable_adapter():
        assert monitor.measure().weight_drift == 0.0
        assert monitor.measure().embedding_drift == pytest.approx(0.0, abs=1e-7)


def test_lora_drift_is_that_of_the_full_update(clip: CLIPModel, images: Tensor) -> None:
    before = {name: value.clone() for name, value in clip.vision_model.named_parameters()}
    adapted = _lora(clip)
    drift = DriftMonitor(adapted, images).measure()
    after = dict(adapted.merge_and_unload().vision_model.named_parameters())
    assert drift.weight_drift == pytest.approx(metrics.weight_drift(before, after), rel=1e-5)


def test_merged_adapters_are_refused_and_unmerged_ones_measured_as_merged(clip: CLIPModel, images: Tensor) -> None:
    adapted = _lora(clip)
    monitor = DriftMonitor(adapted, images)
    live = monitor.measure()
    adapted.merge_adapter()
    _same(monitor.measure(), live, 1e-5)
    with pytest.raises(ValueError, match="merged into the weights"):
        DriftMonitor(adapted, images)


# -- other references ----------------------------------------------------------------------------------


def test_a_model_may_be_the_reference(clip: CLIPModel, images: Tensor) -> None:
    pretrained = copy.deepcopy(clip)
    monitor = DriftMonitor(clip, images)
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.mul_(1.05)
    given = DriftMonitor(clip, images, reference=pretrained)
    with torch.no_grad():
        next(pretrained.vision_model.parameters()).zero_()
    _same(given.measure(), monitor.measure())
    assert given.measure().projection_drift == pytest.approx(0.05, rel=1e-4)
    other = CLIPModel(CLIPConfig.from_dict({**clip.config.to_dict(), "projection_dim": 16}))
    other.vision_model.encoder.layers = other.vision_model.encoder.layers[:2]
    with pytest.raises(ValueError, match=r"the reference lacks 16 of .*`vision_model\.encoder\.layers\.2"):
        DriftMonitor(clip, images, reference=other)
    with pytest.raises(ValueError, match="give the reference as a Snapshot"):
        DriftMonitor(clip, images, reference=pretrained, embed=lambda pixels: pixels)
    snapshot = take_snapshot(other, [images])
    with pytest.raises(ValueError, match="do not belong together"):
        DriftMonitor(clip, images, reference=snapshot).measure()


def test_an_empty_probe_set_is_an_error(clip: CLIPModel, images: Tensor) -> None:
    with pytest.raises(ValueError, match="empty"):
        DriftMonitor(clip, list)
    with pytest.raises(ValueError, match="batch_size"):
        DriftMonitor(clip, images, batch_size=0)


# -- how the model is run ------------------------------------------------------------------------------


@pytest.mark.one_in(3)
@pytest.mark.parametrize("how", ["wrapped", "in place", "a part"])
def test_a_compiled_model_is_measured_as_the_plain_one(clip: CLIPModel, images: Tensor, how: str) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        plain = DriftMonitor(copy.deepcopy(clip), images)
        model: Any = clip
        if how == "wrapped":
            model = torch.compile(clip, backend=backend)
        elif how == "in place":
            clip.vision_model.encoder.layers[1].self_attn.compile(backend=backend)
        else:
            clip.vision_model.encoder = torch.compile(clip.vision_model.encoder, backend=backend)
        model.get_image_features(pixel_values=images)  # compiled before anything observes
        compiled = len(graphs)
        monitor = DriftMonitor(model, images)
        for changed in (plain.model, clip):
            changed.visual_projection.weight.mul_(-1.0)
            next(p for n, p in changed.vision_model.named_parameters() if "q_proj.weight" in n).mul_(5.0)
    _same(monitor.measure(), plain.measure())
    assert monitor.measure().embedding_drift > 1
    assert len(graphs) == compiled, "measuring compiles nothing, and uses up no recompilation"
    assert (compiled > 0) == (how != "wrapped")


def test_autocast_around_a_measurement_and_under_a_model_changes_nothing(clip: CLIPModel, images: Tensor) -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision = clip

        def forward(self, pixel_values: Tensor) -> Any:
            return self.vision.get_image_features(pixel_values=pixel_values)

    model = Classifier()
    monitor = DriftMonitor(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        drift = monitor.measure()
    assert drift.embedding_drift == pytest.approx(0.0, abs=1e-12)
    # Its state is one for the whole process, and may be that of a test before.
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert "_original_forward" in model.__dict__, "accelerate has put its own forward over the model's"
    forward = model.forward
    assert model(images).pooler_output.dtype == torch.float32
    assert monitor.measure().embedding_drift == pytest.approx(0.0, abs=1e-12)
    assert model.forward is forward


def test_half_precision_weights_are_measured_in_their_precision(clip: CLIPModel, images: Tensor) -> None:
    monitor = DriftMonitor(clip.to(torch.bfloat16), images)
    drift = monitor.measure()
    assert drift.embedding_drift == 0.0
    with torch.no_grad():
        clip.visual_projection.weight.mul_(-1.0)
    assert monitor.measure().embedding_drift == pytest.approx(2.0)
    assert monitor.reference.embeddings.dtype == torch.float32


def test_gradient_checkpointing_and_frozen_parts(clip: CLIPModel, images: Tensor) -> None:
    plain = DriftMonitor(copy.deepcopy(clip), images).reference
    clip.train()
    clip.activation_checkpointing_enable({"use_reentrant": False})
    clip.requires_grad_(False)
    clip.visual_projection.requires_grad_(True)
    monitor = DriftMonitor(clip, images)
    torch.testing.assert_close(monitor.reference.hidden, plain.hidden)
    clip.get_image_features(pixel_values=images).pooler_output.sum().backward()
    with torch.no_grad():
        clip.visual_projection.weight.sub_(clip.visual_projection.weight.grad)
    drift = monitor.measure()
    assert drift.weight_drift == 0.0
    assert drift.projection_drift > 0  # type: ignore[operator]


class _Drawing(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Images whose reading draws from every generator that there is."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        return self.images[index]


@pytest.mark.parametrize("adapters", [False, True])
def test_training_with_and_without_a_watch_gives_the_same_bits(
    clip: CLIPModel, images: Tensor, tmp_path: Path, adapters: bool
) -> None:
    """With dropout, shuffling, LoRA, alerts, tables, and a measurement between forward and backward."""

    def train(watched: bool) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
        for generator in (torch.manual_seed, random.seed, np.random.seed):
            generator(3)
        model: Any = copy.deepcopy(clip)
        for layer in model.vision_model.encoder.layers:
            layer.self_attn.dropout = 0.2
        if adapters:
            model = _lora(model, lora_dropout=0.3)
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
        probe = DataLoader(_Drawing(images), batch_size=5)  # type: ignore[var-annotated]
        watch: DriftWatch | None = None
        if watched:
            monitor = DriftMonitor(model, lambda: probe)
            stop = Alert("cka_mean", below=0.0, action="stop")
            watch = DriftWatch(monitor, 2, alerts=[stop], folder=tmp_path / "tables", echo=None)
            watch.start()
        step = 0
        for _ in range(2):
            for batch in DataLoader(list(images), batch_size=4, shuffle=True):  # type: ignore[arg-type]
                noise = random.random() + float(np.random.rand())  # noqa: NPY002
                output = model.get_image_features(pixel_values=batch + 0.01 * noise * torch.randn_like(batch))
                loss = output.pooler_output.square().mean()
                if watch is not None:
                    watch.monitor.measure()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                if watch is not None:
                    watch.step(step)
        if watch is not None:
            watch.finish(step)
            assert [at for at, _ in watch.drift] == [0, 2, 4, 6]
            assert watch.drift[-1][1].weight_drift > 0
        return model.state_dict(), (torch.get_rng_state(), random.getstate(), np.random.get_state()[1])  # noqa: NPY002

    without, generators = train(False)
    observed, after = train(True)
    assert without.keys() == observed.keys()
    for name, value in without.items():
        assert torch.equal(value, observed[name]), name
    assert torch.equal(generators[0], after[0])
    assert generators[1] == after[1]
    assert np.array_equal(generators[2], after[2])


# -- alerts --------------------------------------------------------------------------------------------


class _Scripted:
    """A drift of which only one number is of interest."""

    missing: ClassVar[dict[str, str]] = {}

    def __init__(self, value: float | None) -> None:
        self.value = value

    def values(self) -> dict[str, float | None]:
        return dict.fromkeys(watchable(), self.value)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-10, 10), max_size=30),
    st.one_of(st.none(), st.floats(-9, 0)),
    st.one_of(st.none(), st.floats(0, 9)),
)
def test_an_alert_fires_once_a_crossing(values: list[float], below: float | None, above: float | None) -> None:
    if below is None and above is None:
        return
    book = AlertBook([Alert("cka_mean", below=below, above=above)])
    fired = [step for step, value in enumerate(values) if book.check(step, None, _Scripted(value))]  # type: ignore[arg-type]
    inside = [(below is None or value >= below) and (above is None or value <= above) for value in values]
    assert fired == [i for i, good in enumerate(inside) if not good and (i == 0 or inside[i - 1])]
    assert [event.step for event in book.events] == fired
    assert book.quiet == (not values or inside[-1])
    for event in book.events:
        assert (event.value < event.threshold) == (event.direction == "below")  # type: ignore[operator]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Alert("entropie_change_pct", below=-5), r"did you mean `entropy_change_pct`\?$"),
        (lambda: Alert("cka_mean"), "give below="),
        (lambda: Alert("cka_mean", below=float("nan")), "finite"),
        (lambda: Alert("cka_mean", below=0.9, above=0.1), "always be on"),
        (lambda: Alert("cka_mean", below=0.9, action="halt"), "must be log, stop or a function"),  # type: ignore[arg-type]
    ],
)
def test_alerts_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_every_metric_that_an_alert_may_name_is_measured(clip: CLIPModel, images: Tensor) -> None:
    drift = DriftMonitor(clip, images).measure()
    assert tuple(drift.values()) == watchable()
    # Measured where `text=`, `knn=` and `activations=` ask for it: tests/models/test_towers.py, test_knn_retention.py,
    # test_activation_change.py, tests/metrics/test_collapse.py.
    asked = {"text_embedding_drift", "text_weight_drift", "text_projection_drift", "logit_scale_change"}
    asked |= {"knn_accuracy", "knn_retention_pct", "activation_change_mean", "activation_change_last"}
    asked |= {"modality_gap", "modality_gap_change_pct"}
    assert set(drift.values()) - set(_measured(drift)) == asked
    with pytest.raises(ValueError, match="not measured for this model"):
        AlertBook([Alert("projection_drift", above=1.0)]).check(0, None, _Scripted(None))  # type: ignore[arg-type]


def _worsen(clip: CLIPModel) -> None:
    with torch.no_grad():
        for name, parameter in clip.vision_model.named_parameters():
            if "weight" in name:
                parameter.mul_(1.1)


@pytest.mark.parametrize("in_folder", [False, True])
def test_a_stop_puts_the_best_state_back(
    clip: CLIPModel, images: Tensor, tmp_path: Path, in_folder: bool, caplog: pytest.LogCaptureFixture
) -> None:
    clip.text_model.requires_grad_(False)
    called: list[AlertEvent] = []
    alerts = [
        Alert("weight_drift", above=0.25, action=called.append),
        Alert("weight_drift", above=0.4, action="stop"),
    ]
    lines: list[str] = []
    folder = tmp_path / "run" if in_folder else None
    watch = DriftWatch(DriftMonitor(clip, images), 1, alerts=alerts, folder=folder, echo=lines.append)
    states = []
    with watch:
        for step in range(1, 20):
            states.append(copy.deepcopy(clip.state_dict()))
            _worsen(clip)
            watch.step(step, epoch=step / 2)
            if watch.should_stop:
                break
    # 1.1^2 - 1 = 0.21, 1.1^3 - 1 = 0.33, 1.1^4 - 1 = 0.46 on the weights, which are nearly all of the norm.
    assert [at for at, _ in watch.drift] == [0, 1, 2, 3, 4]
    assert len(lines) == 5
    assert "step 4: entropy" in lines[4]
    assert [(event.step, event.action) for event in watch.alerts] == [(3, "append"), (4, "stop")]
    assert called == watch.alerts[:1]
    assert watch.best_step == 2
    assert "weight_drift is 0.46" in caplog.text
    assert "the state of step 2 is put back" in caplog.text
    for name, value in states[2].items():
        assert torch.equal(clip.state_dict()[name], value), name
    with pytest.raises(RuntimeError, match="stopped this training"):
        watch.measure(9)
    if folder is None:
        return
    with safe_open(folder / "best.safetensors", "pt") as file:
        assert file.metadata() == {"step": "2"}
        assert not any(name.startswith("text_model") and "position_ids" not in name for name in file.keys())  # noqa: SIM118
    table = pq.read_table(folder / "alerts.parquet").to_pylist()
    assert [(row["step"], row["metric"], row["direction"]) for row in table] == [
        (3, "weight_drift", "above"), (4, "weight_drift", "above"),
    ]  # fmt: skip
    run = read_tables(folder).runs.iloc[0]
    assert run["status"] == "finished"
    assert run["selected_epoch"] == 1.0
    assert run["weight_drift"] == pytest.approx(watch.drift[2][1].weight_drift)


def test_a_divergence_ends_in_the_best_state_where_there_is_one(clip: CLIPModel, images: Tensor) -> None:
    before = copy.deepcopy(clip.state_dict())
    for alerts, restored in (([Alert("cka_mean", below=0.0, action="stop")], True), ([], False)):
        watch = DriftWatch(DriftMonitor(clip, images), 1, alerts=alerts, echo=None)
        watch.start()
        with torch.no_grad():
            clip.visual_projection.weight.fill_(float("nan"))
        if restored:
            assert watch.step(1) is None
            assert watch.should_stop
            assert watch.alerts[0].direction == "diverged"
            assert all(torch.equal(clip.state_dict()[name], value) for name, value in before.items())
        else:
            with pytest.raises(DivergedError):
                watch.step(1)


def test_parameters_that_are_unfrozen_later_cannot_be_restored_silently(clip: CLIPModel, images: Tensor) -> None:
    clip.vision_model.requires_grad_(False)
    watch = DriftWatch(
        DriftMonitor(clip, images), 1, alerts=[Alert("weight_drift", above=0.01, action="stop")], echo=None
    )
    watch.start()
    clip.requires_grad_(True)
    _worsen(clip)
    with pytest.raises(RuntimeError, match="other parameters are trained now"):
        watch.step(1)


def test_a_watch_must_have_a_period(clip: CLIPModel, images: Tensor) -> None:
    monitor = DriftMonitor(clip, images)
    with pytest.raises(ValueError, match="at least 1"):
        DriftWatch(monitor, every=0)
    with pytest.raises(ValueError, match="give a folder"):
        DriftWatch(monitor, run={"dataset": "x"})
    with pytest.raises(TypeError, match="expected Alert objects"):
        DriftWatch(monitor, alerts=["cka_mean"])  # type: ignore[list-item]


# -- tables --------------------------------------------------------------------------------------------


def _watched(clip: CLIPModel, images: Tensor, folder: Path, steps: Iterator[int] | range, **options: Any) -> DriftWatch:
    watch = DriftWatch(DriftMonitor(clip, images), 2, folder=folder, echo=None, **options)
    with watch:
        for step in steps:
            _worsen(clip)
            watch.step(step, epoch=step / 4, train_loss=1.0 / step)
            watch.record.note(step, val_accuracy=0.5 + step / 100)
    return watch


def test_the_tables_hold_what_was_measured_and_the_analysis_takes_them(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    clip.text_model.requires_grad_(False)
    folder = tmp_path / "mine"
    watch = _watched(clip, images, folder, range(1, 6), run={"dataset": "tiles", "seed": 4, "learning_rate": 1e-3})
    tables = read_tables(folder)
    run = tables.runs.iloc[0]
    assert run["run_id"] == "mine"
    assert (run["method"], run["freeze_layers"], run["status"], run["seed"]) == ("full", 0, "finished", 4)
    assert run["n_probe"] == len(images)
    assert run["best_val_accuracy"] == pytest.approx(0.54)
    assert run["trainable_parameters"] < run["total_parameters"]
    final = watch.drift[-1][1]
    assert run["entropy_change_pct"] == pytest.approx(final.entropy_change_pct)
    assert run["cka_debiased_mean"] == pytest.approx(float(final.cka_debiased_mean))
    history = tables.history
    assert history["step"].tolist() == [0, 2, 4, 5]
    assert history["train_loss"].tolist()[1:3] == [0.5, 0.25]
    assert history["weight_drift"].tolist() == pytest.approx([d.weight_drift for _, d in watch.drift])
    layers = tables.layers
    heads = layers[(layers["metric"] == "gini") & (layers["step"] == 4) & (layers["layer"] == 2)]
    assert heads[heads["head"].notna()]["value"].tolist() == watch.drift[2][1].structure.heads("gini")[1].tolist()
    assert len(layers[layers["metric"] == "cka"]) == 4 * 3
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")], "nothing half-written is left"
    result = CliRunner().invoke(app, ["analyze", str(folder)])
    assert result.exit_code == 0, result.output


def test_the_method_is_told_from_the_model(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    def method(model: Any, name: str) -> pd.Series:
        DriftWatch(DriftMonitor(model, images), folder=tmp_path / name, echo=None).__enter__().finish()
        return read_tables(tmp_path / name).runs.iloc[0]

    for layer in clip.vision_model.encoder.layers[:2]:
        layer.requires_grad_(False)
    frozen = method(clip, "frozen")
    assert (frozen["method"], frozen["freeze_layers"]) == ("full", 2)
    clip.vision_model.requires_grad_(False)
    assert method(clip, "probe")["method"] == "linear_probe"
    lora = method(_lora(clip, targets="v_proj|q_proj|out_proj"), "lora")
    assert (lora["method"], lora["lora_rank"], lora["lora_alpha"], lora["lora_targets"]) == ("lora", 2, 4, "q,v,out")


def test_tables_are_not_overwritten_unasked(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _watched(copy.deepcopy(clip), images, folder, range(1, 5))
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(TableError, match=r"holds runs\.parquet.*existing='replace'"):
        DriftWatch(DriftMonitor(clip, images), folder=folder)
    with pytest.raises(ValueError, match="must be refuse, replace or continue"):
        DriftWatch(DriftMonitor(clip, images), folder=folder, existing="append")  # type: ignore[arg-type]
    with pytest.raises(TableError, match="did you mean `learning_rate`"):
        DriftWatch(DriftMonitor(clip, images), folder=tmp_path / "b", run={"learning_rat": 1})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
    with pytest.raises(TableError, match="are of run, not of other"):
        DriftWatch(DriftMonitor(clip, images), folder=folder, existing="continue", run={"run_id": "other"})
    watch = DriftWatch(DriftMonitor(clip, images), 2, folder=folder, existing="continue", echo=None)
    watch.start(4)
    _worsen(clip)
    watch.step(6)
    watch.finish()
    tables = read_tables(folder)
    assert tables.history["step"].tolist() == [0, 2, 4, 6]
    assert tables.history["weight_drift"].tolist()[2] == 0.0, "measured again from here on"
    assert tables.layers.groupby("step").size().nunique() == 1
    _watched(clip, images, folder, range(1, 3), existing="replace")
    assert read_tables(folder).history["step"].tolist() == [0, 2]


def test_a_training_that_fails_says_so_in_its_tables(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    def steps() -> Iterator[int]:
        yield from range(1, 4)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        _watched(clip, images, tmp_path / "run", steps())
    tables = read_tables(tmp_path / "run")
    assert tables.runs["status"].tolist() == ["failed"]
    assert tables.history["step"].tolist() == [0, 2]


@pytest.mark.slow
def test_long_trainings_are_written_seldom_and_completely(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    watch = DriftWatch(DriftMonitor(clip, images[:4]), 1, folder=tmp_path, run={"run_id": "r"}, echo=None)
    writes = []
    tables = watch.record.tables
    assert tables is not None
    original = tables.write
    tables.write = lambda *args: (writes.append(len(tables.history)), original(*args))  # type: ignore[method-assign, assignment, func-returns-value]
    drift = watch.monitor.measure()
    watch.monitor.measure = lambda *_, **__: drift  # type: ignore[method-assign]
    with watch:
        for step in range(1, 45):
            watch.step(step)
    assert writes[:20] == list(range(1, 21))
    assert 20 < len(writes) < 40
    assert len(read_tables(tmp_path).history) == 45


def test_a_representation_that_is_the_same_for_every_image_has_diverged(clip: CLIPModel, images: Tensor) -> None:
    monitor = DriftMonitor(clip, images)
    with torch.no_grad():
        clip.vision_model.encoder.layers[-1].mlp.fc2.weight.zero_()
        clip.vision_model.embeddings.patch_embedding.weight.zero_()
    with pytest.raises(DivergedError, match="the same for all"):
        monitor.measure()
