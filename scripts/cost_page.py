"""Write the tables and the figure of docs/cost.md, docs/cost-gpu.md and docs/study-cost.md from what the benchmarks wrote into benchmarks/results/.

A block of the page between ``<!-- FILE.json ratios -->`` (or a table's title, or its beginning, in place of
``ratios``) and ``<!-- end -->`` is replaced by that table; a block ``<!-- FILE.json machine -->`` by what it was
measured on. Everything else on the page is left alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = tuple(ROOT / "docs" / name for name in ("cost.md", "cost-gpu.md", "study-cost.md"))
FIGURE = ROOT / "docs" / "images" / "cost-growth.png"
BLOCK = re.compile(r"(<!-- (?P<file>\S+\.json) (?P<what>[^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _markdown(columns: list[str], rows: list[list[str]], right: int = 1) -> str:
    """A table whose columns from number ``right`` on are aligned to the right."""
    rule = ["---" if place < right else "---:" for place in range(len(columns))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (columns, rule, *rows))


def ratios(found: dict[str, Any]) -> str:
    text = ""
    for case in dict.fromkeys(row["case"] for row in found["ratios"]):
        rows = [
            [
                row["what"],
                row["against"],
                f"**{row['ratio']:.3f}**",
                "" if row["at_most"] is None else f"{row['at_most']:.3g}",
                f"{row['low']:.3f} to {row['high']:.3f}",
                str(row["pairs"]),
                f"{row['seconds']:.3g} / {row['seconds_against']:.3g}",
            ]
            for row in found["ratios"]
            if row["case"] == case
        ]
        columns = ["what", "against", "ratio", "at most", "spread", "n", "seconds"]
        text += (f"\n{case}:\n\n" if case else "\n") + _markdown(columns, rows, right=2)
    return text + "\n"


def table(found: dict[str, Any], title: str) -> str:
    matching = [rows for name, rows in found["tables"].items() if name.startswith(title)]
    if len(matching) != 1:
        raise SystemExit(f"{len(matching)} tables of {found['bench']} begin with {title!r}")
    (rows,) = matching
    columns = list(dict.fromkeys(name for row in rows for name in row))
    right = sum(
        isinstance(rows[0].get(name), str) and not re.match(r"[\d.,]+( \(|$)", rows[0][name]) for name in columns
    )
    return "\n" + _markdown(columns, [[_cell(row.get(name)) for name in columns] for row in rows], right) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return (
        f"{value:.4g}"
        if isinstance(value, float) and value < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def machine(found: dict[str, Any]) -> str:
    hardware = found["hardware"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    others = found["others_pct"]
    share = "" if others is None else f"; other programs took {others:.0f}% of the processors meanwhile"
    processor = hardware.get("accelerator", hardware["processor"])
    return (
        f"\n{processor}, {hardware['cores']} cores, {hardware['threads']} threads, {hardware['system']}; "
        f"{versions}{share}. Measured {found['measured'][:10]}.\n\n"
    )


def figure(found: dict[str, Any]) -> None:
    panels = [(title, rows) for title, rows in found["tables"].items() if not title.startswith("exponents")]
    slopes = {
        (row["against"], row["of"]): row
        for row in found["tables"]["exponents: slope of the logarithm over that of the size"]
    }
    figure, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
    for axis, (title, rows) in zip(axes.flat, panels, strict=True):
        size = next(iter(rows[0]))
        measure = "measuring s" if size == "images" else "observing s"
        for name, label, style in (("forward s", "bare forward", "s--"), (measure, measure.removesuffix(" s"), "o-")):
            slope = slopes[size, name]
            label = f"{label}: exponent {slope['exponent']:.2f} ± {slope['standard error']:.2f}"
            axis.loglog([row[size] for row in rows], [row[name] for row in rows], style, label=label)
        axis.set_xlabel(size)
        axis.set_ylabel("seconds")
        axis.set_xticks([row[size] for row in rows], [f"{row[size]}" for row in rows])
        axis.minorticks_off()
        axis.set_title(title.partition(": ")[2], fontsize=9)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(FIGURE, dpi=130)


def main() -> None:
    """Fill the pages and draw the figure."""

    def fill(block: re.Match[str]) -> str:
        path = RESULTS / block["file"]
        if not path.is_file():
            return f"{block[1]}\nNot measured yet: `{path.relative_to(ROOT)}` is not there; `make bench` writes it.\n\n{block[4]}"
        found = json.loads(path.read_text(encoding="utf-8"))
        what = block["what"].strip()
        content = ratios(found) if what == "ratios" else machine(found) if what == "machine" else table(found, what)
        return block[1] + content + block[4]

    for page in PAGES:
        page.write_text(BLOCK.sub(fill, page.read_text(encoding="utf-8")), encoding="utf-8")
    if (RESULTS / "growth.json").is_file():
        figure(json.loads((RESULTS / "growth.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
