"""A method with adapters: IA3, learned factors of keys and values."""

from __future__ import annotations

from typing import Any, Literal

from attndrift.methods.adapter_method import AdapterMethod
from attndrift.methods.registry import method
from attndrift.own_settings import OwnSettings, setting


class IA3Settings(OwnSettings):
    """Of the factors."""

    ia3_targets: Literal["k,v", "v"] = setting("k,v", "layers whose outputs are scaled", label="on ")


@method
class IA3(AdapterMethod):
    """Factors of keys and values, the projection and the classifier are trained."""

    name, label, order = "ia3", "IA3", 6
    source = "Liu et al. 2022"
    trains = "factors of keys and values, the projection and the classifier"
    Settings = IA3Settings
    cost = 2.1
    adapter_parameters = ".ia3_"

    def config(self, backbone: Any, settings: Any) -> Any:
        """Of the factors, in every block of the image tower."""
        from peft import IA3Config

        pattern = backbone.adapter_pattern(settings.ia3_targets.split(","))
        return IA3Config(target_modules=pattern, feedforward_modules=[])
