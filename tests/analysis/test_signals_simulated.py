"""Coverage of every interval of signals, and how often a claim is made where there is nothing: many simulated studies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scenarios_signals import (
    COVERAGE,
    DAMAGED_BELOW,
    FALSE_CLAIMS,
    MEDIATED,
    POPULATIONS,
    REPLICATES,
    SIZES,
    Population,
    sample,
    sample_mediated,
)
from scipy import stats

from attndrift.analysis.configurations import prepare
from attndrift.analysis.dynamics import epochs_from_steps, order_history
from attndrift.analysis.early_warning import WARNS, early_warning
from attndrift.analysis.held_out import confusion, folds_of, gain_p, held_out_errors, held_out_warnings
from attndrift.analysis.intervals import spearman, spearman_limits
from attndrift.analysis.rank_intervals import (
    area_limits,
    difference_limits,
    difference_p,
    partial_limits,
    partial_p,
    partial_rho,
    ranks,
    roc_area,
    why_no_area,
    why_none,
)
from attndrift.analysis.settings import AnalysisSettings
from attndrift.analysis.signal_sources import signal_values
from attndrift.analysis.signals import ADDS, BETTER, PREDICTS, RANKS, signal_tables
from attndrift.results.tables import Tables

pytestmark = pytest.mark.slow
_POPULATION = 400_000
LEVEL, ALPHA = 0.95, 0.05
NULL = [one for one in POPULATIONS if one.first == one.second == 0]
EQUAL = [one for one in POPULATIONS if one.first == one.second]


def studies(population: Population, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    drawn = [sample(population, n, rng) for _ in range(REPLICATES)]
    first, second, outcome = (np.stack([study[i] for study in drawn]) for i in range(3))
    return first, second, outcome


def correlations(
    first: np.ndarray, second: np.ndarray, outcome: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b, y = ranks(first), ranks(second), ranks(outcome)
    first, second, between = (np.clip((u * v).sum(-1), -1, 1) for u, v in ((a, y), (b, y), (a, b)))
    return first, second, between


def check(kind: str, inside: np.ndarray, printed: np.ndarray) -> None:
    """The coverage of the intervals that are printed, three standard errors of the simulation allowed."""
    if printed.mean() < 0.05:
        return
    found = float(inside[printed].mean())
    low, high = COVERAGE
    error = [3 * math.sqrt(rate * (1 - rate) / printed.sum()) for rate in COVERAGE]
    assert low - error[0] <= found <= high + error[1], f"{kind} covers {found:.3f} of {printed.sum()}"


def few(claims: Any) -> bool:
    """Whether claims (studies,) of what is not there are few enough, two standard errors of the simulation allowed."""
    return bool(np.mean(claims) <= FALSE_CLAIMS + 2 * math.sqrt(ALPHA * (1 - ALPHA) / len(claims)))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("population", POPULATIONS, ids=lambda one: one.name)
def test_intervals_of_ranks_cover_or_are_not_printed(population: Population, n: int) -> None:
    whole = sample(population, _POPULATION, np.random.default_rng(0))
    first, second, between = (float(value) for value in correlations(*whole))
    partial = float(partial_rho(first, second, between))
    drawn = studies(population, n)
    a, b, c = correlations(*drawn)
    # Ties are those of the population's shape: the same in every study.
    allowed = why_none(*(values[0] for values in drawn)) is None
    told = partial_rho(a, b, c)
    for kind, truth, (low, high) in (
        ("rho", first, spearman_limits(a, n, LEVEL)),
        ("other rho", second, spearman_limits(b, n, LEVEL)),
        ("difference", first - second, difference_limits(a, b, c, n, LEVEL)),
        ("partial", partial, partial_limits(told, n, LEVEL)),
    ):
        if np.isfinite(truth):
            check(kind, (low <= truth) & (truth <= high), np.isfinite(low) & allowed)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("population", POPULATIONS, ids=lambda one: one.name)
def test_intervals_of_the_area_cover_or_are_not_printed(population: Population, n: int) -> None:
    signal, _, kept = sample(population, _POPULATION, np.random.default_rng(0))
    truth = roc_area(-signal, kept < DAMAGED_BELOW)
    inside, printed = np.zeros(REPLICATES, bool), np.zeros(REPLICATES, bool)
    for place, (score, _, outcome) in enumerate(zip(*studies(population, n), strict=True)):
        damaged = outcome < DAMAGED_BELOW
        if damaged.all() or not damaged.any() or why_no_area(-score, damaged) is not None:
            continue
        low, high = area_limits(roc_area(-score, damaged), int(damaged.sum()), int((~damaged).sum()), LEVEL)
        inside[place], printed[place] = low <= truth <= high, True
    check("area", inside, printed)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("population", EQUAL, ids=lambda one: one.name)
def test_equal_signals_are_seldom_told_apart(population: Population, n: int) -> None:
    p = difference_p(*correlations(*studies(population, n)), n)
    assert few(p < ALPHA)
    assert (p < ALPHA / 10).mean() <= FALSE_CLAIMS / 5


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("weight", MEDIATED)
def test_what_another_signal_explains_adds_nothing(weight: float, n: int) -> None:
    rng = np.random.default_rng(n)
    drawn = [sample_mediated(weight, n, rng) for _ in range(REPLICATES)]
    signal, given, outcome = (np.stack([study[i] for study in drawn]) for i in range(3))
    p = partial_p(partial_rho(*correlations(signal, given, outcome)), n)
    assert few(p < ALPHA)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("population", NULL, ids=lambda one: one.name)
def test_noise_seldom_ranks_predicts_or_warns(population: Population, n: int) -> None:
    made: dict[str, list[bool]] = {"ranks": [], "predicts": [], "warns": []}
    for signal, _, kept in zip(*(values[: 40_000 // n // n + 300] for values in studies(population, n)), strict=True):
        made["ranks"].append(spearman(signal, kept)[1] < ALPHA)
        made["predicts"].append((gain_p(*held_out_errors(-signal, kept, folds_of(n))) or 1) < ALPHA)
        damaged = kept < DAMAGED_BELOW
        if damaged.any() and not damaged.all():
            p = confusion(held_out_warnings(-signal, damaged, folds_of(n)), damaged)["p"]
            made["warns"].append(p is not None and p < ALPHA)
    assert [kind for kind, claims in made.items() if claims and not few(claims)] == []


def noise(rng: np.random.Generator) -> Tables:
    """A study of two methods at six rates with three seeds, in which nothing goes with the retention."""
    rows = [
        {"run_id": f"{method}{rate:g}{seed}", "dataset": "d", "method": method, "learning_rate": rate, "seed": seed}
        for method in ("full", "lora")
        for rate in 10.0 ** -np.arange(2, 8)
        for seed in range(3)
    ]
    runs = pd.DataFrame(rows)
    configuration = np.repeat(np.arange(len(runs) // 3), 3)

    def drawn() -> np.ndarray:
        return rng.standard_normal(len(runs) // 3)[configuration] + 0.3 * rng.standard_normal(len(runs))

    for name in (
        "entropy_change_pct",
        "gini_change_pct",
        "cka_mean",
        "embedding_drift",
        "weight_drift",
        "test_accuracy",
    ):
        runs[name] = stats.norm.cdf(drawn())
    runs["transfer_s_zero_shot_retention_pct"] = 100 * stats.norm.cdf(drawn())
    return Tables(runs=runs)


def test_of_whole_studies_of_noise_few_make_any_claim() -> None:
    rng, settings, total = np.random.default_rng(0), AnalysisSettings(), 150
    made = dict.fromkeys((PREDICTS, RANKS, BETTER, ADDS, WARNS), 0)
    for _ in range(total):
        tables = noise(rng)
        prepared = prepare(tables)
        history = order_history(prepared, tables.history)
        values = signal_values(prepared, history, epochs_from_steps(history, prepared), [])
        found = [*signal_tables(prepared, values, settings, []), early_warning(prepared, values, settings, [])]
        said = {row.get("verdict") for table in found for row in table.rows if row.get("measured", True)}
        for claim in made:
            made[claim] += any(verdict.endswith(claim) for verdict in said if verdict)
    assert {claim: count for claim, count in made.items() if count > FALSE_CLAIMS * total} == {}
