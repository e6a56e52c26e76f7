"""What the runs of a study share: backbones, pixels, text features, and the pretrained model's own numbers.

Everything here is a pure function of a few settings, computed when first asked for and kept: decoded
pixels and pretrained attention on disk, the rest in memory. Nothing here depends on which run asked.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPModel

from attndrift.attention.observer import observe
from attndrift.data.cache import cache_folder
from attndrift.data.dataset import ImageDataset, refuse_same_origin
from attndrift.data.device_pixels import pixels_on
from attndrift.data.errors import DatasetUnavailable
from attndrift.data.pixels import PixelStore
from attndrift.data.splits import SplitPart, Splits, evaluation_part
from attndrift.drift.drift import Drift, Snapshot, compare_snapshots
from attndrift.drift.snapshot import take_snapshot
from attndrift.losses.attention_cache import AttentionCache
from attndrift.methods.checkpoint import fingerprint_embeddings
from attndrift.methods.parameter_drift import squared_norms
from attndrift.models.embedding import image_embeddings
from attndrift.models.evaluation import evaluation_mode
from attndrift.models.load import describe, load_clip, load_processor
from attndrift.models.prune import prune_last_block_to_cls
from attndrift.models.reference import at_commit
from attndrift.process_group import Processes
from attndrift.retention.zero_shot import (
    TextFeatures,
    ZeroShotResult,
    embed_together,
    evaluate_zero_shot,
    retention,
)
from attndrift.study.dataset_splits import open_dataset, splits_key, splits_of
from attndrift.study.settings import RunSettings

TEACHER_BATCH = 200
FINGERPRINT_IMAGES = 8
"""Probe images on which a run's checkpoints prove what they hold."""


@dataclass
class Pretrained:
    """A backbone as it came, with what belongs to it; ``source`` names its commit."""

    source: str
    clip: CLIPModel
    tokenizer: Any
    image_processor: Any
    description: dict[str, Any]
    preprocessing: dict[str, Any]
    device: torch.device
    squared_norms: tuple[float, float]

    @property
    def sha256(self) -> str:
        """Of the weights as they were loaded."""
        return str(self.description["weights_sha256"])

    def copy(self) -> CLIPModel:
        """A copy of the model, on the CPU, to be adapted."""
        return copy.deepcopy(self.clip).to("cpu")

    def embed(self, pixels: Tensor) -> Tensor:
        """Image embeddings of the pretrained model."""
        return image_embeddings(self.clip, pixels)


@dataclass
class Target:
    """The fine-tuning target of a run: its splits, and their pixels on the device of the model."""

    dataset: ImageDataset
    splits: Splits
    train: PixelStore
    validation: PixelStore
    test: PixelStore
    probe: PixelStore

    @property
    def class_names(self) -> tuple[str, ...]:
        """As spoken, in label order."""
        return self.dataset.class_names

    def probe_batches(self, batch_size: int) -> Iterator[Tensor]:
        """The probe images, normalised, in batches."""
        for start in range(0, len(self.splits.probe), batch_size):
            yield self.probe.fetch(range(start, min(start + batch_size, len(self.splits.probe))))


@dataclass(frozen=True)
class Fingerprint:
    """Normalised probe images (images, 3, height, width), and the pretrained model's embeddings of them, on the CPU."""

    pixels: Tensor
    embeddings: Tensor


@dataclass
class TransferSet:
    """A zero-shot set: images that no run trains on, and the features of its class names.

    ``guard_part`` are those that guards measure on; none of them is in ``part``.
    """

    name: str
    dataset: ImageDataset
    part: SplitPart
    store: PixelStore
    text: TextFeatures
    skipped: dict[str, str] = field(default_factory=dict)
    guard_part: SplitPart | None = None
    guard_store: PixelStore | None = None
    anchors: dict[int, Tensor] = field(default_factory=dict)

    def retention(self, accuracy: float, pretrained: float) -> float | None:
        """Percent of the pretrained accuracy; None where that is below twice chance."""
        return retention(accuracy, pretrained, len(self.dataset.class_names))

    def evaluate(
        self,
        model: torch.nn.Module,
        pretrained: Pretrained,
        settings: RunSettings,
        *,
        limit: int | None = None,
        weight_drift: float | None = None,
    ) -> ZeroShotResult:
        """Zero-shot accuracy of ``model`` on the first ``limit`` images (all by default)."""
        n = len(self.part) if limit is None else min(limit, len(self.part))
        # The first batch, of the size that this evaluation makes it: another size may round differently.
        size = min(settings.evaluation_batch_size, n)
        processes = Processes.current()
        if size not in self.anchors:
            self.anchors[size] = embed_together(pretrained.clip, self.store.fetch(range(size)), processes)
        return evaluate_zero_shot(
            model,
            self.store,
            self.part.labels[:n],
            text_features=self.text,
            batch_size=settings.evaluation_batch_size,
            pretrained_embeddings=self.anchors[size],
            weight_drift=weight_drift,
            preprocessing=pretrained.preprocessing,
            dataset=self.dataset.name,
            split=self.part.split,
            processes=processes,
        )


