"""How a run's preservation losses are written: ``attention_preservation:0.1+entropy_floor:0.01``.

Nothing here needs torch, so that settings can be checked without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from attndrift.losses.registry import LOSSES

BETWEEN = re.compile(r"\+(?=\s*[A-Za-z_])")
"""The plus between two losses, which is none of a number's exponent."""


def parse_losses(text: str | None) -> dict[str, float]:
    """The losses of a run and their weights, in the order in which they are written.

    >>> parse_losses("attention_preservation:0.1+entropy_floor:0.01")
    {'attention_preservation': 0.1, 'entropy_floor': 0.01}
    >>> parse_losses(None)
    {}

    Raises:
        ValueError: a text of another form, a name that no loss has, or a weight that is no number of at least 0.
    """
    found: dict[str, float] = {}
    for part in [] if text is None else BETWEEN.split(text):
        name, colon, weight = part.strip().partition(":")
        if not colon:
            raise ValueError(f"{part.strip()!r} has no weight; write NAME:WEIGHT, such as attention_preservation:0.1")
        LOSSES[name]  # raises for a name that no loss has
        if name in found:
            raise ValueError(f"the loss `{name}` is named twice")
        found[name] = _weight(name, weight)
    return found


def canonical_losses(losses: Mapping[str, Any]) -> str | None:
    """One text for the same losses in any order: sorted by name, weights in their shortest form; None without a loss.

    >>> canonical_losses({"entropy_floor": 1e-2, "attention_preservation": 1})
    'attention_preservation:1+entropy_floor:0.01'
    """
    parts = [f"{name}:{_weight(name, losses[name]):.12g}".replace("e+", "e") for name in sorted(losses, key=str)]
    return "+".join(parts) or None


def split_weight(text: str | None) -> tuple[str, float | None]:
    """The name of a run's one loss and its weight; of several losses the whole text, and None.

    >>> split_weight("attention_preservation:0.1")
    ('attention_preservation', 0.1)

    Text of another program, which has another form, is a name without a weight.
    """
    if not text:
        return "", None
    name, colon, weight = text.partition(":")
    if colon and len(BETWEEN.split(text)) == 1:
        try:
            return name.strip(), float(weight)
        except ValueError:
            pass
    return text.strip(), None


def _weight(name: str, value: Any) -> float:
    try:
        weight = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"the weight of `{name}` is {value!r}; it must be a number of at least 0")
    return weight + 0.0  # and no negative zero
