"""Conditions such as ``cka_mean<0.9``: a name, a comparison and a number. Nothing is ever evaluated as code."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from attndrift.compare.errors import CompareError
from attndrift.registry import near_match

_FORM = re.compile(
    r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(<=|>=|<|>)\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)\s*"
)
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Condition:
    """One condition: it holds where ``name`` ``comparison`` ``number``."""

    name: str
    comparison: str
    number: float

    def __str__(self) -> str:
        return f"{self.name}{self.comparison}{self.number:g}"

    def holds(self, values: Mapping[str, float | None], reasons: Mapping[str, str]) -> bool:
        """Whether the condition holds. A value that is null is a :class:`CompareError` with its reason, not a pass."""
        value = values.get(self.name)
        if value is None:
            reason = reasons.get(self.name, "it was not measured")
            raise CompareError(f"--fail-if {self}: {self.name} has no value ({reason}), so the condition is undecided")
        return self.test(value)

    def test(self, value: float) -> bool:
        """Whether the condition holds for ``value``."""
        return _COMPARE[self.comparison](value, self.number)


def parse_condition(text: str, allowed: Collection[str], option: str = "--fail-if") -> Condition:
    """``text``, given with ``option``, as a condition on one of the ``allowed`` names. Raises :class:`CompareError`."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise CompareError(f'{option} {text!r}: write a name, one of < <= > >=, and a number, such as "cka_mean<0.9"')
    name, comparison, number = match.groups()
    if name not in allowed:
        hint = near_match(name, allowed) or (
            f"; choose from {', '.join(allowed)}" if len(allowed) <= 8 else "; `--json` shows them all under `summary`"
        )
        raise CompareError(f"{option} {text!r}: there is no number `{name}`{hint}")
    limit = float(number)
    if limit in (float("inf"), float("-inf")):
        raise CompareError(f"{option} {text!r}: the number {number} is too large to compare with")
    return Condition(name, comparison, limit)


def parse_conditions(texts: Sequence[str], allowed: Collection[str]) -> list[Condition]:
    """All of ``texts`` as conditions, see :func:`parse_condition`."""
    return [parse_condition(text, allowed) for text in texts]
