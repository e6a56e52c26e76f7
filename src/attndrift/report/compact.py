"""The statistics as narrow tables: what a reader needs of each test, the rest is in the CSV files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attndrift.analysis.measures import outcomes
from attndrift.analysis.result import Analysis, Column, Interval, Table, Test


def _labels(analysis: Analysis) -> Callable[[str], str]:
    names = {m.name: m.label for m in outcomes(analysis.data.transfer_sets)}
    return lambda name: names.get(name, name)


def _number(value: float | None, digits: int = 3, *, factor: float = 1.0) -> str | None:
    if value is None:
        return None
    text = f"{value * factor:+.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def _interval(interval: Interval, digits: int = 3, *, factor: float = 1.0) -> str:
    if interval.low is None or interval.high is None:
        return interval.reason or "no interval"
    return f"{_number(interval.low, digits, factor=factor)} to {_number(interval.high, digits, factor=factor)}"


def _p(test: Test | None) -> str | None:
    """Holm-corrected where there is a family, else raw; the reason where there is none."""
    if test is None:
        return None
    p = test.p_holm if test.p_holm is not None else test.p
    if p is None:
        return test.reason
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _test(tests: list[Test], name: str) -> Test | None:
    return next((test for test in tests if test.name == name), None)


def _digits(unit: str) -> int:
    return 2 if unit in ("%", "fraction") else 3


def _columns(*pairs: tuple[str, str]) -> list[Column]:
    return [Column(name=name, label=label, digits=None) for name, label in pairs]


def _holm_note(analysis: Analysis) -> str:
    return (
        f"Intervals: {analysis.settings.level:.0%} percentile bootstrap that resamples configurations. p is two-sided, "
        "on configuration means, Holm-corrected within its family."
    )


def changes_table(analysis: Analysis) -> Table:
    """Structural changes against zero."""
    label = _labels(analysis)
    rows: list[dict[str, Any]] = [
        {
            "method": c.method,
            "scope": c.scope,
            "measure": label(c.measure),
            "mean": _number(c.configurations.mean, _digits(c.unit)),
            "interval": _interval(c.interval, _digits(c.unit)),
            "below": f"{c.cells.below_zero} of {c.cells.n}",
            "p": _p(_test(c.configurations.tests, "one-sample t")),
            "label": c.label,
        }
        for c in analysis.changes
    ]
    return Table(
        name="changes",
        title="Change against the pretrained model, by method",
        columns=_columns(
            ("method", "Method"),
            ("scope", "Data"),
            ("measure", "Measure"),
            ("mean", "Mean (%)"),
            ("interval", "Interval"),
            ("below", "Cells below 0"),
            ("p", "p (t, Holm)"),
            ("label", "Evidence"),
        ),
        rows=rows,
        notes=[_holm_note(analysis)],
    )


def comparisons_table(analysis: Analysis) -> Table:
    """Methods on identical cells."""
    label = _labels(analysis)
    rows: list[dict[str, Any]] = []
    for c in analysis.comparisons:
        factor = 100.0 if c.unit == "fraction" else 1.0
        digits = _digits(c.unit)
        points = " (points)" if c.unit in ("%", "fraction") else ""
        rows.append(
            {
                "pair": f"{c.first} − {c.second}",
                "scope": c.scope,
                "measure": label(c.measure) + points,
                "first": _number(c.first_mean, digits, factor=factor),
                "second": _number(c.second_mean, digits, factor=factor),
                "difference": _number(c.configurations.mean, digits, factor=factor),
                "interval": _interval(c.interval, digits, factor=factor),
                "d_z": _number(c.cells.d_z, 2),
                "below": f"{c.cells.below_zero} of {c.cells.n}",
                "p": _p(_test(c.configurations.tests, "paired t")),
                "label": c.label,
            }
        )
    return Table(
        name="comparisons",
        title="Methods on identical (data set, rate, seed) cells",
        columns=_columns(
            ("pair", "Pair"),
            ("scope", "Data"),
            ("measure", "Measure"),
            ("first", "First"),
            ("second", "Second"),
            ("difference", "Difference"),
            ("interval", "Interval"),
            ("d_z", "d_z (cells)"),
            ("below", "Cells below 0"),
            ("p", "p (paired t, Holm)"),
            ("label", "Evidence"),
        ),
        rows=rows,
        notes=[_holm_note(analysis), "Only cells at the same learning rate are compared."],
    )


def rates_table(analysis: Analysis) -> Table:
    """Correlations with the learning rate."""
    label = _labels(analysis)
    rows = [
        {
            "sweep": r.sweep,
            "measure": label(r.measure),
            "rates": len(r.rates),
            "pearson": _number(r.configurations.pearson.statistic),
            "pearson_p": _p(r.configurations.pearson),
            "spearman": _number(r.configurations.spearman.statistic),
            "spearman_p": _p(r.configurations.spearman),
            "cells": _number(r.cells.spearman.statistic),
            "label": r.label,
        }
        for r in analysis.rate_correlations
    ]
    return Table(
        name="rate_correlations",
        title="Correlation with log10 learning rate",
        columns=_columns(
            ("sweep", "Sweep"),
            ("measure", "Measure"),
            ("rates", "Rates"),
            ("pearson", "Pearson r"),
            ("pearson_p", "p (Holm)"),
            ("spearman", "Spearman rho"),
            ("spearman_p", "p (Holm)"),
            ("cells", "rho over cells"),
            ("label", "Evidence"),
        ),
        rows=rows,
        notes=["Over configuration means; rho over cells counts every seed and is no independent evidence."],
    )


def anova_table(analysis: Analysis) -> Table:
    """Repeated-measures ANOVA over groups of blocks."""
    rows: list[dict[str, Any]] = []
    for a in analysis.anova:
        if a.level != "configurations":
            continue
        p = a.p_holm if a.p_holm is not None else a.p_greenhouse_geisser
        row: dict[str, Any] = {
            "method": a.method,
            "scope": a.scope,
            "metric": a.metric,
            "n": a.n,
            "f": None if a.f is None else f"F({a.df:g}, {a.df_error:g}) = {a.f:.2f}",
            "p": (a.reason or "no test") if p is None else ("< 0.001" if p < 0.001 else f"{p:.3f}"),
            "label": "descriptive" if a.descriptive else "tested",
        }
        rows.append(row | {name: _number(value, 2) for name, value in a.means.items()})
    groups = list(analysis.anova[0].blocks.items()) if analysis.anova else []
    words = "; ".join(f"{name}: blocks {min(ids)} to {max(ids)}" for name, ids in groups if ids)
    return Table(
        name="anova",
        title="Change over early, middle and late blocks",
        columns=_columns(
            ("method", "Method"),
            ("scope", "Data"),
            ("metric", "Metric"),
            *((name, f"{name.capitalize()} (%)") for name, _ in groups),
            ("n", "Subjects"),
            ("f", "ANOVA"),
            ("p", "p (Greenhouse-Geisser, Holm)"),
            ("label", "Evidence"),
        ),
        rows=rows,
        notes=[f"Repeated measures: the unit is the configuration mean, blocks repeat within it. {words}."],
    )


def signals_table(analysis: Analysis) -> Table:
    """Signals that go with retention."""
    rows = [
        {
            "transfer_set": s.transfer_set,
            "scope": s.scope,
            "when": s.when,
            "signal": s.signal,
            "rho": _number(s.spearman_configurations.statistic, 2),
            "interval": _interval(s.interval, 2),
            "within": _number(s.within_mean, 2),
            "within_absolute": None if s.within_mean_absolute is None else f"{s.within_mean_absolute:.2f}",
            "roc": s.roc_reason if s.roc_auc is None else f"{s.roc_auc:.2f}",
            "label": s.label,
        }
        for s in analysis.signals
    ]
    return Table(
        name="signals",
        title="Which signal goes with retention",
        columns=_columns(
            ("transfer_set", "Transfer set"),
            ("scope", "Runs"),
            ("when", "Measured"),
            ("signal", "Signal"),
            ("rho", "Spearman rho"),
            ("interval", "Interval"),
            ("within", "Within groups"),
            ("within_absolute", "Within groups, absolute"),
            ("roc", "ROC area, damaged runs"),
            ("label", "Evidence"),
        ),
        rows=rows,
        notes=[
            "Within groups: mean of the correlations within data set x method groups. A run is damaged below "
            f"{analysis.settings.damaged_below_pct:g}% retention."
        ],
    )


def selections_table(analysis: Analysis) -> Table:
    """Retention that each selection rule chooses."""
    rows: list[dict[str, Any]] = []
    for s in analysis.selections:
        base = {
            "transfer_set": s.transfer_set,
            "dataset": s.dataset,
            "margin": f"{s.margin_points:g}",
            "n_runs": s.n_runs,
            "oracle": None if s.oracle_pct is None else f"{s.oracle_pct:.1f}",
            "random": None if s.random_pct is None else f"{s.random_pct:.1f}",
        }
        choices = sorted(s.choices, key=lambda c: -(c.retention_pct if c.retention_pct is not None else -1.0))
        kept = [f"{c.rule} {c.retention_pct:.1f}" for c in choices if c.retention_pct is not None]
        rows.append(base | {"rules": "; ".join(kept) or s.reason})
    return Table(
        name="selections",
        title="Retention (%) chosen by each rule among runs near the best validation accuracy",
        columns=_columns(
            ("transfer_set", "Transfer set"),
            ("dataset", "Data"),
            ("margin", "Within (points)"),
            ("n_runs", "Runs"),
            ("oracle", "Oracle"),
            ("random", "Random"),
            ("rules", "Rules, best first"),
        ),
        rows=rows,
        notes=["Random: expected retention of an even draw. Ties give the mean of the tied runs."],
    )
