"""LoRA: low-rank adapters."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from attndrift.methods.adapter_method import AdapterMethod
from attndrift.methods.registry import method
from attndrift.methods.targets import ByLayer, Targets, by_layer, exactly, in_order, layers_named
from attndrift.own_settings import OwnSettings, as_text, setting, spoken

_SPELLINGS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out"}
_IN_NAMES = {"q,k,v": "qkv", "q,k,v,out": "qkvo"}


class LoRASettings(OwnSettings):
    """Of the adapters."""

    lora_rank: Annotated[int, Field(ge=1, le=1024)] = setting(
        8, "rank of the adapters", sweep="LoRA rank", sweep_name="rank", tied=("lora_alpha",)
    )
    lora_alpha: Annotated[float, Field(gt=0)] | None = setting(
        None, "scale numerator of the adapters; default: twice the rank (rslora: 16)"
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = setting(0.05, "dropout before the adapters")
    lora_targets: Targets = setting(
        "q,v",
        "adapted layers: q, k, v, out of attention, fc1, fc2, projection",
        sweep="LoRA target modules",
        sweep_name="targets",
    )
    lora_blocks: Annotated[int, Field(ge=1)] | None = setting(
        None, "only the last so many blocks are adapted; default: all", label="last blocks="
    )
    lora_ranks: ByLayer = setting(None, "other ranks by layer: out=16,fc1=4", label="ranks ")
    lora_alphas: ByLayer = setting(None, "other scale numerators by layer: out=32,fc1=8", label="alphas ")

    @model_validator(mode="after")
    def _complete(self) -> LoRASettings:
        targets = self.lora_targets.split(",")
        for name in ("lora_ranks", "lora_alphas"):
            given = getattr(self, name)
            stranger = next((layer for layer in (by_layer(given) if given else ()) if layer not in targets), None)
            if stranger is not None:
                raise ValueError(
                    f"`{name}` names {stranger!r}, which `lora_targets` ({self.lora_targets}) does not adapt"
                )
        if self.lora_alpha is None:
            object.__setattr__(self, "lora_alpha", self.usual_alpha())
        return self

    def usual_alpha(self) -> float:
        """Of the rank, where none is given."""
        return 2.0 * self.lora_rank


@method
class LoRA(AdapterMethod):
    """Low-rank adapters in the vision tower's attention, projection and classifier are trained."""

    name, label, color, order = "lora", "LoRA", "#0072B2", 1.0
    source = "Hu et al. 2021"
    trains = "low-rank adapters in the vision tower's attention, the projection and the classifier"
    Settings = LoRASettings
    cost = 2.1
    adapter_parameters = ".lora_"

    def config(self, backbone: Any, settings: Any) -> Any:
        """Of the adapters, in the blocks of the image tower."""
        from peft import LoraConfig  # the facts of a method are read without it

        layers = layers_named(
            backbone, settings.lora_targets.split(","), setting="lora_targets", blocks=settings.lora_blocks
        )
        patterns = {
            pattern: {re.escape(place): number for name, number in by_layer(given).items() for place in layers[name]}
            for pattern, given in (("rank_pattern", settings.lora_ranks), ("alpha_pattern", settings.lora_alphas))
            if given
        }
        return LoraConfig(
            r=settings.lora_rank, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout,
            target_modules=exactly(layers), bias="none", **patterns, **self.variant(),
        )  # fmt: skip

    def variant(self) -> dict[str, Any]:
        """What a variant of LoRA adds to the configuration."""
        return {}

    def run_name(self, settings: Any) -> list[str]:
        """The rank, and what departs from the defaults."""
        parts = [f"{self.name}-r{settings.lora_rank}"]
        if settings.lora_targets != "q,v":
            parts.append(_IN_NAMES.get(settings.lora_targets, spoken(settings.lora_targets)))
        if settings.lora_alpha != settings.usual_alpha():
            parts.append(f"alpha{spoken(settings.lora_alpha)}")
        named = (("lora_blocks", "last"), ("lora_ranks", "ranks-"), ("lora_alphas", "alphas-"))
        return parts + [f"{word}{spoken(getattr(settings, name))}" for name, word in named if getattr(settings, name)]

    def describe(self, values: Mapping[str, str]) -> str:
        """``LoRA r=8``, with alpha, targets and the rest where they depart from the defaults."""
        rank, alpha, targets, dropout = (
            values.get(f"lora_{name}", "") for name in ("rank", "alpha", "targets", "dropout")
        )
        label = self.label + (f" r={rank}" if rank else "")
        if alpha and alpha != self._alpha_of(rank):
            label += f" alpha={alpha}"
        if targets not in ("", "q,v"):
            label += f" on {targets}"
        for name, word in (("blocks", "last blocks"), ("ranks", "ranks"), ("alphas", "alphas")):
            if values.get(f"lora_{name}"):
                label += f" {word} {values[f'lora_{name}']}"
        usual = as_text(self.Settings.model_fields["lora_dropout"].default)
        return label + (f" dropout={dropout}" if dropout not in ("", usual) else "")

    def canonical(self, values: Mapping[str, str]) -> dict[str, str]:
        """Any usual spelling of the targets as one; alpha follows the rank and targets are q,v where not given."""
        found = super().canonical(values)
        rank = values.get("lora_rank", "")
        return found | {
            "lora_rank": rank,
            "lora_alpha": values.get("lora_alpha", "") or self._alpha_of(rank),
            "lora_targets": _targets(values.get("lora_targets", "")) or "q,v",
        }

    def _alpha_of(self, rank: str) -> str:
        """The usual alpha of a rank, both as text."""
        try:
            return as_text(float(self.Settings.model_construct(lora_rank=float(rank)).usual_alpha()))
        except ValueError:
            return ""

    def recognise(self, tower: Any, blocks: Sequence[Sequence[bool]]) -> dict[str, Any] | None:
        """Rank, scale and targets of the adapters in a tower; None where there are none, or those of another variant."""
        if "peft" not in sys.modules:  # then no model has adapters
            return None
        from peft.tuners.lora import LoraLayer

        layers = [
            (name.rpartition(".")[2], part) for name, part in tower.named_modules() if isinstance(part, LoraLayer)
        ]
        if not layers:
            return None
        first: Any = layers[0][1]
        adapter = first.active_adapters[0] if first.active_adapters else None
        if adapter is not None and not self.is_of(first, adapter):
            return None
        names = dict.fromkeys(_SPELLINGS.get(name, name) for name, _ in layers)
        row: dict[str, Any] = {"lora_targets": in_order(names)}
        if adapter in first.r:
            row |= {"lora_rank": first.r[adapter], "lora_alpha": float(first.lora_alpha[adapter])}
        return row

    def is_of(self, layer: Any, adapter: str) -> bool:
        """Whether an adapted layer of ``peft`` is of this variant."""
        return not layer.use_dora.get(adapter) and not layer.use_rslora.get(adapter)


def _targets(text: str) -> str:
    """``q,v`` for any usual spelling of the adapted projections."""
    found = [re.sub(r"_?proj$", "", part) for part in re.findall(r"[A-Za-z_0-9]+", text)]
    return in_order("out" if part == "o" else part for part in found)
