"""A figure of the metric of this package over the training."""

from __future__ import annotations

from attndrift.figures.registry import figure
from attndrift.figures.source import Drawing, Source
from attndrift.figures.style import new_figure


@figure(
    "share_over_time",
    title="Largest share during training",
    section="shares",
    alt="Lines: the largest share of attention against the step, a line a run.",
    needs=("history",),
)
def share_over_time(source: Source) -> Drawing:
    """A line a run."""
    chart, axes = new_figure(80)
    history = source.tables.history[["run_id", "step", "largest_share"]]
    for _, rows in history.groupby("run_id"):
        axes[0, 0].plot(rows["step"], rows["largest_share"])
    axes[0, 0].set_xlabel("Step")
    axes[0, 0].set_ylabel("Largest share of attention")
    return Drawing(chart, "The largest share of attention that one patch has, in each run.", history)
