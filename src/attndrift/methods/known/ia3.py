"""IA3: learned factors of activations."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from attndrift.methods.adapter_method import AdapterMethod
from attndrift.methods.registry import method
from attndrift.methods.targets import Targets, exactly, layers_named
from attndrift.own_settings import OwnSettings, setting

_INPUT_SCALED = "fc2"


class IA3Settings(OwnSettings):
    """Of the factors."""

    ia3_targets: Targets = setting(
        "k,v,fc2", "layers whose outputs are scaled (of fc2: its inputs, the MLP's activations)", label="on "
    )


@method
class IA3(AdapterMethod):
    """Factors of keys, values and the MLP's activations, projection and classifier are trained."""

    name, label, color, order = "ia3", "IA3", "#117733", 1.7
    source = "Liu et al. 2022"
    trains = "factors of keys, values and MLP activations, the projection and the classifier"
    Settings = IA3Settings
    cost = 2.1
    adapter_parameters = ".ia3_l"

    def config(self, backbone: Any, settings: Any) -> Any:
        """Of the factors, in every block of the image tower."""
        from peft import IA3Config  # the facts of a method are read without it

        layers = layers_named(backbone, settings.ia3_targets.split(","), setting="ia3_targets")
        inputs = {name: places for name, places in layers.items() if name == _INPUT_SCALED}
        # An empty pattern would match nothing either, but peft takes it for none given.
        return IA3Config(target_modules=exactly(layers), feedforward_modules=exactly(inputs) or [])

    def recognise(self, tower: Any, blocks: Sequence[Sequence[bool]]) -> dict[str, Any] | None:
        """Whether the adapters in a tower are these."""
        if "peft" not in sys.modules:
            return None
        from peft.tuners.ia3 import IA3Layer  # the facts of a method are read without it

        return {} if any(isinstance(part, IA3Layer) for part in tower.modules()) else None
