"""Methods at equal compute: against scipy's paired t test, in images and in seconds, and where nothing can be said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from attndrift.analysis import Analysis, analyze
from attndrift.analysis.numbers import means_of
from attndrift.results.tables import Tables

KEPT, RATES, SEEDS = "transfer_s_zero_shot_retention_pct", (1e-5, 1e-4), 4


def study(
    plan: dict[str, tuple[tuple[int, int], ...]], rng: np.random.Generator, *, gap: float = 0.0, history: bool = True,
    seconds: bool = False,
) -> Tables:  # fmt: skip
    """Each method at its (epochs, training images), two rates and four seeds; the second rate validates better.

    ``gap``: points that lora retains more, at the end and on the monitor. LoRA takes twice the time of an image.
    """
    runs: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for method, budgets in plan.items():
        for epochs, images in budgets:
            for place, rate in enumerate(RATES):
                for seed in range(SEEDS):
                    name = f"{method}-{epochs}-{images}-{rate:g}-{seed}"
                    kept = 60.0 + gap * (method == "lora") - 20 * place + rng.normal()
                    accuracy = 0.8 + 0.1 * place + 0.002 * rng.normal()
                    runs.append(
                        {"run_id": name, "dataset": "d", "method": method, "seed": seed, "learning_rate": rate,
                         "epochs": epochs, "n_train": images, "best_val_accuracy": accuracy, "test_accuracy": accuracy,
                         "training_seconds": (1 + (method == "lora")) * epochs * images / 100 if seconds else None,
                         KEPT: kept}
                    )  # fmt: skip
                    for epoch in range(epochs + 1) if history else ():
                        rows.append(
                            {"run_id": name, "step": 10 * epoch, "epoch": epoch, "val_accuracy": accuracy - 0.01 * (epochs - epoch),
                             "monitor_zero_shot_retention_pct": kept + 10 - epoch * images / 100 + rng.normal()}
                        )  # fmt: skip
    return Tables(runs=pd.DataFrame(runs), history=pd.DataFrame(rows or {"run_id": [], "step": []}))


def compared(result: Analysis, **wanted: Any) -> dict[str, Any]:
    rows = [row for row in result.tables["equal_compute"].rows if all(row[k] == v for k, v in wanted.items())]
    assert len(rows) == 1, rows
    return rows[0]


def test_the_final_outcomes_at_equal_images_are_those_of_the_paired_t_test() -> None:
    """Other epochs and other training images, the same product: equal settings never compare these runs."""
    tables = study({"full": ((10, 100),), "lora": ((5, 200), (10, 200))}, np.random.default_rng(0), gap=10.0)
    result = analyze(tables)
    row = compared(result, when="end of training", measure="s retention", compute="training images")
    runs = tables.runs[
        (tables.runs["learning_rate"] == RATES[1]) & (tables.runs["epochs"] * tables.runs["n_train"] == 1000)
    ]
    full, lora = (runs[runs["method"] == name].sort_values("seed")[KEPT].to_numpy() for name in ("full", "lora"))
    expected = stats.ttest_rel(full, lora)
    limits = expected.confidence_interval(0.95)
    assert (row["budget"], row["first_rate"], row["second_rate"], row["n_seeds"]) == (1000, 1e-4, 1e-4, SEEDS)
    assert [row[name] for name in ("estimate", "low", "high", "p")] == pytest.approx(
        [(full - lora).mean(), *limits, expected.pvalue]
    )
    assert not result.tables["differences"].rows  # never at equal settings
    said = [f.sentence for f in result.findings if f.table == "equal_compute"]
    assert [text for text in said if text.startswith("After at most 1000 training images, each")], said
    assert f"retains {-row['estimate']:.1f} points more on s than full" in said[0]


def test_before_the_end_the_last_evaluation_within_the_budget_counts() -> None:
    tables = study({"full": ((10, 100),), "lora": ((8, 200),)}, np.random.default_rng(1), gap=5.0)
    result = analyze(tables)
    row = compared(result, when="during training", measure="monitored retention", budget=500, compute="training images")
    assert (row["first_used"], row["second_used"]) == (500, 400)
    assert (row["low"], row["reason"]) == (None, "the nearest evaluations are too far apart")
    row = compared(
        result, when="during training", measure="validation accuracy", budget=1000, compute="training images"
    )
    assert (row["first_used"], row["second_used"], row["first_rate"]) == (1000, 1000, 1e-4)
    held = tables.history.merge(tables.runs[["run_id", "method", "learning_rate", "seed", "n_train"]], on="run_id")
    held = held[(held["epoch"] * held["n_train"] == 1000) & (held["learning_rate"] == RATES[1])].sort_values("seed")
    full, lora = (100 * held.loc[held["method"] == name, "val_accuracy"].to_numpy() for name in ("full", "lora"))
    assert row["estimate"] == pytest.approx((full - lora).mean())
    assert row["p"] == pytest.approx(stats.ttest_rel(full, lora).pvalue)


def test_equal_budgets_are_said_in_one_line_and_not_compared_twice() -> None:
    tables = study({"full": ((4, 100),), "lora": ((4, 100),)}, np.random.default_rng(2), gap=5.0, history=False)
    table = analyze(tables).tables["equal_compute"]
    assert not table.rows
    assert "On d, each run saw 400 training images: equal settings are equal compute." in table.notes
    assert any(note.startswith("`training_seconds` is in no run") for note in table.notes)


def test_equal_seconds_are_other_images() -> None:
    plan = {"full": ((8, 100),), "lora": ((8, 100),)}
    result = analyze(study(plan, np.random.default_rng(3), seconds=True))
    # Half of 8 s: 4 epochs of full fine-tuning, 2 of LoRA.
    row = compared(result, compute="training seconds", measure="validation accuracy", budget=4)
    assert (row["first_used"], row["second_used"]) == (4, 4)
    assert row["estimate"] == pytest.approx(2.0, abs=0.5)
    images = compared(result, compute="training images", measure="validation accuracy", budget=400)
    assert images["estimate"] == pytest.approx(0.0, abs=0.5)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("column", ["epochs", "n_train"])
def test_unknown_compute_makes_no_claim(column: str) -> None:
    tables = study({"full": ((4, 100),), "lora": ((4, 100),)}, np.random.default_rng(4))
    tables.runs[column] = None
    result = analyze(Tables(runs=tables.runs, history=tables.history))
    assert not result.tables["equal_compute"].rows
    assert "`epochs` or `n_train` is in no run: training images are not known." in result.tables["equal_compute"].notes


@pytest.mark.slow
def test_methods_that_are_equal_are_seldom_told_apart() -> None:
    """Four comparisons in each of 400 studies know a rate of 5% to about 0.6 points, over the kinds together; the t test of
    each is tried on thousands of studies in ``test_simulation.py``."""
    from attndrift.analysis import AnalysisSettings
    from attndrift.analysis.compute import compute_table
    from attndrift.analysis.configurations import prepare
    from attndrift.analysis.contrasts import HIGHER, LOWER
    from attndrift.analysis.dynamics import epochs_from_steps, order_history

    rng, settings, total, inside = np.random.default_rng(5), AnalysisSettings(), 400, list[bool]()
    claims: dict[tuple[str, str, float], int] = {}
    for _ in range(total):
        tables = study({"full": ((4, 100),), "lora": ((2, 200), (4, 200))}, rng)
        prepared = prepare(tables)
        history = order_history(prepared, tables.history)
        for row in compute_table(prepared, history, epochs_from_steps(history, prepared), settings, []).rows:
            if row["low"] is not None and row["measure"] != "validation accuracy":
                key = row["when"], row["measure"], row["budget"]
                claims[key] = claims.get(key, 0) + (row["verdict"] in (HIGHER, LOWER))
                inside += [row["low"] <= 0 <= row["high"]] * (row["when"] == "end of training")
    print({key: count / total for key, count in claims.items()}, np.mean(inside))
    assert sum(claims.values()) <= 0.06 * total * len(claims), claims
    assert 0.92 <= np.mean(inside) <= 0.98


def test_means_have_the_bits_of_those_of_pandas() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 40, 2_000)
    values = np.where(rng.random(2_000) < 0.1, np.nan, rng.lognormal(0, 9, 2_000))
    values[codes == 7] = np.nan
    expected = pd.Series(values).groupby(codes).mean().dropna()
    found, means = means_of(codes, values)
    assert found.tolist() == expected.index.tolist()
    assert means.tobytes() == expected.to_numpy().tobytes()
