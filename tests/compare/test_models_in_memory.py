"""Models that are given themselves are compared as they compute, or refused with what can be done."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing_models import VISION, adapted_with_lora, bare_tower, moved_tower
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel
from transformers import (
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionModelWithProjection,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Siglip2Config,
    Siglip2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from attndrift import DriftMonitor
from attndrift.compare import CompareError, compare_models, measure_structure
from attndrift.methods import AdaptationSettings, adapt
from attndrift.models import ModelError, load_model, load_processor
from attndrift.models.from_config import image_processor


@pytest.fixture
def base() -> CLIPModel:
    return load_model("config:tiny")


@pytest.fixture(scope="module")
def moved() -> CLIPModel:
    clip = load_model("config:tiny")
    clip.vision_model.load_state_dict(moved_tower(clip).state_dict())
    return clip


class _Classifier(nn.Module):
    """As people write it."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.encoder = clip
        self.head = nn.Linear(32, 3)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        logits = self.head(self.encoder.get_image_features(pixel_values=pixel_values).pooler_output)
        return nn.functional.cross_entropy(logits, labels)


class _Added(nn.Module):
    def __init__(self, update: Tensor) -> None:
        super().__init__()
        self.update = nn.Parameter(update)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.update


def _trained_by_adapt(clip: CLIPModel) -> nn.Module:
    model = adapt(load_model("config:tiny"), AdaptationSettings(method="full"), 3, 0)
    model.backbone.load_state_dict(clip.state_dict())
    return model


def _parametrized(clip: CLIPModel) -> nn.Module:
    model = load_model("config:tiny")
    for name, module in list(model.vision_model.named_modules()):
        other = clip.vision_model.get_submodule(name)
        if isinstance(module, nn.Linear) and name.endswith("q_proj"):
            parametrize.register_parametrization(module, "weight", _Added((other.weight - module.weight).detach()))
            module.bias = other.bias
        else:
            for own, parameter in other.named_parameters(recurse=False):
                getattr(module, own).data = parameter.data.clone()
    return model


class _Branch(nn.Module):
    """LoRA by hand: a branch beside a frozen layer."""

    def __init__(self, base: nn.Linear, update: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.base, self.more = base, nn.Parameter(bias)
        left, values, right = torch.linalg.svd(update.double(), full_matrices=False)
        self.A = nn.Parameter((values[:, None] * right).float())
        self.B = nn.Parameter(left.float())

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + nn.functional.dropout(x, 0.1, self.training) @ self.A.T @ self.B.T + self.more


class _Extended(nn.Linear):
    """A layer with a further parameter."""

    def __init__(self, base: nn.Linear, update: Tensor, bias: Tensor) -> None:
        super().__init__(base.in_features, base.out_features)
        self.load_state_dict(base.state_dict())
        self.update = nn.Parameter(torch.cat([update, bias[:, None]], 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight + self.update[:, :-1], self.bias + self.update[:, -1])


def _by_hand(kind: Callable[..., nn.Module]) -> Callable[[CLIPModel], nn.Module]:
    def build(clip: CLIPModel) -> nn.Module:
        model: Any = copy.deepcopy(clip)
        for name, module in load_model("config:tiny").vision_model.named_modules():
            if name.endswith(("q_proj", "fc1")):
                other = clip.vision_model.get_submodule(name)
                update, bias = other.weight - module.weight, other.bias - module.bias
                parent, _, own = name.rpartition(".")
                setattr(model.vision_model.get_submodule(parent), own, kind(module, update.detach(), bias.detach()))
        return model

    return build


WRAPPED: dict[str, Callable[[CLIPModel], nn.Module]] = {
    "itself": lambda clip: clip,
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "torch.compile": lambda clip: torch.compile(clip, backend="eager"),  # type: ignore[return-value]
    "a classifier of one's own": _Classifier,
    "a classifier of this package": _trained_by_adapt,
    "two wrappers": lambda clip: nn.Sequential(_Classifier(clip)),
    "parametrized weights": _parametrized,
    "a branch beside layers": _by_hand(_Branch),
    "layers with another parameter": _by_hand(_Extended),
    "float64": lambda clip: copy.deepcopy(clip).double(),
    "in training": lambda clip: copy.deepcopy(clip).train(),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", WRAPPED)
def test_a_model_in_memory_compares_as_its_folder_does(
    name: str, base: CLIPModel, moved: CLIPModel, photos: Path, tmp_path: Path
) -> None:
    model = WRAPPED[name](copy.deepcopy(moved))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    moved.save_pretrained(tmp_path)
    expected = compare_models("config:tiny", tmp_path, photos)
    found = compare_models("config:tiny", model, photos)
    assert found.adapted["kind"] == "object"
    assert found.summary["weight_drift"] > 0.01
    for key, value in expected.summary.items():
        assert found.summary[key] == (None if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)), key
    assert found.differences == []
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes


ADAPTERS: dict[str, Callable[[CLIPModel], nn.Module]] = {
    "peft": adapted_with_lora,
    "the model under peft": lambda clip: adapted_with_lora(clip).get_base_model(),
    "DoRA": lambda clip: adapted_with_lora(clip, use_dora=True),
    "with the projection": lambda clip: adapted_with_lora(clip, modules_to_save=["visual_projection"]),
    "merged in place": lambda clip: _merged_in_place(adapted_with_lora(clip)),
    "of the optional integration": lambda clip: _integrated(clip),
}


def _merged_in_place(model: Any) -> nn.Module:
    model.merge_adapter()
    return model


def _integrated(clip: CLIPModel) -> nn.Module:
    clip.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=VISION, init_lora_weights=False))
    return clip


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_in_memory_count_and_stay(name: str, base: CLIPModel, photos: Path) -> None:
    model = ADAPTERS[name](load_model("config:tiny"))
    names = [key for key, _ in model.named_parameters()]
    pixels = torch.randn(2, 3, 28, 28)
    inner = next(part for part in model.modules() if isinstance(part, CLIPModel))
    with torch.no_grad():
        embedded = inner.get_image_features(pixel_values=pixels).pooler_output
    found = compare_models(base, model, photos)
    assert found.summary["weight_drift"] > 0.001
    assert found.summary["embedding_drift"] > 0
    assert [key for key, _ in model.named_parameters()] == names, "the model that was given keeps its adapters"
    with torch.no_grad():
        assert torch.equal(inner.get_image_features(pixel_values=pixels).pooler_output, embedded)
    disabled = adapted_with_lora(load_model("config:tiny"))
    disabled.base_model.disable_adapter_layers()
    assert compare_models(base, disabled, photos).summary["weight_drift"] == 0


