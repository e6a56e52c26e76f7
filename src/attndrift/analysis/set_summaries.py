"""Retention over many transfer sets: mean and worst of each configuration by suite, and the matrix of targets and sets.

Sets that are ``fixed`` are the ones of interest: an interval of their mean covers other test images and other seeds. Sets that
are ``sampled`` stand for sets like them: an interval covers other sets, and says nothing of their worst. Every measure
(zero-shot, k-NN, ...) is kept apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from attndrift.analysis.configurations import Prepared
from attndrift.analysis.image_intervals import ImageIntervals
from attndrift.analysis.intervals import MINIMUM_SEEDS, standard_error, t_limits
from attndrift.analysis.measures import ACCURACIES, retention
from attndrift.analysis.numbers import Floats, number
from attndrift.analysis.operating import accuracy_column, on_front
from attndrift.analysis.result import Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.summary import filled_table, plain_columns
from attndrift.data.registry import SUITES
from attndrift.results.columns import Column
from attndrift.results.measures import MEASURES, column_stem, outcome_name
from attndrift.results.tables import retention_measures
from attndrift.retention.image_limits import as_floats, critical

ALL_SETS = "all sets"
FEWEST_SETS = 2
_PLACE = ["model_name", "selection_name", "dataset"]
_FACTS = [*_PLACE, "variant", "learning_rate", "key_rest"]
Row = dict[str, Any]


def set_tables(prepared: Prepared, images: ImageIntervals, settings: AnalysisSettings) -> list[Table]:
    """The tables ``suites`` and ``transfer_matrix``; none where no measure has two transfer sets."""
    runs = prepared.adapted
    sets: dict[str, list[str]] = {}
    for name, measure in retention_measures(runs):
        column = retention(outcome_name(name, measure)).name
        if column in runs and runs[column].notna().any():
            sets.setdefault(measure, []).append(name)
    sets = {measure: names for measure, names in sets.items() if len(names) >= FEWEST_SETS}
    if not sets:
        return []
    suites, matrix = list[Row](), list[Row]()
    for measure, names in sets.items():
        values = [
            _Configuration.of(part, measure, names, images) for _, part in runs.groupby("configuration", sort=False)
        ]
        best = _best_rates(values)
        matrix += [one.matrix_row(best) for one in values if one.sets]
        rows = [row for one in values for row in one.suite_rows(settings)]
        suites += _with_front(rows)
    names = list(dict.fromkeys(name for own in sets.values() for name in own))
    left = left_out(runs)
    return [_suites_table(suites, settings, left), _matrix_table(matrix, names, left)]


def left_out(runs: pd.DataFrame) -> str:
    """A sentence that names the measured sets that have no retention in some of ``runs``, and why; empty where all have."""
    near, other = list[str](), list[str]()
    for name, measure in retention_measures(runs):
        stem = column_stem(outcome_name(name, measure))
        if not {f"{stem}_accuracy", f"{stem}_retention_pct"} <= set(runs):
            continue
        measured = runs[f"{stem}_accuracy"].notna()
        without = measured & runs[f"{stem}_retention_pct"].isna()
        if not without.any():
            continue
        known = f"{stem}_pretrained" in runs and bool(runs.loc[without, f"{stem}_pretrained"].notna().all())
        some = "" if without.sum() == measured.sum() else f" in {without.sum()} of {measured.sum()} runs"
        (near if known else other).append(f"{name} ({MEASURES[measure].label}){some}")
    parts = [f"near chance, so there is nothing to retain: {', '.join(near)}"] if near else []
    parts += [f"no retention in the results: {', '.join(other)}"] if other else []
    return f"Measured, but left out: {'; '.join(parts)}." if parts else ""


@dataclass(frozen=True)
class _Configuration:
    """Retention of one configuration by one measure: (seeds, sets), percent, and its variance over images by set.

    ``image_variance`` (sets,) is that of the mean over seeds; NaN where it is not known which images were right.
    """

    facts: Row
    measure: str
    sets: list[str]
    seeds: Floats
    image_variance: Floats
    change: Floats

    @staticmethod
    def of(runs: pd.DataFrame, measure: str, names: Sequence[str], images: ImageIntervals) -> _Configuration:
        chooser = accuracy_column(runs, *(one.name for one in ACCURACIES))
        first = runs.iloc[0]
        facts = {name: first[name] for name in ("configuration", *_FACTS)} | {
            "accuracy": number(runs["test_accuracy"].mean()) if runs["test_accuracy"].notna().any() else None,
            "chooser": number(runs[chooser].mean()) if chooser else None,
            "n_seeds": int(runs["replicate"].nunique()),
        }
        # Sets that some of the runs lack would make their mean another measure.
        known = [
            name
            for name in names
            if runs.get(retention(outcome_name(name, measure)).name, pd.Series([None])).notna().all()
        ]
        of_seeds = runs.groupby("replicate", sort=True)[
            [retention(outcome_name(name, measure)).name for name in known]
        ].mean()
        variance = [_image_variance(runs, name, measure, images) for name in known]
        change = [_change(runs, name, measure) for name in known]
        return _Configuration(
            facts, measure, known, of_seeds.to_numpy(dtype=float), as_floats(variance), as_floats(change)
        )

    def matrix_row(self, best: set[str]) -> Row:
        """A row of the matrix: mean and deviation over seeds of each set."""
        means = self.seeds.mean(axis=0)
        row = self.facts | {"measure": self.measure, "best_rate": self.facts["configuration"] in best}
        for place, name in enumerate(self.sets):
            sd = float(self.seeds[:, place].std(ddof=1)) if len(self.seeds) > 1 else None
            row |= {f"set_{name}": float(means[place]), f"set_{name}_sd": sd}
        return row | {"mean": float(means.mean()), "worst": float(means.min())}

    def suite_rows(self, settings: AnalysisSettings) -> Iterator[Row]:
        """A row for each suite that the sets hold, and for all of them."""
        for suite, names in suites_of(self.sets, str(self.facts["dataset"])).items():
            places = [self.sets.index(name) for name in names]
            seeds, variance = self.seeds[:, places], self.image_variance[places]
            means = seeds.mean(axis=0)
            worst = int(means.argmin())
            if settings.sets == "sampled":
                limits = sampled_limits(means, settings.level)
            else:
                limits = fixed_limits(seeds, variance, families(names), settings.level)
            yield self.facts | limits | {
                "measure": self.measure, "suite": suite, "n_sets": len(names), "sets": ", ".join(names),
                "mean_pct": float(means.mean()), "mean_change_points": number(self.change[places].mean()),
                "worst_pct": float(means[worst]), "worst_set": names[worst],
            }  # fmt: skip


def suites_of(sets: Sequence[str], target: str) -> dict[str, list[str]]:
    """The registered suites whose sets (but the target) are all among ``sets``, and all sets where no suite is these.

    >>> suites_of(["objects", "critters", "digits"], "tiles")
    {'offline': ['objects', 'critters', 'digits']}
    """
    found: dict[str, list[str]] = {}
    for suite in SUITES:
        members = [name for name in suite.sets if name != target]
        if len(members) >= FEWEST_SETS and set(members) <= set(sets):
            found[suite.name] = [name for name in sets if name in members]
    if len(sets) >= FEWEST_SETS and not any(len(names) == len(sets) for names in found.values()):
        found = {ALL_SETS: list(sets)} | found
    return found


def families(names: Sequence[str]) -> list[str]:
    """For each set the one whose images it shares: ``cifar100`` for ``cifar100+gaussian_noise-3``."""
    return [name.partition("+")[0] for name in names]


def fixed_limits(seeds: Floats, image_variance: Floats, family: Sequence[str], level: float) -> Row:
    """Intervals of mean and worst of these very sets, from retention (seeds, sets) and its variance over images (sets,).

    Variances of seeds and images add up; Student's t with Satterthwaite's degrees of freedom. Sets of one family share their
    images, and count as wholly correlated. The worst has the smallest limits of all sets, each at a level that holds for all
    of them at once (Bonferroni).
    """
    n, k = seeds.shape
    of_images = sum(np.sqrt(image_variance[[one == name for one in family]]).sum() ** 2 for name in set(family)) / k**2
    low, high, over = _limits(seeds.mean(axis=1), float(of_images), level)
    ends = [_limits(seeds[:, place], float(image_variance[place]), 1 - (1 - level) / k) for place in range(k)]
    known = all(np.isfinite([one[0], one[1]]).all() for one in ends)
    reason = None if over else f"{n} seed{'' if n == 1 else 's'}, and it is not known which images were right"
    return {
        "low": number(low), "high": number(high), "over": over, "reason": reason,
        "worst_low": min(one[0] for one in ends) if known else None,
        "worst_high": min(one[1] for one in ends) if known else None,
    }  # fmt: skip


def _limits(seeds: Floats, of_images: float, level: float) -> tuple[float, float, str]:
    """Limits of the mean over seeds, and what they cover; NaN where neither seeds nor images tell."""
    mean, n = float(seeds.mean()), len(seeds)
    if n >= MINIMUM_SEEDS:
        of_seeds = float(standard_error(seeds)) ** 2
        both = np.isfinite(of_images)
        total = of_seeds + (of_images if both else 0.0)
        if total == 0:
            return np.nan, np.nan, ""
        freedom = total**2 / (of_seeds**2 / (n - 1)) if of_seeds > 0 else np.inf
        half = float(special.stdtrit(min(freedom, 1e9), (1 + level) / 2)) * np.sqrt(total)
        return mean - half, mean + half, "images and seeds" if both else "seeds"
    if not np.isfinite(of_images):
        return np.nan, np.nan, ""
    half = critical(level) * np.sqrt(of_images)
    return mean - half, mean + half, "images"


def sampled_limits(means: Floats, level: float) -> Row:
    """Interval of the mean over all sets like these: Student's t over the means of the sets."""
    low, high = (number(end) for end in t_limits(means, level))
    few = f"{len(means)} sets: an interval over sets needs {MINIMUM_SEEDS}"
    return {
        "low": low, "high": high, "over": "" if low is None else "sets", "worst_low": None, "worst_high": None,
        "reason": few if low is None else "the worst of sampled sets is none of all sets",
    }  # fmt: skip


