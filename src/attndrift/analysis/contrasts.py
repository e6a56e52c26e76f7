"""Differences between methods, and changes against the pretrained model: one estimator, whose replicates are seeds.

The learning rate is a fixed factor of the design. Each seed that ran at all rates gives one number: a weighted sum over
the rates (their mean, the slope against log10 of the rate, or one rate alone). Student's t over these numbers is the
interval and the test. So the dose response is no error, and it does not matter that one seed moves together at all
rates, as it does (the entropy changes of LoRA in the published records: correlation 0.9). Methods are subtracted seed by
seed; where they share no seed, their numbers are compared by Welch's t. Datasets are never averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from attndrift.analysis import intervals
from attndrift.analysis.configurations import Prepared
from attndrift.analysis.measures import ACCURACIES, changes
from attndrift.analysis.numbers import Floats, by_gaps, format_rate
from attndrift.analysis.result import Strength, Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.summary import plain_columns, records
from attndrift.methods.registry import order_of
from attndrift.results.columns import Column
from attndrift.results.means import SEEDS, sd_column, seeds_behind

MEAN, SLOPE, ONE = "mean of rates", "per tenfold rate", "one rate"
GROUP = ["model_name", "selection_name", "dataset", "key_rest"]
LOWER, HIGHER, EQUIVALENT, NONE, UNTESTED = "lower", "higher", "equivalent", "no evidence", "no test"
UNCORRECTED = ", not after correction"
_MOST_GROUPS = 4
Row = dict[str, Any]
Moments = tuple[float, float, int]


@dataclass(frozen=True)
class Quantity:
    """One measured column as it is compared: ``zero`` is the pretrained value, NaN where there is none.

    ``margin``: differences that small are none (TOST); NaN: not asked. ``kind`` names the family of its tests.
    """

    name: str
    unit: str
    kind: str
    scale: float = 1.0
    zero: float = float("nan")
    margin: float = float("nan")


def quantities(prepared: Prepared, settings: AnalysisSettings) -> list[Quantity]:
    """Every measure once: of a transfer set its retention, of validation and test accuracy the one that is reported."""
    points, percent = settings.equivalent_within_points, settings.equivalent_within_pct
    named = {measure.name for measure in prepared.measures}
    structural = {measure.name for measure in changes()}
    validation, test = (measure.name for measure in ACCURACIES)
    found: list[Quantity] = []
    for measure in prepared.measures:
        name = measure.name
        if name.endswith("_retention_pct"):
            found.append(Quantity(name, "points", "transfer", 1.0, 100.0, points))
        elif name in structural:
            found.append(Quantity(name, "%", "attention", 1.0, 0.0, percent))
        elif name == validation and test in named:
            continue
        elif measure.scale == 100.0 and name.removesuffix("_accuracy") + "_retention_pct" not in named:
            found.append(Quantity(name, "points", "accuracy", 100.0, margin=points))
        elif measure.scale != 100.0:
            found.append(Quantity(name, measure.unit, "drift"))
    return found


@dataclass(frozen=True)
class Cells:
    """One method under one set of conditions: ``values`` (seeds, rates, quantities), NaN where there is no run.

    ``given``: where a row is a mean over several seeds, (rate, quantity) -> its mean, standard deviation and seeds.
    """

    values: Floats
    seeds: NDArray[Any]
    rates: Floats
    given: Mapping[tuple[float, int], Moments] = field(default_factory=dict)

    @classmethod
    def of(cls, runs: pd.DataFrame, wanted: Sequence[Quantity]) -> Cells:
        """The means of the runs of each seed and rate; a rate that is not given is -1."""
        rates, rate = np.unique(runs["learning_rate"].fillna(-1.0).to_numpy(dtype=float), return_inverse=True)
        seeds, seed = np.unique(runs["replicate"].to_numpy(dtype=str), return_inverse=True)
        values = runs[[q.name for q in wanted]].to_numpy(dtype=float) * [q.scale for q in wanted]
        known = np.isfinite(values)
        total, count = np.zeros((2, len(seeds), len(rates), len(wanted)))
        np.add.at(total, (seed, rate), np.where(known, values, 0))
        np.add.at(count, (seed, rate), known)
        means = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
        return cls(means, seeds, rates, _given(runs, wanted, rates[rate]))

    def at(self, rates: Floats) -> Floats:
        return self.values[:, np.isin(self.rates, rates)]

    def of_seeds(self, seeds: NDArray[Any]) -> Cells:
        return Cells(self.values[np.isin(self.seeds, seeds)], seeds, self.rates, self.given)

    def moments(self, rate: float, quantity: int) -> Moments | None:
        """Mean, standard deviation and number of seeds at one rate, given or of single runs; None where nothing is."""
        if (rate, quantity) in self.given:
            return self.given[rate, quantity]
        values = self.values[:, self.rates == rate, quantity].ravel()
        values = values[np.isfinite(values)]
        return (float(values.mean()), float(values.std(ddof=1)), len(values)) if len(values) > 1 else None


def _given(runs: pd.DataFrame, wanted: Sequence[Quantity], rates: Floats) -> dict[tuple[float, int], Moments]:
    """The rows that are means with a standard deviation, each alone at its rate."""
    behind = seeds_behind(runs).to_numpy()
    found: dict[tuple[float, int], Moments] = {}
    for place in np.flatnonzero(behind > 1) if (behind > 1).any() else ():
        for quantity, one in enumerate(wanted):
            if sd_column(one.name) in runs.columns and (rates == rates[place]).sum() == 1:
                mean, sd = (one.scale * float(runs[name].iloc[place]) for name in (one.name, sd_column(one.name)))
                if np.isfinite(mean) and np.isfinite(sd):
                    found[float(rates[place]), quantity] = mean, sd, int(behind[place])
    return found


def contrasts(rates: Floats) -> Iterator[tuple[str, Floats]]:
    """(name, weights over the rates): the mean and the slope, where there are two rates and more."""
    n = len(rates)
    if n < 2:
        return
    yield MEAN, np.full(n, 1 / n)
    if (rates > 0).all():
        x = np.log10(rates) - np.log10(rates).mean()
        yield SLOPE, x / (x**2).sum()


def _used(known: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rates and seeds that a contrast over rates can use, from ``known`` (seeds, rates).

    Rates with fewer than three seeds are left out where others have them; the seeds are those with every such rate.
    """
    count = known.sum(axis=0)
    rates = np.flatnonzero(count >= (intervals.MINIMUM_SEEDS if (count >= intervals.MINIMUM_SEEDS).any() else 1))
    return rates, np.flatnonzero(known[:, rates].all(axis=1))


