"""What the pretrained model comes to on a run's images: the numbers that every adapted model is compared with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attndrift.attention.observer import observe
from attndrift.drift.drift import Drift, Snapshot, compare_snapshots
from attndrift.drift.snapshot import take_snapshot
from attndrift.losses.ewc import fisher_information
from attndrift.losses.teacher_cache import TeacherCache
from attndrift.losses.views import View
from attndrift.methods.checkpoint import fingerprint_embeddings
from attndrift.models.evaluation import evaluation_mode
from attndrift.process_group import Processes
from attndrift.retention.task import RetentionResult
from attndrift.retention.zero_shot import ZeroShotResult
from attndrift.study.pretrained import Pretrained
from attndrift.study.record import FINGERPRINT_IMAGES
from attndrift.study.reference_images import ReferenceSet
from attndrift.study.retention_measures import measure_retention
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
            return take_snapshot(self.pretrained.clip, batches, embed, processes=Processes.current())

        return self.once(("baseline", *self._on_probe, size), make)

    def no_drift(self) -> Drift:
        """The drift of the pretrained model from itself."""
        baseline = self.baseline()
        return self.once(
            ("no drift", *self._on_probe, self.settings.evaluation_batch_size),
            lambda: compare_snapshots(baseline, baseline, weight_drift=0.0, projection_drift=0.0),
        )

    def fingerprint(self) -> Fingerprint:
        """What every checkpoint of a target's runs is proved with."""

        def make() -> Fingerprint:
            count = min(FINGERPRINT_IMAGES, len(self.target.splits.probe))
            pixels = self.target.probe.fetch(range(count)).cpu()
            return Fingerprint(pixels, fingerprint_embeddings(self.pretrained.clip, pixels))

        return self.once(("fingerprint", *self._on_probe), make)

    def maps(self) -> NDArray[np.float32]:
        """Attention on the run's map images: (images, layers, heads, patches)."""
        count = min(self.settings.map_images, len(self.target.splits.probe))

        def make() -> NDArray[np.float32]:
            pixels = self.target.probe.fetch(range(count))
            return attention_maps(self.pretrained.clip, self.pretrained.embed, pixels)

        return self.once(("maps", *self._on_probe, count), make)

    def transfer(self, item: TransferSet, images: PartImages | None = None) -> ZeroShotResult:
        """Zero-shot result on ``images`` of a transfer set, by default on those of the retention."""
        settings, pretrained = self.settings, self.pretrained
        part = (images or item.evaluation).part
        key = (
            ("zero-shot", pretrained.source, str(pretrained.device), item.dataset.fingerprint, part.hash),
            (item.text.tokens if item.text else "", settings.threads, settings.evaluation_batch_size),
        )
        return self.once(key, lambda: item.evaluate(pretrained.clip, pretrained, settings, images=images))

    def retention(self, measure: str, item: TransferSet) -> RetentionResult:
        """A retention measure on a whole transfer set."""
        settings, pretrained = self.settings, self.pretrained
        key = (
            (measure, pretrained.source, str(pretrained.device), item.dataset.fingerprint, item.evaluation.part.hash),
            (settings.bank_limit, settings.threads, settings.evaluation_batch_size),
        )
        make = partial(measure_retention, measure, item, pretrained.clip, pretrained, settings, self.cache)
        return self.once(key, make)

    def training_embeddings(self) -> Tensor:
        """Embeddings of the training images, as they are and not flipped: (images, dimensions), on the CPU."""
        settings, pretrained, store = self.settings, self.pretrained, self.target.train
        size, count = settings.evaluation_batch_size, len(self.target.splits.train)

        def make() -> Tensor:
            with evaluation_mode(pretrained.clip):
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
            return TeacherCache(pretrained.clip, images(), view=view, flips=settings.flip, count=count, file=file)

        return self.once(("teacher", view.name, key), make)

    def fisher(self, reference: ReferenceSet) -> Mapping[str, Tensor]:
        """Fisher information of the pretrained weights on reference images."""
        pretrained = self.pretrained
        key = (pretrained.source, str(pretrained.device), reference.key, self.settings.threads)
        make = partial(fisher_information, pretrained.clip, reference.pixels, reference.text_features)
        return self.once(("fisher", *key), make)


def attention_maps(model: torch.nn.Module, forward: Callable[[Tensor], object], pixels: Tensor) -> NDArray[np.float32]:
    """Attention of the images in a forward pass without gradients: (images, layers, heads, patches), on the CPU."""
    with evaluation_mode(model), observe(model) as seen:
        forward(pixels)
        return torch.stack([layer.cpu() for layer in seen.attention], dim=1).numpy().astype(np.float32, copy=False)
