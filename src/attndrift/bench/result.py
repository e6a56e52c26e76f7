"""What a benchmark found, with what is needed to believe it: versions, machine, and what else ran there."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from attndrift.bench.ratios import Ratio
from attndrift.files import write_json
from attndrift.study.record import hardware, now

MODELS = ("attndrift", "torch", "transformers", "peft", "numpy")
TABLES = ("attndrift", "numpy", "pandas", "pyarrow", "scipy")


def check_parts(chosen: Collection[str], known: Collection[str], option: str = "--only") -> None:
    """Raise ValueError for a part of a benchmark that there is not."""
    for part in chosen:
        if part not in known:
            raise ValueError(f"{option} {part}: choose from {', '.join(known)}")


class Machine:
    """How much of the processors other programs took while something was measured."""

    def __init__(self) -> None:
        self._start = _busy(), _own()
        self._more = 0.0

    def count(self, seconds: float) -> None:
        """Take processor time that is our own, of processes that were not waited for by this one or its children."""
        self._more += seconds

    def others_pct(self) -> float | None:
        """Percent of all processors' time that went to other programs since this was made; None where it cannot be told."""
        (before, own_before), (after, own_after) = self._start, (_busy(), _own())
        if before is None or after is None or after[1] <= before[1]:
            return None
        busy = (after[0] - before[0]) - (own_after - own_before) - self._more
        return max(0.0, 100.0 * busy / (after[1] - before[1]))


def _busy() -> tuple[float, float] | None:
    """Seconds that all processors were busy, and seconds that there were, since the machine started."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]
        ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields]
    except (OSError, ValueError, IndexError):
        return None
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


def _own() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


@dataclass(frozen=True)
class Result:
    """The outcome of one benchmark.

    Attributes:
        bench: its name.
        ratios: what was timed against what.
        tables: further measurements by title, a list of rows of plain values each; a row's keys are its columns.
        notes: sentences that the numbers need: what was left out and why.
        device: what torch calls it.
        threads: of this process.
        packages: the distributions whose versions decide the numbers.
        others_pct: see :class:`Machine`.
    """

    bench: str
    ratios: Sequence[Ratio]
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    device: str = "cpu"
    threads: int = 1
    packages: Sequence[str] = MODELS
    others_pct: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, with versions and machine."""
        return {
            "bench": self.bench,
            "measured": now(),
            "commit": _commit(),
            "ratios": [ratio.to_json() for ratio in self.ratios],
            "tables": {title: [dict(row) for row in rows] for title, rows in self.tables.items()},
            "notes": list(self.notes),
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in self.packages}},
            "hardware": hardware(self.device, self.threads),
            "others_pct": self.others_pct,
        }


def _commit() -> str | None:
    """The commit of the checkout that this runs from, ``-dirty`` where files were changed; None for an installed package."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def write_result(found: dict[str, Any], path: Path) -> None:
    """Write what :meth:`Result.to_json` gave, whole or not at all."""
    write_json(path, found)


def print_result(found: dict[str, Any], console: Console | None = None) -> None:
    """Print ratios with their spread, further tables, and what they were measured on."""
    console = console or Console()
    console.print(f"[bold]bench {found['bench']}[/bold]")
    for case, rows in _by_case(found["ratios"]).items():
        table = Table(
            "what", "against", "ratio", "spread over pairs", "seconds", title=case or None, title_justify="left"
        )
        with_memory = any(row["megabytes"] is not None for row in rows)
        if with_memory:
            table.add_column("MB")
        for row in rows:
            target = "" if row["at_most"] is None else f"\n(at most {row['at_most']:.3g})"
            cells = [
                row["what"],
                row["against"],
                f"{row['ratio']:.3f}{target}",
                f"{row['low']:.3f} .. {row['high']:.3f} (n = {row['pairs']})",
                f"{_digits(row['seconds'])} / {_digits(row['seconds_against'])}",
            ]
            if with_memory:
                memory = row["megabytes"]
                cells.append("" if memory is None else f"{memory:.0f} / {row['megabytes_against']:.0f}")
            table.add_row(*cells)
        console.print(table)
    for title, rows in found["tables"].items():
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = Table(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*(_cell(row.get(name)) for name in columns))
        console.print(table)
    for note in found["notes"]:
        console.print(note)
    machine = found["hardware"]
    shown = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version != "not installed")
    others = found["others_pct"]
    console.print(
        f"{machine.get('accelerator', machine['processor'])}, {machine['cores']} cores, {machine['threads']} threads, {shown}; "
        + (
            "what else ran meanwhile is not known"
            if others is None
            else f"other programs took {others:.0f}% of the processors"
        )
    )


def _by_case(ratios: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for row in ratios:
        cases.setdefault(row["case"], []).append(row)
    return cases


def _digits(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:.1f}"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
