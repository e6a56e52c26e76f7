"""The form of every JSON file that a run or a study leaves, checked before anything of it is used.

A folder may be damaged, or come from somebody else: each reader gets the documented types and bounded sizes, or an
error that names the file and the field.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from attndrift.results.columns import MAX_COLUMNS
from attndrift.study.settings import NAME_PATTERN

MAX_RUNS = 100_000
"""Runs of one study."""
MAX_VALUES = 4_000_000
"""Numbers of one kind in a row of the history: blocks x heads."""

_Text = Annotated[str, Field(max_length=100_000)]
_Name = Annotated[str, Field(max_length=1000)]
_Cell = Annotated[str, Field(max_length=10_000)] | bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | float | None
_Numbers = Annotated[list[float | None], Field(max_length=MAX_VALUES)]
_RunId = Annotated[str, Field(pattern=NAME_PATTERN)]
_Any = dict[_Name, Any]


class _Kept(BaseModel):
    # Strict: a number in quotation marks is no number. Further fields are kept, and read by nobody.
    model_config = ConfigDict(strict=True, extra="allow")


class _Row(_Kept):
    """One run, or one point: names of columns to cells."""

    __pydantic_extra__: dict[_Name, _Cell]


class _Preprocessing(_Kept):
    image_mean: list[float] | float | None = None
    image_std: list[float] | float | None = None
    resample: int | str | None = None


class _Evaluation(_Kept):
    embeddings_moved_mean: float | None = None
    preprocessing: _Preprocessing | None = None


class _Transfer(_Kept):
    adapted: _Evaluation | None = None
    pretrained: _Evaluation | None = None
    duplicates: list[list[_Text]] = Field(default_factory=list, max_length=MAX_VALUES)
    compared: dict[_Name, list[int]] = Field(default_factory=dict)


class _Hashes(_Kept):
    model: _Any | None = None


class _Time(_Kept):
    seconds: float | None = None


class _Outcome(_Kept):
    """A model that was made of the run's training."""

    run_id: _RunId
    row: _Row
    transfer: dict[_Name, _Transfer] = Field(default_factory=dict)


class RecordFile(_Kept):
    """``record.json``."""

    status: Literal["finished", "diverged", "failed"]
    row: _Row
    run_id: _Name | None = None
    problem: _Text | None = None
    settings: _Any = Field(default_factory=dict)
    settings_hash: _Name | None = None
    nulls: dict[_Name, _Text | None] = Field(default_factory=dict)
    absent: dict[_Name, _Text] = Field(default_factory=dict)
    loss_active_fractions: dict[_Name, float | None] = Field(default_factory=dict)
    transfer: dict[_Name, _Transfer] = Field(default_factory=dict)
    cka_chance_level: float | None = None
    versions: _Any = Field(default_factory=dict)
    hardware: _Any = Field(default_factory=dict)
    hashes: _Hashes = Field(default_factory=_Hashes)
    data: _Any = Field(default_factory=dict)
    preprocessing: _Preprocessing | None = None
    outcomes: list[_Outcome] = Field(default_factory=list, max_length=1000)
    time: _Time = Field(default_factory=_Time)
    started: _Name | None = None
    measured_checkpoint: _Name | None = None


class SettingsFile(_Kept):
    """``settings.json`` of a run."""

    run_id: _Name | None = None
    model_revision: _Name | None = None
    settings: _Any


class _Values(_Kept):
    layer: _Numbers
    head: list[_Numbers] = Field(default_factory=list, max_length=MAX_VALUES)


class HistoryRow(_Row):
    """A line of ``history.jsonl``."""

    __pydantic_extra__: dict[_Name, _Cell]
    step: int = Field(ge=0, lt=2**63)
    layers: dict[_Name, _Values] = Field(default_factory=dict)


class _Point(_Row):
    __pydantic_extra__: dict[_Name, _Cell]
    alpha: float = Field(ge=0, le=1)


class SweepFile(_Kept):
    """``interpolation.json``."""

    points: list[_Point] = Field(max_length=10_000)


class _Soup(_Outcome):
    parents: list[_RunId] = Field(max_length=MAX_RUNS)
    used: list[_RunId] = Field(max_length=MAX_RUNS)


class SoupFile(_Kept):
    """``soups.json``."""

    soups: list[_Soup] = Field(max_length=1000)


class _PlannedRun(_Kept):
    run_id: _RunId
    model_revision: _Name | None = None
    settings: _Any = Field(default_factory=dict)


class StudyFile(_Kept):
    """``study.json``."""

    name: _RunId
    description: _Text = ""
    runs: list[_PlannedRun] = Field(max_length=MAX_RUNS)


@cache
def _adapter(form: type[BaseModel]) -> TypeAdapter[BaseModel]:
    return TypeAdapter(form)


def check_form(form: type[BaseModel], content: object, where: object) -> dict[str, Any]:
    """``content``, a JSON value read from ``where``, if it has the form ``form``.

    Raises ``ValueError`` naming ``where``, the first field that is wrong, and what is allowed there.
    """
    try:
        _adapter(form).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:200]
        at = f"`{field}`: " if field else ""
        what = form.__doc__.rstrip(".") if form.__doc__ else "of this kind"
        raise ValueError(f"{where}: not what a run writes as {what}: {at}{first['msg']}") from error
    assert isinstance(content, dict)
    columns = content.get("row", content)
    if form in (RecordFile, HistoryRow) and len(columns) > MAX_COLUMNS:
        raise ValueError(f"{where}: {len(columns):,} columns; a table has at most {MAX_COLUMNS:,}")
    return content
