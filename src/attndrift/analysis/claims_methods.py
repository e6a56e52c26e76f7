"""RQ2: methods on identical cells and at equal accuracy."""

from __future__ import annotations

import re
from typing import Any

from attndrift.analysis.measures import LAST_LAYER, outcomes
from attndrift.analysis.result import Comparison
from attndrift.analysis.wording import (
    Evidence,
    capital,
    closing,
    count_text,
    interval_text,
    judge,
    number_text,
    test_text,
    told,
    where_text,
)


def method_claims(e: Evidence) -> None:
    names = {m.name: m for m in outcomes(e.transfer_sets)}
    wanted = ["entropy_change_pct", LAST_LAYER, "cka_mean", "embedding_drift", "test_accuracy"]
    wanted += [f"transfer_{name}_zero_shot_retention_pct" for name in e.transfer_sets]
    pairs = [c for c in e.comparisons if c.measure in wanted]
    if not any(question_of(c) == "RQ2" for c in pairs):
        _unmatched(e)
    for c in pairs:
        if c.scope != "all datasets" or not _worth_telling(c):
            continue
        measure = names[c.measure]
        scale, digits = measure.scale, measure.digits if measure.digits is not None else 3
        points = " points" if measure.unit in ("%", "fraction") else ""
        test = c.configurations.tests[0]
        strength = judge(c.n_configurations, c.n_cells, c.n_seeds, test, c.interval, e.settings)
        mean = c.configurations.mean
        lower = c.cells.below_zero
        d_z = f", d_z = {number_text(c.cells.d_z)} on cells" if c.cells.d_z is not None else ""
        cells_test = c.cells.tests[0]
        sentence = (
            f"On {c.n_cells} identical cells{where_text(c.model, c.selection, pairs, c.scope)} {c.first} and "
            f"{c.second} differ in "
            f"{measure.label if measure.label.startswith('CKA') else measure.label[0].lower() + measure.label[1:]} by "
            f"{number_text(None if mean is None else mean * scale, digits)}{points} "
            f"({shown_text(c.first_mean, measure.scale, digits)} against "
            f"{shown_text(c.second_mean, measure.scale, digits)}; "
            f"{interval_text(c.interval, digits, scale)}{d_z}; on configuration means {test_text(test)}; on "
            f"cells {test_text(cells_test)}); "
            f"{c.first} is lower {count_text(lower, c.cells.n)}. "
            + closing(
                strength,
                f"{capital(c.first)} is {'lower' if (mean or 0) < 0 else 'higher'} than {c.second}",
                "a difference",
                c.label,
            )
        )
        e.add(
            f"{question_of(c)} {c.first} {c.second} {c.measure} {c.model} {c.selection}",
            question_of(c),
            sentence,
            strength,
            topic=_topic(c),
            weight=abs(mean or 0.0),
            effect=mean,
            unit=c.unit,
            first_mean=c.first_mean,
            second_mean=c.second_mean,
            d_z=c.cells.d_z,
            below_zero=lower,
            n_cells=c.n_cells,
            n_configurations=c.n_configurations,
            n_seeds=c.n_seeds,
            interval=c.interval.model_dump(),
            test=told(test),
            cells_test=told(cells_test),
            label=c.label,
        )
    _iso(e)


def _topic(c: Comparison) -> str | None:
    """Whether this is what the comparison of the methods, or of a preservation loss, is about: the retention."""
    if not c.measure.endswith("_retention_pct"):
        return None
    if question_of(c) == "RQ4":
        return "preservation"
    return "methods" if c.first == "full" and c.second.startswith("LoRA") else None


def question_of(c: Comparison) -> str:
    """RQ2 compares methods, RQ4 preservation losses; what else differs within a method is a hyperparameter, RQ5."""
    if re.search(r" \+ (?!projection)", c.first + c.second):
        return "RQ4"
    first, second = (re.split(r" r=|,| \+| on ", name)[0] for name in (c.first, c.second))
    return "RQ5" if first == second else "RQ2"


def _worth_telling(c: Comparison) -> bool:
    """Everything about full fine-tuning and about well-covered pairs; of the others entropy and retention."""
    main = c.measure == "entropy_change_pct" or c.measure.endswith("_retention_pct")
    if question_of(c) != "RQ2":
        return c.n_cells >= 3 and (main or c.measure == LAST_LAYER)
    return main or c.n_configurations >= 3 or c.first == "full"


def shown_text(value: float | None, scale: float, digits: int) -> str:
    return number_text(None if value is None else value * scale, digits, signed=False)


def _unmatched(e: Evidence) -> None:
    rows = e.tables["configurations"].rows
    rates: dict[str, set[str]] = {}
    for row in rows:
        if row["variant"] == "pretrained" or row["learning_rate"] is None:
            continue
        if row["variant"] == "full" or str(row["variant"]).startswith("LoRA"):
            rates.setdefault(str(row["variant"]), set()).add(f"{row['learning_rate']:g}")
    if len(rates) > 1:
        listed = "; ".join(f"{name} at {', '.join(sorted(values, key=float))}" for name, values in rates.items())
        sentence = (
            "No two methods share a (dataset, settings, rate, seed) cell, so the effect of the method cannot be "
            "told from "
            f"that of the learning rate ({listed})."
        )
    else:
        sentence = "The tables hold no two methods on identical cells, so RQ2 cannot be answered."
    e.add(
        "rq2 unmatched",
        "RQ2",
        sentence,
        "too few",
        rates={name: sorted(v, key=float) for name, v in rates.items()},
    )


def _iso(e: Evidence) -> None:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in e.tables["iso_accuracy"].rows:
        if row["learning_rate"] is None or row["why"] == "setting":
            continue
        key = (
            row["model_name"],
            row["selection_name"],
            row["dataset"],
            row["conditions"],
            row["why"],
            row["target"],
        )
        groups.setdefault(key, []).append(row)
    for (_, _, dataset, _, why, target), rows in groups.items():
        named = [row for row in rows if f" {row['variant']} and " in f" {why}" or f"and {row['variant']} both" in why]
        if len(named) != 2 or "full" not in {row["variant"] for row in named}:
            continue
        for name in e.transfer_sets[:2]:
            column = f"transfer_{name}_zero_shot_retention_pct"
            if any(row.get(column) is None for row in named):
                continue
            told = " and ".join(
                f"{row['variant']} (rate {row['learning_rate']:.2g}) retains {row[column]:.1f}%" for row in named
            )
            seeds = min(int(row["n_seeds"]) for row in named)
            note = (
                "one seed: descriptive only"
                if seeds == 1
                else "interpolated between configuration means: descriptive only"
            )
            e.add(
                f"rq2 iso {dataset} {name} {' '.join(str(row['variant']) for row in named)}",
                "RQ2",
                f"At equal validation accuracy ({100 * target:.1f}%) on {dataset}, {told} of the zero-shot "
                f"accuracy on {name} ({note}).",
                "descriptive",
                target=target,
                points=[
                    {"method": r["variant"], "learning_rate": r["learning_rate"], "retention_pct": r[column]}
                    for r in named
                ],
                n_seeds=seeds,
            )
