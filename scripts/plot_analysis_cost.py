"""Draw how the time of the analysis grows with the number of runs, from a result of `attndrift bench analysis --growth`.

python scripts/plot_analysis_cost.py benchmarks/results/analysis.json docs/images/analysis-cost.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from attndrift.figures.style import styled
from attndrift.files import read_json


def main(result: Path, picture: Path) -> None:
    tables = read_json(result)["tables"]
    slopes = {row["shape"]: row["exponent"] for row in tables["exponents"]}
    with styled():
        figure, axes = plt.subplots(figsize=(4.5, 3.2), layout="constrained")
        for marker, (shape, slope) in zip("osD", slopes.items(), strict=True):
            rows = [row for row in tables["growth with the number of runs"] if row["shape"] == shape]
            axes.plot([r["runs"] for r in rows], [r["s"] for r in rows], marker, ls="-", label=f"{shape}: {slope:.2f}")
        axes.axhline(20, color="0.5", ls=":", lw=1)
        axes.annotate("20 s", (100, 20), va="bottom", color="0.4", fontsize="small")
        axes.set(xscale="log", yscale="log", xlabel="Runs, 100 evaluations each", ylabel="Seconds, start to result")
        # The style prints every $ as it is, so that ticks must not be formulas.
        for axis, ticks in ((axes.xaxis, (100, 1000, 2500, 5000, 10_000)), (axes.yaxis, (3, 5, 10, 20))):
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axis.set_minor_locator(NullLocator())
        axes.legend(
            title="Shape of the study: exponent", fontsize="x-small", title_fontsize="x-small", loc="lower right"
        )
        figure.savefig(picture, dpi=200)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
