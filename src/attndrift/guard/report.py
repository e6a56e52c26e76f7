"""What a guard did and what it cost: as plain values, and as a few lines."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from attndrift.guard.events import GuardEvent
from attndrift.html_tables import html_table


def summarize(
    events: Sequence[GuardEvent],
    budgets: Sequence[object],
    *,
    lr_scale: float,
    loss_weight: float | None,
    measurements: int,
    validated: bool,
) -> dict[str, Any]:
    """The values of :meth:`attndrift.Guard.summary`; ``validated``: whether there was a validation function."""
    last = events[-1] if events else None
    taken = [event for event in events if event.action == "rewound"]
    infeasible = any(event.action == "infeasible" for event in events)
    costs = [(event.cost_points, -place) for place, event in enumerate(events) if event.cost_points is not None]
    costly = events[-max(costs)[1]] if costs else None
    reason = None
    if costly is None:
        reason = "no state was outside the budget" if validated else "no validation function was given"
    return {
        "budgets": [str(budget) for budget in budgets],
        "outcome": "infeasible" if infeasible else "kept" if taken else "inactive",
        "checks": len({event.step for event in events}),
        "rewound": len(taken),
        "smallest_alpha": min((event.alpha for event in taken), default=None),
        "lr_scale": lr_scale,
        "loss_weight": loss_weight,
        "readings": [] if last is None else [vars(reading) for reading in last.after],
        "accuracy": None if last is None else last.accuracy,
        "accuracy_outside": None if costly is None else costly.accuracy_before,
        "accuracy_inside": None if costly is None else costly.accuracy,
        "cost_step": None if costly is None else costly.step,
        "cost_points": None if costly is None else costly.cost_points,
        "why_no_cost": reason,
        "measurements": measurements,
    }


class GuardReport(str):
    """The lines of a guard's report, with a table of its checks in a notebook."""

    events: Sequence[GuardEvent] = ()

    @classmethod
    def of(cls, lines: Sequence[str], events: Sequence[GuardEvent]) -> GuardReport:
        """The report of these lines."""
        report = cls("\n".join(lines))
        report.events = tuple(events)
        return report

    def _repr_html_(self) -> str:
        rows = [
            [event.step, event.action, ", ".join(map(str, event.before)), ", ".join(map(str, event.after)), event.alpha,
             event.accuracy]
            for event in self.events
        ]  # fmt: skip
        headings = ["step", "action", "before", "after", "share of the change left", "validation accuracy"]
        return html_table(headings, rows, self.partition("\n")[0]) + f"<pre>{html.escape(self)}</pre>"


def report_lines(summary: dict[str, Any], events: Sequence[GuardEvent], seconds: float) -> list[str]:
    """The summary for people."""
    words = {
        "infeasible": "out of reach; the pretrained weights were put back",
        "kept": f"kept; weights were taken back {summary['rewound']} times",
        "inactive": "never crossed; nothing was done",
    }
    weight = summary["loss_weight"]
    lines = [f"guard: {', '.join(summary['budgets'])}: {words[summary['outcome']]}"]
    if events:
        lines.append(f"  at the end {', '.join(map(str, events[-1].after))}")
    lines.append(
        f"  {summary['checks']} checks, {summary['measurements']} measurements, {seconds:.1f} s; "
        f"learning rate x {summary['lr_scale']:.3g}" + ("" if weight is None else f", loss weight {weight:.3g}")
    )
    cost = summary["cost_points"]
    if cost is None:
        return [*lines, f"  cost in accuracy: not known, {summary['why_no_cost']}"]
    return [
        *lines,
        f"  costliest rewind, at step {summary['cost_step']}: validation accuracy {summary['accuracy_outside']:.4f} to "
        f"{summary['accuracy_inside']:.4f}, a {'cost' if cost >= 0 else 'gain'} of {abs(cost):.1f} points",
        f"  validation accuracy at the end {summary['accuracy']:.4f}",
    ]
