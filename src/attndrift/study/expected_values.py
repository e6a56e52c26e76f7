"""Published values that a study is checked against: the file ``NAME.expected.yaml`` beside a study file.

It holds the published tables as they were printed, each with its source, and says how far a repetition may be away::

    sources:
      paper: "Authors 2026, table 2: where it was read"
    tables:
      - source: paper
        n: 3                                         # seeds behind each number
        where: {dataset: eurosat}                    # of all rows
        columns: [method, learning_rate, test_accuracy, cka_mean]
        rows:
          - [full, 1e-5, 97.19 ± 0.33, 0.802]
    tolerances:                                      # for numbers without a published deviation; the first that fits
      - {quantity: cka_mean, sd: 0.014, df: 8, why: "the deviation over seeds in ..."}
      - {quantity: "*_baseline", within: 0.02, why: "another draw of probe images"}
    not_comparable:
      - {quantity: "transfer_*", why: "measured without the adapters"}

Columns that are settings say which runs a row is about; the others are quantities: columns of the table ``runs`` in the
unit that reports print (accuracies in percent), or means over the transfer sets of a run. Numbers are text here, because their decimals are the rounding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from attndrift.registry import unknown_name
from attndrift.study.loading import StudyError, preset_names, read_yaml
from attndrift.study.settings import setting_names

SUFFIX = ".expected.yaml"
_NUMBER = r"[+-]?\d+(?:\.\d+)?"
_CELL = re.compile(rf"(?P<mean>{_NUMBER})(?: ?(?:±|\+-) ?(?P<sd>\d+(?:\.\d+)?))?")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Rule(_Part):
    quantity: str
    where: dict[str, str] = Field(default_factory=dict)
    why: str = Field(min_length=10)


class _Tolerance(_Rule):
    within: float | None = Field(None, gt=0)
    sd: float | None = Field(None, ge=0)
    df: float | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_kind(self) -> _Tolerance:
        if (self.within is None) == (self.sd is None) or (self.sd is None) != (self.df is None):
            raise ValueError("give `within`, or `sd` with its degrees of freedom `df`")
        return self


class _PublishedTable(_Part):
    source: str
    n: int = Field(1, ge=1)
    where: dict[str, str] = Field(default_factory=dict)
    columns: list[str] = Field(min_length=1)
    rows: list[list[str]] = Field(min_length=1)


class _ExpectedFile(_Part):
    sources: dict[str, str] = Field(min_length=1)
    tables: list[_PublishedTable] = Field(min_length=1)
    tolerances: list[_Tolerance] = Field(default_factory=list)
    not_comparable: list[_Rule] = Field(default_factory=list)


@dataclass(frozen=True)
class ExpectedValue:
    """One published number. All numbers are in the unit that it was printed in.

    Attributes:
        quantity: column of the table ``runs``, or a mean over transfer sets.
        where: settings of the runs that it is about; it is their mean.
        mean: the number, printed with ``digits`` decimals; ``rounding`` is half a unit of the last one.
        n: seeds behind it.
        deviation: its standard deviation over seeds, as printed with ``sd_digits`` decimals; null where none was published.
        sd: the deviation that the tolerance comes from, with ``df`` degrees of freedom; null where ``within`` is given.
        within: how far a repetition may be away, where no deviation says it.
        why: where ``sd`` or ``within`` come from.
        source: where the number was read.
        not_comparable: why no repetition can be compared with it; empty where one can.
    """

    quantity: str
    where: Mapping[str, Any]
    mean: float
    digits: int
    n: int
    deviation: float | None
    sd_digits: int
    sd: float | None
    df: float | None
    within: float | None
    why: str
    source: str
    not_comparable: str

    @property
    def rounding(self) -> float:
        """Half a unit of the last printed digit."""
        return 0.5 * 10.0**-self.digits


def verified_presets() -> list[str]:
    """Names of the presets that have published values."""
    folder = resources.files("attndrift.study") / "presets"
    return [name for name in preset_names() if (folder / f"{name}{SUFFIX}").is_file()]


def expected_values(study: str) -> list[ExpectedValue]:
    """The published values of a preset, or of the file ``NAME.expected.yaml`` beside a study file.

    Raises :class:`~attndrift.study.loading.StudyError` where there are none, or where the file is not as described above.
    """
    if study in preset_names():
        if study not in verified_presets():
            raise StudyError(f"preset {study} has no published values; {', '.join(verified_presets())} have")
        name = f"{study}{SUFFIX}"
        text = (resources.files("attndrift.study") / "presets" / name).read_text(encoding="utf-8")
        return parse_expected(text, name)
    path = Path(study)
    if not path.is_file():
        otherwise = f"presets with published values: {', '.join(verified_presets())}"
        raise StudyError(unknown_name("study file or preset", study, preset_names(), otherwise))
    beside = path.with_name(path.name.removesuffix(path.suffix) + SUFFIX)
    if not beside.is_file():
        raise StudyError(f"{beside}: no such file; the published values of {path.name} belong there")
    try:
        return parse_expected(beside.read_text(encoding="utf-8"), str(beside))
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{beside}: cannot be read as UTF-8 text: {error}") from error


def parse_expected(text: str, where: str) -> list[ExpectedValue]:
    """The values in the text of such a file, called ``where`` in errors. Raises as :func:`expected_values`."""
    read_yaml(text, where)  # what is no safe, plain YAML ends here
    try:
        found_in = yaml.load(text, Loader=yaml.BaseLoader)
        if not isinstance(found_in, dict):
            held = "it is empty" if found_in in (None, "") else "it holds no names with values"
            raise StudyError(
                f"{where}: {held}; give `sources`, `tables`, and where a number has no deviation `tolerances` or "
                "`not_comparable` (docs/published-values.md)"
            )
        file = _ExpectedFile.model_validate(found_in)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StudyError(f"{where}: `{place}`: {str(first['msg']).removeprefix('Value error, ')}") from error
    rules = _Rules(
        [(_typed(rule.where, where), rule) for rule in file.tolerances],
        [(_typed(rule.where, where), rule) for rule in file.not_comparable],
    )
    found = [value for table in file.tables for value in _values(table, file.sources, rules, where)]
    for condition, rule in (*rules.tolerances, *rules.not_comparable):
        named = [value for value in found if fnmatchcase(value.quantity, rule.quantity)]
        if not named:
            raise StudyError(f"{where}: a rule is about `{rule.quantity}`, and no table has such a column")
        if not any(_fits(condition, value.where) for value in named):
            words = ", ".join(f"{name}: {value}" for name, value in condition.items())
            raise StudyError(
                f"{where}: a rule is about `{rule.quantity}` where {{{words}}}, and no row of that column is; "
                "its `where` names settings of the rows, with equal values"
            )
    return found


R = TypeVar("R", bound=_Rule)


@dataclass(frozen=True)
class _Rules:
    """Each rule with its condition as typed settings."""

    tolerances: list[tuple[dict[str, Any], _Tolerance]]
    not_comparable: list[tuple[dict[str, Any], _Rule]]


def _first(rules: list[tuple[dict[str, Any], R]], quantity: str, condition: Mapping[str, Any]) -> R | None:
    """The first rule that is about a quantity of runs of this condition."""
    for where, rule in rules:
        if _fits(where, condition) and fnmatchcase(quantity, rule.quantity):
            return rule
    return None


def _fits(where: Mapping[str, Any], condition: Mapping[str, Any]) -> bool:
    return all(name in condition and condition[name] == value for name, value in where.items())


def _values(table: _PublishedTable, sources: Mapping[str, str], rules: _Rules, where: str) -> list[ExpectedValue]:
    if table.source not in sources:
        raise StudyError(f"{where}: {unknown_name('source', table.source, sources, 'give it under `sources`')}")
    twice = next((name for name in table.columns if table.columns.count(name) > 1), None)
    if twice is not None:
        raise StudyError(
            f"{where}: `columns` of a table name `{twice}` more than once; a second value needs another row"
        )
    found = []
    for number, row in enumerate(table.rows, 1):
        if len(row) != len(table.columns):
            raise StudyError(f"{where}: row {number} of a table has {len(row)} cells for {len(table.columns)} columns")
        cells = dict(zip(table.columns, row, strict=True))
        given = {name: cells[name] for name in table.columns if name in setting_names()}
        condition = _typed(table.where | given, where)
        for name in table.columns:
            if name not in given and cells[name] not in ("", "null", "-"):
                found.append(_value(name, cells[name], condition, table.n, sources[table.source], rules, where))
    return found


def _typed(values: Mapping[str, str], where: str) -> dict[str, Any]:
    for name in values:
        if name not in setting_names():
            raise StudyError(f"{where}: {unknown_name('setting', name, setting_names(), 'settings choose the runs')}")
    return {name: read_yaml(text, where) for name, text in values.items()}


def _value(
    quantity: str, cell: str, condition: dict[str, Any], n: int, source: str, rules: _Rules, where: str
) -> ExpectedValue:
    match = _CELL.fullmatch(cell)
    if match is None:
        raise StudyError(f"{where}: {cell!r} in column `{quantity}` is no number, nor a mean ± deviation")
    ruled_out = _first(rules.not_comparable, quantity, condition)
    reason = ruled_out.why if ruled_out else ""
    rule = _first(rules.tolerances, quantity, condition)
    sd, df, within, why = (None, None, None, "")
    if match["sd"] is not None and n > 1:
        # A deviation that was printed as 0.07 may be 0.075.
        sd, df, why = (
            float(match["sd"]) + 0.5 * 10.0 ** -_digits(match["sd"]),
            n - 1.0,
            f"its deviation over {n} seeds",
        )
    elif rule is not None:
        sd, df, within, why = rule.sd, rule.df, rule.within, rule.why
    elif not reason:
        if match["sd"] is not None:
            raise StudyError(
                f"{where}: `{quantity}` {cell} is of one seed, which has no deviation; give the table `n`, the seeds behind "
                "each number (2 or more), or a tolerance"
            )
        raise StudyError(
            f"{where}: `{quantity}` {cell} has no deviation, no tolerance and no reason not to be compared"
        )
    return ExpectedValue(
        quantity, condition, float(match["mean"]), _digits(match["mean"]), n,
        None if match["sd"] is None else float(match["sd"]), _digits(match["sd"] or match["mean"]), sd, df, within, why,
        source, reason,
    )  # fmt: skip


def _digits(text: str) -> int:
    """Decimals of a printed number."""
    return len(text.partition(".")[2])
