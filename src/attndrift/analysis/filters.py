"""A condition on the runs of a study, such as ``method == 'lora' and learning_rate < 1e-4``.

The text is parsed as a Python expression and evaluated here, node by node: it can compare columns of the table ``runs``
with values, and nothing else.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from attndrift.registry import unknown_name
from attndrift.results.tables import TABLES, Tables

MAX_LENGTH = 2_000
_SHOWN = 8
_ORDERS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FORM = "columns of the table runs, compared (== != < <= > >= in, not in) with values, joined by and, or, not"


class ConditionError(ValueError):
    """A condition that cannot be read, names an unknown column, compares other types, or that no run meets."""


Mask = pd.Series  # of truth values, one a run


def matching(runs: pd.DataFrame, condition: str) -> Mask:
    """Which rows of ``runs`` meet ``condition``.

    Numbers are equal where they agree to six digits. Null equals nothing but ``None``; it is neither smaller nor larger
    than a value. ``"entropy" in loss`` looks for text within text.

    >>> runs = pd.DataFrame({"method": ["full", "lora"], "learning_rate": [1e-5, 1e-4]})
    >>> matching(runs, "method == 'lora' and learning_rate < 1e-3").tolist()
    [False, True]

    Raises :class:`ConditionError`.
    """
    try:
        if len(condition) > MAX_LENGTH:
            raise ConditionError(f"--where: more than {MAX_LENGTH:,} characters")
        tree = ast.parse(condition.strip(), mode="eval")
        return _Evaluation(runs).mask(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ConditionError):
            raise
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise ConditionError(f"--where `{condition[:200]}` cannot be read ({reason}); it has {_FORM}") from error


def only_matching(tables: Tables, condition: str) -> Tables:
    """The runs that meet ``condition``, and what the other tables hold of them.

    Raises :class:`ConditionError`; where no run meets it, with the values that there are.
    """
    kept = matching(tables.runs, condition)
    if not kept.any():
        raise ConditionError(
            f"--where `{condition}`: none of {len(kept)} runs meets it. {_values(tables.runs, condition)}"
        )
    names = set(tables.runs.loc[kept, "run_id"])
    frames = {table: getattr(tables, table) for table in TABLES}
    return replace(tables, **{table: frame[frame["run_id"].isin(names)] for table, frame in frames.items()})


def _values(runs: pd.DataFrame, condition: str) -> str:
    """In words, the values of the columns that a condition names."""
    names = [node.id for node in ast.walk(ast.parse(condition.strip(), mode="eval")) if isinstance(node, ast.Name)]
    return "; ".join(f"`{name}` has {_some(runs[name])}" for name in dict.fromkeys(names))


def _some(values: pd.Series[Any]) -> str:
    known = sorted(values.dropna().unique().tolist(), key=lambda value: (str(type(value)), value))
    shown = [f"{value:g}" if isinstance(value, float) else repr(value) for value in known[:_SHOWN]]
    shown += ["..."] * (len(known) > _SHOWN) + ["None"] * bool(values.isna().any())
    return ", ".join(shown) or "no value"


def _kind(values: Any) -> str:
    """What may be compared with what: text, number, truth value, null."""
    if isinstance(values, pd.Series):
        if pd.api.types.is_bool_dtype(values.dtype):
            return "a truth value"
        if pd.api.types.is_numeric_dtype(values.dtype):
            return "a number"
        return (
            "text"
            if values.map(lambda value: isinstance(value, str), na_action="ignore").dropna().all()
            else "no plain value"
        )
    if values is None:
        return "null"
    return "a truth value" if isinstance(values, bool) else "a number" if isinstance(values, (int, float)) else "text"


class _Evaluation:
    """Evaluates the nodes of one condition over the rows of ``runs``."""

    def __init__(self, runs: pd.DataFrame) -> None:
        self.runs = runs

    def mask(self, node: ast.expr) -> Mask:
        """Truth values, one a run."""
        if isinstance(node, ast.BoolOp):
            masks = [self.mask(one) for one in node.values]
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return pd.Series(join.reduce([mask.to_numpy(dtype=bool) for mask in masks]), index=self.runs.index)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.mask(node.operand)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            found = pd.Series(True, index=self.runs.index)
            for sign, left, right in zip(node.ops, sides[:-1], sides[1:], strict=True):
                found &= self._compared(sign, left, right)
            return found
        if isinstance(node, ast.Name):
            column = self._column(node)
            if _kind(column) == "a truth value":
                return column.fillna(False).astype(bool)
            raise ConditionError(
                f"--where: `{node.id}` is {_kind(column)}; compare it with a value, which are {_some(column)}"
            )
        raise ConditionError(f"--where: `{ast.unparse(node)[:100]}` is no condition; it has {_FORM}")

    def _compared(self, sign: ast.cmpop, left: ast.expr, right: ast.expr) -> Mask:
        one, other = self._operand(left), self._operand(right)
        if not isinstance(one, pd.Series) and not isinstance(other, pd.Series):
            raise ConditionError(
                f"--where: `{ast.unparse(left)}` and `{ast.unparse(right)}` are both no column of the table runs"
            )
        if isinstance(sign, (ast.In, ast.NotIn)):
            found = self._within(one, other, left, right)
            return ~found if isinstance(sign, ast.NotIn) else found
        if isinstance(one, list) or isinstance(other, list):
            raise ConditionError("--where: a list stands on the right of `in` alone")
        if not isinstance(one, pd.Series):
            turned = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}.get(type(sign))
            return self._compared(turned() if turned else sign, right, left)
        self._refuse_types(one, other, left)
        if isinstance(sign, (ast.Eq, ast.NotEq, ast.Is, ast.IsNot)):
            same = self._equal(one, other)
            return ~same if isinstance(sign, (ast.NotEq, ast.IsNot)) else same
        if other is None or _kind(one) == "a truth value":
            raise ConditionError(
                f"--where: `{ast.unparse(left)}` cannot be smaller or larger than {ast.unparse(right)}"
            )
        return _ORDERS[type(sign)](one, other).fillna(False).astype(bool)

    def _within(self, one: Any, other: Any, left: ast.expr, right: ast.expr) -> Mask:
        if isinstance(other, list) and isinstance(one, pd.Series):
            found = pd.Series(False, index=self.runs.index)
            for value in other:
                self._refuse_types(one, value, left)
                found |= self._equal(one, value)
            return found
        if isinstance(one, str) and isinstance(other, pd.Series) and _kind(other) == "text":
            return other.map(lambda text: one in text, na_action="ignore").fillna(False).astype(bool)
        raise ConditionError(
            f"--where: `{ast.unparse(left)} in {ast.unparse(right)}`: write COLUMN in ['a', 'b'], or 'part' in COLUMN of text"
        )

    @staticmethod
    def _equal(one: pd.Series[Any], other: Any) -> Mask:
        if other is None:
            return one.isna()
        if _kind(one) == "a number":
            left = one.astype("float64")
            right = other.astype("float64") if isinstance(other, pd.Series) else float(other)
            return pd.Series(np.isclose(left, right, rtol=1e-6, atol=0.0), index=one.index)
        return (one == other).fillna(False).astype(bool)

    @staticmethod
    def _refuse_types(one: pd.Series[Any], other: Any, left: ast.expr) -> None:
        if other is None or one.isna().all() or (isinstance(other, pd.Series) and other.isna().all()):
            return
        if _kind(one) != _kind(other):
            raise ConditionError(
                f"--where: `{ast.unparse(left)}` is {_kind(one)}, and compared with {_kind(other)}; it has {_some(one)}"
            )

    def _operand(self, node: ast.expr) -> Any:
        """A column, a value, or a list of values."""
        if isinstance(node, ast.Name):
            return self._column(node)
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            return [self._value(one) for one in node.elts]
        return self._value(node)

    @staticmethod
    def _value(node: ast.expr) -> Any:
        negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        inner = node.operand if isinstance(node, ast.UnaryOp) and negative else node
        if isinstance(inner, ast.Constant):
            value = inner.value
            if value is None or isinstance(value, (str, bool, int, float)):
                if not negative:
                    return value
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    return -value
        raise ConditionError(f"--where: `{ast.unparse(node)[:100]}` is no value; a condition has {_FORM}")

    def _column(self, node: ast.Name) -> pd.Series[Any]:
        if node.id in self.runs.columns:
            return self.runs[node.id]
        known = map(str, self.runs.columns)
        text = unknown_name("column of the table runs", node.id, known, f"text stands in quotation marks: '{node.id}'")
        raise ConditionError(f"--where: {text}")
