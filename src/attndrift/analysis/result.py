"""The result of an analysis: typed, serialisable, self-describing.

A number that could not be computed is null, and the ``reason`` beside it says why.
"""

from __future__ import annotations

import itertools
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from attndrift.analysis.settings import AnalysisSettings
from attndrift.results.columns import Column

SCHEMA_VERSION = "1.2"

TOPICS = ("transfer", "methods", "entropy", "preservation", "warning")
"""What a practitioner must know first, in this order: the zero-shot transfer lost at the rates used; full
fine-tuning against LoRA at rates that both used; whether the attention entropy fell, and at which rate; whether
a preservation loss preserved the transfer; which signal warned."""

SINGLE_SEED = "Single-seed study: descriptive only; no row carries an uncertainty between seeds."
"""What stands on every table of a study of one seed."""

_WEIGHT_OF = {"supported": 1.0, "descriptive": 0.75}

Level = Literal["cells", "configurations"]
Strength = Literal["supported", "no evidence", "descriptive", "too few"]


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


class Interval(Part):
    """A percentile bootstrap interval; ``unit`` says what was resampled."""

    low: float | None = None
    high: float | None = None
    level: float
    resamples: int = 0
    unit: str = "configuration"
    n: int = Field(default=0, description="units resampled")
    method: str = "percentile bootstrap"
    reason: str | None = None


class Test(Part):
    """A statistic and its p value (two-sided), raw and Holm-corrected within ``family``."""

    __test__ = False

    name: str
    statistic: float | None = None
    p: float | None = None
    n: int = 0
    p_holm: float | None = None
    family: str | None = None
    family_size: int | None = None
    method: str | None = None
    reason: str | None = None


class Difference(Part):
    """Differences, always ``first - second`` (or the change itself), at one level."""

    level: Level
    n: int = Field(description="cells or configurations")
    mean: float | None = None
    sd: float | None = Field(default=None, description="sample standard deviation of the differences")
    below_zero: int = 0
    above_zero: int = 0
    d_z: float | None = Field(default=None, description="mean / sd of the paired differences")
    cohen_d: float | None = Field(default=None, description="mean difference / pooled sd of the two sets")
    tests: list[Test] = Field(default_factory=list)
    descriptive: bool = True
    reason: str | None = None


class Comparison(Part):
    """Two methods on identical (model, dataset, settings, rate, seed) cells, one measure."""

    first: str
    second: str
    model: str
    selection: str
    scope: str = Field(description="`all datasets` or one dataset")
    measure: str
    unit: str
    n_configurations: int
    n_cells: int
    n_seeds: int
    first_mean: float | None = Field(default=None, description="mean over configuration means")
    second_mean: float | None = None
    cells: Difference
    configurations: Difference
    interval: Interval
    label: str = Field(description="what the evidence allows, in words")


class Change(Part):
    """The change of one measure under one method, against zero."""

    method: str
    model: str
    selection: str
    scope: str
    measure: str
    unit: str
    n_configurations: int
    n_runs: int
    n_seeds: int
    cells: Difference
    configurations: Difference
    interval: Interval
    label: str


class Correlation(Part):
    """Pearson and Spearman at one level; ``configurations`` correlates configuration means."""

    level: Level
    n: int
    pearson: Test
    spearman: Test
    spearman_interval: Interval | None = None
    descriptive: bool = True


class RateCorrelation(Part):
    """One measure against log10 of the learning rate within one rate sweep."""

    model: str
    selection: str
    dataset: str
    method: str
    sweep: str = Field(description="the settings that the whole sweep shares")
    measure: str
    unit: str
    rates: list[float]
    n_configurations: int
    n_runs: int
    n_seeds: int
    cells: Correlation
    configurations: Correlation
    label: str


class Anova(Part):
    """Repeated-measures ANOVA of the change over early, middle and late blocks; the unit is the subject."""

    model: str
    selection: str
    scope: str
    method: str
    metric: str
    level: Level
    n: int = Field(description="subjects: runs (level cells) or configuration means")
    blocks: dict[str, list[int]] = Field(description="block numbers, from 1, in each group")
    means: dict[str, float | None]
    f: float | None = None
    df: float | None = None
    df_error: float | None = None
    p: float | None = None
    epsilon: float | None = Field(default=None, description="Greenhouse-Geisser epsilon")
    p_greenhouse_geisser: float | None = None
    partial_eta_squared: float | None = None
    p_holm: float | None = None
    family: str | None = None
    family_size: int | None = None
    descriptive: bool = True
    reason: str | None = None


