"""CorDA: LoRA that starts from the directions of the weights that matter least, or most, to reference images."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from attndrift.methods.known._decomposed_lora import DecomposedLoRA, DecomposedSettings
from attndrift.methods.reference_settings import ReferenceSettings
from attndrift.methods.registry import method
from attndrift.own_settings import setting, spoken


class CorDASettings(DecomposedSettings, ReferenceSettings):
    """As LoRA's, with the images and what to do with their directions."""

    corda_mode: Literal["kpm", "ipm"] = setting(
        "kpm", "kpm: the directions of least weight to the reference images are trained; ipm: of most", label="mode "
    )

    @model_validator(mode="after")
    def _in_blocks(self) -> CorDASettings:
        if "projection" in self.lora_targets.split(","):
            raise ValueError(
                "`lora_targets` names projection, whose input is one token an image; corda needs several: name layers of "
                "the blocks"
            )
        return self


@method
class CorDA(DecomposedLoRA):
    """The weights are decomposed by the covariance of their inputs on reference images; one end of them is trained."""

    name, label, color, order = "corda", "CorDA", "#CC6677", 1.5
    source = "Yang et al. 2024"
    trains = "the directions of the adapted weights that reference images use least, the projection and the classifier"
    Settings = CorDASettings
    decomposition = "corda"
    needs_reference, reference_passes = True, 1.0

    def variant(self) -> dict[str, Any]:
        """The decomposition, in a configuration that says so: peft warns without one."""
        from peft.tuners.lora.config import CordaConfig  # the facts of a method are read without it

        return {"init_lora_weights": self.decomposition, "corda_config": CordaConfig()}

    def config(self, backbone: Any, settings: Any) -> Any:
        """As LoRA's, with the end of the directions that is trained."""
        found = super().config(backbone, settings)
        found.corda_config.corda_method = settings.corda_mode
        return found

    def prepare(self, backbone: Any, settings: Any, images: Any) -> None:
        """Decompose every adapted weight by what its layer is given for each image."""
        from peft.tuners.lora.corda import preprocess_corda  # the facts of a method are read without it

        from attndrift.models.evaluation import preserve_state

        config = self.config(backbone, settings)
        weight = next(backbone.tower.parameters())

        def look() -> None:
            for image in images:  # peft takes the tokens of one input at a time
                backbone.embed(image[None].to(weight.device, weight.dtype))

        with preserve_state(backbone.model):
            preprocess_corda(backbone.model, config, look)

    def run_name(self, settings: Any) -> list[str]:
        """As LoRA's, with the reference."""
        parts = [*super().run_name(settings), f"reference{spoken(settings.reference)}"]
        fields = type(settings).model_fields
        named = (("reference_images", "images"), ("corda_mode", ""))
        return parts + [
            f"{word}{spoken(getattr(settings, name))}"
            for name, word in named
            if getattr(settings, name) != fields[name].default
        ]