def _image_variance(runs: pd.DataFrame, name: str, measure: str, images: ImageIntervals) -> float:
    """Of the retention (percent), mean over the runs, over other test images: the delta method for a ratio of means."""
    bits = [images.bits(run, outcome_name(name, measure)) for run in runs.to_dict("records")]
    if any(one is None for one in bits) or len({len(one.adapted) for one in bits if one is not None}) != 1:
        return float("nan")
    before = np.mean([one.pretrained for one in bits if one is not None], axis=0)
    after = np.mean([one.adapted for one in bits if one is not None], axis=0)
    if before.mean() == 0 or len(before) < FEWEST_SETS:
        return float("nan")
    influence = (after - after.mean() / before.mean() * before) / before.mean()
    return float(100.0**2 * influence.var(ddof=1) / len(influence))


def _change(runs: pd.DataFrame, name: str, measure: str) -> float:
    columns = [f"transfer_{name}_{measure}_{end}" for end in ("accuracy", "pretrained")]
    if not all(column in runs for column in columns):
        return float("nan")
    after, before = (runs[column].to_numpy(dtype=float, na_value=np.nan) for column in columns)
    return float(100.0 * (after - before).mean())


def _best_rates(values: Sequence[_Configuration]) -> set[str]:
    """Of each method on each dataset, the configuration with the best validation accuracy."""
    best: dict[tuple[Any, ...], Row] = {}
    for one in values:
        place = tuple(one.facts[name] for name in (*_PLACE, "variant", "key_rest"))
        score = one.facts["chooser"]
        if place not in best or (score is not None and score > (best[place]["chooser"] or -1.0)):
            best[place] = one.facts
    return {facts["configuration"] for facts in best.values()}


