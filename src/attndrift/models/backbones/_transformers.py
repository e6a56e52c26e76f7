"""What the backbones of ``transformers`` share: where their blocks and layers are, and towers without text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from attndrift.models.backbone import Backbone, VisionShape

if TYPE_CHECKING:
    from torch import Tensor, nn

_BLOCK_LISTS = ("encoder.layers", "encoder.layer", "layers", "model.layer")
_ROLES = {
    "q": ("q_proj", "query"),
    "k": ("k_proj", "key"),
    "v": ("v_proj", "value"),
    "out": ("out_proj", "o_proj", r"attention\.output\.dense"),
    "fc1": ("fc1", "up_proj", r"intermediate\.dense"),
    "fc2": ("fc2", "down_proj"),
}
"""The names of layers in a block, by their role."""


def block_path(tower: nn.Module) -> str:
    """Path of the list of blocks in ``tower``."""
    modules = dict(tower.named_modules())
    return next(path for path in _BLOCK_LISTS if path in modules and len(list(modules[path].children())))


def blocks_of(tower: nn.Module) -> Sequence[nn.Module]:
    """The blocks of ``tower``, from the input to the output."""
    return list(tower.get_submodule(block_path(tower)).children())


def adapter_pattern(within: str, tower: nn.Module, names: Sequence[str]) -> str:
    """A regular expression for the layers ``names``, or roles, in every block of the tower at the path ``within``.

    A list of names would adapt both towers of a model, whose layers have the same names.
    """
    # Layers lie in a part of the block: its attention or MLP, which is no layer itself.
    known = [layer for name in names for layer in _ROLES.get(name, (name,))]
    layers = "|".join(layer if "." in layer else rf"(?:\w+\.)+{layer}" for layer in known)
    path = (f"{within}." if within else "") + block_path(tower)
    return rf"{re.escape(path)}\.\d+\.(?:{layers})"


class Tower(Backbone):
    """A tower of a model of ``transformers``. The embedding is what its pooler puts out, without one the class token behind
    the final norm, through the projection where there is one.

    Attributes:
        path: of the tower in the model; empty for a tower that is the model.
        norm: path of the final norm in the tower.
        takes: the name of the tower's input.
    """

    path: ClassVar[str] = ""
    norm: ClassVar[str] = "layernorm"
    takes: ClassVar[str] = "pixel_values"

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model.get_submodule(self.path)
        return tower

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return blocks_of(self.tower)

    @property
    def dimensions(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def final_norm(self) -> nn.Module:
        return self.tower.get_submodule(self.norm)

    def embed(self, pixel_values: Tensor) -> Tensor:
        output = self.tower(**{self.takes: pixel_values})
        pooled: Tensor = output.last_hidden_state[:, 0] if output.pooler_output is None else output.pooler_output
        projection = self.projection
        return pooled if projection is None else projection(pooled)

    def adapter_pattern(self, names: Sequence[str]) -> str:
        return adapter_pattern(self.path, self.tower, names)


class TextTower(Tower):
    """The text tower of a model with two."""

    of_texts = True
    path = "text_model"
    norm = "final_layer_norm"
    takes = "input_ids"


class TwoTowers(Tower):
    """The image tower of a model that was pretrained with texts; ``text_view`` is the view of its text tower."""

    path = "vision_model"
    norm = "post_layernorm"
    text_view: ClassVar[type[TextTower]]

    @property
    def logit_scale(self) -> Tensor:
        scale: Tensor = self.model.logit_scale.detach().reshape(())
        return scale

    @property
    def temperature(self) -> nn.Parameter:
        parameter: nn.Parameter = self.model.logit_scale
        return parameter

    @property
    def text(self) -> TextTower:
        return self.text_view(self.model)

    @property
    def text_encoder(self) -> nn.Module:
        encoder: nn.Module = self.model
        return encoder


def tower_shape(config: Any, image_size: int) -> VisionShape:
    """The sizes of a vision transformer of this configuration, for images of ``image_size`` pixels; 0 for its own."""
    mlp = getattr(config, "intermediate_size", None) or int(config.hidden_size * config.mlp_ratio)
    return VisionShape(
        image_size or config.image_size, config.patch_size, config.hidden_size, config.num_hidden_layers, mlp,
        config.hidden_size, prefix_tokens=1 + int(getattr(config, "num_register_tokens", 0)),
    )  # fmt: skip


def make_processor(kind: str, config: Any, *, mean: str = "") -> tuple[Any, Any]:
    """A tokenizer of single characters (None without text tower) and the image processor ``kind``, for random weights."""
    from attndrift.models.from_config import character_tokenizer, image_processor  # a list of backbones needs no torch

    text, vision = getattr(config, "text_config", None), getattr(config, "vision_config", config)
    tokenizer = None if text is None else character_tokenizer(text)
    return tokenizer, image_processor(kind, vision.image_size, mean=mean)


TINY: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "patch_size": 7,
}  # fmt: skip
"""The sizes of the smallest towers."""
