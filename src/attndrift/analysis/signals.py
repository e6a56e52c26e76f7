"""Which signal goes with the retention of what a model could do: alone, beside another one, and given another one.

A target is one transfer set of one (model, selection, dataset); signals are never pooled over several. Its units are
configurations, means over their seeds. To rank in sample is one thing; only a signal that tells the retention of
configurations left out of its fit predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from attndrift.analysis.configurations import Prepared
from attndrift.analysis.contrasts import UNCORRECTED
from attndrift.analysis.held_out import falling_curve, folds_of, gain_p, held_out_errors
from attndrift.analysis.intervals import holm, ranks, spearman, spearman_limits
from attndrift.analysis.means import seeds_in
from attndrift.analysis.measures import retention
from attndrift.analysis.numbers import Floats, by_gaps, number
from attndrift.analysis.rank_intervals import (
    difference_limits,
    difference_p,
    most_tied,
    partial_limits,
    partial_p,
    partial_rho,
    share_won,
    why_none,
)
from attndrift.analysis.result import Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.signal_sources import MOMENTS, SignalSource, signals
from attndrift.results.columns import Column
from attndrift.results.means import SEEDS

PREDICTS, RANKS, BETTER, ADDS = "predicts", "ranks in sample", "ranks better", "adds"
NO_EVIDENCE, DESCRIPTIVE, TOO_FEW, UNTESTED = "no evidence", "descriptive", "too few", "no test"
TARGET = ("model_name", "selection_name", "dataset", "transfer_set", "when")
Row = dict[str, Any]
Rows = list[Row]


@dataclass(frozen=True)
class Target:
    """One transfer set of one (model, selection, dataset).

    Attributes:
        rows: places of its runs, those with a retention.
        codes: the configuration of each of these runs, 0..n-1.
        kept: mean retention of each configuration, percent.
        group: the group of each of its runs, by method; ``names`` of them.
    """

    model_name: str
    selection_name: str
    dataset: str
    transfer_set: str
    rows: NDArray[np.intp]
    codes: NDArray[np.intp]
    kept_runs: Floats
    kept: Floats
    group: NDArray[np.intp]
    names: list[str]
    n_seeds: int

    @property
    def n(self) -> int:
        """Configurations."""
        return len(self.kept)

    @property
    def identity(self) -> dict[str, Any]:
        """Its columns in a row."""
        return {name: getattr(self, name) for name in TARGET[:-1]}

    def elsewhere(self, other: Target) -> bool:
        """Whether ``other`` differs from it in its dataset alone."""
        same = (name for name in TARGET[:-1] if name != "dataset")
        return other.dataset != self.dataset and all(getattr(other, name) == getattr(self, name) for name in same)

    def means(self, values: Floats) -> Floats:
        """Configuration means of ``values`` (..., runs of the analysis); NaN where no run of a configuration has one."""
        return means_by(self.codes, values[..., self.rows], self.n)

    def strength(self, n: int, settings: AnalysisSettings) -> str | None:
        """The verdict that so few configurations or seeds leave, else None."""
        if n < 3:
            return TOO_FEW
        return DESCRIPTIVE if n < settings.min_configurations or self.n_seeds < 2 else None


def means_by(codes: NDArray[np.intp], values: Floats, n: int) -> Floats:
    """Means of the finite ``values`` (..., runs) of each code; rounded: equal means differ by rounding, which breaks ties."""
    order, starts = np.argsort(codes, kind="stable"), np.searchsorted(np.sort(codes), np.arange(n))
    known = np.isfinite(values)
    counts = np.add.reduceat(known[..., order].astype(float), starts, axis=-1)
    totals = np.add.reduceat(np.where(known, values, 0.0)[..., order], starts, axis=-1)
    return np.round(np.divide(totals, counts, out=np.full(counts.shape, np.nan), where=counts > 0), 12)


def find_targets(prepared: Prepared, settings: AnalysisSettings, notes: list[str]) -> list[Target]:
    """The targets, those with most configurations first where there are more than ``max_targets``."""
    places = ["model_name", "selection_name", "dataset", "configuration", "variant", "replicate"]
    runs = prepared.distinct[[*places, *({SEEDS} & set(prepared.runs.columns))]]
    found: list[Target] = []
    for name in prepared.transfer:
        kept = prepared.runs[retention(name).name].to_numpy(dtype=float)
        usable = runs[np.isfinite(kept[runs.index])]
        for key, part in usable.groupby(["model_name", "selection_name", "dataset"], sort=True):
            rows = part.index.to_numpy(dtype=np.intp)
            codes = pd.factorize(part["configuration"])[0].astype(np.intp)
            group, names = pd.factorize(part["variant"], sort=True)
            n = int(codes.max()) + 1
            seeds = seeds_in(part)
            means = means_by(codes, kept[rows], n)
            model, selection, dataset = map(str, key)
            found.append(
                Target(model, selection, dataset, name, rows, codes, kept[rows], means, group, list(names), seeds)
            )
    if not prepared.transfer:
        notes.append("There is no transfer set: nothing can be said of which signal goes with retention.")
    if len(found) > settings.max_targets:
        notes.append(
            f"Signals are given for {settings.max_targets} of {len(found)} targets, those with most configurations."
        )
        found = sorted(found, key=lambda target: -target.n)[: settings.max_targets]
    return found


@dataclass(frozen=True)
class _Moment:
    """The signals known at one moment: ``runs`` (signals, runs), and of each target ``means`` (signals, configurations)."""

    sources: list[SignalSource]
    runs: Floats
    means: list[Floats]

    @classmethod
    def of(cls, values: pd.DataFrame, targets: list[Target]) -> _Moment:
        sources = [source for source in signals() if source.name in values]
        runs = values[[source.name for source in sources]].to_numpy(dtype=float).T
        return cls(sources, runs, [target.means(runs) for target in targets])


def signal_tables(
    prepared: Prepared, values: dict[str, pd.DataFrame], settings: AnalysisSettings, notes: list[str]
) -> list[Table]:
    """``signals``, ``signals_within_groups``, ``signal_differences`` and ``partial_associations``.

    ``values``: what :func:`~attndrift.analysis.signal_sources.signal_values` returns. Each (target, moment) is a
    question of its own: p values are corrected within it.
    """
    targets = find_targets(prepared, settings, notes)
    moments = {when: _Moment.of(values[when], targets) for when in MOMENTS}
    made: tuple[Rows, Rows, Rows, Rows] = ([], [], [], [])
    for place, target in enumerate(targets):
        for when in MOMENTS:
            for rows, more in zip(made, _of_target(place, targets, moments[when], settings), strict=True):
                rows += [{**target.identity, "when": when, **row} for row in more]
    return _as_tables(settings, *made)


def _of_target(
    place: int, targets: list[Target], moment: _Moment, settings: AnalysisSettings
) -> tuple[Rows, Rows, Rows, Rows]:
    """The rows of the four tables for one target and moment."""
    target, means = targets[place], moment.means[place]
    usable = np.isfinite(means).sum(axis=1) >= 3
    sources = [source for source, enough in zip(moment.sources, usable, strict=True) if enough]
    means, runs = means[usable], moment.runs[usable][:, target.rows]
    others = [(moment.means[i][usable], other.kept) for i, other in enumerate(targets) if target.elsewhere(other)]
    groups = _within_groups(target, sources, runs)
    ranked: Rows = []
    names = {source.name for source in sources}
    of_runs, of_means = rank_known(runs, target.kept_runs)[0], rank_known(means, target.kept)
    for at, source in enumerate(sources):
        within = [row for row in groups if row["signal"] == source.name]
        alone = (float(of_means[0][at]), float(of_means[1][at]), float(of_runs[at]))
        counted = int(np.isfinite(runs[at]).sum())
        learned = [(other[at], kept) for other, kept in others]
        ranked.append(
            _ranked(target, source, means[at], alone, settings) | {"n_runs": counted} | _over_groups(source, within, names, settings)
            | _from_others(source, means[at], target.kept, learned)
        )  # fmt: skip
    differences, partial = _compare(target, sources, means, settings)
    for measured in (True, False):
        # What is known from training anyway is a family of its own: it must not cost the measured ones their power.
        own_family = [row for row in ranked if row["measured"] is measured]
        for name in ("held_out_p", "other_datasets_p"):
            correct(own_family, name)
        conclude(own_family, settings, lambda row: RANKS)
    for row in ranked:
        # What tells the others without ranking them is chance: both tests have to agree.
        if row["verdict"] == RANKS and _below(row["held_out_p_holm"], settings.alpha):
            row["verdict"] = PREDICTS
    conclude(differences, settings, lambda row: f"{row['first' if row['difference'] > 0 else 'second']} {BETTER}")
    conclude(partial, settings, lambda row: ADDS)
    return ranked, groups, differences, partial


def rank_known(values: Floats, outcome: Floats) -> tuple[Floats, Floats]:
    """Spearman's rho and p of each row of ``values`` (signals, units) with ``outcome`` (units,), where both are known."""
    rho, p = np.full((2, len(values)), np.nan)
    for rows, known in by_gaps(np.isfinite(values)):
        rho[rows], p[rows] = spearman(values[np.ix_(rows, known)], outcome[known])
    return rho, p


