"""Coverage of every printed interval, and false claims of every kind, on the fixed scenarios; prints one table.

The vectorised functions are tried on thousands of studies, the whole analysis on hundreds. `pytest -m slow -s` prints what
`docs/statistics.md` quotes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest
from scenarios import (
    ACCEPTED_COVERAGE,
    ACCEPTED_FALSE_POSITIVES,
    BLOCK_SCENARIOS,
    CHOICE_SCENARIOS,
    EQUIVALENCE_SCENARIOS,
    IMAGE_SCENARIOS,
    LEVEL,
    NULL_SCENARIOS,
    RANK_SCENARIOS,
    RATES,
    SEED_SCENARIOS,
    STUDIES,
    SeedScenario,
)
from scipy import stats

from attndrift.analysis import AnalysisSettings, analyze
from attndrift.analysis import intervals as iv
from attndrift.analysis.contrasts import contrasts
from attndrift.results.tables import Tables
from attndrift.retention.image_limits import Limits, paired_ratio_limits, tango_limits, wilson_limits

pytestmark = pytest.mark.slow
ALPHA = 1 - LEVEL
WHOLE_STUDIES = 50
"""A scenario; there are four."""
Row = tuple[str, str, float]


def covered(limits: Limits, true: object) -> float:
    """Share of the studies with an interval whose interval holds ``true``."""
    low, high = limits
    known = np.isfinite(low)
    return float(((low <= true) & (true <= high))[known].mean())


def over_seeds() -> Iterator[Row]:
    for scenario in SEED_SCENARIOS:
        first, second = scenario.draw(np.random.default_rng(1))
        d, true = first - second, scenario.means(scenario.first) - scenario.means(scenario.second)
        weights = dict(contrasts(np.array(RATES[: scenario.rates]))) or {"one rate": np.ones(1)}
        for name, w in weights.items():
            yield f"difference of methods, {name}", scenario.name, covered(iv.t_limits(d @ w, LEVEL), true @ w)
        if scenario.rates == 1:
            other = scenario.draw(np.random.default_rng(2))[1]
            limits = iv.welch(first[..., 0], other[..., 0], LEVEL)[:2]
            yield "difference of methods without a shared seed (Welch)", scenario.name, covered(limits, true[0])


def over_blocks() -> Iterator[Row]:
    for scenario in BLOCK_SCENARIOS:
        change = scenario.draw(np.random.default_rng(3))
        late_less_early = change[..., 2] - change[..., 0]
        for name, w in contrasts(np.array(RATES)):
            true = scenario.dose if "tenfold" in name else 0.0
            yield (
                f"late less early blocks, {name}",
                scenario.name,
                covered(iv.t_limits(late_less_early @ w, LEVEL), true),
            )


def over_images() -> Iterator[Row]:
    for scenario in IMAGE_SCENARIOS:
        both, before, after, _ = scenario.draw(np.random.default_rng(4)).T
        n = scenario.n
        yield (
            "accuracy of one run (Wilson)",
            scenario.name,
            covered(wilson_limits(both + after, n, LEVEL), scenario.after),
        )
        limits = paired_ratio_limits(both, after, before, LEVEL)
        yield "retention of one run (Bonett-Price)", scenario.name, covered(limits, scenario.after / scenario.before)
        limits = tango_limits(after, before, n, LEVEL)
        yield "change of accuracy (Tango)", scenario.name, covered(limits, scenario.after - scenario.before)


def over_ranks() -> Iterator[Row]:
    for scenario in RANK_SCENARIOS:
        ranks = [stats.rankdata(values, axis=1) for values in scenario.draw(np.random.default_rng(5))]
        a, b = (values - values.mean(axis=1, keepdims=True) for values in ranks)
        rho = (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
        limits = iv.spearman_limits(rho, scenario.n, LEVEL)
        yield "Spearman's rho (Bonett-Wright)", scenario.name, covered(limits, scenario.spearman)


def over_choices() -> Iterator[Row]:
    for scenario in CHOICE_SCENARIOS:
        accuracy, kept, true = scenario.draw(np.random.default_rng(6), 1500)
        rows = np.arange(len(kept))
        best = accuracy.mean(axis=1).argmax(axis=1)
        limits = iv.t_limits(kept[rows, :, best], LEVEL)
        yield "retention at best validation", scenario.name, covered(limits, true[best])
        found = [iv.chosen_row(values, LEVEL) for values in kept]
        inside = [row["low"] <= true[row["chosen"]] <= row["high"] for row in found]
        yield "best retention (Bonferroni for contenders)", scenario.name, float(np.mean(inside))


@pytest.mark.parametrize("quantity", [over_seeds, over_blocks, over_images, over_ranks, over_choices])
def test_every_interval_covers_what_it_says(quantity: Callable[[], Iterator[Row]]) -> None:
    low, high = ACCEPTED_COVERAGE
    rows = list(quantity())
    for kind in dict.fromkeys(row[0] for row in rows):
        values = [row[2] for row in rows if row[0] == kind]
        print(f"{kind}: {len(values)} scenarios, coverage {100 * min(values):.1f} to {100 * max(values):.1f}%")
    assert [row for row in rows if not low <= row[2] <= high] == []


def null_claims() -> Iterator[Row]:
    for scenario in NULL_SCENARIOS:
        first, second = scenario.draw(np.random.default_rng(7))
        d = first - second
        for name, w in contrasts(np.array(RATES)):
            yield f"methods differ, {name}", scenario.name, float((iv.t_p(d @ w) < ALPHA).mean())
        p = iv.t_p(np.moveaxis(d, 1, 2))
        yield (
            "methods differ at any of 4 rates, Holm",
            scenario.name,
            float(np.mean([(iv.holm(row) < ALPHA).any() for row in p])),
        )
    for block in BLOCK_SCENARIOS:
        if block.dose == 0:
            change = block.draw(np.random.default_rng(8))
            for name, w in contrasts(np.array(RATES)):
                p = iv.t_p((change[..., 2] - change[..., 0]) @ w)
                yield f"blocks differ, {name}", block.name, float((p < ALPHA).mean())
    for same in EQUIVALENCE_SCENARIOS:
        p = iv.equivalence_p(same.draw(np.random.default_rng(9), 4 * STUDIES), same.margin)
        yield "preserves (TOST at the margin)", same.name, float((p < ALPHA).mean())
    for rank in RANK_SCENARIOS:
        if rank.correlation == 0:
            x, y = rank.draw(np.random.default_rng(10))
            p = [iv.spearman(a, b)[1] for a, b in zip(x, y, strict=True)]
            yield "rank correlation", rank.name, float((np.array(p) < ALPHA).mean())


def test_no_kind_of_claim_is_made_of_nothing_too_often() -> None:
    rows = list(null_claims())
    for kind in dict.fromkeys(row[0] for row in rows):
        print(f"{kind}: false in at most {100 * max(row[2] for row in rows if row[0] == kind):.1f}%")
    assert [row for row in rows if row[2] > ACCEPTED_FALSE_POSITIVES] == []


def study(scenario: SeedScenario, generator: np.random.Generator) -> Tables:
    """The runs of one study: two methods that retain as much at each rate, and validate best at the highest."""
    rows = []
    for method, values in zip(("full", "lora"), scenario.draw(generator, 1), strict=True):
        for seed, of_seed in enumerate(values[0]):
            for place, (rate, kept) in enumerate(zip(RATES, of_seed, strict=True)):
                accuracy = 0.90 + 0.02 * place + 0.003 * generator.standard_normal()
                rows.append(
                    {
                        "run_id": f"{method}-{rate}-{seed}", "dataset": "d", "method": method, "seed": seed, "learning_rate": rate,
                        "lora_rank": 8 if method == "lora" else None, "best_val_accuracy": accuracy, "test_accuracy": accuracy,
                        "transfer_s_zero_shot_retention_pct": kept,
                    }
                )  # fmt: skip
    return Tables(runs=pd.DataFrame(rows))


@pytest.mark.timeout(3600)
def test_the_whole_analysis_claims_nothing_of_nothing() -> None:
    """Findings about two methods that are the same, at best validation and at equal rates, from tables to sentences."""
    generator, claims, inside, total = np.random.default_rng(11), Counter[str](), list[bool](), 0
    for scenario in [s for s in NULL_SCENARIOS if s.second == "lora"]:
        true = dict(zip(RATES, scenario.means("full"), strict=True))
        for _ in range(WHOLE_STUDIES):
            found, total = analyze(study(scenario, generator), settings=AnalysisSettings()), total + 1
            told = [f for f in found.findings if f.topic == "methods" and f.strength == "supported"]
            kinds = {
                (f.table, found.tables[f.table].rows[f.rows[0]].get("rule", ""))
                for f in told
                if " as much " not in f.sentence
            }
            claims.update(" ".join(kind) for kind in kinds)
            for row in found.tables["operating_differences"].rows:
                if row["measure"] == "retention" and row["low"] is not None:
                    inside.append(row["low"] <= true[row["first_rate"]] - true[row["second_rate"]] <= row["high"])
    for kind, count in claims.items():
        print(f"finding from {kind}: false in {100 * count / total:.1f}% of {total} studies")
    print(f"difference at operating points: coverage {100 * np.mean(inside):.1f}% of {len(inside)}")
    # Two standard errors of a count above the accepted rate.
    most = ACCEPTED_FALSE_POSITIVES * total + 2 * np.sqrt(ACCEPTED_FALSE_POSITIVES * total)
    assert all(count <= most for count in claims.values()), claims
    assert ACCEPTED_COVERAGE[0] <= np.mean(inside) <= ACCEPTED_COVERAGE[1] + 0.01
