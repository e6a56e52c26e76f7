"""What the owner of foreign tables says of them, as objects and as the command line writes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from attndrift.importing.cells import Decimal
from attndrift.plain_digits import decimal_number
from attndrift.results.tables import TableError


@dataclass(frozen=True)
class ImportOptions:
    """What the owner of foreign tables says of them.

    Attributes:
        rename: foreign column names to the documented ones, in whichever table has them; ``table.old`` limits one.
        scale: factors by column (documented names, or ``table.name``).
        values: (column, foreign value) to the documented value.
        constants: columns, or ``table.name``, that have one value in every row; of ``runs`` where no table is given.
        nulls: words that mean null in any column.
        decimal: the sign that stands before decimals, where the cells do not tell.
        number_rows: name the runs by the number of their row.
    """

    rename: Mapping[str, str] = field(default_factory=dict)
    scale: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[tuple[str, str], str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    nulls: Sequence[str] = ()
    decimal: Decimal | None = None
    number_rows: bool = False


def parse_renames(pairs: Sequence[str]) -> dict[str, str]:
    """``["lr=learning_rate"]`` as a mapping. Raises :class:`TableError` for what is not ``old=new``."""
    result: dict[str, str] = {}
    for pair in pairs:
        old, separator, new = pair.partition("=")
        if not separator or not old.strip() or not new.strip():
            raise TableError(f"rename `{pair}`: must be old=new, for example lr=learning_rate")
        result[old.strip()] = new.strip()
    return result


def parse_scales(pairs: Sequence[str]) -> dict[str, float]:
    """``["test_accuracy=0.01"]`` as a mapping. Raises :class:`TableError` for what is not ``column=factor``."""
    result: dict[str, float] = {}
    for pair in pairs:
        column, _, factor = pair.partition("=")
        try:
            value = decimal_number(factor)
        except ValueError:
            value = math.nan
        if not column.strip() or not math.isfinite(value) or value == 0:
            raise TableError(f"scale `{pair}`: must be column=factor, for example test_accuracy=0.01")
        result[column.strip()] = value
    return result


def parse_constants(pairs: Sequence[str]) -> dict[str, str]:
    """``["dataset=eurosat"]`` as a mapping. Raises :class:`TableError` for what is not ``column=value``."""
    result: dict[str, str] = {}
    for pair in pairs:
        column, separator, value = pair.partition("=")
        if not separator or not column.strip() or not value.strip():
            raise TableError(f"set `{pair}`: must be column=value, for example dataset=eurosat")
        result[column.strip()] = value.strip()
    return result


def parse_values(items: Sequence[str]) -> dict[tuple[str, str], str]:
    """``["method:Full FT=full"]`` as a mapping. Raises :class:`TableError` for what is not ``column:old=new``."""
    result: dict[tuple[str, str], str] = {}
    for item in items:
        column, colon, rest = item.partition(":")
        old, equals, new = rest.rpartition("=")
        if not (colon and equals and column.strip() and old.strip() and new.strip()):
            raise TableError(f"map `{item}`: must be column:old=new, for example method:Full FT=full")
        result[column.strip(), old.strip()] = new.strip()
    return result


def parse_decimal(word: str | None) -> Decimal | None:
    """``point`` or ``comma`` as the sign. Raises :class:`TableError` for another word."""
    signs: dict[str | None, Decimal | None] = {None: None, "point": ".", "comma": ",", ".": ".", ",": ","}
    if word not in signs:
        raise TableError(f"decimal `{word}`: must be point or comma")
    return signs[word]
