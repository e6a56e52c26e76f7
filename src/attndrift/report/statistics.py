"""The typed statistics of an analysis as tables that fit a page: both levels, interval, n, corrected p."""

from __future__ import annotations

from typing import Any

from attndrift.analysis.measures import outcomes
from attndrift.analysis.result import Analysis, Column, Difference, Interval, Table, Test


def _table(name: str, title: str, rows: list[dict[str, Any]], notes: list[str]) -> Table:
    names = list(dict.fromkeys(key for row in rows for key in row))
    return Table(name=name, title=title, columns=[_column(key) for key in names], rows=rows, notes=notes)


_IDENTITY_LABELS = {"model": "Model", "protocol": "Protocol", "scope": "Scope", "transfer_set": "Transfer set"}


def _column(name: str) -> Column:
    return Column(name=name, label=_IDENTITY_LABELS.get(name, name))


def p_text(test: Test) -> str:
    """The raw and the Holm-corrected p value, or why there is none."""
    if test.p is None:
        return f"– ({test.reason})" if test.reason else "–"
    corrected = f" (Holm {_p(test.p_holm)}, family of {test.family_size})" if test.p_holm is not None else ""
    return f"{_p(test.p)}{corrected}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def interval_text(interval: Interval | None, scale: float = 1.0) -> str:
    """``[low, high]``, or why there is none."""
    if interval is None:
        return "–"
    if interval.low is None or interval.high is None:
        return f"– ({interval.reason})" if interval.reason else "–"
    return f"[{interval.low * scale:.4g}, {interval.high * scale:.4g}]"


def _number(value: float | None, scale: float = 1.0) -> str:
    return "–" if value is None else f"{value * scale:.4g}"


def _tests(part: Difference) -> dict[str, str]:
    level = "configuration means" if part.level == "configurations" else "cells"
    return {f"{test.name}, {level}: p": p_text(test) for test in part.tests}


