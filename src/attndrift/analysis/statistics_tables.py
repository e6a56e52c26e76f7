"""The typed statistics of an analysis as tables, at full precision: one column a number."""

from __future__ import annotations

from typing import Any

from attndrift.analysis.result import Analysis, Difference, Interval, SelectionRules, Table, Test
from attndrift.results.columns import Column

STATISTICS_TABLES = (
    "findings",
    "changes",
    "comparisons",
    "rate_correlations",
    "anova",
    "signals",
    "signals_within_groups",
    "selection_rules",
)

Rows = list[dict[str, Any]]


def statistics_tables(analysis: Analysis) -> dict[str, Table]:
    """One table a kind of statistic, named as the fields of the analysis are."""
    settings = analysis.settings
    bootstrap = (
        f"Intervals: {100 * settings.level:g}% percentile bootstrap with up to {settings.bootstrap_resamples} resamples "
        f"of configurations (not of seeds), seed {settings.bootstrap_seed}. Below {settings.min_configurations} "
        "configurations everything is descriptive."
    )
    holm = "Holm: corrected within the family of the tests of one kind and level; its size stands beside it."
    damaged = f"Damaged: final retention below {settings.damaged_below_pct:g}%; a ROC area of 0.5 is chance."
    content: dict[str, tuple[str, Rows, list[str]]] = {
        "findings": ("Findings", _findings(analysis), []),
        "changes": ("Structural changes against zero", _changes(analysis), [bootstrap, holm]),
        "comparisons": ("Methods on identical cells (first - second)", _comparisons(analysis), [bootstrap, holm]),
        "rate_correlations": ("Correlation with log10 learning rate", _rates(analysis), [bootstrap, holm]),
        "anova": (
            "Repeated-measures ANOVA over early, middle and late blocks",
            _anova(analysis),
            ["The unit is the run (level cells) or the configuration mean; layers repeat within it."],
        ),
        "signals": ("Which signal predicts retention", _signals(analysis), [bootstrap, holm, damaged]),
        "signals_within_groups": (
            "Spearman with retention within each dataset x method group",
            _within_groups(analysis),
            [],
        ),
        "selection_rules": (
            "Retention (%) chosen by each rule among runs near the best validation accuracy",
            [row for selection in analysis.selection_rules for row in _choices(selection)],
            ["Random is the expected retention of an even draw; ties between runs give the mean of the tied runs."],
        ),
    }
    return {name: _table(name, *content[name]) for name in STATISTICS_TABLES}


def _table(name: str, title: str, rows: Rows, notes: list[str]) -> Table:
    names = list(dict.fromkeys(key for row in rows for key in row))
    columns = [Column(name=key, label=key.replace("_", " ")) for key in names]
    return Table(name=name, title=title, columns=columns, rows=rows, notes=notes)


def _findings(analysis: Analysis) -> Rows:
    return [_pick(finding, "id", "question", "strength", "sentence") for finding in analysis.findings]


def _changes(analysis: Analysis) -> Rows:
    return [
        {
            **_pick(c, "method", "model", "selection", "scope", "measure", "n_configurations", "n_runs", "n_seeds"),
            **_interval(c.interval),
            **_difference(c.cells),
            **_difference(c.configurations),
            "label": c.label,
        }
        for c in analysis.changes
    ]


def _comparisons(analysis: Analysis) -> Rows:
    return [
        {
            **_pick(c, "first", "second", "model", "selection", "scope", "measure"),
            **_pick(c, "n_configurations", "n_cells", "n_seeds", "first_mean", "second_mean"),
            **_interval(c.interval),
            **_difference(c.cells),
            **_difference(c.configurations),
            "label": c.label,
        }
        for c in analysis.comparisons
    ]


def _rates(analysis: Analysis) -> Rows:
    return [
        {
            **_pick(r, "dataset", "method", "model", "selection", "sweep", "measure"),
            **_pick(r, "n_configurations", "n_runs", "n_seeds"),
            **_test(r.cells.pearson, "cells_pearson"),
            **_test(r.cells.spearman, "cells_spearman"),
            **_test(r.configurations.pearson, "configurations_pearson"),
            **_test(r.configurations.spearman, "configurations_spearman"),
            **_interval(r.configurations.spearman_interval),
            "label": r.label,
        }
        for r in analysis.rate_correlations
    ]


def _anova(analysis: Analysis) -> Rows:
    return [
        {
            **_pick(a, "method", "model", "selection", "scope", "metric", "level", "n"),
            **a.means,
            **_pick(a, "f", "df", "df_error", "p", "epsilon", "p_greenhouse_geisser", "partial_eta_squared"),
            **_pick(a, "p_holm", "descriptive", "reason"),
        }
        for a in analysis.anova
    ]


def _signals(analysis: Analysis) -> Rows:
    return [
        {
            **_pick(s, "transfer_set", "scope", "when", "signal", "expected_sign"),
            **_pick(s, "n_runs", "n_configurations", "n_seeds"),
            **_test(s.spearman_runs, "runs_spearman"),
            **_test(s.spearman_configurations, "configurations_spearman"),
            **_interval(s.interval),
            **_pick(s, "within_mean", "within_mean_absolute", "n_groups", "roc_auc"),
            **_interval(s.roc_interval, "roc_"),
            **_pick(s, "n_damaged", "roc_reason", "label"),
        }
        for s in analysis.signals
    ]


def _within_groups(analysis: Analysis) -> Rows:
    return [
        {**_pick(s, "transfer_set", "scope", "when", "signal"), **group.model_dump()}
        for s in analysis.signals
        if s.scope == "all runs"
        for group in s.within_groups
    ]


def _choices(rules: SelectionRules) -> Rows:
    identity = _pick(rules, "transfer_set", "model", "selection", "dataset", "margin_points", "n_runs")
    found = [
        ("oracle", rules.oracle_pct, None, rules.reason),
        ("random", rules.random_pct, None, rules.reason),
        *[(c.rule, c.retention_pct, c.n_tied, c.reason) for c in rules.choices],
    ]
    names = ("rule", "retention_pct", "n_tied", "reason")
    return [{**identity, **dict(zip(names, values, strict=True))} for values in found]


def _pick(part: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(part, name) for name in names}


def _interval(interval: Interval | None, prefix: str = "") -> dict[str, Any]:
    found = interval or Interval(level=0.95)
    return {f"{prefix}low": found.low, f"{prefix}high": found.high, f"{prefix}interval_reason": found.reason}


def _test(test: Test, prefix: str) -> dict[str, Any]:
    return {prefix: test.statistic} | {
        f"{prefix}_{name}": getattr(test, name) for name in ("n", "p", "p_holm", "family_size", "reason")
    }


def _difference(part: Difference) -> dict[str, Any]:
    names = ("n", "mean", "sd", "below_zero", "above_zero", "d_z", "cohen_d", "reason")
    row: dict[str, Any] = {f"{part.level}_{name}": getattr(part, name) for name in names}
    for test in part.tests:
        row |= _test(test, f"{part.level}_{test.name.lower().replace(' ', '_').replace('-', '_')}")
    return row
