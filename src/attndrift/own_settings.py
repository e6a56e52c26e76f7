"""Settings that a registered method, head, loss or outcome brings: names, types, defaults, ranges and help of its own.

A study file, a grid, ``--set`` and the tables know them beside the settings of every run::

    class Settings(OwnSettings):
        adapter_rank: Annotated[int, Field(ge=1)] = setting(4, "rank of the adapters")
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, Protocol, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError


def plain_kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation is made of.

    >>> sorted(kind.__name__ for kind in plain_kinds(int | None))
    ['NoneType', 'int']
    """
    inner = get_args(annotation)
    return set().union(*(plain_kinds(part) for part in inner)) if inner else {annotation}


@functools.cache
def _kinds_of(owner: type[BaseModel], field: str) -> frozenset[Any]:
    # Once a field: a study of 10,000 runs asks half a million times.
    return frozenset(plain_kinds(owner.model_fields[field].annotation))


def spoken(value: Any) -> str:
    """A value in a run's name: ``1e-5`` and ``0.01`` as they are spoken, text without what no folder's name may hold.

    >>> spoken(1e-5), spoken(0.01), spoken(8), spoken("q,v")
    ('1e-5', '0.01', '8', 'q-v')
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return re.sub(r"[^A-Za-z0-9.+]+", "-", str(value)).strip("-.").lower()
    text = f"{value:g}" if value == 0 or value >= 1e-3 else f"{value:.6e}"
    text = re.sub(r"\.?0+e", "e", text)
    return re.sub(r"e([+-])0*(\d+)", r"e\1\2", text)


def as_text(value: Any) -> str:
    """A value as the analysis compares it: floats to six digits, None as no text.

    >>> as_text(0.1 + 0.2), as_text(8), as_text(None)
    ('0.3', '8', '')
    """
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_NUMBER_ERRORS = {
    "greater_than_equal", "greater_than", "less_than_equal", "less_than", "int_from_float", "finite_number", "int_type",
    "float_type", "int_parsing", "float_parsing",
}  # fmt: skip


def _limits(annotation: Any, metadata: Iterable[Any]) -> list[str]:
    """What an annotation and its parts say of a number's range: ``["at least 1", "at most 200"]``."""
    found = [
        f"{words} {limit:g}" if isinstance(limit, float) else f"{words} {limit:,}"
        for one in metadata
        for name, words in _LIMITS.items()
        if (limit := getattr(one, name, None)) is not None
    ]
    for part in get_args(annotation):
        found += _limits(part, getattr(part, "metadata", ()))
    return found


def problem_of(error: ErrorDetails, field: FieldInfo) -> str:
    """One error of a field in words that say what is allowed: ``must be a whole number, at least 1``."""
    if error["type"] in _NUMBER_ERRORS:
        whole = "a number" if float in plain_kinds(field.annotation) else "a whole number"
        kind = "a finite number" if error["type"] == "finite_number" else whole
        limits = " and ".join(_limits(field.annotation, field.metadata))
        return f"must be {kind}, {limits}" if limits else f"must be {kind}"
    _, found, allowed = error["msg"].partition(" should ")
    # A study file has lists, no tuples.
    words = allowed.replace("valid tuple", "list").replace("a valid ", "a ")
    return f"must {words}" if found and error["type"] != "value_error" else error["msg"]


def _in_own_words(error: ValidationError, field: FieldInfo) -> ValidationError:
    """``error`` of ``field`` with the same kinds and places, and words that say the whole allowed range."""
    details = [
        InitErrorDetails(
            type=PydanticCustomError(one["type"], problem_of(one, field)), loc=one["loc"], input=one["input"]
        )
        for one in error.errors(include_url=False, include_context=False)
    ]
    return ValidationError.from_exception_data(error.title, details)


