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
from attndrift.methods.classifier import CLIPClassifier
from attndrift.methods.interpolation import interpolate_weights
from attndrift.methods.parameter_drift import projection_drift, weight_drift
from attndrift.methods.registry import trains
from attndrift.models.reference import at_commit
from attndrift.study.collect import SWEEP
from attndrift.study.evaluation import split_accuracy, text_drift_of
from attndrift.study.inputs import read_inputs, refuse_changed
from attndrift.study.record import read_record
from attndrift.study.resolved import device_of
from attndrift.study.resources import StudyResources
from attndrift.study.settings import RunSettings
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

    Every point has the columns of the table ``interpolation``. ``transfer_S_zero_shot_agreement`` is the share of the
    transfer images whose zero-shot prediction is that of the pretrained model, which needs no labels. The test
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
    start = dict(pretrained.clip.named_parameters())
    end = dict(adapted.backbone.named_parameters())
    drifts = partial(_weight_drifts, model, pretrained.clip)
    text = text_drift_of(model, settings, pretrained)
    points = []
    before: dict[str, NDArray[np.int64]] = {}
    for alpha in sorted(set(alphas)):
        interpolate_weights(model.backbone, start, end, float(alpha))
        drift = measure_drift(
            baseline, model, target.probe_batches(settings.evaluation_batch_size), drifts, model.embed, text
        )
        point: dict[str, Any] = {
            "alpha": float(alpha),
            "test_accuracy": split_accuracy(model, target.test, target.splits.test.labels, settings),
            **drift.columns("history"),
        }
        for item in transfer:
            found = item.evaluate(model, pretrained, settings)
            if alpha == 0.0:
                before[item.name] = found.predictions
            elif item.name not in before:
                before[item.name] = results.transfer(item).predictions
            point[f"transfer_{item.name}_zero_shot_accuracy"] = found.accuracy
            point[f"transfer_{item.name}_zero_shot_agreement"] = float((found.predictions == before[item.name]).mean())
        points.append(point)
        if progress is not None:
            progress(float(alpha), point)
    with FileLock(folder / ".lock"):  # whoever has it may remove what is half written
        write_json(folder / SWEEP, {"points": points, "classifier": "adapted", "checkpoint": "best"})
    return points


def _weight_drifts(model: CLIPClassifier, pretrained: nn.Module) -> tuple[float, float]:
    return weight_drift(model, pretrained), projection_drift(model, pretrained)
