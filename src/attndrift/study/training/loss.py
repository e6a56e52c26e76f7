"""The loss of a batch: cross-entropy, and the preservation losses."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attndrift.losses.base import PreservationLoss
from attndrift.losses.registry import LOSSES
from attndrift.methods.registry import CONTRASTIVE
from attndrift.process_group import Processes
from attndrift.study.training.plan import TrainingPlan


class BatchLoss(NamedTuple):
    """What a forward pass comes to, each a scalar on the model's device.

    Attributes:
        loss: to be differentiated; its mean over the processes is the mean over the batch's images.
        counted: the loss for the history; the task's alone where the attention is not finite.
        num_correct: images of this process that are classified correctly.
        active: how active each loss was that reports it, scaled as ``loss``, in the order of
            :attr:`TrainingLoss.reporting`; None where none does.
    """

    loss: Tensor
    counted: Tensor
    num_correct: Tensor
    active: Tensor | None


class TrainingLoss:
    """The loss of a run, by its settings. Nothing here reads a value, which an accelerator would have to be waited for.

    Args:
        model: what is observed.
        wrapped: the same model as it is called, for instance in ``DistributedDataParallel``.

    Attributes:
        reporting: names of the losses that report how active they are.
    """

    def __init__(self, model: nn.Module, wrapped: nn.Module, plan: TrainingPlan, processes: Processes) -> None:
        self._wrapped, self._processes = wrapped, processes
        if processes.count > 1 and plan.settings.head == CONTRASTIVE:
            raise ValueError(
                f"`head`: {CONTRASTIVE} compares all images of a batch, which {processes.count} processes would divide; run it "
                "in one"
            )
        self._losses: list[PreservationLoss] = [
            LOSSES[name].cls.in_study(model, weight, plan.context, **dict(plan.settings.settings_of(LOSSES[name])))
            for name, weight in plan.settings.losses.items()
            if weight
        ]
        self.reporting = tuple(preserve.name for preserve in self._losses if LOSSES[preserve.name].reports_active)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors that the losses of ``batch`` are made of."""
        inputs = {"pixel_values": batch["pixel_values"], "labels": batch["labels"]}
        count = batch["own"]
        for loss in self._losses if count else ():
            reference = loss.reference(batch["positions"][:count], batch["flipped"][:count])
            if reference is not None:
                inputs[loss.name] = reference
        return inputs

    def __call__(self, inputs: Mapping[str, Tensor], local_batch_size: int, loss_scale: float) -> BatchLoss:
        """The forward pass and its losses.

        Args:
            inputs: see :meth:`inputs`; where processes share a batch, filled up with copies that do not count.
            local_batch_size: how many images count, the first ones.
            loss_scale: turns the mean over these into this process's part of the batch's mean.
        """
        labels = inputs["labels"]
        with ExitStack() as stack:
            for preserve in self._losses:
                preserve.skip()  # a step that failed behind its forward pass, for want of memory
                stack.enter_context(preserve.watching())
            output = self._wrapped(pixel_values=inputs["pixel_values"], labels=labels)
        if self._processes.count == 1:
            task = output.loss
        elif local_batch_size:
            logits = output.logits[:local_batch_size].float()
            task = loss_scale * nn.functional.cross_entropy(logits, labels[:local_batch_size])
        else:  # fewer images than processes: the copy takes part in the passes, and counts for nothing
            task = 0.0 * output.logits.float().sum()
        loss, counted, active = task, task, []
        for preserve in self._losses:
            added = preserve(reference=inputs.get(preserve.name), images=local_batch_size)
            loss = loss + loss_scale * added
            if preserve.name in self.reporting:
                assert preserve.last_active is not None
                active.append(loss_scale * preserve.last_active.detach())
        if self._losses:
            # Attention that is not finite must not hide what the task's loss was.
            counted = torch.where(task.isfinite(), loss, task)
        predicted = output.logits[:local_batch_size].detach().argmax(-1)
        return BatchLoss(loss, counted.detach(), (predicted == labels[:local_batch_size]).sum(), _stacked(active))


def _stacked(active: list[Tensor]) -> Tensor | None:
    return torch.stack(active) if active else None