def _cases(values: Floats, rates: Floats) -> Iterator[tuple[NDArray[np.intp], str, Floats, NDArray[np.intp], Floats]]:
    """(columns, contrast, weights, seeds, rates) of every contrast; columns with equal gaps are one case."""
    known = np.isfinite(values)
    patterns, pattern = np.unique(known.reshape(-1, values.shape[2]), axis=1, return_inverse=True)
    for place in range(patterns.shape[1]):
        mask = patterns[:, place].reshape(known.shape[:2])
        columns = np.flatnonzero(pattern.ravel() == place)
        used, seeds = _used(mask)
        for name, weights in contrasts(rates[used]):
            whole = np.zeros(len(rates))
            whole[used] = weights
            yield columns, name, whole, seeds, rates[used]
        for rate in np.flatnonzero(mask.any(axis=0)):
            yield columns, ONE, np.eye(len(rates))[rate], np.flatnonzero(mask[:, rate]), rates[[rate]]


def _per_seed(values: Floats, weights: Floats, seeds: NDArray[np.intp], columns: NDArray[np.intp]) -> Floats:
    """The contrast of each seed: (columns, seeds). Rates of no weight may be missing."""
    used = weights != 0
    return np.einsum("srm,r->ms", values[np.ix_(seeds, used, columns)], weights[used])


