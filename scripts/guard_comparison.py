"""The guard's comparison: the table and the figure of docs/guard-results.md, from a study folder.

    ATTNDRIFT_DATA=... attndrift run docs/studies/guard.yaml
    python scripts/guard_comparison.py studies/guard [--out docs/images/guard.png]

Along each plain run, WiSE-FT is measured at alphas of 0.2 to 0.6 on the same test images and the same transfer images
(`attndrift interpolate`; done once, kept in the run's folder). The alpha that a guard is compared with is the one with the best
test accuracy among those that keep the budget on these very images: no one could choose it without them, so it
is an upper bound of what WiSE-FT gives. Two shells may run this at once: runs that another one measures are skipped.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from filelock import FileLock, Timeout

from attndrift.analysis.intervals import t_row
from attndrift.files import read_json, write_json
from attndrift.losses import split_weight
from attndrift.study.interpolation import interpolate
from attndrift.study.record import read_record
from attndrift.study.resources import StudyResources

ALPHAS = tuple(round(0.05 * step, 2) for step in range(4, 13))
BUDGETS = (95.0, 90.0, 80.0)
RETENTION_SLACK, ACCURACY_SLACK = 2.0, 0.5  # points


@dataclass(frozen=True)
class Point:
    """One state: test accuracy and retention on images that no guard saw, both in percent."""

    accuracy: float
    retention: float
    alpha: float | None = None


def _records(study: Path) -> list[tuple[Path, dict[str, Any]]]:
    found = [(folder, read_record(folder)) for folder in sorted((study / "runs").iterdir())]
    return [(folder, record) for folder, record in found if record is not None and record["status"] == "finished"]


def _kind(settings: dict[str, Any]) -> str:
    if settings["guard"]:
        return f"guard {settings['guard_at_least']:g}%"
    if settings["loss"]:
        return f"APR {split_weight(settings['loss'])[1]:g}"
    return {"full": "plain", "lora": f"LoRA r={settings['lora_rank']}"}[settings["method"]]


def _sweep(folder: Path, resources: StudyResources) -> list[dict[str, Any]] | None:
    """The run's WiSE-FT points; None where another process is measuring them."""
    path = folder / "interpolation.json"
    try:
        with FileLock(folder / ".interpolation.lock", timeout=0):
            if not path.is_file():
                interpolate(
                    folder, ALPHAS, resources=resources, progress=lambda a, _: print(f"{folder.name}: {a}", flush=True)
                )
            return list(read_json(path)["points"])
    except Timeout:
        return None


def _best(curve: list[Point], budget: float) -> Point | None:
    """The alpha of best test accuracy among those that keep the budget on the same images."""
    within = [point for point in curve if point.retention >= budget]
    return max(within, key=lambda point: point.accuracy) if within else None


def _interval(values: list[float]) -> str:
    """Mean and 95% t interval over seeds; the mean alone where there is none."""
    found = t_row(values, 0.95)
    mean = f"{float(np.mean(values)):.1f}"
    return mean if found["low"] is None else f"{mean} [{found['low']:.1f}, {found['high']:.1f}]"


def compare(study: Path, seeds: list[int]) -> dict[str, Any]:
    """Everything that is printed and drawn, as plain values."""
    states: dict[str, dict[int, Point]] = {}
    guards: dict[tuple[float, int], dict[str, Any]] = {}
    curves: dict[int, list[Point]] = {}
    seconds: dict[str, list[float]] = {}
    resources = StudyResources()
    for folder, record in _records(study):
        settings, row = record["settings"], record["row"]
        if settings["seed"] not in seeds:
            continue
        kind = _kind(settings)
        point = Point(100 * row["test_accuracy"], row["transfer_cifar100_zero_shot_retention_pct"])
        states.setdefault(kind, {})[settings["seed"]] = point
        seconds.setdefault(kind, []).append(record["time"]["seconds"])
        if settings["guard"]:
            guards[settings["guard_at_least"], settings["seed"]] = record["guard"]
        if kind == "plain":
            points = _sweep(folder, resources)
            if points is not None:
                before = row["transfer_cifar100_zero_shot_pretrained"]
                curve = [
                    Point(
                        100 * p["test_accuracy"], 100 * p["transfer_cifar100_zero_shot_accuracy"] / before, p["alpha"]
                    )
                    for p in points
                ]
                curves[settings["seed"]] = curve
                states.setdefault("WiSE-FT 0.5", {})[settings["seed"]] = next(p for p in curve if p.alpha == 0.5)
    cells = []
    for budget in BUDGETS:
        for seed in seeds:
            guarded = states.get(f"guard {budget:g}%", {}).get(seed)
            if guarded is None or seed not in curves:
                continue
            best = _best(curves[seed], budget)
            told = guards[budget, seed]
            cells.append(
                {
                    "budget": budget, "seed": seed, "accuracy": guarded.accuracy, "retention": guarded.retention,
                    "probe_retention": told["readings"][0]["value"], "probe_bound": told["readings"][0]["bound"],
                    "outcome": told["outcome"], "rewound": told["rewound"], "measurements": told["measurements"],
                    "wise_alpha": None if best is None else best.alpha,
                    "wise_accuracy": None if best is None else best.accuracy,
                    "wise_retention": None if best is None else best.retention,
                    "keeps": guarded.retention >= budget - RETENTION_SLACK,
                    "matches": best is None or guarded.accuracy >= best.accuracy - ACCURACY_SLACK,
                }
            )  # fmt: skip
    return {
        "states": {kind: {str(s): vars(p) for s, p in by.items()} for kind, by in states.items()},
        "curves": {str(seed): [vars(point) for point in curve] for seed, curve in curves.items()},
        "cells": cells,
        "seconds": {kind: float(np.median(values)) for kind, values in seconds.items()},
    }


