"""A method with adapters: LoHa, the elementwise product of two low-rank updates."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from attndrift.methods.adapter_method import AdapterMethod
from attndrift.methods.registry import method
from attndrift.own_settings import OwnSettings, setting


class LoHaSettings(OwnSettings):
    """Of the adapters."""

    loha_rank: Annotated[int, Field(ge=1)] = setting(4, "rank of both factors", label="r=")


@method
class LoHa(AdapterMethod):
    """Hadamard adapters of queries and values, the projection and the classifier are trained."""

    name, label, order = "loha", "LoHa", 6
    source = "Hyeon-Woo et al. 2022"
    trains = "Hadamard adapters of queries and values, the projection and the classifier"
    Settings = LoHaSettings
    cost = 2.3
    adapter_parameters = ".hada_"

    def config(self, backbone: Any, settings: Any) -> Any:
        """Of the adapters, in every block of the image tower."""
        from peft import LoHaConfig

        pattern = backbone.adapter_pattern(["q", "v"])
        return LoHaConfig(r=settings.loha_rank, alpha=2 * settings.loha_rank, target_modules=pattern)
