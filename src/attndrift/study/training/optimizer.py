"""AdamW as the settings of a run ask for it: rates by part and by depth, and selective projection decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attndrift.methods.classifier import ImageClassifier
from attndrift.models.backbone import Backbone
from attndrift.study.settings import RunSettings


def optimizer_of(model: nn.Module, trained: Mapping[str, nn.Parameter], settings: RunSettings, *, fused: bool) -> Any:
    """The optimiser of a run's trained parameters, which are where they start from.

    Args:
        trained: by name; of a :class:`ImageClassifier` where the settings tell parts apart.
    """
    groups = rate_groups(model, trained, settings)
    betas = (settings.adam_beta1, settings.adam_beta2)
    values: dict[str, Any] = {"betas": betas, "weight_decay": settings.weight_decay, "fused": fused}
    if not settings.spd:
        return torch.optim.AdamW(groups, settings.learning_rate, **values)
    held = [p for name, p in trained.items() if not name.startswith("classifier.")]
    return SelectiveProjection(groups, settings.learning_rate, strength=settings.spd, held=held, **values)


def rate_groups(model: nn.Module, trained: Mapping[str, nn.Parameter], settings: RunSettings) -> list[dict[str, Any]]:
    """The trained parameters by the rate that they learn with, ``params`` and ``lr``; one group where all have one.

    A part of a tower at depth l of L + 1 has the rate times ``layer_decay`` to the power L + 1 - l: the embeddings
    are at 0, the first block at 1, what follows the last block at L + 1 (as in BEiT and timm).
    """
    rate = settings.learning_rate
    special = (settings.head_learning_rate, settings.projection_learning_rate, settings.text_learning_rate)
    if settings.layer_decay == 1 and special == (None, None, None):
        return [{"params": list(trained.values()), "lr": rate}]
    assert isinstance(model, ImageClassifier)
    rates = _rates(model, settings)
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in trained.values():
        groups.setdefault(rates.get(parameter, rate), []).append(parameter)
    return [{"params": parameters, "lr": own} for own, parameters in groups.items()]


def _rates(model: ImageClassifier, settings: RunSettings) -> dict[nn.Parameter, float]:
    rate, view = settings.learning_rate, model.view
    rates = _by_depth(view, rate, settings.layer_decay)
    rates |= dict.fromkeys(_projection(view), settings.projection_learning_rate or rate)
    if view.text is not None:
        of_text = settings.text_learning_rate or rate
        rates |= _by_depth(view.text, of_text, settings.layer_decay)
        rates |= dict.fromkeys(_projection(view.text), of_text)
    return rates | dict.fromkeys(model.classifier.parameters(), settings.head_learning_rate or rate)


def _projection(view: Backbone) -> list[nn.Parameter]:
    behind = [] if view.projection is None else list(view.projection.parameters())
    return behind + [view.tower.get_parameter(name) for name in view.projection_in_tower]


def _by_depth(tower: Backbone, rate: float, decay: float) -> dict[nn.Parameter, float]:
    after = len(tower.blocks) + 1
    depths = dict.fromkeys(tower.tower.parameters(), 0)
    depths |= {p: place for place, block in enumerate(tower.blocks, 1) for p in block.parameters()}
    if tower.final_norm is not None:
        depths |= dict.fromkeys(tower.final_norm.parameters(), after)
    return {parameter: rate * decay ** (after - depth) for parameter, depth in depths.items()}


class SelectiveProjection(torch.optim.AdamW):
    """AdamW with selective projection decay (SPD, Tian et al. 2024), in place of a pull at every step.

    Of each tensor theta that started at theta0, with gradient g: where -g (theta - theta0) < 0, so that the descent leads
    back, what AdamW has made of it is projected towards theta0:

        theta' - strength * max(0, 1 - ||theta - theta0|| / ||theta' - theta0||) (theta' - theta0)

    No value is read: an accelerator need not be waited for.

    Args:
        strength: 0 is AdamW, 1 takes all of the step's way outwards back.
        held: the tensors that are held; their present values are theta0. Of an adapter it is where the adapter starts.
    """

    def __init__(
        self, params: Any, lr: float, *, strength: float, held: Sequence[nn.Parameter], **settings: Any
    ) -> None:
        super().__init__(params, lr, **settings)
        self._strength = strength
        self._starts = [(parameter, parameter.detach().clone()) for parameter in held]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """AdamW's step, then the projection."""
        before = [
            (parameter, start, _inwards(parameter, start), torch.linalg.vector_norm(parameter - start))
            for parameter, start in self._starts
            if parameter.grad is not None
        ]
        loss = super().step(closure)
        for parameter, start, inwards, distance in before:
            way = parameter - start
            now = torch.linalg.vector_norm(way)
            share = ((now - distance) / now.clamp_min(torch.finfo(now.dtype).tiny)).clamp(0, 1)
            parameter.sub_(torch.where(inwards, self._strength * share, 0.0) * way)
        return loss


def _inwards(parameter: nn.Parameter, start: Tensor) -> Tensor:
    """Whether the descent leads back towards ``start``."""
    assert parameter.grad is not None
    return (parameter.grad * (parameter - start)).sum() > 0
