"""What the pretrained model comes to on a run's images: the numbers that every adapted model is compared with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attndrift.attention.observer import observe
from attndrift.drift.activation_change import ActivationChange
from attndrift.drift.drift import Drift, Snapshot, compare_snapshots
from attndrift.drift.snapshot import take_snapshot
from attndrift.drift.text_drift import FixedTexts
from attndrift.losses.ewc import fisher_information
from attndrift.losses.teacher_cache import TeacherCache
from attndrift.losses.views import View
from attndrift.methods.checkpoint import fingerprint_embeddings
from attndrift.metrics.compared import measure_with_texts
from attndrift.models.backbone import backbone_of
from attndrift.models.evaluation import evaluation_mode
from attndrift.process_group import Processes
from attndrift.results.measures import MEASURES
from attndrift.retention.shared_embeddings import SharedEmbeddings
from attndrift.retention.task import RetentionResult
from attndrift.retention.zero_shot import TextFeatures, ZeroShotResult
from attndrift.study.dataset_splits import templates_of
from attndrift.study.pretrained import Pretrained
from attndrift.study.record import FINGERPRINT_IMAGES
from attndrift.study.reference_images import ReferenceSet
from attndrift.study.retention_measures import retention_task
from attndrift.study.run_images import PartImages, Target, TransferSet
from attndrift.study.settings import RunSettings

TEACHER_BATCH = 200


@dataclass(frozen=True)
class Fingerprint:
    """Normalised probe images (images, 3, height, width), and the pretrained model's embeddings of them, on the CPU."""

    pixels: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class PretrainedResults:
    """The pretrained model on the images of one run; runs with equal images and settings share what was computed.

    Attributes:
        cache: folder of what is kept on disk.
        once: returns what was made for a key before, or makes it.
    """

    settings: RunSettings
    target: Target
    pretrained: Pretrained
    cache: Path
    once: Callable[[Any, Callable[[], Any]], Any]

    @property
    def _on_probe(self) -> tuple[Any, ...]:
        """What a number on the probe images depends on."""
        splits = self.target.splits
        model = (self.pretrained.source, str(self.pretrained.device))
        return (*model, splits.fingerprint, splits.probe.hash, self.settings.threads)

    def baseline(self) -> Snapshot:
        """The bare pretrained model on the probe set."""
        size = self.settings.evaluation_batch_size

        def make() -> Snapshot:
            batches, embed = self.target.probe_batches(size), self.pretrained.embed
            return take_snapshot(self.pretrained.model, batches, embed, processes=Processes.current())

        return self.once(("baseline", *self._on_probe, size), make)

    def no_drift(self) -> Drift:
        """The drift of the pretrained model from itself."""
        baseline, texts, activations = self.baseline(), self.probe_texts(), self.activations()

        def make() -> Drift:
            drift = compare_snapshots(baseline, baseline, weight_drift=0.0, projection_drift=0.0)
            own = {} if texts is None else measure_with_texts(baseline.embeddings, texts.measure().now)[0]
            blocks = {} if activations is None else {activations.METRIC: torch.zeros(len(baseline.hidden))}
            return drift.with_more(blocks, own, own)

        size, names = self.settings.evaluation_batch_size, self.target.class_names
        return self.once(("no drift", *self._on_probe, size, names, self._template, activations is None), make)

    @property
    def _template(self) -> str:
        return templates_of(self.target.dataset, self.settings)[0]

    def probe_texts(self) -> FixedTexts | None:
        """The pretrained model's embeddings of the target's class prompts, in the first template; None without a text tower."""
        model, names, template = self.pretrained, self.target.class_names, self._template
        if backbone_of(model.model).text_encoder is None:
            return None
        return self.once(
            ("probe texts", model.source, str(model.device), names, template),
            lambda: FixedTexts(TextFeatures.of(model.model, model.tokenizer, names, [template]).features),
        )

    def activations(self) -> ActivationChange | None:
        """The inputs of the pretrained model's layers on the probe images; None where nobody asks for what is measured with them."""
        if not self.settings.activation_change:
            return None
        size = self.settings.evaluation_batch_size
        return self.once(
            ("activations", *self._on_probe, size),
            lambda: ActivationChange(self.pretrained.model, lambda: self.target.probe_batches(size)),
        )

    def fingerprint(self) -> Fingerprint:
        """What every checkpoint of a target's runs is proved with."""

        def make() -> Fingerprint:
            count = min(FINGERPRINT_IMAGES, len(self.target.splits.probe))
            pixels = self.target.probe.fetch(range(count)).cpu()
            return Fingerprint(pixels, fingerprint_embeddings(self.pretrained.model, pixels))

        return self.once(("fingerprint", *self._on_probe), make)

    def maps(self) -> NDArray[np.float32]:
        """Attention on the run's map images: (images, layers, heads, patches)."""
        count = min(self.settings.map_images, len(self.target.splits.probe))

        def make() -> NDArray[np.float32]:
            pixels = self.target.probe.fetch(range(count))
            return attention_maps(self.pretrained.model, self.pretrained.embed, pixels)

        return self.once(("maps", *self._on_probe, count), make)

    def shared(self) -> SharedEmbeddings:
        """What the pretrained model makes of images: for results that are made together."""
        size = self.settings.evaluation_batch_size
        return SharedEmbeddings(self.pretrained.model, batch_size=size, processes=Processes.current())

    def transfer(
        self, item: TransferSet, images: PartImages | None = None, shared: SharedEmbeddings | None = None
    ) -> ZeroShotResult:
        """Zero-shot result on ``images`` of a transfer set, by default on those of the retention."""
        settings, pretrained = self.settings, self.pretrained
        part = (images or item.evaluation).part
        key = (
            ("zero-shot", pretrained.source, str(pretrained.device), item.dataset.fingerprint, part.hash),
            # The images are embedded in batches with those of other sets.
            item.evaluation.shared_hash if images is None else "",
            (item.text.tokens if item.text else "", settings.threads, settings.evaluation_batch_size),
        )
        if images is not None:
            return self.once(key, lambda: item.watch(pretrained.model, pretrained, settings, images))
        return self.once(key, lambda: item.evaluate(shared or self.shared(), pretrained, settings))

    def retention(self, item: TransferSet, shared: SharedEmbeddings) -> Callable[[str], RetentionResult]:
        """The result of a retention measure, by its name, on a whole transfer set."""
        settings, pretrained = self.settings, self.pretrained
        # Of all measures that are made now; it is gone, with its embeddings, once the caller is done with the set.
        task = cache(lambda: retention_task(item, shared, pretrained, settings))

        def result(measure: str) -> RetentionResult:
            facts = MEASURES[measure]
            own = tuple(settings.settings_of(facts))
            key = (
                (measure, pretrained.source, str(pretrained.device), item.dataset.fingerprint),
                (
                    item.evaluation.part.hash,
                    item.evaluation.shared_hash,
                    settings.bank_limit,
                    settings.threads,
                    settings.evaluation_batch_size,
                    own,
                ),
            )
            return self.once(key, lambda: facts.measure(pretrained.model, task(), settings.own))

        return result

    def training_embeddings(self) -> Tensor:
        """Embeddings of the training images, as they are and not flipped: (images, dimensions), on the CPU."""
        settings, pretrained, store = self.settings, self.pretrained, self.target.train
        size, count = settings.evaluation_batch_size, len(self.target.splits.train)

        def make() -> Tensor:
            with evaluation_mode(pretrained.model):
                parts = [
                    pretrained.embed(store.fetch(range(at, min(at + size, count)))) for at in range(0, count, size)
                ]
            return torch.cat([part.float().cpu() for part in parts])

        model = (pretrained.source, str(pretrained.device))
        splits = self.target.splits
        return self.once(
            ("training embeddings", *model, splits.fingerprint, splits.train.hash, settings.threads, size), make
        )

    def teacher(self, view: View) -> TeacherCache:
        """What ``view`` sees of the training images, in both orientations; on disk, where it stays."""
        settings, pretrained, splits = self.settings, self.pretrained, self.target.splits
        # Ids are unique within a dataset only: a part is known by them and by what the images are.
        about = [pretrained.description, pretrained.preprocessing, splits.fingerprint, splits.train.hash,
                 settings.threads, settings.flip, str(pretrained.device)]  # fmt: skip
        key = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
        count = len(splits.train)

        def images() -> Iterator[Tensor]:
            for start in range(0, count, TEACHER_BATCH):
                yield self.target.train.fetch(range(start, min(start + TEACHER_BATCH, count)))

        def make() -> TeacherCache:
            file = self.cache / view.name / f"{key[:32]}.npy"
            return TeacherCache(pretrained.model, images(), view=view, flips=settings.flip, count=count, file=file)

        return self.once(("teacher", view.name, key), make)

    def fisher(self, reference: ReferenceSet) -> Mapping[str, Tensor]:
        """Fisher information of the pretrained weights on reference images."""
        pretrained = self.pretrained
        key = (pretrained.source, str(pretrained.device), reference.key, self.settings.threads)
        make = partial(fisher_information, pretrained.model, reference.pixels, reference.text_features)
        return self.once(("fisher", *key), make)


def attention_maps(model: torch.nn.Module, forward: Callable[[Tensor], object], pixels: Tensor) -> NDArray[np.float32]:
    """Attention of the images in a forward pass without gradients: (images, layers, heads, patches), on the CPU."""
    with evaluation_mode(model), observe(model) as seen:
        forward(pixels)
        return torch.stack([layer.cpu() for layer in seen.attention], dim=1).numpy().astype(np.float32, copy=False)