def _with_projection(clip: CLIPModel) -> nn.Module:
    config = copy.deepcopy(clip.config.vision_config)
    config.projection_dim = clip.config.projection_dim
    model = CLIPVisionModelWithProjection(config)
    model.vision_model.load_state_dict(clip.vision_model.state_dict())
    return model


def _classification(clip: CLIPModel) -> nn.Module:
    model = CLIPForImageClassification(clip.config)
    model.vision_model.load_state_dict(clip.vision_model.state_dict())
    return model


TOWERS: dict[str, Callable[[CLIPModel], nn.Module]] = {
    "CLIPVisionModel": bare_tower,
    "CLIPVisionModelWithProjection": _with_projection,
    "CLIPForImageClassification": _classification,
    "a tower in a module of one's own": lambda clip: nn.ModuleDict(
        {"tower": bare_tower(clip), "head": nn.Linear(32, 2)}
    ),
    "DataParallel of a classifier": lambda clip: nn.DataParallel(_classification(clip)),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_alone_is_put_into_base_and_as_base_told_what_can_be_done(
    name: str, saved: bool, base: CLIPModel, moved: CLIPModel, photos: Path, tmp_path: Path
) -> None:
    tower: Any = TOWERS[name](moved)
    if saved:
        if not hasattr(tower, "save_pretrained"):
            pytest.skip("is no model of transformers")
        tower.save_pretrained(tmp_path)
        tower = tmp_path
    found = compare_models(base, tower, photos)
    expected = compare_models(base, moved, photos).summary
    for key in ("weight_drift", "entropy_change_pct", "cka_mean"):
        assert found.summary[key] == pytest.approx(expected[key], rel=1e-4), key
    assert any("put into a copy of BASE" in note for note in found.notes)
    assert any("classifier is left out" in note for note in found.notes) is ("Classification" in name and saved)
    for call in (lambda: compare_models(tower, base, photos), lambda: measure_structure(tower, photos)):
        with pytest.raises(CompareError, match=r"as BASE give the whole model.*DriftMonitor"):
            call()


def test_an_export_of_a_classifier_is_refused_as_a_whole_model_with_a_way_that_works(
    base: CLIPModel, moved: CLIPModel, photos: Path, tmp_path: Path
) -> None:
    classifier = _classification(moved)
    classifier.save_pretrained(tmp_path / "export")
    with pytest.raises(ModelError, match=r"CLIPForImageClassification.*compare BASE.*load_state_dict") as error:
        load_model(tmp_path / "export")
    assert "CLIPModel.from_pretrained" not in str(error.value)
    clip = load_model("config:tiny")
    clip.vision_model.load_state_dict(classifier.vision_model.state_dict())
    clip.save_pretrained(tmp_path / "whole")
    assert compare_models(moved, tmp_path / "whole", photos).summary["weight_drift"] == 0


_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def _deit() -> nn.Module:
    return DeiTModel(DeiTConfig(**_SMALL, image_size=28, patch_size=7))


def _naflex() -> nn.Module:
    return Siglip2Model(
        Siglip2Config(
            vision_config=_SMALL | {"num_patches": 16, "patch_size": 7},
            text_config=_SMALL | {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        )
    )


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("make", [_deit, _naflex], ids=["DeiT", "NaFlex"])
def test_a_family_that_no_study_trains_is_sent_to_what_takes_it(
    make: Callable[[], Any], saved: bool, base: CLIPModel, photos: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make()
    source = model
    if saved:
        model.save_pretrained(tmp_path)
        source = tmp_path
    for pair in ((source, source), (base, source)):
        with pytest.raises(ValueError, match=r"DriftMonitor\(adapted, pixels, reference=pretrained\)") as error:
            compare_models(*pair, photos)
        assert "CLIPModel.from_pretrained" not in str(error.value)
    # What the message says to do works.
    adapted, pixels = make(), torch.randn(5, 3, 28, 28)
    drift = DriftMonitor(adapted, pixels, reference=model).measure()
    assert drift.weight_drift > 0


def _vit(kind: Any) -> nn.Module:
    return kind(ViTConfig(**_SMALL, image_size=28, patch_size=7))


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("kind", [ViTModel, ViTForImageClassification, Dinov2ForImageClassification])
def test_towers_without_text_are_compared_without_zero_shot(
    kind: Any, saved: bool, base: CLIPModel, photos: Path, tmp_path: Path
) -> None:
    """Also those inside a classifier, which is left out."""
    config = Dinov2Config if kind is Dinov2ForImageClassification else ViTConfig
    torch.manual_seed(0)
    pair = [kind(config(**_SMALL, image_size=28, patch_size=7)) for _ in range(2)]
    sources: list[Any] = list(pair)
    if saved:
        processor = image_processor("BitImageProcessorPil", 28)
        for number, model in enumerate(pair):
            sources[number] = tmp_path / str(number)
            model.save_pretrained(sources[number])
            processor.save_pretrained(sources[number])
    found = compare_models(*sources, photos)
    pixels = torch.randn(5, 3, 28, 28)
    drift = DriftMonitor(pair[1].base_model, pixels, reference=pair[0].base_model).measure()
    assert found.summary["weight_drift"] == pytest.approx(drift.weight_drift, rel=0.05 if kind is not ViTModel else 1)
    assert found.summary["retention_pct"] is None
    assert any("no text tower" in note for note in found.notes)
    assert not any(row["module"].startswith("text") for row in found.weights)
    with pytest.raises(CompareError, match="no text tower"):
        compare_models(*sources, photos, zero_shot="objects")
    with pytest.raises(CompareError, match=r"is a CLIPModel and ADAPTED .* a (ViT|Dinov2)Model"):
        compare_models(base, sources[1], photos)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (nn.Linear(2, 2), "BASE .Linear.: holds no CLIP of transformers, DINOv2"),
        (nn.Sequential(), "BASE .Sequential.: holds no CLIP of transformers, DINOv2"),
        ({"weight": torch.ones(1)}, "load the state dict into its model"),
        (None, "NoneType is no model; give a folder, a name or a torch.nn.Module"),
        (3, "int is no model"),
        (b"folder", "bytes is no model"),
        (CLIPModel, "type is no model"),
    ],
    ids=str,
)
def test_what_is_no_model_is_an_error_of_the_comparison(given: Any, words: str, base: CLIPModel, photos: Path) -> None:
    with pytest.raises(CompareError, match=words):
        compare_models(given, base, photos)
    with pytest.raises(CompareError, match=words.replace("BASE", "ADAPTED")):
        compare_models(base, given, photos)


def test_two_models_in_one_are_not_guessed_at(base: CLIPModel, photos: Path) -> None:
    with pytest.raises(CompareError, match="holds 2 CLIPModels; give the one that is meant"):
        compare_models(nn.ModuleList([base, copy.deepcopy(base)]), base, photos)


def test_processors_are_those_given_else_bases_else_clips_own(base: CLIPModel, moved: CLIPModel, photos: Path) -> None:
    tokenizer, processor = load_processor("config:tiny")
    plain = compare_models(base, moved, photos)
    assert any("the image processor of CLIP of transformers is used, at 28 pixels" in note for note in plain.notes)
    with pytest.raises(CompareError, match=r"BASE .CLIPModel. has no tokenizer"):
        compare_models(base, moved, photos, zero_shot="objects")
    given = compare_models(
        base, moved, photos, image_processor=processor, tokenizer=tokenizer, zero_shot="objects", zero_shot_limit=100
    )
    assert given.summary["entropy_change_pct"] == plain.summary["entropy_change_pct"]
    assert given.zero_shot is not None
    assert not any("image processor" in note for note in given.notes)
    processor.image_mean = [0.1, 0.1, 0.1]
    other = compare_models(base, moved, photos, image_processor=processor)
    assert other.summary["entropy_change_pct"] != plain.summary["entropy_change_pct"]


def test_hooks_of_the_model_are_left_out_and_told_of(base: CLIPModel, moved: CLIPModel, photos: Path) -> None:
    plain = compare_models(base, moved, photos)
    seen: list[Any] = []
    handle = moved.vision_model.register_forward_hook(lambda *given: seen.append(given))
    try:
        found = compare_models(base, moved, photos)
    finally:
        handle.remove()
    assert seen == []
    assert found.summary == plain.summary
    assert any("forward hooks of the model are left out" in note for note in found.notes)
