"""Lipsum-FT: zero-shot logits for random texts held to the pretrained ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attndrift.losses.pretrained_weights import encoder_of
from attndrift.losses.teacher_loss import CachedTeacher, TeacherLoss
from attndrift.losses.views import EmbeddingView
from attndrift.losses.zero_shot_logits import ZeroShotLogits
from attndrift.models.backbone import backbone_of
from attndrift.models.evaluation import preserve_state


def lipsum_loss(current: Tensor, reference: Tensor) -> Tensor:
    """Half the squared difference of logits (images, texts), mean over texts and images: a scalar >= 0."""
    return 0.5 * (current.float() - reference.to(current).float()).square().mean()


class Lipsum(TeacherLoss):
    """Lipsum-FT (Nam et al. 2024): ``weight`` times half the squared difference of the logits for random texts.

    The texts are random tokens, drawn once from ``seed``, and encoded by the text tower as it is when the loss is made.
    The logits are cosines times the pretrained inverse temperature.

    Arguments are those of :class:`~attndrift.losses.teacher_loss.TeacherLoss`, and:

    Args:
        lipsum_texts, lipsum_tokens: how many texts, and of how many tokens each.
        text_features: of texts of your own, (texts, dimensions), instead of random ones.
        seed: of the tokens.

    Raises:
        ValueError: a model without text tower.
    """

    name, sees = "lipsum", "the embedding"
    view = EmbeddingView()

    def __init__(
        self,
        model: nn.Module,
        weight: float,
        teacher: nn.Module | CachedTeacher | None = None,
        *,
        lipsum_texts: int = 80,
        lipsum_tokens: int = 8,
        text_features: Tensor | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        backbone = backbone_of(encoder_of(model))
        if text_features is None:
            encoder = backbone.text_encoder
            if encoder is None:
                raise ValueError(
                    "lipsum needs a text tower, which the model does not have; use ldifs or embedding_cosine"
                )
            text_features = _encoded(encoder, random_texts(encoder, lipsum_texts, lipsum_tokens, seed=seed))
        self._logits = ZeroShotLogits(backbone.logit_scale, text_features)
        super().__init__(model, weight, teacher, **options)

    def _compare(self, current: list[Tensor], reference: Sequence[Tensor] | Tensor) -> Tensor:
        before = reference[0].to(current[0].device, non_blocking=current[0].device.type != "cpu")
        return lipsum_loss(self._logits(current[0]), self._logits(before))


def random_texts(encoder: nn.Module, texts: int, tokens: int, *, seed: int = 0) -> Tensor:
    """Random token ids between the start and the end token of a text tower: int64 (texts, tokens + 2).

    Raises ValueError for more tokens than the text tower takes, and for one that does not say its vocabulary.
    """
    config: Any = getattr(getattr(encoder, "config", None), "text_config", None)
    size = getattr(config, "vocab_size", None)
    if size is None:
        raise ValueError("lipsum: the text tower does not say its vocabulary; give text_features of random texts")
    if tokens + 2 > config.max_position_embeddings:
        most = config.max_position_embeddings - 2
        raise ValueError(f"`lipsum_tokens` is {tokens}; the text tower takes at most {most} between start and end")
    # CLIP's older configs name 2 as the end token, and its text tower then looks for the largest token of a text.
    start, end = config.bos_token_id, config.eos_token_id
    if end == 2 or end is None or end >= size or start is None or start >= size:
        start, end = size - 2, size - 1
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.tensor([token for token in range(size) if token not in (start, end)])
    drawn = allowed[torch.randint(len(allowed), (texts, tokens), generator=generator)]
    return torch.cat([torch.full((texts, 1), start), drawn, torch.full((texts, 1), end)], dim=1)


def _encoded(encoder: Any, tokens: Tensor) -> Tensor:
    device = next(encoder.parameters()).device
    with preserve_state(encoder):
        output = encoder.get_text_features(input_ids=tokens.to(device))
    return output if isinstance(output, Tensor) else output.pooler_output
