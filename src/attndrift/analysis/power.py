"""How much seeds, configurations and datasets vary, and how many seeds a difference of 2, 5 or 10 points needs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from attndrift.analysis.configurations import Prepared
from attndrift.analysis.contrasts import GROUP, MEAN, ONE, narrow, pairs_of, quantities
from attndrift.analysis.intervals import seeds_needed
from attndrift.analysis.numbers import number
from attndrift.analysis.result import Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.summary import plain_columns

POINTS = (2.0, 5.0, 10.0)
PUBLISHED_SPREAD = {"full": 3.3, "lora": 0.7, "last_block": 1.6}
"""Standard deviation of the CIFAR-100 retention between three seeds, in points, pooled over the learning rates: 39 runs of
CLIP ViT-B/32 on EuroSAT (github.com/xiaruize0911/Attention_Collapse_in_CLIP_Fine-tuning_repo, study2; LoRA of rank 8)."""
PUBLISHED = "39 published runs (CLIP ViT-B/32, EuroSAT, three seeds)"


def variance_table(prepared: Prepared, settings: AnalysisSettings) -> Table:
    """Variance components by the method of moments (nested ANOVA): a row a measure over all runs, and one a method."""
    rows: list[dict[str, Any]] = []
    wanted = [q for q in quantities(prepared, settings) if q.kind in ("transfer", "accuracy", "attention")]
    runs = prepared.distinct[[*GROUP[:2], "variant", "configuration", "dataset", *{q.name for q in wanted}]]
    for (model, selection), part in runs.groupby(GROUP[:2], sort=True):
        for quantity in wanted:
            own = part[part[quantity.name].notna()]
            for variant, group in [(None, own), *own.groupby("variant", sort=True)] if len(own) else []:
                row = _components(group, group[quantity.name] * quantity.scale, whole=variant is None)
                if row["sd_seed"] is not None or variant is None:
                    identity = {"model_name": model, "selection_name": selection, "variant": variant}
                    rows.append(identity | {"measure": quantity.name, "unit": quantity.unit} | row)
    columns = plain_columns(
        ("model_name", "Model"), ("selection_name", "Selection"), ("variant", "Method"), ("measure", "Measure"),
        ("unit", "Unit"), ("sd_seed", "Sd between seeds"), ("freedom", "Its degrees of freedom"),
        ("sd_configuration", "Sd between configurations"), ("n_configurations", "Configurations"),
        ("sd_dataset", "Sd between datasets"), ("n_datasets", "Datasets"),
    )  # fmt: skip
    notes = [
        "Standard deviations; a row without a method is over all methods. Two runs of one configuration differ in seed."
    ]
    if not rows:
        notes.append("There is no analysed run.")
    return Table(name="variance_components", title="What varies how much", columns=columns, rows=rows, notes=notes)


def _components(group: pd.DataFrame, values: pd.Series, *, whole: bool) -> dict[str, Any]:
    by = values.groupby(group["configuration"], sort=False)
    n, mean, variance = by.size(), by.mean(), by.var(ddof=1).fillna(0.0)
    freedom = int((n - 1).sum())
    seed = float(((n - 1) * variance).sum() / freedom) if freedom else np.nan
    row: dict[str, Any] = {
        "sd_seed": number(np.sqrt(seed)), "freedom": freedom, "n_configurations": len(n), "sd_configuration": None,
        "sd_dataset": None, "n_datasets": int(group["dataset"].nunique()),
    }  # fmt: skip
    if whole and freedom:
        dataset = group.groupby("configuration", sort=False)["dataset"].first()
        inner = mean.groupby(dataset, sort=False)
        counts, spread = inner.size(), inner.var(ddof=1).fillna(0.0)
        between = int((counts - 1).sum())
        if between:
            of_means = float(((counts - 1) * spread).sum() / between)
            row["sd_configuration"] = float(np.sqrt(max(of_means - seed * float((1 / n).mean()), 0)))
            if len(counts) > 1:
                of_datasets = float(inner.mean().var(ddof=1)) - of_means * float((1 / counts).mean())
                row["sd_dataset"] = float(np.sqrt(max(of_datasets, 0)))
    return row


def power_table(prepared: Prepared, differences: Table, settings: AnalysisSettings) -> Table:
    """Seeds with which a paired t test finds 2, 5 or 10 points with a power of 80%: a row a pair of methods."""
    names = [f"seeds_for_{points:g}_points" for points in POINTS]
    keys = (*GROUP, "first", "second", "measure")
    with_mean = {tuple(row[key] for key in keys) for row in differences.rows if row["contrast"] == MEAN}
    rows = [
        {key: row[key] for key in (*GROUP, "first", "second", "measure", "contrast", "n_rates", "n_seeds")}
        | {"sd": row["sd"], "source": "this study"}
        for row in differences.rows
        if row["unit"] == "points" and row["sd"] and row["contrast"] == (MEAN if row["n_rates"] > 1 else ONE)
        and row["n_seeds"] > 1 and not (row["contrast"] == ONE and tuple(row[key] for key in keys) in with_mean)
    ]  # fmt: skip
    rows = rows or _from_published(prepared)
    for row in rows:
        row |= {
            name: seeds_needed(row["sd"], points, alpha=settings.alpha)
            for name, points in zip(names, POINTS, strict=True)
        }
    columns = plain_columns(
        ("model_name", "Model"), ("selection_name", "Selection"), ("dataset", "Dataset"), ("key_rest", "Conditions"),
        ("first", "First"), ("second", "Second"), ("measure", "Measure"), ("contrast", "Over the rates"),
        ("n_rates", "Rates"), ("n_seeds", "Seeds"), ("sd", "Sd of the difference over seeds"), ("source", "Sd from"),
        *((name, f"Seeds for {points:g} points") for name, points in zip(names, POINTS, strict=True)),
    )  # fmt: skip
    notes = [
        f"Paired t test, two-sided at {settings.alpha:g}, power 80%, not corrected for several tests. At least 3 seeds."
    ]
    if not rows:
        notes.append("No spread of a difference over seeds is known.")
    return Table(name="power", title="Seeds needed for a difference", columns=columns, rows=rows, notes=notes)


def _from_published(prepared: Prepared) -> list[dict[str, Any]]:
    """For a study of one seed: pairs of methods whose spread is published, at one rate, as if seeds were unrelated."""
    rows: list[dict[str, Any]] = []
    for keys, group in narrow(prepared.distinct, ()).groupby(GROUP, sort=True):
        method = group.drop_duplicates("variant").set_index("variant")["method"]
        for kind, first, second in pairs_of(group):
            spreads = [PUBLISHED_SPREAD.get(str(method[name])) for name in (first, second)]
            if kind == 0 and None not in spreads:
                sd = math.hypot(*(float(one or 0) for one in spreads))
                named = {"first": first, "second": second, "measure": "zero-shot retention", "contrast": ONE}
                rows.append(
                    dict(zip(GROUP, keys, strict=True))
                    | named
                    | {"n_rates": 1, "n_seeds": None, "sd": sd, "source": PUBLISHED}
                )
    return rows
