"""Adaptation methods: which parameters are trained. A new method is a function and a row in ``METHODS``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from attndrift.methods.adapters import adapter_names, check_adapter_places
from attndrift.methods.classifier import CLIPClassifier, classifier_from_text, new_classifier, seeded, unwrap
from attndrift.models.load import load_config

LORA_TARGETS = {"q,v": ("q_proj", "v_proj"), "q,k,v,out": ("q_proj", "k_proj", "v_proj", "out_proj")}


@dataclass(frozen=True)
class AdaptationSettings:
    """Which parameters are trained, and from where.

    Attributes:
        method: a key of ``METHODS``.
        lora_rank, lora_alpha, lora_dropout, lora_targets: of the adapters; ``lora_alpha`` None is twice the rank.
        train_projection: None is the method's default (true for ``full`` and ``lora``).
        freeze_layers: blocks frozen from the input on, for ``full``; the embeddings stay trainable.
        head: ``trained``, or ``text`` to start the classifier from text features.
    """

    method: str = "full"
    lora_rank: int = 8
    lora_alpha: float | None = None
    lora_dropout: float = 0.05
    lora_targets: str = "q,v"
    train_projection: bool | None = None
    freeze_layers: int = 0
    head: str = "trained"

    @property
    def projects(self) -> bool:
        """Whether the projection is trained."""
        return self.method in ("full", "lora") if self.train_projection is None else self.train_projection

    @property
    def alpha(self) -> float:
        """The numerator of the adapters' scale."""
        return 2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha


def _none(clip: CLIPModel, settings: AdaptationSettings, seed: int) -> nn.Module:
    """Nothing is trained: the pretrained model."""
    return clip


def _linear_probe(clip: CLIPModel, settings: AdaptationSettings, seed: int) -> nn.Module:
    """The classifier alone is trained."""
    return clip


def _full(clip: CLIPModel, settings: AdaptationSettings, seed: int) -> nn.Module:
    """Visual encoder, projection and classifier are trained, the first ``freeze_layers`` blocks excepted."""
    clip.vision_model.requires_grad_(True)
    for block in clip.vision_model.encoder.layers[: settings.freeze_layers]:
        block.requires_grad_(False)
    return clip


def _last_block(clip: CLIPModel, settings: AdaptationSettings, seed: int) -> nn.Module:
    """The last block, the final layer norm and the classifier are trained; the projection on request."""
    clip.vision_model.encoder.layers[-1].requires_grad_(True)
    clip.vision_model.post_layernorm.requires_grad_(True)
    return clip


def _lora(clip: CLIPModel, settings: AdaptationSettings, seed: int) -> nn.Module:
    """Low-rank adapters in the vision tower's attention, projection and classifier are trained."""
    names = LORA_TARGETS[settings.lora_targets]
    # A list of names would adapt the text tower too: its projections have the same names.
    pattern = rf"vision_model\.encoder\.layers\.\d+\.self_attn\.({'|'.join(names)})"
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=pattern,
        bias="none",
    )
    with seeded(seed), warnings.catch_warnings():
        # peft asks transformers under a name that it is about to drop; nothing to do with the adapters.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        adapted = get_peft_model(clip, config)
    check_adapter_places(adapted)
    return adapted


METHODS: dict[str, Callable[[CLIPModel, AdaptationSettings, int], nn.Module]] = {
    "full": _full,
    "lora": _lora,
    "linear_probe": _linear_probe,
    "last_block": _last_block,
    "none": _none,
}


def adapt(
    clip: CLIPModel,
    settings: AdaptationSettings,
    n_classes: int,
    seed: int,
    *,
    text_features: Tensor | None = None,
) -> CLIPClassifier:
    """Make ``clip`` (which is changed in place) trainable as ``settings`` say, with a classifier on top.

    Args:
        n_classes: outputs of the classifier.
        seed: of the classifier's and the adapters' initialisation; the global generator is not touched.
        text_features: (classes, dimensions), for ``head="text"``.

    Raises ``ValueError`` naming the setting that is impossible.
    """
    _check(settings, n_classes)
    if not isinstance(clip, CLIPModel):
        raise ValueError(
            f"clip is a {type(clip).__name__}; give a CLIPModel with both towers, as load_clip returns it, "
            "without adapters around it"
        )
    if adapter_names(clip):
        raise ValueError("clip already carries adapters; give the bare CLIPModel, or merge them first")
    blocks = len(clip.vision_model.encoder.layers)
    if settings.freeze_layers > blocks:
        raise ValueError(f"freeze_layers is {settings.freeze_layers}; the model has {blocks} blocks")
    clip.requires_grad_(False)
    adapted = METHODS[settings.method](clip, settings, seed)
    backbone = unwrap(adapted)
    backbone.visual_projection.requires_grad_(settings.projects)
    if settings.head == "text":
        if text_features is None or len(text_features) != n_classes:
            raise ValueError("head is 'text'; give the text features of all classes, (classes, dimensions)")
        classifier = classifier_from_text(text_features.cpu(), backbone.logit_scale.detach().cpu())
    else:
        classifier = new_classifier(backbone.config.projection_dim, n_classes, seed)
    classifier.requires_grad_(settings.method != "none")
    return CLIPClassifier(adapted, classifier, settings)


def _check(settings: AdaptationSettings, n_classes: int) -> None:
    if settings.method not in METHODS:
        raise ValueError(f"method is {settings.method!r}; choose from {', '.join(METHODS)}")
    if n_classes < 2:
        raise ValueError(f"n_classes is {n_classes}; a classifier needs at least 2")
    if settings.freeze_layers < 0 or (settings.freeze_layers and settings.method != "full"):
        raise ValueError(f"freeze_layers is {settings.freeze_layers}; it belongs to method full and is at least 0")
    if settings.train_projection and settings.method in ("linear_probe", "none"):
        raise ValueError(f"train_projection is true; method {settings.method} does not train the projection")
    if settings.method == "lora":
        _check_adapters(settings)
    if settings.head not in ("trained", "text"):
        raise ValueError(f"head is {settings.head!r}; choose from trained, text")


def _check_adapters(settings: AdaptationSettings) -> None:
    if settings.lora_targets not in LORA_TARGETS:
        allowed = ", ".join(f"{name!r}" for name in LORA_TARGETS)
        raise ValueError(f"lora_targets is {settings.lora_targets!r}; choose from {allowed}")
    if settings.lora_rank < 1:
        raise ValueError(f"lora_rank is {settings.lora_rank}; it must be at least 1")
    if not 0 < settings.alpha < math.inf:
        raise ValueError(f"lora_alpha is {settings.lora_alpha}; it must be above 0: adapters of scale 0 do nothing")
    if not 0 <= settings.lora_dropout < 1:
        raise ValueError(f"lora_dropout is {settings.lora_dropout}; it must be at least 0 and below 1")


def count_parameters(config: CLIPConfig | str | Path, settings: AdaptationSettings, n_classes: int) -> tuple[int, int]:
    """Trainable and total parameters, without making or loading any weights.

    ``config``: a configuration, or a source that :func:`~attndrift.models.load_config` takes.
    """
    if not isinstance(config, CLIPConfig):
        config = load_config(config)
    with torch.device("meta"):
        model = adapt(CLIPModel(config), replace(settings, head="trained"), n_classes, 0)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in model.parameters())
