"""Sizes of a study's models: of models without weights, kept in the cache folder until a package changes.

To make such a model imports transformers and peft, which takes longer than all else in a dry run. Those that the demo
asks for come with this package (``model_sizes.json``, which ``scripts/model_sizes.py`` writes).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attndrift import models
from attndrift.data.cache import cache_folder, code_key
from attndrift.files import read_json, write_json
from attndrift.losses.registry import LOSSES
from attndrift.methods.registry import HEADS, METHODS
from attndrift.models.backbone import TextShape, VisionShape, scheme_of
from attndrift.models.reference import CONFIG_PREFIX
from attndrift.study.dataset_splits import OpenDatasets
from attndrift.study.resolved import adaptation
from attndrift.study.settings import RunSettings, Study
from attndrift.study.text_needs import text_problem

MOST_KEPT = 5000
"""Sizes in the file, at most."""

SHIPPED = Path(__file__).with_name("model_sizes.json")


class ModelSizes:
    """Shapes and parameter counts; :meth:`keep` writes those that were not known before.

    ``known``: sizes from elsewhere; by default those that come with this package, and those that were kept before.
    """

    def __init__(self, known: Mapping[str, list[int]] | None = None) -> None:
        self._path, self._code = cache_folder() / "model-sizes.json", code_key("torch", "transformers", "peft")
        self._kept: dict[str, list[int]] = {}
        self._now: dict[str, list[int]] = {}
        self._identities: dict[str, str | None] = {}
        if known is not None:
            self._kept |= known
            return
        with suppress(OSError, ValueError, AttributeError, KeyError):
            content = read_json(self._path)
            self._kept |= content["sizes"] if content.get("code") == self._code else {}
        self._kept |= read_json(SHIPPED)

    def shape(self, source: str) -> VisionShape:
        """The sizes of a model's image tower. Raises :class:`~attndrift.models.errors.ModelError`."""

        def load() -> list[int]:
            # Imported here: it imports transformers, which a size that is kept does not need.
            from attndrift.models.load import load_shape

            return list(asdict(load_shape(source)).values())

        return VisionShape(*self._size(source, "shape", load, keep=True))

    def text_shape(self, source: str) -> TextShape | None:
        """The sizes of a model's text tower, where they can be told. Raises as :meth:`shape` does."""

        def load() -> list[int]:
            # As above.
            from attndrift.models.load import load_text_shape

            found = load_text_shape(source)
            return [] if found is None else list(asdict(found).values())

        sizes = self._size(source, "text shape", load, keep=True)
        return TextShape(*sizes) if sizes else None

    def has_text(self, source: str) -> bool:
        """Whether a model has a text tower. Raises as :meth:`shape` does."""

        def load() -> list[int]:
            # As above.
            from attndrift.models.load import has_text_tower

            return [int(has_text_tower(source))]

        return bool(self._size(source, "text tower", load, keep=True)[0])

    def parameters(self, settings: RunSettings, n_classes: int) -> tuple[int, int]:
        """Trainable and total parameters of a run's model. Raises ``ValueError`` for a method or loss that it cannot take."""

        def count() -> list[int]:
            # As above.
            from attndrift.study.trained_parameters import trained_parameters

            return list(trained_parameters(settings, n_classes))

        problem = text_problem(settings)
        if problem is not None and not self.has_text(settings.model):
            raise ValueError(problem)
        adapted, checked = adaptation(settings), [name for name in settings.losses if LOSSES[name].check is not None]
        # What another package or this process registered may be another method the next time.
        origins = [
            METHODS.origin(adapted.method),
            METHODS.origin(adapted.text_tower),
            HEADS.origin(adapted.head),
            *map(LOSSES.origin, checked),
        ]
        what = {"adapted": adapted.to_json(), "classes": n_classes, "checked": checked}
        if checked:
            what["own"] = settings.own
        text = json.dumps(what, sort_keys=True, default=str)
        trainable, total = self._size(settings.model, text, count, keep=set(origins) <= {"attndrift"})
        return trainable, total

    def _size(self, source: str, what: str, compute: Callable[[], list[int]], *, keep: bool) -> list[int]:
        if source not in self._identities:
            text = _identity(source)
            self._identities[source] = text and hashlib.sha256(text.encode()).hexdigest()
        identity = self._identities[source] if keep else None
        key = f"{identity or source} {what}"
        known = self._now.get(key) or (self._kept.get(key) if identity else None)
        if known is None:
            known = self._now[key] = compute()
            if identity:
                self._kept[key] = known
        return known

    def keep(self) -> None:
        """Write what is new. A cache folder that cannot be written to changes nothing."""
        if not self._now:
            return
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, {"code": self._code, "sizes": dict(list(self._kept.items())[-MOST_KEPT:])})
        self._now = {}


def sizes_of(study: Study) -> dict[str, list[int]]:
    """What a check and a dry run of ``study`` ask for, made anew."""
    sizes, datasets = ModelSizes(known={}), OpenDatasets()
    for run in study.runs:
        sizes.shape(run.settings.model)
        for classes in (2, len(datasets.open(run.settings.dataset, run.settings).class_names)):
            sizes.parameters(run.settings, classes)
    return dict(sorted(sizes._kept.items()))


def _identity(source: str) -> str | None:
    """Text that is another one where the model has another shape; None for a model that is not on this machine."""
    name: Any = source.removeprefix(CONFIG_PREFIX)
    path = Path(models.__file__).parent / "embedded" if source == "embedded" else Path(name)
    if scheme_of(source) is not None:
        return None
    with suppress(OSError, ValueError):
        if not path.is_dir():
            return path.read_text(encoding="utf-8")
        # The image processor decides the size of the images, for some models.
        texts = [path / name for name in ("config.json", "preprocessor_config.json", "processor_config.json")]
        return "".join(one.read_text(encoding="utf-8") for one in texts if one.name == "config.json" or one.is_file())
    return source if source.startswith(CONFIG_PREFIX) else None
