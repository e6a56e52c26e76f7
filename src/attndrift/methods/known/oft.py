"""OFT: weights turned by learned rotations."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from attndrift.methods.adapter_method import AdapterMethod
from attndrift.methods.registry import method
from attndrift.methods.targets import Targets, exactly, layers_named
from attndrift.own_settings import OwnSettings, setting


class OFTSettings(OwnSettings):
    """Of the rotations."""

    oft_block_size: Annotated[int, Field(ge=2, le=4096)] = setting(
        32, "inputs that one rotation turns; a divisor of the layers' inputs", label="block="
    )
    oft_targets: Targets = setting("q,v", "turned layers: q, k, v, out, fc1, fc2, projection", label="on ")


@method
class OFT(AdapterMethod):
    """Rotations of blocks of inputs in attention, projection and classifier are trained."""

    name, label, color, order = "oft", "OFT", "#999933", 1.8
    source = "Qiu et al. 2023"
    trains = "orthogonal rotations of the adapted weights, the projection and the classifier"
    Settings = OFTSettings
    cost, work = 2.6, 1.3
    adapter_parameters = ".oft_R"

    def config(self, backbone: Any, settings: Any) -> Any:
        """Of the rotations, in every block of the image tower."""
        from peft import OFTConfig  # the facts of a method are read without it

        layers = layers_named(backbone, settings.oft_targets.split(","), setting="oft_targets")
        refuse_uneven(backbone, layers, settings.oft_block_size, "oft_block_size")
        return OFTConfig(target_modules=exactly(layers), oft_block_size=settings.oft_block_size)


def refuse_uneven(backbone: Any, layers: dict[str, list[str]], size: int, setting: str) -> None:
    """Raise ``ValueError`` naming the setting where a layer's inputs are no multiple of ``size``: peft would take another."""
    for name, places in layers.items():
        width = backbone.model.get_submodule(places[0]).in_features
        if width % size:
            raise ValueError(f"{setting} is {size}; layer {name} has {width} inputs, which must be a multiple of it")