def compare(first: Cells, second: Cells | None, wanted: Sequence[Quantity], settings: AnalysisSettings) -> list[Row]:
    """Rows of ``first - second``, or of ``first`` against the pretrained model; not corrected yet."""
    zero, margins = np.array([[q.zero, q.margin] for q in wanted]).reshape(-1, 2).T
    against = second is not None
    if second is None:
        second = Cells(np.broadcast_to(np.nan_to_num(zero), first.values.shape), first.seeds, first.rates)
    rates, shared = np.intersect1d(first.rates, second.rates), np.intersect1d(first.seeds, second.seeds)
    if len(shared):
        first, second = first.of_seeds(shared), second.of_seeds(shared)
    one, two = first.at(rates), second.at(rates)
    rows: list[Row] = []
    # Without a shared seed each method has its own seeds: those at all its rates.
    for columns, name, weights, seeds, used in _cases(one - two if len(shared) else one, rates):
        if not against and name != SLOPE:
            columns = columns[np.isfinite(zero[columns])]
        known = np.isfinite(two[:, weights != 0][:, :, columns]).all(axis=(1, 2))
        theirs = seeds if len(shared) else np.flatnonzero(known)
        if not (len(columns) and len(seeds) and len(theirs)):
            continue
        mine, other = _per_seed(one, weights, seeds, columns), _per_seed(two, weights, theirs, columns)
        margin = np.full(len(columns), np.nan) if name == SLOPE else margins[columns]
        found = estimate(mine, other, margin, settings.level, paired=len(shared) > 0)
        n = min(len(seeds), len(theirs))
        words = method_of(n, len(used), paired=len(shared) > 0)
        common = {
            "contrast": name, "n_rates": len(used), "rates": ", ".join(map(format_rate, used)), "n_seeds": n,
            "learning_rate": float(used[0]) if name == ONE and used[0] > 0 else None,
        }  # fmt: skip
        for place, column in enumerate(columns):
            numbers = {key: array[place] for key, array in found.items()}
            quantity = {"measure": wanted[column].name, "unit": wanted[column].unit}
            row = quantity | common | numbers | words(bool(np.isfinite(numbers["low"])))
            if name == ONE and (first.given or second.given):
                at, zero_of = float(used[0]), (float(zero[column]), 0.0)
                theirs_given = second.moments(at, int(column)) if against else None
                row |= of_moments(first.moments(at, int(column)), theirs_given, zero_of if not against else None,
                                  float(margin[place]), settings.level)  # fmt: skip
            rows.append(row)
    return rows


def estimate(first: Floats, second: Floats, margin: Floats, level: float, *, paired: bool) -> dict[str, Floats]:
    """Means, spread, limits and p values of first - second, each (quantities, seeds)."""
    found = {"first_mean": first.mean(axis=1), "second_mean": second.mean(axis=1)}
    found["estimate"] = found["first_mean"] - found["second_mean"]
    if paired:
        values = first - second
        found["sd"] = intervals.standard_error(values) * np.sqrt(values.shape[1])
        p = intervals.t_p(values), intervals.equivalence_p(values, margin)
        numbers = *intervals.t_limits(values, level), *p
    else:
        found["sd"] = np.full(len(first), np.nan)
        numbers = intervals.welch(first, second, level, margin)
    return found | dict(zip(("low", "high", "p", "p_equivalence"), numbers, strict=True))


def of_moments(
    first: Moments | None, second: Moments | None, zero: tuple[float, float] | None, margin: float, level: float
) -> Row:
    """What the means, standard deviations and seeds of two methods (or of one, against ``zero``) replace in a row; empty
    where they are not known."""
    if first is not None and zero is not None:
        second = (*zero, first[2])
    if first is None or second is None:
        return {}
    low, high, p, equivalence = (float(one) for one in intervals.welch_of(first, second, level, margin))
    n = min(first[2], second[2])
    words = method_of(n, paired=False)(np.isfinite(low))
    if words["reason"] is None:
        words["method"] = "Welch's t, given means" if zero is None else "Student's t, given mean and sd"
    return words | {
        "n_seeds": n, "sd": float(np.hypot(first[1], second[1])), "low": low, "high": high, "p": p,
        "p_equivalence": equivalence,
    }  # fmt: skip


