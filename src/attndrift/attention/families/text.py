"""Text encoders of ``transformers``, observed where their query is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from attndrift.attention.errors import ObservationError
from attndrift.attention.families.family import TEXT_FAMILIES, Family, Found
from attndrift.attention.families.taps import scale
from attndrift.attention.families.vision import blocks, holds_blocks, taps


def _end_of_text(tower: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    ids = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(ids, Tensor):
        raise ObservationError("query: the end of a text is found in `input_ids`, which the text tower was not given")
    ids = ids.view(-1, ids.shape[-1])
    end: Any = getattr(tower, "eos_token_id", None)
    # The rule of CLIPTextModel: old configurations say 2, and their end of text is the highest number.
    return ids.int().argmax(-1) if end is None or end == 2 else (ids == end).int().argmax(-1)


CLIP_TEXT = Family(
    name="clip_text",
    models="the text towers of CLIP and MetaCLIP 2 (CLIPTextModel, MetaClip2TextModel)",
    classes=("CLIPTextModel", "CLIPTextTransformer", "MetaClip2TextModel", "MetaClip2TextTransformer"),
    recognises=holds_blocks,
    blocks=blocks,
    taps=taps,
    scale=scale,
    prefix_tokens=lambda tower: 0,
    queries={"end_of_text": Found(_end_of_text), "last": -1},
)

SIGLIP_TEXT = Family(
    name="siglip_text",
    models="SigLIP's text towers (SiglipTextModel, Siglip2TextModel)",
    classes=("SiglipTextModel", "SiglipTextTransformer", "Siglip2TextModel", "Siglip2TextTransformer"),
    recognises=holds_blocks,
    blocks=blocks,
    taps=taps,
    scale=scale,
    prefix_tokens=lambda tower: 0,
    queries={"last": -1},
)

BERT = Family(
    name="bert",
    models="BERT-like encoders (BertModel, RobertaModel)",
    classes=("BertModel", "RobertaModel"),
    recognises=holds_blocks,
    blocks=blocks,
    taps=taps,
    scale=scale,
    prefix_tokens=lambda tower: 0,
    queries={"cls": 0, "last": -1},
    refuses=lambda tower: (
        "its decoder form, with cross-attention or a cache, cannot be observed"
        if getattr(getattr(tower, "config", None), "is_decoder", False)
        else None
    ),
)

for _family in (CLIP_TEXT, SIGLIP_TEXT, BERT):
    TEXT_FAMILIES.register(_family)
