"""What adaptation methods share that put adapters of ``peft`` into the image tower: one file gives the configuration."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from pathlib import Path
from typing import Any

from attndrift.extras import importing
from attndrift.methods.registry import Method


class AdapterMethod(Method):
    """Adapters, projection and classifier are trained; subclasses give :meth:`config`, facts and own settings.

    ``adapter_parameters`` is what the names of the adapters' parameters have in common, such as ``.lora_``.
    Checkpoints hold the adapters in the form that ``peft`` itself loads.
    """

    requires = ("peft",)

    @abstractmethod
    def config(self, backbone: Any, settings: Any) -> Any:
        """A ``peft`` configuration for one tower. Its ``target_modules`` come from ``backbone.adapter_pattern(names)``.

        A list of names would reach into the other tower too, whose layers have the same names.
        :func:`~attndrift.methods.targets.layers_named` refuses names that the backbone does not have.
        """

    def apply(self, backbone: Any, settings: Any, seed: int) -> Any:
        """Put the adapters into the tower, and into the one beside it where there is one."""
        return self.wrap(backbone, self.of_towers(backbone, settings), seed)

    def of_towers(self, backbone: Any, settings: Any) -> Any:
        """The ``peft`` configuration of the tower, with that of the one beside it where there is one."""
        config = self.config(backbone, settings)
        if backbone.beside is not None:
            other = self.config(backbone.beside, settings)
            for name in ("target_modules", "feedforward_modules"):
                patterns = [one for one in (getattr(config, name, None), getattr(other, name, None)) if one]
                if patterns:
                    setattr(config, name, "|".join(patterns))
            for name in ("rank_pattern", "alpha_pattern"):
                if getattr(other, name, None):
                    setattr(config, name, {**getattr(config, name), **getattr(other, name)})
        return config

    def wrap(self, backbone: Any, config: Any, seed: int) -> Any:
        """Put the adapters of a ``peft`` configuration into the model."""
        # Imported here: the facts of a method are read without torch and peft.
        with importing("peft", f"the method `{self.name}`"):
            from peft import get_peft_model

        from attndrift.methods.adapters import check_adapter_places
        from attndrift.methods.classifier import seeded

        with seeded(seed), warnings.catch_warnings():
            # peft asks transformers under a name that it is about to drop; nothing to do with the adapters.
            warnings.filterwarnings(
                "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
            )
            adapted = get_peft_model(backbone.model, config)
        if not backbone.of_texts:
            check_adapter_places(adapted, text_tower=backbone.beside is not None)
        return adapted

    def save(self, model: Any, folder: Path) -> None:
        """Write the form that peft itself loads, on top of the same model."""
        # Asked to judge the vocabulary by itself, peft would look the backbone up on the hub at every checkpoint.
        model.save_pretrained(folder / "adapter", safe_serialization=True, save_embedding_layers=False)
        (folder / "adapter" / "README.md").unlink(missing_ok=True)

    def load(self, model: Any, folder: Path) -> None:
        """Put the adapters back, every tensor or none."""
        from attndrift.methods.adapters import load_adapter  # needs torch

        load_adapter(model, folder / "adapter", text_tower=None)

    def merge(self, model: Any) -> Any:
        """Add the adapters to the weights, and remove them."""
        return model.merge_and_unload()
