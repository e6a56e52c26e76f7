"""LoRA: low-rank adapters."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from attndrift.methods.adapter_method import AdapterMethod
from attndrift.methods.registry import method
from attndrift.own_settings import OwnSettings, setting, spoken

_SPELLINGS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out"}


class LoRASettings(OwnSettings):
    """Of the adapters."""

    lora_rank: Annotated[int, Field(ge=1, le=1024)] = setting(
        8, "rank of the adapters", sweep="LoRA rank", sweep_name="rank", tied=("lora_alpha",)
    )
    lora_alpha: Annotated[float, Field(gt=0)] | None = setting(
        None, "scale numerator of the adapters; default: twice the rank"
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = setting(0.05, "dropout before the adapters")
    lora_targets: Literal["q,v", "q,k,v,out"] = setting(
        "q,v", "adapted projections", sweep="LoRA target modules", sweep_name="targets"
    )

    @model_validator(mode="after")
    def _twice_the_rank(self) -> LoRASettings:
        if self.lora_alpha is None:
            object.__setattr__(self, "lora_alpha", 2.0 * self.lora_rank)
        return self


@method
class LoRA(AdapterMethod):
    """Low-rank adapters in the vision tower's attention, projection and classifier are trained."""

    name, label, color, order = "lora", "LoRA", "#0072B2", 1
    source = "Hu et al. 2021"
    trains = "low-rank adapters in the vision tower's attention, the projection and the classifier"
    Settings = LoRASettings
    cost = 2.1
    adapter_parameters = ".lora_"

    def config(self, backbone: Any, settings: Any) -> Any:
        """Of the adapters, in every block of the image tower."""
        from peft import LoraConfig  # the facts of a method are read without it

        return LoraConfig(
            r=settings.lora_rank, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout,
            target_modules=backbone.adapter_pattern(settings.lora_targets.split(",")), bias="none",
        )  # fmt: skip

    def run_name(self, settings: Any) -> list[str]:
        """The rank, and what departs from the defaults."""
        parts = [f"lora-r{settings.lora_rank}"]
        if settings.lora_targets != "q,v":
            parts.append("qkvo")
        if settings.lora_alpha != 2.0 * settings.lora_rank:
            parts.append(f"alpha{spoken(settings.lora_alpha)}")
        return parts

    def describe(self, values: Mapping[str, str]) -> str:
        """``LoRA r=8``, with alpha and targets where they depart from the defaults."""
        rank, alpha, targets, dropout = (
            values.get(f"lora_{name}", "") for name in ("rank", "alpha", "targets", "dropout")
        )
        label = self.label + (f" r={rank}" if rank else "")
        if alpha and (not rank or float(alpha) != 2 * float(rank)):
            label += f" alpha={alpha}"
        if targets not in ("", "q,v"):
            label += f" on {targets}"
        return label + (f" dropout={dropout}" if dropout not in ("", "0.05") else "")

    def canonical(self, values: Mapping[str, str]) -> dict[str, str]:
        """Any usual spelling of the targets as one; alpha is twice the rank and targets are q,v where not given."""
        rank, alpha = values.get("lora_rank", ""), values.get("lora_alpha", "")
        try:
            default = f"{2 * float(rank):.6g}"
        except ValueError:
            default = ""
        return {
            "lora_rank": rank,
            "lora_alpha": alpha or default,
            "lora_dropout": values.get("lora_dropout", "") or "0.05",
            "lora_targets": _targets(values.get("lora_targets", "")) or "q,v",
        }

    def recognise(self, tower: Any, blocks: Sequence[Sequence[bool]]) -> dict[str, Any] | None:
        """Rank, scale and targets of the adapters in a tower; None where there are none."""
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
        names = dict.fromkeys(_SPELLINGS.get(name, name) for name, _ in layers)
        row: dict[str, Any] = {"lora_targets": ",".join(sorted(names, key=_place))}
        if adapter in first.r:
            row |= {"lora_rank": first.r[adapter], "lora_alpha": float(first.lora_alpha[adapter])}
        return row


_ORDER = ("q", "k", "v", "out")


def _place(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER)), name


def _targets(text: str) -> str:
    """``q,v`` for any usual spelling of the adapted projections."""
    found = [re.sub(r"_?proj$", "", part) for part in re.findall(r"[A-Za-z_0-9]+", text)]
    return ",".join(sorted({"out" if part == "o" else part for part in found}, key=_place))
