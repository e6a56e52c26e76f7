"""Logit distillation: zero-shot logits held to the pretrained ones, on the images in training or on reference images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from attndrift.losses.base import Batch, PreservationLoss, PreservationLossError, StudyContext
from attndrift.losses.pretrained_weights import encoder_of
from attndrift.losses.teacher_loss import CachedTeacher, TeacherLoss
from attndrift.losses.views import EmbeddingView
from attndrift.losses.zero_shot_logits import ZeroShotLogits
from attndrift.models.backbone import backbone_of
from attndrift.models.evaluation import outside_training, preserve_state
from attndrift.models.input_images import checked_images
from attndrift.models.parameters import bare
from attndrift.models.to_device import to_device


def logit_distillation_loss(current: Tensor, reference: Tensor, temperature: float = 2.0) -> Tensor:
    """Squared ``temperature`` times KL(pretrained || current) of the softmax of logits divided by it, in nats, mean over images.

    Args:
        current: logits (images, texts).
        reference: the pretrained ones of the same images.
        temperature: above 0.

    Returns:
        A scalar >= 0, differentiable in ``current``. The square keeps the size of the gradient (Hinton et al. 2015).
    """
    now = (current.float() / temperature).log_softmax(-1)
    before = (reference.to(now) / temperature).log_softmax(-1)
    return temperature**2 * (before.exp() * (before - now)).sum(-1).mean()


class LogitDistillation(TeacherLoss):
    """Learning without forgetting (Li and Hoiem 2016): distillation of the zero-shot logits of the images in training.

    Arguments are those of :class:`~attndrift.losses.teacher_loss.TeacherLoss`, and:

    Args:
        text_features: of the class names to hold, (classes, dimensions), from the pretrained text tower.
        distillation_temperature: above 0.

    Raises:
        ValueError: a model without text tower, or text features of another width.
    """

    name, sees = "logit_distillation", "the embedding"
    view = EmbeddingView()

    def __init__(
        self,
        model: nn.Module,
        weight: float,
        teacher: nn.Module | CachedTeacher | None = None,
        *,
        text_features: Tensor,
        distillation_temperature: float = 2.0,
        **options: Any,
    ) -> None:
        super().__init__(model, weight, teacher, **options)
        self._logits = ZeroShotLogits(backbone_of(encoder_of(self.model)).logit_scale, text_features)
        self._temperature = distillation_temperature

    @classmethod
    def in_study(cls, model: nn.Module, weight: float, context: StudyContext, **settings: Any) -> Self:
        """On the class names of the reference dataset, or of the target where the run names none."""
        if settings["reference"] is None:
            assert context.class_texts is not None
            texts = context.class_texts()
        else:
            texts = context.reference_of(cls.name).text_features
        cache = context.teachers[cls.view.name]
        return cls(
            model, weight, cache, text_features=texts, watch=False, check=False,
            distillation_temperature=settings["distillation_temperature"],
        )  # fmt: skip

    def _compare(self, current: list[Tensor], reference: Sequence[Tensor] | Tensor) -> Tensor:
        before = reference[0].to(current[0].device, non_blocking=current[0].device.type != "cpu")
        return logit_distillation_loss(self._logits(current[0]), self._logits(before), self._temperature)


class ReferenceDistillation(PreservationLoss):
    """ZSCL (Zheng et al. 2023): distillation of the zero-shot logits of reference images, which no step trains on.

    Every step runs one more forward pass of the model, over as many reference images as the batch has.

    ::

        preserve = ReferenceDistillation(model, 1.0, images=reference_images, text_features=features)
        ...
        loss = task_loss + preserve(model, images=len(batch))

    Args:
        model: the model in training, or a wrapper of it, while it is the pretrained one.
        weight: the factor lambda, at least 0.
        images: normalised reference images (images, 3, height, width); they stay on the model's device.
        text_features: of their class names, (classes, dimensions), from the pretrained text tower.
        distillation_temperature: above 0.
        images_a_step: how many a step takes, where the call does not say it by ``index`` or ``images``.

    Raises:
        ValueError: a model without text tower, no images, or text features of another width.
    """

    name = "reference_distillation"

    def __init__(
        self,
        model: nn.Module,
        weight: float,
        *,
        images: Tensor,
        text_features: Tensor,
        distillation_temperature: float = 2.0,
        images_a_step: int = 32,
    ) -> None:
        super().__init__(model, weight)
        if len(images) == 0:
            raise ValueError("there are no reference images to hold the model on")
        self._encoder = backbone_of(encoder_of(self.model))
        self._logits = ZeroShotLogits(self._encoder.logit_scale, text_features)
        self._temperature, self._images_a_step, self._next = distillation_temperature, images_a_step, 0
        first = next(p for p in self._encoder.tower.parameters() if p.is_floating_point())
        self._images = next(checked_images([images], "images", wait=False)).to(first.device)
        with preserve_state(self.model), bare(self.model):
            parts = [self._logits(self._encoder.embed(part.to(first.dtype))) for part in self._images.split(200)]
        self._before = torch.cat(parts)

    @classmethod
    def in_study(cls, model: nn.Module, weight: float, context: StudyContext, **settings: Any) -> Self:
        """On the run's reference images."""
        reference = context.reference_of(cls.name)
        return cls(
            model, weight, images=reference.pixels, text_features=reference.text_features,
            distillation_temperature=settings["distillation_temperature"],
        )  # fmt: skip

    def reference(self, index: Any, flipped: Any) -> Tensor | None:
        """Numbers of the reference images that go with training images ``index``: the remainder by how many there are."""
        return to_device(torch.as_tensor(index).remainder(len(self._images)), self._images.device)

    def value(self, batch: Batch) -> Tensor:
        """The divergence on the reference images of this step, with gradients."""
        numbers = batch.reference
        if numbers is None and batch.index is not None:
            numbers = self.reference(batch.index, None)
        if numbers is None:
            count = self._images_a_step if batch.images is None else batch.images
            numbers = torch.arange(self._next, self._next + count, device=self._images.device) % len(self._images)
            self._next = (self._next + count) % len(self._images)
        if batch.images is not None:
            numbers = numbers[: batch.images]
        if len(numbers) == 0:
            return self._before.new_zeros(())
        # What other losses and monitors watch is the training's own forward pass.
        with outside_training():
            embeddings = self._encoder.embed(self._images[numbers])
        if not embeddings.requires_grad:
            raise PreservationLossError(
                "the embedding does not depend on a trained parameter, so there is nothing to preserve"
            )
        return logit_distillation_loss(self._logits(embeddings), self._before[numbers], self._temperature)
