"""What the backbones of ``transformers`` share: where their blocks and layers are, and towers without text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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


class ImageTower(Backbone):
    """A vision transformer without text tower, which is the model. The embedding is what its pooler puts out, without a pooler
    the class token behind the final norm."""

    norm = "layernorm"

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model
        return tower

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return blocks_of(self.model)

    @property
    def dimensions(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = getattr(self.model, self.norm)
        return norm

    def embed(self, pixel_values: Tensor) -> Tensor:
        output = self.model(pixel_values=pixel_values)
        embeddings: Tensor = output.last_hidden_state[:, 0] if output.pooler_output is None else output.pooler_output
        return embeddings

    def adapter_pattern(self, names: Sequence[str]) -> str:
        return adapter_pattern("", self.model, names)


def tower_shape(config: Any, image_size: int) -> VisionShape:
    """The sizes of a vision transformer of this configuration, for images of ``image_size`` pixels."""
    mlp = getattr(config, "intermediate_size", None) or int(config.hidden_size * config.mlp_ratio)
    return VisionShape(
        image_size or config.image_size, config.patch_size, config.hidden_size, config.num_hidden_layers, mlp,
        config.hidden_size, prefix_tokens=1 + int(getattr(config, "num_register_tokens", 0)),
    )  # fmt: skip
