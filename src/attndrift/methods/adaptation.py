"""Making a CLIP model trainable by a registered method, with a registered head on top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attndrift.methods.adapters import adapter_names
from attndrift.methods.classifier import ImageClassifier
from attndrift.methods.frozen_blocks import blocks_named, freeze
from attndrift.methods.registry import FROZEN, HEADS, METHODS, Head, Method
from attndrift.methods.settings import AdaptationSettings
from attndrift.methods.towers import tower_problem
from attndrift.models.backbone import Backbone, backbone_of
from attndrift.models.load import build_model
from attndrift.own_settings import owners_of


def adapt(
    model: nn.Module,
    settings: AdaptationSettings,
    n_classes: int,
    seed: int,
    *,
    text_features: Tensor | None = None,
    class_tokens: Tensor | None = None,
    fit_on: tuple[Tensor, Tensor] | None = None,
    start: Mapping[str, Tensor] | None = None,
    reference_images: Tensor | None = None,
) -> ImageClassifier:
    """Make ``model`` (which is changed in place) trainable as ``settings`` say, with a classifier on top.

    Args:
        n_classes: outputs of the classifier.
        seed: of the classifier's and the adapters' initialisation; the global generator is not touched.
        text_features: normalised, (classes, dimensions), for a head that starts from them.
        class_tokens: token ids of class prompts (classes, templates, tokens), int64, for a head that encodes them live.
        fit_on: embeddings of the training images by the pretrained model (images, dimensions) and their labels (images,),
            for a head that is fitted to them first.
        start: ``start`` of a classifier that was made before with these settings, so that a method that decomposes the
            pretrained weights does not do it again.
        reference_images: normalised, (images, 3, height, width), for a method that decomposes the weights by what the
            pretrained model makes of images: those of the knowledge to keep.

    Raises ``ValueError`` naming the setting that is impossible.
    """
    head = HEADS[settings.head]
    if head.fits and fit_on is None:
        raise ValueError(
            f"head is {head.name!r}; give fit_on=(embeddings, labels), of the training images by the pretrained model"
        )
    texts = class_tokens if head.live else text_features
    method = settings.facts
    if method.needs_reference and not start and (reference_images is None or not len(reference_images)):
        settings.settings_of(method)  # what is wrong with the settings is said first
        raise ValueError(f"method is {method.name!r}; give reference_images, normalised (images, 3, height, width)")
    adapted = _adapted(model, settings, n_classes, seed, texts, start, reference_images)
    if fit_on is not None and head.fits:
        head.fit(adapted.classifier, *fit_on, settings.settings_of(head))
    return adapted


def _adapted(
    model: nn.Module,
    settings: AdaptationSettings,
    n_classes: int,
    seed: int,
    texts: Tensor | None,
    start: Mapping[str, Tensor] | None,
    reference_images: Tensor | None = None,
) -> ImageClassifier:
    """The adapted model, its head not fitted yet; ``texts``: what the head is made of, where it takes any."""
    method, head = METHODS[settings.method], HEADS[settings.head]
    _check(settings, method, head, n_classes)
    backbone = backbone_of(model)
    if adapter_names(model):
        raise ValueError("model already carries adapters; give the bare model, or merge them first")
    blocks = len(backbone.blocks)
    if settings.freeze_layers > blocks:
        raise ValueError(f"freeze_layers is {settings.freeze_layers}; the model has {blocks} blocks")
    frozen = set(range(settings.freeze_layers)) | blocks_named(settings.freeze_blocks, blocks, "freeze_blocks")
    if head.needs_text and backbone.logit_scale is None:
        others = ", ".join(one.name for one in HEADS if not (one.needs_text or one.live))
        raise ValueError(
            f"head is {head.name!r}; {type(backbone.model).__name__} has no text tower. {others} need none"
        )
    if head.needs_text and (texts is None or len(texts) != n_classes):
        raise ValueError(f"head is {head.name!r}; give the text features of all classes, (classes, dimensions)")
    if head.live:
        _check_live(settings, backbone, n_classes, texts)
    model.requires_grad_(False)
    known = start if method.rewrites_base else None
    if reference_images is not None and not known:
        method.prepare(backbone, settings.settings_of(method), reference_images)
    adapted = _towers(backbone, settings, seed, known)
    kept = dict(known or method.start_of(adapted))
    backbone = backbone_of(adapted)
    freeze(backbone, frozen)
    _train_projection(backbone, settings.projects)
    if settings.trains_text:
        _train_text(backbone, settings)
    of_head = settings.settings_of(head)
    classifier = head.make(backbone, n_classes, seed, of_head, texts if head.needs_text or head.live else None)
    classifier.requires_grad_(method.adapts and head.trained)
    return ImageClassifier(adapted, classifier, settings, kept)


def _towers(
    backbone: Backbone, settings: AdaptationSettings, seed: int, start: Mapping[str, Tensor] | None
) -> nn.Module:
    """The model with the methods of both towers applied. ``peft`` freezes all else, so what has adapters comes first."""
    method, of_text = settings.facts, settings.text_facts
    own, own_text = settings.settings_of(method), settings.settings_of(of_text)
    first: nn.Module
    if of_text.adapter_parameters and of_text is not method:
        first = of_text.apply(backbone.text, own_text, seed)
        method.apply(backbone_of(first), own, seed)
        return first
    if of_text.adapter_parameters:
        backbone.beside = backbone.text
    first = method.rebuild(backbone, own, seed, start) if start else method.apply(backbone, own, seed)
    if settings.text_tower != FROZEN and not of_text.adapter_parameters:
        of_text.apply(backbone_of(first).text, own_text, seed)
    return first


def _train_projection(backbone: Backbone, trained: bool) -> None:
    # Adapters in the projection are what is trained of it.
    if backbone.projection is not None and not adapter_names(backbone.projection):
        backbone.projection.requires_grad_(trained)
    for name in backbone.projection_in_tower:
        backbone.tower.get_parameter(name).requires_grad_(trained)


def _train_text(backbone: Backbone, settings: AdaptationSettings) -> None:
    """Mark what the text tower's method does not: frozen blocks, the projection, the temperature."""
    text = backbone.text
    assert text is not None
    freeze(text, blocks_named(settings.text_freeze_blocks, len(text.blocks), "text_freeze_blocks"))
    _train_projection(text, settings.projects_text)
    if backbone.temperature is not None:
        backbone.temperature.requires_grad_(settings.train_temperature)


