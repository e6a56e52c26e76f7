"""On a CUDA device a step is captured as a graph and replayed: what a run comes to is what it comes to without."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attndrift.attention import observe
from attndrift.data import PixelStore
from attndrift.data.device_pixels import pixels_on
from attndrift.drift import DriftMonitor
from attndrift.losses import StudyContext
from attndrift.methods import adapt
from attndrift.models import load_model
from attndrift.study.evaluation import split_accuracy
from attndrift.study.resolved import adaptation
from attndrift.study.settings import RunSettings
from attndrift.study.training import cuda_graph, loop
from attndrift.study.training.cuda_graph import CUDAGraphStep
from attndrift.study.training.loop import fit
from attndrift.study.training.plan import FitResult, TrainingPlan

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

IMAGES, CLASSES, BATCH = 26, 3, 4
"""The last batch of an epoch is smaller, and is not replayed."""

KINDS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora", "lora_rank": 2, "lora_dropout": 0.1},
    "full apr": {"method": "full", "loss": "attention_preservation:0.1"},
    "lora floor": {"method": "lora", "lora_rank": 2, "loss": "entropy_floor:0.1",
                   "entropy_floor_fraction": 1.0},
    "last block": {"method": "last_block"},
}  # fmt: skip


class Silent:
    def step(self, done: int, total: int) -> None:
        pass

    def say(self, message: str) -> None:
        pass

    def evaluated(self, step: int, total: int, values: object) -> None:
        pass

    def saved(self, step: int) -> None:
        pass


def trained(
    kind: str, folder: Path, *, poisoned: bool = False, reporter: Any = None, **others: Any
) -> tuple[FitResult, Any, list[int]]:
    """A whole training on the device; its result, its model and the sizes of the batches that were replayed."""
    device = torch.device("cuda")
    settings = RunSettings(**{
        "model": "config:tiny", "dataset": "digits", "epochs": 2, "batch_size": BATCH, "learning_rate": 1e-3,
        "evaluations_per_epoch": 2, "checkpoints_per_epoch": 1, "threads": 1, "monitor_zero_shot_images": 0, "device": "cuda",
    } | KINDS[kind] | others)  # fmt: skip
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (IMAGES, 3, 28, 28), dtype=np.uint8)
    table = np.linspace(-2, 2, 3 * 256, dtype=np.float32).reshape(3, 256)
    if poisoned:
        table[:] = math.nan
    indices = np.arange(IMAGES)
    store = pixels_on(PixelStore(pixels, table, indices, indices % CLASSES, [str(i) for i in indices]), device)
    good = torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(0)).to(device)
    clip = load_model("config:tiny").to(device)
    model = adapt(clip, adaptation(settings), CLASSES, settings.seed).to(device)
    with observe(clip.eval()) as seen, torch.no_grad():
        clip.vision_model(pixel_values=torch.nan_to_num(store.fetch(range(IMAGES))))
    attention = torch.stack(seen.log_attention)
    monitor = DriftMonitor(model, good, embed=model.embed)
    replayed: list[int] = []

    class Noted(CUDAGraphStep):
        def __call__(self, batch):
            replayed.append(len(batch["labels"]))
            return super().__call__(batch)

    plan = TrainingPlan(
        settings=settings, images=store, labels=torch.from_numpy(store.labels), monitor=monitor,
        validate=lambda: split_accuracy(model, store, store.labels, settings), monitor_zero_shot=None, monitored_retention=lambda _: None,
        baseline={"step": 0}, save_weights=lambda name: None,
        context=StudyContext(monitor.reference.structure.layers("entropy"), {"attention": lambda positions, _: attention[:, positions]}),
        device=device,
    )  # fmt: skip
    before, loop.CUDAGraphStep = loop.CUDAGraphStep, Noted
    try:
        return fit(model, plan, folder, reporter or Silent()), model, replayed
    finally:
        loop.CUDAGraphStep = before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_comes_to_the_same(tmp_path, kind, precision) -> None:
    found = [trained(kind, tmp_path / str(graphs), cuda_graphs=graphs, precision=precision) for graphs in (True, False)]
    (result, model, replayed), (plain, other, none) = found
    whole = IMAGES // BATCH
    assert replayed == [BATCH] * (2 * whole)
    assert none == []
    assert len(result.history) == len(plain.history)
    for row, expected in zip(result.history[1:], plain.history[1:], strict=True):
        for name in ("train_loss", "entropy", "cka_mean", "weight_drift"):
            assert row[name] == pytest.approx(expected[name], rel=2e-3), name
        assert row["train_accuracy"] == pytest.approx(expected["train_accuracy"], abs=0.13)
    assert result.active_fractions == pytest.approx(plain.active_fractions, rel=0.02)
    furthest = max(
        float((one - two).abs().max() / two.abs().max().clamp_min(1e-3))
        for one, two in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
        if one.is_floating_point()
    )
    print(f"{kind} {precision}: weights differ by {furthest:.2e} of the largest at most")
    assert furthest < 0.05


class Interrupted(Silent):
    """Stops the training in the middle of its second epoch."""

    def step(self, done: int, total: int) -> None:
        if done == 10:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["full apr", "lora"])
def test_a_run_that_is_resumed_goes_on_as_it_would_have(tmp_path, kind) -> None:
    whole, model, _ = trained(kind, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(kind, tmp_path / "cut", reporter=Interrupted())
    again, resumed, replayed = trained(kind, tmp_path / "cut")
    assert len(replayed) == IMAGES // BATCH
    assert [row["step"] for row in again.history] == [row["step"] for row in whole.history]
    for one, two in zip(resumed.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_a_divergence_is_found_as_without(tmp_path) -> None:
    result, _, replayed = trained("full", tmp_path, poisoned=True)
    assert result.status == "diverged"
    assert "training loss is nan after step 0" in str(result.problem)
    assert replayed


def test_without_room_every_step_is_eager(tmp_path, monkeypatch) -> None:
    expected, model, _ = trained("lora", tmp_path / "with")
    said: list[str] = []

    class Heard(Silent):
        def say(self, message: str) -> None:
            said.append(message)

    reports = iter([100, 10])
    monkeypatch.setattr(cuda_graph, "_free_memory", lambda device: next(reports))
    result, other, replayed = trained("lora", tmp_path / "without", reporter=Heard())
    assert replayed == []
    assert any("too little memory for a CUDA graph" in message for message in said)
    assert result.history[-1]["train_loss"] == pytest.approx(expected.history[-1]["train_loss"], rel=1e-4)
    for one, two in zip(other.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_what_was_captured_must_still_be_there() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5)).cuda()
    batch = {"x": torch.randn(5, 4, device="cuda")}
    state = torch.cuda.get_rng_state()
    step = CUDAGraphStep(layer, lambda given: (layer(given["x"]).square().mean(),), batch)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert layer[0].weight.grad is None
    (first,) = step(batch)
    kept = float(first)
    assert float(step(batch)[0]) != kept  # another draw of the dropout
    layer.eval()
    with pytest.raises(RuntimeError, match="cuda_graphs: false"):
        step(batch)
    layer.train()
    layer[0].weight.data = layer[0].weight.data.clone()
    with pytest.raises(RuntimeError, match="cuda_graphs: false"):
        step(batch)
