"""What goes together of the settings that say which parts of both towers are trained."""

from __future__ import annotations

from typing import Protocol

from attndrift.methods.registry import FROZEN, HEADS, METHODS, Method


class TowerSettings(Protocol):
    """The settings of a run, or those of an adaptation."""

    @property
    def method(self) -> str: ...
    @property
    def head(self) -> str: ...
    @property
    def train_projection(self) -> bool | None: ...
    @property
    def freeze_layers(self) -> int: ...
    @property
    def freeze_blocks(self) -> str | None: ...
    @property
    def text_tower(self) -> str: ...
    @property
    def train_text_projection(self) -> bool | None: ...
    @property
    def text_freeze_blocks(self) -> str | None: ...
    @property
    def train_temperature(self) -> bool: ...


def tower_problem(settings: TowerSettings) -> tuple[str, str] | None:
    """The first setting of the towers that does not go with the others, and why; None where all do."""
    method, text, head = METHODS[settings.method], METHODS[settings.text_tower], HEADS[settings.head]
    for name, given, whose in (
        ("freeze_layers", settings.freeze_layers, method),
        ("freeze_blocks", settings.freeze_blocks, method),
        ("text_freeze_blocks", settings.text_freeze_blocks, text),
    ):
        if given and not whose.freezes_blocks:
            able = ", ".join(one.name for one in METHODS if one.freezes_blocks)
            kind = "text_tower" if whose is text and name.startswith("text") else "method"
            return name, f"needs {kind}: {able}; this run has {kind}: {whose.name}"
    if settings.text_tower == FROZEN and not (settings.train_text_projection or settings.train_temperature):
        return _nothing(settings, method)
    trained = "text_tower" if settings.text_tower != FROZEN else (
        "train_text_projection" if settings.train_text_projection else "train_temperature"
    )  # fmt: skip
    if not method.beside_text:
        return (
            trained,
            f"does not go with method: {method.name}; where the image tower stays as it is, take method: {FROZEN}",
        )
    if not text.on_text:
        able = ", ".join(one.name for one in METHODS if one.on_text)
        return "text_tower", f"{text.name} cannot train a text tower; there are {able}"
    if not head.live:
        live = " or ".join(one.name for one in HEADS if one.live)
        return trained, (
            f"needs head: {live}, which encode the class prompts at every step; head: {head.name} has text features that "
            "were computed once, or none, so that nothing of the text side would learn"
        )
    if method.adapter_parameters and text.adapter_parameters and method is not text:
        return "text_tower", (
            f"{text.name} and method: {method.name} are two kinds of adapters; give both towers the same, or one of them "
            "none (full, bitfit, ln_tuning)"
        )
    return None


def _nothing(settings: TowerSettings, method: Method) -> tuple[str, str] | None:
    if method.name == FROZEN and not settings.train_projection:
        return "method", (
            f"{FROZEN} leaves the image tower as it is, and nothing else is trained; give text_tower, train_projection or "
            "train_temperature, or take method: linear_probe for a classifier alone"
        )
    return None