def _pairs(sources: list[SignalSource]) -> Iterator[tuple[int, int]]:
    """Every headline signal with every other compared signal, each pair once, a headline one first: their places."""
    compared = [(place, source) for place, source in enumerate(sources) if source.compared]
    for (one, first), (two, second) in combinations(compared, 2):
        if first.headline or second.headline:
            yield (one, two) if first.headline else (two, one)


def _below(p: float | None, alpha: float) -> bool:
    return p is not None and p < alpha


def correct(rows: Rows, name: str = "p") -> None:
    """Add Holm's corrected p of the column ``name`` over ``rows``, one family; ``family_size`` tests are in it."""
    corrected = holm([np.nan if row[name] is None else row[name] for row in rows])
    for row, p in zip(rows, corrected, strict=True):
        row[f"{name}_holm"], row["family_size"] = number(p), int(np.isfinite(corrected).sum())


def conclude(rows: Rows, settings: AnalysisSettings, claim: Callable[[dict[str, Any]], str]) -> None:
    """Correct ``rows``, one family, and give each the ``verdict`` that its p allows, where it has none yet."""
    correct(rows)
    for row in rows:
        if row["verdict"] is None:
            made = claim(row) if _below(row["p"], settings.alpha) else NO_EVIDENCE
            holds = made == NO_EVIDENCE or _below(row["p_holm"], settings.alpha)
            row["verdict"] = UNTESTED if row["p"] is None else made if holds else made + UNCORRECTED


