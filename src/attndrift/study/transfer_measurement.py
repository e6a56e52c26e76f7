"""What the pretrained model and that of a run come to on the run's transfer sets, by every measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from attndrift.drift.drift import Drift
from attndrift.results.measures import MEASURES, ZERO_SHOT
from attndrift.retention.shared_embeddings import SharedEmbeddings
from attndrift.retention.task import RetentionResult
from attndrift.retention.zero_shot import ZeroShotResult
from attndrift.study.phases import PhaseReporter
from attndrift.study.retention_measures import retention_task
from attndrift.study.run_images import TransferSet
from attndrift.study.run_inputs import RunInputs
from attndrift.study.run_record import transfer_columns
from attndrift.study.set_descriptions import measures_of
from attndrift.study.transfer_images import sharing_images

Retained = ZeroShotResult | RetentionResult
_Passes = tuple[SharedEmbeddings, SharedEmbeddings | None]


def measure_transfer(
    inputs: RunInputs,
    reporter: PhaseReporter,
    model: nn.Module | None,
    drift: Drift,
    write: Callable[[TransferSet, str, Retained, Retained], object] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns and details of every transfer set; without a ``model``, of the pretrained one alone.

    ``write`` is given set, measure, and what both models came to: which images were right.
    """
    columns: dict[str, dict[str, Any]] = {item.name: {} for item in inputs.transfer}
    details: dict[str, dict[str, Any]] = {item.name: {} for item in inputs.transfer}
    for together in sharing_images(inputs.transfer):
        # Gone with the last of these sets: the embeddings of all sets of a suite may take gigabytes.
        passes = _passes(inputs, model)
        for item in together:
            details[item.name] = {
                "hash": item.evaluation.part.hash,
                "monitor_hash": None if item.monitor is None else item.monitor.part.hash,
                "skipped": item.skipped,
                "duplicates": [list(pair) for pair in item.dropped],
                "compared": {whose: list(counts) for whose, counts in item.compared.items()},
            }
            for measure, before, after in _retained(inputs, reporter, item, passes, drift):
                values, detail = transfer_columns(item, measure, before, after)
                columns[item.name] |= values
                details[item.name] |= {measure: detail}
                if write is not None:
                    write(item, measure, before, after)
    return {name: value for one in columns.values() for name, value in one.items()}, details


def _passes(inputs: RunInputs, model: nn.Module | None) -> _Passes:
    of_pretrained = inputs.results.shared()
    if model is None:
        return of_pretrained, None
    return of_pretrained, SharedEmbeddings(
        model, batch_size=of_pretrained.batch_size, processes=of_pretrained.processes
    )


def _retained(
    inputs: RunInputs, reporter: PhaseReporter, item: TransferSet, passes: _Passes, drift: Drift
) -> Iterator[tuple[str, Retained, Retained]]:
    """Each measure of the pretrained model, and of the run's; without one, of the pretrained one twice."""
    results, pretrained, settings = inputs.results, inputs.pretrained, inputs.settings
    before_pass, after_pass = passes
    of_pretrained = results.retention(item, before_pass)
    task = None if after_pass is None else retention_task(item, after_pass, pretrained, settings)
    for measure in measures_of(settings, item.name):
        facts = MEASURES[measure]
        zero_shot = measure == ZERO_SHOT
        reporter.phase(f"{facts.label} on {item.name}, the pretrained model")
        before: Retained = results.transfer(item, shared=before_pass) if zero_shot else of_pretrained(measure)
        after = before
        if after_pass is not None:
            reporter.phase(f"{facts.label} on {item.name}")
            if zero_shot:
                after = item.evaluate(after_pass, pretrained, settings, weight_drift=drift.weight_drift)
            else:
                after = facts.measure(after_pass.model, task, settings.own)
        yield measure, before, after
