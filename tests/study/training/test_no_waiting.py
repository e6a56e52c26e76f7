"""A study's training step reads nothing from an accelerator; what it left behind is read before it is needed.

On the device `meta` tensors have no values: whatever would fetch one to the host raises. Every copy to such a device
must go through `to_device`, which waits for nothing.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate.state import GradientState
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import get_cosine_schedule_with_warmup

from attndrift.data import PixelStore, device_pixels
from attndrift.data import shuffle as order
from attndrift.drift import DriftMonitor
from attndrift.files import read_json
from attndrift.guard import Budget, Guard
from attndrift.losses import (
    LOSSES,
    AttentionView,
    EmbeddingView,
    HiddenView,
    StudyContext,
    TeacherCache,
    fisher_information,
    logit_distillation,
)
from attndrift.methods import adapt
from attndrift.models import load_model
from attndrift.models.parameters import bare_parameters
from attndrift.models.to_device import to_device
from attndrift.study.evaluation import split_accuracy
from attndrift.study.resolved import adaptation
from attndrift.study.settings import RunSettings
from attndrift.study.training import loop
from attndrift.study.training import metric_buffer as progress
from attndrift.study.training import states as resume
from attndrift.study.training.loop import fit
from attndrift.study.training.plan import FitResult, TrainingPlan

CPU, META = torch.device("cpu"), torch.device("meta")
IMAGES, CLASSES, BATCH = 24, 3, 4
STEPS = IMAGES // BATCH

EVERY_LOSS = (
    "attention_preservation:0.1+entropy_floor:0.1+l2_sp:0.1+ewc:0.1+ldifs:0.1+embedding_mse:0.1+embedding_cosine:0.1"
    "+embedding_similarity:0.1+lipsum:0.1+logit_distillation:0.1+reference_distillation:0.1"
)
WITH_LOSSES = {"loss": EVERY_LOSS, "entropy_floor_fraction": 1.0, "reference": "objects"}
KINDS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full, every loss": {"method": "full", **WITH_LOSSES},
    "lora, every loss, accumulated": {
        "method": "lora", "lora_rank": 2, "lora_dropout": 0.1, "gradient_accumulation": 2, **WITH_LOSSES,
    },
}  # fmt: skip


EACH = "full, every loss"


def test_every_loss_is_among_them() -> None:
    assert set(settings_of(EACH).losses) == set(LOSSES.names())


class Heard:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.states: dict[int, dict[str, Any]] = {}
        self.folder: Path | None = None

    def step(self, done: int, total: int) -> None:
        self.steps.append(done)

    def say(self, message: str) -> None:
        pass

    def evaluated(self, step: int, total: int, values: object) -> None:
        pass

    def saved(self, step: int) -> None:
        assert self.folder is not None
        self.states[step] = read_json(self.folder / "resume" / f"step-{step}" / resume.PROGRESS)


def settings_of(kind: str, **others: Any) -> RunSettings:
    common: dict[str, Any] = {
        "model": "config:tiny", "dataset": "digits", "epochs": 2, "batch_size": BATCH, "learning_rate": 1e-3,
        "evaluations_per_epoch": 2, "checkpoints_per_epoch": 3, "threads": 1, "monitor_zero_shot_images": 0,
    }  # fmt: skip
    return RunSettings(**common | KINDS[kind] | others)


def images() -> PixelStore:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (IMAGES, 3, 28, 28), dtype=np.uint8)
    table = np.linspace(-2, 2, 3 * 256, dtype=np.float32).reshape(3, 256)
    indices = np.arange(IMAGES)
    return PixelStore(pixels, table, indices, indices % CLASSES, [str(i) for i in indices])


VIEWS = (AttentionView(), EmbeddingView(), HiddenView("quarters"))


def context_of(clip: Any, entropy: torch.Tensor, teachers: Any) -> StudyContext:
    """What losses are told: their teachers, and reference images that are drawn."""
    generator = torch.Generator().manual_seed(3)
    device = next(clip.parameters()).device
    pixels, texts = (torch.randn(*shape, generator=generator).to(device) for shape in ((6, 3, 28, 28), (4, 32)))

    def fisher() -> dict[str, torch.Tensor]:
        if device == META:
            parts = {"tower": clip.vision_model, "projection": clip.visual_projection}
            return {f"{root}.{n}": p for root, part in parts.items() for n, p in bare_parameters(part).items()}
        return fisher_information(clip, pixels, texts)

    reference = SimpleNamespace(pixels=pixels, text_features=texts, fisher=fisher)
    return StudyContext(entropy, teachers, lambda: texts, reference)


class Poisoned:
    """Images of which the batch after so many is not finite."""

    def __init__(self, store: PixelStore, after: int) -> None:
        self.store, self.left = store, after

    def fetch(self, positions: Any, flip: Any = None) -> torch.Tensor:
        batch = self.store.fetch(positions, flip)
        self.left -= 1
        return torch.full_like(batch, math.nan) if self.left == -1 else batch


def train(
    kind: str,
    folder: Path,
    *,
    poisoned_after: int | None = None,
    guarded: bool = False,
    saving: Callable[[torch.nn.Module], None] = lambda model: None,
    **others: Any,
) -> tuple[FitResult, Heard, Any]:
    """A whole training on the CPU, with real measurements; and its model."""
    torch.manual_seed(0)
    settings, store = settings_of(kind, **others), images()
    clip = load_model("config:tiny")
    model = adapt(clip, adaptation(settings), CLASSES, settings.seed)
    caches = {view.name: TeacherCache(clip, store.fetch(range(IMAGES)), view=view) for view in VIEWS}
    probe = store.fetch(range(8))
    monitor = DriftMonitor(model, probe, embed=model.embed)
    heard = Heard()
    heard.folder = folder
    plan = TrainingPlan(
        settings=settings,
        images=store if poisoned_after is None else Poisoned(store, poisoned_after),
        labels=torch.from_numpy(store.labels),
        monitor=monitor,
        validate=lambda: split_accuracy(model, store, store.labels, settings),
        monitor_zero_shot=None,
        monitored_retention=lambda _: None,
        baseline={"step": 0},
        save_weights=lambda name: saving(model),
        context=context_of(clip, monitor.reference.structure.layers("entropy"), caches),
        device=CPU,
        guard=Guard(monitor, Budget("weight_drift", at_most=1e9), 1, echo=None) if guarded else None,
    )
    measured: list[int] = []
    plan.monitor.measure, measure = lambda *_, **__: measured.append(len(heard.steps) + 1) or measure(), monitor.measure  # type: ignore[func-returns-value,method-assign]
    result = fit(model, plan, folder, heard)
    return result, heard, SimpleNamespace(model=model, measured=measured)


class Crossings(TorchDispatchMode):
    """Notes every copy from the host to the device that did not go through `to_device`, once a step has been done."""

    def __init__(self, steps: list[int]) -> None:
        super().__init__()
        self._steps = steps
        self.undeclared: list[str] = []
        self.declared = 0
        self._inside = False

    def to_device(self, values: Any, device: torch.device) -> torch.Tensor:
        self.declared += 1
        self._inside = True
        try:
            return to_device(values, device)
        finally:
            self._inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        source = {torch.ops.aten._to_copy.default: 0, torch.ops.aten.copy_.default: 1}.get(func)
        if source is not None and self._steps and not self._inside and result.is_meta and not args[source].is_meta:
            self.undeclared.append(str(func))
        return result


@contextmanager
def on_meta(monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> Iterator[Crossings]:
    crossings = Crossings(steps)
    for module in (device_pixels, order, logit_distillation):
        monkeypatch.setattr(module, "to_device", crossings.to_device)
    with crossings:
        yield crossings


@pytest.mark.parametrize("kind", [one if one != EACH else pytest.param(one, marks=pytest.mark.slow) for one in KINDS])
def test_no_step_reads_from_the_device(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real loop on tensors without values: the first thing that asks for one is the flush after the last step."""
    settings, store = settings_of(kind, epochs=1, evaluations_per_epoch=1, checkpoints_per_epoch=1), images()
    model = adapt(load_model("config:tiny"), adaptation(settings), CLASSES, settings.seed).to(META)
    layers, heads = 3, load_model("config:tiny").config.vision_config.num_attention_heads
    heard = Heard()
    never = lambda *_, **__: pytest.fail("nothing may be measured")  # noqa: E731
    with on_meta(monkeypatch, heard.steps) as crossings:

        def teacher(*shape: int) -> Any:
            return lambda where, _: crossings.to_device(torch.zeros(shape[0], len(where), *shape[1:]), META)

        shapes = {"attention": (layers, heads, 16), "embedding": (1, 32), "hidden-quarters": (4, 32)}
        teachers = {name: teacher(*shape) for name, shape in shapes.items()}
        plan = TrainingPlan(
            settings=settings,
            images=device_pixels.pixels_on(store, META),
            labels=torch.from_numpy(store.labels),
            monitor=SimpleNamespace(model=model, measure=never),  # type: ignore[arg-type]
            validate=never,
            monitor_zero_shot=None,
            monitored_retention=lambda _: None,
            baseline={"step": 0},
            save_weights=lambda name: never(),
            context=context_of(model.model, torch.full((layers,), 3.0, device=META), teachers),
            device=META,
        )
        flushed: list[int] = []
        flush = progress.MetricBuffer.flush
        monkeypatch.setattr(progress.MetricBuffer, "flush", lambda own: flushed.append(len(heard.steps)) or flush(own))
        with pytest.raises(RuntimeError, match="meta"):
            fit(model, plan, tmp_path, heard)
    assert heard.steps == list(range(1, STEPS)), "all steps but the last are whole"
    assert flushed == [STEPS - 1], "and it is the flush after the last one that asks for a value"
    assert crossings.declared >= 2 * STEPS, "pixels and labels of every batch"
    assert crossings.undeclared == []


