"""Mean and worst retention over transfer sets, the matrix of targets and sets, and the front by suite: closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from attndrift.analysis import analyze
from attndrift.analysis.configurations import prepare
from attndrift.analysis.image_intervals import ImageIntervals, ImageOutcomes
from attndrift.analysis.set_summaries import fixed_limits, left_out, set_tables, suites_of
from attndrift.analysis.settings import AnalysisSettings, parse_analysis_settings
from attndrift.figures.registry import FIGURES
from attndrift.figures.source import NoData, Source
from attndrift.figures.style import styled
from attndrift.results.tables import Tables

SETS = ("objects", "critters", "digits")
KEPT = {"full": [[80.0, 60.0, 40.0], [84.0, 62.0, 46.0], [82.0, 64.0, 34.0]], "lora": [[95.0, 90.0, 97.0]] * 3}


def made(kept: dict[str, list[list[float]]], sets: tuple[str, ...] = SETS, **columns: Any) -> pd.DataFrame:
    """Runs on `tiles`: a row a method and seed, with a retention (percent) a set by zero-shot; pretrained accuracies 0.5."""
    rows = []
    for method, seeds in kept.items():
        for seed, values in enumerate(seeds):
            row = {
                "run_id": f"{method}-{seed}",
                "dataset": "tiles",
                "method": method,
                "learning_rate": 1e-4,
                "seed": seed,
            }
            row |= {"best_val_accuracy": 0.9, "test_accuracy": 0.95 if method == "full" else 0.9, **columns}
            for name, value in zip(sets, values, strict=True):
                row |= {f"transfer_{name}_zero_shot_retention_pct": value, f"transfer_{name}_zero_shot_pretrained": 0.5}
                row |= {f"transfer_{name}_zero_shot_accuracy": value / 200}
            rows.append(row)
    return pd.DataFrame(rows)


def rows_of(
    runs: pd.DataFrame, table: str = "suites", *, outcomes: Any = None, **settings: Any
) -> list[dict[str, Any]]:
    """Rows of one of the two tables, those of full fine-tuning first; of the parts of an analysis that make them alone."""
    asked = AnalysisSettings(**settings)
    tables = set_tables(prepare(Tables(runs=runs)), ImageIntervals(outcomes or {}, asked.level), asked)
    found = {one.name: one.rows for one in tables}
    return sorted(found[table], key=lambda row: str(row["variant"]) != "full")


def test_fixed_sets_have_intervals_over_seeds_where_images_are_not_known() -> None:
    full, lora = rows_of(made(KEPT))
    values = np.array(KEPT["full"])
    of_seeds = values.mean(axis=1)
    low, high = stats.t.interval(0.95, 2, of_seeds.mean(), stats.sem(of_seeds))
    assert (full["suite"], full["n_sets"], full["sets"]) == ("offline", 3, "objects, critters, digits")
    assert full["mean_pct"] == pytest.approx(values.mean())
    assert (full["low"], full["high"], full["over"]) == (pytest.approx(low), pytest.approx(high), "seeds")
    assert (full["worst_pct"], full["worst_set"]) == (pytest.approx(40.0), "digits")
    # Three sets at once: each at a third of the error; the worst is the smallest of all of them.
    ends = [stats.t.interval(1 - 0.05 / 3, 2, v.mean(), stats.sem(v)) for v in values.T]
    assert full["worst_low"] == pytest.approx(min(low for low, _ in ends))
    assert full["worst_high"] == pytest.approx(min(high for _, high in ends))
    assert full["mean_change_points"] == pytest.approx((values.mean() - 100) / 2)
    # Seeds that agree have no spread, and no interval.
    assert (lora["mean_pct"], lora["low"], lora["over"]) == (pytest.approx(94.0), None, "")
    assert "it is not known which images were right" in lora["reason"]


def test_sampled_sets_have_intervals_over_sets() -> None:
    full, lora = rows_of(made(KEPT), sets="sampled")
    means = np.array(KEPT["full"]).mean(axis=0)
    low, high = stats.t.interval(0.95, 2, means.mean(), stats.sem(means))
    assert (full["low"], full["high"], full["over"]) == (pytest.approx(low), pytest.approx(high), "sets")
    assert (full["worst_low"], full["worst_high"]) == (None, None)
    assert "none of all sets" in full["reason"]
    assert lora["over"] == "sets"
    (two,) = rows_of(made({"full": [[80.0, 60.0]]}, ("objects", "critters")), sets="sampled")
    assert (two["low"], two["reason"]) == (None, "2 sets: an interval over sets needs 3")


def bits(rng: np.random.Generator, seeds: int, n: int = 400) -> list[ImageOutcomes]:
    """Outcomes of ``seeds`` runs on the same images, of which the pretrained model is right about half."""
    before = rng.random(n) < 0.5
    return [ImageOutcomes(before & (rng.random(n) < 0.8) | (rng.random(n) < 0.05), before) for _ in range(seeds)]


def with_outcomes(seeds: int) -> tuple[pd.DataFrame, dict[tuple[str, str], ImageOutcomes]]:
    rng = np.random.default_rng(1)
    found = {name: bits(rng, seeds) for name in SETS}
    kept = [[100 * found[n][s].adapted.mean() / found[n][s].pretrained.mean() for n in SETS] for s in range(seeds)]
    runs = made({"full": kept})
    for name in SETS:
        for end in ("adapted", "pretrained"):
            column = f"transfer_{name}_zero_shot_{'accuracy' if end == 'adapted' else end}"
            runs[column] = [getattr(found[name][seed], end).mean() for seed in range(seeds)]
    return runs, {(f"full-{seed}", name): found[name][seed] for name in SETS for seed in range(seeds)}


def ratio_variance(one: ImageOutcomes) -> float:
    """Of 100 * a / b for paired shares, by the delta method, in its textbook form."""
    n, a, b = len(one.adapted), one.adapted.mean(), one.pretrained.mean()
    both = (one.adapted & one.pretrained).mean()
    relative = (1 - a) / a + (1 - b) / b - 2 * (both - a * b) / (a * b)
    return float((100 * a / b) ** 2 * relative / (n - 1))


def test_one_run_has_an_interval_over_images() -> None:
    runs, outcomes = with_outcomes(1)
    (row,) = rows_of(runs, outcomes=outcomes)
    variances = [ratio_variance(outcomes["full-0", name]) for name in SETS]
    half = stats.norm.ppf(0.975) * np.sqrt(sum(variances)) / 3
    assert row["over"] == "images"
    assert (row["low"], row["high"]) == (pytest.approx(row["mean_pct"] - half), pytest.approx(row["mean_pct"] + half))
    assert row["worst_low"] < row["worst_pct"] < row["worst_high"]


def test_seeds_and_images_add_up() -> None:
    runs, outcomes = with_outcomes(4)
    (row,) = rows_of(runs, outcomes=outcomes)
    (alone,) = rows_of(runs)
    assert (row["over"], alone["over"]) == ("images and seeds", "seeds")
    assert row["high"] - row["low"] > 0
    of_seeds = runs[[f"transfer_{name}_zero_shot_retention_pct" for name in SETS]].mean(axis=1)
    seeds = of_seeds.var(ddof=1) / 4
    images = 0.0
    for name in SETS:
        after = np.mean([outcomes[f"full-{seed}", name].adapted for seed in range(4)], axis=0)
        before = outcomes["full-0", name].pretrained.astype(float)
        moments = np.cov(after, before) / len(after)
        a, b = after.mean(), before.mean()
        images += 100**2 * (moments[0, 0] / b**2 + a**2 * moments[1, 1] / b**4 - 2 * a * moments[0, 1] / b**3) / 9
    freedom = (seeds + images) ** 2 / (seeds**2 / 3)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(seeds + images)
    assert (row["low"], row["high"]) == (pytest.approx(row["mean_pct"] - half), pytest.approx(row["mean_pct"] + half))


def test_intervals_over_seeds_and_images_cover_the_truth() -> None:
    """Retention of each set 70%; seeds move all sets together by 3 points, and images move each by 2."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        seeds = 70 + 3 * rng.normal(size=(4, 1)) + 2 * rng.normal(size=(1, 3))
        row = fixed_limits(seeds, np.full(3, 4.0), list(SETS), 0.95)
        covered += row["low"] < 70 < row["high"]
    assert 930 < covered < 975


