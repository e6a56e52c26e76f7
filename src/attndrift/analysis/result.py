"""The result of an analysis: tables, the findings made from their rows, and what was analysed.

A number that could not be computed is null, and the ``reason`` beside it says why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from attndrift.analysis.settings import AnalysisSettings
from attndrift.html_tables import html_table
from attndrift.results.columns import Column

SCHEMA_VERSION = "2.1"

TOPICS = ("transfer", "methods", "entropy", "preservation", "warning", "rate", "interpolation")
"""What a practitioner must know first, in this order: what the usual setting costs in zero-shot transfer; how methods
compare; whether attention changed, and before or after the loss; what a preservation loss bought; which signal warned;
what the learning rate does; which share of the way from pretrained weights retains enough."""

SINGLE_SEED = "Single-seed study: descriptive only; no row carries an uncertainty between seeds."
"""What stands on every table of a study of one seed."""

Strength = Literal["supported", "no evidence", "descriptive"]


class Part(BaseModel):
    """Base of all parts: unknown fields are errors, infinities and NaN never occur."""

    model_config = ConfigDict(extra="forbid")


class Table(Part):
    """A table: rows are dictionaries from column name to a number, text, truth value or null."""

    name: str
    title: str
    columns: list[Column]
    rows: list[dict[str, Any]]
    notes: list[str] = Field(default_factory=list)


def rows_where(
    rows: Iterable[tuple[int, dict[str, Any]]], wanted: Mapping[str, Any]
) -> list[tuple[int, dict[str, Any]]]:
    """Those of numbered ``rows`` whose columns, where they have them, are as ``wanted``."""
    return [one for one in rows if all(one[1][name] == value for name, value in wanted.items() if name in one[1])]


class Finding(Part):
    """A claim in words, made from rows of one table of the analysis."""

    id: str
    topic: str = Field(description="one of TOPICS")
    question: str = Field(description="RQ1 .. RQ5 of the original study: the section of the report")
    sentence: str
    strength: Strength = Field(
        description="supported: tested and corrected; no evidence: tested; descriptive: not tested, of one seed or a count"
    )
    table: str = Field(description="the table that it comes from")
    rows: list[int] = Field(default_factory=list, description="numbers of its rows there, from 0")


class Digest(Part):
    """What a reader needs first, about the dataset of most runs; its table is ``overview``."""

    verdict: str = Field(description="one sentence")
    caveats: list[str] = Field(description="what holds for all numbers, said once")
    findings: list[Finding] = Field(description="at most five, each of at most two short sentences and four numbers")


class Excluded(Part):
    """A run that is listed but not analysed."""

    run_id: str
    status: str | None
    reason: str


class Summary(Part):
    """What was analysed."""

    n_runs: int
    n_analysed: int
    n_configurations: int
    n_seeds: int
    single_seed: bool
    label: str
    datasets: list[str]
    models: list[str]
    selections: list[str]
    methods: list[str]
    transfer_sets: list[str]
    n_history_rows: int
    n_layer_rows: int
    n_interpolation_rows: int
    excluded: list[Excluded]


class Analysis(Part):
    """Everything that :func:`attndrift.analysis.analyze` found."""

    schema_version: str = SCHEMA_VERSION
    settings: AnalysisSettings
    data: Summary
    notes: list[str]
    digest: Digest
    findings: list[Finding]
    tables: dict[str, Table]

    def to_json(self) -> str:
        """The JSON text of ``analysis.json``."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def _repr_html_(self) -> str:
        rows = [[one.topic, one.sentence, one.strength, one.table] for one in self.findings]
        said = f"{self.data.n_analysed} of {self.data.n_runs} runs, {self.data.n_configurations} configurations"
        return html_table(["topic", "finding", "strength", "table"], rows, said)


@dataclass
class PendingAnalysis:
    """An analysis that is made when it is first asked for.

    Attributes:
        settings: its settings.
        make: makes it; called once.
    """

    settings: AnalysisSettings
    make: Callable[[], Analysis]

    @cached_property
    def result(self) -> Analysis:
        return self.make()
