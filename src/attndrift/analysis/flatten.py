"""The typed statistics of an analysis as tables."""

from __future__ import annotations

from typing import Any

from attndrift.analysis.result import Analysis, Column, Difference, Interval, Table, Test

STATISTICS_TABLES = (
    "findings",
    "changes",
    "comparisons",
    "rate_correlations",
    "anova",
    "signals",
    "signals_within_groups",
    "selections",
)


def statistics_tables(analysis: Analysis) -> dict[str, Table]:
    """One table a kind of statistic, named as the fields of the analysis are."""
    seed = analysis.settings.bootstrap_seed
    bootstrap = (
        f"Intervals: percentile bootstrap that resamples configurations, level {analysis.settings.level:g}, "
        f"seed {seed}. "
        f"Rows with fewer than {analysis.settings.min_configurations} configurations are descriptive."
    )
    holm = "p (Holm) is corrected within the family named in analysis.json."
    rows: dict[str, tuple[str, list[dict[str, Any]], list[str]]] = {
        "findings": (
            "Findings",
            [
                {"id": f.id, "question": f.question, "strength": f.strength, "sentence": f.sentence}
                for f in analysis.findings
            ],
            [],
        ),
        "changes": (
            "Structural changes against zero",
            [
                {
                    **_pick(
                        c,
                        "method",
                        "model",
                        "protocol",
                        "scope",
                        "measure",
                        "n_configurations",
                        "n_runs",
                        "n_seeds",
                    ),
                    **_interval(c.interval),
                    **_difference(c.cells),
                    **_difference(c.configurations),
                    "label": c.label,
                }
                for c in analysis.changes
            ],
            [bootstrap, holm],
        ),
        "comparisons": (
            "Methods on identical cells (first - second)",
            [
                {
                    **_pick(c, "first", "second", "model", "protocol", "scope", "measure"),
                    **_pick(c, "n_configurations", "n_cells", "n_seeds", "first_mean", "second_mean"),
                    **_interval(c.interval),
                    **_difference(c.cells),
                    **_difference(c.configurations),
                    "label": c.label,
                }
                for c in analysis.comparisons
            ],
            [bootstrap, holm],
        ),
        "rate_correlations": (
            "Correlation with log10 learning rate",
            [
                {
                    **_pick(r, "dataset", "method", "model", "protocol", "sweep", "measure"),
                    **_pick(r, "n_configurations", "n_runs", "n_seeds"),
                    **_test(r.cells.pearson, "cells_pearson"),
                    **_test(r.cells.spearman, "cells_spearman"),
                    **_test(r.configurations.pearson, "configurations_pearson"),
                    **_test(r.configurations.spearman, "configurations_spearman"),
                    **_interval(r.configurations.spearman_interval),
                    "label": r.label,
                }
                for r in analysis.rate_correlations
            ],
            [bootstrap, holm],
        ),
        "anova": (
            "Repeated-measures ANOVA over early, middle and late blocks",
            [
                {
                    **_pick(a, "method", "model", "protocol", "scope", "metric", "level", "n"),
                    **a.means,
                    **_pick(
                        a,
                        "f",
                        "df",
                        "df_error",
                        "p",
                        "epsilon",
                        "p_greenhouse_geisser",
                        "partial_eta_squared",
                    ),
                    **_pick(a, "p_holm", "descriptive", "reason"),
                }
                for a in analysis.anova
            ],
            ["The unit is the run (level cells) or the configuration mean; layers repeat within it."],
        ),
        "signals": (
            "Which signal predicts retention",
            [
                {
                    **_pick(s, "transfer_set", "scope", "when", "signal", "expected_sign"),
                    **_pick(s, "n_runs", "n_configurations", "n_seeds"),
                    **_test(s.spearman_runs, "runs_spearman"),
                    **_test(s.spearman_configurations, "configurations_spearman"),
                    **_interval(s.interval),
                    **_pick(s, "within_mean", "within_mean_absolute", "n_groups", "roc_auc"),
                    "roc_low": s.roc_interval.low if s.roc_interval else None,
                    "roc_high": s.roc_interval.high if s.roc_interval else None,
                    **_pick(s, "n_damaged", "roc_reason", "label"),
                }
                for s in analysis.signals
            ],
            [bootstrap, holm, f"Damaged: final retention below {analysis.settings.damaged_below_pct:g}%."],
        ),
        "signals_within_groups": (
            "Spearman with retention within each dataset x method group",
            [
                {**_pick(s, "transfer_set", "scope", "when", "signal"), **g.model_dump()}
                for s in analysis.signals
                if s.scope == "all runs"
                for g in s.within_groups
            ],
            [],
        ),
        "selections": (
            "Retention chosen by each rule among runs near the best validation accuracy",
            [
                {
                    **_pick(s, "transfer_set", "model", "protocol", "dataset", "margin_points", "n_runs"),
                    "rule": rule,
                    "retention_pct": kept,
                    "n_tied": tied,
                    "reason": reason,
                }
                for s in analysis.selections
                for rule, kept, tied, reason in [
                    ("oracle", s.oracle_pct, None, s.reason),
                    ("random", s.random_pct, None, s.reason),
                    *[(c.rule, c.retention_pct, c.n_tied, c.reason) for c in s.choices],
                ]
            ],
            ["Random is the expected retention of an even draw; ties between runs give the mean of the tied runs."],
        ),
    }
    return {name: _table(name, *content) for name, content in rows.items()}


def _table(name: str, title: str, rows: list[dict[str, Any]], notes: list[str]) -> Table:
    names = list(dict.fromkeys(key for row in rows for key in row))
    columns = [Column(name=key, label=key.replace("_", " ")) for key in names]
    return Table(name=name, title=title, columns=columns, rows=rows, notes=notes)


def _pick(part: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(part, name) for name in names}


def _interval(interval: Interval | None) -> dict[str, Any]:
    if interval is None:
        return {"low": None, "high": None, "interval_reason": None}
    return {"low": interval.low, "high": interval.high, "interval_reason": interval.reason}


def _test(test: Test, prefix: str) -> dict[str, Any]:
    return {
        prefix: test.statistic,
        f"{prefix}_n": test.n,
        f"{prefix}_p": test.p,
        f"{prefix}_p_holm": test.p_holm,
        f"{prefix}_reason": test.reason,
    }


def _difference(part: Difference) -> dict[str, Any]:
    level = part.level
    row: dict[str, Any] = {
        f"{level}_{name}": getattr(part, name)
        for name in ("n", "mean", "sd", "below_zero", "above_zero", "d_z", "cohen_d", "reason")
    }
    for test in part.tests:
        key = f"{level}_{test.name.lower().replace(' ', '_').replace('-', '_')}"
        row |= {
            key: test.statistic,
            f"{key}_p": test.p,
            f"{key}_p_holm": test.p_holm,
            f"{key}_reason": test.reason,
        }
    return row
