"""What a monitor says when it is made, of its probe images; and at the first measurement, of what it does not measure."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset
from transformers import CLIPModel, CLIPVisionModelWithProjection

from attndrift.callbacks import DriftCallback
from attndrift.drift import Drift, DriftMonitor, DriftWatch, take_snapshot, watchable
from attndrift.models import load_model
from attndrift.models.embedding import image_embeddings
from attndrift.models.evaluation import unwrapped
from training_loops import Classifier, trainer_of


@pytest.fixture
def clip() -> CLIPModel:
    torch.manual_seed(0)
    return load_model("config:tiny")


@pytest.fixture
def images() -> Tensor:
    return torch.randn(12, 3, 28, 28, generator=torch.Generator().manual_seed(1))


# -- too few images ------------------------------------------------------------------------------------

FEW: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "one": (lambda images: images[:1], "1 image;"),
    "two": (lambda images: images[:2], "2 images;"),
    "three": (lambda images: images[:3], "3 images;"),
    "a list of three": (lambda images: list(images[:3]), "3 images;"),
    "a loader of two": (lambda images: DataLoader(TensorDataset(images[:2])), "2 images;"),
    "a function": (lambda images: lambda: images[:3].split(1), "3 images;"),
    "one, nine times": (lambda images: images[:1].repeat(9, 1, 1, 1), "9 images, .* only 1 apart"),
    "three, four times": (lambda images: images[:3].repeat(4, 1, 1, 1), "12 images, .* only 3 apart"),
    "two, in batches": (lambda images: lambda: images[:2].repeat(5, 1, 1, 1).split(3), "10 images, .* only 2 apart"),
    "black images": (lambda images: torch.full((6, 3, 28, 28), -1.8), "6 images, .* only 1 apart"),
}


@pytest.mark.parametrize("few", FEW)
def test_too_few_images_are_refused_when_the_monitor_is_made(clip: CLIPModel, images: Tensor, few: str) -> None:
    probe, said = FEW[few]
    with pytest.raises(ValueError, match=rf"^probe: {said}.* at least 4 different images"):
        DriftMonitor(clip, probe(images))


def test_a_reference_of_few_images_is_refused_and_four_are_enough(clip: CLIPModel, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^probe: 3 images; "):
        DriftMonitor(clip, images[:3], reference=take_snapshot(clip, [images[:3]]))
    with pytest.raises(ValueError, match=r"^probe: 2 images; "):
        DriftMonitor(clip, images[:2], reference=copy.deepcopy(clip))
    assert DriftMonitor(clip, images[:4]).measure().cka_mean == pytest.approx(1.0)


# -- images that are not normalised --------------------------------------------------------------------


def _pixels(images: Tensor) -> Tensor:
    return (images.clamp(-2, 2) + 2) / 4


REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "0 to 255": lambda images: (_pixels(images) * 255).round(),
    "0 to 255, half": lambda images: (_pixels(images) * 255).half(),
    "0 to 65535": lambda images: _pixels(images) * 65535,
    "mean taken off": lambda images: _pixels(images) * 255 - 120,
    "a list": lambda images: list(_pixels(images) * 255),
    "a function": lambda images: lambda: (_pixels(images) * 255).split(4),
    "not finite": lambda images: images.index_fill(0, torch.tensor([3]), torch.nan),
    "infinite": lambda images: images.index_fill(0, torch.tensor([3]), torch.inf),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_values_that_no_processor_gives_are_refused(clip: CLIPModel, images: Tensor, kind: str) -> None:
    said = "NaN or infinite" if "finite" in kind else "are not normalised"
    with pytest.raises(TypeError, match=rf"^probe: .*{said}.*processor\(images"):
        DriftMonitor(clip, REFUSED[kind](images))
    probe = REFUSED[kind](images)
    if isinstance(probe, Tensor) and "finite" not in kind:
        with pytest.raises(TypeError, match="are not normalised"):
            DriftMonitor(clip, probe, reference=take_snapshot(clip, [images]))


WARNED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "0 to 1": (_pixels, "rescaled and not normalised"),
    "0 to 1, bfloat16": (lambda images: _pixels(images).bfloat16(), "rescaled and not normalised"),
    "0 to 1, a list": (lambda images: list(_pixels(images)), "rescaled and not normalised"),
    "0 to 1, a function": (lambda images: lambda: _pixels(images).split(5), "rescaled and not normalised"),
    "black and white": (lambda images: (images > 0).float(), "rescaled and not normalised"),
    "rescaled twice": (lambda images: _pixels(images) / 255 / 0.27 - 1.8, "rescaled twice"),
}


@pytest.mark.parametrize("kind", WARNED)
def test_values_of_images_that_were_not_normalised_are_warned_of(
    clip: CLIPModel, images: Tensor, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    probe, said = WARNED[kind]
    DriftMonitor(clip, probe(images))
    assert [said in record.getMessage() for record in caplog.records] == [True]
    caplog.clear()
    for normalised in (images, images.tanh(), (_pixels(images) - 0.5) / 0.5, lambda: images.split(3)):
        DriftMonitor(clip, normalised)
    assert caplog.records == []


# -- what is trained and not measured ------------------------------------------------------------------


def _vision_only(clip: CLIPModel) -> CLIPModel:
    clip.requires_grad_(False)
    clip.vision_model.requires_grad_(True)
    clip.visual_projection.requires_grad_(True)
    return clip


def _text_adapter(clip: CLIPModel) -> nn.Module:
    return get_peft_model(clip, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))


def _with_text_beside(clip: CLIPModel) -> nn.Module:
    clip.requires_grad_(False)
    module = nn.Module()
    module.clip, module.texts = clip, copy.deepcopy(clip.text_model).requires_grad_(True)
    return module


def _adapter_behind(clip: CLIPModel) -> Classifier:
    """Its embedding goes through a layer of one's own, which is measured by what it does to the embedding."""

    class Behind(Classifier):
        def __init__(self, clip: nn.Module) -> None:
            super().__init__(clip)
            self.behind = nn.Linear(32, 32)

        def embed(self, pixel_values: Tensor) -> Tensor:
            return self.behind(super().embed(pixel_values))

    return Behind(_vision_only(clip))