class StrictSettings(BaseModel):
    """Settings that guess nothing: no text for a number, no number for yes."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="wrap")
    @classmethod
    def _no_other_type(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        kinds = _kinds_of(cls, str(info.field_name))
        if bool in kinds and not isinstance(value, (bool, NoneType)):
            raise ValueError("must be true or false")
        if kinds & {int, float} and str not in kinds and isinstance(value, (bool, str)):
            plain = ", in plain digits without separators, units or quotation marks" if isinstance(value, str) else ""
            raise ValueError(f"must be a number{plain}")
        try:
            return handler(value)
        except ValidationError as error:
            raise _in_own_words(error, cls.model_fields[str(info.field_name)]) from None


class OwnSettings(StrictSettings):
    """Base of the settings that one registered name brings; without fields, it brings none.

    A field that is None by default may be filled from the others by a validator, so that a run records what it used.
    """


def setting(
    default: Any, help: str, *, label: str = "", sweep: str = "", sweep_name: str = "", tied: Iterable[str] = ()
) -> Any:
    """A field of :class:`OwnSettings`.

    Args:
        default: the value where none is given.
        help: one phrase, for the documentation and the columns of the table ``runs``.
        label: before its value in tables and legends, such as ``r=``; by default its name and a space.
        sweep: the title of a table of runs that differ in this setting alone; empty: there is none. It is called
            ``sweep_NAME``, with ``sweep_name`` or the setting's own name.
        tied: other settings that follow this one in such a sweep.
    """
    return Field(
        default,
        description=help,
        json_schema_extra={"label": label, "sweep": sweep, "sweep_name": sweep_name, "tied": list(tied)},
    )


def words_of(name: str, field: FieldInfo) -> dict[str, Any]:
    """What :func:`setting` was told of a field: ``label``, ``sweep``, ``sweep_name``, ``tied``."""
    extra: Any = field.json_schema_extra or {}
    return {
        "label": extra.get("label") or f"{name.replace('_', ' ')} ",
        "sweep": extra.get("sweep", ""),
        "sweep_name": extra.get("sweep_name") or name,
        "tied": tuple(extra.get("tied", ())),
    }


class Owner(Protocol):
    """A registered member with settings of its own."""

    @property
    def name(self) -> str:
        """The name that settings, tables and commands use."""

    @property
    def Settings(self) -> type[OwnSettings]:
        """Its own settings."""


def fields_of(owners: Iterable[Owner]) -> dict[str, FieldInfo]:
    """The own settings of ``owners`` by name, in their order; of those that share one, the first owner's."""
    found: dict[str, FieldInfo] = {}
    for owner in owners:
        for name, field in owner.Settings.model_fields.items():
            found.setdefault(name, field)
    return found


def owners_of(name: str, owners: Iterable[Owner]) -> list[str]:
    """The names of those ``owners`` that have the setting ``name``."""
    return [owner.name for owner in owners if name in owner.Settings.model_fields]


def validated(owner: Owner, values: Mapping[str, Any]) -> OwnSettings:
    """The own settings of ``owner``, from those of ``values`` that are its.

    Raises pydantic's ``ValidationError``, whose location is the name of the setting.
    """
    return owner.Settings.model_validate({n: v for n, v in values.items() if n in owner.Settings.model_fields})


def departed(settings: OwnSettings) -> list[str]:
    """Parts of a run's name for what departs from the defaults: ``adapter-rank8``."""
    fields = type(settings).model_fields
    return [
        f"{name.replace('_', '-')}{spoken(value)}"
        for name, value in dict(settings).items()
        if value != fields[name].default
    ]


def problem_in(error: ValidationError) -> str:
    """The first problem of a ``ValidationError`` in words: ``lora_rank is 0; ...``."""
    first = error.errors(include_url=False, include_context=False)[0]
    message = str(first["msg"]).removeprefix("Value error, ")
    where = ".".join(str(part) for part in first["loc"])
    return f"{where} is {first['input']!r}: {message}" if where else message
