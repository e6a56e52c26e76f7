"""Preservation losses: hold a model near its pretrained state while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attndrift.lazy_imports import lazy_imports
from attndrift.losses.names import canonical_losses, parse_losses, split_weight
from attndrift.losses.registry import LOSSES, Loss

if TYPE_CHECKING:
    from attndrift.losses.attention_preservation import AttentionPreservation, attention_preservation_loss
    from attndrift.losses.base import Batch, PreservationLoss, PreservationLossError, StudyContext
    from attndrift.losses.embedding_distillation import EmbeddingCosine, EmbeddingMSE, EmbeddingSimilarity
    from attndrift.losses.entropy_floor import EntropyFloor, entropy_floor_loss
    from attndrift.losses.ewc import EWC, fisher_information
    from attndrift.losses.forward_loss import ForwardLoss
    from attndrift.losses.l2_sp import L2SP
    from attndrift.losses.ldifs import LDIFS, ldifs_loss
    from attndrift.losses.lipsum import Lipsum, lipsum_loss
    from attndrift.losses.logit_distillation import LogitDistillation, ReferenceDistillation, logit_distillation_loss
    from attndrift.losses.summed import SummedLoss
    from attndrift.losses.teacher_cache import AttentionCache, TeacherCache
    from attndrift.losses.teacher_loss import TeacherLoss
    from attndrift.losses.views import AttentionView, EmbeddingView, HiddenView

__getattr__, __dir__ = lazy_imports(
    __name__,
    {
        "attndrift.losses.attention_preservation": ("AttentionPreservation", "attention_preservation_loss"),
        "attndrift.losses.base": ("Batch", "PreservationLoss", "PreservationLossError", "StudyContext"),
        "attndrift.losses.embedding_distillation": ("EmbeddingCosine", "EmbeddingMSE", "EmbeddingSimilarity"),
        "attndrift.losses.entropy_floor": ("EntropyFloor", "entropy_floor_loss"),
        "attndrift.losses.ewc": ("EWC", "fisher_information"),
        "attndrift.losses.forward_loss": ("ForwardLoss",),
        "attndrift.losses.l2_sp": ("L2SP",),
        "attndrift.losses.ldifs": ("LDIFS", "ldifs_loss"),
        "attndrift.losses.lipsum": ("Lipsum", "lipsum_loss"),
        "attndrift.losses.logit_distillation": (
            "LogitDistillation",
            "ReferenceDistillation",
            "logit_distillation_loss",
        ),
        "attndrift.losses.summed": ("SummedLoss",),
        "attndrift.losses.teacher_cache": ("AttentionCache", "TeacherCache"),
        "attndrift.losses.teacher_loss": ("TeacherLoss",),
        "attndrift.losses.views": ("AttentionView", "EmbeddingView", "HiddenView"),
    },
)

__all__ = [
    "EWC",
    "L2SP",
    "LDIFS",
    "LOSSES",
    "AttentionCache",
    "AttentionPreservation",
    "AttentionView",
    "Batch",
    "EmbeddingCosine",
    "EmbeddingMSE",
    "EmbeddingSimilarity",
    "EmbeddingView",
    "EntropyFloor",
    "ForwardLoss",
    "HiddenView",
    "Lipsum",
    "LogitDistillation",
    "Loss",
    "PreservationLoss",
    "PreservationLossError",
    "ReferenceDistillation",
    "StudyContext",
    "SummedLoss",
    "TeacherCache",
    "TeacherLoss",
    "attention_preservation_loss",
    "canonical_losses",
    "entropy_floor_loss",
    "fisher_information",
    "ldifs_loss",
    "lipsum_loss",
    "logit_distillation_loss",
    "parse_losses",
    "split_weight",
]