@pytest.mark.parametrize("kind", [one if one != "full" else pytest.param(one, marks=pytest.mark.slow) for one in KINDS])
def test_reading_later_changes_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, heard_at_once, first = train(kind, tmp_path / "at once")
    monkeypatch.setattr(progress, "_reading_is_free", lambda device: False)
    later, heard_later, second = train(kind, tmp_path / "later")
    assert later == at_once
    assert [row["step"] for row in later.history] == [0, 3, 6, 9, 12]
    assert all(0 < row["train_loss"] < 10 and 0 <= row["train_accuracy"] <= 1 for row in later.history[1:])
    assert heard_later.states == heard_at_once.states
    assert sorted(heard_later.states) == [2, 4, 6, 8, 10, 12]
    assert heard_later.states[8]["seen"] == 2 * BATCH, "a state between two rows knows the steps since the last one"
    if "every loss" in kind:
        assert 0 <= later.active_fractions["entropy_floor"] <= 1
        assert heard_later.states[8]["batches"] == 8 * settings_of(kind).gradient_accumulation
    for name, value in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("kind", "bad", "good", "rows"),
    [
        ("full", 0, 0, [0]),
        ("full, every loss", 4, 4, [0, 3]),
        ("full", 7, 6, [0, 3, 6]),
        ("full, every loss", 8, 8, [0, 3, 6]),
    ],
)
def test_a_divergence_is_of_the_step_where_it_happened(
    kind: str, bad: int, good: int, rows: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, heard_at_once, first = train(kind, tmp_path / "at once", poisoned_after=bad)
    monkeypatch.setattr(progress, "_reading_is_free", lambda device: False)
    later, heard_later, second = train(kind, tmp_path / "later", poisoned_after=bad)
    assert later.problem == f"the training loss is nan after step {bad}"
    assert later == at_once
    assert (later.status, later.last_good_step) == ("diverged", good)
    assert [row["step"] for row in later.history] == rows
    assert second.measured == first.measured == rows[1:], "nothing is measured behind it"
    assert heard_later.states == heard_at_once.states, "and nothing saved"
    assert heard_at_once.steps == list(range(1, bad + 1))
    assert len(heard_later.steps) < bad + 3, "it is found before the next measurement or state"


def test_a_guard_checks_no_state_behind_a_divergence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, _, first = train("full", tmp_path / "at once", poisoned_after=4, guarded=True)
    monkeypatch.setattr(progress, "_reading_is_free", lambda device: False)
    later, _, second = train("full", tmp_path / "later", poisoned_after=4, guarded=True)
    assert later.problem == "the training loss is nan after step 4"
    assert later == at_once
    assert second.measured == first.measured
    assert max(second.measured) == 4


@pytest.mark.parametrize(("share", "states"), [(1e-9, [2]), (1e9, [2, 4, 6, 8, 10, 12])])
def test_states_take_little_of_an_accelerators_time(tmp_path, monkeypatch, share, states) -> None:
    monkeypatch.setattr(loop, "_states_are_dear", lambda device: True)
    monkeypatch.setattr(loop, "STATE_SHARE", share)
    _, heard, _ = train("full", tmp_path)
    assert sorted(heard.states) == states


@pytest.mark.parametrize("poisoned_after", [None, 2 * STEPS - 2])
def test_the_optimiser_is_not_copied_with_the_model_and_lets_it_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poisoned_after: int | None
) -> None:
    copied, saved = [], []
    state = torch.optim.Optimizer.__getstate__
    monkeypatch.setattr(torch.optim.Optimizer, "__getstate__", lambda own: copied.append(own) or state(own))

    def saving(model: torch.nn.Module) -> None:
        saved.append(copy.deepcopy(model))

    result, _, found = train("full", tmp_path, poisoned_after=poisoned_after, saving=saving)
    assert result.status == ("finished" if poisoned_after is None else "diverged")
    assert saved
    assert not copied
    # Afterwards the model is as any other: nothing was put into it, and no gradient is left.
    assert set(vars(found.model)) == set(
        vars(adapt(load_model("config:tiny"), adaptation(settings_of("full")), CLASSES, 0))
    )
    assert all(parameter.grad is None for parameter in found.model.parameters())


