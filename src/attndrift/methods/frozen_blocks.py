"""Which blocks of a tower stay frozen, as settings give them: from either end, or by number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from attndrift.models.backbone import Backbone

_END = re.compile(r"(first|last):([1-9][0-9]{0,3})")
_NUMBERS = re.compile(r"([1-9][0-9]{0,3})(?:-([1-9][0-9]{0,3}))?")
_FORM = "give first:N, last:N, numbers from 1 (the input) such as 3 or 5-8, or several joined by commas"


def _parts(text: str) -> tuple[dict[str, int], set[int]]:
    """How many from each end, and which by number. Raises ``ValueError`` for any other text."""
    ends, numbers = dict[str, int](), set[int]()
    for part in (word.strip() for word in text.split(",")):
        end, found = _END.fullmatch(part), _NUMBERS.fullmatch(part)
        if end:
            ends[end[1]] = max(ends.get(end[1], 0), int(end[2]))
        elif found and int(found[2] or found[1]) >= int(found[1]):
            numbers |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
        else:
            raise ValueError(f"{part!r} names no blocks; {_FORM}")
    return ends, numbers


def in_one_spelling(text: str) -> str:
    """The blocks that ``text`` names, in one spelling.

    >>> in_one_spelling("7, 5-6 ,last:2,9")
    'last:2,5-7,9'
    """
    ends, numbers = _parts(text)
    spelled = [f"{end}:{ends[end]}" for end in ("first", "last") if end in ends]
    for first in sorted(number for number in numbers if number - 1 not in numbers):
        last = next(number for number in range(first, first + len(numbers)) if number + 1 not in numbers)
        spelled.append(str(first) if first == last else f"{first}-{last}")
    return ",".join(spelled)


def blocks_named(text: str | None, depth: int, setting: str) -> set[int]:
    """The places, from 0, of the blocks that ``text`` names in a tower of ``depth`` blocks.

    Raises ``ValueError`` naming the setting for a block that the tower does not have.

    >>> sorted(blocks_named("first:1,last:2", 12, "freeze_blocks"))
    [0, 10, 11]
    """
    if text is None:
        return set()
    try:
        ends, numbers = _parts(text)
    except ValueError as error:
        raise ValueError(f"{setting} is {text!r}: {error}") from None
    largest = max([*ends.values(), *numbers])
    if largest > depth:
        raise ValueError(f"{setting} is {text!r}; the tower has {depth} blocks, and {largest} is more")
    found = {number - 1 for number in numbers} | set(range(ends.get("first", 0)))
    return found | set(range(depth - ends.get("last", 0), depth))


def freeze(backbone: Backbone, blocks: Iterable[int]) -> None:
    """Train nothing of these blocks."""
    for place in blocks:
        backbone.blocks[place].requires_grad_(False)


def _as_text(value: Any) -> Any:
    """A number or a list of them, as YAML gives it, as text."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    plain = parts and all(isinstance(part, (str, int)) and not isinstance(part, bool) for part in parts)
    return ",".join(map(str, parts)) if plain else value


FrozenBlocks = Annotated[str, BeforeValidator(_as_text), AfterValidator(in_one_spelling)]
"""Of a setting that names blocks; in one spelling."""