def _scale_alone(clip: CLIPModel) -> CLIPModel:
    _vision_only(clip).logit_scale.requires_grad_(True)
    return clip


PARTS: dict[str, tuple[Callable[[Any], nn.Module], list[str]]] = {
    "the whole CLIP": (lambda clip: clip, ["logit_scale", "text_model", "text_projection"]),
    "adapters in both towers": (_text_adapter, ["base_model.model.text_model"]),
    "a linear probe": (lambda clip: Classifier(clip.requires_grad_(False)), ["head"]),
    "a classifier on CLIP": (lambda clip: Classifier(_vision_only(clip)), ["head"]),
    "a layer behind the embedding": (_adapter_behind, ["head"]),
    "the temperature": (_scale_alone, ["logit_scale"]),
    "a text tower beside": (_with_text_beside, ["texts"]),
    "the image tower": (_vision_only, []),
    "nothing": (lambda clip: clip.requires_grad_(False), []),
}


def _train(model: nn.Module) -> None:
    """Change every weight that may be."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1e-3)


@pytest.mark.parametrize("way", PARTS)
def test_what_is_trained_and_not_measured_is_named_once_it_has_changed(
    clip: CLIPModel, images: Tensor, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, expected = PARTS[way]
    model = make(clip)
    options = {"embed": lambda pixels: clip.get_image_features(pixel_values=pixels).pooler_output}
    monitor = DriftMonitor(model, images, **(options if way == "a text tower beside" else {}))
    gradients = [parameter.grad for parameter in model.parameters()]
    monitor.trained = model
    monitor.measure()
    assert caplog.records == [], "nothing has been trained"
    _train(model)
    monitor.measure()
    monitor.measure()
    found = [record.getMessage() for record in caplog.records]
    assert len(found) == bool(expected)
    if expected:
        assert re.findall(r"`([\w.]+)`", found[0]) == expected
        text = any("text_model" in name or name == "texts" for name in expected)
        assert ("text tower, " in found[0]) == text
        assert ("Text features that were computed once" in found[0]) == text
    assert [parameter.grad for parameter in model.parameters()] == gradients


LOOPS: dict[str, Callable[[CLIPModel], list[nn.Parameter]]] = {
    "the optimizer holds the image tower alone": lambda clip: list(clip.vision_model.parameters()),
    "the optimizer holds everything": lambda clip: list(clip.parameters()),
}


@pytest.mark.parametrize("loss", ["class", "contrastive"])
@pytest.mark.parametrize("held", LOOPS)
def test_a_text_tower_is_warned_of_where_a_loop_trains_it_and_only_there(
    clip: CLIPModel, images: Tensor, held: str, loss: str, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = torch.optim.AdamW(LOOPS[held](clip), lr=1e-3, weight_decay=0.1)
    with DriftWatch(DriftMonitor(clip, images), every=1, echo=None) as watch:
        for step in (1, 2):
            if loss == "class":
                total = clip.get_image_features(pixel_values=images).pooler_output.square().mean()
            else:
                total = clip(input_ids=torch.arange(2, 8)[:, None], pixel_values=images[:6], return_loss=True).loss
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            watch.step(step)
    said = [record.getMessage() for record in caplog.records]
    # A contrastive loss gives the text tower gradients also where the optimizer does not hold it: then they may be meant.
    assert ["text_model" in message for message in said] == [True] * (loss == "contrastive"), said
    assert all("freeze what is not meant to be trained" in message for message in said)


def test_what_is_unfrozen_later_is_named_then(
    clip: CLIPModel, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = DriftMonitor(_vision_only(clip), images)
    monitor.measure()
    assert caplog.records == []
    clip.text_model.requires_grad_(True)
    _train(clip)
    monitor.measure()
    monitor.measure()
    assert ["text_model" in record.getMessage() for record in caplog.records] == [True]


def test_parts_outside_the_monitors_model_are_named_by_what_trains_them(
    clip: CLIPModel, images: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Classifier(_vision_only(clip))
    callback = DriftCallback(DriftMonitor(clip, images), every=4, echo=None)
    with caplog.at_level(logging.WARNING, logger="attndrift"):
        trainer_of(model, images, tmp_path, callback).train()
        with DriftWatch(DriftMonitor(clip, images), model=model, echo=None) as watch:
            _train(model)
            watch.step(1, last=True)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("attndrift")]
    assert ["`head` (66 parameters)" in message for message in said] == [True, True]


def test_weights_that_are_measured_by_ones_own_function_are_not_warned_of(
    clip: CLIPModel, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = DriftMonitor(clip, images, weight_drift=lambda: (0.0, None))
    _train(clip)
    monitor.measure()
    assert caplog.records == []


def test_an_embedding_that_has_no_gradients_is_measured_all_the_same(
    clip: CLIPModel, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    def embed(pixels: Tensor) -> Tensor:
        return torch.from_numpy(clip.get_image_features(pixel_values=pixels).pooler_output.numpy())

    monitor = DriftMonitor(clip, images, embed=embed)
    assert monitor.measure().embedding_drift == pytest.approx(0.0, abs=1e-6)
    _train(clip)
    monitor.measure()
    assert ["text_model" in record.getMessage() for record in caplog.records] == [True]


# -- wrappers ------------------------------------------------------------------------------------------


class ModelEmaV3(nn.Module):
    """As timm's: holds the average as ``module``."""

    __module__ = "timm.utils.model_ema"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)


