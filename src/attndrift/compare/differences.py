"""What decides, beside its weights, what a model computes: two models of equal weights may be different functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from attndrift.compare.errors import CompareError
from attndrift.compare.resolved import ResolvedModel
from attndrift.sanitize import printable

_SHAPES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size",
    "patch_size",
)  # fmt: skip
"""Settings of the vision tower that decide the shapes of what is compared."""

_DECIDE_NOTHING = frozenset({
    "_name_or_path", "architectures", "chunk_size_feed_forward", "dtype", "id2label", "initializer_factor",
    "initializer_range", "is_encoder_decoder", "label2id", "logit_scale_init_value", "model_type", "output_attentions",
    "output_hidden_states", "problem_type", "return_dict", "text_config_dict", "torch_dtype", "transformers_version",
    "vision_config_dict",
})  # fmt: skip
"""Fields of a configuration that change no output of a loaded model. Every other field counts."""

_PIXEL_SETTINGS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "do_pad", "pad_size",
)  # fmt: skip

_SCALES = ("logit_scale", "logit_bias")
_IMAGES, _TEXTS, _PIXELS = "image embeddings", "text features", "the pixels that the model is given"
_TRAINING = "training alone"
_SENTENCE = "a photo of a Cat, 2 dogs & a café."


@dataclass(frozen=True)
class Difference:
    """One setting in which two models differ.

    Attributes:
        setting: its name, such as ``vision_config.hidden_act``.
        base, adapted: its value in each, as text.
        effect: what it decides.
    """

    setting: str
    base: str
    adapted: str
    effect: str

    @property
    def counts(self) -> bool:
        """Whether it decides anything that is measured here."""
        return self.effect != _TRAINING

    def __str__(self) -> str:
        return f"{self.setting} ({self.base} in BASE, {self.adapted} in ADAPTED; it decides {self.effect})"

    def to_json(self) -> dict[str, str]:
        """Plain values for a record."""
        return asdict(self)


def refuse_other_shapes(first: ResolvedModel, second: ResolvedModel) -> None:
    """Raise :class:`CompareError` where hidden states, heads, patches or embeddings of the two do not correspond."""
    only = "only a model and its fine-tuned forms can be compared layer by layer"
    kinds = [type(side.model).__name__ for side in (first, second)]
    if kinds[0] != kinds[1]:
        raise CompareError(f"BASE ({first.source}) is a {kinds[0]} and ADAPTED ({second.source}) a {kinds[1]}; {only}")
    for name in (*_SHAPES, "projection_dim"):
        one, two = (_sizes(side).get(name) for side in (first, second))
        if one != two:
            raise CompareError(f"BASE ({first.source}) has {name} {one} and ADAPTED ({second.source}) {two}; {only}")
    shapes = [{name: tuple(p.shape) for name, p in side.view.tower.named_parameters()} for side in (first, second)]
    for name in dict.fromkeys((*shapes[0], *shapes[1])):
        one, two = (side.get(name, "missing") for side in shapes)
        if one != two:
            raise CompareError(
                f"`{name}` has the shape {one} in BASE ({first.source}) and {two} in ADAPTED ({second.source}); {only}"
            )


def _sizes(side: ResolvedModel) -> dict[str, Any]:
    """The settings of a model's image tower, and its ``projection_dim``; empty without a configuration of transformers."""
    if side.config is None:
        return {}
    outer: dict[str, Any] = side.config.to_dict()
    return {**outer.get("vision_config", outer), "projection_dim": outer.get("projection_dim")}


def differences(first: ResolvedModel, second: ResolvedModel) -> list[Difference]:
    """Every setting in which two models differ beside their trained weights."""
    found: list[Difference] = []
    if first.config is not None and second.config is not None:
        found += config_differences(first.config, second.config)
    towers = {effect: [_tower(side, effect) for side in (first, second)] for effect in (_IMAGES, _TEXTS)}
    for effect, (one, two) in towers.items():
        # What a configuration tells is told once, and not for each module that it has made.
        if one is not None and two is not None and not any(known.effect == effect for known in found):
            found += _module_differences(one, two, _path(first, one), effect)
    found += _buffer_differences(first, second)
    pixels = [pixel_settings(side.image_processor) for side in (first, second)]
    found += _rows(pixels, "image_processor", lambda name: _PIXELS)
    if first.tokenizer is not None and second.tokenizer is not None and first.tokenizer is not second.tokenizer:
        tokens = [{"ids": list(side.tokenizer(_SENTENCE)["input_ids"])} for side in (first, second)]
        found += _rows(tokens, "tokenizer", lambda name: _TEXTS)
    return found


