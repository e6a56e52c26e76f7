"""The structural monitor: what has changed in a model since a reference state, on a fixed probe set.

``DriftMonitor`` measures; ``DriftCallback`` puts it into a ``transformers.Trainer``. Neither touches
the random state, the training mode, the gradients or the parameters of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from attndrift import metrics
from attndrift.metrics import StructureAccumulator, StructureSummary
from attndrift.observing import find_vision_tower, observe
from attndrift.observing.embedding import image_embeddings as image_embeddings
from attndrift.tables import STRUCTURE_METRICS

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

Batches = Callable[[], Iterable[Tensor]]
"""Called at each measurement; yields the normalised probe images, float (images, 3, height, width)."""


class DivergedError(RuntimeError):
    """Training left the finite numbers: the loss, or a measured quantity, is not finite."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a model on the probe set.

    Attributes:
        structure: structural metrics per layer and head.
        hidden: CLS hidden state after each block, float32 (layers, images, width).
        embeddings: image embeddings as the model yields them, float32 (images, dimensions).
    """

    structure: StructureSummary
    hidden: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class Drift:
    """What has changed between two snapshots, and how far the weights have moved.

    Attributes:
        structure: structural metrics of the current state.
        change_pct: relative change of the layer mean of each structural metric, percent.
        layer_change_pct: the same per layer, (layers,) each.
        cka, cka_debiased: linear CKA per block, (layers,); 1 is the pretrained representation.
        embedding_drift: 1 - mean cosine of the image embeddings.
        embedding_distance: mean L2 distance of the embeddings over the mean norm of the pretrained ones.
        weight_drift, projection_drift: norm(dW)/norm(W0); None where no reference weights were given.
    """

    structure: StructureSummary
    change_pct: dict[str, float | None]
    layer_change_pct: dict[str, Tensor]
    cka: Tensor
    cka_debiased: Tensor
    embedding_drift: float
    embedding_distance: float
    weight_drift: float | None
    projection_drift: float | None

    def row(self) -> dict[str, float | None]:
        """The measured columns of the table ``history``."""
        row: dict[str, float | None] = {name: self.structure.mean(name) for name in STRUCTURE_METRICS}
        row |= {f"{name}_change_pct": self.change_pct[name] for name in STRUCTURE_METRICS}
        row["entropy_last_layer_change_pct"] = float(self.layer_change_pct["entropy"][-1])
        row |= {"cka_mean": float(self.cka.mean()), "cka_last": float(self.cka[-1])}
        row |= {"embedding_drift": self.embedding_drift, "weight_drift": self.weight_drift}
        return row

    def layers(self) -> dict[str, Any]:
        """Values per layer, and per layer and head, for the table ``layers`` (nested lists, layers first)."""
        values: dict[str, Any] = {}
        for name in (*STRUCTURE_METRICS, "cls_mass"):
            per_head = getattr(self.structure, name)
            if per_head is not None:
                values[name] = {"layer": per_head.mean(1).tolist(), "head": per_head.tolist()}
        values["cka"] = {"layer": self.cka.tolist()}
        values["cka_debiased"] = {"layer": self.cka_debiased.tolist()}
        return values

    def scalars(self) -> dict[str, float]:
        """Flat names for a tracker: means, and every metric per layer."""
        flat = {f"drift/{name}": value for name, value in self.row().items() if value is not None}
        for name in STRUCTURE_METRICS:
            for layer, value in enumerate(self.structure.layers(name).tolist(), 1):
                flat[f"drift_{name}/layer_{layer:02d}"] = value
        for layer, value in enumerate(self.cka.tolist(), 1):
            flat[f"drift_cka/layer_{layer:02d}"] = value
        return flat

    def line(self) -> str:
        """One readable line."""
        change = self.change_pct["entropy"]
        parts = [
            f"entropy {self.structure.mean('entropy'):.3f} nats" + ("" if change is None else f" ({change:+.2f}%)"),
            f"last block {float(self.layer_change_pct['entropy'][-1]):+.2f}%",
            f"CKA {float(self.cka.mean()):.3f}",
            f"embeddings {self.embedding_drift:.4f}",
        ]
        if self.weight_drift is not None:
            parts.append(f"weights {self.weight_drift:.5f}")
        return ", ".join(parts)


def relative_change_pct(value: float, baseline: float) -> float | None:
    """100 (M - M0) / M0; None where the baseline is 0 and the change has no scale."""
    return None if baseline == 0 else 100.0 * (value - baseline) / baseline


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every submodule's training flag is put back afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, flag in flags:
            module.training = flag


def take_snapshot(
    model: nn.Module, batches: Iterable[Tensor], embed: Callable[[Tensor], Tensor] | None = None
) -> Snapshot:
    """Measure ``model`` on the probe images, in evaluation mode and without gradients.

    Raises :class:`DivergedError` where a hidden state or an embedding is not finite.
    """
    embed = embed or (lambda pixels: image_embeddings(model, pixels))
    accumulator = StructureAccumulator()
    hidden: list[Tensor] = []
    embeddings: list[Tensor] = []
    device = next(model.parameters()).device
    with evaluation_mode(model):
        for batch in batches:
            with observe(model, hidden=True) as seen:
                embedded = embed(batch.to(device))
                states = torch.stack([layer.float() for layer in seen.cls_hidden])
                # After the forward pass and before the metrics: NaN attention has a name of its own.
                if not (torch.isfinite(states).all() and torch.isfinite(embedded).all()):
                    raise DivergedError("the model's hidden states or embeddings are not finite")
                accumulator.update(seen.attention, seen.cls_mass)
            hidden.append(states.cpu())
            embeddings.append(embedded.float().cpu())
    if not embeddings:
        raise ValueError("the probe set is empty")
    return Snapshot(accumulator.compute(), torch.cat(hidden, dim=1), torch.cat(embeddings))


def compare_snapshots(
    reference: Snapshot,
    current: Snapshot,
    *,
    weight_drift: float | None = None,
    projection_drift: float | None = None,
) -> Drift:
    """The drift from ``reference`` to ``current``. Both must have been taken on the same images."""
    if reference.embeddings.shape != current.embeddings.shape or reference.hidden.shape != current.hidden.shape:
        raise ValueError(
            f"the snapshots do not belong together: {tuple(reference.hidden.shape)} and "
            f"{tuple(current.hidden.shape)} hidden states (layers, images, width)"
        )
    change: dict[str, float | None] = {}
    layer_change: dict[str, Tensor] = {}
    for name in STRUCTURE_METRICS:
        change[name] = relative_change_pct(current.structure.mean(name), reference.structure.mean(name))
        before, after = reference.structure.layers(name), current.structure.layers(name)
        layer_change[name] = 100.0 * (after - before) / before
    pairs = list(zip(reference.hidden, current.hidden, strict=True))
    cka = torch.stack([metrics.linear_cka(before, after) for before, after in pairs])
    debiased = torch.stack([metrics.linear_cka(before, after, debiased=True) for before, after in pairs])
    distance = (current.embeddings - reference.embeddings).double().norm(dim=1).mean()
    return Drift(
        structure=current.structure,
        change_pct=change,
        layer_change_pct=layer_change,
        cka=cka,
        cka_debiased=debiased,
        embedding_drift=float(metrics.embedding_drift(reference.embeddings, current.embeddings)),
        embedding_distance=float(distance / reference.embeddings.double().norm(dim=1).mean()),
        weight_drift=weight_drift,
        projection_drift=projection_drift,
    )


WeightDrift = Callable[[], tuple[float | None, float | None]]
"""Returns the weight drift of the vision transformer and of its projection."""


class DriftMonitor:
    """Measures a model against a reference state on a fixed probe set, whenever it is called.

    Args:
        model: any module with one vision transformer inside that :func:`attndrift.observe` can see into.
        probe: the probe images, one tensor (images, 3, height, width) or a callable that yields batches.
        reference: the state to measure against; by default the model as it is now. A model under
            ``peft`` is already wrapped, so give the snapshot of the bare model there.
        weight_drift: returns (vision transformer, projection) drift; by default the parameters of the
            vision tower are compared with a copy taken now.
        batch_size: images a forward pass, where ``probe`` is one tensor.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Tensor | Batches,
        *,
        reference: Snapshot | None = None,
        embed: Callable[[Tensor], Tensor] | None = None,
        weight_drift: WeightDrift | None = None,
        batch_size: int = 200,
    ) -> None:
        self.model = model
        self._embed = embed
        if isinstance(probe, Tensor):
            images = probe
            self._batches: Batches = lambda: images.split(batch_size)
        else:
            self._batches = probe
        self.reference = reference if reference is not None else take_snapshot(model, self._batches(), embed)
        self._weight_drift = weight_drift if weight_drift is not None else _parameter_drift(model)

    def measure(self) -> Drift:
        """Measure now. Raises :class:`DivergedError` where the model has left the finite numbers."""
        current = take_snapshot(self.model, self._batches(), self._embed)
        tower, projection = self._weight_drift()
        return compare_snapshots(self.reference, current, weight_drift=tower, projection_drift=projection)


