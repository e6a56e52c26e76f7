"""BOFT: weights turned by rotations and scaled."""

from __future__ import annotations

import warnings
from typing import Annotated, Any

from pydantic import Field

from attndrift.methods.adapter_method import AdapterMethod
from attndrift.methods.known.oft import refuse_uneven
from attndrift.methods.registry import method
from attndrift.methods.targets import Targets, exactly, layers_named
from attndrift.own_settings import OwnSettings, setting


class BOFTSettings(OwnSettings):
    """Of the rotations."""

    boft_block_size: Annotated[int, Field(ge=2, le=4096)] = setting(
        4, "inputs that one rotation turns; a divisor of the layers' inputs", label="block="
    )
    boft_targets: Targets = setting("q,v", "turned layers: q, k, v, out, fc1, fc2, projection", label="on ")


@method
class BOFT(AdapterMethod):
    """Rotations of blocks of inputs and scales of outputs, projection and classifier are trained."""

    name, label, color, order = "boft", "BOFT", "#DDCC77", 1.9
    source = "Liu et al. 2023; one butterfly factor, which needs no compiler"
    trains = "orthogonal rotations and scales of the adapted weights, the projection and the classifier"
    Settings = BOFTSettings
    cost, work = 3.0, 1.5
    adapter_parameters = ".boft_"

    def config(self, backbone: Any, settings: Any) -> Any:
        """Of the rotations, in every block of the image tower."""
        from peft import BOFTConfig  # the facts of a method are read without it

        layers = layers_named(backbone, settings.boft_targets.split(","), setting="boft_targets")
        refuse_uneven(backbone, layers, settings.boft_block_size, "boft_block_size")
        return BOFTConfig(target_modules=exactly(layers), boft_block_size=settings.boft_block_size)

    def apply(self, backbone: Any, settings: Any, seed: int) -> Any:
        """Put the rotations in. peft makes permutations value by value, which no counting device can."""
        import torch  # the facts of a method are read without it

        with torch.device("cpu"), warnings.catch_warnings():
            # It looks for a compiler, which one butterfly factor has no use for.
            warnings.filterwarnings("ignore", message="Failed to load the CUDA extension|Setting boft_n_butterfly")
            return super().apply(backbone, settings, seed)
