"""Which signal predicts the retention of zero-shot accuracy, at the end and after the first epoch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from attndrift.analysis.bootstrap import (
    percentile_interval,
    rank_correlation_draws,
    resample_counts,
    resampled_ranks,
    roc_area_draws,
)
from attndrift.analysis.configurations import Prepared, evidence_label
from attndrift.analysis.dynamics import History, first_epoch_rows
from attndrift.analysis.hypothesis_tests import correct_family, is_constant, spearman
from attndrift.analysis.measures import SignalSource, retention, signals
from attndrift.analysis.numbers import Floats, number
from attndrift.analysis.result import Choice, GroupCorrelation, Interval, SelectionRules, Signal
from attndrift.analysis.settings import AnalysisSettings
from attndrift.methods.registry import PRETRAINED

ALL_RUNS = "all runs"
_LISTED = 20
_GROUPS_LISTED = 60


@dataclass
class _Scope:
    name: str
    rows: NDArray[np.intp]


def signal_scores(
    prepared: Prepared, history: History, epoch: Floats, settings: AnalysisSettings, notes: list[str]
) -> list[Signal]:
    """Spearman, within-group Spearman and ROC area of every signal, transfer set, scope and moment."""
    result: list[Signal] = []
    runs = prepared.runs
    adapted = (runs["method"] != PRETRAINED).to_numpy()
    early_rows = first_epoch_rows(history, epoch)
    if not (early_rows[adapted] >= 0).any():
        notes.append("The history has no evaluation within the first epoch: nothing is predicted from it.")
    for name in prepared.transfer:
        kept = runs[retention(name).name].to_numpy(dtype=float)
        for scope in _scopes(runs, adapted & np.isfinite(kept)):
            samples: dict[bytes, _Sample] = {}
            for when in ("final", "first epoch"):
                for source in signals():
                    values = _values(runs, history, early_rows, source, when)
                    if values is None:
                        continue
                    rows = scope.rows[np.isfinite(values[scope.rows])]
                    if len(rows) < 3:
                        continue
                    key = rows.tobytes()
                    if key not in samples:
                        samples[key] = _Sample(prepared, settings, scope.name, rows, kept[rows])
                    result.append(_score(samples[key], name, when, source, values[rows]))
    if not prepared.transfer:
        notes.append("There is no transfer set: nothing can be said about which signal predicts retention.")
    for when in ("final", "first epoch"):
        chosen = [s for s in result if s.scope == ALL_RUNS and s.when == when]
        correct_family([s.spearman_runs for s in chosen], f"signals, {when}, runs: all signals and transfer sets")
        correct_family(
            [s.spearman_configurations for s in chosen],
            f"signals, {when}, configurations: all signals and transfer sets",
        )
    return result


def _scopes(runs: pd.DataFrame, usable: NDArray[np.bool_]) -> list[_Scope]:
    every = np.flatnonzero(usable)
    result = [_Scope(ALL_RUNS, every)]
    for column in ("model_name", "dataset"):
        values = runs[column].astype(object).to_numpy()
        names = sorted(set(values[every]))
        if len(names) > 1:
            result += [
                _Scope(f"{column.removesuffix('_name')} {name}", every[values[every] == name]) for name in names[:6]
            ]
    return result


def _values(
    runs: pd.DataFrame, history: History, rows: NDArray[np.intp], source: SignalSource, when: str
) -> Floats | None:
    """The signal of every run, or None where it is never given at this moment."""
    if when == "final" or source.column == "learning_rate":
        if when != "final" or source.column not in runs.columns:
            return None
        values = runs[source.column].to_numpy(dtype=float)
    else:
        column = "val_accuracy" if source.column == "best_val_accuracy" else source.column
        if column not in history.frame.columns:
            return None
        values = history.take(column, rows)
    if not np.isfinite(values).any():
        return None
    return np.abs(values) if source.absolute else values


class _Sample:
    """The runs that one or several signals are scored on, with what does not depend on the signal."""

    def __init__(
        self, prepared: Prepared, settings: AnalysisSettings, scope: str, rows: NDArray[np.intp], kept: Floats
    ):
        runs = prepared.runs.iloc[rows]
        self.settings, self.scope, self.kept = settings, scope, kept
        self.codes = pd.factorize(runs["configuration"])[0]
        self.n = int(self.codes.max()) + 1
        self.counts = np.bincount(self.codes, minlength=self.n)
        self.mean_kept = self.means(kept)
        self.n_seeds = int(runs["replicate"].nunique())
        self.label = evidence_label(self.n, self.n_seeds, settings.min_configurations)
        keys = ["dataset", "variant"]
        if runs["model_name"].nunique() > 1:
            keys = ["model_name", *keys]
        self.group = runs.groupby(keys, sort=True).ngroup().to_numpy()
        self.group_size = np.bincount(self.group)
        self.group_names = runs.iloc[np.unique(self.group, return_index=True)[1]][keys].astype(str).to_numpy()
        self.group_kept = self.centred_ranks(kept)
        self.damaged = kept < settings.damaged_below_pct

    def means(self, values: Floats) -> Floats:
        """Configuration means; rounded, because means of equal values differ by rounding, which would break ties."""
        return np.round(np.bincount(self.codes, weights=values, minlength=self.n) / self.counts, 12)

    def centred_ranks(self, values: Floats) -> Floats:
        """Ranks within each dataset x method group, less the group's mean rank."""
        ranks = pd.Series(values).groupby(self.group).rank().to_numpy()
        return ranks - (self.group_size[self.group] + 1) / 2

    def within(self, products: Floats) -> Floats:
        return np.asarray(np.bincount(self.group, weights=products), dtype=np.float64)

    @cached_property
    def counts_drawn(self) -> Floats:
        """How often each configuration was drawn in each resample: (resamples, configurations)."""
        return resample_counts(self.settings, self.n, "signals", self.scope, runs=len(self.codes))

    @cached_property
    def kept_ranks(self) -> Floats:
        """Ranks of the configurations' retentions in each resample: (resamples, configurations)."""
        return resampled_ranks(self.mean_kept, self.counts_drawn)


