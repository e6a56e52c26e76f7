"""The last row describes the weights that remain, and a history has each step once, whatever a training does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import CLIPModel, TrainerCallback

from attndrift.callbacks import DriftCallback
from attndrift.drift import Alert, DriftMonitor, DriftWatch
from attndrift.models import load_model
from attndrift.results.tables import TableError, read_tables
from training_loops import Classifier, trainer_of


@pytest.fixture
def clip() -> CLIPModel:
    torch.manual_seed(0)
    return load_model("config:tiny")


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def _by_copy(model: nn.Module, average: nn.Module) -> None:
    with torch.no_grad():
        for own, other in zip(model.parameters(), average.parameters(), strict=True):
            own.copy_(other)


def _by_data_copy(model: nn.Module, average: nn.Module) -> None:
    for own, other in zip(model.parameters(), average.parameters(), strict=True):
        own.data.copy_(other.data)


def _by_data(model: nn.Module, average: nn.Module) -> None:
    for own, other in zip(model.parameters(), average.parameters(), strict=True):
        own.data = other.data.clone()


def _by_state(model: nn.Module, average: nn.Module) -> None:
    model.load_state_dict(average.state_dict())


def _by_assignment(model: nn.Module, average: nn.Module) -> None:
    model.load_state_dict(average.state_dict(), assign=True)


def _by_module(model: Any, average: Any) -> None:
    # A part is put in as a whole.
    model.clip.visual_projection = average.clip.visual_projection


def _by_scaling(model: nn.Module, average: nn.Module) -> None:
    # Half the way back, as WiSE-FT does.
    with torch.no_grad():
        for own, other in zip(model.parameters(), average.parameters(), strict=True):
            own.lerp_(other, 0.5)


WAYS: list[Callable[[Any, Any], None]] = [
    _by_copy, _by_data_copy, _by_data, _by_state, _by_assignment, _by_module, _by_scaling,
]  # fmt: skip


class _Average(TrainerCallback):
    """Keeps the average of the weights, and puts it into the model at one moment of the training."""

    def __init__(self, model: nn.Module, moment: str, put: Callable[[Any, Any], None]) -> None:
        self.average = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
        self._model = model
        if moment != "on_step_end":
            setattr(self, moment, lambda *_, **__: put(model, self.average.module))
        else:
            self._put = put

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.average.update_parameters(self._model)
        if hasattr(self, "_put") and state.global_step == state.max_steps:
            self._put(self._model, self.average.module)


def _lora(clip: nn.Module) -> Any:
    return get_peft_model(clip, LoraConfig(r=2, target_modules=r".*vision_model.*\.(q_proj|v_proj)"))


def _assert_remains(monitor: DriftMonitor, drift: list[Any], folder: Path, last: int) -> None:
    now = monitor.measure()
    assert [step for step, _ in drift][-1] == last
    assert drift[-1][1].values() == now.values()
    tables = read_tables(folder)
    steps = tables.history["step"].tolist()
    assert len(set(steps)) == len(steps)
    assert steps[-1] == last
    for table in (tables.runs, tables.history):
        assert table["weight_drift"].tolist()[-1] == now.weight_drift
        assert table["embedding_drift"].tolist()[-1] == now.embedding_drift
    layers = tables.layers[(tables.layers["step"] == last) & (tables.layers["metric"] == "cka")]
    assert layers["value"].tolist() == now.compared["cka"].tolist()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize("moment", ["on_train_end", "on_epoch_end", "on_step_end"])
def test_an_average_that_a_callback_puts_in_is_what_the_last_row_describes(
    clip: CLIPModel, images: Tensor, tmp_path: Path, moment: str, first: bool
) -> None:
    model = Classifier(clip)
    monitor = DriftMonitor(model, images)
    average = _Average(model, moment, _by_data_copy)
    watched = DriftCallback(monitor, every=4, folder=tmp_path / "drift", echo=None)
    callbacks = (average, watched) if first else (watched, average)
    trainer_of(model, images, tmp_path, *callbacks, learning_rate=1e-2).train()
    assert [step for step, _ in watched.drift] == [0, 4, 6]
    _assert_remains(monitor, watched.drift, tmp_path / "drift", 6)


@pytest.mark.one_in(9)
@pytest.mark.parametrize(
    ("put", "adapters"), [(put, False) for put in WAYS] + [(_by_data_copy, True), (_by_assignment, True)]
)
def test_weights_are_seen_to_be_others_however_they_are_put_in(
    clip: CLIPModel, images: Tensor, tmp_path: Path, put: Callable[[Any, Any], None], adapters: bool
) -> None:
    model = Classifier(_lora(clip) if adapters else clip)
    monitor = DriftMonitor(model, images)
    callback = DriftCallback(monitor, every=4, folder=tmp_path / "drift", echo=None)
    trainer = trainer_of(model, images, tmp_path, callback, learning_rate=1e-2)
    before: list[float] = []
    trainer.add_callback(_Average(model, "on_train_end", put))
    trainer.add_callback(_Noted(before, callback))
    trainer.train()
    _assert_remains(monitor, callback.drift, tmp_path / "drift", 6)
    assert callback.drift[-1][1].embedding_drift != before[-1], "the average is another model"


class _Noted(TrainerCallback):
    def __init__(self, found: list[float], callback: DriftCallback) -> None:
        self.found, self.callback = found, callback

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found.append(self.callback.drift[-1][1].embedding_drift)


def test_an_average_in_place_of_the_best_model_is_what_the_run_ends_with(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    model = Classifier(clip)
    monitor = DriftMonitor(model, images)
    callback = DriftCallback(monitor, every=3, folder=tmp_path / "drift", echo=None)
    options = {
        "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "score",
        "learning_rate": 1e-2,
    }  # fmt: skip
    trainer = trainer_of(model, images, tmp_path, callback, **options)
    trainer.compute_metrics = lambda _: {"score": -float(trainer.state.global_step)}
    trainer.add_callback(_Average(model, "on_train_end", _by_copy))
    trainer.train()
    run = read_tables(tmp_path / "drift").runs.iloc[0]
    assert run["weight_drift"] == monitor.measure().weight_drift
    assert [step for step, _ in callback.drift] == [0, 3, 6]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("put", WAYS)
def test_a_loop_of_ones_own_may_put_an_average_in_before_or_after_the_block_ends(
    clip: CLIPModel, images: Tensor, tmp_path: Path, put: Callable[[Any, Any], None]
) -> None:
    model = Classifier(clip)
    monitor = DriftMonitor(model, images)
    averages = [copy.deepcopy(model) for _ in range(2)]
    for number, average in enumerate(averages, 1):
        with torch.no_grad():
            for parameter in average.parameters():
                parameter.mul_(1 + 0.03 * number)
    with DriftWatch(monitor, every=2, folder=tmp_path / "drift", echo=None) as watch:
        for step in range(1, 5):
            with torch.no_grad():
                model.clip.visual_projection.weight.mul_(1.1)
            watch.step(step, epoch=step / 4, train_loss=1.0 / step)
        put(model, averages[0])
    _assert_remains(monitor, watch.drift, tmp_path / "drift", 4)
    put(model, averages[1])
    watch.finish(4, epoch=1.0)
    _assert_remains(monitor, watch.drift, tmp_path / "drift", 4)
    history = read_tables(tmp_path / "drift").history
    assert history["train_loss"].tolist()[1:] == [0.5, 0.25], "what was noted of the step stays"


def test_weights_that_stay_are_measured_once(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    lines: list[str] = []
    model = Classifier(clip)
    callback = DriftCallback(DriftMonitor(model, images), every=3, echo=lines.append)
    trainer_of(model, images, tmp_path, callback).train()
    assert [line.partition(":")[0] for line in lines] == [f"drift at step {step}" for step in (0, 3, 6)]


# -- each step once ------------------------------------------------------------------------------------


def _train(
    callback: DriftCallback, model: nn.Module, images: Tensor, folder: Path, *others: Any, **options: Any
) -> None:
    trainer_of(model, images, folder, callback, *others, **({"learning_rate": 1e-2} | options)).train()


class _Break(TrainerCallback):
    """Raises at one step, the first time."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and self.error is not None:
            error, self.error = self.error, None  # type: ignore[assignment]
            raise error


