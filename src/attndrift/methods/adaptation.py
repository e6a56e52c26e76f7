"""Making a CLIP model trainable by a registered method, with a registered head on top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from attndrift.methods.adapters import adapter_names
from attndrift.methods.classifier import CLIPClassifier
from attndrift.methods.registry import DEFAULT_HEAD, DEFAULT_METHOD, HEADS, METHODS, Head, Method
from attndrift.models.backbone import backbone_of
from attndrift.models.load import build_model
from attndrift.own_settings import Owner, OwnSettings, owners_of, problem_in, validated


@dataclass(frozen=True, init=False)
class AdaptationSettings:
    """Which parameters are trained, and from where.

    ``AdaptationSettings("lora", lora_rank=4)``: the method, and settings of its own or of the head by name. What is
    wrong with them is said by :func:`adapt`.

    Attributes:
        method: a name of :data:`~attndrift.methods.registry.METHODS`.
        head: a name of :data:`~attndrift.methods.registry.HEADS`.
        train_projection: None is the method's default.
        freeze_layers: blocks frozen from the input on, for methods that can; the embeddings stay trainable.
        own: settings of the method and of the head, as given.
    """

    method: str = DEFAULT_METHOD
    head: str = DEFAULT_HEAD
    train_projection: bool | None = None
    freeze_layers: int = 0
    own: dict[str, Any] = field(default_factory=dict)

    def __init__(
        self,
        method: str = DEFAULT_METHOD,
        *,
        head: str = DEFAULT_HEAD,
        train_projection: bool | None = None,
        freeze_layers: int = 0,
        **own: Any,
    ) -> None:
        for name, value in locals().items():
            if name != "self":
                object.__setattr__(self, name, value)

    def to_json(self) -> dict[str, Any]:
        """Plain values by name, as the constructor takes them."""
        values = asdict(self)
        own = values.pop("own")
        return {**values, **own}

    @property
    def facts(self) -> Method:
        """The method itself. Raises :class:`~attndrift.registry.UnknownNameError`."""
        return METHODS[self.method]

    @property
    def projects(self) -> bool:
        """Whether the projection is trained."""
        return bool(self.facts.projection) if self.train_projection is None else self.train_projection

    def settings_of(self, owner: Owner) -> OwnSettings:
        """The own settings of the method or the head. Raises ``ValueError`` naming the one that is impossible."""
        try:
            return validated(owner, self.own)
        except ValidationError as error:
            raise ValueError(problem_in(error)) from error


def adapt(
    clip: nn.Module,
    settings: AdaptationSettings,
    n_classes: int,
    seed: int,
    *,
    text_features: Tensor | None = None,
    fit_on: tuple[Tensor, Tensor] | None = None,
    start: Mapping[str, Tensor] | None = None,
) -> CLIPClassifier:
    """Make ``clip`` (which is changed in place) trainable as ``settings`` say, with a classifier on top.

    Args:
        n_classes: outputs of the classifier.
        seed: of the classifier's and the adapters' initialisation; the global generator is not touched.
        text_features: normalised, (classes, dimensions), for a head that starts from them.
        fit_on: embeddings of the training images by the pretrained model (images, dimensions) and their labels (images,),
            for a head that is fitted to them first.
        start: ``start`` of a classifier that was made before with these settings, so that a method that decomposes the
            pretrained weights does not do it again.

    Raises ``ValueError`` naming the setting that is impossible.
    """
    head = HEADS[settings.head]
    if head.fits and fit_on is None:
        raise ValueError(
            f"head is {head.name!r}; give fit_on=(embeddings, labels), of the training images by the pretrained model"
        )
    model = _adapted(clip, settings, n_classes, seed, text_features, start)
    if fit_on is not None and head.fits:
        head.fit(model.classifier, *fit_on, settings.settings_of(head))
    return model


def _adapted(
    clip: nn.Module,
    settings: AdaptationSettings,
    n_classes: int,
    seed: int,
    text_features: Tensor | None,
    start: Mapping[str, Tensor] | None,
) -> CLIPClassifier:
    """The adapted model, its head not fitted yet."""
    method, head = METHODS[settings.method], HEADS[settings.head]
    own, of_head = _checked(settings, method, head, n_classes)
    backbone = backbone_of(clip)
    if adapter_names(clip):
        raise ValueError("clip already carries adapters; give the bare model, or merge them first")
    blocks = len(backbone.blocks)
    if settings.freeze_layers > blocks:
        raise ValueError(f"freeze_layers is {settings.freeze_layers}; the model has {blocks} blocks")
    if head.needs_text and (text_features is None or len(text_features) != n_classes):
        raise ValueError(f"head is {head.name!r}; give the text features of all classes, (classes, dimensions)")
    clip.requires_grad_(False)
    if method.rewrites_base and start:
        adapted, kept = method.rebuild(backbone, own, seed, start), dict(start)
    else:
        adapted = method.apply(backbone, own, seed)
        kept = method.start_of(adapted)
    backbone = backbone_of(adapted)
    for block in backbone.blocks[: settings.freeze_layers]:
        block.requires_grad_(False)
    # Adapters in the projection are what is trained of it.
    if backbone.projection is not None and not adapter_names(backbone.projection):
        backbone.projection.requires_grad_(settings.projects)
    classifier = head.make(backbone, n_classes, seed, of_head, text_features if head.needs_text else None)
    classifier.requires_grad_(method.adapts and head.trained)
    return CLIPClassifier(adapted, classifier, settings, kept)


def _checked(
    settings: AdaptationSettings, method: Method, head: Head, n_classes: int
) -> tuple[OwnSettings, OwnSettings]:
    """The own settings of method and head, everything checked."""
    if n_classes < 2:
        raise ValueError(f"n_classes is {n_classes}; a classifier needs at least 2")
    if settings.freeze_layers < 0:
        raise ValueError(f"freeze_layers is {settings.freeze_layers}; it must be 0 or more")
    if settings.freeze_layers and not method.freezes_blocks:
        able = ", ".join(one.name for one in METHODS if one.freezes_blocks)
        raise ValueError(
            f"freeze_layers is {settings.freeze_layers}; method {method.name} does not freeze blocks, {able} does"
        )
    if method.adapts and not (method.moves_encoder or head.trained):
        raise ValueError(f"head is {head.name!r}, which is frozen, and method {method.name} trains nothing else")
    if settings.train_projection and method.projection is None:
        raise ValueError(f"train_projection is true; method {method.name} does not train the projection")
    for name in settings.own:
        if not owners_of(name, (method, head)):
            others = owners_of(name, METHODS) + owners_of(name, HEADS)
            whose = f"it belongs to {' and '.join(others)}" if others else "no method has it"
            raise ValueError(f"{name} is {settings.own[name]!r} with method {method.name}; {whose}")
    return settings.settings_of(method), settings.settings_of(head)


def count_parameters(config: Any, settings: AdaptationSettings, n_classes: int) -> tuple[int, int]:
    """Trainable and total parameters, without making or loading any weights.

    ``config``: a configuration of CLIP, or a source that :func:`~attndrift.models.load.load_model` takes.
    """
    with torch.device("meta"):
        model = blank(settings, build_model(config), n_classes)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters())


def blank(
    settings: AdaptationSettings, clip: nn.Module, n_classes: int, start: Mapping[str, Tensor] | None = None
) -> CLIPClassifier:
    """An adapted model as it is made, for weights that are read into it: its head starts from nothing in particular."""
    text = torch.zeros(n_classes, backbone_of(clip).dimensions) if HEADS[settings.head].needs_text else None
    return _adapted(clip, settings, n_classes, 0, text, start)