def _check_live(settings: AdaptationSettings, backbone: Backbone, n_classes: int, tokens: Tensor | None) -> None:
    """Raise ``ValueError`` where a live head has nothing to encode class prompts with, or none to encode."""
    name = type(backbone.model).__name__
    if backbone.text is None or backbone.temperature is None:
        raise ValueError(
            f"head is {settings.head!r}; {name} has no text tower with a temperature that it could encode with"
        )
    if tokens is None or tokens.ndim != 3 or len(tokens) != n_classes or tokens.is_floating_point():
        raise ValueError(
            f"head is {settings.head!r}; give class_tokens, token ids (classes, templates, tokens) of all classes"
        )
    # Before anything is changed: blocks that are not there.
    blocks_named(settings.text_freeze_blocks, len(backbone.text.blocks), "text_freeze_blocks")


def _check(settings: AdaptationSettings, method: Method, head: Head, n_classes: int) -> None:
    """Raise ``ValueError`` naming the setting that is impossible, whatever the model."""
    if n_classes < 2:
        raise ValueError(f"n_classes is {n_classes}; a classifier needs at least 2")
    if settings.freeze_layers < 0:
        raise ValueError(f"freeze_layers is {settings.freeze_layers}; it must be 0 or more")
    problem = tower_problem(settings)
    if problem is not None:
        raise ValueError(f"{problem[0]} is {getattr(settings, problem[0])!r}: {problem[1]}")
    if method.adapts and not (method.moves_encoder or head.trained or settings.trains_text or settings.projects):
        raise ValueError(f"head is {head.name!r}, which is frozen, and method {method.name} trains nothing else")
    if settings.train_projection and method.projection is None:
        raise ValueError(f"train_projection is true; method {method.name} does not train the projection")
    owners = (method, settings.text_facts, head)
    for name in settings.own:
        if not owners_of(name, owners):
            others = owners_of(name, METHODS) + owners_of(name, HEADS)
            whose = f"it belongs to {' and '.join(others)}" if others else "no method has it"
            raise ValueError(f"{name} is {settings.own[name]!r} with method {method.name}; {whose}")
    for owner in owners:
        settings.settings_of(owner)


def count_parameters(config: Any, settings: AdaptationSettings, n_classes: int) -> tuple[int, int]:
    """Trainable and total parameters, without making or loading any weights.

    ``config``: a configuration of CLIP, or a source that :func:`~attndrift.models.load.load_model` takes.
    """
    with torch.device("meta"):
        model = blank(settings, build_model(config), n_classes)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters())


def blank(
    settings: AdaptationSettings,
    model: nn.Module,
    n_classes: int,
    start: Mapping[str, Tensor] | None = None,
    class_tokens: Tensor | None = None,
) -> ImageClassifier:
    """An adapted model as it is made, for weights that are read into it: its head starts from nothing in particular.

    ``class_tokens``: of a head that encodes them live; without them it has one token a class.
    """
    head, texts = HEADS[settings.head], class_tokens
    if head.needs_text:
        texts = torch.zeros(n_classes, backbone_of(model).dimensions)
    elif head.live and class_tokens is None:
        texts = torch.zeros(n_classes, 1, 1, dtype=torch.int64)
    return _adapted(model, settings, n_classes, 0, texts, start)
