"""What the analysis can be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attndrift.own_settings import plain_kinds, problem_of
from attndrift.plain_digits import decimal_number
from attndrift.registry import unknown_name


class AnalysisSettings(BaseModel):
    """Thresholds, levels and caps of :func:`attndrift.analysis.analyze`; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: float = Field(default=0.95, gt=0.5, lt=1.0, description="coverage of the intervals")
    alpha: float = Field(default=0.05, gt=0.0, lt=0.5, description="a Holm-corrected p below it supports a claim")
    min_configurations: int = Field(
        default=6, ge=2, description="claims that rest on fewer configurations are labelled descriptive"
    )
    damaged_below_pct: float = Field(
        default=50.0, gt=0.0, description="a run is damaged when its final retention (percent) is below this"
    )
    collapse_onset_pct: float = Field(
        default=-1.0,
        lt=0.0,
        description="collapse begins at the first evaluation with an entropy change this low",
    )
    convergence_points: float = Field(
        default=1.0,
        ge=0.0,
        description="converged: first evaluation within so many points of validation accuracy",
    )
    selection_margins: tuple[float, ...] = Field(
        default=(1.0, 2.0, 3.0, 5.0),
        description="selection among runs within so many points of the best validation",
    )
    least_accuracies: tuple[float, ...] = Field(
        default=(0.8, 0.9, 0.95),
        description="validation accuracies (0..1): of each method the best retention with at least so much is given",
    )
    equivalent_within_points: float = Field(
        default=2.0, gt=0.0, description="differences of accuracy and retention that are none (points): equivalence"
    )
    equivalent_within_pct: float = Field(
        default=1.0, gt=0.0, description="changes of attention that are none (percent): equivalence"
    )
    wanted_retentions_pct: tuple[float, ...] = Field(
        default=(95.0, 90.0, 80.0), description="retentions (percent) that the interpolation is to keep"
    )
    sets: Literal["fixed", "sampled"] = Field(
        default="fixed",
        description="whether a mean over transfer sets is about these very sets (intervals over images and seeds), or about "
        "sets like them (intervals over sets)",
    )
    max_method_pairs: int = Field(
        default=10, ge=1, description="pairs of methods compared, those with most shared cells"
    )
    max_rate_groups: int = Field(default=40, ge=1, description="rate sweeps tested, those with most rates and runs")
    max_targets: int = Field(
        default=20,
        ge=1,
        description="(model, dataset, transfer set) whose signals are ranked, those with most configurations",
    )
    max_sweeps: int = Field(default=40, ge=1, description="sweep tables of each kind, the largest ones")


def parse_analysis_settings(pairs: Sequence[str]) -> AnalysisSettings:
    """Settings from ``["damaged_below_pct=60", "least_accuracies=0.8,0.9"]``; what is not named keeps its default.

    Raises ValueError, saying which setting and what is allowed.
    """
    given: dict[str, object] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        known = AnalysisSettings.model_fields.get(name.strip())
        if not separator:
            raise ValueError(f"analysis setting `{pair}`: write NAME=VALUE, such as level=0.9")
        if known is None:
            names = AnalysisSettings.model_fields
            raise ValueError(
                unknown_name("analysis setting", name.strip(), names, "docs/analysis-schema.md names all of them")
            )
        several = isinstance(known.default, tuple)
        parts = tuple(part.strip() for part in value.split(",") if part.strip()) if several else (value,)
        if plain_kinds(known.annotation) & {int, float}:
            try:
                for part in parts:
                    decimal_number(part)
            except ValueError as error:
                raise ValueError(f"analysis setting `{name.strip()}`: {error}") from None
        given[name.strip()] = parts if several else parts[0]
    try:
        return AnalysisSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        problem = problem_of(first, AnalysisSettings.model_fields[field])
        raise ValueError(f"analysis setting `{field}` is {first['input']!r}: {problem}") from error
