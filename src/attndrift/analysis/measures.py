"""The measured columns: what they are called, how they are printed, and which sign means harm."""

from __future__ import annotations

from dataclasses import dataclass

from attndrift.analysis.result import Column
from attndrift.results.tables import STRUCTURE_METRICS

LABELS = {"entropy": "Entropy", "erf95": "ERF@0.95", "gini": "Gini", "head_diversity": "Head diversity"}


@dataclass(frozen=True)
class Measure:
    """One outcome column of ``runs``; ``unit`` is that of the stored values."""

    name: str
    label: str
    unit: str
    digits: int | None = None
    scale: float = 1.0
    signed: bool = False

    def column(self, *, sd: bool = False) -> Column:
        return Column(
            name=self.name,
            label=self.label,
            unit="%" if self.scale == 100.0 else self.unit,
            digits=self.digits,
            scale=self.scale,
            signed=self.signed,
            sd=f"{self.name}_sd" if sd else None,
        )


CHANGES = tuple(
    Measure(f"{metric}_change_pct", f"{LABELS[metric]} change", "%", 2, signed=True) for metric in STRUCTURE_METRICS
)
LAST_LAYER = Measure("entropy_last_layer_change_pct", "Entropy change, last block", "%", 2, signed=True)
ACCURACIES = (
    Measure("best_val_accuracy", "Validation accuracy", "fraction", 2, 100.0),
    Measure("test_accuracy", "Test accuracy", "fraction", 2, 100.0),
)
DRIFTS = (
    Measure("cka_mean", "CKA, mean over blocks", "", 3),
    Measure("cka_last", "CKA, last block", "", 3),
    Measure("cka_debiased_mean", "Debiased CKA, mean", "", 3),
    Measure("embedding_drift", "Embedding drift", "", 3),
    Measure("weight_drift", "Weight drift", "", 4),
    Measure("projection_drift", "Projection drift", "", 4),
)


def retention(transfer_set: str) -> Measure:
    return Measure(f"transfer_{transfer_set}_retention_pct", f"{transfer_set} retention", "%", 1)


def transfer_measures(transfer_set: str) -> tuple[Measure, ...]:
    return (
        Measure(f"transfer_{transfer_set}_accuracy", f"{transfer_set} zero-shot accuracy", "fraction", 2, 100.0),
        retention(transfer_set),
    )


def outcomes(transfer_sets: list[str]) -> list[Measure]:
    """All outcome measures, in the order of the tables: the last block stands beside the mean."""
    result = [*ACCURACIES, CHANGES[0], LAST_LAYER, *CHANGES[1:], *DRIFTS]
    for name in transfer_sets:
        result += transfer_measures(name)
    return result


@dataclass(frozen=True)
class SignalSource:
    """A candidate predictor of retention.

    ``expected_sign`` is the sign of its correlation with retention if it means what it is taken for:
    more drift, less retention. The rule built on it picks the run in which it is smallest (largest
    where the sign is positive).
    """

    name: str
    label: str
    column: str
    absolute: bool
    expected_sign: int


def _signals() -> tuple[SignalSource, ...]:
    found: list[SignalSource] = []
    for measure in (CHANGES[0], LAST_LAYER, *CHANGES[1:]):
        stem = measure.name.removesuffix("_pct")
        # Concentration: a falling entropy, ERF and head diversity, a rising Gini.
        sign = -1 if stem.startswith("gini") else 1
        found.append(SignalSource(stem, measure.label, measure.name, False, sign))
        found.append(SignalSource(f"abs_{stem}", f"|{measure.label}|", measure.name, True, -1))
    found += [SignalSource(m.name, m.label, m.name, False, 1 if m.name.startswith("cka") else -1) for m in DRIFTS]
    found.append(
        SignalSource(
            "transfer_track_retention",
            "Retention on the track subset",
            "transfer_track_retention_pct",
            False,
            1,
        )
    )
    found.append(SignalSource("learning_rate", "Learning rate", "learning_rate", False, -1))
    found.append(SignalSource("validation_accuracy", "Validation accuracy", "best_val_accuracy", False, -1))
    return tuple(found)


SIGNALS = _signals()
