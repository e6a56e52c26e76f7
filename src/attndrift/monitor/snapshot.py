"""Taking the state of a model on the probe images."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from attndrift.metrics import StructureAccumulator
from attndrift.monitor.drift import DivergedError, Snapshot
from attndrift.monitor.processes import Processes
from attndrift.monitor.undisturbed import undisturbed, unwrapped
from attndrift.observing import find_vision_tower, observe
from attndrift.observing.embedding import image_embeddings


def take_snapshot(
    model: nn.Module,
    batches: Iterable[Tensor],
    embed: Callable[[Tensor], Tensor] | None = None,
    *,
    processes: Processes | None = None,
) -> Snapshot:
    """Measure ``model`` on the probe images: in evaluation mode, without gradients, in the precision of its weights.

    Random states, training flags, gradients and parameters stay as they are; compiled models run uncompiled.

    Args:
        model: as for :func:`attndrift.observe`; wrappers for several processes or compilation are looked through.
        batches: normalised images, float (images, 3, height, width) each.
        embed: images to embeddings; by default :func:`image_embeddings`.
        processes: those that measure together, each with the same ``batches``; by default this one measures alone.

    Raises:
        DivergedError: a hidden state or an embedding is not finite.
        TypeError: images that are not floating-point, so not normalised.
        ValueError: there are no images, or fewer than processes.
    """
    model = unwrapped(model)
    embed = embed or (lambda pixels: image_embeddings(model, pixels))
    together = processes or Processes()
    accumulator = StructureAccumulator()
    hidden: list[Tensor] = []
    embeddings: list[Tensor] = []
    sizes: list[int] = []
    problem: Exception | None = None
    weight = next(p for p in find_vision_tower(model).module.parameters() if p.is_floating_point())
    with undisturbed(model):
        try:
            for batch in batches:
                if not batch.is_floating_point():
                    raise TypeError(f"probe: a batch of {batch.dtype}, which is not normalised; see DriftMonitor")
                pixels, own = together.share(batch, sum(sizes))
                with observe(model, hidden=True) as seen:
                    embedded = embed(pixels.to(weight.device, weight.dtype))
                    states = torch.stack([layer.float() for layer in seen.cls_hidden])
                    # After the forward pass and before the metrics: NaN attention has a name of its own.
                    if not (torch.isfinite(states).all() & torch.isfinite(embedded).all()):
                        raise DivergedError("the model's hidden states or embeddings are not finite")
                    if own:
                        accumulator.update(
                            [layer[:own] for layer in seen.attention], [layer[:own] for layer in seen.cls_mass]
                        )
                # They stay where they will be compared: 7 MB a snapshot, for which a copy would make an accelerator wait.
                states = states.transpose(0, 1)
                hidden.append(states if together.count == 1 and states.device.type == "cuda" else states.cpu())
                embeddings.append(embedded.float().cpu())
                sizes.append(len(batch))
            if not sizes:
                raise ValueError("the probe set is empty")
            if sum(sizes) < together.count:
                raise ValueError(f"{sum(sizes)} probe images cannot be shared by {together.count} processes")
        except Exception as error:
            if together.count == 1:
                raise
            problem = error
        if together.count > 1:
            together.agree(problem)
            accumulator.combine(together.sum)
        return Snapshot(
            accumulator.compute(),
            together.join(torch.cat(hidden), sizes).transpose(0, 1).contiguous(),
            together.join(torch.cat(embeddings), sizes),
        )
