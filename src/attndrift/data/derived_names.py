"""Sets that are made of another one, by name: ``cifar100+new``, ``cifar100+gaussian_noise-3``.

Nothing here imports numpy: a study file is checked by these names alone.
"""

from __future__ import annotations

import re

from attndrift.data.errors import DataError
from attndrift.registry import unknown_name

HALVES = ("base", "new")
"""The first half of the classes in label order, rounded up, and the rest: base and new classes of CoOp (Zhou et al. 2022)."""

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""The fifteen of Hendrycks and Dietterich 2019; ``frost`` needs photographs (:data:`attndrift.data.corruptions.FROST`)."""

SEVERITIES = (1, 2, 3, 4, 5)

_CORRUPTION = re.compile(rf"({'|'.join(CORRUPTIONS)})-([1-5])")
_ALL = re.compile(r"corruptions(?:-([1-5]))?")
_ALLOWED = (
    "allowed after `+`: base, new, CORRUPTION-SEVERITY (gaussian_noise-3); in `transfer` also halves, corruptions-3 and "
    "corruptions"
)


def derivation(name: str) -> tuple[str, tuple[str, ...]]:
    """The set that ``name`` is made of, and how, step by step; without ``+`` the name and nothing.

    Raises :class:`DataError` for a step that there is not.

    >>> derivation("cifar100+new+fog-2")
    ('cifar100', ('new', 'fog-2'))
    """
    base, *steps = name.split("+")
    for step in steps:
        if step not in HALVES and _CORRUPTION.fullmatch(step) is None:
            known = [*HALVES, "halves", *(f"{one}-3" for one in CORRUPTIONS)]
            raise DataError(f"{name}: {unknown_name('class half or corruption', step, known, _ALLOWED)}")
    return base, tuple(steps)


def corruption_of(step: str) -> tuple[str, int] | None:
    """The corruption and the severity of a step; None for a class half.

    >>> corruption_of("fog-2"), corruption_of("new")
    (('fog', 2), None)
    """
    match = _CORRUPTION.fullmatch(step)
    return (match[1], int(match[2])) if match else None


def family(name: str) -> tuple[str, ...]:
    """The sets that ``SET+halves``, ``SET+corruptions`` and ``SET+corruptions-SEVERITY`` stand for; another name itself.

    Frost is left out: it needs photographs.

    >>> family("cifar100+halves")
    ('cifar100+base', 'cifar100+new')
    """
    base, plus, step = name.rpartition("+")
    match = _ALL.fullmatch(step)
    if plus and step == "halves":
        return tuple(f"{base}+{half}" for half in HALVES)
    if plus and match:
        severities = (int(match[1]),) if match[1] else SEVERITIES
        return tuple(f"{base}+{one}-{level}" for level in severities for one in CORRUPTIONS if one != "frost")
    return (name,)


def share_classes(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """Whether two sets made of one have classes in common: all but base and new halves of the same classes."""
    halves = [[step for step in steps if step in HALVES] for steps in (first, second)]
    # Halves of halves: what differs first decides.
    return all(one == other for one, other in zip(*halves, strict=False))
