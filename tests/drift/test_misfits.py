"""What does not belong together is told by name: a reference, an embedding, a snapshot, a probe of nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from attndrift import DriftMonitor, EntropyFloor
from attndrift.drift import take_snapshot
from attndrift.models import load_model

IMAGES = torch.randn(12, 3, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def clip() -> CLIPModel:
    return load_model("config:tiny")


# -- a reference of another shape ----------------------------------------------------------------------


def _of_config(clip: CLIPModel, **vision: Any) -> CLIPModel:
    config = clip.config.to_dict()
    return CLIPModel(CLIPConfig.from_dict(config | {"vision_config": config["vision_config"] | vision}))


def _projected(clip: CLIPModel, width: int) -> CLIPModel:
    other = copy.deepcopy(clip)
    other.visual_projection = nn.Linear(32, width, bias=False)
    return other


def _without_bias(clip: CLIPModel) -> CLIPModel:
    other = copy.deepcopy(clip)
    layer = other.vision_model.encoder.layers[1].mlp.fc1
    layer.register_parameter("bias", None)
    return other


REFERENCES: dict[str, tuple[Callable[[CLIPModel], CLIPModel], str]] = {
    "wider MLP": (
        lambda clip: _of_config(clip, intermediate_size=48),
        r"`vision_model\.encoder\.layers\.0\.mlp\.fc1\.weight` has shape \(\d+, 32\) in the model and \(48, 32\) in the reference",
    ),
    "fewer blocks": (
        lambda clip: _of_config(clip, num_hidden_layers=1),
        r"the reference lacks .* the first is `vision_model\.encoder\.layers\.1\.",
    ),
    "more blocks": (
        lambda clip: _of_config(clip, num_hidden_layers=7),
        r"the model lacks .* the first is `vision_model\.encoder\.layers\.\d\.",
    ),
    "narrower projection": (
        lambda clip: _projected(clip, 8),
        r"`visual_projection\.weight` has shape \(32, 32\) in the model and \(8, 32\) in the reference",
    ),
    "a bias less": (
        _without_bias,
        r"the reference lacks 1 .*`vision_model\.encoder\.layers\.1\.mlp\.fc1\.bias` \(\d+,\)",
    ),
}


@pytest.mark.parametrize("kind", REFERENCES)
def test_a_reference_of_another_shape_names_the_tensor_both_shapes_and_the_argument(clip: CLIPModel, kind: str) -> None:
    make, said = REFERENCES[kind]
    with pytest.raises(ValueError, match=rf"^weight drift: .*{said}.*reference="):
        DriftMonitor(clip, IMAGES, reference=make(clip))


SNAPSHOTS: dict[str, tuple[Callable[[CLIPModel], Any], str]] = {
    "fewer images": (lambda clip: take_snapshot(clip, [IMAGES[:8]]), "a snapshot of 8 images, and the probe has 12"),
    "more images": (
        lambda clip: take_snapshot(clip, [IMAGES, IMAGES]),
        "a snapshot of 24 images, and the probe has 12",
    ),
    "fewer than two": (lambda clip: take_snapshot(clip, [IMAGES[:1]]), "a snapshot of 1 images, and the probe has 12"),
}


@pytest.mark.parametrize("probe", ["a tensor", "a function"])
@pytest.mark.parametrize("kind", SNAPSHOTS)
def test_a_snapshot_of_other_images_is_refused_when_the_monitor_is_made(clip: CLIPModel, kind: str, probe: str) -> None:
    make, said = SNAPSHOTS[kind]
    images: Any = IMAGES if probe == "a tensor" else lambda: IMAGES.split(5)
    with pytest.raises(ValueError, match=f"^reference: {said}"):
        DriftMonitor(clip, images, reference=make(clip))


SHAPES: dict[str, tuple[Callable[[CLIPModel], CLIPModel], str]] = {
    "depth": (
        lambda clip: _of_config(clip, num_hidden_layers=1),
        r"hidden states .* are \(1, 12, 32\) in the reference",
    ),
    "width of the embeddings": (
        lambda clip: _projected(clip, 8),
        r"embeddings .* are \(12, 8\) in the reference and \(12, 32\)",
    ),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_a_snapshot_of_another_model_is_told_by_both_shapes(clip: CLIPModel, kind: str) -> None:
    make, said = SHAPES[kind]
    monitor = DriftMonitor(clip, IMAGES, reference=take_snapshot(make(clip), [IMAGES]))
    with pytest.raises(ValueError, match=said):
        monitor.measure()


# -- an embed of one's own -----------------------------------------------------------------------------

HELD: dict[str, Callable[[CLIPModel, Tensor], Any]] = {
    "get_image_features": lambda clip, images: clip.get_image_features(pixel_values=images),
    "image_embeds": lambda clip, images: SimpleNamespace(
        image_embeds=clip.get_image_features(pixel_values=images).pooler_output, last_hidden_state=None
    ),
    "a tensor": lambda clip, images: clip.get_image_features(pixel_values=images).pooler_output,
}
NONE: dict[str, tuple[Callable[[CLIPModel, Tensor], Any], str]] = {
    "tokens": (
        lambda clip, images: clip.vision_model(pixel_values=images).last_hidden_state,
        r"float32 \(\d+, 17, 32\)",
    ),
    "a tuple": (lambda clip, images: tuple(clip.vision_model(pixel_values=images).values()), "a tuple"),
    "logits": (
        lambda clip, images: SimpleNamespace(logits=images, image_embeds=images.flatten(1)),
        "a SimpleNamespace",
    ),
    "nothing": (lambda clip, images: None, "a NoneType"),
    "a dictionary": (lambda clip, images: {"image_embeds": images.flatten(1)}, "a dict"),
    "numpy": (lambda clip, images: images.flatten(1).numpy(), "a ndarray"),
    "class numbers": (lambda clip, images: images.flatten(1).argmax(1), r"int64 \(12,\)"),
}


@pytest.mark.parametrize("way", ["an argument", "a method"])
@pytest.mark.parametrize("kind", [*HELD, *NONE])
def test_what_an_embed_returns_is_an_embedding_or_is_refused(clip: CLIPModel, kind: str, way: str) -> None:
    function: Any = HELD[kind] if kind in HELD else NONE[kind][0]

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = clip

        def embed(self, pixel_values: Tensor) -> Any:
            return function(self.clip, pixel_values)

    def make() -> DriftMonitor:
        if way == "a method":
            return DriftMonitor(Own(), IMAGES)
        return DriftMonitor(clip, IMAGES, embed=lambda images: function(clip, images))

    if kind in HELD:
        wanted = take_snapshot(clip, [IMAGES]).embeddings
        assert torch.equal(make().reference.embeddings, wanted)
    else:
        with pytest.raises(TypeError, match=rf"embed: returned {NONE[kind][1]}.*\(images, dimensions\)"):
            make()


@pytest.mark.parametrize("nothing", [IMAGES[:0], [], iter(())], ids=["a tensor", "a list", "an iterator"])
def test_an_entropy_floor_of_no_images_is_refused(clip: CLIPModel, nothing: Any) -> None:
    with pytest.raises(ValueError, match=r"^probe: there are no images"):
        EntropyFloor(clip, 0.1, probe=nothing)
