"""The callback of Lightning, where Lightning is installed."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import CLIPModel

import attndrift.drift
from attndrift import Budget, Guard
from attndrift.drift import Alert, DriftMonitor
from attndrift.losses import AttentionPreservation
from attndrift.models import load_model
from attndrift.results.tables import read_tables
from training_loops import in_processes


def test_without_lightning_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "attndrift.callbacks.lightning", raising=False)
    with pytest.raises(ImportError, match=r'pip install "attndrift\[lightning\]"'):
        _ = attndrift.callbacks.LightningDriftCallback


try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightning.pytorch import LightningModule, Trainer
        from lightning.pytorch.loggers.logger import Logger
except ImportError:
    LightningModule = nn.Module  # type: ignore[assignment, misc]
    Logger = object  # type: ignore[assignment, misc]
    installed = False
else:
    installed = True

needs_lightning = pytest.mark.skipif(not installed, reason="lightning is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::Warning")  # its own, about workers and loggers


class _Module(LightningModule):  # type: ignore[misc, valid-type]
    def __init__(self, clip: CLIPModel, preserve: bool = False) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.clip, self.head = clip, nn.Linear(32, 2)
        self.preserve = AttentionPreservation(clip, 5.0) if preserve else None

    def training_step(self, batch: Any, _: int) -> Tensor:
        images, labels = batch
        features = self.clip.get_image_features(pixel_values=images).pooler_output
        loss = nn.functional.cross_entropy(self.head(features), labels)
        return loss if self.preserve is None else loss + self.preserve()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


class _Tracker(Logger):  # type: ignore[misc, valid-type]
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, dict[str, float]]] = []

    name = version = "tracker"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.seen.append((int(step or 0), dict(metrics)))


@pytest.fixture
def clip() -> CLIPModel:
    torch.manual_seed(0)
    model = load_model("config:tiny")
    for layer in model.vision_model.encoder.layers:
        layer.self_attn.dropout = 0.2
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def _fit(module: Any, images: Tensor, folder: Path, *callbacks: Any, **options: Any) -> Any:
    torch.manual_seed(7)
    ckpt_path = options.pop("ckpt_path", None)
    rows = [(image, i % 2) for i, image in enumerate(images)]
    trainer = Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=folder, callbacks=list(callbacks), **({"logger": False, "max_epochs": 2} | options),
    )  # fmt: skip
    loader = DataLoader(rows, batch_size=4, shuffle=True)  # type: ignore[arg-type, var-annotated]
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer


@needs_lightning
def test_it_logs_and_trains_as_without(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    from attndrift.callbacks import LightningDriftCallback

    plain = _Module(copy.deepcopy(clip))
    _fit(plain, images, tmp_path)
    module, tracker, lines = _Module(copy.deepcopy(clip)), _Tracker(), []
    callback = LightningDriftCallback(
        DriftMonitor(module.clip, images), every=4, folder=tmp_path / "drift", echo=lines.append
    )
    trainer = _fit(module, images, tmp_path, callback, logger=tracker)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name
    assert [step for step, _ in callback.drift] == [0, 4, 6]
    assert [step for step, logs in tracker.seen if "drift/cka_mean" in logs] == [0, 3, 5]
    assert "drift_entropy/layer_03" in tracker.seen[0][1]
    assert float(trainer.callback_metrics["drift/weight_drift"]) == pytest.approx(callback.drift[1][1].weight_drift)
    assert len(lines) == 3
    tables = read_tables(tmp_path / "drift")
    assert tables.history["epoch"].tolist() == pytest.approx([0, 4 / 3, 2])
    assert tables.runs.iloc[0]["status"] == "finished"


@needs_lightning
def test_accumulated_batches_are_measured_once_a_step(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    from attndrift.callbacks import LightningDriftCallback

    module = _Module(clip)
    callback = LightningDriftCallback(DriftMonitor(module.clip, images), every=1, echo=None)
    _fit(module, images, tmp_path, callback, accumulate_grad_batches=3)
    assert [step for step, _ in callback.drift] == [0, 1, 2]


@needs_lightning
def test_a_stop_puts_the_best_state_back(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    from attndrift.callbacks import LightningDriftCallback

    module = _Module(clip)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    alert = Alert("weight_drift", above=1e-6, action="stop")
    callback = LightningDriftCallback(DriftMonitor(module.clip, images), every=2, alerts=[alert], echo=None)
    trainer = _fit(module, images, tmp_path, callback)
    assert trainer.global_step == 2
    assert [event.step for event in callback.alerts] == [2]
    for name, value in before.items():
        assert torch.equal(value, module.state_dict()[name]), name


@needs_lightning
def test_a_protection_is_one_word_in_the_training_step(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    plain, protected = _Module(copy.deepcopy(clip)), _Module(copy.deepcopy(clip), preserve=True)
    for module in (plain, protected):
        _fit(module, images, tmp_path)
    assert protected.preserve is not None
    assert protected.preserve.last is not None
    assert not torch.equal(plain.clip.visual_projection.weight, protected.clip.visual_projection.weight)


@needs_lightning
def test_a_training_that_fails_says_so(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    from attndrift.callbacks import LightningDriftCallback

    module = _Module(clip)
    callback = LightningDriftCallback(DriftMonitor(module.clip, images), folder=tmp_path / "drift", echo=None)
    module.training_step = lambda *_: (_ for _ in ()).throw(OSError("the disk is gone"))
    with pytest.raises(OSError, match="gone"):
        _fit(module, images, tmp_path, callback)
    assert read_tables(tmp_path / "drift").runs["status"].tolist() == ["failed"]


@needs_lightning
def test_a_guard_keeps_its_budget_and_goes_into_the_checkpoints(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    from attndrift.callbacks import LightningDriftCallback

    module = _Module(clip)
    monitor = DriftMonitor(module.clip, images)
    guard = Guard(monitor, Budget("embedding_drift", at_most=1e-5), every=2, echo=None)
    callback = LightningDriftCallback(monitor, every=2, guard=guard, echo=None)
    trainer = _fit(module, images, tmp_path, callback)
    assert [event.step for event in guard.events] == [2, 4, 6]
    assert any(event.action == "rewound" for event in guard.events)
    assert all(drift.embedding_drift <= 1e-5 for _, drift in callback.drift)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=False)["callbacks"]
    assert stored["LightningDriftCallback"]["guard"] == guard.state_dict()


@pytest.mark.slow
@needs_lightning
def test_two_processes_train_as_without_and_hold_one_guarded_model(tmp_path: Path) -> None:
    first, second = in_processes("lightning_in_processes.py", tmp_path)
    for way, found in first.items():
        assert found.pop("lines") == len(found["drift"]), way
        assert second[way].pop("lines") == 0, way
        assert found == second[way], "weights, numbers and decisions"
    assert first["watched"]["weights"] == first["alone"]["weights"]
    assert "rewound" in [event["action"] for event in first["guarded"]["events"]]
    assert first["guarded"]["drift"][-1]["embedding_drift"] <= 2e-4


# -- the weights that remain, and the steps of Lightning's own logs ------------------------------------


def _average_callback() -> Any:
    """Puts an average into the module when training ends, as many scripts do."""
    from lightning.pytorch import Callback

    class Average(Callback):  # type: ignore[misc, valid-type]
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            _shrink(pl_module)

    return Average()


def _stochastic() -> Any:
    from lightning.pytorch.callbacks import StochasticWeightAveraging

    return StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1)


def _averaging() -> Any:
    from lightning.pytorch.callbacks import WeightAveraging

    return WeightAveraging()


def _shrink(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data.mul_(0.9)


def _in_the_module(hook: str) -> Any:
    def add(module: Any) -> None:
        setattr(module, hook, lambda: _shrink(module))

    return add


@needs_lightning
@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
@pytest.mark.parametrize("made", [_average_callback, _stochastic, _averaging])
def test_an_average_that_a_callback_puts_in_is_what_the_last_row_describes(
    clip: CLIPModel, images: Tensor, tmp_path: Path, made: Any, first: bool
) -> None:
    from attndrift.callbacks import LightningDriftCallback

    module = _Module(clip)
    monitor = DriftMonitor(module.clip, images)
    callback = LightningDriftCallback(monitor, every=4, folder=tmp_path / "drift", echo=None)
    averages = made()
    _fit(module, images, tmp_path, *((averages, callback) if first else (callback, averages)))
    now = monitor.measure()
    tables = read_tables(tmp_path / "drift")
    assert tables.history["step"].tolist() == [step for step, _ in callback.drift] == [0, 4, 6]
    assert callback.drift[-1][1].values() == now.values()
    assert tables.history["weight_drift"].tolist()[-1] == tables.runs["weight_drift"].tolist()[0] == now.weight_drift


@needs_lightning
@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_train_end", "on_fit_end"])
def test_weights_that_the_module_itself_replaces_are_measured_too(
    clip: CLIPModel, images: Tensor, tmp_path: Path, hook: str
) -> None:
    from attndrift.callbacks import LightningDriftCallback

    module = _Module(clip)
    _in_the_module(hook)(module)
    monitor = DriftMonitor(module.clip, images)
    callback = LightningDriftCallback(monitor, every=3, folder=tmp_path / "drift", echo=None)
    _fit(module, images, tmp_path, callback)
    assert [step for step, _ in callback.drift] == [0, 3, 6]
    assert callback.drift[-1][1].values() == monitor.measure().values()
    assert read_tables(tmp_path / "drift").runs["weight_drift"].tolist() == [monitor.measure().weight_drift]


@needs_lightning
def test_a_callback_of_a_fit_that_begins_again_or_goes_on_has_each_step_once(
    clip: CLIPModel, images: Tensor, tmp_path: Path
) -> None:
    from attndrift.callbacks import LightningDriftCallback

    module = _Module(clip)
    options: Any = {"every": 1, "folder": tmp_path / "drift", "existing": "replace", "echo": None}
    callback = LightningDriftCallback(DriftMonitor(module.clip, images), **options)
    own = module.training_step
    module.training_step = lambda batch, batch_idx: (
        (_ for _ in ()).throw(OSError("gone")) if batch_idx == 2 else own(batch, batch_idx)
    )
    with pytest.raises(OSError, match="gone"):
        _fit(module, images, tmp_path, callback)
    module.training_step = own
    trainer = _fit(module, images, tmp_path, callback)
    assert [step for step, _ in callback.drift] == list(range(7))
    trainer.fit_loop.max_epochs += 1
    trainer.fit(module, DataLoader([(image, 0) for image in images], batch_size=4))  # type: ignore[arg-type, var-annotated]
    assert [step for step, _ in callback.drift] == list(range(10))
    _fit(module, images, tmp_path, callback)
    assert (
        [step for step, _ in callback.drift]
        == read_tables(tmp_path / "drift").history["step"].tolist()
        == list(range(7))
    )


class _TwoOptimizers(_Module):
    """A step of each optimizer a batch: Lightning counts both, so only even steps come."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__(clip)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.clip.parameters(), 1e-2), torch.optim.SGD(self.head.parameters(), 1e-2)


