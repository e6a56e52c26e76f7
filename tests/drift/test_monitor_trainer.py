"""The callback of ``transformers.Trainer``: logging, protection, alerts, tables, and training that is left as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from transformers import CLIPModel, PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from attndrift.callbacks import DriftCallback
from attndrift.drift import Alert, DriftMonitor
from attndrift.losses import (
    L2SP,
    LDIFS,
    AttentionCache,
    AttentionPreservation,
    EntropyFloor,
    PreservationLoss,
    PreservationLossError,
    SummedLoss,
)
from attndrift.models import load_model
from attndrift.results.tables import read_tables
from training_loops import Classifier, Tracker, rows, state_of, trainer_of


@pytest.fixture
def clip() -> CLIPModel:
    torch.manual_seed(0)
    return load_model("config:tiny")


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 3, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("adapters", [False, True])
def test_it_logs_and_trains_as_without(clip: CLIPModel, images: Tensor, tmp_path: Path, adapters: bool) -> None:
    def model() -> Classifier:
        torch.manual_seed(4)
        inner: Any = copy.deepcopy(clip)
        if adapters:
            targets = r".*vision_model.*\.(q_proj|v_proj)"
            inner = get_peft_model(inner, LoraConfig(r=2, target_modules=targets, lora_dropout=0.3))
        for layer in inner.vision_model.encoder.layers:
            layer.self_attn.dropout = 0.2
        return Classifier(inner)

    plain = model()
    trainer_of(plain, images, tmp_path).train()
    watched, tracker, lines = model(), Tracker(), []
    callback = DriftCallback(DriftMonitor(watched, images), every=2, echo=lines.append)
    trainer = trainer_of(watched, images, tmp_path, tracker, callback)
    trainer.train()
    for name, value in state_of(plain).items():
        assert torch.equal(value, watched.state_dict()[name]), name
    drifts = [(step, logs) for step, logs in tracker.seen if "drift/entropy" in logs]
    assert [step for step, _ in drifts] == [0, 2, 4, 6]
    assert {"drift_entropy/layer_01", "drift_gini/layer_03", "drift/cka_mean"} <= set(drifts[0][1])
    weights = [logs["drift/weight_drift"] for _, logs in drifts]
    assert weights == sorted(weights)
    assert weights[0] == 0.0 < weights[1]
    assert [step for step, _ in callback.drift] == [0, 2, 4, 6]
    assert [line.partition(":")[0] for line in lines] == [f"drift at step {step}" for step in (0, 2, 4, 6)]
    assert [entry["step"] for entry in trainer.state.log_history if "drift/cka_mean" in entry] == [0, 2, 4, 6]


def test_start_and_end_can_be_left_out_and_the_last_step_is_measured_once(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    for options, steps in (
        ({"every": 4}, [0, 4, 6]),
        ({"every": [1, 6]}, [0, 1, 6]),
        ({"every": 4, "at_start": False, "at_end": False}, [4]),
    ):
        model = Classifier(copy.deepcopy(clip))
        seen: list[tuple[int, float]] = []
        callback = DriftCallback(
            DriftMonitor(model, images), echo=None, on_drift=lambda s, e, _, seen=seen: seen.append((s, e)), **options
        )
        trainer = trainer_of(model, images, tmp_path)
        assert callback.attach(trainer) is callback
        trainer.train()
        assert [step for step, _ in seen] == steps
        assert [epoch for _, epoch in seen] == pytest.approx([step / 3 for step in steps])


def test_a_training_that_another_callback_ends_is_measured_to_its_end(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    class Enough(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

    model = Classifier(clip)
    callback = DriftCallback(DriftMonitor(model, images), every=2, echo=None, folder=tmp_path / "drift")
    trainer_of(model, images, tmp_path, callback, Enough()).train()
    assert [step for step, _ in callback.drift] == [0, 2, 3]
    assert read_tables(tmp_path / "drift").history["step"].tolist() == [0, 2, 3]


def test_the_monitor_must_watch_what_is_trained(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    other = copy.deepcopy(clip)
    callback = DriftCallback(DriftMonitor(other, images), echo=None)
    with pytest.raises(ValueError, match="another model than the trainer trains"):
        trainer_of(Classifier(clip), images, tmp_path, callback).train()
    inner = DriftCallback(DriftMonitor(clip, images), preserve=AttentionPreservation(other, 1.0), echo=None)
    with pytest.raises(ValueError, match="the preservation loss of this callback watches another model"):
        trainer_of(Classifier(clip), images, tmp_path, inner).train()
    with pytest.raises(ValueError, match="at least 1"):
        DriftCallback(DriftMonitor(clip, images), every=0)


def test_a_stop_ends_the_training_with_the_best_state(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    model = Classifier(clip)
    states: dict[int, dict[str, Tensor]] = {}

    class Spy(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            states[state.global_step] = state_of(model)

    limit = 0.01
    alert = Alert("weight_drift", above=limit, action="stop")
    callback = DriftCallback(
        DriftMonitor(model, images), 1, alerts=[alert], folder=tmp_path / "drift", run={"dataset": "noise"}, echo=None
    )
    trainer = trainer_of(model, images, tmp_path, Spy(), callback, num_train_epochs=20, learning_rate=1e-3)
    trainer.train()
    drifts = dict(callback.drift)
    last = trainer.state.global_step
    assert 1 < last < 60
    assert drifts[last].weight_drift > limit >= drifts[last - 1].weight_drift  # type: ignore[operator]
    assert [(event.step, event.metric) for event in callback.alerts] == [(last, "weight_drift")]
    assert callback.watch.best_step == last - 1
    for name, value in states[last - 1].items():
        assert torch.equal(model.state_dict()[name], value), name
    run = read_tables(tmp_path / "drift").runs.iloc[0]
    assert (run["dataset"], run["seed"], run["batch_size"], run["learning_rate"]) == ("noise", 0, 4, 1e-3)
    assert run["weight_drift"] == pytest.approx(drifts[last - 1].weight_drift)


def test_losses_and_accuracies_of_the_trainer_are_in_the_history(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    model = Classifier(clip)
    callback = DriftCallback(DriftMonitor(model, images), 3, folder=tmp_path / "drift", echo=None)
    options = {"eval_strategy": "epoch", "logging_strategy": "steps", "logging_steps": 3}
    trainer = trainer_of(model, images, tmp_path, callback, **options)
    trainer.compute_metrics = lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())}
    trainer.train()
    history = read_tables(tmp_path / "drift").history
    assert history["step"].tolist() == [0, 3, 6]
    logged = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry or "loss" in entry]
    assert history["train_loss"].tolist()[1:] == [entry["loss"] for entry in logged if "loss" in entry]
    assert history["val_accuracy"].tolist()[1:] == [e["eval_accuracy"] for e in logged if "eval_accuracy" in e]


def _protections(model: nn.Module, images: Tensor) -> dict[str, PreservationLoss]:
    return {
        "copy": AttentionPreservation(model, 3.0),
        "cache": AttentionPreservation(model, 3.0, teacher=AttentionCache(model, images)),
        "floor": EntropyFloor(model, 3.0, probe=images, fraction=1.0),
        "sum": SummedLoss(L2SP(model, 3.0), LDIFS(model, 3.0)),
    }


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("kind", "accumulation"), [("sum", 3), ("copy", 1), ("cache", 3), ("floor", 3)])
def test_protect_is_one_argument_and_the_same_as_by_hand(
    clip: CLIPModel, images: Tensor, tmp_path: Path, kind: str, accumulation: int
) -> None:
    class ByHand(Trainer):
        loss_is_scaled_for_ga = False

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            named = {name: inputs.pop(name) for name in ("index", "flipped") if name in inputs}
            output = model(**inputs)
            return output["loss"] + (by_hand(**named) if kind == "cache" else by_hand())

    options = {"gradient_accumulation_steps": accumulation, "num_train_epochs": 2}
    numbered = kind == "cache"
    first = Classifier(copy.deepcopy(clip))
    by_hand = _protections(first, images)[kind]
    arguments = trainer_of(first, images, tmp_path, **options).args
    ByHand(first, arguments, train_dataset=rows(images, numbered), callbacks=[]).train()  # type: ignore[arg-type]

    second = Classifier(copy.deepcopy(clip))
    preserve = _protections(second, images)[kind]
    tracker = Tracker()
    callback = DriftCallback(DriftMonitor(second, images), every=1, preserve=preserve, folder=tmp_path / "d", echo=None)
    trainer = trainer_of(second, images, tmp_path, tracker, callback, numbered=numbered, **options)
    trainer.train()
    trainer.evaluate()
    for name, value in state_of(first).items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=1e-6, atol=1e-7, msg=name)
    assert not second._forward_hooks, "the model returns its own loss again"
    assert not second._forward_pre_hooks
    assert any(logs.get("drift/preservation_loss", 0.0) > 0 for _, logs in tracker.seen)
    run = read_tables(tmp_path / "d").runs.iloc[0]
    assert run["loss"] == "+".join(f"{name}:3" for name in preserve.weights)
    plain = Classifier(copy.deepcopy(clip))
    trainer_of(plain, images, tmp_path, **options).train()
    assert not torch.equal(
        state_of(plain)["clip.visual_projection.weight"], state_of(first)["clip.visual_projection.weight"]
    )


def test_a_loss_that_is_normalised_over_the_accumulated_batch_gets_its_share(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    """Where the trainer sums micro-batches, the preservation loss of each counts 1/n, as it does where it averages them."""

    def train(summed: bool) -> dict[str, Tensor]:
        model = Classifier(copy.deepcopy(clip))
        callback = DriftCallback(
            DriftMonitor(model, images), preserve=AttentionPreservation(model, 5.0), at_start=False, echo=None
        )
        options = {"gradient_accumulation_steps": 3, "num_train_epochs": 3}
        trainer = trainer_of(model, images, tmp_path, callback, **options)
        if summed:
            trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: (
                nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch
            )
            own = Classifier.forward
            model.forward = lambda pixel_values, labels=None: own(  # type: ignore[method-assign]
                model, pixel_values, torch.zeros(len(pixel_values), dtype=torch.long) if labels is None else labels
            )
        trainer.train()
        return state_of(model)

    averaged = train(False)
    for name, value in train(True).items():
        torch.testing.assert_close(value, averaged[name], rtol=1e-4, atol=2e-6, msg=name)


def test_a_callback_that_is_not_attached_says_how(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    model = Classifier(clip)
    callback = DriftCallback(DriftMonitor(model, images), echo=None)
    arguments = trainer_of(model, images, tmp_path).args
    with pytest.raises(RuntimeError, match=r"DriftCallback\(\.\.\.\)\.attach\(trainer\)"):
        Trainer(model, arguments, callbacks=[callback])  # type: ignore[arg-type]
    trainer = trainer_of(model, images, tmp_path)
    trainer.add_callback(callback)
    with pytest.raises(RuntimeError, match=r"\.attach\(trainer\)"):
        trainer.train()
    assert trainer.callback_handler.callbacks.count(callback.attach(trainer)) == 1
    trainer.train()
    assert [step for step, _ in callback.drift] == [0, 6]


def test_a_smoothed_loss_is_protected_too(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    class Unlabelled(Classifier):
        def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            found = super().forward(pixel_values, torch.zeros(len(pixel_values), dtype=torch.long))
            return {"logits": found["logits"]} if labels is None else found

    trained = []
    for weight in (0.0, 5.0):
        model = Unlabelled(copy.deepcopy(clip))
        model.config = clip.config  # type: ignore[assignment]
        preserve = AttentionPreservation(model, weight)
        callback = DriftCallback(DriftMonitor(model, images), every=1, preserve=preserve, at_start=False, echo=None)
        trainer = trainer_of(model, images, tmp_path, callback, label_smoothing_factor=0.1)
        smoother = trainer.label_smoother
        trainer.train()
        assert trainer.label_smoother is smoother
        trained.append(state_of(model))
    assert preserve.last is not None
    assert not torch.equal(*(state["clip.visual_projection.weight"] for state in trained))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("accumulation", [2, 1])
def test_a_loss_that_a_protection_cannot_reach_is_refused(
    clip: CLIPModel, images: Tensor, tmp_path: Path, accumulation: int
) -> None:
    """A loss made of logits would train on unprotected, and nobody would know."""

    class OfLogits(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            output = model(**inputs)
            return nn.functional.cross_entropy(2 * output["logits"], inputs["labels"])

    model = Classifier(clip)
    arguments = trainer_of(model, images, tmp_path, gradient_accumulation_steps=accumulation).args
    trainer = OfLogits(model, arguments, train_dataset=rows(images))  # type: ignore[arg-type]
    DriftCallback(DriftMonitor(model, images), preserve=AttentionPreservation(model, 1.0), echo=None).attach(trainer)
    with pytest.raises(PreservationLossError, match=r"loss = loss \+ preserve\(\)"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.one_in(2)
@pytest.mark.parametrize("moment", ["on_step_end", "on_pre_optimizer_step"])
def test_the_loss_of_an_interrupted_training_is_not_added_to_the_next(
    clip: CLIPModel, images: Tensor, tmp_path: Path, moment: str
) -> None:
    class Interrupt(TrainerCallback):
        pass

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    setattr(Interrupt, moment, interrupt)
    model = Classifier(clip)
    added: list[int] = []

    class Counted(AttentionPreservation):
        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            added.append(1)
            return super().__call__(*args, **kwargs)

    def callback() -> DriftCallback:
        return DriftCallback(DriftMonitor(model, images), every=100, preserve=Counted(model, 0.1), echo=None)

    with pytest.raises(KeyboardInterrupt):
        trainer_of(model, images, tmp_path, callback(), Interrupt()).train()
    added.clear()
    trainer = trainer_of(model, images, tmp_path, callback())
    trainer.train()
    assert len(added) == trainer.state.global_step
    added.clear()
    trainer_of(model, images, tmp_path).train()
    assert added == [], "a trainer without the callback trains without the loss"


def test_a_copy_of_a_protected_model_is_as_any_other(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    """An average of the weights, say, which is trained or run while the original is."""
    copies: list[nn.Module] = []

    class Copy(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            copies.append(copy.deepcopy(model).train())

    model = Classifier(clip)
    preserve = AttentionPreservation(model, 1.0)
    trainer = trainer_of(
        model, images, tmp_path, DriftCallback(DriftMonitor(model, images), preserve=preserve, echo=None)
    )
    trainer.add_callback(Copy())
    trainer.train()
    labels = torch.arange(len(images)) % 2
    output = copies[-1](images, labels)
    torch.testing.assert_close(output["loss"], nn.functional.cross_entropy(output["logits"], labels))


def test_tensorboard_gets_the_drift(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    model = Classifier(clip)
    writer = SummaryWriter(str(tmp_path / "board"))
    callback = DriftCallback(DriftMonitor(model, images), every=3, echo=None)
    trainer = trainer_of(model, images, tmp_path, TensorBoardCallback(tb_writer=writer), callback)
    trainer.train()
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    tag = next(tag for tag in board.Tags()["scalars"] if tag.endswith("drift/weight_drift"))
    events = [(event.step, event.value) for event in board.Scalars(tag)]
    assert [step for step, _ in events] == [0, 3, 6]
    assert [value for _, value in events] == pytest.approx([drift.weight_drift for _, drift in callback.drift])


@pytest.mark.one_in(2)
@pytest.mark.parametrize("bars", [True, False], ids=["progress bar", "printed logs"])
def test_a_measurement_is_one_line_on_the_console_and_whole_in_the_trackers(
    clip: CLIPModel, images: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str], bars: bool
) -> None:
    model, tracker = Classifier(clip), Tracker()
    callback = DriftCallback(DriftMonitor(model, images), every=3)
    trainer = trainer_of(model, images, tmp_path, tracker, callback)
    trainer.add_callback(ProgressCallback() if bars else PrinterCallback())
    trainer.train()
    printed = capsys.readouterr().out
    assert printed.count("drift at step") == 3
    assert "drift/" not in printed
    assert "drift_" not in printed
    assert "train_loss" in printed or bars, "the trainer's own logs stay"
    assert sum("drift/cka_mean" in logs for _, logs in tracker.seen) == 3
    assert any(isinstance(one, (PrinterCallback, ProgressCallback)) for one in trainer.callback_handler.callbacks)