class GroupCorrelation(Part):
    """Spearman within one dataset x method group."""

    dataset: str
    method: str
    n: int
    rho: float | None = None
    reason: str | None = None


class Signal(Part):
    """How well one signal predicts the retention on one transfer set."""

    transfer_set: str
    scope: str
    when: Literal["final", "first epoch"]
    signal: str
    expected_sign: int = Field(description="sign of the correlation that the signal's meaning predicts")
    n_runs: int
    n_configurations: int
    n_seeds: int
    spearman_runs: Test
    spearman_configurations: Test
    interval: Interval
    within_groups: list[GroupCorrelation] = Field(default_factory=list)
    n_groups: int = 0
    within_mean: float | None = Field(default=None, description="mean of the signed group correlations")
    within_mean_absolute: float | None = Field(default=None, description="mean of their absolute values")
    within_reason: str | None = None
    roc_auc: float | None = Field(default=None, description="damaged runs told from the others, 0.5 is chance")
    roc_interval: Interval | None = None
    n_damaged: int = 0
    roc_reason: str | None = None
    label: str = ""


class Choice(Part):
    """What one rule chooses among the runs near the best validation accuracy."""

    rule: str
    retention_pct: float | None = None
    n_tied: int = 0
    run_ids: list[str] = Field(default_factory=list, description="the chosen run, several where tied (20 at most)")
    reason: str | None = None


class SelectionRules(Part):
    """Selection rules within one margin of the best validation accuracy."""

    model: str
    selection: str
    dataset: str
    transfer_set: str
    margin_points: float
    best_validation: float | None
    n_runs: int
    oracle_pct: float | None = None
    random_pct: float | None = None
    choices: list[Choice] = Field(default_factory=list)
    reason: str | None = None


class Finding(Part):
    """A claim in words, generated from the numbers in ``evidence``."""

    id: str
    question: str = Field(description="RQ1 .. RQ5 of the original study")
    sentence: str
    strength: Strength
    evidence: dict[str, Any]
    topic: str | None = Field(
        default=None, description="one of TOPICS, where the finding is a candidate to be told first"
    )
    weight: float = Field(
        default=0.0,
        description="size of the effect within its topic: points of retention, percent of entropy, |rho|; 0: trivial",
    )


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
    findings: list[Finding]
    tables: dict[str, Table]
    changes: list[Change]
    comparisons: list[Comparison]
    rate_correlations: list[RateCorrelation]
    anova: list[Anova]
    signals: list[Signal]
    selection_rules: list[SelectionRules]

    def most_important(self, n: int = 5) -> list[Finding]:
        """The ``n`` findings to read first.

        One of each of :data:`TOPICS` in their order, then the second of each, and so on. Within a topic the larger
        effect comes first (``weight``, times 0.75 where the evidence is descriptive). Candidates are measured: an
        interval, an effect that is not trivial, and not `no evidence` or `too few`. Where there are fewer than ``n``
        the remaining measured findings follow, `supported` first, and nothing else: the list may be shorter.
        """
        measured = [f for f in self.findings if f.strength in _WEIGHT_OF and _has_interval(f.evidence.get("interval"))]
        queues = [
            sorted(
                (f for f in measured if f.topic == topic and f.weight > 0),
                key=lambda f: (-f.weight * _WEIGHT_OF[f.strength], f.id),
            )
            for topic in TOPICS
        ]
        chosen = [f for turn in itertools.zip_longest(*queues) for f in turn if f is not None]
        taken = {f.id for f in chosen}
        rest = [f for f in measured if f.id not in taken and f.topic is None]
        chosen += sorted(rest, key=lambda f: f.strength != "supported")
        return chosen[:n]

    def to_json(self) -> str:
        """The JSON text of ``analysis.json``."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _has_interval(interval: Any) -> bool:
    """Whether it shows any uncertainty; one of no length does not (every resample gave the same value)."""
    if not isinstance(interval, dict) or interval.get("low") is None or interval.get("high") is None:
        return False
    return bool(interval["low"] < interval["high"])