def method_of(n: int, rates: int = 1, *, paired: bool) -> Callable[[bool], Row]:
    """``method`` and ``reason`` of a row of ``n`` seeds, by whether it has an interval."""
    where = f" at all {rates} rates" if rates > 1 else ""
    few = f"{n} seed{'' if n == 1 else 's'}{where}: a test needs {intervals.MINIMUM_SEEDS}"
    reason = few if n < intervals.MINIMUM_SEEDS else f"all {n} seeds agree"
    name = "Student's t" if paired else "Welch's t, no shared seed"
    return lambda known: {"method": name if known else "none", "reason": None if known else reason}


# --- the tables ---------------------------------------------------------------------------------------------------


def effect_tables(
    prepared: Prepared, blocks: pd.DataFrame, settings: AnalysisSettings, notes: list[str]
) -> list[Table]:
    """``differences`` between methods on equal conditions, and ``changes`` of each against the pretrained model.

    ``blocks`` are changes of early, middle and late blocks, a row a run of ``prepared.runs``; its columns join the changes.
    """
    wanted = quantities(prepared, settings)
    of_blocks = [Quantity(str(name), "%", "blocks", 1.0, 0.0, settings.equivalent_within_pct) for name in blocks]
    runs = narrow(prepared.distinct, (one.name for one in wanted))
    return [
        _differences(runs, wanted, settings, notes),
        _changes(runs.join(blocks), [*wanted, *of_blocks], settings, notes),
    ]


def narrow(runs: pd.DataFrame, measures: Iterable[str]) -> pd.DataFrame:
    """The columns that tell methods, rates and seeds apart, and ``measures``: each group would copy all the hundreds."""
    names = [*GROUP, "variant", "method", "has_addition", "replicate", "rate_text", "learning_rate", SEEDS]
    names += [name for one in measures for name in (one, sd_column(one))]
    return runs[[name for name in dict.fromkeys(names) if name in runs]]


def _differences(runs: pd.DataFrame, wanted: list[Quantity], settings: AnalysisSettings, notes: list[str]) -> Table:
    candidates: list[tuple[tuple[Any, ...], list[Any], str, str, pd.DataFrame]] = []
    for keys, group in runs.groupby(GROUP, sort=True):
        cells: dict[str, set[tuple[str, str]]] = {}
        for name, rate, seed in zip(
            *(group[one].tolist() for one in ("variant", "rate_text", "replicate")), strict=True
        ):
            cells.setdefault(str(name), set()).add((rate, seed))
        for kind, one, two in pairs_of(group):
            if {rate for rate, _ in cells[one]} & {rate for rate, _ in cells[two]}:
                order = (kind, -len(cells[one] & cells[two]), *keys, one, two)
                candidates.append((order, list(keys), one, two, group))
    candidates.sort(key=lambda item: item[0])
    rows: list[Row] = []
    made: dict[tuple[Any, ...], Cells] = {}
    for kind, most in ((0, "methods"), (1, "additions to a method")):
        own = [item for item in candidates if item[0][0] == kind]
        limit = _MOST_GROUPS * settings.max_method_pairs
        if len(own) > limit:
            notes.append(
                f"Compared are {limit} of {len(own)} pairs of {most} and datasets, those with most shared runs."
            )
        for _, place, one, two, group in own[:limit]:
            for name in (one, two):
                if (*place, name) not in made:
                    made[*place, name] = Cells.of(group[group["variant"] == name], wanted)
            first, second = made[*place, one], made[*place, two]
            identity = {**dict(zip(GROUP, place, strict=True)), "first": one, "second": two}
            rows += [identity | row for row in compare(first, second, wanted, settings)]
    if not rows:
        notes.append("No two methods share dataset, settings and learning rate: none can be compared at equal rates.")
    columns = [("first", "First"), ("second", "Second")]
    return _table(
        "differences", "Differences between methods at equal settings (first - second)", rows, columns, settings,
        [] if rows else ["No two methods share dataset, settings and learning rate."],
    )  # fmt: skip


