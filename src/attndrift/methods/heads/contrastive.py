"""FLYP: the contrastive loss of the pretraining, over class prompts."""

from __future__ import annotations

from attndrift.methods.heads.live_text import LiveText
from attndrift.methods.registry import CONTRASTIVE, head


@head
class Contrastive(LiveText):
    """As ``live_text``, but trained with CLIP's contrastive loss over the batch: each image beside a prompt of its class."""

    name, label, order = CONTRASTIVE, "contrastive head", 5
    source = "FLYP; Goyal et al. 2023"
    contrastive = True
