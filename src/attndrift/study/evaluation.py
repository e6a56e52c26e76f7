"""Measuring a model of a run: accuracy on a split, drift from the pretrained model, zero-shot transfer."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike

from attndrift.data.pixels import PixelStore
from attndrift.drift.drift import Drift
from attndrift.drift.monitor import DriftMonitor, measure_drift
from attndrift.drift.text_drift import FixedTexts, TextDrift
from attndrift.methods.classifier import ImageClassifier
from attndrift.methods.parameter_drift import projection_drift, weight_drift
from attndrift.models.evaluation import evaluation_mode
from attndrift.process_group import Processes
from attndrift.study.pretrained import Pretrained
from attndrift.study.pretrained_results import PretrainedResults
from attndrift.study.run_images import TransferSet
from attndrift.study.run_inputs import RunInputs
from attndrift.study.settings import RunSettings


def split_accuracy(model: ImageClassifier, store: PixelStore, labels: ArrayLike, settings: RunSettings) -> float:
    """Top-1 accuracy of the classifier on all images of a store; ``labels`` by position.

    Several processes (``torch.distributed``) share the images; each gets the accuracy on all of them.
    """
    wanted = torch.as_tensor(np.asarray(labels))
    processes, device = Processes.current(), next(model.parameters()).device
    mine = torch.arange(processes.rank, len(wanted), processes.count)
    correct = torch.tensor(0)
    with processes.agreeing(), evaluation_mode(model), model.texts_encoded_once():
        for part in mine.split(settings.evaluation_batch_size):
            logits = model(pixel_values=store.fetch(part.tolist()).to(device)).logits.float().cpu()
            correct += (logits.argmax(-1) == wanted[part]).sum()
    return int(processes.sum(correct.reshape(1))) / len(wanted)


def accuracy(model: ImageClassifier, inputs: RunInputs, part: str) -> float:
    """Top-1 accuracy on the ``validation`` or the ``test`` split of a run."""
    store = inputs.target.validation if part == "validation" else inputs.target.test
    return split_accuracy(model, store, getattr(inputs.target.splits, part).labels, inputs.settings)


def weight_drifts(model: ImageClassifier, inputs: RunInputs) -> tuple[float, float]:
    """Relative weight drift of the vision tower and of the projection."""
    tower, projection = inputs.pretrained.squared_norms
    pretrained = inputs.pretrained.model
    return weight_drift(model, pretrained, tower), projection_drift(model, pretrained, projection)


def text_drift_of(
    model: ImageClassifier, settings: RunSettings, pretrained: Pretrained, results: PretrainedResults
) -> TextDrift | FixedTexts | None:
    """What measures the text side of a run's model, on the class prompts in the first template; None without one."""
    live = model.live_text
    if live is None or not settings.trains_text:
        return results.probe_texts()
    return TextDrift(model, live.tokens[:, 0], reference=pretrained.model)


def monitor_of(model: ImageClassifier, inputs: RunInputs) -> DriftMonitor:
    """The monitor of a run's model, on the probe images."""
    return DriftMonitor(
        model,
        lambda: inputs.target.probe_batches(inputs.settings.evaluation_batch_size),
        reference=inputs.baseline,
        embed=model.embed,
        weight_drift=lambda: weight_drifts(model, inputs),
        text=text_drift_of(model, inputs.settings, inputs.pretrained, inputs.results),
        activations=inputs.results.activations(),
    )


def drift_of(model: ImageClassifier, inputs: RunInputs) -> Drift:
    """The drift of a model on the probe images, once."""
    batches = inputs.target.probe_batches(inputs.settings.evaluation_batch_size)
    drifts = partial(weight_drifts, model, inputs)
    text = text_drift_of(model, inputs.settings, inputs.pretrained, inputs.results)
    return measure_drift(
        inputs.baseline, model, batches, drifts, model.embed, text, inputs.results.activations(),
        processes=Processes.current(),
    )  # fmt: skip


def monitored_accuracy(monitored: TransferSet, model: ImageClassifier, inputs: RunInputs) -> float:
    """Zero-shot accuracy on the images that a run watches while it trains."""
    assert monitored.monitor is not None
    return monitored.watch(model, inputs.pretrained, inputs.settings, monitored.monitor).accuracy
