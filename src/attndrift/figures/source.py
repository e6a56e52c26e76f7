"""What figures draw from: the runs with their names, means over seeds, and the choice of what to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from attndrift.analysis.configurations import NOT_GIVEN, prepare
from attndrift.analysis.image_intervals import ImageIntervals, Outcomes, read_image_outcomes
from attndrift.analysis.result import Analysis, PendingAnalysis
from attndrift.methods.registry import METHODS, PRETRAINED, order_of
from attndrift.metrics.registry import structure_metrics
from attndrift.own_settings import fields_of, plain_kinds
from attndrift.results.measures import column_stem
from attndrift.results.tables import Tables, outcome_of_column, transfer_outcomes

# Imports inside functions: these packages take time to load, which only who needs them pays.

LEVEL = 0.95
"""Level of the intervals over images."""


class NoData(Exception):
    """A figure for which the tables hold nothing; the message is the reason."""


@dataclass
class Drawing:
    """A drawn figure, its caption, and the table of what it shows."""

    figure: Figure
    caption: str
    data: pd.DataFrame


@dataclass
class Source:
    """The tables of one study, ready to draw: one model and one selection, those with most runs.

    ``maps`` is where attention maps lie (see :func:`attndrift.figures.maps.find_maps`), ``analysis``
    the statistics; where they are not given they are computed when a figure first needs them. ``outcomes``: which transfer
    images each run was right about, read from ``maps`` where it is a study folder.
    """

    tables: Tables
    maps: Path | Mapping[str, Any] | None = None
    given_analysis: Analysis | PendingAnalysis | None = None
    outcomes: Outcomes | None = None
    caveats: list[str] = field(default_factory=list)
    _standard: dict[str, pd.DataFrame] = field(default_factory=dict, init=False, repr=False)
    _representatives: dict[tuple[str, int], list[str]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        prepared = prepare(self.tables)
        runs = prepared.runs
        adapted = runs[runs["method"] != PRETRAINED]
        self.transfer_sets = [name for name in transfer_outcomes(self.tables.runs) if name in prepared.transfer]
        self.model = _most(adapted["model_name"]) or _most(runs["model_name"]) or NOT_GIVEN
        runs = self._narrow(runs, "model_name", self.model, "model")
        adapted = runs[runs["method"] != PRETRAINED]
        self.selection = _most(adapted["selection_name"]) or NOT_GIVEN
        bare = runs[runs["method"] == PRETRAINED]
        adapted = self._narrow(adapted, "selection_name", self.selection, "selection")
        if self.selection == "test":
            self.caveats.append("Selection `test`: the split that selected the epoch is also the one reported.")
        self.runs = pd.concat([bare, adapted])
        self.adapted = adapted.reset_index(drop=True)
        self.datasets = _ordered(adapted["dataset"]) or _ordered(runs["dataset"])

    def _narrow(self, runs: pd.DataFrame, column: str, value: str, word: str) -> pd.DataFrame:
        kept = runs[runs[column] == value]
        left = len(runs) - len(kept)
        if left:
            self.caveats.append(f"{word.capitalize()} {value} only; {left} runs of another {word} are not shown.")
        return kept

    @cached_property
    def analysis(self) -> Analysis:
        if self.given_analysis is None:
            from attndrift.analysis.core import analyze

            return analyze(self.tables)
        given = self.given_analysis
        return given if isinstance(given, Analysis) else given.result

    @cached_property
    def images(self) -> ImageIntervals:
        """Intervals over images of single runs; paired where ``maps`` is a folder that holds the outcomes."""
        folder = self.maps if isinstance(self.maps, Path) and self.maps.is_dir() else None
        read = self.outcomes is None and folder is not None
        return ImageIntervals(read_image_outcomes(folder) if read and folder else self.outcomes or {}, LEVEL)

    @property
    def primary(self) -> str:
        if not self.datasets:
            raise NoData("there is no finished run")
        return self.datasets[0]

    @property
    def secondary(self) -> str:
        if len(self.datasets) < 2:
            raise NoData("the runs are of one data set only")
        return self.datasets[1]

    @cached_property
    def accuracy(self) -> str:
        """The accuracy column that the runs have: test, else validation."""
        return "test_accuracy" if self.adapted["test_accuracy"].notna().any() else "best_val_accuracy"

    @cached_property
    def retention(self) -> str:
        """The retention column of the transfer set that most runs were measured on, the study's first where tied."""
        columns = [f"{column_stem(name)}_retention_pct" for name in self.transfer_sets]
        columns = [c for c in columns if c in self.adapted and self.adapted[c].notna().any()]
        if not columns:
            raise NoData("no run has a retention")
        return max(columns, key=lambda c: len(self.adapted[c].dropna()))

    @property
    def retentions(self) -> list[str]:
        """:attr:`retention` in a list; an empty one where there is none."""
        try:
            return [self.retention]
        except NoData:
            return []

    def standard(self, dataset: str) -> pd.DataFrame:
        """Adapted runs on ``dataset`` under its most common conditions (epochs, batch size, weight decay, ...)."""
        if dataset not in self._standard:
            runs = self.adapted[self.adapted["dataset"] == dataset]
            if runs.empty:
                raise NoData(f"there is no adapted run on {dataset}")
            self._standard[dataset] = runs[runs["key_rest"] == _most(runs["key_rest"])]
        return self._standard[dataset]

    def plain(self, dataset: str) -> pd.DataFrame:
        """The standard runs of whole towers without preservation loss, themselves and not outcomes of theirs."""
        runs = self.standard(dataset)
        return runs[~runs["has_addition"]]

    def usual_rate(self, runs: pd.DataFrame, variant: str) -> str:
        """Rate (as text) that stands for ``variant``.

        The one that most runs of its method on the data set use, the best validated one where several tie.
        """
        own = runs[runs["variant"] == variant]
        dataset, method = own["dataset"].iloc[0], own["method"].iloc[0]
        kin = self.adapted[(self.adapted["dataset"] == dataset) & (self.adapted["method"] == method)]
        table = own.groupby("rate_text").agg(
            accuracy=("best_val_accuracy", "mean"), other=(self.accuracy, "mean"), rate=("learning_rate", "first")
        )
        table["uses"] = [kin["rate_text"].tolist().count(rate) for rate in table.index]
        table["score"] = table["accuracy"].fillna(table["other"]).fillna(-1.0)
        best = table.sort_values(["uses", "score", "rate"], ascending=[False, False, True], kind="stable")
        return str(best.index[0])

    def representatives(self, dataset: str, *, limit: int = 6) -> list[str]:
        """Configurations that stand for the methods on ``dataset``: each plain variant at its usual rate."""
        if (dataset, limit) in self._representatives:
            return self._representatives[dataset, limit]
        runs = self.plain(dataset)
        names: list[str] = []
        for variant in variants_of(runs)[:limit]:
            rate = self.usual_rate(runs, variant[0])
            chosen = runs[(runs["variant"] == variant[0]) & (runs["rate_text"] == rate)]
            names.append(str(chosen["configuration"].iloc[0]))
        self._representatives[dataset, limit] = names
        return names

    def history(self, configurations: Sequence[str]) -> pd.DataFrame:
        """Rows of ``history`` of these configurations with their names; raises NoData where there are none."""
        keep = self.adapted.loc[
            self.adapted["configuration"].isin(list(configurations)),
            ["run_id", "configuration", "variant", "method", "dataset", "rate_text"],
        ]
        joined = self.tables.history.merge(keep, on="run_id", how="inner")
        if joined.empty:
            raise NoData("the table `history` has no rows of these runs")
        return joined

    def caption(self, text: str) -> str:
        return " ".join([text, *self.caveats])


