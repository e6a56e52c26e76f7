"""The result of a benchmark as a JSON file and as a printed table.

``python -m benchmarks.result FILE...`` prints results that were written before, with their date and commit.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer

from attndrift.files import write_json
from attndrift.study.record import hardware, now
from benchmarks.ratios import Ratio

ROOT = Path(__file__).parents[1]
PACKAGES = ("attndrift", "torch", "transformers", "peft", "numpy", "pandas", "pyarrow", "scipy")

Output = Annotated[Path | None, typer.Option("--output", "-o", help="Also write the result to this JSON file.")]
Pairs = Annotated[int, typer.Option("--pairs", min=1, help="Rounds; the medians are over these.")]


class OtherPrograms:
    """The share of all processors' time that other programs took since this was made."""

    def __init__(self) -> None:
        self._start = self._times()

    @staticmethod
    def _times() -> tuple[float, float, float]:
        every, own = psutil.cpu_times(), psutil.Process().cpu_times()
        total = sum(every) - getattr(every, "guest", 0.0) - getattr(every, "guest_nice", 0.0)
        return total, total - every.idle - getattr(every, "iowait", 0.0), sum(own[:4])

    def percent(self) -> float:
        """Processes that this one started count as its own once they have ended."""
        total, busy, own = (after - before for before, after in zip(self._start, self._times(), strict=True))
        return max(0.0, 100.0 * (busy - own) / total) if total > 0 else 0.0


@dataclass(frozen=True)
class Result:
    """What one benchmark found.

    Attributes:
        bench: its name.
        ratios: what was timed against what.
        tables: further measurements by title: rows of plain values. A row's keys are its columns.
        notes: what a reader must know to use the numbers.
        others_pct: see :class:`OtherPrograms`; null where it is not known.
    """

    bench: str
    ratios: Sequence[Ratio]
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    others_pct: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, with date, commit, versions and machine."""
        return {
            "bench": self.bench,
            "measured": now(),
            "commit": commit(),
            "ratios": [ratio.to_json() for ratio in self.ratios],
            "tables": {title: [dict(row) for row in rows] for title, rows in self.tables.items()},
            "notes": list(self.notes),
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
            "hardware": hardware("cpu", torch.get_num_threads()),
            "others_pct": self.others_pct,
        }

    def deliver(self, output: Path | None) -> None:
        """Print the result, and write it to ``output`` if that is given."""
        found = self.to_json()
        if output is not None:
            write_json(output, found)
        print_result(found)


def commit() -> str | None:
    """The commit of this checkout, ``-dirty`` where files were changed; None outside a git repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def say(line: object) -> None:
    """Print progress to standard error."""
    typer.echo(line, err=True)


def print_result(found: Mapping[str, Any]) -> None:
    """Print ratios with their spread, further tables (as Markdown), and what they were measured on."""
    lines = [f"# {found['bench']}, {found['measured'][:10]}, commit {found.get('commit') or 'not recorded'}", ""]
    for row in found["ratios"]:
        target = "" if row["at_most"] is None else f", at most {row['at_most']:.3g}"
        lines.append(f"{row['case']}: {row['what']}, against {row['against']}:")
        lines.append(
            f"  {row['ratio']:.3f}{target} ({row['low']:.3f} to {row['high']:.3f}, n = {row['pairs']}); "
            f"{row['seconds']:.4g} s / {row['seconds_against']:.4g} s"
        )
    for title, rows in found["tables"].items():
        columns = list(dict.fromkeys(name for row in rows for name in row))
        lines += ["", f"## {title}", "", _line(columns), _line(["---"] * len(columns))]
        lines += [_line([_cell(row.get(name)) for name in columns]) for row in rows]
    machine = found["hardware"]
    versions = ", ".join(f"{name} {of}" for name, of in found["versions"].items() if of != "not installed")
    lines += ["", *found["notes"]]
    lines.append(f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads; {versions}")
    if found["others_pct"] is not None:
        lines.append(f"Other programs took {found['others_pct']:.0f}% of the processors.")
    typer.echo("\n".join(lines))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return "" if value is None else str(value)


def main(files: list[Path]) -> None:
    """Print results from JSON files."""
    for path in files:
        print_result(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    typer.run(main)
