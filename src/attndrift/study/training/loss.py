"""The loss of a batch: cross-entropy, and what holds attention back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attndrift.attention.observer import observe
from attndrift.losses.attention import attention_preservation_loss, entropy_floor_loss
from attndrift.process_group import Processes
from attndrift.study.training.plan import TrainingPlan


class BatchLoss(NamedTuple):
    """What a forward pass comes to, each a scalar on the model's device.

    Attributes:
        loss: to be differentiated; its mean over the processes is the mean over the batch's images.
        counted: the loss for the history; the task's alone where the attention is not finite.
        num_correct: images of this process that are classified correctly.
        floor_active: share of attention cells below the entropy floor, scaled as ``loss``; None without a floor.
    """

    loss: Tensor
    counted: Tensor
    num_correct: Tensor
    floor_active: Tensor | None


class TrainingLoss:
    """The loss of a run, by its settings. Nothing here reads a value, which an accelerator would have to be waited for.

    Args:
        model: what is observed.
        wrapped: the same model as it is called, for instance in ``DistributedDataParallel``.
    """

    def __init__(self, model: nn.Module, wrapped: nn.Module, plan: TrainingPlan, processes: Processes) -> None:
        settings = plan.settings
        self._model, self._wrapped, self._processes = model, wrapped, processes
        self._regularizer = settings.regularizer if settings.regularizer_weight else None
        self._weight = settings.regularizer_weight or 0.0
        self._floor_fraction = settings.entropy_floor_fraction
        self._reference = plan.reference
        self._pretrained_entropy = plan.pretrained_entropy.to(plan.device)

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors that the losses of ``batch`` are made of."""
        inputs = {"pixel_values": batch["pixel_values"], "labels": batch["labels"]}
        local_batch_size = batch["own"]
        if self._regularizer == "apr" and local_batch_size:
            assert self._reference is not None
            inputs["reference"] = self._reference(
                batch["positions"][:local_batch_size], batch["flipped"][:local_batch_size]
            )
        return inputs

    def __call__(self, inputs: Mapping[str, Tensor], local_batch_size: int, loss_scale: float) -> BatchLoss:
        """The forward pass and its losses.

        Args:
            inputs: see :meth:`inputs`; where processes share a batch, filled up with copies that do not count.
            local_batch_size: how many images count, the first ones.
            loss_scale: turns the mean over these into this process's part of the batch's mean.
        """
        labels = inputs["labels"]
        observing = observe(self._model, gradients=True, check=False) if self._regularizer else nullcontext()
        with observing as seen:
            output = self._wrapped(pixel_values=inputs["pixel_values"], labels=labels)
        if self._processes.count == 1:
            task = output.loss
        elif local_batch_size:
            logits = output.logits[:local_batch_size].float()
            task = loss_scale * nn.functional.cross_entropy(logits, labels[:local_batch_size])
        else:  # fewer images than processes: the copy takes part in the passes, and counts for nothing
            task = 0.0 * output.logits.float().sum()
        loss, counted, active = task, task, None
        if seen is not None:
            added, active = self._preservation(
                seen.log_attention, inputs.get("reference"), local_batch_size, loss_scale
            )
            loss = task + added
            # Attention that is not finite must not hide what the task's loss was.
            counted = torch.where(task.isfinite(), loss, task)
        predicted = output.logits[:local_batch_size].detach().argmax(-1)
        return BatchLoss(loss, counted.detach(), (predicted == labels[:local_batch_size]).sum(), active)

    def _preservation(
        self, log_attention: Sequence[Tensor], reference: Tensor | None, local_batch_size: int, loss_scale: float
    ) -> tuple[Tensor, Tensor | None]:
        """The weighted loss on the attention of the images that count, and the floor's activity, scaled alike."""
        floor = self._regularizer == "entropy_floor"
        if local_batch_size == 0:
            nothing = log_attention[0].new_zeros(())
            return nothing, nothing if floor else None
        if self._processes.count > 1:
            log_attention = [layer[:local_batch_size] for layer in log_attention]
        if floor:
            loss, active = entropy_floor_loss(log_attention, self._pretrained_entropy, self._floor_fraction)
            return loss_scale * (self._weight * loss), loss_scale * active.detach()
        assert reference is not None
        return loss_scale * (self._weight * attention_preservation_loss(log_attention, reference)), None
