"""From tables to the result: the order of the parts, and nothing else."""

from __future__ import annotations

import pandas as pd

from attndrift.analysis.across_sets import across_sets_tables
from attndrift.analysis.compute import compute_table
from attndrift.analysis.configurations import Prepared, evidence_label, prepare
from attndrift.analysis.contrasts import effect_tables
from attndrift.analysis.digest import digest
from attndrift.analysis.dynamics import dynamics_tables, epochs_from_steps, order_history
from attndrift.analysis.early_warning import early_warning
from attndrift.analysis.findings import generate
from attndrift.analysis.image_intervals import ImageIntervals, Outcomes
from attndrift.analysis.interpolation import interpolation_tables
from attndrift.analysis.layers import baseline_tables, block_changes, change_per_layer, layer_values, measured_steps
from attndrift.analysis.means import means_tables, seeds_in
from attndrift.analysis.operating import operating_tables
from attndrift.analysis.power import PUBLISHED, PUBLISHED_SPREAD, power_table, variance_table
from attndrift.analysis.result import Analysis, Summary, Table
from attndrift.analysis.selection_rules import selection_rules
from attndrift.analysis.set_summaries import set_tables
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.signal_findings import signal_findings
from attndrift.analysis.signal_sources import signal_values
from attndrift.analysis.signals import signal_tables
from attndrift.analysis.summary import aggregate_table, all_runs_table, sweep_tables
from attndrift.analysis.timing import timing_table
from attndrift.methods.registry import PRETRAINED, label_of
from attndrift.results.tables import Tables


def analyze(tables: Tables, *, settings: AnalysisSettings | None = None, outcomes: Outcomes | None = None) -> Analysis:
    """Everything that the tables support, with honest uncertainty; reads nothing but ``tables``.

    ``outcomes``: which transfer images were right (:func:`~attndrift.analysis.image_intervals.read_image_outcomes`), for
    intervals over images in the tables ``overview`` (where there is one run) and ``suites``.

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
    measured = signal_values(prepared, history, epoch, notes)

    result: dict[str, Table] = {
        table.name: table
        for table in (
            all_runs_table(prepared),
            aggregate_table(prepared),
            *sweep_tables(prepared, settings),
            *baseline_tables(prepared, values, tables.layers, notes),
            change_per_layer(prepared, values, notes),
            *dynamics_tables(prepared, history, epoch, settings, notes),
            timing_table(prepared, history, epoch, settings),
            *operating_tables(prepared, settings),
            compute_table(prepared, history, epoch, settings, notes),
            *effect_tables(prepared, block_changes(prepared, values, notes), settings, notes),
            variance_table(prepared, settings),
            *signal_tables(prepared, measured, settings, notes),
            early_warning(prepared, measured, settings, notes),
            selection_rules(prepared, settings),
            *interpolation_tables(prepared, tables.interpolation, settings, notes),
            *across_sets_tables(prepared, settings),
            *set_tables(prepared, ImageIntervals(outcomes or {}, settings.level), settings),
            *means_tables(prepared, settings),
        )
    }
    result["power"] = power_table(prepared, result["differences"], settings)
    summary = _summary(prepared, tables, settings)
    first, overview = digest(prepared, result, summary, settings, outcomes or {})
    result = {overview.name: overview} | result
    of_seeds = f"Intervals of findings about methods: {settings.level:.0%}, Student's t over seeds ({summary.n_seeds})."
    notes.append(_ONE_SEED if summary.single_seed else of_seeds)
    return Analysis(
        settings=settings,
        data=summary,
        notes=list(dict.fromkeys(notes)),
        digest=first,
        findings=generate(prepared, result, settings, signal_findings(result, settings)),
        tables=result,
    )


_SPREADS = ", ".join(f"{spread:g} points ({label_of(name)})" for name, spread in PUBLISHED_SPREAD.items())
_ONE_SEED = f"One seed. In {PUBLISHED} another seed moved the retention by {_SPREADS}: one standard deviation each."


def _summary(prepared: Prepared, tables: Tables, settings: AnalysisSettings) -> Summary:
    adapted = prepared.adapted
    n_configurations = int(adapted["configuration"].nunique())
    n_seeds = seeds_in(adapted)
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
