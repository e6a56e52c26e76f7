"""Taking the state of a model on the probe images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from attndrift.metrics import Readings, StructureAccumulator
from attndrift.monitor.drift import Comparison, DivergedError, Drift, Snapshot, compare_snapshots
from attndrift.monitor.processes import Processes
from attndrift.monitor.undisturbed import undisturbed, unwrapped
from attndrift.observing import Observation, find_vision_tower
from attndrift.observing.embedding import image_embeddings
from attndrift.observing.observer import observe_tower


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
    return begin_snapshot(model, batches, embed, processes=processes).read()


def begin_snapshot(
    model: nn.Module,
    batches: Iterable[Tensor],
    embed: Callable[[Tensor], Tensor] | None = None,
    *,
    processes: Processes | None = None,
) -> SnapshotUnderWay:
    """:func:`take_snapshot` up to where its numbers are needed.

    All passes are asked for, and nothing is waited for: an accelerator may still be at them when this returns, and what else
    a measurement has to do costs no time of its own until then. Raises at once what :func:`take_snapshot` raises for
    the images; where several processes measure together, when it is read, as in all of them.
    """
    model = unwrapped(model)
    embed = embed or (lambda pixels: image_embeddings(model, pixels))
    under_way = SnapshotUnderWay(processes or Processes())
    try:
        with undisturbed(model):
            tower = find_vision_tower(model)
            weight = next(p for p in tower.module.parameters() if p.is_floating_point())
            for batch in batches:
                if not batch.is_floating_point():
                    raise TypeError(f"probe: a batch of {batch.dtype}, which is not normalised; see DriftMonitor")
                pixels, own = under_way.processes.share(batch, under_way.images)
                with observe_tower(tower, hidden=True, check=False) as seen:
                    embedded = embed(pixels.to(weight.device, weight.dtype))
                    under_way.add(seen, embedded, own, len(batch))
            under_way.end()
    except Exception as error:
        if under_way.processes.count == 1:
            raise
        under_way.problem = error
    return under_way


class SnapshotUnderWay:
    """Passes over the probe images whose results have not been read."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.problem: Exception | None = None
        self._readings = Readings()
        self._structure = StructureAccumulator(check=False)
        self._hidden: list[Tensor] = []
        self._embeddings: list[Tensor] = []
        self._finite: list[Tensor] = []
        self._sizes: list[int] = []

    @property
    def images(self) -> int:
        """Images so far, of all processes."""
        return sum(self._sizes)

    def add(self, seen: Observation, embedded: Tensor, own: int, size: int) -> None:
        """Keep what is needed of a pass over ``size`` images, of which the first ``own`` of this process count."""
        states = torch.stack([layer.float() for layer in seen.cls_hidden])
        self._finite.append(torch.isfinite(states).all() & torch.isfinite(embedded).all())
        if own:
            self._structure.update([layer[:own] for layer in seen.attention], [layer[:own] for layer in seen.cls_mass])
        self._hidden.append(states)
        self._embeddings.append(embedded.float())
        self._sizes.append(size)

    def end(self) -> None:
        """All batches have been added. Raises ValueError where there were none, or too few."""
        if not self._sizes:
            raise ValueError("the probe set is empty")
        if self.images < self.processes.count:
            raise ValueError(f"{self.images} probe images cannot be shared by {self.processes.count} processes")
        self._all_finite = self._readings.later(torch.stack(self._finite).all())
        self._all_hidden, self._all_embeddings = torch.cat(self._hidden, dim=1), torch.cat(self._embeddings)
        if self.processes.count == 1:
            self._summary = self._structure.compute_later(self._readings)
            self._readings.send()

    @contextmanager
    def meanwhile(self) -> Iterator[None]:
        """What is done before this is read. Where it fails, this is read first, whose error then comes first: weights that
        are not finite are a divergence, and other processes wait for this one."""
        try:
            yield
        except Exception:
            self.read()
            raise

    def against(self, reference: Snapshot) -> Callable[..., Drift]:
        """:func:`compare_snapshots` with ``reference``, without its first two arguments, for when this is to be read.

        Until then an accelerator is asked for what it can do of it.
        """
        if self.stays:
            comparison = Comparison(reference, self._all_hidden, self._all_embeddings, self._readings)
            self._readings.send()
            return lambda **weights: comparison.drift(self.read().structure, **weights)
        return lambda **weights: compare_snapshots(reference, self.read(), **weights)

    def read(self) -> Snapshot:
        """Wait for the passes. Raises as :func:`take_snapshot` does."""
        if self.problem is None and not bool(self._all_finite()):
            # Before the metrics: attention that is not finite has a name of its own.
            self.problem = DivergedError("the model's hidden states or embeddings are not finite")
        if self.processes.count > 1:
            self.processes.agree(self.problem)
            self._structure.combine(self.processes.sum)
            self._summary = self._structure.compute_later(self._readings)
        elif self.problem is not None:
            raise self.problem
        hidden, embeddings = self._all_hidden, self._all_embeddings
        if not self.stays:
            hidden, embeddings = hidden.cpu(), embeddings.cpu()
        return Snapshot(
            self._summary(),
            self.processes.join(hidden.transpose(0, 1), self._sizes).transpose(0, 1).contiguous(),
            self.processes.join(embeddings, self._sizes),
        )

    @property
    def stays(self) -> bool:
        """Whether the snapshot stays on an accelerator, where it will be compared: 7 MB, a copy of which would be waited for."""
        return self.processes.count == 1 and self._all_hidden.device.type in Readings.TOGETHER
