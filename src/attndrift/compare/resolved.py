"""One side of a comparison, once it is a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from attndrift.models.backbone import Backbone, backbone_of
from attndrift.models.load import state_hash


@dataclass
class ResolvedModel:
    """One side of a comparison.

    Attributes:
        source: as it was named, in printable characters; the class of a model that was given itself.
        kind: ``model``, ``checkpoint``, ``adapter``, ``vision tower`` or ``object``.
        model: the model, adapters merged, float32, in evaluation mode.
        image_processor, tokenizer: the model's own, or those of the model that it was put onto; the
            tokenizer is None where there is none.
        trained_on: name of the registered dataset that a run was trained on, None where it is not known.
        notes: what a reader has to know about how it was put together.
        revision: the commit, where it is from a hub.
    """

    source: str
    kind: str
    model: nn.Module
    image_processor: Any
    tokenizer: Any
    trained_on: str | None = None
    notes: list[str] = field(default_factory=list)
    revision: str | None = None

    @property
    def view(self) -> Backbone:
        """What studies see of the model."""
        return backbone_of(self.model)

    @property
    def config(self) -> Any:
        """Its configuration of ``transformers``; None for a model of another library."""
        found = getattr(self.model, "config", None)
        return found if hasattr(found, "to_dict") else None

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return {
            "source": self.source,
            "kind": self.kind,
            "revision": self.revision,
            "weights_sha256": state_hash(self.model),
            "notes": list(self.notes),
        }
