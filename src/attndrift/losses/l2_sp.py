"""L2-SP: the squared distance of the trained weights from the pretrained ones."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from attndrift.losses.base import Batch, PreservationLoss, StudyContext
from attndrift.losses.pretrained_weights import PretrainedWeights


class L2SP(PreservationLoss):
    """L2-SP (Li et al. 2018): ``weight`` times the sum of squares of what the trained weights differ from the pretrained ones.

    ::

        preserve = L2SP(model, weight=0.5)             # before the first step, after peft
        ...
        loss = task_loss + preserve(model)

    Their alpha is ``2 * weight``. Under plain LoRA the weights are those that the layers compute with, base plus update.

    Args:
        model: the model in training, or a wrapper of it, while it is the pretrained one.
        weight: the factor lambda, at least 0.
        whole: also hold what is trained outside the image encoder, the text tower for instance.

    Raises:
        ValueError: nothing is trained, or weights that the loss cannot see; the message names the layer.
    """

    name = "l2_sp"

    def __init__(self, model: nn.Module, weight: float, *, whole: bool = False) -> None:
        super().__init__(model, weight)
        self._weights = PretrainedWeights(self.model, whole=whole)

    @classmethod
    def in_study(cls, model: nn.Module, weight: float, context: StudyContext, **settings: Any) -> Self:
        """Everything that a study trains and that has a pretrained value."""
        return cls(model, weight, whole=True, **settings)

    def value(self, batch: Batch) -> Tensor:
        """The squared distance; the images of ``batch`` do not matter."""
        return self._weights.squared_distance()
