"""The registries of adaptation methods and heads: a class each, in a file of its own, with the facts that all else reads.

Settings, grids, run names, dry run, tables, legends and the report know a method from here; none of them lists names.
Nothing in this module imports torch or peft: the files of methods import them inside their functions.

    @method
    class Biases(Method):
        name, label, color, order = "biases", "biases", "#999933", 5
        source = "Ben Zaken et al. 2022"
        trains = "the biases of the visual encoder, and the classifier"

        def apply(self, backbone, settings, seed):
            ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from attndrift.own_settings import OwnSettings, as_text, departed, words_of
from attndrift.registry import Registry


class Method(ABC):
    """One adaptation method. Subclasses give facts as class attributes, and override what is theirs.

    Attributes:
        name: in settings, tables and commands.
        label: in tables and legends, and ``short_label`` where there is less room.
        color: of its series in figures; the empty string takes the next free one.
        order: its place in tables and figures, smallest first.
        source: where the method comes from.
        trains: what is trained, in one phrase.
        Settings: settings of its own.
        projection: whether the projection is trained by default; None where it never is.
        adapts: whether anything is trained at all; ``moves_encoder`` whether the attention can change, so that
            preservation losses and guards have something to do.
        replaces: whether :meth:`apply` puts other weights in place, which are measured without any training.
        freezes_blocks: whether ``freeze_layers`` and ``freeze_blocks`` may freeze blocks of it.
        keeps_activations: whether a step holds the activations of every block for its backward pass.
        cost: of a training step, in forward passes, where nobody has measured it (``study/step_costs.json``); ``work`` is its share of the time of full fine-tuning.
        requires: packages that must be installed.
        adapter_parameters: part of the names of parameters that :meth:`save` writes, instead of the checkpoint's file
            of trained weights; empty where it writes none.
        rewrites_base: whether :meth:`apply` decomposes pretrained weights, so that states and checkpoints must hold what
            rebuilds them: :meth:`start_of` and :meth:`rebuild`.
        needs_reference: whether :meth:`prepare` must see reference images first; :attr:`Settings` then has ``reference``.
        reference_passes: forward passes a reference image that are made once.
    """

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    short_label: ClassVar[str] = ""
    color: ClassVar[str] = ""
    order: ClassVar[float] = 100.0
    source: ClassVar[str] = ""
    trains: ClassVar[str] = ""
    Settings: ClassVar[type[OwnSettings]] = OwnSettings
    projection: ClassVar[bool | None] = True
    adapts: ClassVar[bool] = True
    moves_encoder: ClassVar[bool] = True
    replaces: ClassVar[bool] = False
    freezes_blocks: ClassVar[bool] = False
    keeps_activations: ClassVar[bool] = True
    cost: ClassVar[float] = 3.0
    work: ClassVar[float] = 1.0
    requires: ClassVar[tuple[str, ...]] = ()
    adapter_parameters: ClassVar[str] = ""
    rewrites_base: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    reference_passes: ClassVar[float] = 0.0

    def prepare(self, backbone: Any, settings: Any, images: Any) -> None:  # noqa: B027 - most methods see no images
        """Look at normalised reference images (images, 3, height, width) with the pretrained model, before :meth:`apply`."""

    @property
    def on_text(self) -> bool:
        """Whether ``text_tower`` may name it: what trains a tower, and rewrites none of its weights; or leaves it alone."""
        return self.name == FROZEN or (self.moves_encoder and not self.rewrites_base)

    @property
    def beside_text(self) -> bool:
        """Whether a text tower can be trained beside it: not where the classifier alone is trained, or nothing."""
        return self.projection is not None

    @abstractmethod
    def apply(self, backbone: Any, settings: Any, seed: int) -> Any:
        """Mark what is trained in a tower of which nothing is, and return ``backbone.model`` or what wraps it.

        Args:
            backbone: its :class:`~attndrift.models.backbone.Backbone`: tower, blocks, projection; of a text tower, its view.
            settings: an object of :attr:`Settings`.
            seed: of what is initialised; the global generator must not be touched.
        """

    def start_of(self, model: Any) -> dict[str, Any]:
        """Of what :meth:`apply` has just returned, the tensors that :meth:`rebuild` needs, where it rewrites the base."""
        return {}

    def rebuild(self, backbone: Any, settings: Any, seed: int, start: Mapping[str, Any]) -> Any:
        """What :meth:`apply` returned when ``start`` was kept, without decomposing anything again."""
        raise NotImplementedError(f"method {self.name} does not rewrite the base")

    def run_name(self, settings: Any) -> list[str]:
        """Parts of a run's folder name: the method, and what departs from its defaults."""
        return [self.name.replace("_", "-"), *departed(settings)]

    def describe(self, values: Mapping[str, str]) -> str:
        """The method in words, with its own settings as the tables have them: text, empty where not given."""
        parts = [
            f"{words_of(name, field)['label']}{values[name]}"
            for name, field in self.Settings.model_fields.items()
            if values.get(name) and values[name] != as_text(field.default)
        ]
        return ", ".join([self.label, *parts])

    def canonical(self, values: Mapping[str, str]) -> dict[str, str]:
        """Own settings of foreign tables in one spelling, the defaults where none is given."""
        fields = self.Settings.model_fields
        return {name: values.get(name, "") or as_text(field.default) for name, field in fields.items()}

    def least_trained(self, *, embeddings: int, block: int, blocks: int) -> int:
        """Trained parameters of a vision tower at least, from the sizes of its parts; 0 where that takes a model."""
        return 0

    def recognise(self, tower: Any, blocks: Sequence[Sequence[bool]]) -> dict[str, Any] | None:
        """The columns of the table ``runs`` that a tower in a training of the user's own tells; None if it is not this.

        Args:
            tower: the vision transformer. Only a method with :attr:`adapter_parameters` is asked where it has adapters.
            blocks: for each block, whether each of its parameters is trained.
        """
        return None

    def save(self, model: Any, folder: Path) -> None:  # noqa: B027 - most methods have no file of their own
        """Write what :attr:`adapter_parameters` leaves out into the folder of a checkpoint."""

    def load(self, model: Any, folder: Path) -> None:  # noqa: B027
        """Put back what :meth:`save` wrote."""

    def merge(self, model: Any) -> Any:
        """The adapted model as a plain one."""
        return model