class StudyResources:
    """Makes each shared thing once. ``close`` frees the memory."""

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache or cache_folder()
        self._made: dict[Any, Any] = {}

    def close(self) -> None:
        """Forget everything that is held in memory."""
        self._made.clear()

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def pretrained(self, source: str, device: torch.device) -> Pretrained:
        """The backbone called ``source`` (``NAME@COMMIT`` in a study), loaded once."""

        def make() -> Pretrained:
            clip = prune_last_block_to_cls(load_clip(source)).eval().to(device)
            tokenizer, image_processor = load_processor(source)
            keys = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "image_mean", "image_std")
            described = image_processor.to_dict()
            preprocessing = {key: described.get(key) for key in keys}
            description = describe(source, clip)
            return Pretrained(
                at_commit(source, description.get("revision")),
                clip,
                tokenizer,
                image_processor,
                description,
                preprocessing,
                device,
                squared_norms(clip),
            )

        return self._once(("pretrained", source, str(device)), make)

    def target(self, settings: RunSettings, pretrained: Pretrained) -> Target:
        """Splits and pixels of a run's target."""

        def make() -> Target:
            dataset = self._dataset(settings.dataset, settings)
            splits = splits_of(dataset, settings)
            stores = {name: self._store(dataset, part, pretrained) for name, part in splits.parts.items()}
            return Target(dataset, splits, **stores)

        return self._once(("target", pretrained.source, str(pretrained.device), splits_key(settings)), make)

    def _dataset(self, name: str, settings: RunSettings) -> ImageDataset:
        source = settings.source if name == settings.dataset else None
        return self._once(("dataset", name, source), lambda: open_dataset(name, settings))

    def _store(self, dataset: ImageDataset, part: SplitPart, pretrained: Pretrained) -> PixelStore:
        split = dataset.split(part.split)
        store = PixelStore.open(split, pretrained.image_processor, indices=part.indices, cache_dir=self.cache)
        return pixels_on(store, pretrained.device)

    def transfer_sets(
        self, settings: RunSettings, target: Target, pretrained: Pretrained
    ) -> tuple[list[TransferSet], dict[str, str]]:
        """The run's transfer sets, and those that are out of reach with the reason.

        Raises for an unknown name, and where a set shares its source with the target.
        """
        found, absent = [], {}
        for name in settings.transfer:
            try:
                found.append(self._transfer_set(name, settings, target, pretrained))
            except DatasetUnavailable as error:
                absent[name] = str(error)
        return found, absent

    def _transfer_set(self, name: str, settings: RunSettings, target: Target, pretrained: Pretrained) -> TransferSet:
        dataset = self._dataset(name, settings)
        refuse_same_origin(target.dataset, [dataset])
        probe_per_class = settings.guard_probe_per_class if name == settings.transfer[0] else None

        def make() -> TransferSet:
            part, skipped = evaluation_part(
                dataset,
                limit=settings.transfer_limit,
                data_seed=settings.data_seed,
                unreadable=settings.unreadable,
            )
            # Positions in an order that mixes the classes, so that the first thousand are a fair sample of the set.
            ids = [i.encode("utf-8", "surrogatepass") for i in part.ids]
            order = np.argsort([hashlib.sha256(i).digest() for i in ids], kind="stable")
            part = SplitPart(
                part.name,
                part.split,
                part.indices[order],
                part.labels[order],
                tuple(part.ids[i] for i in order),
            )
            guard_part, part = _kept_apart(part, probe_per_class, len(dataset.class_names))
            store = self._store(dataset, part, pretrained)
            guard_store = None if guard_part is None else self._store(dataset, guard_part, pretrained)
            text = self._text(pretrained, dataset.class_names, settings.prompts)
            return TransferSet(name, dataset, part, store, text, skipped, guard_part, guard_store)

        key = (
            "transfer",
            name,
            pretrained.source,
            str(pretrained.device),
            settings.transfer_limit,
            settings.data_seed,
            settings.prompts,
            probe_per_class,
        )
        return self._once(key, make)

    def _text(self, pretrained: Pretrained, class_names: Sequence[str], prompts: tuple[str, ...]) -> TextFeatures:
        return self._once(
            ("text", pretrained.source, tuple(class_names), prompts),
            lambda: TextFeatures.of(pretrained.clip, pretrained.tokenizer, class_names, prompts),
        )

    def text_features(self, settings: RunSettings, pretrained: Pretrained, class_names: Sequence[str]) -> Tensor:
        """Normalised text features of class names, (classes, dimensions)."""
        return self._text(pretrained, class_names, settings.prompts).features

    def baseline(self, settings: RunSettings, target: Target, pretrained: Pretrained) -> Snapshot:
        """The bare pretrained model on the probe set."""
        return self._once(
            ("baseline", *_of_probe(settings, target, pretrained), settings.evaluation_batch_size),
            lambda: take_snapshot(
                pretrained.clip,
                target.probe_batches(settings.evaluation_batch_size),
                pretrained.embed,
                processes=Processes.current(),
            ),
        )

    def no_drift(self, settings: RunSettings, target: Target, pretrained: Pretrained) -> Drift:
        """The drift of the pretrained model from itself."""
        baseline = self.baseline(settings, target, pretrained)
        return self._once(
            ("no drift", *_of_probe(settings, target, pretrained), settings.evaluation_batch_size),
            lambda: compare_snapshots(baseline, baseline, weight_drift=0.0, projection_drift=0.0),
        )

    def fingerprint(self, settings: RunSettings, target: Target, pretrained: Pretrained) -> Fingerprint:
        """What every checkpoint of a target's runs is proved with."""

        def make() -> Fingerprint:
            pixels = target.probe.fetch(range(min(FINGERPRINT_IMAGES, len(target.splits.probe)))).cpu()
            return Fingerprint(pixels, fingerprint_embeddings(pretrained.clip, pixels))

        return self._once(("fingerprint", *_of_probe(settings, target, pretrained)), make)

    def pretrained_maps(self, settings: RunSettings, target: Target, pretrained: Pretrained) -> NDArray[np.float32]:
        """Attention of the pretrained model on the run's map images: (images, layers, heads, patches)."""
        count = min(settings.map_images, len(target.splits.probe))

        def make() -> NDArray[np.float32]:
            return attention_maps(pretrained.clip, pretrained.embed, target.probe.fetch(range(count)))

        return self._once(("maps", *_of_probe(settings, target, pretrained), count), make)

    def pretrained_transfer(
        self, settings: RunSettings, item: TransferSet, pretrained: Pretrained, *, monitor: bool = False
    ) -> ZeroShotResult:
        """Zero-shot result of the pretrained model, on the whole set or on the images that the monitor uses."""
        limit = settings.monitor_zero_shot_images if monitor else None
        key = (
            "zero-shot",
            item.name,
            pretrained.source,
            str(pretrained.device),
            item.part.hash,
            settings.prompts,
            limit,
            settings.threads,
            settings.evaluation_batch_size,
        )
        return self._once(key, lambda: item.evaluate(pretrained.clip, pretrained, settings, limit=limit))

    def teacher(self, settings: RunSettings, target: Target, pretrained: Pretrained) -> AttentionCache:
        """Pretrained log-attention of the training images, in both orientations; on disk, where it stays."""
        # Ids are unique within a dataset only: a part is known by them and by what the images are.
        part = target.splits.train
        about = [pretrained.description, pretrained.preprocessing, target.splits.fingerprint, part.hash,
                 settings.threads, settings.flip, str(pretrained.device)]  # fmt: skip
        key = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()

        def images() -> Iterator[Tensor]:
            for start in range(0, len(part), TEACHER_BATCH):
                yield target.train.fetch(range(start, min(start + TEACHER_BATCH, len(part))))

        return self._once(
            ("teacher", key),
            lambda: AttentionCache(
                pretrained.clip, images(), flips=settings.flip, count=len(part),
                file=self.cache / "attention" / f"{key[:32]}.npy",
            ),
        )  # fmt: skip


