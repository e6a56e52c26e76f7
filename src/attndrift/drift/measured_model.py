"""A model as one measurement finds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Self, TypeVar

from torch import Tensor, nn

from attndrift.attention.families import VisionTower, find_vision_tower
from attndrift.models.embedding import as_embedding, image_embeddings
from attndrift.models.evaluation import preserve_state, unwrapped
from attndrift.models.module_utils import is_a, named_modules

V = TypeVar("V")


class MeasuredModel(NamedTuple):
    """A model, its modules by name, and its vision tower: looked for once a measurement, as adapters may come and go.

    Attributes:
        model: without wrappers for several processes, compilation or averaging.
        modules: every module and its name.
        tower: the vision transformer inside.
    """

    model: nn.Module
    modules: Mapping[nn.Module, str]
    tower: VisionTower

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Raises :class:`~attndrift.attention.ObservationError` for a model that cannot be observed."""
        model = unwrapped(model)
        modules = named_modules(model)
        return cls(model, modules, find_vision_tower(model, modules))

    @property
    def weight(self) -> nn.Parameter:
        """A weight of the tower, whose device and precision the images take."""
        return next(p for p in self.tower.module.parameters() if p.is_floating_point())

    @property
    def parts(self) -> list[nn.Module]:
        """What weight drift is of: the tower, and the projection behind it where there is one."""
        found = [part for part, name in self.modules.items() if name.rpartition(".")[2] == "visual_projection"]
        # open_clip holds a tower of timm as `trunk`, and the projection behind it as `head`.
        found += [part.head for part in self.modules if is_a(part, "open_clip.TimmModel")]  # type: ignore[misc]
        found = [part for part in found if any(True for _ in part.parameters())]
        return [self.tower.module, *(found if len(found) == 1 else [])]

    def split(self, values: Sequence[Mapping[str, V]]) -> list[dict[str, V]]:
        """Of what each of ``parts`` has by the name of a parameter: the tower's, and where there is one, the projection's.

        open_clip's towers hold their projection as `proj`; it is none of the vision transformer's weights.
        """
        tower, *projection = map(dict, values)
        inside = [name for name in tower if name.partition(".")[0] == "proj"]
        if inside and not projection and is_a(self.tower.module, "open_clip.VisionTransformer"):
            projection = [{name: tower.pop(name) for name in inside}]
        return [tower, *projection]

    def preserved(self) -> AbstractContextManager[None]:
        """See :func:`~attndrift.models.evaluation.preserve_state`."""
        return preserve_state(self.model, self.modules)

    def embed(self, images: Tensor, embed: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Embeddings of ``images``, by ``embed`` or as the model's family has it."""
        pixels = images.to(self.weight.device, self.weight.dtype)
        return image_embeddings(self.model, pixels) if embed is None else as_embedding(embed(pixels), "embed")
