"""What a guard measured and did, as lines, rows of a table and values for a record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from attndrift.guard.budget import Reading


@dataclass(frozen=True)
class GuardEvent:
    """One check of the budgets, and what was done.

    Attributes:
        step, epoch: when; epoch is None where the loop does not say it.
        action: ``kept``, every budget was; ``rewound``, along the line to the pretrained weights until every one was;
            ``best``, the state with the best validation accuracy was put back; ``infeasible``, no state but the
            pretrained one keeps them, or not even that, and it was put back; ``frozen``, after that.
        before, after: what was measured before and after, a :class:`Reading` a budget; equal where nothing was done.
        alpha: the share of the change that was left: 1 untouched, 0 the pretrained weights.
        lr_scale: factor of the guarded parameters' learning rate from now on; 0 where they are frozen.
        loss_weight: of the preservation loss from now on; None without one.
        accuracy_before, accuracy: validation accuracy before and after; None where none was measured.
        measurements: how often the budgets were measured for it.
    """

    step: int
    epoch: float | None
    action: str
    before: tuple[Reading, ...]
    after: tuple[Reading, ...]
    alpha: float
    lr_scale: float
    loss_weight: float | None
    accuracy_before: float | None
    accuracy: float | None
    measurements: int

    @property
    def cost_points(self) -> float | None:
        """What taking weights back cost in validation accuracy, in points, at this step; None where nothing was or it is not known."""
        if self.action not in ("rewound", "infeasible") or self.accuracy_before is None or self.accuracy is None:
            return None
        return 100 * (self.accuracy_before - self.accuracy)

    def __str__(self) -> str:
        measured = ", ".join(map(str, self.after))
        if self.action in ("kept", "frozen"):
            text = f"{measured}: kept" if self.action == "kept" else f"{measured}: the pretrained weights are frozen"
            return text if self.accuracy is None else f"{text}, validation accuracy {self.accuracy:.4f}"
        if self.action == "best":
            return f"{measured}: the best state within the budget, validation accuracy {self.accuracy:.4f}, is put back"
        crossed = ", ".join(str(reading) + f" against {reading.limit:g}" for reading in self.before if not reading.met)
        if self.action == "infeasible":
            return f"{crossed}: out of reach, so the pretrained weights are put back and frozen; with them {measured}"
        text = f"{crossed}: {self.alpha:.2f} of the change is left, {measured}; learning rate x {self.lr_scale:.3g}"
        if self.loss_weight is not None:
            text += f", loss weight {self.loss_weight:.3g}"
        if self.accuracy is not None and self.accuracy_before is not None:
            text += f"; validation accuracy {self.accuracy_before:.4f} to {self.accuracy:.4f}"
        return text

    def scalars(self) -> dict[str, float]:
        """What trackers are given of it: ``guard/...`` and a number each."""
        values = {f"guard/{reading.metric}": reading.value for reading in self.after if reading.value is not None}
        return values | {"guard/alpha": self.alpha, "guard/lr_scale": self.lr_scale}

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` reads them."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> GuardEvent:
        """The event that :meth:`to_json` gave."""
        readings = {name: tuple(Reading(**reading) for reading in values[name]) for name in ("before", "after")}
        return GuardEvent(**{**values, **readings})

    def rows(self, run_id: str) -> list[dict[str, Any]]:
        """Rows of the table ``guard``, one a budget."""
        shared = {
            "run_id": run_id, "step": self.step, "epoch": self.epoch, "action": self.action, "alpha": self.alpha,
            "lr_scale": self.lr_scale, "loss_weight": self.loss_weight, "accuracy_before": self.accuracy_before,
            "accuracy": self.accuracy, "measurements": self.measurements,
        }  # fmt: skip
        return [
            shared
            | {"metric": after.metric, "limit": after.limit, "value": after.value, "bound": after.bound}
            | {"value_before": before.value, "bound_before": before.bound, "standard_error": after.standard_error}
            for before, after in zip(self.before, self.after, strict=True)
        ]