class MyDataParallel(nn.DataParallel):
    """A subclass."""


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "average": AveragedModel,
    "average with buffers": lambda model: AveragedModel(model, use_buffers=True),
    "average of a parallel model": lambda model: AveragedModel(nn.DataParallel(model)),
    "parallel average": lambda model: MyDataParallel(AveragedModel(model)),
    "compiled average": lambda model: torch.compile(AveragedModel(model), backend="eager"),  # type: ignore[return-value]
    "average of a compiled model": lambda model: AveragedModel(torch.compile(model, backend="eager")),  # type: ignore[arg-type]
    "average of an average": lambda model: AveragedModel(AveragedModel(model)),
    "average of timm": ModelEmaV3,
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("kind", ["clip", "classifier", "vision", "lora"])
def test_an_average_of_the_weights_is_looked_through(clip: CLIPModel, images: Tensor, wrapper: str, kind: str) -> None:
    makes: dict[str, Callable[[], Any]] = {
        "clip": lambda: clip,
        "classifier": lambda: Classifier(clip),
        "vision": lambda: CLIPVisionModelWithProjection(clip.config.vision_config).eval(),
        "lora": lambda: _text_adapter(clip),
    }
    model = makes[kind]()
    wrapped = WRAPPERS[wrapper](model)
    assert type(unwrapped(wrapped)) is type(model)
    assert torch.equal(image_embeddings(wrapped.eval(), images), image_embeddings(model.eval(), images))
    drift = DriftMonitor(wrapped, images, reference=model if kind != "lora" else None).measure()
    assert drift.weight_drift == 0.0


def test_a_module_of_ones_own_that_has_a_part_called_module_is_itself(clip: CLIPModel) -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = clip

    mine = Mine()
    assert unwrapped(mine) is mine


# -- names ---------------------------------------------------------------------------------------------


def test_every_number_that_an_alert_may_name_is_an_attribute(clip: CLIPModel, images: Tensor) -> None:
    drift: Drift = DriftMonitor(clip, images).measure()
    assert {"cka_mean", "cka_last", "weight_drift", "entropy_change_pct"} <= set(watchable())
    for name in watchable():
        assert getattr(drift, name) == drift.values()[name]
        assert name in dir(drift)
    with pytest.raises(AttributeError, match="did you mean `cka_mean`"):
        _ = drift.cka_mea