class Head(ABC):
    """The classifier on the image embedding. Subclasses give facts as class attributes.

    Attributes:
        name: in settings, tables and commands; ``label`` in tables and legends.
        source: where it comes from; ``starts`` what it starts from, in one phrase.
        trained: whether it is trained with the model.
        needs_text: whether :meth:`make` takes text features of the classes.
        live: whether :meth:`make` takes the token ids of class prompts, which are encoded anew at every pass: what a run
            whose text tower is trained needs.
        fits: whether :meth:`fit` fits it to the pretrained embeddings of the training images before the first step.
        Settings: settings of its own.
    """

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    order: ClassVar[float] = 100.0
    source: ClassVar[str] = ""
    starts: ClassVar[str] = ""
    trained: ClassVar[bool] = True
    needs_text: ClassVar[bool] = False
    live: ClassVar[bool] = False
    fits: ClassVar[bool] = False
    Settings: ClassVar[type[OwnSettings]] = OwnSettings

    @abstractmethod
    def make(self, backbone: Any, n_classes: int, seed: int, settings: Any, text_features: Any) -> Any:
        """A module from image embeddings (images, dimensions), not normalised, to logits (images, classes).

        Args:
            backbone: a :class:`~attndrift.models.backbone.Backbone`.
            settings: an object of :attr:`Settings`.
            text_features: normalised, (classes, dimensions), where it :attr:`needs_text`; token ids (classes, templates,
                tokens) where it is :attr:`live`; None elsewhere.
        """

    def fit(self, layer: Any, embeddings: Any, labels: Any, settings: Any) -> None:  # noqa: B027 - most are not fitted
        """Fit what :meth:`make` made, in place, to embeddings (images, dimensions) and labels (images,)."""

    def run_name(self, settings: Any) -> list[str]:
        """Parts of a run's folder name; none for the default head."""
        named = [] if self.name == DEFAULT_HEAD else [self.label.replace(" ", "-").lower()]
        return [*named, *departed(settings)]


METHODS: Registry[Method] = Registry("method", "attndrift.methods.known", group="attndrift.methods")
"""All methods: those of :mod:`attndrift.methods.known`, those of installed packages, and those of this process."""

HEADS: Registry[Head] = Registry("head", "attndrift.methods.heads", group="attndrift.heads")
"""All heads: those of :mod:`attndrift.methods.heads`, those of installed packages, and those of this process."""

DEFAULT_METHOD, DEFAULT_HEAD, PRETRAINED, FROZEN = "full", "trained", "none", "frozen"
CONTRASTIVE = "contrastive"

M = TypeVar("M", bound=Method)
H = TypeVar("H", bound=Head)


def method(cls: type[M]) -> type[M]:
    """Register the class below as a method."""
    METHODS.register(cls())
    return cls


def head(cls: type[H]) -> type[H]:
    """Register the class below as a head."""
    HEADS.register(cls())
    return cls


def in_order(names: Any) -> list[str]:
    """Names of methods as tables and figures order them, unknown ones last."""
    return sorted(dict.fromkeys(str(name) for name in names), key=lambda name: (order_of(name), name))


def order_of(name: str) -> float:
    """The place of a method in tables and figures; of one that is not known, the last."""
    return METHODS[name].order if name in METHODS else 1000.0


def label_of(name: str, *, short: bool = False) -> str:
    """A method's label; of one that is not known, its name."""
    if name not in METHODS:
        return name
    known = METHODS[name]
    return (known.short_label if short else "") or known.label


def trains(name: str) -> bool:
    """Whether a method trains anything; one that is not known does."""
    return name not in METHODS or METHODS[name].adapts
