"""The questions of docs/results.md, answered from a demo of several seeds: means and 95% t intervals over seeds.

attndrift run demo --seeds 42,43,44 --jobs 2 -o studies/demo-3
python scripts/demo_answers.py studies/demo-3
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from attndrift.analysis.intervals import t_row
from attndrift.results.tables import read_tables

KEPT, ENTROPY, ACCURACY = "transfer_objects_zero_shot_retention_pct", "entropy_change_pct", "test_accuracy"


def _interval(values: pd.Series) -> str:
    """Mean and 95% t interval over the seeds of ``values``, without correction; or why there is none."""
    found = t_row(values, 0.95)
    spread = f"({found['reason']})" if found["low"] is None else f"[{found['low']:+.1f}, {found['high']:+.1f}]"
    return f"{values.mean():+.1f} {spread}"


def _configuration(row: pd.Series) -> str:
    parts = [str(row.dataset), str(row.method)]
    if row.method == "lora":
        parts.append(f"r={row.lora_rank:.0f} {row.lora_targets}")
    if pd.notna(row.freeze_layers) and row.freeze_layers:
        parts.append(f"{row.freeze_layers:.0f} frozen")
    if isinstance(row.loss, str):
        parts.append(row.loss.replace(":", " "))
    return " ".join([*parts, f"decay {row.weight_decay:g}", f"{row.learning_rate:g}"])


def answers(folder: Path) -> str:
    """Markdown: every configuration, then the differences in pairs of equal seeds."""
    runs = read_tables(folder).runs
    runs = runs[runs.method != "none"].copy()
    runs[ACCURACY] *= 100
    runs["configuration"] = [_configuration(row) for _, row in runs.iterrows()]
    order = list(dict.fromkeys(runs.configuration))
    by = {name: group.set_index("seed") for name, group in runs.groupby("configuration")}
    lines = ["| configuration | seeds | test accuracy (%) | objects kept (%) | entropy change (%) |",
             "| --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
    lines += [
        f"| {name} | {len(by[name])} | {_interval(by[name][ACCURACY])} | {_interval(by[name][KEPT])} | {_interval(by[name][ENTROPY])} |"
        for name in order
    ]
    lines += ["", "| difference, in pairs of equal seeds | test accuracy | objects kept | size of entropy change |",
              "| --- | ---: | ---: | ---: |"]  # fmt: skip

    def compare(one: str, other: str) -> None:
        a, b = by[one], by[other]
        size = a[ENTROPY].abs() - b[ENTROPY].abs()
        lines.append(
            f"| {one} - {other} | {_interval(a[ACCURACY] - b[ACCURACY])} | {_interval(a[KEPT] - b[KEPT])} | {_interval(size)} |"
        )

    labels = {name: str(group["experiment"].iloc[0]) for name, group in by.items()}
    lora, plain = (next(name for name in order if labels[name] == label) for label in ("E5", "E2"))
    for name in order:
        if labels[name] in ("E2", "A1"):
            compare(lora, name)
    for name in order:
        if labels[name].startswith("R"):
            compare(name, plain)
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("study", type=Path)
    print(answers(options.parse_args().study))


if __name__ == "__main__":
    main()
