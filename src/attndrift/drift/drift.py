"""Two states of a model on the same images, and what has changed between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attndrift import metrics
from attndrift.metrics.deferred import DeferredScalars
from attndrift.metrics.representation import linear_cka_layers_deferred
from attndrift.metrics.structure_accumulator import StructureSummary
from attndrift.process_group import DivergedError
from attndrift.results.tables import STRUCTURE_METRICS

WATCHABLE = (
    *STRUCTURE_METRICS,
    *(f"{name}_change_pct" for name in STRUCTURE_METRICS),
    "entropy_last_layer_change_pct",
    "cka_mean",
    "cka_last",
    "cka_debiased_mean",
    "embedding_drift",
    "embedding_distance",
    "weight_drift",
    "projection_drift",
)
"""The quantities of a :class:`Drift` that are one number, by name."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a model on the probe set.

    Attributes:
        structure: structural metrics per layer and head.
        hidden: CLS hidden state after each block, float32 (layers, images, width); on the accelerator where one process
            has measured there, else on the CPU.
        embeddings: image embeddings as the model yields them, float32 (images, dimensions), where ``hidden`` is;
            on the CPU where an ``embed`` of one's own gives them there.
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

    def values(self) -> dict[str, float | None]:
        """Everything that an alert may name (:data:`WATCHABLE`); None where it was not measured."""
        row: dict[str, float | None] = self.row()
        row["cka_debiased_mean"] = float(self.cka_debiased.mean())
        row["embedding_distance"] = self.embedding_distance
        row["projection_drift"] = self.projection_drift
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


def compare_snapshots(
    reference: Snapshot,
    current: Snapshot,
    *,
    weight_drift: float | None = None,
    projection_drift: float | None = None,
) -> Drift:
    """The drift from ``reference`` to ``current``. Both must have been taken on the same images.

    Raises:
        ValueError: the snapshots do not belong together, or something of ``reference`` has no value.
        DivergedError: the representation of ``current`` has collapsed.
    """
    comparison = Comparison(reference, current.hidden, current.embeddings, DeferredScalars())
    return comparison.drift(current.structure, weight_drift=weight_drift, projection_drift=projection_drift)


class Comparison:
    """:func:`compare_snapshots` in two parts: an accelerator is asked for everything, and then waited for.

    Args:
        reference, hidden, embeddings: as there, of the current state.
        deferred: what has to be read is noted there.
    """

    def __init__(self, reference: Snapshot, hidden: Tensor, embeddings: Tensor, deferred: DeferredScalars) -> None:
        if reference.embeddings.shape != embeddings.shape or reference.hidden.shape != hidden.shape:
            raise ValueError(
                f"the snapshots do not belong together: {tuple(reference.hidden.shape)} and "
                f"{tuple(hidden.shape)} hidden states (layers, images, width)"
            )
        self._reference, self._images = reference, hidden.shape[1]
        self._alike = deferred.defer((hidden == hidden[:, :1]).flatten(1).all(1))
        self._zero = deferred.defer((embeddings == 0).all(dim=1).any())
        self._cka = linear_cka_layers_deferred(reference.hidden.to(hidden.device), hidden, deferred)
        self._before, self._after = reference.embeddings.to(embeddings.device), embeddings
        self._turned = deferred.defer(metrics.embedding_drift(self._before, self._after, check=False))
        distance = (self._after - self._before).double().norm(dim=1).mean()
        self._moved = deferred.defer(distance / self._before.double().norm(dim=1).mean())

    def drift(
        self,
        structure: StructureSummary,
        *,
        weight_drift: float | None = None,
        projection_drift: float | None = None,
    ) -> Drift:
        """Wait for it; ``structure`` is that of the current state. Raises as :func:`compare_snapshots` does."""
        self._refuse_collapsed()
        cka, debiased = self._cka()
        turned = float(self._turned())
        if not math.isfinite(turned):
            # It has the words for what is wrong.
            metrics.embedding_drift(self._before, self._after)
        # (metrics, layers), means over heads.
        before, after = (
            torch.stack([one.heads(name) for name in STRUCTURE_METRICS]).mean(2)
            for one in (self._reference.structure, structure)
        )
        means = zip(after.mean(1).tolist(), before.mean(1).tolist(), strict=True)
        return Drift(
            structure=structure,
            change_pct={name: relative_change_pct(*pair) for name, pair in zip(STRUCTURE_METRICS, means, strict=True)},
            layer_change_pct=dict(zip(STRUCTURE_METRICS, (100.0 * (after - before) / before).unbind(0), strict=True)),
            cka=cka,
            cka_debiased=debiased,
            embedding_drift=turned,
            embedding_distance=float(self._moved()),
            weight_drift=weight_drift,
            projection_drift=projection_drift,
        )

    def _refuse_collapsed(self) -> None:
        """Raise where every image is represented alike, so that nothing can be compared with it."""
        for block, alike in enumerate(self._alike().tolist(), 1):
            if alike:
                raise DivergedError(
                    f"block {block}: the hidden state is the same for all {self._images} probe images; the "
                    "representation has collapsed, and CKA has no value"
                )
        if bool(self._zero()):
            raise DivergedError("an image embedding is exactly zero; its cosine has no value")