def statistics_tables(analysis: Analysis) -> dict[str, Table]:
    """``changes, comparisons, rate_correlations, anova, signals, selections``, each as one table."""
    settings = analysis.settings
    labels = {measure.name: measure for measure in outcomes(analysis.data.transfer_sets)}

    def label(name: str) -> str:
        return labels[name].label if name in labels else name

    def scale(name: str) -> float:
        return labels[name].scale if name in labels else 1.0

    percent = f"{100 * settings.level:g}%"
    bootstrap = (
        f"Intervals: {percent} percentile bootstrap with up to {settings.bootstrap_resamples} resamples of "
        f"configurations (not of seeds), seed {settings.bootstrap_seed}. Below {settings.min_configurations} "
        "configurations everything is descriptive."
    )
    holm = "Holm: corrected within the family of the tests of one kind and level; its size stands beside it."
    changes = [
        {
            "model": c.model,
            "protocol": c.protocol,
            "scope": c.scope,
            "Method": c.method,
            "Measure": label(c.measure),
            "Configurations": c.n_configurations,
            "Runs": c.n_runs,
            "Seeds": c.n_seeds,
            "Mean change": _number(c.configurations.mean, scale(c.measure)),
            f"{percent} interval": interval_text(c.interval, scale(c.measure)),
            "Below / above 0 (runs)": f"{c.cells.below_zero} / {c.cells.above_zero} of {c.cells.n}",
            "d (mean / sd), configurations": _number(c.configurations.d_z),
            **_tests(c.configurations),
            **_tests(c.cells),
            "Evidence": c.label,
        }
        for c in analysis.changes
    ]
    comparisons = [
        {
            "model": c.model,
            "protocol": c.protocol,
            "scope": c.scope,
            "Measure": label(c.measure),
            "First": c.first,
            "Second": c.second,
            "Configurations": c.n_configurations,
            "Cells": c.n_cells,
            "Seeds": c.n_seeds,
            "First mean": _number(c.first_mean, scale(c.measure)),
            "Second mean": _number(c.second_mean, scale(c.measure)),
            "First - second": _number(c.configurations.mean, scale(c.measure)),
            f"{percent} interval": interval_text(c.interval, scale(c.measure)),
            "d_z, configurations": _number(c.configurations.d_z),
            "Cohen's d, configurations": _number(c.configurations.cohen_d),
            **_tests(c.configurations),
            **_tests(c.cells),
            "Evidence": c.label,
        }
        for c in analysis.comparisons
    ]
    rates = [
        {
            "model": r.model,
            "protocol": r.protocol,
            "dataset": r.dataset,
            "Method": r.method,
            "Sweep": r.sweep,
            "Measure": label(r.measure),
            "Rates": len(r.rates),
            "Runs": r.n_runs,
            "Seeds": r.n_seeds,
            "Pearson r, configuration means": _number(r.configurations.pearson.statistic),
            "its p": p_text(r.configurations.pearson),
            "Spearman, configuration means": _number(r.configurations.spearman.statistic),
            "Spearman p": p_text(r.configurations.spearman),
            f"Spearman {percent} interval": interval_text(r.configurations.spearman_interval),
            "Pearson r, runs": _number(r.cells.pearson.statistic),
            "its p, runs": p_text(r.cells.pearson),
            "Spearman, runs": _number(r.cells.spearman.statistic),
            "Spearman p, runs": p_text(r.cells.spearman),
            "Evidence": r.label,
        }
        for r in analysis.rate_correlations
    ]
    anova = [
        {
            "model": a.model,
            "protocol": a.protocol,
            "scope": a.scope,
            "Method": a.method,
            "Metric": a.metric,
            "Level": a.level,
            "n": a.n,
            **{f"{name.capitalize()} (%)": _number(value) for name, value in a.means.items()},
            "F": "–" if a.f is None else f"{a.f:.3g} ({_number(a.df)}, {_number(a.df_error)})",
            "p": "–" if a.p is None else _p(a.p),
            "p, Greenhouse-Geisser": "–" if a.p_greenhouse_geisser is None else _p(a.p_greenhouse_geisser),
            "p, Holm": "–" if a.p_holm is None else _p(a.p_holm),
            "Partial eta squared": _number(a.partial_eta_squared),
            "Evidence": a.reason or ("descriptive only" if a.descriptive else ""),
        }
        for a in analysis.anova
    ]
    signals = [
        {
            "transfer_set": s.transfer_set,
            "scope": s.scope,
            "When": s.when,
            "Signal": s.signal,
            "Runs": s.n_runs,
            "Configurations": s.n_configurations,
            "Spearman, configuration means": _number(s.spearman_configurations.statistic),
            f"{percent} interval": interval_text(s.interval),
            "p": p_text(s.spearman_configurations),
            "Spearman, runs": _number(s.spearman_runs.statistic),
            "p, runs": p_text(s.spearman_runs),
            "Within groups, mean": _number(s.within_mean),
            "Within groups, mean of absolute": _number(s.within_mean_absolute),
            "Groups": s.n_groups,
            "ROC area": _number(s.roc_auc) if s.roc_auc is not None else f"– ({s.roc_reason})",
            "ROC interval": interval_text(s.roc_interval),
            "Damaged": s.n_damaged,
            "Evidence": s.label,
        }
        for s in analysis.signals
    ]
    selections = [
        {
            "transfer_set": s.transfer_set,
            "model": s.model,
            "protocol": s.protocol,
            "dataset": s.dataset,
            "Within (points)": s.margin_points,
            "Runs": s.n_runs,
            "Oracle (%)": _number(s.oracle_pct),
            "Random (%)": _number(s.random_pct),
            **{f"{c.rule} (%)": _number(c.retention_pct) for c in s.choices},
            "Note": s.reason or "",
        }
        for s in analysis.selections
    ]
    damaged = f"Damaged: final retention below {settings.damaged_below_pct:g}%; a ROC area of 0.5 is chance."
    return {
        table.name: table
        for table in (
            _table("changes", "Structural changes against zero", changes, [bootstrap, holm]),
            _table("comparisons", "Methods on identical cells (first - second)", comparisons, [bootstrap, holm]),
            _table("rate_correlations", "Correlation with log10 learning rate", rates, [bootstrap, holm]),
            _table(
                "anova",
                "Repeated-measures ANOVA over early, middle and late blocks",
                anova,
                ["The unit is the run (level cells) or the configuration mean; layers repeat within it."],
            ),
            _table("signals", "Which signal predicts retention", signals, [bootstrap, holm, damaged]),
            _table(
                "selections",
                "Retention (%) chosen by each rule among runs near the best validation accuracy",
                selections,
                ["Random is the expected retention of an even draw; ties give the mean of the tied runs."],
            ),
        )
    }
