"""Two states of a model on the same images, and what has changed between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from attndrift.extras import importing
from attndrift.html_tables import html_table
from attndrift.metrics.compared import Reasons, compare_embeddings, compare_hidden_states, finite, measure_embeddings
from attndrift.metrics.deferred import DeferredScalars
from attndrift.metrics.registry import METRICS
from attndrift.metrics.structure_accumulator import StructureSummary
from attndrift.process_group import DivergedError
from attndrift.registry import near_match
from attndrift.results.columns import Column, metric_columns


def watchable() -> tuple[str, ...]:
    """The quantities of a :class:`Drift` that are one number, by name: the measured columns of the table ``history``."""
    return tuple(column.name for column in metric_columns("history"))


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

    @cached_property
    def own(self) -> tuple[dict[str, float | None], Reasons]:
        """The metrics of its embeddings alone, by name, and why one is None."""
        return measure_embeddings(self.embeddings)


@dataclass(frozen=True)
class Drift:
    """What has changed between two snapshots, and how far the weights have moved.

    Every number of :func:`watchable` is an attribute too: ``drift.cka_mean``, ``drift.entropy_change_pct``,
    ``drift.embedding_drift``; None where it has no value (a change of what was 0; weights without a reference), and
    :meth:`reason` says why.

    Attributes:
        reference, structure: structural metrics of the reference and of the current state.
        compared: (layers,) of each metric that compares blocks: ``cka`` and ``cka_debiased`` (1 is the reference), and
            ``activation_change`` where it was asked for; NaN where a layer has no value.
        numbers: each metric that is one number: ``embedding_drift``, ``weight_drift``, ``effective_rank``, ...
        missing: why a metric has no value, by the metric's name.
        before: ``numbers`` of the reference, of the metrics that a model has alone: ``effective_rank``, ...
    """

    reference: StructureSummary
    structure: StructureSummary
    compared: Mapping[str, Tensor]
    numbers: Mapping[str, float | None]
    missing: Mapping[str, str] = field(default_factory=dict)
    before: Mapping[str, float | None] = field(default_factory=dict)

    def __getattr__(self, name: str) -> float | None:
        if not name.startswith("_") and "numbers" in vars(self):
            for column in metric_columns("history"):
                if column.name == name:
                    return self.number(column)
        hint = near_match(name, watchable())
        raise AttributeError(f"a drift has no `{name}`{hint}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *watchable()]

    def columns(self, table: Literal["history", "runs"]) -> dict[str, float | None]:
        """The measured columns of a table. Whatever writes a row of a drift takes them from here."""
        return {column.name: self.number(column) for column in metric_columns(table)}

    def with_more(
        self, blocks: Mapping[str, Tensor], before: Mapping[str, float | None], now: Mapping[str, float | None]
    ) -> Drift:
        """This with further metrics: of the blocks, (layers,) each, and of the reference and the current state alone."""
        return replace(
            self,
            compared={**self.compared, **blocks},
            before={**self.before, **before},
            numbers={**self.numbers, **now},
        )

    def row(self) -> dict[str, Any]:
        """What a drift adds to a row of the history: its columns, and ``layers``."""
        return self.columns("history") | {"layers": self.layers()}

    def values(self) -> dict[str, float | None]:
        """Everything that an alert or a budget may name (:func:`watchable`); None where it was not measured."""
        return self.columns("history")

    def number(self, column: Column) -> float | None:
        """What a measured column holds (:func:`~attndrift.results.columns.metric_columns`); None without a value."""
        name, statistic = column.metric, column.statistic
        if METRICS[name].own:
            before, now = self._ends(name)
            if statistic == "change_pct":
                return None if before is None or now is None else relative_change_pct(now, before)
            if statistic != "last_layer_change_pct":
                return before if statistic == "baseline" else now
        if statistic == "last_layer_change_pct":
            return finite(float(self.layer_change_pct(name)[-1]))
        if statistic in ("mean", "last"):
            values = self.compared.get(name)
            return None if values is None else finite(float(values.mean() if statistic == "mean" else values[-1]))
        return self.numbers.get(name)

    def _ends(self, name: str) -> tuple[float | None, float | None]:
        """A metric that a model has alone, of the reference and of the current state."""
        if METRICS[name].structural:
            return self.reference.mean(name), self.structure.mean(name)
        return self.before.get(name), self.numbers.get(name)

    def reason(self, column: Column) -> str:
        """Why a measured column has no number."""
        if column.metric in self.missing:
            return self.missing[column.metric]
        metric = METRICS[column.metric]
        if column.statistic in ("change_pct", "last_layer_change_pct") and None not in self._ends(metric.name):
            return "the pretrained value is 0"
        needs = metric.needs
        if needs in ("texts", "text weights"):
            return "nothing of the text side is trained"
        if needs == "own images and texts" and metric.name not in self.before:
            return "no texts were given to embed, or there is no text tower"
        if needs == "layer inputs" and metric.name not in self.compared:
            return "it is measured on request alone: DriftMonitor(..., activations=ActivationChange(...))"
        if needs == "labelled images":
            return "it is measured on request alone: DriftMonitor(..., knn=KNNRetention(...))"
        measured = needs in ("hidden states", "embeddings", "own embeddings")
        return "what was measured is no finite number" if measured else "it was not measured"

    def layer_change_pct(self, metric: str) -> Tensor:
        """(layers,): relative change of ``metric`` per layer, percent."""
        before, after = self.reference.layers(metric), self.structure.layers(metric)
        return 100.0 * (after - before) / before

    def layers(self) -> dict[str, Any]:
        """Values per layer, and per layer and head, for the table ``layers`` (nested lists, layers first)."""
        found: dict[str, Any] = {
            name: {"layer": per_head.mean(1).tolist(), "head": per_head.tolist()}
            for name, per_head in self.structure.values.items()
        }
        return found | {
            name: {"layer": [finite(value) for value in values.tolist()]} for name, values in self.compared.items()
        }

    def plot(self, ax: Any = None) -> Any:
        """Draw change and similarity by block, in the place of ``ax`` or a figure of its own: an array of two axes."""
        # Here, as drawing needs packages that measuring does not.
        with importing("report", "drift.plot()"):
            from attndrift.figures.drifts import plot_drift
        return plot_drift(self, ax)

    def _repr_html_(self) -> str:
        columns = {column.name: column for column in metric_columns("history")}
        values = {name: value for name, value in self.values().items() if value is not None}
        rows = [[columns[name].label, value, columns[name].unit] for name, value in values.items()]
        return html_table(["measured", "value", "unit"], rows, f"Drift on {self.structure.images} images")

    def line(self) -> str:
        """One readable line."""
        parts = [f"entropy {self.structure.mean('entropy'):.3f} nats"]
        if self.entropy_change_pct is not None:
            parts[0] += f" ({self.entropy_change_pct:+.2f}%)"
        shown = (
            ("last block {:+.2f}%", self.entropy_last_layer_change_pct), ("CKA {:.3f}", self.cka_mean),
            ("embeddings {:.4f}", self.embedding_drift), ("weights {:.5f}", self.weight_drift),
            ("texts {:.4f}", self.text_embedding_drift),
        )  # fmt: skip
        return ", ".join([*parts, *(words.format(value) for words, value in shown if value is not None)])


def relative_change_pct(value: float, baseline: float) -> float | None:
    """100 (M - M0) / M0; None where the baseline is 0 and the change has no scale."""
    return None if baseline == 0 else 100.0 * (value - baseline) / baseline


def compare_snapshots(reference: Snapshot, current: Snapshot, *, strict: bool = True, **weights: float | None) -> Drift:
    """The drift from ``reference`` to ``current``. Both must have been taken on the same images.

    Args:
        strict: raise where the representation has collapsed, or a metric has no value; otherwise what has none is None,
            with its reason.
        weights: metrics of the weights, by name, such as ``weight_drift``.

    Raises:
        ValueError: the snapshots do not belong together, or something has no value.
        DivergedError: the representation of ``current`` has collapsed.
    """
    comparison = DeferredComparison(reference, current.hidden, current.embeddings, DeferredScalars())
    return comparison.drift(current.structure, strict=strict, **weights)


class DeferredComparison:
    """:func:`compare_snapshots` in two parts: an accelerator is asked for everything, and then waited for.

    Args:
        reference, hidden, embeddings: as there, of the current state.
        deferred: what has to be read is noted there.
    """

    def __init__(self, reference: Snapshot, hidden: Tensor, embeddings: Tensor, deferred: DeferredScalars) -> None:
        pairs = (
            ("hidden states (layers, images, width)", reference.hidden, hidden),
            ("embeddings (images, dimensions)", reference.embeddings, embeddings),
        )
        for what, before, now in pairs:
            if before.shape != now.shape:
                raise ValueError(
                    f"the snapshots do not belong together: {what} are {tuple(before.shape)} in the reference and "
                    f"{tuple(now.shape)} now; both must be of the same images, through models of the same shape"
                )
        self._reference, self._images = reference, hidden.shape[1]
        self._alike = deferred.defer((hidden == hidden[:, :1]).flatten(1).all(1))
        self._zero = deferred.defer((embeddings == 0).all(dim=1).any())
        self._compared = compare_hidden_states(reference.hidden.to(hidden.device), hidden, deferred)
        self._now = deferred.defer(embeddings)
        self._moved = compare_embeddings(reference.embeddings.to(embeddings.device), embeddings, deferred)

    def drift(self, structure: StructureSummary, *, strict: bool = True, **weights: float | None) -> Drift:
        """Wait for it; ``structure`` is that of the current state. Args and Raises: as :func:`compare_snapshots`."""
        if strict:
            self._refuse_collapsed()
        (numbers, why), (compared, reasons) = self._moved(), self._compared()
        (before, of_reference), (own, of_current) = self._reference.own, measure_embeddings(self._now())
        missing = reasons | why | of_reference | of_current
        if strict and missing:
            raise ValueError(next(iter(missing.values())))
        numbers |= own | weights
        return Drift(self._reference.structure, structure, compared, numbers, missing, before)

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