def test_sets_that_share_images_count_as_one() -> None:
    seeds, variance = np.array([[90.0, 80.0]]), np.array([4.0, 9.0])
    apart = fixed_limits(seeds, variance, ["a", "b"], 0.95)
    shared = fixed_limits(seeds, variance, ["a", "a"], 0.95)
    z = stats.norm.ppf(0.975)
    assert apart["high"] - 85 == pytest.approx(z * np.sqrt(13) / 2)
    assert shared["high"] - 85 == pytest.approx(z * (2 + 3) / 2)


def test_measures_and_suites_are_kept_apart() -> None:
    runs = made(KEPT, SETS)
    runs = runs.assign(transfer_cifar100_zero_shot_retention_pct=50.0)
    for name in ("objects", "digits"):
        runs[f"transfer_{name}_knn_retention_pct"] = 70.0
    rows = [row for row in rows_of(runs) if row["variant"] == "full"]
    found = {(row["measure"], row["suite"]): row["n_sets"] for row in rows}
    assert found == {("zero_shot", "all sets"): 4, ("zero_shot", "offline"): 3, ("knn", "all sets"): 2}
    assert {row["measure"] for row in rows_of(runs, "transfer_matrix")} == {"zero_shot", "knn"}
    assert suites_of(["cifar100"], "tiles") == {}


