"""Interpolation between the pretrained and an adapted model: theta = (1 - alpha) theta0 + alpha theta1.

After Wortsman et al. 2022 (WiSE-FT). Both towers, their projections and the temperature are interpolated,
adapters merged first. The classifier has no pretrained state and stays the adapted one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from torch import nn

from attndrift.drift.monitor import measure_drift
from attndrift.files import refuse_links, write_json
from attndrift.methods.checkpoint import load_adapted
from attndrift.methods.classifier import ImageClassifier
from attndrift.methods.interpolation import interpolate_weights
from attndrift.methods.parameter_drift import projection_drift, weight_drift
from attndrift.methods.registry import trains
from attndrift.models.reference import at_commit
from attndrift.results.measures import MEASURES, ZERO_SHOT, column_stem, outcome_name
from attndrift.retention.shared_embeddings import SharedEmbeddings
from attndrift.retention.task import RetentionResult
from attndrift.retention.zero_shot import ZeroShotResult
from attndrift.study.collect import SWEEP
from attndrift.study.evaluation import split_accuracy, text_drift_of
from attndrift.study.inputs import read_inputs, refuse_changed
from attndrift.study.pretrained_results import PretrainedResults
from attndrift.study.record import read_record
from attndrift.study.resolved import device_of
from attndrift.study.resources import StudyResources
from attndrift.study.retention_measures import retention_task
from attndrift.study.run_images import TransferSet
from attndrift.study.set_descriptions import measures_of
from attndrift.study.settings import RunSettings
from attndrift.study.transfer_images import sharing_images
from attndrift.study.used_inputs import inputs_of, places_of

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def interpolate(
    folder: Path,
    alphas: Sequence[float] = ALPHAS,
    *,
    resources: StudyResources | None = None,
    progress: Callable[[float, dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Measure a finished run's selected checkpoint along ``alphas`` and write ``interpolation.json``.

    Every point has the columns of the table ``interpolation``, with those of every measure of the run.
    ``transfer_S_M_agreement`` is the share of the transfer images whose prediction by the measure M is that of the
    pretrained model; by zero-shot accuracy it needs no labels, by others those of the bank. The test
    split is read once a point, so an alpha chosen by its test accuracy is chosen on the split that it is
    reported on: choose by agreement, by drift, or on validation. Raises ``ValueError`` for a run that is not finished,
    for an alpha outside 0..1, and where images, model or prompts are no longer those of the run; also for a link
    that leads out of the run's folder.
    """
    refuse_links(folder)
    record = read_record(folder)
    if record is None or record["status"] != "finished":
        raise ValueError(f"{folder}: only a finished run can be interpolated; `attndrift show` says how it stands")
    if not trains(record["settings"]["method"]):
        raise ValueError(f"{folder}: the pretrained model has nothing to interpolate to")
    bad = [alpha for alpha in alphas if not 0 <= alpha <= 1]
    if bad or not alphas:
        raise ValueError(f"alphas: {bad[0] if bad else 'none given'}; they lie in 0..1")
    settings = RunSettings.model_validate(record["settings"])
    bench = resources or StudyResources()
    pretrained = bench.pretrained(at_commit(settings.model, record["row"].get("model_revision")), device_of(settings))
    target = bench.target(settings, pretrained)
    transfer, _ = bench.transfer_sets(settings, target, pretrained)
    inputs = inputs_of(settings, pretrained, target, transfer)
    refuse_changed(
        inputs, {folder.name: read_inputs(folder)}, places_of([target.dataset, *(t.dataset for t in transfer)])
    )
    results = bench.results(settings, target, pretrained)
    baseline = results.baseline()
    adapted = load_adapted(folder / "checkpoints" / "best", base=pretrained.copy(), merged=True).to(pretrained.device)
    model = copy.deepcopy(adapted)
    start = dict(pretrained.model.named_parameters())
    end = dict(adapted.backbone.named_parameters())
    drifts = partial(_weight_drifts, model, pretrained.model)
    text = text_drift_of(model, settings, pretrained, results)
    points = []
    before: dict[str, NDArray[np.int64]] = {}
    for alpha in sorted(set(alphas)):
        interpolate_weights(model.backbone, start, end, float(alpha))
        drift = measure_drift(
            baseline,
            model,
            target.probe_batches(settings.evaluation_batch_size),
            drifts,
            model.embed,
            text,
            results.activations(),
        )
        point: dict[str, Any] = {
            "alpha": float(alpha),
            "test_accuracy": split_accuracy(model, target.test, target.splits.test.labels, settings),
            **drift.columns("history"),
        }
        point |= _transfer(model, transfer, results, alpha=alpha, before=before)
        points.append(point)
        if progress is not None:
            progress(float(alpha), point)
    with FileLock(folder / ".lock"):  # whoever has it may remove what is half written
        write_json(folder / SWEEP, {"points": points, "classifier": "adapted", "checkpoint": "best"})
    return points


def _transfer(
    model: nn.Module,
    transfer: Sequence[TransferSet],
    results: PretrainedResults,
    *,
    alpha: float,
    before: dict[str, NDArray[np.int64]],
) -> dict[str, float]:
    """Accuracy and agreement of every set by every measure of the run; ``before`` keeps the pretrained predictions."""
    settings, pretrained = results.settings, results.pretrained
    point: dict[str, float] = {}
    for together in sharing_images(transfer):
        # Gone with the last of these sets, as in a run.
        of_model = SharedEmbeddings(model, batch_size=settings.evaluation_batch_size)
        of_pretrained = results.shared()
        for item in together:
            task, start = retention_task(item, of_model, pretrained, settings), results.retention(item, of_pretrained)
            for measure in measures_of(settings, item.name):
                zero_shot = measure == ZERO_SHOT
                found: ZeroShotResult | RetentionResult = (
                    item.evaluate(of_model, pretrained, settings)
                    if zero_shot
                    else MEASURES[measure].measure(model, task, settings.own)
                )
                stem = column_stem(outcome_name(item.name, measure))
                if alpha == 0.0:
                    before[stem] = found.predictions
                elif stem not in before:
                    of_start = results.transfer(item, shared=of_pretrained) if zero_shot else start(measure)
                    before[stem] = of_start.predictions
                point[f"{stem}_accuracy"] = found.accuracy
                point[f"{stem}_agreement"] = float((found.predictions == before[stem]).mean())
    return point


def _weight_drifts(model: ImageClassifier, pretrained: nn.Module) -> tuple[float, float]:
    return weight_drift(model, pretrained), projection_drift(model, pretrained)
