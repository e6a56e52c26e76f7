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
from attndrift.models import load_clip
from attndrift.results.tables import read_tables
from training_loops import in_processes


def test_without_lightning_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "attndrift.callbacks.lightning", raising=False)
    with pytest.raises(ImportError, match=r"pip install attndrift\[lightning\]"):
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
    model = load_clip("config:tiny")
    for layer in model.vision_model.encoder.layers:
        layer.self_attn.dropout = 0.2
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def _fit(module: Any, images: Tensor, folder: Path, *callbacks: Any, **options: Any) -> Any:
    torch.manual_seed(7)
    rows = [(image, i % 2) for i, image in enumerate(images)]
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=folder, callbacks=list(callbacks), **({"logger": False} | options),
    )  # fmt: skip
    trainer.fit(module, DataLoader(rows, batch_size=4, shuffle=True))  # type: ignore[arg-type, var-annotated]
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
    assert [step for step, logs in tracker.seen if "drift/cka_mean" in logs] == [0, 4, 6]
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