def variants_of(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """(variant, method) pairs: methods in their order, then by their own settings, frozen blocks and losses."""
    table = runs[["variant", "method", "key_trained_parts", "key_loss_name", "key_outcome"]].copy()
    table["order"] = [order_of(str(name)) for name in table["method"]]
    own = [name for name, field in fields_of(METHODS).items() if plain_kinds(field.annotation) & {int, float}]
    own = [name for name in own if runs[name].notna().any()]
    numbers = [*own, "freeze_layers", "loss_weight"]
    for column in numbers:
        table[column] = runs[column].astype("float64").fillna(-1.0)
    table["length"] = table["variant"].str.len()
    by = [
        "order",
        *own,
        "freeze_layers",
        "key_trained_parts",
        "key_loss_name",
        "loss_weight",
        "key_outcome",
        "length",
        "variant",
    ]
    table = table.sort_values(by, kind="stable")
    pairs = zip(table["variant"], table["method"], strict=True)
    return list(dict.fromkeys((str(variant), str(method)) for variant, method in pairs))


def usual_variant(runs: pd.DataFrame, method: str) -> str:
    """The variant that stands for ``method`` where one must: the first of `full`, a common one of LoRA."""
    variants = [name for name, _ in variants_of(runs)]
    if method == "full":
        return variants[0]
    counts = runs["variant"].value_counts()
    usual = [name for name in variants if counts[name] == counts.max()]
    # Rank 8 is the rank that the data sets share in the first study; elsewhere the middle one stands for all.
    return next((name for name in usual if name.startswith("LoRA r=8")), usual[len(usual) // 2])


def over_seeds(
    frame: pd.DataFrame, by: Sequence[str], value: str, images: ImageIntervals | None = None
) -> pd.DataFrame:
    """Mean, sample standard deviation (null for one run) and number of runs of ``value`` by ``by``.

    With ``images``, and ``frame`` rows of the table ``runs``, ``low`` and ``high`` are the interval over images
    of accuracies and retentions that rest on one run; null elsewhere.
    """
    if value not in frame:
        return pd.DataFrame(columns=[*by, "mean", "sd", "n"])
    present = frame[frame[value].notna()]
    grouped = present.groupby(list(by), sort=False, dropna=False)[value]
    table = grouped.agg(mean="mean", sd="std", n="count").reset_index()
    if images is None or not of_images(value):
        return table
    limits = [
        image_limits(images, rows.iloc[0].to_dict(), value) if len(rows) == 1 else (np.nan, np.nan)
        for _, rows in present.groupby(list(by), sort=False, dropna=False)
    ]
    return table.assign(low=[low for low, _ in limits], high=[high for _, high in limits])


def of_images(column: str) -> bool:
    """Whether the column is a share of images, which one run gives with an interval."""
    return column in ("test_accuracy", "best_val_accuracy") or column.startswith("transfer_")


def image_limits(images: ImageIntervals, run: Mapping[Any, Any], column: str) -> tuple[float, float]:
    """Limits over images of an accuracy (0..1) or a retention (percent) of one run; NaN where not known."""
    if column.endswith("_retention_pct"):
        return images.retention(run, outcome_of_column(column))
    return images.accuracy(run, column)


def error_of(table: pd.DataFrame) -> Any:
    """Lengths of the error bars below and above the means, (2, rows), or None where nothing is known.

    One sample standard deviation where there are several runs; where there is one, the interval over images.
    """
    sd = table["sd"].to_numpy(dtype=float)
    below, above = sd.copy(), sd.copy()
    if "low" in table:
        one = ~np.isfinite(sd)
        mean = table["mean"].to_numpy(dtype=float)
        below[one] = np.maximum(mean - table["low"].to_numpy(dtype=float), 0)[one]
        above[one] = np.maximum(table["high"].to_numpy(dtype=float) - mean, 0)[one]
    both = np.stack([below, above])
    return np.nan_to_num(both) if np.isfinite(both).any() else None


def time_axis(history: pd.DataFrame) -> tuple[str, str]:
    """Column and label of the time: epochs where every row has one, else optimiser steps."""
    if history["epoch"].notna().all():
        return "epoch", "Epoch"
    return "step", "Optimiser step"


def label_of(runs: pd.DataFrame, configuration: str) -> str:
    """Variant and rate of a configuration, without the data set."""
    row = runs[runs["configuration"] == configuration].iloc[0]
    if row["method"] == PRETRAINED:
        return str(row["variant"])
    # No-break spaces: a label breaks before the rate, never between the dot and the rate.
    return f"{row['variant']}\u00a0·\u00a0{row['rate_text']}"


def in_order(source: Source, configurations: Sequence[str]) -> list[str]:
    """Configurations by data set, method, rate and conditions."""
    runs = source.adapted[source.adapted["configuration"].isin(list(configurations))].copy()
    runs["place"] = runs["dataset"].map({name: place for place, name in enumerate(source.datasets)})
    runs["kind"] = runs["variant"].map({name: place for place, (name, _) in enumerate(variants_of(runs))})
    runs = runs.sort_values(["place", "kind", "learning_rate", "key_rest"], kind="stable")
    return list(dict.fromkeys(runs["configuration"].astype(str)))


def row_label(source: Source, configuration: str) -> str:
    """Variant, rate, and the conditions where they are not the usual ones."""
    runs = source.adapted[source.adapted["configuration"] == configuration]
    label = label_of(runs, configuration)
    rest = str(runs["key_rest"].iloc[0])
    usual = str(source.standard(str(runs["dataset"].iloc[0]))["key_rest"].iloc[0])
    return label if rest == usual else f"{label}, {rest}"


def seeds_text(counts: Any) -> str:
    """`3 seeds`, `2 to 3 seeds` or `one seed`."""
    values = [int(count) for count in counts]
    if not values:
        return "no runs"
    low, high = min(values), max(values)
    if high == 1:
        return "one seed"
    return f"{high} seeds" if low == high else f"{low} to {high} seeds"


def spread_text(counts: Any, what: str = "Bars", *, images: pd.DataFrame | None = None) -> str:
    """What the uncertainty of a figure is, in a sentence; ``images``: its table, for the intervals over images."""
    values = [int(count) for count in counts]
    drawn = images is not None and "low" in images and bool(images["low"].notna().any())
    over = f"{LEVEL:.0%} intervals over the test images of the one run (accuracy, retention); seeds would add to them"
    if values and max(values) == 1:
        text = "n = 1 run behind every point (one seed): no spread over seeds can be drawn."
        return f"{text} {what}: {over}." if drawn else text
    text = f"{what}: sample standard deviation over runs that differ in seed alone ({seeds_text(values)})"
    return f"{text}; where there is one run, {over}." if drawn else f"{text}."


def structure_columns(runs: pd.DataFrame, *, last: bool = False) -> list[str]:
    """Change columns of the structural metrics that have a value; ``last`` puts the last block beside the mean."""
    columns = [f"{metric}_change_pct" for metric in structure_metrics()]
    if last:
        columns.insert(1, "entropy_last_layer_change_pct")
    return [c for c in columns if c in runs and runs[c].notna().any()]


def scaled(column: str, values: Any) -> Any:
    """Values as drawn: accuracies in percent."""
    from attndrift.figures.style import percent

    return np.asarray(values, dtype=float) * (100.0 if percent(column) else 1.0)


def _most(values: pd.Series) -> str | None:
    counts = values.dropna().value_counts()
    if counts.empty:
        return None
    return str(min(counts[counts == counts.max()].index))


def _ordered(values: pd.Series) -> list[str]:
    counts = values.dropna().value_counts()
    return sorted((str(name) for name in counts.index), key=lambda name: (-int(counts[name]), name))
