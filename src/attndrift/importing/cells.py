"""From a cell of somebody's file to the value that its column's type asks for, or an error that names the cell.

Text columns are never read as numbers. In number columns, words for "nothing", errors of a spreadsheet, percent signs,
decimal commas and thousands separators are read, and the report says so. A cell with two readings (`50.000`, `1,234`)
is decided by the other cells of its file, or refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from attndrift.importing.foreign import WrittenFloat
from attndrift.results.columns import Column
from attndrift.results.tables import TableError, columns_of

Decimal = Literal[".", ","]

NULLS = ("", "-", "--", "–", "—", "?", "na", "n/a", "n.a.", "nan", "none", "null", "nil", "missing", "<na>")
"""Words for "nothing" in columns of numbers and truth values, in any case."""

_SPREADSHEET_ERROR = re.compile(
    # `#VALUE!`, `#DIV/0!`, `#NAME?` in any language; `#N/A` in those that differ; `Err:502` of LibreOffice
    r"#[¡¿]?[^\W\d_][^\s#]{0,20}[!?]|#(?:N/A|NV|N/D|N/V|GETTING_DATA)|Err:\d{3}"
)
_TRUTH = {"true": True, "yes": True, "1": True, "1.0": True, "false": False, "no": False, "0": False, "0.0": False}
_LARGEST_EXACT = 2**53


def _number_pattern(decimal: Decimal) -> re.Pattern[str]:
    group = {".": ",", ",": r"\."}[decimal] + r" \u00a0\u202f\u2009'’"
    whole = rf"[0-9]+|[1-9][0-9]{{0,2}}(?P<by>[{group}])[0-9]{{3}}(?:(?P=by)[0-9]{{3}})*"
    point = re.escape(decimal)
    return re.compile(
        rf"(?P<sign>[-+\u2212]?)(?:(?P<whole>{whole})(?:{point}(?P<part>[0-9]*))?|{point}(?P<only>[0-9]+))"
        r"(?P<power>[eE][-+\u2212]?[0-9]+)?"
    )


_NUMBERS: dict[Decimal, re.Pattern[str]] = {".": _number_pattern("."), ",": _number_pattern(",")}


def _number(text: str, decimal: Decimal) -> float | None:
    match = _NUMBERS[decimal].fullmatch(text)
    if match is None:
        return None
    whole = re.sub("[^0-9]", "", match["whole"] or "0")
    if match["part"] is None and match["only"] is None and match["power"] is None:
        return int(match["sign"].replace("\u2212", "-") + whole)
    part = match["part"] or match["only"] or "0"
    return float(f"{match['sign']}{whole}.{part}{match['power'] or ''}".replace("\u2212", "-"))


@dataclass
class CellReader:
    """Types the cells of one file by the schema of its table.

    Attributes:
        where: the file, for errors.
        separator: of a text file.
        decimal: how the file writes decimals, where its owner says so.
        nulls: words that mean null in any column.
        notes: in words what was read in a way that is not plain.
        percent: for each column that has percent signs, its rows that have one. Their unit is settled.
    """

    where: str
    separator: str | None = None
    decimal: Decimal | None = None
    nulls: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)
    percent: dict[str, pd.Series[Any]] = field(default_factory=dict)

    def read(self, frame: pd.DataFrame, table: str) -> pd.DataFrame:
        """``frame`` with typed cells. Raises :class:`TableError` for a cell that is nothing of its column's type."""
        frame = frame.mask(frame.isin(list(self.nulls))) if self.nulls else frame.copy()
        columns = [column for column in columns_of(table, frame) if column.name in frame.columns]
        numbers = [column for column in columns if column.kind in ("int", "float")]
        texts = {c.name: self._emptied(frame[c.name], c) for c in columns if c.kind != "string"}
        proofs = {c.name: _decimals_shown(texts[c.name]) for c in numbers}
        shown = {decimal for found in proofs.values() for decimal in found}
        for column in columns:
            values = frame[column.name]
            if column.kind == "string":
                frame[column.name] = self._text(values, column)
            elif column.kind == "bool":
                frame[column.name] = self._truth(texts[column.name], column)
            else:
                frame[column.name] = self._numbers(texts[column.name], column, proofs[column.name], shown)
        known = {column.name for column in columns}
        for name in frame.columns:
            if name not in known:
                frame[name] = frame[name].mask(frame[name].map(lambda v: isinstance(v, str) and not v))
                frame[name] = frame[name].infer_objects()
        return frame

    def _refuse(self, column: Column, why: str) -> TableError:
        return TableError(f"{self.where}: column `{column.name}` {why}")

    def _emptied(self, values: pd.Series[Any], column: Column) -> pd.Series[Any]:
        """Words for "nothing" and spreadsheet errors as nulls, and a line in the report."""
        if pd.api.types.is_numeric_dtype(values.dtype):
            return values
        # Lists rather than columns of strings, which are slow cell by cell.
        cells = [v.strip() if isinstance(v, str) else v for v in values]
        if not any(isinstance(v, str) for v in cells):
            return values.map(lambda v: v)
        empty = [isinstance(v, str) and (v.lower() in NULLS or bool(_SPREADSHEET_ERROR.fullmatch(v))) for v in cells]
        words = [word for word, is_empty in zip(cells, empty, strict=True) if is_empty and word]
        if words:
            shown = ", ".join(f"`{word}`" for word in sorted(set(words)))
            self.notes.append(f"{len(words)} cells of `{column.name}` ({shown}) read as null")
        read = [np.nan if is_empty or v is None or v is pd.NA else v for v, is_empty in zip(cells, empty, strict=True)]
        return pd.Series(read, index=values.index, dtype=object)

    def _text(self, values: pd.Series[Any], column: Column) -> pd.Series[Any]:
        def text(value: Any) -> Any:
            if isinstance(value, str):
                value = value.strip()
                if _SPREADSHEET_ERROR.fullmatch(value):
                    raise self._refuse(column, f"holds `{value}`, an error of a spreadsheet; give the text itself")
                return value or None
            if isinstance(value, WrittenFloat):
                return value.text
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
                return value
            if float(value).is_integer() and abs(value) < _LARGEST_EXACT:
                return str(int(value))
            if column.required and isinstance(value, float):
                raise self._refuse(
                    column, f"holds the number {value}, and 1.10 and 1.1 are one number; store names as text"
                )
            return str(value)

        if pd.api.types.is_string_dtype(values.dtype) and values.dtype != object:
            values = values.astype(object)
        return values.where(values.notna(), None).astype(object).map(text, na_action="ignore")

    def _truth(self, values: pd.Series[Any], column: Column) -> pd.Series[Any]:
        if pd.api.types.is_bool_dtype(values.dtype):
            return values
        words = values.map(lambda v: str(v).strip().lower(), na_action="ignore")
        wrong = words.notna() & ~words.isin(list(_TRUTH))
        if wrong.any():
            raise self._refuse(column, f"must be true or false, not {words[wrong].iloc[0]!r}")
        return words.map(_TRUTH).astype("boolean")

    def _numbers(
        self, values: pd.Series[Any], column: Column, proof: set[Decimal], shown: set[Decimal]
    ) -> pd.Series[Any]:
        objects = values.dtype == object
        if pd.api.types.is_bool_dtype(values.dtype) or (objects and any(isinstance(v, bool) for v in values)):
            raise self._refuse(column, f"must be {column.kind}, and holds true or false")
        if pd.api.types.is_numeric_dtype(values.dtype):
            return values
        percent = pd.Series([isinstance(v, str) and v.endswith("%") for v in values], values.index, dtype=bool)
        factor = 1.0
        if percent.any():
            if not (column.high == 1.0 or column.name.endswith("_pct")):
                raise self._refuse(column, f"holds {values[percent].iloc[0]!r}, and it is no share: take the sign away")
            factor = 0.01 if column.high == 1.0 else 1.0
            meaning = "percent of 1" if factor == 0.01 else "percent"
            self.percent[column.name] = percent
            self.notes.append(f"{int(percent.sum())} cells of `{column.name}` with a percent sign read as {meaning}")
        unusual: dict[str, float] = {}

        def number(value: Any) -> Any:
            if not isinstance(value, str):
                return value
            text = value.removesuffix("%").rstrip()
            read = self._one(text, column, proof, shown)
            if read is None:
                return value
            if not re.fullmatch(r"[-+]?[0-9]*\.?[0-9]*([eE][-+]?[0-9]+)?", text) or float(text) != read:
                unusual[value] = read
            return read * factor if value.endswith("%") else read

        result = values.map(number, na_action="ignore")
        told = [f"`{text}` as {read:g}" for text, read in unusual.items() if not text.endswith("%")]
        if told:
            self.notes.append(f"`{column.name}`: read {', '.join(told[:3])}{', ...' if len(told) > 3 else ''}")
        if column.kind == "int":
            large = [v for v in result if isinstance(v, int) and _LARGEST_EXACT <= abs(v) < 2**63]
            if large:
                raise self._refuse(
                    column, f"must be int: {large[0]} is above 2**53, and tables keep no such number exactly"
                )
        return result

    def _one(self, text: str, column: Column, proof: set[Decimal], shown: set[Decimal]) -> float | None:
        """The number that ``text`` is; None where it is none."""
        if text.lower().lstrip("+-") in ("inf", "infinity"):
            return float(text)
        point, comma = _number(text, "."), _number(text, ",")
        if point == comma or ((point is None or comma is None) and self.decimal is None):
            return point if point is not None else comma
        if self.decimal is not None:
            return _number(text, self.decimal)
        likely = proof or shown
        whole_with_point = column.kind == "int" and "." in text
        if likely == {","} or (likely == {"."} and not whole_with_point):
            return comma if likely == {","} else point
        if not likely and self.separator != ";":
            if "," in text and column.kind == "int":
                return point
            if "." in text and column.kind == "float":
                return point
        raise self._refuse(
            column,
            f"holds `{text}`, which is {point:g} where decimals have a point and {comma:g} where they have a comma; "
            "say which with --decimal point or --decimal comma",
        )


def _decimals_shown(values: pd.Series[Any]) -> set[Decimal]:
    """The decimal signs without which some cell is no number."""
    found: set[Decimal] = set()
    for value in values:
        if isinstance(value, str):
            text = value.removesuffix("%").rstrip()
            point, comma = _number(text, "."), _number(text, ",")
            if (point is None) != (comma is None):
                found.add("," if point is None else ".")
    return found