@needs_lightning
@pytest.mark.parametrize(
    ("every", "expected"),
    [([1, 3, 5], [0, 2, 4, 6, 12]), (3, [0, 4, 6, 10, 12]), ([7], [0, 8, 12]), (5, [0, 6, 10, 12])],
)
def test_steps_between_those_of_two_optimizers_are_measured(
    clip: CLIPModel, images: Tensor, tmp_path: Path, every: Any, expected: list[int]
) -> None:
    from attndrift.callbacks import LightningDriftCallback

    module = _TwoOptimizers(clip)
    callback = LightningDriftCallback(DriftMonitor(module.clip, images), every=every, echo=None)
    _fit(module, images, tmp_path, callback)
    assert [step for step, _ in callback.drift] == expected


WAYS_TO_LOG: dict[str, dict[str, Any]] = {
    "every batch": {"every": 1},
    "every second": {"every": 2},
    "accumulation": {"every": 1, "accumulate_grad_batches": 3},
    "two optimizers": {"every": 3, "module": _TwoOptimizers},
    "logged seldom": {"every": 3, "log_every_n_steps": 3},
    "resumed": {"every": 1, "resumed": True},
}


@needs_lightning
@pytest.mark.parametrize("way", WAYS_TO_LOG)
def test_a_measurement_is_logged_under_the_step_of_lightnings_own_logs(
    clip: CLIPModel, images: Tensor, tmp_path: Path, way: str
) -> None:
    from attndrift.callbacks import LightningDriftCallback

    options = {"log_every_n_steps": 1} | WAYS_TO_LOG[way]
    every, resumed = options.pop("every"), options.pop("resumed", False)
    module, tracker = options.pop("module", _Module)(clip), _Tracker()
    own = module.training_step

    def logging(batch: Any, batch_idx: int) -> Any:
        found = own(batch, batch_idx)
        module.log("batch", float(module.trainer.fit_loop.total_batch_idx))
        return found

    module.training_step = logging
    monitor = DriftMonitor(module.clip, images)
    if resumed:
        first = _fit(module, images, tmp_path, logger=tracker, log_every_n_steps=1, max_epochs=1)
        first.save_checkpoint(tmp_path / "one.ckpt")
        tracker.seen.clear()
    callback = LightningDriftCallback(monitor, every=every, echo=None)
    trainer = _fit(
        module,
        images,
        tmp_path,
        callback,
        logger=tracker,
        ckpt_path=tmp_path / "one.ckpt" if resumed else None,
        **options,
    )
    lightnings = {step: logs["batch"] for step, logs in tracker.seen if "batch" in logs}
    measured = {int(logs["drift/optimizer_step"]): step for step, logs in tracker.seen if "drift/cka_mean" in logs}
    assert list(measured) == [step for step, _ in callback.drift]
    before = callback.drift[0][0]
    per_batch = trainer.global_step / (max(lightnings) + 1)
    for optimizer_step, step in measured.items():
        if optimizer_step > before:
            assert step in lightnings
            assert optimizer_step == (step + 1) * per_batch, "the row of the batch whose step this was"