def pairs_of(runs: pd.DataFrame) -> list[tuple[int, str, str]]:
    """(kind, first, second): 0 two methods, 1 a method and the same with a preservation loss, a guard, frozen blocks, a text tower.

    ``first`` stands earlier in the order of methods, and is the one without the addition. Other pairs differ in two
    things at once and are not compared.
    """
    facts = {
        str(variant): (bool(added), str(method))
        for variant, method, added in runs[["variant", "method", "has_addition"]].drop_duplicates("variant").to_numpy()
    }
    names = sorted(facts, key=lambda name: (order_of(facts[name][1]), facts[name], name))
    found: list[tuple[int, str, str]] = []
    for one, two in combinations(names, 2):
        (plus, method), (plus_two, method_two) = facts[one], facts[two]
        if not plus and not plus_two:
            found.append((0, one, two))
        elif not plus and method == method_two:
            found.append((1, one, two))
    return found


def _changes(runs: pd.DataFrame, wanted: list[Quantity], settings: AnalysisSettings, notes: list[str]) -> Table:
    groups = sorted(runs.groupby([*GROUP, "variant"], sort=True), key=lambda item: (-len(item[1]), item[0]))
    limit = _MOST_GROUPS * settings.max_method_pairs
    if len(groups) > limit:
        notes.append(f"Changes are tested for {limit} of {len(groups)} methods and datasets, those with most runs.")
    rows: list[Row] = []
    for keys, group in sorted(groups[:limit], key=lambda item: item[0]):
        identity = dict(zip([*GROUP, "variant"], keys, strict=True))
        found = compare(Cells.of(group, wanted), None, wanted, settings)
        together = _correlations(group, [row["measure"] for row in found if row["contrast"] == SLOPE])
        rows += [
            identity | row | (together.get(row["measure"], {}) if row["contrast"] == SLOPE else {}) for row in found
        ]
    title = "Changes against the pretrained model, and with the learning rate"
    return _table(
        "changes", title, rows, [("variant", "Method")], settings,
        ["Correlations are over single runs; they describe, the slope is what is tested."]
        if rows else ["No run carries a change."],
    )  # fmt: skip


def _correlations(runs: pd.DataFrame, names: list[str]) -> dict[str, dict[str, float]]:
    """Pearson's and Spearman's correlation of each measure with log10 of the rate, over runs."""
    result: dict[str, dict[str, float]] = {}
    own = runs[[*names, "learning_rate"]]
    own = own[own["learning_rate"] > 0]
    x, values = np.log10(own["learning_rate"].to_numpy(dtype=float)), own[names].to_numpy(dtype=float).T
    for rows, known in by_gaps(np.isfinite(values)):
        x_known, y = x[known], values[np.ix_(rows, known)]
        if len(known) < 3 or intervals.standard_error(x_known) == 0:
            continue
        centred = y - y.mean(axis=1, keepdims=True), x_known - x_known.mean()
        lengths = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum())
        pearson = np.divide(centred[0] @ centred[1], lengths, out=np.zeros(len(y)), where=lengths > 0)
        spearman = intervals.ranks(y) @ intervals.ranks(x_known)
        for place in np.flatnonzero(intervals.standard_error(y) > 0):
            result[names[rows[place]]] = {"pearson": float(pearson[place]), "spearman": float(spearman[place])}
    return result


