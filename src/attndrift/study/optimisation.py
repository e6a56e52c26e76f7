"""The settings of the optimisation that tell runs apart as a method does, in one spelling and in words."""

from __future__ import annotations

from typing import Any

from attndrift.own_settings import as_text, spoken

LABELS = {
    "layer_decay": "layer decay",
    "head_learning_rate": "head rate",
    "projection_learning_rate": "projection rate",
    "text_learning_rate": "text rate",
    "spd": "SPD",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "warmup_steps": "warmup steps",
}
"""What each is called before its value in tables and legends."""


def departed(settings: Any) -> dict[str, Any]:
    """Those that are not the defaults, by name."""
    fields = type(settings).model_fields
    return {name: getattr(settings, name) for name in LABELS if getattr(settings, name) != fields[name].default}


def optimisation_text(settings: Any) -> str | None:
    """``layer_decay:0.75+spd:1`` for the column ``optimisation``; None where all are the defaults."""
    return "+".join(f"{name}:{as_text(value)}" for name, value in departed(settings).items()) or None


def optimisation_label(text: str) -> str:
    """That column in words.

    >>> optimisation_label("layer_decay:0.75+spd:1")
    'layer decay 0.75, SPD 1'
    """
    parts = (part.partition(":") for part in text.split("+"))
    return ", ".join(f"{LABELS.get(name, name)} {value}" for name, _, value in parts)


def optimisation_names(settings: Any) -> list[str]:
    """Parts of a run's folder name."""
    return [f"{name.replace('_', '-')}{spoken(value)}" for name, value in departed(settings).items()]
