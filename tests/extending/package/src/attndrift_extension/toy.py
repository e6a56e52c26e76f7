"""A backbone for whole studies, with the attention family of its tower: ``model: toy:2`` has two blocks."""

from __future__ import annotations

from typing import Any

from attndrift.attention.families import FAMILIES, Block, Family, MeanOfPatches, Tap
from attndrift.models.backbone import BACKBONES, Backbone, BackboneSpec, VisionShape
from attndrift.models.load import load_processor


class ToyBackbone(Backbone):
    """What studies see of a ``ToyModel``."""

    tower = property(lambda self: self.model.tower)
    blocks = property(lambda self: list(self.model.tower.blocks))
    final_norm = property(lambda self: self.model.tower.norm)
    projection = property(lambda self: self.model.projection)
    dimensions = property(lambda self: self.model.projection.out_features)
    logit_scale = property(lambda self: self.model.logit_scale.detach())
    text_encoder = property(lambda self: self.model)

    def embed(self, pixel_values: Any) -> Any:
        return self.projection(self.tower(pixel_values))

    def adapter_pattern(self, names: Any) -> str:
        layers = {"out" if name == "out" else "qkv" for name in names}
        return rf"tower\.blocks\.\d+\.attention\.({'|'.join(sorted(layers))})"


def build(rest: str) -> Any:
    """A model with random weights, the same ones every time."""
    # Imported here, so that a list of backbones needs no torch.
    from attndrift_extension.toy_model import seeded_model

    return seeded_model(depth=int(rest))


def queries_and_keys(attention: Any, inputs: Any, output: Any) -> Any:
    """Both from the one layer that puts them out: (images, heads, tokens, head width) each."""
    return dict(zip(("query", "key"), output.unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)[:2], strict=True))


FAMILIES.register(
    Family(
        name="toy", models="ToyModel", classes=("ToyTower",), taps=(Tap("qkv", queries_and_keys),),
        blocks=lambda tower: [Block(f"blocks.{i}", f"blocks.{i}.attention") for i in range(len(tower.blocks))],
        scale=lambda attention: (attention.out.in_features / 2) ** -0.5, prefix_tokens=lambda tower: 1,
        queries={"cls": 0, "patches": MeanOfPatches()},
    )
)  # fmt: skip
BACKBONES.register(
    BackboneSpec(
        name="toy", label="toy model", source="this package", classes=("ToyModel",), view=ToyBackbone,
        families=("toy",), load=build, build=build, shape=lambda rest: VisionShape(28, 7, 32, int(rest), 32, 16),
        processor=lambda rest: load_processor("config:tiny"),
    )
)  # fmt: skip
