"""What a study file says of its sets of images: where they are, their classes, prompts and measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from attndrift.data.prompts import TEMPLATES
from attndrift.results.measures import MEASURES


def checked_prompts(value: tuple[str, ...]) -> tuple[str, ...]:
    """Templates, or those of the ensemble that is named. Raises ``ValueError`` for one without ``{class}``."""
    if len(value) == 1:
        value = TEMPLATES.get(value[0], value)
    for prompt in value:
        if prompt.count("{class}") != 1:
            raise ValueError(
                f"the prompt {prompt!r} must hold {{class}} exactly once, or be the name of an ensemble: "
                + ", ".join(TEMPLATES)
            )
    return value


class DatasetSource(BaseModel):
    """A set of images as a study file has it: a local folder or a hub name, columns, class names, prompts.

    With neither folder nor hub name it is the registered set, of which the rest is told anew.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | None = Field(None, description="local folder: Parquet files, or one folder of images a class")
    hub: str | None = Field(None, description="name on the hub, e.g. tanganke/eurosat")
    config: str | None = Field(None, description="configuration of a hub dataset that has several")
    revision: str | None = Field(None, description="commit, branch or tag of a hub dataset; default: its newest commit")
    image_column: str | None = Field(None, description="column of the images; default: the only one of images")
    label_column: str | None = Field(
        None, description="column of the labels; default: `label`, or the only one of classes"
    )
    id_column: str | None = Field(None, description="column that names each image; default: `image_id` or `id`")
    train_split: str | None = Field(
        None, description="split that trains, validates and probes; default: train, training, in any case"
    )
    test_split: str | None = Field(
        None,
        description="split that is reported; default: test, else validation, val, dev, eval, in any case, also as test2017",
    )
    class_names: tuple[str, ...] | None = Field(None, description="names of the classes in the order of their labels")
    origin: str | None = Field(None, description="source of the images; a target and a transfer set must not share it")
    prompts: tuple[str, ...] | None = Field(
        None, min_length=1, description="templates of this set, or the name of an ensemble; default: those of the run"
    )
    measures: tuple[str, ...] | None = Field(
        None, min_length=1, description="retention measures of this set; default: those of the run"
    )

    @field_validator("prompts", "measures", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("prompts")
    @classmethod
    def _prompts_have_a_class(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else checked_prompts(value)

    @field_validator("measures")
    @classmethod
    def _known_measures(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in value or ():
            MEASURES[name]
        return value

    @model_validator(mode="after")
    def _one_source(self) -> DatasetSource:
        if self.path is not None and self.hub is not None:
            raise ValueError("give one of `path` (a local folder) and `hub` (a hub name), not both")
        return self

    def where(self) -> dict[str, Any]:
        """What :func:`attndrift.data.load_dataset` takes of it."""
        return self.model_dump(exclude={"prompts", "measures"})


class _Run(Protocol):
    """The settings of a run that name sets."""

    @property
    def dataset(self) -> str: ...
    @property
    def source(self) -> DatasetSource | None: ...
    @property
    def sources(self) -> Mapping[str, DatasetSource]: ...
    @property
    def transfer(self) -> tuple[str, ...]: ...
    @property
    def measures(self) -> tuple[str, ...]: ...
    @property
    def own(self) -> Mapping[str, Any]: ...


def other_sets(settings: _Run) -> dict[str, None]:
    """The transfer sets and the reference set of a run, and what they and the target are made of."""
    reference = settings.own.get("reference")
    named = [settings.dataset.rpartition("+")[0], *settings.transfer, *([reference] if reference else [])]
    bases = [name.partition("+")[0] for name in named]
    return dict.fromkeys(name for name in [*named, *bases] if name and name != settings.dataset)


def description_of(settings: _Run, name: str) -> DatasetSource | None:
    """What a run says of the set called ``name``, or of the one that it is made of; None for a registered one."""
    if name == settings.dataset and settings.source is not None:
        return settings.source
    for known in (name, name.partition("+")[0]):
        if known in settings.sources:
            return settings.sources[known]
        if known == settings.dataset and settings.source is not None:
            return settings.source
    return None


def measures_of(settings: _Run, name: str) -> tuple[str, ...]:
    """The retention measures of a run on the transfer set called ``name``."""
    own = description_of(settings, name)
    return settings.measures if own is None or own.measures is None else own.measures
