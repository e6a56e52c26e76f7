"""What a run trains beside the method of its image tower, and what it leaves frozen: in one spelling, and in words."""

from __future__ import annotations

from typing import Any

from attndrift.methods.registry import FROZEN, METHODS, label_of
from attndrift.own_settings import as_text, spoken

LABELS = {
    "freeze_blocks": "frozen blocks",
    "text_tower": "text tower",
    "train_text_projection": "text projection",
    "text_freeze_blocks": "frozen text blocks",
    "train_temperature": "temperature",
}
"""What each setting is called before its value in tables and legends."""


def departed(settings: Any) -> dict[str, str]:
    """Those settings that are not the defaults, as text by name."""
    usual = bool(METHODS[settings.text_tower].projection)
    found = {name: as_text(getattr(settings, name)) for name in LABELS}
    unsaid = {"text_tower": FROZEN, "train_text_projection": str(usual), "train_temperature": "False"}
    return {name: value for name, value in found.items() if value and value != unsaid.get(name)}


def parts_text(settings: Any) -> str | None:
    """``text_tower=full+train_temperature=True`` for the column ``trained_parts``; None where all are the defaults."""
    return "+".join(f"{name}={value}" for name, value in departed(settings).items()) or None


def parts_label(text: str) -> str:
    """That column in words.

    >>> parts_label("freeze_blocks=first:2,9+text_tower=full+train_temperature=True")
    'frozen blocks first:2,9, text tower full, temperature trained'
    """
    parts = (part.partition("=") for part in text.split("+"))
    return ", ".join(f"{LABELS.get(name, name)} {_value(name, value)}" for name, _, value in parts)


def _value(name: str, value: str) -> str:
    return {"True": "trained", "False": "frozen"}.get(value) or (label_of(value) if name == "text_tower" else value)


def text_tower_of(text: str) -> str:
    """The method of the text tower that the column tells.

    >>> text_tower_of("freeze_blocks=2+text_tower=lora")
    'lora'
    """
    return dict(part.partition("=")[::2] for part in text.split("+")).get("text_tower", FROZEN)


def part_names(settings: Any) -> list[str]:
    """Parts of a run's folder name; a text tower's method with what departs from its own defaults."""
    found = []
    for name, value in departed(settings).items():
        words = [name.removeprefix("train_").replace("_", "-"), spoken(value)]
        if name == "text_tower":
            method = METHODS[value]
            words = ["text", *method.run_name(settings.settings_of(method))]
        found.append("-".join(words))
    return found
