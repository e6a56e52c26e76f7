"""From tables to the result: the order of the parts, and nothing else."""

from __future__ import annotations

import pandas as pd

from attndrift.analysis import findings as claims
from attndrift.analysis.configurations import Prepared, evidence_label, prepare
from attndrift.analysis.dynamics import dynamics_tables, epochs_from_steps, order_history
from attndrift.analysis.image_intervals import ImageIntervals, Outcomes
from attndrift.analysis.interpolation import interpolation_tables
from attndrift.analysis.layers import baseline_tables, change_per_layer, layer_anova, layer_values, measured_steps
from attndrift.analysis.pairs import changes_from_zero, compare_methods
from attndrift.analysis.pareto import best_validation_table, iso_accuracy_table, pareto_table
from attndrift.analysis.rates import rate_correlations
from attndrift.analysis.result import Analysis, Summary, Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.signals import selection_rules, signal_scores
from attndrift.analysis.summary import aggregate_table, all_runs_table, sweep_tables
from attndrift.methods.registry import PRETRAINED
from attndrift.results.tables import Tables


def analyze(tables: Tables, *, settings: AnalysisSettings | None = None, outcomes: Outcomes | None = None) -> Analysis:
    """Everything that the tables support, with honest uncertainty; reads nothing but ``tables``.

    ``outcomes`` is optional: which image each run had right (:func:`attndrift.analysis.image_intervals.read_image_outcomes`).
    It makes the intervals over images of single runs paired, hence narrower, and changes nothing else; without it
    they come from the accuracies and their n.

    The order of rows does not matter, equal tables and settings give equal results. Runs whose
    status is not finished are listed and take no part in means and tests. Raises
    :class:`attndrift.results.tables.TableError` (from :class:`~attndrift.results.tables.Tables`) for tables of the
    wrong form; what is merely missing becomes null with a reason, and a note.
    """
    settings = settings or AnalysisSettings()
    prepared = prepare(tables)
    notes = prepared.notes
    if prepared.adapted.empty:
        notes.append("There is no finished adapted run: only the baseline can be described.")
    history = order_history(prepared, tables.history)
    epoch = epochs_from_steps(history, prepared)
    if not len(history):
        notes.append("The table `history` is empty: no onset, no convergence, no prediction from the first epoch.")
    steps = measured_steps(prepared, history, epoch)
    values = layer_values(prepared, tables.layers, steps, notes)

    result: dict[str, Table] = {
        table.name: table
        for table in (
            all_runs_table(prepared),
            aggregate_table(prepared),
            *sweep_tables(prepared, settings),
            *baseline_tables(prepared, values, tables.layers, notes),
            change_per_layer(prepared, values, notes),
            *dynamics_tables(prepared, history, epoch, settings, notes),
            best_validation_table(prepared),
            iso_accuracy_table(prepared, settings),
            pareto_table(prepared),
            *interpolation_tables(prepared, tables.interpolation, settings, notes),
        )
    }
    changes = changes_from_zero(prepared, settings, notes)
    comparisons = compare_methods(prepared, settings, notes)
    rates = rate_correlations(prepared, settings, notes)
    anova = layer_anova(prepared, values, settings, notes)
    signals = signal_scores(prepared, history, epoch, settings, notes)
    chosen = selection_rules(prepared, settings, notes)
    summary = _summary(prepared, tables, settings)
    evidence = claims.Evidence(
        settings,
        result,
        changes,
        comparisons,
        rates,
        anova,
        signals,
        chosen,
        prepared.transfer,
        summary.n_seeds,
    )
    return Analysis(
        settings=settings,
        data=summary,
        notes=list(dict.fromkeys(notes)),
        findings=claims.generate(evidence, prepared.adapted, ImageIntervals(outcomes or {}, settings.level)),
        tables=result,
        changes=changes,
        comparisons=comparisons,
        rate_correlations=rates,
        anova=anova,
        signals=signals,
        selection_rules=chosen,
    )


def _summary(prepared: Prepared, tables: Tables, settings: AnalysisSettings) -> Summary:
    adapted = prepared.adapted
    n_configurations = int(adapted["configuration"].nunique())
    n_seeds = int(adapted["replicate"].nunique())
    return Summary(
        n_runs=len(tables.runs),
        n_analysed=len(prepared.runs),
        n_configurations=n_configurations,
        n_seeds=n_seeds,
        single_seed=n_seeds == 1,
        label=evidence_label(n_configurations, n_seeds, settings.min_configurations),
        datasets=_names(prepared.every["dataset"]),
        models=_names(prepared.every["model_name"]),
        selections=_names(prepared.every.loc[prepared.every["method"] != PRETRAINED, "selection_name"]),
        methods=_names(prepared.every["variant"]),
        transfer_sets=prepared.transfer,
        n_history_rows=len(tables.history),
        n_layer_rows=len(tables.layers),
        n_interpolation_rows=len(tables.interpolation),
        excluded=prepared.excluded,
    )


def _names(values: pd.Series) -> list[str]:
    return sorted({str(value) for value in values.dropna()})
