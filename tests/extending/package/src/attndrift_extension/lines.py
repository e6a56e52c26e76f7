"""A tracker: one line of JSON for each row of the history."""

from __future__ import annotations

import json
from collections.abc import Mapping

from attndrift.trackers import TRACKERS, TrackedRun, Tracker, Writer


class LinesWriter(Writer):
    """Appends to ``lines.jsonl`` in the run's folder."""

    def __init__(self, run: TrackedRun) -> None:
        self._file = (run.folder / "lines.jsonl").open("a" if run.step else "w", encoding="utf-8")

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the numbers of one step."""
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")

    def close(self) -> None:
        """Write what is left."""
        self._file.close()


TRACKERS.register(Tracker("lines", "lines of JSON", LinesWriter))
