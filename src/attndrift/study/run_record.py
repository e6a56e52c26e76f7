"""The record of a run that finished or diverged: its row of the table ``runs``, and what is needed to trust or repeat it."""

from __future__ import annotations

from typing import Any

from attndrift import metrics
from attndrift.losses.names import parse_losses
from attndrift.losses.registry import LOSSES
from attndrift.methods.classifier import ImageClassifier
from attndrift.process_group import Processes
from attndrift.results.tables import TRANSFER_FIELDS
from attndrift.retention.retained import Retained, accuracy_limits, why_no_retention
from attndrift.retention.task import RetentionResult
from attndrift.retention.zero_shot import ZeroShotResult
from attndrift.study import record as records
from attndrift.study.run_images import TransferSet
from attndrift.study.run_inputs import RunInputs
from attndrift.study.set_descriptions import measures_of
from attndrift.study.setting_columns import setting_columns
from attndrift.study.steps import steps_per_epoch
from attndrift.study.training.plan import precision_of


def sizes(model: ImageClassifier, inputs: RunInputs) -> dict[str, Any]:
    """Columns of ``runs``: how many images and parameters."""
    splits = inputs.target.splits
    return {
        "n_train": len(splits.train),
        "n_validation": len(splits.validation),
        "n_test": len(splits.test),
        "n_probe": len(splits.probe),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "total_parameters": sum(p.numel() for p in model.parameters()),
    }


def baseline_columns(inputs: RunInputs) -> dict[str, Any]:
    """Columns of ``runs``: what they say of the pretrained model alone."""
    columns = inputs.results.no_drift().columns("runs")
    return {name: value for name, value in columns.items() if name.endswith("_baseline")}


def transfer_columns(
    item: TransferSet, measure: str, before: ZeroShotResult | RetentionResult, after: ZeroShotResult | RetentionResult
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns of ``runs`` of a measure on a transfer set, and what the record says of it besides."""
    kept = Retained.of(before.correct, after.correct, len(item.dataset.class_names))
    values = {"accuracy": after.accuracy, "pretrained": before.accuracy, **kept.columns(), "n": after.n}
    columns = {f"transfer_{item.name}_{measure}_{field}": value for field, value in values.items()}
    adapted, pretrained = (
        {**one.to_json(), "accuracy_interval": dict(zip(("low", "high"), accuracy_limits(one.correct), strict=True))}
        for one in (after, before)
    )
    numbers = {"retention_pct": kept.retention_pct, "change_points": kept.change_points, **kept.intervals()}
    return columns, {"adapted": adapted, "pretrained": pretrained, **numbers, "reason": kept.reason}


def run_record(
    inputs: RunInputs,
    status: str,
    values: dict[str, Any],
    transfer: dict[str, Any],
    time: dict[str, Any],
    problem: str | None = None,
) -> dict[str, Any]:
    """The record of a run.

    Args:
        values: columns of ``runs`` that were measured.
        transfer: what is to be said of each zero-shot set besides its columns.
        time: seconds, of the whole run and of its phases.
        problem: why it diverged.
    """
    settings, pretrained, baseline = inputs.settings, inputs.pretrained, inputs.baseline
    row = _row(inputs, status, values)
    device, processes = str(inputs.device), Processes.current()
    precision = precision_of(settings, inputs.device)
    repeats = records.determinism(device, settings.threads, processes.count, precision)
    return {
        "status": status,
        "run_id": inputs.run.run_id,
        "problem": problem,
        "settings": settings.to_json(),
        "settings_hash": settings.hash,
        "row": row,
        "nulls": _nulls(inputs, row),
        "transfer": transfer,
        "absent": dict(inputs.absent),
        "cka_chance_level": metrics.cka_chance_level(baseline.hidden.shape[1], baseline.hidden.shape[-1]),
        "versions": records.versions(),
        "hardware": records.hardware(device, settings.threads),
        "processes": processes.count,
        "precision": precision,
        "deterministic": not repeats["not_bit_for_bit"],
        "determinism": repeats,
        "hashes": {"model": pretrained.description, "data": inputs.target.splits.hash},
        "data": inputs.target.dataset.source,
        "preprocessing": pretrained.preprocessing,
        "time": time,
    }


def _row(inputs: RunInputs, status: str, values: dict[str, Any]) -> dict[str, Any]:
    settings = inputs.settings
    return {
        **setting_columns(settings),
        "model_revision": inputs.pretrained.description.get("revision"),
        "epochs": _epochs(inputs) if settings.facts.adapts else None,
        "parent_run": None,
        # A transfer set refuses parts that share an image.
        "monitor_disjoint": True if any(item.monitor for item in inputs.transfer) else None,
        "status": status,
        **values,
        **{
            f"transfer_{name}_{measure}_{field}": None
            for name in inputs.absent
            for measure in measures_of(settings, name)
            for field in TRANSFER_FIELDS
        },
    }


def _epochs(inputs: RunInputs) -> float:
    """Planned epochs; of a training that is counted in steps, how many these are."""
    settings, images = inputs.settings, len(inputs.target.splits.train)
    return settings.epochs if settings.steps is None else settings.steps / steps_per_epoch(settings, images)


def why_no_activity(loss: str | None) -> str:
    """Why the activity of a run's preservation losses is no number; ``loss`` as in the table ``runs``."""
    names = [name for name, weight in parse_losses(loss).items() if weight]
    reporting = [name for name in names if LOSSES[name].reports_active]
    if not names:
        return "the run has no preservation loss"
    if not reporting:
        return f"{' and '.join(names)} {'counts' if len(names) == 1 else 'count'} no activity"
    if len(reporting) == 1:
        return f"{reporting[0]} saw no batch"
    return f"{' and '.join(reporting)} each have one, in the table `losses`"


def _nulls(inputs: RunInputs, row: dict[str, Any]) -> dict[str, str]:
    """Why a value that a reader would expect is null."""
    reasons = {
        f"transfer_{name}_{one}_accuracy": reason
        for name, reason in inputs.absent.items()
        for one in measures_of(inputs.settings, name)
    }
    if row.get("loss_active_fraction") is None:
        reasons["loss_active_fraction"] = why_no_activity(row.get("loss"))
    for item in inputs.transfer:
        for one in measures_of(inputs.settings, item.name):
            stem = f"transfer_{item.name}_{one}"
            if row.get(f"{stem}_accuracy") is not None and row[f"{stem}_retention_pct"] is None:
                why = why_no_retention(row[f"{stem}_pretrained"], len(item.dataset.class_names), row[f"{stem}_n"])
                reasons |= {f"{stem}_{name}": str(why) for name in ("retention_pct", "change_points")}
    return reasons