def _of_probe(settings: RunSettings, target: Target, pretrained: Pretrained) -> tuple[Any, ...]:
    """What a number of the pretrained model on a target's probe images depends on."""
    return (
        pretrained.source, str(pretrained.device), target.splits.fingerprint, target.splits.probe.hash, settings.threads,
    )  # fmt: skip


def attention_maps(model: torch.nn.Module, forward: Callable[[Tensor], object], pixels: Tensor) -> NDArray[np.float32]:
    """Attention of the images in a forward pass without gradients: (images, layers, heads, patches), on the CPU."""
    with evaluation_mode(model), observe(model) as seen:
        forward(pixels)
        return torch.stack([layer.cpu() for layer in seen.attention], dim=1).numpy().astype(np.float32, copy=False)


def _kept_apart(part: SplitPart, per_class: int | None, classes: int) -> tuple[SplitPart | None, SplitPart]:
    """The first ``per_class`` images of each class, for guards, and the rest, which they never see.

    Raises ``ValueError`` where a class would have nothing left to be evaluated on.
    """
    if per_class is None:
        return None, part
    # How many images of the same class come before each one.
    rank = np.zeros(len(part), dtype=np.int64)
    for label in range(classes):
        own = part.labels == label
        rank[own] = np.arange(int(own.sum()))
        if own.any() and own.sum() <= per_class:
            raise ValueError(
                f"`guard_probe_per_class` is {per_class}, and class {label} of the transfer set has {int(own.sum())} images: "
                "some must be left that the guard does not see"
            )

    def those(chosen: NDArray[np.bool_], name: str) -> SplitPart:
        where = np.flatnonzero(chosen)
        return SplitPart(name, part.split, part.indices[where], part.labels[where], tuple(part.ids[i] for i in where))

    return those(rank < per_class, "guard"), those(rank >= per_class, part.name)
