"""The drift of a training in a notebook, drawn anew after each measurement."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from attndrift.drift.alerts import Alert
from attndrift.drift.drift import Drift
from attndrift.extras import importing


class LivePlot:
    """One picture that a notebook shows and changes.

    Args:
        alerts: their thresholds are lines.

    Raises:
        ImportError: there is no IPython, and so no notebook.
    """

    def __init__(self, alerts: Sequence[Alert]) -> None:
        try:
            display = importlib.import_module("IPython.display").display
        except ModuleNotFoundError as error:
            raise ImportError(
                "live=True draws in a notebook, and IPython is not installed; elsewhere call monitor.plot() after the training"
            ) from error
        self._alerts, self._display = tuple(alerts), display
        self._handle: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """A picture belongs to one notebook: a copy begins a new one."""
        return {**vars(self), "_handle": None}

    def show(self, measured: Sequence[tuple[int, Drift]]) -> None:
        """Show what has been measured, (step, drift) each."""
        picture = _Picture(measured, self._alerts)
        if self._handle is None:
            self._handle = self._display(picture, display_id=True)
        else:
            self._handle.update(picture)


class _Picture:
    """What a notebook takes: PNG, and text where it shows none."""

    def __init__(self, measured: Sequence[tuple[int, Drift]], alerts: Sequence[Alert]) -> None:
        with importing("report", "a live plot (live=True)"):
            from attndrift.figures.drifts import measurements_png
        self._png = measurements_png(measured, alerts)
        self._text = f"step {measured[-1][0]}: {measured[-1][1].line()}" if measured else ""

    def _repr_png_(self) -> bytes:
        return self._png

    def __repr__(self) -> str:
        return self._text