def _table(
    name: str,
    title: str,
    rows: list[Row],
    identity: list[tuple[str, str]],
    settings: AnalysisSettings,
    notes: list[str],
) -> Table:
    """``rows`` with Holm's correction, and what may be said of each."""
    columns = plain_columns(
        ("model_name", "Model"), ("selection_name", "Selection"), ("dataset", "Dataset"), ("key_rest", "Conditions"),
        *identity, ("measure", "Measure"), ("unit", "Unit"), ("contrast", "Over the rates"), ("learning_rate", "Rate"),
        ("rates", "Rates"), ("n_rates", "Number of rates"), ("n_seeds", "Seeds"),
    )  # fmt: skip
    if name == "differences":
        columns += [
            Column(name="first_mean", label="Mean of first"),
            Column(name="second_mean", label="Mean of second"),
        ]
    columns += plain_columns(
        ("estimate", "Estimate"), ("sd", "Sd over seeds"), ("low", "Low"), ("high", "High"), ("p", "p"),
        ("p_holm", "p, Holm"), ("family_size", "Family"), ("p_equivalence", "p of equivalence, Holm"),
        *((("pearson", "Pearson"), ("spearman", "Spearman")) if name == "changes" else ()),
        ("verdict", "Verdict"), ("method", "Statistic"), ("reason", "Note"),
    )  # fmt: skip
    frame = pd.DataFrame(rows, columns=[*dict.fromkeys(key for row in rows for key in row)])
    if len(frame):
        frame = correct(frame, settings)
    for column in columns:
        if column.name not in frame.columns:
            frame[column.name] = None
    percent = f"{100 * settings.level:g}%"
    notes = [
        f"{percent} intervals of Student's t over seeds. p is corrected by Holm over the family: the tests of one "
        "measure and contrast" + (", of one method with all others." if name == "differences" else "."),
        f"Equivalent: within {settings.equivalent_within_points:g} points (accuracy, retention) or "
        f"{settings.equivalent_within_pct:g}% (attention), by two one-sided tests.",
        *notes,
    ]
    return Table(
        name=name, title=title, columns=columns, rows=records(frame[[c.name for c in columns]]), notes=notes
    )  # fmt: skip


def difference_columns() -> list[Column]:
    """The means of two methods in percent, their difference in points, and its limits."""
    return [
        Column(name="first_mean", label="Mean of first", unit="%", digits=2),
        Column(name="second_mean", label="Mean of second", unit="%", digits=2),
        Column(name="estimate", label="Difference", unit="points", digits=2, signed=True, sd="sd"),
        Column(name="low", label="Low", unit="points", digits=2, signed=True),
        Column(name="high", label="High", unit="points", digits=2, signed=True),
    ]


def strength_of(row: Row) -> Strength:
    """What a finding may say of a row that :func:`correct` made."""
    if row["verdict"] == UNTESTED:
        return "descriptive"
    return "no evidence" if row["verdict"] == NONE or row["verdict"].endswith(UNCORRECTED) else "supported"


def correct(frame: pd.DataFrame, settings: AnalysisSettings) -> pd.DataFrame:
    """``frame`` with ``p_holm``, ``family_size``, ``p_equivalence`` corrected, and ``verdict``; a row a test.

    A family is one question: one measure, one contrast, and one method with all others, on all datasets.
    """
    question = [name for name in ("measure", "contrast", "first") if name in frame]
    p, p_equivalence = (frame[name].to_numpy(dtype=float, copy=True) for name in ("p", "p_equivalence"))
    p_holm, family_size = np.full(len(frame), np.nan), np.zeros(len(frame), dtype=np.int64)
    for rows in frame.groupby(question, sort=False).indices.values():
        p_holm[rows], family_size[rows] = intervals.holm(p[rows]), np.isfinite(p[rows]).sum()
        p_equivalence[rows] = intervals.holm(p_equivalence[rows])
    frame = frame.assign(p_holm=p_holm, family_size=family_size, p_equivalence=p_equivalence)
    direction = np.where(frame["estimate"] < 0, LOWER, HIGHER)
    tests = [
        frame["p"].isna(),
        frame["p_holm"] < settings.alpha,
        frame["p_equivalence"] < settings.alpha,
        (frame["low"] > 0) | (frame["high"] < 0),
    ]
    words: list[Any] = [UNTESTED, direction, EQUIVALENT, [f"{word}{UNCORRECTED}" for word in direction]]
    return frame.assign(verdict=np.select(tests, words, NONE))
