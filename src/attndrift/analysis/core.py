"""From tables to the result: the order of the parts, and nothing else."""

from __future__ import annotations

import pandas as pd

from attndrift.analysis import findings as claims
from attndrift.analysis.beside import beside, in_one_go
from attndrift.analysis.configurations import Prepared, evidence_label, prepare
from attndrift.analysis.dynamics import History, dynamics_tables, epochs_from_steps, order_history
from attndrift.analysis.grand import aggregate_table, grand_table, sweep_tables
from attndrift.analysis.images import ImageIntervals, Outcomes
from attndrift.analysis.interpolation import interpolation_tables
from attndrift.analysis.layers import (
    baseline_tables,
    change_per_layer,
    layer_anova,
    layer_values,
    measured_steps,
)
from attndrift.analysis.operating import best_validation_table, iso_accuracy_table, pareto_table
from attndrift.analysis.pairs import changes_from_zero, compare_methods
from attndrift.analysis.rates import rate_correlations
from attndrift.analysis.result import Analysis, RateCorrelation, Signal, Summary, Table
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.signals import selections, signal_scores
from attndrift.analysis.statistics import Floats
from attndrift.tables import Tables

_LARGE = 300
"""Runs from which on a second process is worth its start."""


def analyze(tables: Tables, *, settings: AnalysisSettings | None = None, outcomes: Outcomes | None = None) -> Analysis:
    """Everything that the tables support, with honest uncertainty; reads nothing but ``tables``.

    ``outcomes`` is optional: which image each run had right (:func:`attndrift.analysis.images.read_image_outcomes`).
    It makes the intervals over images of single runs paired, hence narrower, and changes nothing else; without it
    they come from the accuracies and their n.

    The order of rows does not matter, equal tables and settings give equal results. Runs whose
    status is not finished are listed and take no part in means and tests. Raises
    :class:`attndrift.tables.TableError` (from :class:`~attndrift.tables.Tables`) for tables of the
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

    # The longest parts, which nothing else waits for.
    large = len(prepared.runs) >= _LARGE
    with (
        in_one_go(worth_it=large),
        beside(_long_parts, prepared, history, epoch, settings, worth_it=large) as long_parts,
    ):
        result: dict[str, Table] = {}
        for table in (grand_table(prepared), aggregate_table(prepared)):
            result[table.name] = table
        result |= sweep_tables(prepared, settings)
        result |= baseline_tables(prepared, values, tables.layers, notes)
        per_layer = change_per_layer(prepared, values, notes)
        result[per_layer.name] = per_layer
        result |= dynamics_tables(prepared, history, epoch, settings, notes)
        for table in (
            best_validation_table(prepared),
            iso_accuracy_table(prepared, settings),
            pareto_table(prepared),
        ):
            result[table.name] = table
        result |= interpolation_tables(prepared, tables.interpolation, settings, notes)

        changes = changes_from_zero(prepared, settings, notes)
        comparisons = compare_methods(prepared, settings, notes)
        anova_notes: list[str] = []
        anova = layer_anova(prepared, values, settings, anova_notes)
        rates, rate_notes, signals, signal_notes = long_parts()
        notes += rate_notes + anova_notes + signal_notes
        chosen = selections(prepared, settings, notes)
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
        selections=chosen,
    )


def _long_parts(
    prepared: Prepared, history: History, epoch: Floats, settings: AnalysisSettings
) -> tuple[list[RateCorrelation], list[str], list[Signal], list[str]]:
    """The correlations with the rate and the scores of the signals, each with its notes."""
    rate_notes: list[str] = []
    signal_notes: list[str] = []
    rates = rate_correlations(prepared, settings, rate_notes)
    return rates, rate_notes, signal_scores(prepared, history, epoch, settings, signal_notes), signal_notes


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
        protocols=_names(prepared.every.loc[prepared.every["method"] != "none", "protocol_name"]),
        methods=_names(prepared.every["variant"]),
        transfer_sets=prepared.transfer,
        n_history_rows=len(tables.history),
        n_layer_rows=len(tables.layers),
        n_interpolation_rows=len(tables.interpolation),
        excluded=prepared.excluded,
    )


def _names(values: pd.Series) -> list[str]:
    return sorted({str(value) for value in values.dropna()})
