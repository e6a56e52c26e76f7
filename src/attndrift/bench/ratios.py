"""Speed as ratios against a named alternative, measured in one run: medians over repeated pairs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Ratio:
    """One measured ratio.

    Attributes:
        what, against: what was timed, and what it was timed against, in words.
        ratio: median over pairs of time(what) / time(against).
        low, high: smallest and largest ratio of a pair.
        seconds, seconds_against: median times.
        pairs: number of interleaved pairs, after one that is thrown away.
        megabytes, megabytes_against: median of the largest memory that each took; null where not measured.
    """

    what: str
    against: str
    ratio: float
    low: float
    high: float
    seconds: float
    seconds_against: float
    pairs: int
    megabytes: float | None = None
    megabytes_against: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def print_result(found: dict[str, Any], console: Console | None = None) -> None:
    """Print the ratios with their spread, and what they were measured on."""
    console = console or Console()
    named = (
        ("torch", "transformers") if found["bench"] == "capture" else ("python", "numpy", "pandas", "pyarrow", "scipy")
    )
    table = Table(title=f"bench {found['bench']}", title_justify="left")
    for name in ("what", "against", "ratio", "spread over pairs", "seconds", "MB"):
        table.add_column(name)
    for row in found["ratios"]:
        table.add_row(
            row["what"],
            row["against"],
            f"{row['ratio']:.3f}",
            f"{row['low']:.3f} .. {row['high']:.3f} (n = {row['pairs']})",
            f"{row['seconds']:.3f} / {row['seconds_against']:.3f}",
            "" if row["megabytes"] is None else f"{row['megabytes']:.0f} / {row['megabytes_against']:.0f}",
        )  # fmt: skip
    console.print(table)
    machine = found["hardware"]
    shown = [f"{name} {found['versions'][name]}" for name in named if found["versions"].get(name)]
    console.print(
        f"{machine.get('accelerator', machine['processor'])}, {machine['threads']} threads, {', '.join(shown)}"
    )
