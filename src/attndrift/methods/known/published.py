"""The image tower of a checkpoint that somebody published, measured as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from attndrift.methods.registry import Method, method
from attndrift.own_settings import OwnSettings, setting


class PublishedSettings(OwnSettings):
    """Which checkpoint."""

    checkpoint: str | None = setting(
        None,
        "folder, or NAME or NAME@REVISION on the hub, of an image tower that was fine-tuned from `model`",
        label="",
    )

    @model_validator(mode="after")
    def _named(self) -> PublishedSettings:
        if not self.checkpoint:
            raise ValueError("`checkpoint` must name the image tower: a folder, or NAME or NAME@REVISION on the hub")
        return self


@method
class Published(Method):
    """Nothing is trained: the image tower's weights are those of a published checkpoint."""

    name, label, color, order = "published", "published", "#44AA99", 8
    source = "whoever published the checkpoint"
    trains = "nothing: the weights of `checkpoint` are put in place of the image tower's, and measured"
    Settings = PublishedSettings
    projection = None
    adapts = False
    moves_encoder = False
    keeps_activations = False
    replaces = True
    cost, work = 0.0, 0.0

    def apply(self, backbone: Any, settings: Any, seed: int) -> Any:
        """Put the checkpoint's weights in place."""
        if not next(backbone.tower.parameters()).is_meta:  # otherwise only sizes are asked for
            from attndrift.models.tower_weights import put_tower  # the facts of a method are read without torch

            put_tower(backbone.tower, settings.checkpoint)
        return backbone.model

    def run_name(self, settings: Any) -> list[str]:
        """The last part of the checkpoint's name."""
        return [self.name, re.sub(r"[^A-Za-z0-9.-]+", "-", settings.checkpoint.rstrip("/").split("/")[-1]).strip("-.")]

    def describe(self, values: Mapping[str, str]) -> str:
        """The checkpoint's name, without its owner."""
        known = values.get("checkpoint", "")
        return f"{self.label}: {known.rstrip('/').split('/')[-1]}" if known else self.label