def _with_front(rows: list[Row]) -> list[Row]:
    """``rows`` with ``pareto``: on the front of accuracy and mean retention, of one dataset, measure and suite."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in (*_PLACE, "measure", "suite", "sets")), []).append(row)
    for group in groups.values():
        known = [row for row in group if row["accuracy"] is not None]
        front = on_front(*(np.array([np.round(row[name], 10) for row in known]) for name in ("accuracy", "mean_pct")))
        for row, value in zip(known, front, strict=True):
            row["pareto"] = bool(value)
    return [row for group in groups.values() for row in group]


_IDENTITY = (
    ("measure", "Measure"), ("model_name", "Model"), ("selection_name", "Selection"), ("dataset", "Dataset"),
    ("configuration", "Configuration"), ("variant", "Method"), ("learning_rate", "Rate"), ("n_seeds", "Seeds"),
)  # fmt: skip
_ACCURACY = Column(name="accuracy", label="Test accuracy", unit="%", digits=2, scale=100.0)


def _percent(name: str, label: str, sd: str | None = None) -> Column:
    return Column(name=name, label=label, unit="%", digits=1, sd=sd)


def _suites_table(rows: list[Row], settings: AnalysisSettings, left: str) -> Table:
    columns = [
        *plain_columns(("suite", "Suite"), *_IDENTITY, ("n_sets", "Sets")), _ACCURACY, _percent("mean_pct", "Mean retention"),
        _percent("low", "Low"), _percent("high", "High"), *plain_columns(("over", "Interval over")),
        Column(name="mean_change_points", label="Mean change", unit="points", digits=2, signed=True),
        _percent("worst_pct", "Worst retention"), *plain_columns(("worst_set", "Worst set")), _percent("worst_low", "Worst, low"),
        _percent("worst_high", "Worst, high"), *plain_columns(("pareto", "On the front"), ("reason", "Note"), ("sets", "Which sets")),
    ]  # fmt: skip
    of = {
        "fixed": "Sets are fixed: intervals are about these very sets. `over` says whether they cover other test images, other seeds, or both.",
        "sampled": "Sets are sampled: intervals cover other sets, from the means of these; a shift of all sets by the seeds is not in them.",
    }
    notes = [
        f"{of[settings.sets]} {settings.level:.0%}. Mean and worst are over sets, of means over seeds.",
        "The front is that of test accuracy and mean retention, and ignores their uncertainty.",
        *([left] if left else []),
    ]
    return filled_table("suites", "Retention over suites of transfer sets", columns, rows, notes)


def _matrix_table(rows: list[Row], sets: Sequence[str], left: str) -> Table:
    columns = [
        *plain_columns(*_IDENTITY), _ACCURACY, *(_percent(f"set_{name}", name, f"set_{name}_sd") for name in sets),
        _percent("mean", "Mean"), _percent("worst", "Worst"), *plain_columns(("best_rate", "Best rate of its method")),
    ]  # fmt: skip
    notes = [
        "Retention, percent of the pretrained model's accuracy on each transfer set: mean and sample standard deviation over "
        "seeds. Empty: the target itself, a set that was not measured, or one where the pretrained model is near chance.",
        *([left] if left else []),
    ]
    return filled_table("transfer_matrix", "Targets and transfer sets: what is retained", columns, rows, notes)
