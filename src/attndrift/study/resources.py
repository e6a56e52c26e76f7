"""What the runs of a study share, each made once: models, images, and the pretrained model's own results.

Everything is a pure function of a few settings. Decoded pixels and pretrained attention are kept on disk, the rest in
memory. Nothing depends on which run asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attndrift.data.cache import cache_folder
from attndrift.data.dataset import ImageDataset, refuse_same_origin
from attndrift.data.errors import DataError, DatasetUnavailable, some
from attndrift.models.backbone import backbone_of
from attndrift.retention.zero_shot import TextFeatures
from attndrift.study.dataset_splits import OpenDatasets, splits_key, templates_of, why_no_target
from attndrift.study.pretrained import Pretrained
from attndrift.study.pretrained_results import PretrainedResults
from attndrift.study.reference_images import ReferenceSet
from attndrift.study.run_images import Target, TransferSet
from attndrift.study.settings import RunSettings
from attndrift.study.transfer_images import Divided, divide, open_sets, used_of, without_copies, without_guarded


class StudyResources:
    """Makes each shared thing once. ``close`` frees the memory."""

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache or cache_folder()
        self._made: dict[Any, Any] = {}
        self._datasets = OpenDatasets()

    def close(self) -> None:
        """Forget everything that is held in memory."""
        self._made.clear()
        self._datasets = OpenDatasets()

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
        if dataset.evaluation_only:
            raise DataError(why_no_target(dataset.name))
        return self._once(
            ("target", pretrained.source, str(pretrained.device), splits_key(settings), dataset.fingerprint),
            lambda: Target.open(dataset, settings, pretrained, self.cache),
        )

    def transfer_sets(
        self, settings: RunSettings, target: Target, pretrained: Pretrained
    ) -> tuple[list[TransferSet], dict[str, str]]:
        """The run's transfer sets, and, under ``missing_sets: skip``, those that cannot be had with the reason.

        Raises for an unknown name, where a set shares its source with the target, and otherwise where one cannot be had.
        """
        datasets, absent = [], {}
        for name in settings.transfer:
            try:
                datasets.append(self._dataset(name, settings))
            except DatasetUnavailable as error:
                absent[name] = str(error)
        if absent and settings.missing_sets == "error":
            raise DatasetUnavailable(
                f"transfer sets that cannot be had: {some(absent)}: {next(iter(absent.values()))}. "
                "`missing_sets: skip` goes on without them"
            )
        refuse_same_origin(target.dataset, datasets)
        return self._open_sets(datasets, settings, target, pretrained), absent

    def _open_sets(
        self, datasets: Sequence[ImageDataset], settings: RunSettings, target: Target, pretrained: Pretrained
    ) -> list[TransferSet]:
        chosen = (settings.unreadable, settings.transfer_limit, settings.bank_limit, settings.data_seed)
        spoken = backbone_of(pretrained.model).text_encoder is not None
        first = (settings.guard_probe_per_class, settings.monitor_zero_shot_images, spoken)
        about = tuple((one.name, one.fingerprint) for one in datasets)

        def divided() -> list[Divided]:
            return without_guarded(
                [divide(one, settings, first=one.name == settings.transfer[0], text=spoken) for one in datasets]
            )

        sets = self._once(("divided", about, chosen, first), divided)
        trained = (target.dataset.fingerprint, target.splits.train.hash, settings.duplicates)
        sets = self._once(
            ("without copies", about, chosen, first, trained),
            lambda: [without_copies(one, target, settings, self.cache) for one in sets],
        )
        own = tuple(one.evaluation.hash for one in sets)
        opened = self._once(
            ("transfer", pretrained.source, str(pretrained.device), about, chosen, first, own),
            lambda: open_sets(sets, settings, pretrained, self.cache),
        )
        texts: list[TextFeatures | None] = [None] * len(datasets)
        if spoken:
            texts = [self.text(settings, pretrained, one) for one in datasets]
        # What is monitored is zero-shot accuracy.
        return [
            replace(
                one, text=text, anchors=one.anchors, monitor=None if text is None else one.monitor,
                dropped=told.dropped, compared=told.compared,
            )
            for one, told, text in zip(opened, sets, texts, strict=True)
        ]  # fmt: skip

    def text(self, settings: RunSettings, pretrained: Pretrained, dataset: ImageDataset) -> TextFeatures:
        """The pretrained model's features of the class names in the prompts of the set; of class halves, cut from the whole's."""
        names, templates = dataset.class_names, templates_of(dataset, settings)
        if dataset.base is not None and templates == templates_of(dataset.base, settings):
            whole = self.text(settings, pretrained, dataset.base)
            return whole if names == whole.class_names else whole.subset(names)
        return self._once(
            ("text", pretrained.source, names, templates),
            lambda: TextFeatures.of(pretrained.model, pretrained.tokenizer, names, templates),
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
        parts = used_of(dataset, transfer)
        count = settings.own.get("reference_images", 1)
        text = partial(self.text, settings, pretrained, dataset)
        return ReferenceSet.open(dataset, count, settings, pretrained, text, self.cache, taken=parts)

    def results(self, settings: RunSettings, target: Target, pretrained: Pretrained) -> PretrainedResults:
        """What the pretrained model comes to on the run's images."""
        return PretrainedResults(settings, target, pretrained, self.cache, self._once)

    def _dataset(self, name: str, settings: RunSettings) -> ImageDataset:
        # A file that changes while the study runs makes another dataset of it, which the next run is told of.
        return self._datasets.open(name, settings)