def _twice_with_one_trainer(callback: DriftCallback, model: nn.Module, images: Tensor, folder: Path) -> None:
    trainer = trainer_of(model, images, folder, callback)
    trainer.train()
    trainer.train()


def _two_trainers(callback: DriftCallback, model: nn.Module, images: Tensor, folder: Path) -> None:
    _train(callback, model, images, folder)
    _train(callback, model, images, folder)


def _out_of_memory(callback: DriftCallback, model: nn.Module, images: Tensor, folder: Path) -> None:
    error = RuntimeError("CUDA out of memory.")
    # The trainer makes the batches smaller and starts again.
    options = {"auto_find_batch_size": True, "num_train_epochs": 1}
    _train(callback, model, images, folder, _Break(2, error), **options)


def _interrupted(callback: DriftCallback, model: nn.Module, images: Tensor, folder: Path) -> None:
    trainer = trainer_of(model, images, folder, callback, _Break(4, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train()


def _failed(callback: DriftCallback, model: nn.Module, images: Tensor, folder: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        _train(callback, model, images, folder, _Break(5, OSError("gone")))
    _train(callback, model, images, folder)


def _resumed(callback: DriftCallback, model: nn.Module, images: Tensor, folder: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 3}
    with pytest.raises(OSError, match="gone"):
        _train(callback, model, images, folder, _Break(5, OSError("gone")), **options)
    trainer_of(model, images, folder, callback, **options).train(resume_from_checkpoint=str(folder / "checkpoint-3"))


def _longer(callback: DriftCallback, model: nn.Module, images: Tensor, folder: Path) -> None:
    # A finished training that goes on for two more epochs.
    options = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 1}
    _train(callback, model, images, folder, **options)
    trainer = trainer_of(model, images, folder, callback, **(options | {"num_train_epochs": 2}))
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3"))


def _stopped(callback: DriftCallback, model: nn.Module, images: Tensor, folder: Path) -> None:
    # As from a second cell of a notebook, after the first was ended by an alert of another callback.
    other = DriftCallback(callback.monitor, 1, alerts=[Alert("weight_drift", above=1e-9, action="stop")], echo=None)
    _train(callback, model, images, folder, other)
    _train(callback, model, images, folder)


AGAIN = [_twice_with_one_trainer, _two_trainers, _out_of_memory, _interrupted, _failed, _resumed, _longer, _stopped]


@pytest.mark.one_in(8)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("again", AGAIN)
def test_a_callback_that_is_used_again_has_each_step_once(
    clip: CLIPModel, images: Tensor, tmp_path: Path, again: Callable[..., None]
) -> None:
    model = Classifier(clip)
    monitor = DriftMonitor(model, images)
    callback = DriftCallback(monitor, every=1, folder=tmp_path / "drift", existing="replace", echo=None)
    again(callback, model, images, tmp_path)
    last = 4 if again is _out_of_memory else 6
    assert [step for step, _ in callback.drift] == list(range(last + 1))
    _assert_remains(monitor, callback.drift, tmp_path / "drift", last)
    tables = read_tables(tmp_path / "drift")
    assert tables.history["step"].tolist() == list(range(last + 1))
    assert not tables.layers.duplicated(["step", "layer", "head", "metric"]).any()
    assert tables.runs["status"].tolist() == ["finished"]


def test_a_second_training_does_not_write_over_the_first_unasked(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    model = Classifier(clip)
    callback = DriftCallback(DriftMonitor(model, images), every=2, folder=tmp_path / "drift", echo=None)
    _train(callback, model, images, tmp_path)
    content = {path.name: path.read_bytes() for path in (tmp_path / "drift").iterdir()}
    with pytest.raises(TableError, match=r"drift: holds a finished training of 6 steps .* another folder"):
        _train(callback, model, images, tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "drift").iterdir()} == content


def test_alerts_of_a_training_that_began_again_are_those_of_the_last_one(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    model = Classifier(clip)
    alerts = [Alert("weight_drift", above=1e-9)]
    callback = DriftCallback(DriftMonitor(model, images), 1, alerts=alerts, folder=tmp_path / "drift", echo=None)
    _interrupted(callback, model, images, tmp_path)
    assert [event.step for event in callback.alerts] == [0], "the interrupted training has moved the weights already"


# -- a resumed training keeps its rows -----------------------------------------------------------------


def _worsen(clip: CLIPModel) -> None:
    with torch.no_grad():
        clip.visual_projection.weight.mul_(1.1)


def _watch(clip: CLIPModel, images: Tensor, folder: Path, existing: Any = "refuse", every: Any = 1) -> DriftWatch:
    return DriftWatch(DriftMonitor(clip, images, reference=clip), every, folder=folder, existing=existing, echo=None)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("every", "measured", "resumed", "expected"),
    [
        (1, 4, range(5, 8), [0, 1, 2, 3, 4, 5, 6, 7]),
        (1, 4, range(3, 6), [0, 1, 2, 3, 4, 5]),
        (2, 5, range(6, 9), [0, 2, 4, 5, 6, 8]),
        (3, 4, range(5, 6), [0, 3, 4, 5]),
        ([1, 5, 9], 4, range(5, 10), [0, 1, 4, 5, 9]),
        (1, 60, range(61, 63), list(range(63))),
    ],
)
def test_a_block_that_continues_keeps_every_row_before_its_first_step(
    clip: CLIPModel, images: Tensor, tmp_path: Path, every: Any, measured: int, resumed: range, expected: list[int]
) -> None:
    with _watch(clip, images[:4], tmp_path / "drift", every=every) as watch:
        for step in range(1, measured + 1):
            watch.step(step, train_loss=float(step))
    with _watch(clip, images[:4], tmp_path / "drift", "continue", every=every) as watch:
        for step in resumed:
            _worsen(clip)
            watch.step(step)
    history = read_tables(tmp_path / "drift").history
    assert history["step"].tolist() == expected
    kept = history[(history["step"] > 0) & (history["step"] < resumed[0]) & (history["step"] != measured)]
    assert kept["train_loss"].tolist() == [float(step) for step in kept["step"]]


@pytest.mark.slow
def test_a_killed_training_has_every_row_up_to_its_checkpoint(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    """Long tables are written seldom; where a checkpoint is saved they are complete."""
    model = Classifier(clip)
    callback = DriftCallback(DriftMonitor(model, images[:4]), 1, folder=tmp_path / "drift", echo=None)
    options = {"save_strategy": "steps", "save_steps": 46, "num_train_epochs": 16, "learning_rate": 1e-5}
    with pytest.raises(OSError, match="killed"):
        _train(callback, model, images, tmp_path, _Break(47, OSError("killed")), **options)
    assert read_tables(tmp_path / "drift").history["step"].tolist() == list(range(47))


def test_what_was_noted_of_the_step_that_is_resumed_from_stays(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    with _watch(clip, images, tmp_path / "drift") as watch:
        for step in range(1, 4):
            watch.step(step, val_accuracy=step / 10)
    watch = _watch(clip, images, tmp_path / "drift", "continue")
    watch.start(2)
    watch.step(3)
    watch.finish(3)
    history = read_tables(tmp_path / "drift").history
    assert history["step"].tolist() == [0, 1, 2, 3]
    assert history["val_accuracy"].tolist()[1:3] == [0.1, 0.2]


# -- steps that are not reported -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "reported", "expected"),
    [
        ([1, 3, 5], range(2, 8, 2), [2, 4, 6]),
        ([2, 3], range(2, 10, 4), [2, 6]),
        ([4], range(3, 10, 3), [6, 9]),
        (5, range(2, 12, 2), [6, 10]),
        (3, range(4, 17, 4), [4, 8, 12, 16]),
        (1, range(2, 8, 2), [2, 4, 6]),
        (100, range(90, 330, 30), [120, 210, 300]),
        ([7, 7, 8], range(5, 20, 5), [10, 15]),
    ],
)
def test_what_falls_due_between_two_reported_steps_is_measured(
    clip: CLIPModel, images: Tensor, every: Any, reported: range, expected: list[int]
) -> None:
    watch = DriftWatch(DriftMonitor(clip, images[:4]), every, echo=None)
    watch.start()
    for step in reported:
        watch.step(step)
    watch.finish(reported[-1])
    last = [] if expected[-1] == reported[-1] else [reported[-1]]
    assert [step for step, _ in watch.drift] == [0, *expected, *last]
