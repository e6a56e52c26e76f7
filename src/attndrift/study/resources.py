"""What the runs of a study share, each made once: models, images, and the pretrained model's own results.

Everything is a pure function of a few settings. Decoded pixels and pretrained attention are kept on disk, the rest in
memory. Nothing depends on which run asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attndrift.data.cache import cache_folder
from attndrift.data.dataset import ImageDataset, refuse_same_origin
from attndrift.data.errors import DatasetUnavailable
from attndrift.data.sources import local_state
from attndrift.models.backbone import backbone_of
from attndrift.retention.zero_shot import TextFeatures
from attndrift.study.dataset_splits import open_dataset, source_of, splits_key
from attndrift.study.pretrained import Pretrained
from attndrift.study.pretrained_results import PretrainedResults
from attndrift.study.reference_images import ReferenceSet
from attndrift.study.run_images import Target, TransferSet
from attndrift.study.settings import RunSettings


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
        """The backbone called ``source`` (``NAME@COMMIT`` in a study)."""
        return self._once(("pretrained", source, str(device)), lambda: Pretrained.load(source, device))

    def target(self, settings: RunSettings, pretrained: Pretrained) -> Target:
        """Splits and pixels of a run's target."""
        dataset = self._dataset(settings.dataset, settings)
        return self._once(
            ("target", pretrained.source, str(pretrained.device), splits_key(settings), dataset.fingerprint),
            lambda: Target.open(dataset, settings, pretrained, self.cache),
        )

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

    def text(self, settings: RunSettings, pretrained: Pretrained, class_names: Sequence[str]) -> TextFeatures:
        """The pretrained model's features of class names in the run's prompts."""
        return self._once(
            ("text", pretrained.source, tuple(class_names), settings.prompts),
            lambda: TextFeatures.of(pretrained.clip, pretrained.tokenizer, class_names, settings.prompts),
        )

    def reference(
        self, settings: RunSettings, target: Target, pretrained: Pretrained, transfer: Sequence[TransferSet]
    ) -> ReferenceSet | None:
        """The reference images that the run's losses name; None where none does.

        Raises for a dataset that shares its source with the target, and one that cannot be had.
        """
        name = settings.own.get("reference")
        if name is None:
            return None
        dataset = self._dataset(name, settings)
        refuse_same_origin(target.dataset, [dataset])
        # Images that the run is measured on, or that watch it while it trains, must be none that a loss holds.
        parts = [part.part for item in transfer if item.name == name for part in item.parts]
        count = settings.own.get("reference_images", 1)
        text = partial(self.text, settings, pretrained, dataset.class_names)
        return ReferenceSet.open(dataset, count, settings, pretrained, text, self.cache, taken=parts)

    def results(self, settings: RunSettings, target: Target, pretrained: Pretrained) -> PretrainedResults:
        """What the pretrained model comes to on the run's images."""
        return PretrainedResults(settings, target, pretrained, self.cache, self._once)

    def _dataset(self, name: str, settings: RunSettings) -> ImageDataset:
        # A file that changes while the study runs makes another dataset of it, which the next run is told of.
        source = source_of(name, settings)
        key = ("dataset", json.dumps(source), local_state(source))
        return self._once(key, lambda: open_dataset(name, settings))

    def _transfer_set(self, name: str, settings: RunSettings, target: Target, pretrained: Pretrained) -> TransferSet:
        dataset = self._dataset(name, settings)
        refuse_same_origin(target.dataset, [dataset])
        text = None
        if backbone_of(pretrained.clip).text_encoder is not None:
            text = self.text(settings, pretrained, dataset.class_names)
        first = name == settings.transfer[0]
        only_first = (settings.guard_probe_per_class, settings.monitor_zero_shot_images) if first else None
        key = (
            ("transfer", name, pretrained.source, str(pretrained.device), settings.unreadable, dataset.fingerprint),
            (settings.transfer_limit, settings.data_seed, settings.prompts, only_first),
        )
        return self._once(key, lambda: TransferSet.open(dataset, settings, pretrained, text, self.cache, first=first))
