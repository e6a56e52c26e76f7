"""Whether stored tensors have the shapes of a model's, and which setting decides them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from attndrift.sanitize import printable

Shape = Sequence[int]

_GRID = "image_size and patch_size"
_RANK, _CLASSES = "the adapter's rank r", "the number of classes"
_DECIDED_BY = (
    (r"token_embedding\.weight$", ("vocab_size", "hidden_size")),
    (r"vision_model\.embeddings\.position_embedding\.weight$", (_GRID, "hidden_size")),
    (r"position_embedding\.weight$", ("max_position_embeddings", "hidden_size")),
    (r"patch_embedding\.weight$", ("hidden_size", "num_channels", "patch_size", "patch_size")),
    (r"mlp\.fc1\.", ("intermediate_size", "hidden_size")),
    (r"mlp\.fc2\.", ("hidden_size", "intermediate_size")),
    (r"(?:visual|text)_projection\.weight$", ("projection_dim", "hidden_size")),
    (r"classifier\.", (_CLASSES, "projection_dim")),
)
"""The setting that decides each dimension of a CLIP's tensors, by their names; ``hidden_size`` of all others."""

_TOWERS = (
    (r"\bvision_model\b|\bvisual_projection\b", "vision_config."),
    (r"\btext_(?:model|projection)\b", "text_config."),
)
_OF_NO_TOWER = (_RANK, "projection_dim", _CLASSES)


def misfit(stored: Mapping[str, Tensor | Shape], wanted: Mapping[str, Tensor | Shape]) -> str | None:
    """What is wrong where stored tensors have other shapes than a model's of the same names; None where all fit.

    >>> print(misfit({"text_model.final_layer_norm.bias": (64,)}, {"text_model.final_layer_norm.bias": (32,)}))
    `text_model.final_layer_norm.bias` has shape (64,) in the file and (32,) in the model, where text_config.hidden_size decides
    """
    shapes = {name: (_shape(stored[name]), _shape(wanted[name])) for name in stored if name in wanted}
    wrong = [name for name, (found, expected) in shapes.items() if found != expected]
    if not wrong:
        return None
    name = wrong[0]
    found, expected = shapes[name]
    settings = " and ".join(_settings(name, found, expected))
    more = f"; {len(wrong)} of {len(shapes)} tensors do not fit" if len(wrong) > 1 else ""
    return (
        f"`{printable(name)}` has shape {found} in the file and {expected} in the model, where {settings} "
        f"{'decide' if ' and ' in settings else 'decides'}{more}"
    )


def _shape(value: Tensor | Shape) -> tuple[int, ...]:
    return tuple(value.shape if isinstance(value, Tensor) else value)


def _settings(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> list[str]:
    tower = next((tower for pattern, tower in _TOWERS if re.search(pattern, name)), "")
    decided = _decided_by(name)
    pairs = zip(decided, found, expected, strict=False)
    differ = [setting for setting, one, two in pairs if one != two] if len(found) == len(expected) else []
    named = (setting if setting in _OF_NO_TOWER else tower + setting for setting in differ or decided)
    return list(dict.fromkeys(named))


def _decided_by(name: str) -> tuple[str, ...]:
    adapter = re.search(r"lora_(A|B)\b", name)
    if adapter:
        rows, columns = _decided_by(f"{name[: adapter.start()]}weight")[:2]
        return (_RANK, columns) if adapter[1] == "A" else (rows, _RANK)
    return next(
        (settings for pattern, settings in _DECIDED_BY if re.search(pattern, name)), ("hidden_size", "hidden_size")
    )