def test_the_front_is_of_accuracy_and_mean_retention() -> None:
    kept = {"full": [[80.0, 60.0, 40.0]], "lora": [[95.0, 90.0, 97.0]], "last_block": [[70.0, 60.0, 50.0]]}
    on_front = {row["variant"].partition(" ")[0]: row["pareto"] for row in rows_of(made(kept))}
    # `full` is most accurate, LoRA retains most; the last block is as accurate as LoRA and retains less.
    assert on_front == {"full": True, "LoRA": True, "last": False}


def test_the_matrix_has_a_row_a_configuration_and_a_column_a_set() -> None:
    other = made({"full": [[70.0, 80.0]]}, ("objects", "tiles")).assign(dataset="critters", run_id="other")
    runs = pd.concat(
        [
            made(KEPT),
            other,
            made({"full": [[10.0, 10.0, 10.0]]}, learning_rate=1e-2, best_val_accuracy=0.5).assign(run_id="high"),
        ]
    )
    rows = {(row["dataset"], row["variant"], row["learning_rate"]): row for row in rows_of(runs, "transfer_matrix")}
    row = rows["tiles", "full", 1e-4]
    assert row["set_digits"] == pytest.approx(40.0)
    assert row["set_digits_sd"] == pytest.approx(6.0)
    assert row["set_tiles"] is None
    assert (row["mean"], row["worst"]) == (pytest.approx(np.mean(KEPT["full"])), pytest.approx(40.0))
    assert (row["best_rate"], rows["tiles", "full", 1e-2]["best_rate"]) == (True, False)
    other_row = rows["critters", "full", 1e-4]
    assert (other_row["set_critters"], other_row["set_tiles"], other_row["set_digits"]) == (None, 80.0, None)


def test_a_set_that_a_run_lacks_takes_no_part() -> None:
    runs = made(KEPT)
    runs.loc[runs["run_id"] == "full-1", "transfer_digits_zero_shot_retention_pct"] = None
    full = next(row for row in rows_of(runs) if row["variant"] == "full")
    assert (full["suite"], full["sets"]) == ("all sets", "objects, critters")


def test_the_analysis_has_the_tables_where_there_are_two_sets() -> None:
    tables = analyze(Tables(runs=made(KEPT)), settings=parse_analysis_settings(["sets=sampled"])).tables
    assert {row["over"] for row in tables["suites"].rows} == {"sets"}
    assert len(tables["transfer_matrix"].rows) == 2
    one = analyze(Tables(runs=made({"full": [[80.0]]}, ("objects",)))).tables
    assert not {"suites", "transfer_matrix"} & set(one)
    with pytest.raises(ValueError, match="analysis setting `sets`"):
        parse_analysis_settings(["sets=some"])


@pytest.mark.parametrize(
    ("nulls", "said"),
    [
        ({}, ""),
        ({"retention_pct": 6}, "near chance, so there is nothing to retain: digits (zero-shot accuracy)."),
        ({"retention_pct": 2}, "nothing to retain: digits (zero-shot accuracy) in 2 of 6 runs."),
        ({"retention_pct": 6, "pretrained": 6}, "no retention in the results: digits (zero-shot accuracy)."),
        ({"retention_pct": 6, "accuracy": 6}, ""),
    ],
)
def test_a_measured_set_that_is_left_out_is_named(nulls: dict[str, int], said: str) -> None:
    runs = made(KEPT)
    for end, count in nulls.items():
        runs.loc[: count - 1, f"transfer_digits_zero_shot_{end}"] = np.nan
    tables = set_tables(prepare(Tables(runs=runs)), ImageIntervals({}, 0.95), AnalysisSettings())
    assert [table.name for table in tables] == ["suites", "transfer_matrix"]
    for table in tables:
        named = [note for note in table.notes if note.startswith("Measured, but left out: ")]
        assert named == ([left_out(runs)] if said else [])
        assert "".join(named).endswith(said)


def test_figures_name_the_sets_that_are_left_out() -> None:
    runs = made(KEPT)
    runs["transfer_digits_zero_shot_retention_pct"] = np.nan
    said = "Measured, but left out: near chance, so there is nothing to retain: digits"
    with styled():
        for name in ("transfer_matrix", "suite_front"):
            assert said in FIGURES[name].draw(Source(Tables(runs=runs))).caption
    runs["transfer_critters_zero_shot_retention_pct"] = np.nan
    with pytest.raises(NoData, match=r"critters .*, digits"):
        FIGURES["transfer_matrix"].draw(Source(Tables(runs=runs)))
