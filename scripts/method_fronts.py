"""Accuracy against retention for every way of a study such as `preservation-36`: the tables and the figure of docs/results.md.

    attndrift run preservation-36 --seeds 0,1,2 -o studies/preservation-36
    python scripts/method_fronts.py studies/preservation-36 [--out docs/images/preservation-front.png]

Means and 95% t intervals over seeds, each on its own, without correction. WiSE-FT is taken from the runs at the middle rate,
so that each way has three settings to choose from. Time and memory of a step are those of `benchmarks/results/step_costs.json`.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from attndrift.analysis.intervals import t_row
from attndrift.losses import LOSSES, split_weight
from attndrift.methods.registry import label_of
from attndrift.study.collect import collect

ROOT = Path(__file__).parents[1]
# Each has a contrast of 3:1 with white; with the marks, no two ways look alike.
COLOURS = ("#0072b2", "#c24e00", "#00795a", "#a0357e", "#7a5c00", "#444444", "#b3202c", "#5b4bb5")
ACCURACY, VALIDATION = "test_accuracy", "best_val_accuracy"


@dataclass(frozen=True)
class Way:
    """How a row of the table ``runs`` was made: the way, its strength in words, and the step that it trains with."""

    name: str
    strength: str
    step: str


def costs() -> tuple[dict[str, float], dict[str, float]]:
    """Time and memory of a step against full fine-tuning, by what was measured: ``method lora``, ``loss l2_sp``."""
    found = json.loads((ROOT / "benchmarks/results/step_costs.json").read_text(encoding="utf-8"))
    (memory,) = found["tables"].values()
    times = {"method full": 1.0} | {row["what"]: row["ratio"] for row in found["ratios"]}
    return times, {row["what"]: row["of full"] for row in memory}


def way_of(row: pd.Series, middle: float) -> Way | None:
    """The way of a row; None for a WiSE-FT of another rate than the middle one."""
    rate, cost = f"rate {row.learning_rate:g}", f"method {row.method}"
    lp_ft = row["head"] == "lp_ft"
    if isinstance(row.outcome, str):
        kind, _, value = row.outcome.partition(":")
        if kind == "ema":
            return Way("EMA", rate, cost)
        name = "LP-FT, then WiSE-FT" if lp_ft else "WiSE-FT"
        return Way(name, f"alpha {value}", cost) if np.isclose(row.learning_rate, middle) else None
    if isinstance(row.guard, str):
        return Way("guard", f"budget {row.guard_at_least:g}%", cost)
    if isinstance(row.loss, str):
        loss, weight = split_weight(row.loss)
        return Way(LOSSES[loss].short_label, f"weight {weight:g}", f"loss {loss}")
    return Way("LP-FT" if lp_ft else label_of(row.method), rate, cost)


def interval(values: pd.Series | np.ndarray, sign: str = "") -> str:
    """Mean and 95% t interval; the mean alone where there is none."""
    found, mean = t_row(np.asarray(values, dtype=float), 0.95), float(np.mean(values))
    if found["low"] is None:
        return f"{mean:{sign}.1f} ({found['reason']})" if len(values) > 1 else f"{mean:{sign}.1f}"
    return f"{mean:{sign}.1f} [{found['low']:{sign}.1f}, {found['high']:{sign}.1f}]"


def settings_of(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """A row a run and outcome, with its way and accuracies in percent; and the runs that are not finished."""
    tables, missing = collect(folder)
    rows = tables.runs[tables.runs.method != "none"].copy()
    rates = sorted(rows[(rows.method == "full") & rows.outcome.isna()].learning_rate.unique())
    ways = [way_of(row, rates[len(rates) // 2]) for _, row in rows.iterrows()]
    rows["way"], rows["strength"], rows["step_of"] = zip(
        *((w.name, w.strength, w.step) if w else (None, None, None) for w in ways), strict=True
    )
    kept = next(c for c in rows.columns if re.fullmatch(r"transfer_.*_zero_shot_retention_pct", c))
    rows["retention"] = rows[kept]
    rows[ACCURACY] *= 100
    rows[VALIDATION] *= 100
    return rows[rows.way.notna()], missing


def means_of(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a way and strength: means over seeds, and whether nothing else has both more accuracy and more retention."""
    found = rows.groupby(["way", "strength"], sort=False).agg(
        n=("seed", "nunique"), validation=(VALIDATION, "mean"), accuracy=(ACCURACY, "mean"),
        retention=("retention", "mean"), step_of=("step_of", "first"),
    ).reset_index()  # fmt: skip
    better = [
        ((found.accuracy >= a) & (found.retention >= r) & ((found.accuracy > a) | (found.retention > r))).any()
        for a, r in zip(found.accuracy, found.retention, strict=True)
    ]
    found["front"] = ~np.array(better)
    return found


