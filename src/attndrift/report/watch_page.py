"""A study under way as one HTML page that loads itself again and asks nothing of any network."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attndrift.files import write_text
from attndrift.report.environment import html_environment
from attndrift.study.watch import WatchedRun, WatchedStudy, watched_columns

_WIDTH, _HEIGHT, _EDGE = 96, 24, 3


def write_watch_page(study: WatchedStudy, path: Path, *, every: float, thresholds: Mapping[str, float] = {}) -> None:
    """Write the page in one step, so that a browser never sees half of it.

    ``every``: seconds after which it loads itself again; a study that is done does not. ``thresholds``: a line across
    the curves of a column.
    """
    columns = watched_columns()
    text = html_environment().get_template("watch.html.j2").render(
        study=study,
        columns=columns,
        rows=[_row(run, list(columns), thresholds) for run in study.runs],
        counts=", ".join(f"{count} {status}" for status, count in study.counts().items()),
        read_at=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(study.read_at)),
        every=None if study.done else max(1, round(every)),
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _row(run: WatchedRun, columns: Sequence[str], thresholds: Mapping[str, float]) -> dict[str, Any]:
    cells = [
        {
            "value": f"{run.series[column][-1]:.4g}" if run.series.get(column) else "",
            "curve": curve(run.series.get(column, []), thresholds.get(column)),
            "crossed": column in run.crossed,
        }
        for column in columns
    ]
    return {"run": run, "cells": cells}


def curve(values: Sequence[float], threshold: float | None = None) -> dict[str, Any] | None:
    """Where an SVG of 96 x 24 has the points of a curve, and the line of its threshold; None for fewer than two values."""
    if len(values) < 2:
        return None
    ends = [*values, *([] if threshold is None else [threshold])]
    low, high = min(ends), max(ends)
    scale = (_HEIGHT - 2 * _EDGE) / ((high - low) or 1.0)

    def place(value: float) -> float:
        return round(_HEIGHT - _EDGE - (value - low) * scale, 1)

    step = (_WIDTH - 2 * _EDGE) / (len(values) - 1)
    points = " ".join(f"{_EDGE + index * step:.1f},{place(value)}" for index, value in enumerate(values))
    return {"points": points, "threshold": None if threshold is None else place(threshold)}
