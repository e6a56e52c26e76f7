"""What methods train at full size, in numbers; what is refused. test_every_method.py has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from attndrift.methods import AdaptationSettings, adapt, check_adapter_places, count_parameters
from attndrift.models import load_model
from attndrift.models.load import load_config

# A row a case: settings, and the trainable parameters of ViT-B/32 with 10 classes.
COUNTS = [
    (AdaptationSettings("full"), 87_854_346),
    (AdaptationSettings("lora", lora_rank=4), 545_802),
    (AdaptationSettings("lora", lora_rank=8), 693_258),
    (AdaptationSettings("lora", lora_rank=16), 988_170),
    (AdaptationSettings("lora", lora_rank=8, lora_targets="q,k,v,out"), 988_170),
    (AdaptationSettings("lora", lora_rank=8, train_projection=False), 300_042),
    (AdaptationSettings("last_block"), 7_094_538),
    (AdaptationSettings("last_block", train_projection=True), 7_487_754),
    (AdaptationSettings("linear_probe"), 5_130),
    (AdaptationSettings("full", freeze_layers=3), 66_590_730),
    (AdaptationSettings("full", freeze_layers=6), 45_327_114),
    (AdaptationSettings("full", freeze_layers=9), 24_063_498),
    (AdaptationSettings("none"), 0),
]


@pytest.mark.parametrize(("settings", "trainable"), COUNTS, ids=lambda v: getattr(v, "method", None))
def test_trainable_parameters_of_vit_b32_are_exact(settings: AdaptationSettings, trainable: int) -> None:
    counted, total = count_parameters(load_config("config:vit-base-patch32"), settings, 10)
    assert counted == trainable
    adapters = 300_042 - 5_130 if settings.method == "lora" and settings.own.get("lora_rank") == 8 else None
    if settings.method != "lora":
        assert total == 151_277_313 + 5_130
    elif adapters is not None and settings.own.get("lora_targets", "q,v") == "q,v":
        assert total == 151_277_313 + 5_130 + adapters


def test_initialisation_comes_from_the_seed_alone() -> None:
    def weights(seed: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        model = adapt(load_model("config:tiny"), AdaptationSettings("lora"), 5, seed)
        adapters = [p.flatten() for n, p in model.named_parameters() if "lora_A" in n]
        return torch.cat([model.classifier.weight.flatten(), *adapters]).detach()

    assert torch.equal(weights(1, 10), weights(1, 20))
    assert not torch.equal(weights(1, 10), weights(2, 10))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    adapt(load_model("config:tiny"), AdaptationSettings("lora"), 5, 1)
    assert torch.equal(torch.rand(3), expected), "the global generator is left alone"


def test_a_classifier_may_start_from_text() -> None:
    clip = load_model("config:tiny")
    text = torch.nn.functional.normalize(torch.randn(5, 32), dim=-1)
    model = adapt(clip, AdaptationSettings("full", head="text"), 5, 0, text_features=text)
    torch.testing.assert_close(model.classifier.weight, text * clip.logit_scale.exp())
    with pytest.raises(ValueError, match="head"):
        adapt(load_model("config:tiny"), AdaptationSettings("full", head="text"), 5, 0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (AdaptationSettings("fulll"), "there is no method `fulll`; did you mean `full`"),
        (AdaptationSettings("lora", freeze_layers=3), "freeze_layers is 3"),
        (AdaptationSettings("full", freeze_layers=4), "the model has 3 blocks"),
        (AdaptationSettings("linear_probe", train_projection=True), "train_projection"),
        (AdaptationSettings("lora", lora_targets="q;v"), "lora_targets is 'q;v'"),
        (AdaptationSettings("lora", lora_rank=0), "lora_rank is 0"),
        (AdaptationSettings("full", lora_rank=4), "lora_rank is 4 with method full; it belongs to lora"),
        (AdaptationSettings("lora", lora_rnk=4), "lora_rnk is 4 with method lora; no method has it"),
    ],
)
def test_impossible_settings_are_named(settings: AdaptationSettings, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        adapt(load_model("config:tiny"), settings, 5, 0)


def test_target_modules_by_name_reach_into_the_text_tower_and_are_refused() -> None:
    """The trap that the pattern in `lora` avoids: both towers have a q_proj."""
    from peft import LoraConfig, get_peft_model

    careless = get_peft_model(load_model("config:tiny"), LoraConfig(target_modules=["q_proj", "v_proj"]))
    assert any("text_model" in name for name, p in careless.named_parameters() if p.requires_grad)
    with pytest.raises(ValueError, match=r"outside the image tower .*for instance .*text_model"):
        check_adapter_places(careless)
    with pytest.raises(ValueError, match="no adapter"):
        check_adapter_places(load_model("config:tiny"))


def test_a_loaded_folder_is_a_clip_model(tiny_clip: Path) -> None:
    assert isinstance(load_model(tiny_clip), CLIPModel)