def limits_row(low: Any, high: Any, n: int, method: str, reason: str | None) -> dict[str, Any]:
    """``low, high, unit, method, reason`` of one interval over configurations; null with a reason where there is none."""
    if reason is None and not np.isfinite(low):
        reason = "a perfect order has no interval" if n >= 3 else f"{n} configurations: too few"
    none = reason is not None
    return {
        "low": None if none else float(low), "high": None if none else float(high), "unit": "configuration",
        "method": "none" if none else method, "reason": reason,
    }  # fmt: skip


def _ranked(
    target: Target, source: SignalSource, means: Floats, told: tuple[float, float, float], settings: AnalysisSettings
) -> dict[str, Any]:
    """The rank correlation of one signal, in sample, and how well it tells configurations that are left out.

    ``told``: rho and its p over configurations, and rho over runs.
    """
    known = np.isfinite(means)
    x, y, n = means[known], target.kept[known], int(known.sum())
    rho, p, rho_runs = told
    constant = next((name for name, of in (("signal", x), ("retention", y)) if np.ptp(of) <= 1e-12), None)
    reason = f"the {constant} is constant" if constant else why_none(n, max(most_tied(x), most_tied(y)))
    errors, plain = held_out_errors(-source.expected_sign * x, y, folds_of(n))
    return {
        "signal": source.name, "label": source.label, "measured": source.measured,
        "expected_sign": source.expected_sign, "n_configurations": n, "n_seeds": target.n_seeds, "rho": number(rho),
        **limits_row(*spearman_limits(rho, n, settings.level), n, "Fisher's z, Bonett-Wright", reason),
        "p": number(p), "rho_runs": number(rho_runs), "held_out_error": number(errors.mean()),
        "mean_error": number(plain.mean()), "held_out_p": gain_p(errors, plain), "verdict": target.strength(n, settings),
    }  # fmt: skip


def _from_others(source: SignalSource, x: Floats, y: Floats, others: list[tuple[Floats, Floats]]) -> dict[str, Any]:
    """How well the curve through other datasets' configurations tells the retention here."""
    usable = [(a[np.isfinite(a)], b[np.isfinite(a)]) for a, b in others]
    learned, kept = (np.concatenate([pair[i] for pair in usable]) if usable else np.zeros(0) for i in (0, 1))
    if len(learned) < 3:
        return {"other_datasets_error": None, "other_datasets_p": None}
    known = np.isfinite(x)
    curve = falling_curve(-source.expected_sign * learned, kept)
    errors = np.abs(np.interp(-source.expected_sign * x[known], *curve) - y[known])
    return {
        "other_datasets_error": number(errors.mean()),
        "other_datasets_p": gain_p(errors, np.abs(kept.mean() - y[known])),
    }


