"""LoRA whose adapters start from a part of the weights, which is taken out of the base: PiSSA, OLoRA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from attndrift.methods.known.lora import LoRA, LoRASettings
from attndrift.own_settings import setting

ADAPTER = "default"


class DecomposedSettings(LoRASettings):
    """As LoRA's, without dropout: it would drop parts of the pretrained weights."""

    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = setting(0.0, "dropout before the adapters")


class DecomposedLoRA(LoRA):
    """W = (W0 - scale B0 A0) + scale B A, where B0 A0 is a part of W0; subclasses name the decomposition of ``peft``.

    The base weights that the adapters sit on are no longer the pretrained ones. B0 and A0 rebuild them, bit for bit on one
    machine; they are kept beside states and checkpoints, so that nothing is decomposed twice.
    """

    Settings = DecomposedSettings
    rewrites_base = True
    decomposition: ClassVar[str] = ""

    def variant(self) -> dict[str, Any]:
        """The decomposition."""
        return {"init_lora_weights": self.decomposition}

    def apply(self, backbone: Any, settings: Any, seed: int) -> Any:
        """Decompose the weights, and put the adapters in. Where parameters are only counted, nothing is decomposed."""
        config = self.config(backbone, settings)
        if next(backbone.model.parameters()).is_meta:
            config.init_lora_weights = True
        return self.wrap(backbone, config, seed)

    def start_of(self, model: Any) -> dict[str, Any]:
        """A0 and B0 of every adapted layer."""
        return {
            f"{name}.{part}": getattr(layer, part)[ADAPTER].weight.detach().clone()
            for name, layer in _layers(model)
            for part in ("lora_A", "lora_B")
        }

    def rebuild(self, backbone: Any, settings: Any, seed: int, start: Mapping[str, Any]) -> Any:
        """The adapters at A0 and B0 on what these leave of the pretrained weights."""
        import torch  # the facts of a method are read without it

        config = self.config(backbone, settings)
        config.init_lora_weights = True
        adapted = self.wrap(backbone, config, seed)
        with torch.no_grad():
            for name, layer in _layers(adapted):
                a, b, base = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.get_base_layer().weight
                a.copy_(start[f"{name}.lora_A"])
                b.copy_(start[f"{name}.lora_B"])
                # In peft's own order of operations: the same bits.
                base.copy_(base - layer.scaling[ADAPTER] * b @ a)
        config.init_lora_weights = self.decomposition
        return adapted

    def is_of(self, layer: Any, adapter: str) -> bool:
        """Nothing in a layer tells how its adapters started: such a model of somebody's own counts as LoRA."""
        return False


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer  # the facts of a method are read without it

    return ((name, part) for name, part in model.named_modules() if isinstance(part, LoraLayer))
