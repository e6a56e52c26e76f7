"""Class names and prompt templates of zero-shot classification.

A template holds ``{class}`` once. The default is ``a photo of a {class}.``; the ensembles are those
that CLIP's authors published (Radford et al. 2021, appendix A.4 and the prompts that came with it).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from attndrift.data.errors import DataError
from attndrift.registry import unknown_name

DEFAULT_TEMPLATE: Final = "a photo of a {class}."

_CIFAR_FORMS = (
    "a photo of {article} {class}.",
    "a blurry photo of {article} {class}.",
    "a black and white photo of {article} {class}.",
    "a low contrast photo of {article} {class}.",
    "a high contrast photo of {article} {class}.",
    "a bad photo of {article} {class}.",
    "a good photo of {article} {class}.",
    "a photo of {article} small {class}.",
    "a photo of {article} big {class}.",
)

TEMPLATES: Final[Mapping[str, tuple[str, ...]]] = {
    "default": (DEFAULT_TEMPLATE,),
    "cifar": tuple(form.replace("{article}", article) for article in ("a", "the") for form in _CIFAR_FORMS),
    "eurosat": (
        "a centered satellite photo of {class}.",
        "a centered satellite photo of a {class}.",
        "a centered satellite photo of the {class}.",
    ),
    "pets": ("a photo of a {class}, a type of pet.",),
    "sun397": ("a photo of a {class}.", "a photo of the {class}."),
    "stanford_cars": (
        "a photo of a {class}.",
        "a photo of the {class}.",
        "a photo of my {class}.",
        "i love my {class}!",
        *(f"a photo of my {kind} {{class}}." for kind in ("dirty", "clean", "new", "old")),
    ),
    "resisc45": tuple(
        f"{view} {form} of {article}{{class}}."
        for article in ("", "a ", "the ")
        for form in ("imagery", "photo", "view")
        for view in ("satellite", "aerial")
    ),
    "gtsrb": tuple(f'a {kind} photo of a "{{class}}" traffic sign.' for kind in ("zoomed in", "centered", "close up")),
    "digits": ('a photo of the number: "{class}".',),
    "dtd": tuple(
        f"a photo of {article} {{class}} {kind}."
        for article in ("a", "the")
        for kind in ("texture", "pattern", "thing", "object")
    ),
}
"""Named ensembles, each made for a set; ``default`` has one template. Those of the sets of FusionBench are as it has them."""

OWN: Final = "own"
"""Instead of templates: for each set those that came with its images, else the ensemble made for it."""


def clean_class_name(name: str) -> str:
    """A class name as it is spoken: underscores become spaces, runs of spaces become one.

    >>> clean_class_name("aquarium_fish")
    'aquarium fish'
    """
    return re.sub(r"\s+", " ", name.replace("_", " ")).strip()


def fill(template: str, class_name: str) -> str:
    """The prompt of one class; braces in the class name are kept as they are.

    Raises :class:`DataError` unless ``template`` holds ``{class}`` exactly once.

    >>> fill("a photo of a {class}.", "maple_tree")
    'a photo of a maple tree.'
    """
    if template.count("{class}") != 1:
        raise DataError(f"the prompt template {template!r} must hold {{class}} exactly once")
    return template.replace("{class}", clean_class_name(class_name))


def templates(name: str | Sequence[str]) -> tuple[str, ...]:
    """The templates of a named ensemble; a template, or a list of them, is returned as it is.

    Raises :class:`DataError` for an unknown name, an empty list and a template without ``{class}``.
    """
    if isinstance(name, str):
        if name in TEMPLATES:
            return TEMPLATES[name]
        if "{class}" not in name:
            raise DataError(
                unknown_name(
                    "prompt ensemble",
                    name,
                    TEMPLATES,
                    f"there are {', '.join(TEMPLATES)}, and a template of your own has {{class}} in it",
                )
            )
        name = (name,)
    if not name:
        raise DataError("the list of prompt templates is empty")
    for template in name:
        fill(template, "x")
    return tuple(name)


def prompts_for(class_names: Sequence[str], ensemble: str | Sequence[str] = "default") -> list[list[str]]:
    """Prompts by class: ``len(class_names)`` lists of as many prompts as the ensemble has templates."""
    chosen = templates(ensemble)
    return [[fill(template, name) for template in chosen] for name in class_names]
