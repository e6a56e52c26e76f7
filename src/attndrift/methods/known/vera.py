"""VeRA: learned vectors between random matrices that all layers share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from attndrift.methods.adapter_method import AdapterMethod
from attndrift.methods.registry import method
from attndrift.methods.targets import Targets, exactly, layers_named
from attndrift.own_settings import OwnSettings, setting


class VeRASettings(OwnSettings):
    """Of the vectors."""

    vera_rank: Annotated[int, Field(ge=1, le=4096)] = setting(
        256, "rank of the random matrices", label="r=", sweep="VeRA rank"
    )
    vera_targets: Targets = setting("q,v", "adapted layers: q, k, v, out, fc1, fc2, projection", label="on ")


@method
class VeRA(AdapterMethod):
    """Two vectors a layer, projection and classifier are trained."""

    name, label, color, order = "vera", "VeRA", "#44AA99", 1.6
    source = "Kopiczko et al. 2024"
    trains = "vectors between fixed random matrices, the projection and the classifier"
    Settings = VeRASettings
    cost = 2.3
    adapter_parameters = ".vera_lambda_"

    def config(self, backbone: Any, settings: Any) -> Any:
        """Of the vectors, in every block of the image tower."""
        from peft import VeraConfig  # the facts of a method are read without it

        layers = layers_named(backbone, settings.vera_targets.split(","), setting="vera_targets")
        return VeraConfig(r=settings.vera_rank, target_modules=exactly(layers))

    def apply(self, backbone: Any, settings: Any, seed: int) -> Any:
        """Put the vectors in; the random matrices are of the seed too."""
        config = self.of_towers(backbone, settings)
        config.projection_prng_key = seed
        return self.wrap(backbone, config, seed)
