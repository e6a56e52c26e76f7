"""What a run's settings come to: the adaptation that they describe, and the device that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attndrift.methods.registry import HEADS, METHODS
from attndrift.methods.settings import AdaptationSettings
from attndrift.study.settings import FLOAT16_ON_CPU, RunSettings

if TYPE_CHECKING:
    import torch


def adaptation(settings: RunSettings) -> AdaptationSettings:
    """The part of a run's settings that decides which parameters are trained."""
    owners = (settings.facts, METHODS[settings.text_tower], HEADS[settings.head])
    own = {name: value for owner in owners for name, value in dict(settings.settings_of(owner)).items()}
    return AdaptationSettings(
        settings.method, head=settings.head, train_projection=settings.train_projection,
        freeze_layers=settings.freeze_layers, freeze_blocks=settings.freeze_blocks, text_tower=settings.text_tower,
        train_text_projection=settings.train_text_projection, text_freeze_blocks=settings.text_freeze_blocks,
        train_temperature=settings.train_temperature, **own,
    )  # fmt: skip


def device_of(settings: RunSettings) -> torch.device:
    """``auto`` resolved: an accelerator where there is one.

    Raises ``ValueError`` for an accelerator that is not there, and for float16 on a CPU, where ``accelerate``
    would train in float32 without a word.
    """
    import torch  # a check asks for the adaptation alone, and has no second for this

    present = ["cpu"]
    if torch.cuda.is_available():
        present.append("cuda")
    if torch.backends.mps.is_available():
        present.append("mps")
    name: str = settings.device
    if name == "auto":
        name = "cuda" if "cuda" in present else present[-1]
    if name not in present:
        raise ValueError(
            f"`device` is {name!r}, which torch does not find on this machine; it has {', '.join(present)}"
        )
    if name == "cpu" and settings.precision == "float16":
        raise ValueError(FLOAT16_ON_CPU)
    return torch.device(name)