def _parameter_drift(model: nn.Module) -> WeightDrift:
    """Weight drift of the vision tower against a copy of its parameters taken now."""
    tower = find_vision_tower(model).module
    before = {name: value.detach().clone() for name, value in tower.named_parameters() if "lora_" not in name}

    def measure() -> tuple[float | None, float | None]:
        if any("lora_" in name for name, _ in tower.named_parameters()):
            raise ValueError(
                "the model has LoRA adapters: pass `weight_drift=`, a function that puts adapters and full "
                "weights on one scale (attndrift.metrics.weight_drift with LowRankUpdate)"
            )
        now: Mapping[str, Tensor] = {n: v.detach() for n, v in tower.named_parameters()}
        return float(metrics.weight_drift(before, now)), None

    return measure


class DriftCallback(TrainerCallback):
    """Measures structural drift during ``transformers.Trainer.train`` and logs it through the trainer.

    ::

        trainer = Trainer(model, args, ...)
        DriftCallback(DriftMonitor(model, probe_images), every=50).attach(trainer)
        trainer.train()

    Args:
        monitor: what to measure.
        every: measure after this many optimiser steps; or the set of steps to measure after.
        on_drift: called with (step, epoch, drift) after each measurement.
    """

    def __init__(
        self,
        monitor: DriftMonitor,
        every: int | Sequence[int] = 100,
        *,
        on_drift: Callable[[int, float, Drift], None] | None = None,
    ) -> None:
        if isinstance(every, int) and every < 1:
            raise ValueError(f"every is {every}; it must be at least 1")
        self.monitor = monitor
        self._steps = every if isinstance(every, int) else frozenset(every)
        self._on_drift = on_drift
        self._trainer: Trainer | None = None
        self.drift: list[tuple[int, Drift]] = []

    def attach(self, trainer: Trainer) -> DriftCallback:
        """Add this callback to ``trainer``; its measurements go through ``trainer.log`` to every tracker."""
        self._trainer = trainer
        trainer.add_callback(self)
        return self

    def _due(self, step: int) -> bool:
        return step % self._steps == 0 if isinstance(self._steps, int) else step in self._steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure where a measurement is due."""
        if not self._due(state.global_step):
            return
        drift = self.monitor.measure()
        self.drift.append((state.global_step, drift))
        if self._trainer is not None:
            self._trainer.log(drift.scalars())
        if self._on_drift is not None:
            self._on_drift(state.global_step, float(state.epoch or 0.0), drift)
