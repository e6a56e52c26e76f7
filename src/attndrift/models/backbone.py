"""What studies see of a model, whatever library it comes from, and the registry of the libraries' model classes.

A :class:`Backbone` is a view of one model: its image tower, blocks, projection and embeddings. A :class:`BackboneSpec`
are the facts of one kind of model and how it is loaded. Nothing here imports torch when it is imported.

    BACKBONES.register(BackboneSpec(name="mine", label="Mine", classes=("mypackage.Model",), view=View, load=load, ...))

A study then names it: ``model: mine:small`` loads ``small`` with ``load``.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    def projection_in_tower(self) -> Sequence[str]:
        """Names of the tower's parameters that are its projection, where its output is the embedding all the same."""
        return ()

    @property
    def logit_scale(self) -> Tensor | None:
        """Logarithm of the inverse temperature that the model was pretrained with; None for none."""
        return None

    @abstractmethod
    def embed(self, pixel_values: Tensor) -> Tensor:
        """Image embeddings of normalised images (images, 3, height, width): (images, dimensions), not normalised."""

    @property
    def logit_bias(self) -> Tensor | None:
        """What a model that was pretrained with a sigmoid loss adds to its logits; None for a softmax loss, and without texts.

        It is the same for every class, so that no ranking and no softmax depends on it; probabilities do.
        """
        return None

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

        ``names``: of layers, or of their roles ``q``, ``k``, ``v`` and ``out``. Raises ``ValueError`` for one that no
        adapter can go into, saying which ones can.
        """
        raise NotImplementedError(f"{type(self.model).__name__} has no place for adapters")

    def prune(self) -> None:  # noqa: B027 - nothing to drop is usual
        """Drop computation that no embedding needs, in place; embeddings stay what they are."""


@dataclass(frozen=True)
class TowerFormat:
    """How the image tower of a model with two towers is saved on its own.

    Attributes:
        model_type: of its config.
        classifier: the class of ``transformers`` that exports it with a classifier, under the config of the whole model.
        with_projection: the class of a tower in memory that has its projection beside it, as ``library.Name``.
        place: the name of a tensor in its files to that in the whole model, whatever the version of ``transformers``.
        projection: the name in the whole model of the weight that maps its output to the embedding.
    """

    model_type: str
    classifier: str
    with_projection: str
    place: Callable[[str], str]
    projection: str


@dataclass(frozen=True)
class FolderFormat:
    """How models of one kind are read from folders and hub repositories of ``transformers``, found by their ``config.json``.

    Attributes:
        architectures: by ``model_type`` of their configs, the class of ``transformers`` that reads the weights.
        shape: a config, and the side in pixels of the images that the processor makes, to the :class:`VisionShape`.
        configs: named configs, for ``config:NAME``: random weights.
        make_processor: a config to a tokenizer (None without text tower) and an image processor, for random weights.
        image_processor: the PIL image processor of ``transformers`` where a folder names none.
        text_shape: a config to the :class:`TextShape`; None without a text tower.
        any_size: whether the model takes images of any size, so that the image processor decides; otherwise the config.
        refused: what a study cannot do with a config of these types, and what can be done; None for nothing.
        options: arguments of the architecture beside the config.
        tower: how its image tower is saved alone; None where that is the whole model.
        left_out: how the names of stored tensors begin that a study has no use for, such as a classifier's.
    """

    architectures: Mapping[str, str]
    shape: Callable[[Any, int], VisionShape]
    configs: Mapping[str, Callable[[], Any]]
    make_processor: Callable[[Any], tuple[Any, Any]]
    image_processor: str
    text_shape: Callable[[Any], TextShape] | None = None
    any_size: bool = False
    refused: Callable[[Any], str | None] = lambda config: None
    options: Mapping[str, Any] = field(default_factory=dict)
    tower: TowerFormat | None = None
    left_out: tuple[str, ...] = ()


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
        repository: REST to the repository of a hub that it is loaded from, with the revision; None for a model that is here.
        folder: how folders and hub repositories of it are read; None where there are none of ``transformers``.
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
    repository: Callable[[str], str | None] | None = None
    folder: FolderFormat | None = None


def imported(module: str, name: str) -> Callable[[str], Any]:
    """The function ``name`` of ``module``, which is imported when it is called: a list of backbones needs no torch."""

    def call(rest: str) -> Any:
        return getattr(importlib.import_module(module), name)(rest)

    return call


BACKBONES: Registry[BackboneSpec] = Registry("backbone", "attndrift.models.backbones", group="attndrift.backbones")
"""All backbones: those of this package, those of installed packages, and those of this process."""


def spec_of(model: nn.Module) -> BackboneSpec | None:
    """The backbone that the class of ``model`` itself is registered for; None for none."""
    # Imported here: a list of backbones needs no torch.
    from attndrift.models.module_utils import is_a

    return next((spec for spec in BACKBONES if is_a(model, *spec.classes)), None)


def find_backbone(model: nn.Module) -> Backbone | None:
    """The view of ``model``, through ``peft`` and wrappers around it; None for a model of no registered backbone."""
    # Imported here: a list of backbones needs no torch.
    from attndrift.models.evaluation import unwrapped

    inner: Any = unwrapped(model)
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    spec = spec_of(inner)
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


def folder_formats() -> list[tuple[BackboneSpec, FolderFormat]]:
    """The backbones that are read from folders and hub repositories, and how."""
    return [(spec, spec.folder) for spec in BACKBONES if spec.folder is not None]


def of_model_type(model_type: object) -> tuple[BackboneSpec, FolderFormat] | None:
    """The backbone whose ``config.json`` has this ``model_type``; None for none."""
    return next((found for found in folder_formats() if model_type in found[1].architectures), None)


OBSERVED_ONLY = {
    "siglip2": "SigLIP 2 of a flexible size (NaFlex), which takes patches and their places, not images of one size; the "
    "models of a fixed size, such as google/siglip2-base-patch16-224, are of model_type `siglip`, which studies train",
    "deit": "DeiT, whose class token and distillation token are two embeddings",
    "beit": "BEiT, whose embedding is the mean of its patches and has no final norm before it",
    "clip_vision_model": "CLIP's image tower alone, not a CLIP model with both towers: save the whole CLIPModel",
    "clip_text_model": "CLIP's text tower alone, not a CLIP model with both towers: save the whole CLIPModel",
    "siglip_vision_model": "SigLIP's image tower alone: save the whole SiglipModel",
}
"""Models that studies do not train, by ``model_type``, and why."""
OBSERVED = (
    "attndrift.observe(model) shows its attention, DriftMonitor(model, pixels) watches it in a training loop of your own, and "
    "DriftMonitor(adapted, pixels, reference=pretrained).measure() compares two of it"
)
"""What can be done with a model that no study trains, and that is loaded with its own library."""


def not_trained(model_type: object) -> str:
    """Why studies do not train a model of this ``model_type``, which no backbone has."""
    if model_type in OBSERVED_ONLY:
        return f"a {model_type!r} model: {OBSERVED_ONLY[str(model_type)]}"
    known = ", ".join(f"`{name}`" for _, folder in folder_formats() for name in folder.architectures)
    if model_type is None:
        return f"a model without `model_type`; give it that of the weights: {known}"
    return f"a {model_type!r} model; studies train models of type {known}"
