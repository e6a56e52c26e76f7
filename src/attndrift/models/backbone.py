"""What studies see of a model, whatever library it comes from, and the registry of the libraries' model classes.

A :class:`Backbone` is a view of one model: its image tower, blocks, projection and embeddings. A :class:`BackboneSpec`
are the facts of one kind of model and how it is loaded. Nothing here imports torch when it is imported.

    BACKBONES.register(BackboneSpec(name="mine", label="Mine", classes=("mypackage.Model",), view=View, load=load, ...))

A study then names it: ``model: mine:small`` loads ``small`` with ``load``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from attndrift.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class VisionShape:
    """The sizes of an image tower, from which time and memory are estimated.

    Attributes:
        image_size, patch_size: in pixels; the images are square.
        width, depth, mlp_width: of the blocks.
        dimensions: of the embeddings.
        prefix_tokens: tokens beside the patches.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    mlp_width: int
    dimensions: int
    prefix_tokens: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of an image in the tower."""
        return (self.image_size // self.patch_size) ** 2 + self.prefix_tokens


@dataclass(frozen=True)
class TextShape:
    """The sizes of a text tower's blocks, from which time and memory are estimated."""

    width: int
    depth: int
    mlp_width: int


class Backbone(ABC):
    """One model, as studies see it. Methods, losses, retention and checkpoints ask nothing else of it.

    Attributes:
        model: the model itself, adapters inside.
        of_texts: whether this is the view of a text tower.
        beside: the view of a tower that adapters go into together with this one; None for none.
    """

    of_texts: ClassVar[bool] = False

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.beside: Backbone | None = None

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The image tower: what is observed, and what weight drift is measured of."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of the tower, from the input to the output."""

    @property
    @abstractmethod
    def dimensions(self) -> int:
        """Dimensions of the image embeddings."""

    @property
    def final_norm(self) -> nn.Module | None:
        """The norm behind the last block, which is trained with it; None for none."""
        return None

    @property
    def projection(self) -> nn.Module | None:
        """What maps the tower's output to the embedding; None where the tower's output is the embedding."""
        return None

    @property
    def logit_scale(self) -> Tensor | None:
        """Logarithm of the inverse temperature that the model was pretrained with; None for none."""
        return None

    @abstractmethod
    def embed(self, pixel_values: Tensor) -> Tensor:
        """Image embeddings of normalised images (images, 3, height, width): (images, dimensions), not normalised."""

    @property
    def temperature(self) -> nn.Parameter | None:
        """The parameter that :attr:`logit_scale` is the value of, for a run that trains it; None for none."""
        return None

    @property
    def text(self) -> Backbone | None:
        """The text tower as a view of its own, whose ``embed`` takes token ids (texts, tokens); None where none can be trained."""
        return None

    @property
    def text_encoder(self) -> nn.Module | None:
        """The module with ``get_text_features`` (transformers) or ``encode_text`` (open_clip); None without a text tower."""
        return None

    def adapter_pattern(self, names: Sequence[str]) -> str:
        """A regular expression that matches the whole names of the image tower's layers ``names``, in every block.

        ``names``: of layers, or of their roles ``q``, ``k``, ``v`` and ``out``.
        """
        raise NotImplementedError(f"{type(self.model).__name__} has no place for adapters")

    def prune(self) -> None:  # noqa: B027 - nothing to drop is usual
        """Drop computation that no embedding needs, in place; embeddings stay what they are."""


@dataclass(frozen=True)
class BackboneSpec:
    """One kind of model.

    Attributes:
        name: before the colon in ``model: NAME:REST``.
        label: for people; ``source`` says who published it.
        classes: names of its model classes, as :func:`~attndrift.models.module_utils.is_a` takes them.
        view: the :class:`Backbone` of a model.
        families: names of the attention families of its image tower.
        text_tower: whether it has one, so that zero-shot measures are possible.
        load: REST to the model in evaluation mode, float32; None where ``NAME:`` is no source.
        build: REST to the model with any weights, for counting, made under ``torch.device("meta")``.
        shape: REST to its :class:`VisionShape`.
        processor: REST to a tokenizer (None without text tower) and an image processor of transformers.
    """

    name: str
    label: str
    source: str
    classes: tuple[str, ...]
    view: Callable[[Any], Backbone]
    families: tuple[str, ...]
    text_tower: bool = True
    load: Callable[[str], Any] | None = None
    build: Callable[[str], Any] | None = None
    shape: Callable[[str], VisionShape] | None = None
    processor: Callable[[str], tuple[Any, Any]] | None = None


BACKBONES: Registry[BackboneSpec] = Registry("backbone", "attndrift.models.backbones", group="attndrift.backbones")
"""All backbones: those of this package, those of installed packages, and those of this process."""


def find_backbone(model: nn.Module) -> Backbone | None:
    """The view of ``model``, through ``peft`` and wrappers around it; None for a model of no registered backbone."""
    # Imported here: a list of backbones needs no torch.
    from attndrift.models.evaluation import unwrapped
    from attndrift.models.module_utils import is_a

    inner: Any = unwrapped(model)
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    spec = next((spec for spec in BACKBONES if is_a(inner, *spec.classes)), None)
    return None if spec is None else spec.view(inner)


def backbone_of(model: nn.Module) -> Backbone:
    """The view of ``model``, through ``peft`` and wrappers around it.

    Raises:
        ValueError: a model of no registered backbone.
    """
    found = find_backbone(model)
    if found is None:
        known = ", ".join(spec.label for spec in BACKBONES)
        raise ValueError(
            f"{type(model).__name__} is no backbone that a study can train; there are {known}. Give the model itself, "
            "with both towers where it has two; a package can register another backbone (CONTRIBUTING.md)"
        )
    return found


def scheme_of(source: str) -> tuple[BackboneSpec, str] | None:
    """The backbone and the rest of a source ``NAME:REST``; None for a source of another form."""
    name, colon, rest = str(source).partition(":")
    if not colon or name not in BACKBONES or BACKBONES[name].load is None:
        return None
    return BACKBONES[name], rest
