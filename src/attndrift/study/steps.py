"""How many steps a training has, and after which of them something happens: nothing here imports torch."""

from __future__ import annotations

import math

from attndrift.study.settings import RunSettings


def steps_per_epoch(settings: RunSettings, n_train: int) -> int:
    """Optimiser steps an epoch; the last one may be of fewer images than the others."""
    micro_batches = math.ceil(n_train / (settings.batch_size // settings.gradient_accumulation))
    return math.ceil(micro_batches / settings.gradient_accumulation)


def total_steps(settings: RunSettings, n_train: int) -> int:
    """Optimiser steps of the whole training."""
    return settings.epochs * steps_per_epoch(settings, n_train) if settings.steps is None else settings.steps


def epoch_count(settings: RunSettings, n_train: int) -> int:
    """Epochs that are begun; of a training that is counted in steps, the last one may be a part."""
    return math.ceil(total_steps(settings, n_train) / steps_per_epoch(settings, n_train))


def warmup_steps(settings: RunSettings, n_train: int) -> int:
    """Steps in which the rate rises. Raises ``ValueError`` where the training has no more than these."""
    total = total_steps(settings, n_train)
    if settings.warmup_steps is None:
        # The first step of a warm-up has the rate 0: a training of one step would train nothing.
        return min(math.ceil(settings.warmup * total), max(0, total - 1))
    if settings.warmup_steps >= total:
        raise ValueError(f"`warmup_steps` is {settings.warmup_steps}; the training has {total} steps")
    return settings.warmup_steps


def spread_steps(settings: RunSettings, n_train: int, times: int) -> frozenset[int]:
    """Optimiser steps after which something happens ``times`` an epoch, epoch ends and the last step always among them."""
    steps, total = steps_per_epoch(settings, n_train), total_steps(settings, n_train)
    within = {max(1, round(steps * (i + 1) / times)) for i in range(times)} | {steps}
    found = {epoch * steps + step for epoch in range(epoch_count(settings, n_train)) for step in within}
    return frozenset({step for step in found if step < total} | {total})


def evaluation_steps(settings: RunSettings, n_train: int, times: int | None = None) -> list[int]:
    """Optimiser steps after which something is done ``times`` an epoch; by default, the structure is measured."""
    return sorted(spread_steps(settings, n_train, times or settings.evaluations_per_epoch))