def _tower(side: ResolvedModel, effect: str) -> nn.Module | None:
    """The tower that makes the image embeddings, or the text features; None where there is none."""
    if effect == _IMAGES:
        return side.view.tower
    return None if side.view.text is None else side.view.text.tower


def _path(side: ResolvedModel, part: nn.Module) -> str:
    return next((name for name, module in side.model.named_modules() if module is part), "")


def config_differences(one: Any, two: Any) -> Iterator[Difference]:
    """The fields of two configurations that differ and decide what a model computes, or how it is trained."""
    sides = [config.to_dict() for config in (one, two)]
    parts = {"vision_config": _IMAGES, "text_config": _TEXTS}
    outer = [{name: value for name, value in side.items() if name not in parts} for side in sides]
    whole = f"{_IMAGES} and {_TEXTS}" if any(part in side for side in sides for part in parts) else _IMAGES
    yield from _fields(outer, "", whole)
    for part, effect in parts.items():
        yield from _fields([side.get(part, {}) for side in sides], part, effect)


def tower_differences(one: Any, two: Any) -> Iterator[Difference]:
    """As :func:`config_differences`, of two vision towers."""
    yield from _fields((one.to_dict(), two.to_dict()), "vision_config", _IMAGES)


def _fields(sides: Iterable[dict[str, Any]], prefix: str, effect: str) -> Iterator[Difference]:
    # A whole CLIP takes the width of its projections from the outer configuration.
    left_out = _DECIDE_NOTHING | ({"projection_dim"} if prefix else set())
    kept = ({name: value for name, value in side.items() if name not in left_out} for side in sides)
    yield from _rows(kept, prefix, lambda name: _TRAINING if "dropout" in name else effect)


def _rows(sides: Iterable[Mapping[str, Any]], prefix: str, effect: Callable[[str], str]) -> Iterator[Difference]:
    one, two = sides
    for name in dict.fromkeys((*one, *two)):
        before, after = (_text(side[name]) if name in side else "not set" for side in (one, two))
        if before != after:
            yield Difference(f"{prefix}.{name}".lstrip("."), before, after, effect(name))


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
    return printable(text if len(text) <= 80 else f"{text[:77]}...")


def pixel_settings(processor: Any) -> dict[str, Any]:
    """The settings of an image processor that decide the pixels it makes."""
    values = processor.to_dict()
    return {name: values[name] for name in _PIXEL_SETTINGS if values.get(name) is not None}


def same_pixels(first: Any, second: Any) -> bool:
    """Whether two image processors make the same pixels of every image."""
    return first is second or not list(_rows((pixel_settings(first), pixel_settings(second)), "", lambda name: _PIXELS))


def _module_differences(one: nn.Module, two: nn.Module, tower: str, effect: str) -> list[Difference]:
    """The first module that is another one, with how many there are: what a model has got after it was made."""
    described = [{name: _described(module) for name, module in side.named_modules()} for side in (one, two)]
    rows = list(_rows(described, tower, lambda name: effect))
    if len(rows) < 2:
        return rows
    return [Difference(f"{rows[0].setting} and {len(rows) - 1} more modules", rows[0].base, rows[0].adapted, effect)]


def _described(module: nn.Module) -> str:
    if isinstance(module, nn.Dropout):
        return "Dropout"
    parts = [f"{type(module).__name__}({module.extra_repr()})"]
    # Such as the factor of the logits in an attention module.
    numbers = (
        (name, value) for name, value in vars(module).items() if isinstance(value, float) and "dropout" not in name
    )
    parts += [f"{name}={value:g}" for name, value in sorted(numbers)]
    if "forward" in vars(module):
        parts.append("with a forward of its own")
    return " ".join(parts)


def _buffer_differences(one: ResolvedModel, two: ResolvedModel) -> Iterator[Difference]:
    sides = []
    for side in (one, two):
        scales = {"logit_scale": side.view.logit_scale, "logit_bias": side.view.logit_bias}
        sides.append(
            dict(side.model.named_buffers()) | {name: value for name, value in scales.items() if value is not None}
        )
    towers = {effect: _tower(one, effect) for effect in (_IMAGES, _TEXTS)}
    inside = {effect: _path(one, tower) for effect, tower in towers.items() if tower is not None}
    for name, before in sides[0].items():
        after = sides[1].get(name)
        if after is not None and after.shape == before.shape and not torch.equal(before, after):
            effect = next(
                (
                    effect
                    for effect, path in inside.items()
                    if name not in _SCALES and f"{name}.".startswith(f"{path}.".lstrip("."))
                ),
                "probabilities of classes",
            )
            first, second = (_text(value.flatten()[:8].tolist()) for value in (before, after))
            yield Difference(name, first, second, effect)
