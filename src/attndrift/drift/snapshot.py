"""Taking the state of a model on the probe images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attndrift.attention.observation import Observation
from attndrift.attention.observer import observe_tower
from attndrift.drift.drift import DeferredComparison, Drift, Snapshot, compare_snapshots
from attndrift.drift.measured_model import MeasuredModel
from attndrift.drift.text_drift import FixedTexts, TextDrift
from attndrift.drift.weight_drift import WeightDrift
from attndrift.metrics.compared import measure_with_texts
from attndrift.metrics.deferred import Deferred, DeferredScalars
from attndrift.metrics.structure_accumulator import StructureAccumulator, StructureSummary
from attndrift.models.input_images import checked_images, named_size
from attndrift.process_group import DivergedError, Processes


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
        ObservationError: attention is not finite though these are (on an accelerator, ValueError).
        TypeError: images that are not normalised, or an ``embed`` that returns no embeddings.
        ValueError: there are no images, or fewer than processes, or of a size that the model does not take.
    """
    images = checked_images(batches, "images")
    return begin_snapshot(MeasuredModel.of(model), images, embed, processes=processes).read()


def begin_snapshot(
    measured: MeasuredModel,
    batches: Iterable[Tensor],
    embed: Callable[[Tensor], Tensor] | None = None,
    *,
    processes: Processes | None = None,
) -> SnapshotUnderWay:
    """:func:`take_snapshot` up to where its numbers are needed.

    All passes are asked for, and an accelerator may still be at them when this returns: it is waited for only where images
    have to be brought to it, or where several processes measure together. What else a measurement has to do costs no
    time of its own until then. Raises what :func:`take_snapshot` raises as far as it is known by then; where several
    processes measure together, when it is read, as in all of them.
    """
    under_way = SnapshotUnderWay(processes or Processes())
    try:
        with measured.preserved():
            check = measured.weight.device.type not in DeferredScalars.TOGETHER
            for batch in batches:
                images, own = under_way.processes.share(batch, under_way.images)
                with observe_tower(measured.tower, hidden=True, check=check) as seen:
                    with named_size(measured.tower.module, images, "probe"):
                        embedded = measured.embed(images, embed)
                    under_way.add(seen, embedded, own, len(batch))
            under_way.end()
    except Exception as error:
        if under_way.processes.count == 1:
            raise
        under_way.problem = error
    return under_way


class SnapshotUnderWay:
    """Passes over the probe images whose results have not been read.

    Those of a single process stay on an accelerator, where they will be compared: 7 MB, a copy of which would be waited for.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.problem: Exception | None = None
        self._deferred = DeferredScalars()
        self._structure = StructureAccumulator(check=False)
        self._summary: Callable[[], StructureSummary] | None = None
        self._hidden: list[Tensor] = []
        self._embeddings: list[Tensor] = []
        self._finite: list[Deferred] = []
        self._sizes: list[int] = []
        self._whole: tuple[Tensor, Tensor] | None = None

    @property
    def images(self) -> int:
        """Images so far, of all processes."""
        return sum(self._sizes)

    def add(self, seen: Observation, embedded: Tensor, own: int, size: int) -> None:
        """Keep what is needed of a pass over ``size`` images, of which the first ``own`` of this process count."""
        states = torch.stack([layer.float() for layer in seen.cls_hidden])
        finite = self._deferred.defer(torch.isfinite(states).all() & torch.isfinite(embedded).all())
        self._finite.append(finite)
        if states.device.type not in DeferredScalars.TOGETHER:
            # Before the metrics: attention that is not finite has a name of its own.
            _refuse_diverged([finite])
        if own:
            self._structure.update([layer[:own] for layer in seen.attention], [layer[:own] for layer in seen.cls_mass])
        stays = self._stays(states)
        self._hidden.append(states if stays else states.cpu())
        # A copy: it may be a view of the states of all tokens.
        self._embeddings.append(embedded.to(embedded.device if stays else "cpu", torch.float32, copy=True))
        self._sizes.append(size)

    def end(self) -> None:
        """All batches have been added. Raises ValueError where there were none, or too few."""
        if not self._sizes:
            raise ValueError("the probe set is empty")
        if self.images < self.processes.count:
            raise ValueError(f"{self.images} probe images cannot be shared by {self.processes.count} processes")
        self._whole = torch.cat(self._hidden, dim=1), torch.cat(self._embeddings)
        self._hidden, self._embeddings = [], []
        if self.processes.count == 1:
            self._summary = self._structure.compute_deferred(self._deferred)

    @contextmanager
    def meanwhile(self) -> Iterator[None]:
        """What is done before this is read. Where it fails, this is read first, whose error then comes first: weights that
        are not finite are a divergence, and other processes wait for this one."""
        try:
            yield
        except Exception:
            self.read()
            raise

    def drift(
        self,
        reference: Snapshot,
        weight_drift: WeightDrift,
        text: TextDrift | FixedTexts | None = None,
        blocks: Mapping[str, Callable[[], Tensor]] | None = None,
    ) -> Drift:
        """How far it is from ``reference``, with what ``text`` measures of the text side, and ``blocks`` of each block, by metric.

        Raises as :func:`take_snapshot` and :func:`compare_snapshots` do, and what the functions raise.
        """
        comparison = None
        with self.meanwhile():
            if self._whole is not None and self._stays(self._whole[0]):
                # Everything is asked of an accelerator before it is waited for.
                comparison = DeferredComparison(reference, *self._whole, self._deferred)
            tower, projection = weight_drift()
            weights: dict[str, Any] = {"weight_drift": tower, "projection_drift": projection}
            texts = None if text is None else text.measure()
            weights |= {} if texts is None else texts.numbers
        current = self.read()
        if comparison is None:
            found = compare_snapshots(reference, current, **weights)
        else:
            found = comparison.drift(current.structure, **weights)
        before: dict[str, float | None] = {}
        now: dict[str, float | None] = {}
        if texts is not None:
            before, _ = measure_with_texts(reference.embeddings, texts.before)
            now, _ = measure_with_texts(current.embeddings, texts.now)
        return found.with_more({name: measure() for name, measure in (blocks or {}).items()}, before, now)

    def read(self) -> Snapshot:
        """Wait for the passes. Raises as :func:`take_snapshot` does."""
        if self.processes.count == 1:
            _refuse_diverged(self._finite)
        else:
            self._agree()
        assert self._summary is not None
        assert self._whole is not None
        hidden, embeddings = self._whole
        return Snapshot(
            self._summary(),
            self.processes.join(hidden.transpose(0, 1), self._sizes).transpose(0, 1).contiguous(),
            self.processes.join(embeddings, self._sizes),
        )

    def _stays(self, states: Tensor) -> bool:
        return self.processes.count == 1 and states.device.type in DeferredScalars.TOGETHER

    def _agree(self) -> None:
        """What all processes find together; raises in all where one of them has failed."""
        if self.problem is None:
            try:
                _refuse_diverged(self._finite)
            except Exception as error:
                self.problem = error
        self.processes.agree(self.problem)
        if self._summary is None:
            self._structure.combine(self.processes.sum)
            self._summary = self._structure.compute_deferred(self._deferred)


def _refuse_diverged(finite: Iterable[Deferred]) -> None:
    if not all(bool(one()) for one in finite):
        raise DivergedError("the model's hidden states or embeddings are not finite")