def _within_groups(target: Target, sources: list[SignalSource], runs: Floats) -> Rows:
    """Spearman over the runs of each method; its learning rates are fixed, its seeds replicate them."""
    of_method = {}
    for place, method in enumerate(target.names):
        inside = target.group == place
        counts = np.isfinite(runs[:, inside]).sum(axis=1)
        of_method[method] = (*rank_known(runs[:, inside], target.kept_runs[inside]), counts)
    rows: Rows = []
    for at, source in enumerate(sources):
        for method, (rho, p, counts) in of_method.items():
            n = int(counts[at])
            reason = (
                None if np.isfinite(rho[at]) else f"n = {n}: too few" if n < 3 else "signal or retention is constant"
            )
            told = {"n": n, "rho": number(rho[at]), "p": number(p[at]), "reason": reason}
            rows.append({"signal": source.name, "method": method} | told)
    return rows


def _over_groups(source: SignalSource, rows: Rows, names: set[str], settings: AnalysisSettings) -> dict[str, Any]:
    """The mean within groups, and a warning where a signed signal goes both ways."""
    rho = [row["rho"] for row in rows if row["rho"] is not None]
    clear = [row for row in rows if row["p"] is not None and row["p"] < settings.alpha]
    up = [row["method"] for row in clear if row["rho"] > 0]
    down = [row["method"] for row in clear if row["rho"] < 0]
    warning = None
    if up and down:
        warning = f"changes its sign: rises with the retention in {', '.join(up)}, falls with it in {', '.join(down)}"
        if not source.absolute and f"abs_{source.name}" in names:
            warning += f"; see abs_{source.name}"
    return {
        "within_mean": number(np.mean(rho)) if rho else None,
        "within_mean_absolute": number(np.mean(np.abs(rho))) if rho else None,
        "n_groups": len(rho),
        "warning": warning,
    }


def _compare(
    target: Target, sources: list[SignalSource], means: Floats, settings: AnalysisSettings
) -> tuple[Rows, Rows]:
    """Rows of ``signal_differences`` and ``partial_associations``; correlations are turned, so that +1 is the order that a
    signal is taken for. None where one of two signals is constant."""
    pairs = np.array(list(_pairs(sources)), dtype=np.intp).reshape(-1, 2)
    turned = means * np.array([source.expected_sign for source in sources])[:, None] if sources else means
    known = np.isfinite(means)
    made: dict[int, tuple[Row, Rows]] = {}
    for chosen, units in by_gaps(known[pairs[:, 0]] & known[pairs[:, 1]]):
        used, at = np.unique(pairs[chosen], return_inverse=True)
        values, outcome = turned[np.ix_(used, units)], target.kept[units]
        place = _Ranks.of(values, outcome)
        for pair, one, two in zip(chosen.tolist(), *at.reshape(-1, 2).T.tolist(), strict=True):
            if len(units) >= 3 and place.varies[one] and place.varies[two]:
                names = (sources[used[one]].name, sources[used[two]].name)
                fixed = target.strength(len(units), settings)
                made[pair] = place.compared(one, two, names, fixed, settings.level)
    ordered = [made[pair] for pair in sorted(made)]
    return [row for row, _ in ordered], [row for _, rows in ordered for row in rows]


@dataclass(frozen=True)
class _Ranks:
    """Signals of the same configurations (signals, units), and their correlations with the outcome and with each other.

    ``plain`` are those of ranks, ``scores`` those of normal scores: (signals + 1, signals + 1), the outcome last.
    """

    values: Floats
    outcome: Floats
    plain: Floats
    scores: Floats
    tied: list[int]
    varies: NDArray[np.bool_]

    @classmethod
    def of(cls, values: Floats, outcome: Floats) -> _Ranks:
        every = np.vstack([values, outcome])
        ranked, scores = ranks(every), ranks(every, normal=True)
        varies = np.any(ranked != 0, axis=1)
        plain, normal = (np.clip(one @ one.T, -1, 1) for one in (ranked, scores))
        return cls(values, outcome, plain, normal, [most_tied(row) for row in every], varies[:-1] & varies[-1])

    def compared(self, one: int, two: int, names: tuple[str, str], fixed: str | None, level: float) -> tuple[Row, Rows]:
        """The row of the difference of two signals, and those of each given the other."""
        n = len(self.outcome)
        x, z, between = (float(self.plain[place]) for place in ((one, -1), (two, -1), (one, two)))
        won, differing = share_won(self.values[one], self.values[two], self.outcome)
        reason = why_none(n, max(self.tied[one], self.tied[two], self.tied[-1]))
        difference: Row = {
            "first": names[0], "second": names[1], "n_configurations": n, "rho_first": x, "rho_second": z,
            "difference": x - z,
            **limits_row(*difference_limits(x, z, between, n, level), n, "Zou, of Bonett-Wright limits", reason),
            "pairs_won": won, "pairs_differing": differing, "share_won": won / differing if differing else None,
            "p": number(difference_p(x, z, between, n)), "verdict": fixed,
        }  # fmt: skip
        rows: Rows = []
        for (own, other), (signal, given) in (((one, two), names), ((two, one), names[::-1])):
            rho, of_scores = (
                partial_rho(of[own, -1], of[other, -1], of[own, other]) for of in (self.plain, self.scores)
            )
            alike = None if np.isfinite(rho) else f"given {given} nothing is left: two orders are nearly the same"
            limits = partial_limits(rho, n, level)
            rows.append(
                {
                    "signal": signal, "given": given, "n_configurations": n, "rho_alone": float(self.plain[own, -1]),
                    "rho": number(rho), **limits_row(*limits, n, "Fisher's z, partial", reason or alike),
                    "p": number(partial_p(rho, of_scores, n)), "verdict": fixed,
                }
            )  # fmt: skip
        return difference, rows


