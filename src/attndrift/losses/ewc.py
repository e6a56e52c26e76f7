"""Elastic weight consolidation: L2-SP with a weight for each parameter, from the Fisher information on reference images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from attndrift.attention.families import find_vision_tower
from attndrift.losses.base import Batch, PreservationLoss, PreservationLossError, StudyContext
from attndrift.losses.pretrained_weights import PretrainedWeights, encoder_of
from attndrift.losses.zero_shot_logits import ZeroShotLogits
from attndrift.models.backbone import backbone_of
from attndrift.models.evaluation import preserve_state, unwrapped
from attndrift.models.input_images import checked_images
from attndrift.models.parameters import bare, parameter_names


class EWC(PreservationLoss):
    """EWC (Kirkpatrick et al. 2017): ``weight`` times half the squared distance from the pretrained weights, each times its Fisher information.

    ::

        fisher = fisher_information(model, reference_images, text_features)     # before the first step
        preserve = EWC(model, weight=1000.0, fisher=fisher)

    Args:
        model: the model in training, or a wrapper of it, while it is the pretrained one.
        weight: the factor lambda, at least 0.
        fisher: what :func:`fisher_information` returned for the pretrained model.

    Raises:
        ValueError: nothing is trained, weights that the loss cannot see, or that ``fisher`` does not have.
    """

    name = "ewc"

    def __init__(self, model: nn.Module, weight: float, *, fisher: Mapping[str, Tensor]) -> None:
        super().__init__(model, weight)
        self._weights = PretrainedWeights(self.model)
        missing = [name for name in self._weights.names if name not in fisher]
        if missing:
            raise ValueError(f"fisher has no {missing[0]!r}; make it with fisher_information() of this model")
        device = next(self.model.parameters()).device
        self._roots = {name: fisher[name].to(device).sqrt() for name in self._weights.names}

    @classmethod
    def in_study(cls, model: nn.Module, weight: float, context: StudyContext, **settings: Any) -> Self:
        """With the Fisher information on the run's reference images, which its runs share."""
        return cls(model, weight, fisher=context.reference_of(cls.name).fisher())

    def value(self, batch: Batch) -> Tensor:
        """Half the weighted squared distance; the images of ``batch`` do not matter."""
        return 0.5 * self._weights.squared_distance(self._roots)


def fisher_information(
    model: nn.Module, images: Tensor, text_features: Tensor, *, labels: Tensor | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Diagonal Fisher information of the image encoder's weights: the mean of the squared gradient of log p(label | image).

    p is the zero-shot distribution over the classes of ``text_features``. One backward pass an image.

    Args:
        model: measured as it is now, without its ``peft`` adapters.
        images: normalised reference images (images, 3, height, width).
        text_features: of their classes, (classes, dimensions).
        labels: (images,); by default drawn from p, with ``seed`` (the empirical Fisher information has the true ones).

    Returns:
        By the names of :class:`PretrainedWeights`, numbers >= 0 of the weights' shapes, on the CPU.
    """
    if len(images) == 0:
        raise PreservationLossError("there are no reference images to measure the Fisher information on")
    inner = unwrapped(model)
    encoder = backbone_of(encoder_of(inner))
    logits_of = ZeroShotLogits(encoder.logit_scale, text_features)
    parts = {"tower": find_vision_tower(inner).module}
    if encoder.projection is not None:
        parts["projection"] = encoder.projection
    weight = next(p for p in parts["tower"].parameters() if p.is_floating_point())
    generator = torch.Generator().manual_seed(seed)
    with preserve_state(inner), bare(inner):
        named = {f"{root}.{name}": p for root, part in parts.items() for p, name in parameter_names(part, {}).items()}
        total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in named.items()}
        with _alone_trained(inner, list(named.values())):
            for number, image in enumerate(next(checked_images([images], "images"))):
                scores = logits_of(encoder.embed(image[None].to(weight.device, weight.dtype))).log_softmax(-1)[0]
                if labels is None:
                    label = int(torch.multinomial(scores.detach().exp().cpu(), 1, generator=generator))
                else:
                    label = int(labels[number])
                found = torch.autograd.grad(scores[label], list(named.values()), allow_unused=True)
                for sums, gradient in zip(total.values(), found, strict=True):
                    if gradient is not None:
                        sums.addcmul_(gradient.float(), gradient.float())
    return {name: (sums.detach() / len(images)).cpu() for name, sums in total.items()}


@contextmanager
def _alone_trained(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """With gradients, for these parameters alone; which ones are trained is as before afterwards."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.requires_grad_(False)
        for p in parameters:
            p.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