def test_nothing_of_a_library_is_changed_while_a_run_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_libraries() -> list[Any]:
        classes = (torch.nn.Module, torch.optim.Optimizer, torch.Tensor, threading.Thread, transformers.Trainer)
        return [threading.excepthook, threading.enumerate(), *(dict(vars(one)) for one in classes)]

    before, seen = of_libraries(), []
    step = Heard.step
    monkeypatch.setattr(Heard, "step", lambda own, *done: seen.append(of_libraries()) or step(own, *done))
    train("full", tmp_path, loss="attention_preservation:0.1")
    assert len(seen) == 2 * STEPS
    assert all(one == before for one in seen)


@pytest.mark.parametrize("method", ["full", "linear_probe"])
def test_a_study_trains_as_a_plain_loop_does(tmp_path: Path, method: str) -> None:
    """Bit for bit: the same batches, cross-entropy, clipped gradients, AdamW and cosine, and nothing besides."""
    settings, store = settings_of("full", method=method, epochs=2), images()
    _, _, found = train("full", tmp_path, method=method, epochs=2)
    model = adapt(load_model("config:tiny"), adaptation(settings), CLASSES, settings.seed).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    warm = math.ceil(settings.warmup * 2 * STEPS)
    schedule = get_cosine_schedule_with_warmup(optimizer, warm, 2 * STEPS)
    for epoch in range(settings.epochs):
        turned = order.flips(IMAGES, settings.seed, epoch)
        shuffled = order.epoch_order(IMAGES, settings.seed, epoch)
        for positions in np.split(np.asarray(shuffled), STEPS):
            pixels = store.fetch(positions, np.asarray(turned)[positions])
            labels = torch.from_numpy(store.labels[positions])
            optimizer.zero_grad()
            model(pixel_values=pixels, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
            optimizer.step()
            schedule.step()
    own = dict(found.model.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, own[name]), name


def test_what_an_interrupted_training_left_in_accelerate_stops_no_step(tmp_path: Path) -> None:
    GradientState().sync_gradients = False
    _, _, trained = train("full", tmp_path)
    untrained = adapt(load_model("config:tiny"), adaptation(settings_of("full")), CLASSES, settings_of("full").seed)
    before = dict(untrained.named_parameters())
    assert any(not torch.equal(parameter, before[name]) for name, parameter in trained.model.named_parameters())
