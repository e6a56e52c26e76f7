"""The monitor on a tiny CLIP: what it measures, and that it leaves the model as it was."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, Trainer, TrainingArguments

from attndrift.monitor import DivergedError, DriftCallback, DriftMonitor, take_snapshot


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
    assert set(drift.change_pct.values()) == {0.0}
    assert drift.embedding_drift == pytest.approx(0.0, abs=1e-7)
    assert drift.weight_drift == 0.0
    torch.testing.assert_close(drift.cka, torch.ones(3, dtype=torch.float64))


def test_a_changed_model_has(clip: CLIPModel, images: Tensor) -> None:
    monitor = DriftMonitor(clip, images)
    with torch.no_grad():
        for name, parameter in clip.vision_model.named_parameters():
            if "q_proj.weight" in name:
                parameter.mul_(30.0)
    drift = monitor.measure()
    assert drift.change_pct["entropy"] is not None
    assert drift.change_pct["entropy"] < -0.01
    assert drift.weight_drift is not None
    assert drift.weight_drift > 0.1
    row = drift.row()
    before, after = monitor.reference.structure.mean("entropy"), row["entropy"]
    assert after is not None
    assert row["entropy_change_pct"] == pytest.approx(100 * (after - before) / before)


def test_the_probe_may_come_in_any_batches(clip: CLIPModel, images: Tensor) -> None:
    whole = take_snapshot(clip, [images])
    for size in (1, 5, 8):
        parts = take_snapshot(clip, images.split(size))
        for name in ("entropy", "erf95", "gini", "head_diversity"):
            torch.testing.assert_close(
                getattr(parts.structure, name), getattr(whole.structure, name), atol=1e-6, rtol=0
            )
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


class _Classifier(nn.Module):
    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip, self.head = clip, nn.Linear(16, 2)

    def embed(self, pixel_values: Tensor) -> Tensor:
        return self.clip.get_image_features(pixel_values=pixel_values).pooler_output

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.embed(pixel_values))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def _train(
    clip: CLIPModel, images: Tensor, folder: Path, callback_every: int | None
) -> tuple[dict[str, Tensor], Trainer]:
    torch.manual_seed(3)
    model = _Classifier(copy.deepcopy(clip))
    data = [{"pixel_values": image, "labels": i % 2} for i, image in enumerate(images)]
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=4, num_train_epochs=2, report_to="none", use_cpu=True,
        save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=0, remove_unused_columns=False,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data)  # type: ignore[arg-type]
    if callback_every:
        DriftCallback(DriftMonitor(model, images), every=callback_every).attach(trainer)
    trainer.train()
    return {name: value.clone() for name, value in model.state_dict().items()}, trainer


def test_a_users_own_trainer_logs_drift_and_trains_as_without(clip: CLIPModel, images: Tensor, tmp_path: Path) -> None:
    without, _ = _train(clip, images, tmp_path / "a", None)
    observed, trainer = _train(clip, images, tmp_path / "b", 2)
    for name, value in without.items():
        assert torch.equal(value, observed[name]), name
    logged = [entry for entry in trainer.state.log_history if "drift/entropy" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    assert {"drift_entropy/layer_01", "drift_gini/layer_03", "drift/cka_mean"} <= set(logged[0])
    assert logged[-1]["drift/weight_drift"] > logged[0]["drift/weight_drift"] > 0


def test_a_measurement_must_have_a_period(clip: CLIPModel, images: Tensor) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        DriftCallback(DriftMonitor(clip, images), every=0)
