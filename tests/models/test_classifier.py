"""The classifier as `transformers.Trainer` meets it, and where its first weights come from."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import CLIPVisionModel, Trainer, TrainingArguments

from attndrift.attention import observe
from attndrift.methods import AdaptationSettings, adapt, count_parameters
from attndrift.methods.classifier import seeded
from attndrift.models import load_config, load_model


class _Images(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        label = index % 2
        pixels = torch.full((3, 28, 28), float(label)) + 0.1 * torch.randn(
            3, 28, 28, generator=torch.Generator().manual_seed(index)
        )
        return {"pixel_values": pixels, "labels": torch.tensor(label)}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_trainer_trains_and_evaluates_it(method: str, tmp_path: Path) -> None:
    model = adapt(
        load_model("config:tiny"),
        AdaptationSettings(method, **({"lora_dropout": 0.0} if method == "lora" else {})),
        2,
        0,
    )
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=15, per_device_train_batch_size=8, learning_rate=3e-3, report_to="none",
        save_strategy="no", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=_Images(), eval_dataset=_Images())
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    output = trainer.predict(_Images())
    assert output.metrics["test_loss"] < 0.5 * before
    assert (output.predictions.argmax(-1) == output.label_ids).all()


def test_the_embedding_is_that_of_the_clip_model_not_normalised() -> None:
    clip = load_model("config:tiny")
    pixels = torch.randn(3, 3, 28, 28)
    model = adapt(copy.deepcopy(clip), AdaptationSettings("lora"), 4, 0).eval()
    with torch.no_grad():
        output = clip.get_image_features(pixel_values=pixels)
        assert not isinstance(output, torch.Tensor), "an output object since transformers 5"
        assert torch.equal(model.embed(pixels), output.pooler_output)
        logits = model(pixel_values=pixels).logits
        assert torch.equal(logits, output.pooler_output @ model.classifier.weight.T + model.classifier.bias)
        assert model(pixel_values=pixels).loss is None
        loss = model(pixel_values=pixels, labels=torch.tensor([0, 1, 2])).loss
        torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2])))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_its_vision_tower_can_be_observed(method: str) -> None:
    model = adapt(load_model("config:tiny"), AdaptationSettings(method), 4, 0).eval()
    with torch.no_grad(), observe(model.visual) as seen:
        model.embed(torch.randn(2, 3, 28, 28))
    assert [tuple(layer.shape) for layer in seen.attention] == [(2, 4, 16)] * 3


def test_every_method_starts_from_one_classifier() -> None:
    """Methods are compared on equal seeds, so the classifier must not depend on the method."""
    methods = ("full", "lora", "linear_probe", "last_block")
    weights = [
        adapt(load_model("config:tiny"), AdaptationSettings(m), 4, 11).classifier.weight.detach() for m in methods
    ]
    for other in weights[1:]:
        assert torch.equal(weights[0], other)
    bound = 32**-0.5
    assert float(weights[0].abs().max()) <= bound, "PyTorch's own initialisation of a linear layer"
    assert float(weights[0].std()) == pytest.approx(bound / 3**0.5, rel=0.2)


def test_a_seeded_draw_leaves_the_global_generators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.default_generator.manual_seed(9)
    seeds.clear()
    with seeded(1):
        first = torch.rand(8)
    assert torch.equal(torch.rand(3), expected)
    with seeded(1):
        assert torch.equal(torch.rand(8), first)
    with seeded(2):
        assert not torch.equal(torch.rand(8), first)
    assert not seeds, "an accelerator's generator would not be put back"


def test_what_cannot_be_adapted_is_named() -> None:
    clip = load_model("config:tiny")
    with pytest.raises(ValueError, match="CLIPVisionModel"):
        adapt(CLIPVisionModel(clip.config.vision_config), AdaptationSettings("full"), 4, 0)  # type: ignore[arg-type]
    once = adapt(clip, AdaptationSettings("lora"), 4, 0)
    with pytest.raises(ValueError, match="adapters"):
        adapt(once.model, AdaptationSettings("lora"), 4, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="already carries adapters"):
        adapt(once.backbone, AdaptationSettings("lora"), 4, 0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (AdaptationSettings("lora", lora_alpha=0.0), "lora_alpha"),
        (AdaptationSettings("lora", lora_alpha=float("nan")), "lora_alpha"),
        (AdaptationSettings("lora", lora_dropout=1.0), "lora_dropout"),
        (AdaptationSettings("none", train_projection=True), "train_projection"),
        (AdaptationSettings("full", freeze_layers=-1), "freeze_layers"),
        (AdaptationSettings("full", head="zero"), "head"),
    ],
)
def test_impossible_settings_name_the_field_and_leave_the_model_alone(settings: AdaptationSettings, named: str) -> None:
    clip = load_model("config:tiny")
    with pytest.raises(ValueError, match=named):
        adapt(clip, settings, 4, 0)
    assert all(p.requires_grad for p in clip.parameters())


def test_parameters_are_counted_from_a_source_or_a_config() -> None:
    settings = AdaptationSettings("lora", head="text")
    assert count_parameters("config:tiny", settings, 5) == count_parameters(load_config("config:tiny"), settings, 5)
    model = adapt(load_model("config:tiny"), AdaptationSettings("lora"), 5, 0)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count_parameters("config:tiny", settings, 5) == (trainable, sum(p.numel() for p in model.parameters()))