def _column(name: str, label: str = "", unit: str = "", digits: int | None = None, signed: bool = False) -> Column:
    return Column(
        name=name, label=label or name.replace("_", " ").capitalize(), unit=unit, digits=digits, signed=signed
    )


def columns(*names: str) -> list[Column]:
    """Columns by name: ``rho`` and its limits signed with two decimals, errors in points, the rest as it is."""
    found: list[Column] = []
    for name in names:
        if name.startswith(("rho", "difference", "within_mean")) or name in ("low", "high"):
            found.append(_column(name, digits=2, signed=True))
        elif name.endswith(("error", "_pct")):
            found.append(_column(name, unit="points" if name.endswith("error") else "%", digits=1))
        elif name.startswith("share") or name.endswith(("sensitivity", "specificity", "auc")):
            found.append(_column(name, digits=2))
        else:
            found.append(_column(name))
    return found


_LIMITS = ("low", "high", "unit", "method", "reason")


def _as_tables(settings: AnalysisSettings, ranked: Rows, groups: Rows, differences: Rows, partial: Rows) -> list[Table]:
    level = f"{settings.level:.0%} intervals over configurations."
    family = "Holm within one target and moment, measured signals and those known from training apart."
    turned = "Correlations are turned by the expected sign: +1 is a perfect order in the sense the signal is taken for."
    none = [] if ranked else ["No target has three configurations with a retention and a signal."]
    return [
        Table(
            name="signals", title="Which signal goes with retention",
            columns=columns(
                *TARGET, "signal", "label", "measured", "expected_sign", "n_runs", "n_configurations", "n_seeds", "rho", *_LIMITS,
                "p", "p_holm", "rho_runs", "within_mean", "within_mean_absolute", "n_groups", "warning", "held_out_error",
                "mean_error", "held_out_p", "held_out_p_holm", "other_datasets_error", "other_datasets_p",
                "other_datasets_p_holm", "family_size", "verdict",
            ),
            rows=ranked,
            notes=[
                *none, level, family,
                "`held_out_error`: mean absolute error of the retention of a configuration left out, told by a never rising "
                "curve through the others; `mean_error`: told by their mean alone. A signal predicts where the first is smaller.",
            ],
        ),
        Table(
            name="signals_within_groups", title="Spearman with retention within the runs of each method",
            columns=columns(*TARGET, "signal", "method", "n", "rho", "p", "reason"), rows=groups, notes=none,
        ),
        Table(
            name="signal_differences", title="Which of two signals ranks better",
            columns=columns(
                *TARGET, "first", "second", "n_configurations", "rho_first", "rho_second", "difference", *_LIMITS,
                "pairs_won", "pairs_differing", "share_won", "p", "p_holm", "family_size", "verdict",
            ),
            rows=differences,
            notes=[
                *none, turned, level, family,
                "`share_won`: of the pairs of configurations that the two order differently, those that the first has right.",
            ],
        ),
        Table(
            name="partial_associations", title="What a signal adds given another one",
            columns=columns(
                *TARGET, "signal", "given", "n_configurations", "rho_alone", "rho", *_LIMITS, "p", "p_holm", "family_size",
                "verdict",
            ),
            rows=partial, notes=[*none, turned, level, family],
        ),
    ]  # fmt: skip