def tuned_of(means: pd.DataFrame) -> pd.DataFrame:
    """Of each way the strength of best mean validation accuracy."""
    return means.loc[means.groupby("way", sort=False).validation.idxmax()]


def tables(rows: pd.DataFrame, means: pd.DataFrame) -> str:
    """Three Markdown tables: all settings, each way at its best validation, and that against L2-SP in pairs of seeds."""
    by = {key: part.set_index("seed") for key, part in rows.groupby(["way", "strength"])}

    def cells(one: pd.Series) -> str:
        part = by[one.way, one.strength]
        return f"{interval(part[ACCURACY])} | {interval(part.retention)}"

    lines = ["| way | setting | seeds | validation (%) | test accuracy (%) | retention (%) | front |",
             "| --- | --- | ---: | ---: | ---: | ---: | --- |"]  # fmt: skip
    lines += [
        f"| {one.way} | {one.strength} | {one.n} | {one.validation:.1f} | {cells(one)} | {'yes' if one.front else ''} |"
        for one in means.itertuples()
    ]
    tuned = tuned_of(means)
    times, memory = costs()
    lines += ["", "| way, at its best validation | setting | test accuracy (%) | retention (%) | step: time, of full | memory, of full |",
              "| --- | --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
    lines += [
        f"| {one.way} | {one.strength} | {cells(one)} | {times[one.step_of]:.2f} | {memory[one.step_of]:.2f} |"
        for one in tuned.itertuples()
    ]
    for against in ("L2-SP", "full"):
        if against not in set(tuned.way):
            continue
        other = by[against, tuned[tuned.way == against].strength.iloc[0]]
        lines += ["", f"| way at its best validation, minus {against} at its own | test accuracy | retention |",
                  "| --- | ---: | ---: |"]  # fmt: skip
        for one in tuned.itertuples():
            if one.way != against:
                part = by[one.way, one.strength]
                accuracy = (part[ACCURACY] - other[ACCURACY]).dropna()
                retention = (part.retention - other.retention).dropna()
                lines.append(f"| {one.way} | {interval(accuracy, '+')} | {interval(retention, '+')} |")
    return "\n".join(lines)


def draw(rows: pd.DataFrame, means: pd.DataFrame, path: Path) -> None:
    """Test accuracy against retention: a mark a setting with its intervals over seeds, a colour a way, the front as steps."""
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    ways = list(dict.fromkeys(means.way))
    markers = "osD^vP*Xph<>8d"
    for number, way in enumerate(ways):
        part = means[means.way == way]
        errors = []
        for column in ("retention", ACCURACY):
            spreads = [
                t_row(rows[(rows.way == way) & (rows.strength == one)][column].to_numpy(), 0.95)
                for one in part.strength
            ]
            middles = part["retention" if column == "retention" else "accuracy"].to_numpy()
            half = [0.0 if s["low"] is None else m - s["low"] for s, m in zip(spreads, middles, strict=True)]
            errors.append(half)
        axes.errorbar(
            part.retention, part.accuracy, xerr=errors[0], yerr=errors[1], fmt=markers[number % len(markers)], ms=5,
            color=COLOURS[number % len(COLOURS)], elinewidth=0.4, label=way, zorder=3,
        )  # fmt: skip
    front = means[means.front].sort_values("retention")
    axes.step(front.retention, front.accuracy, where="pre", color="#444444", lw=0.8, ls=":", label="front of the means")
    kept = next(c for c in rows.columns if re.fullmatch(r"transfer_.*_zero_shot_retention_pct", c)).split("_")[1]
    axes.set_title(
        f"{rows.dataset.iloc[0]} ({rows.model.iloc[0]} model): means of {rows.seed.nunique()} seeds, 95% t intervals",
        fontsize=8, loc="left",
    )  # fmt: skip
    axes.set_xlabel(f"Zero-shot retention on {kept} (%)")
    axes.set_ylabel("Test accuracy (%)")
    axes.set_xlim(min(0, means.retention.min() - 3), max(108, means.retention.max() + 4))
    axes.set_ylim(means.accuracy.min() - 8, means.accuracy.max() + 8)
    axes.legend(fontsize=6.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print the tables and draw the figure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("study", type=Path)
    options.add_argument("--out", type=Path, help="where the figure is drawn (PNG)")
    given = options.parse_args()
    rows, missing = settings_of(given.study)
    means = means_of(rows)
    print(tables(rows, means))
    if missing:
        print(f"\nnot finished: {', '.join(missing)}")
    if given.out is not None:
        draw(rows, means, given.out)


if __name__ == "__main__":
    main()
