"""Rates by part and depth, selective projection decay, steps and warmup: against formulas, in runs, and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attndrift.methods import AdaptationSettings, adapt
from attndrift.models import load_model
from attndrift.study.distributed import SilentReporter
from attndrift.study.executor import Executor
from attndrift.study.optimisation import optimisation_label, optimisation_text
from attndrift.study.resources import StudyResources
from attndrift.study.settings import NamedRun, RunSettings, run_name
from attndrift.study.steps import epoch_count, spread_steps, total_steps, warmup_steps
from attndrift.study.training.optimizer import SelectiveProjection, optimizer_of, rate_groups


def _problem(seed: int) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(4, 3).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    drawn = [
        torch.randn(6, 4, generator=generator, dtype=torch.float64),
        torch.randn(6, 3, generator=generator, dtype=torch.float64),
    ]
    return layer, drawn[0], drawn[1]


@pytest.mark.parametrize("strength", [0.3, 1.0, 4.0])
def test_selective_projection_decay_is_the_formula(strength: float) -> None:
    """Against AdamW and the projection written out in numpy; both branches are taken."""
    layer, inputs, targets = _problem(0)
    optimizer = SelectiveProjection(
        layer.parameters(), 0.05, strength=strength, held=list(layer.parameters()), weight_decay=0.01
    )
    x, y = inputs.numpy(), targets.numpy()
    state = [(p.detach().numpy().copy(), np.zeros(p.shape), np.zeros(p.shape)) for p in layer.parameters()]
    starts = [value.copy() for value, _, _ in state]
    projected = []
    for step in range(1, 25):
        optimizer.zero_grad()
        sign = 1.0 if step < 12 else -1.0  # the target turns around: the way leads back
        ((layer(inputs) - sign * targets) ** 2).sum().backward()
        optimizer.step()
        residual = 2 * (x @ state[0][0].T + state[1][0] - sign * y)
        gradients = [residual.T @ x, residual.sum(0)]
        for place, gradient in enumerate(gradients):
            value, first, second = state[place]
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            moved = value * (1 - 0.05 * 0.01)
            moved = moved - 0.05 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
            if -(gradient * (value - starts[place])).sum() < 0:
                before, after = (np.linalg.norm(one - starts[place]) for one in (value, moved))
                share = min(1.0, max(0.0, (after - before) / after))
                projected.append(share)
                moved = moved - strength * share * (moved - starts[place])
            state[place] = moved, first, second
    assert 0 < len(projected) < 48
    assert max(projected) > 0
    for parameter, (value, _, _) in zip(layer.parameters(), state, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-9)


def test_a_projection_of_strength_0_is_adamw_bit_for_bit() -> None:
    found = []
    for make in (
        lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.01),
        lambda p: SelectiveProjection(p, 0.05, strength=0.0, held=list(p), weight_decay=0.01),
    ):
        layer, inputs, targets = _problem(1)
        optimizer = make(list(layer.parameters()))
        for _ in range(5):
            optimizer.zero_grad()
            ((layer(inputs) - targets) ** 2).sum().backward()
            optimizer.step()
        found.append(layer.weight.detach())
    assert torch.equal(*found)


def _settings(**given: Any) -> RunSettings:
    return RunSettings(dataset="digits", model="config:tiny", learning_rate=1e-2, **given)


def test_rates_fall_with_depth_and_differ_by_part() -> None:
    model = adapt(load_model("config:tiny"), AdaptationSettings("full"), 5, 0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    settings = _settings(layer_decay=0.5, head_learning_rate=1.0, projection_learning_rate=1e-3)
    groups = rate_groups(model, trained, settings)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(trained)
    for name, parameter in trained.items():
        found = rates[id(parameter)]
        if name.startswith("classifier."):
            assert found == 1.0
        elif "visual_projection" in name:
            assert found == 1e-3
        elif "post_layernorm" in name:
            assert found == 1e-2
        elif "encoder.layers." in name:
            block = int(name.partition("layers.")[2].partition(".")[0])
            assert found == pytest.approx(1e-2 * 0.5 ** (3 - block)), name
        else:  # embeddings, and the norm before the blocks
            assert found == pytest.approx(1e-2 * 0.5**4), name
    optimizer = optimizer_of(model, trained, _settings(adam_beta1=0.8, adam_beta2=0.95), fused=True)
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)


def test_steps_are_counted_beside_epochs() -> None:
    by_epochs, by_steps = _settings(epochs=2, batch_size=10), _settings(steps=7, batch_size=10, warmup_steps=2)
    assert (total_steps(by_epochs, 25), epoch_count(by_epochs, 25)) == (6, 2)
    assert (total_steps(by_steps, 25), epoch_count(by_steps, 25)) == (7, 3)
    assert by_steps.epochs == 0
    assert spread_steps(by_steps, 25, 1) == {3, 6, 7}
    assert spread_steps(_settings(steps=2, batch_size=10), 25, 1) == {2}
    assert warmup_steps(by_steps, 25) == 2
    again = RunSettings.model_validate(by_steps.to_json())
    assert again.hash == by_steps.hash


RUN: dict[str, Any] = {
    "dataset": "digits", "train_per_class": 3, "validation_per_class": 1, "probe_size": 20, "test_limit": 20,
    "epochs": 2, "batch_size": 10, "learning_rate": 1e-3, "monitor_zero_shot_images": 0, "evaluations_per_epoch": 1,
    "map_images": 0, "threads": 1, "trackers": (),
}  # fmt: skip


class Reporter(SilentReporter):
    """Says nothing, and stops at the first saved state where it is told to."""

    def __init__(self, *, stops: bool = False) -> None:
        self.stops = stops

    def inputs(self, found: Any, places: Any) -> None: ...

    def evaluated(self, step: int, total: int, values: object) -> None:
        pass

    def saved(self, step: int) -> None:
        if self.stops:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> StudyResources:
    return StudyResources(tmp_path_factory.mktemp("cache"))


def _execute(model: Path, folder: Path, resources: StudyResources, reporter: Reporter, **settings: Any) -> Any:
    run = NamedRun(run_id="run", settings=RunSettings(model=str(model), **{**RUN, **settings}))
    folder.mkdir(exist_ok=True)
    return Executor(resources)(run, folder, reporter)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "given",
    [
        {"layer_decay": 0.5, "spd": 1.0, "head_learning_rate": 0.1},
        {"method": "lora", "spd": 1.0, "projection_learning_rate": 1e-4, "adam_beta2": 0.98},
        {"steps": 5, "warmup_steps": 1},
    ],
)
def test_a_run_is_resumed_bit_for_bit(
    given: dict[str, Any], tiny_clip: Path, tmp_path: Path, resources: StudyResources
) -> None:
    whole = _execute(tiny_clip, tmp_path / "whole", resources, Reporter(), **given)
    plain = _execute(tiny_clip, tmp_path / "plain", resources, Reporter(), method=given.get("method", "full"))
    assert whole["row"]["weight_drift"] != plain["row"]["weight_drift"]
    with pytest.raises(KeyboardInterrupt):
        _execute(tiny_clip, tmp_path / "run", resources, Reporter(stops=True), **given)
    assert _execute(tiny_clip, tmp_path / "run", resources, Reporter(), **given)["row"] == whole["row"]
    weights = [tmp_path / name / "checkpoints/final/model.safetensors" for name in ("whole", "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_training_of_steps_ends_within_an_epoch_and_equals_one_of_as_many_epochs(
    tiny_clip: Path, tmp_path: Path, resources: StudyResources
) -> None:
    by_epochs = _execute(tiny_clip, tmp_path / "epochs", resources, Reporter())
    by_steps = _execute(tiny_clip, tmp_path / "steps", resources, Reporter(), steps=6)
    assert by_steps["row"] == by_epochs["row"]
    part = _execute(tiny_clip, tmp_path / "part", resources, Reporter(), steps=5)
    assert part["row"]["epochs"] == pytest.approx(5 / 3)
    rows = [json.loads(line) for line in (tmp_path / "part/history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 3, 5]
    assert [row.get("val_accuracy") is not None for row in rows] == [False, True, True]
    with pytest.raises(ValueError, match="`warmup_steps` is 9; the training has 6 steps"):
        _execute(tiny_clip, tmp_path / "long", resources, Reporter(), warmup_steps=9)


def test_the_start_of_a_training_with_defaults_is_untouched(
    tiny_clip: Path, tmp_path: Path, resources: StudyResources
) -> None:
    """Neutral values are the same bits as none: one rate by another name, a projection of strength 0."""
    plain = _execute(tiny_clip, tmp_path / "plain", resources, Reporter())
    given = {"head_learning_rate": 1e-3, "projection_learning_rate": 1e-3, "layer_decay": 1.0, "spd": 0.0}
    neutral = _execute(tiny_clip, tmp_path / "neutral", resources, Reporter(), **given)
    for record in (plain, neutral):
        record["row"].pop("optimisation")
    assert neutral["row"] == plain["row"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"method": "linear_probe", "spd": 1.0}, "`spd` does nothing with method: linear_probe"),
        ({"method": "linear_probe", "layer_decay": 0.5}, "`layer_decay` does nothing"),
        ({"head": "cosine", "head_learning_rate": 0.1}, "`head_learning_rate` does nothing with head: cosine"),
        (
            {"method": "last_block", "projection_learning_rate": 0.1},
            "`projection_learning_rate` needs `train_projection",
        ),
        ({"steps": 5, "warmup_steps": 5}, "`warmup_steps` is 5; it must be below `steps`, 5"),
        ({"steps": 0}, "steps"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"layer_decay": 1.5}, "layer_decay"),
        ({"adam_beta1": 1.0}, "adam_beta1"),
        ({"spd": -1.0}, "spd"),
    ],
)
def test_an_impossible_optimisation_is_refused_by_name(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        _settings(**given)


def test_an_optimisation_has_a_name_and_a_label_of_its_own() -> None:
    settings = _settings(layer_decay=0.75, spd=1.0)
    assert optimisation_text(settings) == "layer_decay:0.75+spd:1"
    assert optimisation_label("layer_decay:0.75+spd:1") == "layer decay 0.75, SPD 1"
    assert optimisation_text(_settings()) is None
    assert "_layer-decay0.75_spd1_" in run_name(settings)
    assert "_steps100_" in run_name(_settings(steps=100))