def _score(sample: _Sample, transfer_set: str, when: str, source: SignalSource, signal: Floats) -> Signal:
    settings = sample.settings
    mean_signal = sample.means(signal)
    names = (f"`{source.name}`", "the retention")
    by_configuration = spearman(mean_signal, sample.mean_kept, names)
    if by_configuration.statistic is None:
        interval = Interval(level=settings.level, n=sample.n, reason=by_configuration.reason)
    else:
        draws = rank_correlation_draws(
            resampled_ranks(mean_signal, sample.counts_drawn), sample.kept_ranks, sample.counts_drawn
        )
        interval = percentile_interval(draws, settings, sample.n, minimum=4)
    result = Signal(
        transfer_set=transfer_set,
        scope=sample.scope,
        when=when,  # type: ignore[arg-type]
        signal=source.name,
        expected_sign=source.expected_sign,
        n_runs=len(signal),
        n_configurations=sample.n,
        n_seeds=sample.n_seeds,
        spearman_runs=spearman(signal, sample.kept, names),
        spearman_configurations=by_configuration,
        interval=interval,
        label=sample.label,
    )
    _within_groups(result, sample, signal)
    _early_warning(result, sample, signal, source)
    return result


def _within_groups(result: Signal, sample: _Sample, signal: Floats) -> None:
    """Spearman within each dataset x method group, and the mean of those that exist."""
    a, b, size = sample.centred_ranks(signal), sample.group_kept, sample.group_size
    spread_a, spread_b = sample.within(a * a), sample.within(b * b)
    defined = (size >= 3) & (spread_a > 0) & (spread_b > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = np.clip(sample.within(a * b) / np.sqrt(spread_a * spread_b), -1.0, 1.0)
    known = rho[defined]
    result.n_groups = len(known)
    if len(known):
        result.within_mean = float(np.mean(known))
        result.within_mean_absolute = float(np.mean(np.abs(known)))
    else:
        result.within_reason = "no group has three runs in which signal and retention both vary"
    for place in range(min(len(size), _GROUPS_LISTED)):
        *dataset, method = sample.group_names[place]
        entry = GroupCorrelation(dataset=" · ".join(dataset), method=str(method), n=int(size[place]))
        if defined[place]:
            entry.rho = float(rho[place])
        elif size[place] < 3:
            entry.reason = f"n = {size[place]}: a correlation needs at least 3 points"
        else:
            entry.reason = "the signal is constant" if spread_a[place] == 0 else "the retention is constant"
        result.within_groups.append(entry)


def _early_warning(result: Signal, sample: _Sample, signal: Floats, source: SignalSource) -> None:
    settings, damaged = sample.settings, sample.damaged
    result.n_damaged = int(damaged.sum())
    if not damaged.any() or damaged.all():
        word = "every" if damaged.all() else "no"
        result.roc_reason = f"{word} run ends below {settings.damaged_below_pct:g}% retention: nothing to tell apart"
        return
    score = -source.expected_sign * signal
    result.roc_auc = float(roc_auc_score(damaged, score))
    if is_constant(signal):
        result.roc_reason = "the signal is constant"
    # A configuration that is drawn brings all its runs.
    draws = roc_area_draws(score, damaged, sample.counts_drawn[:, sample.codes])
    result.roc_interval = percentile_interval(draws, settings, sample.n, minimum=4)


def selection_rules(prepared: Prepared, settings: AnalysisSettings, notes: list[str]) -> list[SelectionRules]:
    """Retention of what each rule picks among the runs near the best validation accuracy."""
    result: list[SelectionRules] = []
    needed = ["model_name", "selection_name", "dataset", "run_id", "best_val_accuracy"]
    needed += [retention(name).name for name in prepared.transfer] + [source.column for source in signals()]
    present = [column for column in dict.fromkeys(needed) if column in prepared.runs.columns]
    # Without the other columns, which every selection below would copy.
    adapted = prepared.adapted[present]
    for name in prepared.transfer:
        column = retention(name).name
        for (model, selection, dataset), group in adapted.groupby(
            ["model_name", "selection_name", "dataset"], sort=True
        ):
            usable = group[group[column].notna() & group["best_val_accuracy"].notna()]
            values = {name: usable[name].to_numpy(dtype=float) for name in present if name not in _NAMES}
            run_ids = usable["run_id"].to_numpy(dtype=object)
            for margin in settings.selection_margins:
                entry = SelectionRules(
                    model=str(model),
                    selection=str(selection),
                    dataset=str(dataset),
                    transfer_set=name,
                    margin_points=margin,
                    best_validation=None,
                    n_runs=0,
                )
                if usable.empty:
                    entry.reason = f"no run has both a validation accuracy and a retention on {name}"
                else:
                    _select(entry, values, run_ids, column, margin)
                result.append(entry)
    return result


def _select(
    entry: SelectionRules, usable: dict[str, Floats], run_ids: NDArray[np.object_], column: str, margin: float
) -> None:
    accuracy = usable["best_val_accuracy"]
    entry.best_validation = float(accuracy.max())
    # Accuracies are multiples of 1/n: the margin is meant to include its own end.
    near = np.flatnonzero(accuracy >= accuracy.max() - margin / 100 - 1e-9)
    kept = usable[column][near]
    entry.n_runs = len(near)
    entry.oracle_pct, entry.random_pct = float(kept.max()), float(kept.mean())
    if len(near) < 2:
        entry.reason = "one run only: there is nothing to choose"
    signed = {source.column for source in signals() if source.absolute}
    for source in signals():
        if source.column not in usable or not (source.absolute or source.column not in signed):
            continue
        values = usable[source.column][near]
        values = np.abs(values) if source.absolute else values
        choice = Choice(rule=("highest " if source.expected_sign > 0 else "lowest ") + source.name)
        if source.name == "validation_accuracy":
            choice.rule, values = "highest validation_accuracy", -values
        missing = int((~np.isfinite(values)).sum())
        if missing:
            choice.reason = f"the signal is missing in {missing} of {len(near)} runs"
        else:
            best = values.max() if source.expected_sign > 0 else values.min()
            tied = np.flatnonzero(values == best)
            choice.n_tied = len(tied)
            choice.retention_pct = number(kept[tied].mean())
            choice.run_ids = [str(v) for v in run_ids[near[tied[:_LISTED]]]]
            if len(tied) > 1:
                choice.reason = f"{len(tied)} runs tie: their mean retention"
        if missing < len(near):
            entry.choices.append(choice)


_NAMES = ("model_name", "selection_name", "dataset", "run_id")