def tables(found: dict[str, Any]) -> str:
    """Two Markdown tables: the conditions over seeds, and the budgets seed by seed."""
    lines = ["| condition | seeds | test accuracy (%) | retention, unseen (%) |", "| --- | ---: | ---: | ---: |"]
    order = ["plain", "LoRA r=8", "APR 1", "WiSE-FT 0.5", *(f"guard {budget:g}%" for budget in BUDGETS)]
    for kind in order:
        by = list(found["states"].get(kind, {}).values())
        if by:
            accuracy, kept = _interval([p["accuracy"] for p in by]), _interval([p["retention"] for p in by])
            lines.append(f"| {kind} | {len(by)} | {accuracy} | {kept} |")
    lines += [
        "",
        "| budget | seed | guard: accuracy | retention, probe (bound) | retention, unseen | WiSE-FT: best alpha | accuracy | retention |"
        " guard keeps budget - 2 | accuracy >= WiSE-FT - 0.5 |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for cell in found["cells"]:
        wise = "none | | "
        if cell["wise_alpha"] is not None:
            wise = f"{cell['wise_alpha']:.2f} | {cell['wise_accuracy']:.1f} | {cell['wise_retention']:.1f}"
        lines.append(
            f"| {cell['budget']:g} | {cell['seed']} | {cell['accuracy']:.1f} | {cell['probe_retention']:.1f} "
            f"({cell['probe_bound']:.1f}) | {cell['retention']:.1f} | {wise} | {'yes' if cell['keeps'] else 'NO'} | "
            f"{'yes' if cell['matches'] else 'NO'} |"
        )
    kept, matched = sum(c["keeps"] for c in found["cells"]), sum(c["matches"] for c in found["cells"])
    lines += [
        "",
        f"Retention kept in {kept} of {len(found['cells'])}, accuracy matched in {matched} of {len(found['cells'])}.",
    ]
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Test accuracy against retention on unseen images, a mark a run, a line a seed of WiSE-FT."""
    figure, axes = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
    for number, curve in enumerate(found["curves"].values()):
        label = "WiSE-FT, 0.2 to 0.6" if number == 0 else None
        axes.plot(
            [p["retention"] for p in curve], [p["accuracy"] for p in curve], "-", color="#767676", lw=0.8, label=label
        )
    looks = {
        "plain": ("o", "#D55E00"), "LoRA r=8": ("s", "#0072B2"), "APR 1": ("D", "#CC79A7"), "WiSE-FT 0.5": ("x", "#767676"),
        "guard 80%": ("v", "#009E73"), "guard 90%": ("^", "#009E73"), "guard 95%": ("P", "#009E73"),
    }  # fmt: skip
    for kind, (marker, colour) in looks.items():
        by = list(found["states"].get(kind, {}).values())
        if by:
            kept, accuracy = [p["retention"] for p in by], [p["accuracy"] for p in by]
            axes.scatter(kept, accuracy, marker=marker, color=colour, s=22, label=kind, zorder=3)
    for budget in BUDGETS:
        axes.axvline(budget, color="#009E73", lw=0.5, ls=(0, (1.2, 1.2)))
    axes.set_xlabel("Zero-shot retention on unseen images (%)")
    axes.set_ylabel("Test accuracy (%)")
    axes.legend(fontsize=6.5, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)


def main() -> None:
    """Measure what is missing, print the tables, write the values and draw the figure."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("study", type=Path)
    options.add_argument("--seeds", default="7,11,19")
    options.add_argument("--out", type=Path, help="where the figure is drawn (PNG)")
    given = options.parse_args()
    found = compare(given.study, [int(seed) for seed in given.seeds.split(",")])
    write_json(given.study / "guard_comparison.json", found)
    print(tables(found))
    print(json.dumps(found["seconds"]))
    if given.out is not None:
        draw(found, given.out)


if __name__ == "__main__":
    main()
