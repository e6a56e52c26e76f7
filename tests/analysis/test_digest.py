"""The first screen: what it says of studies of every size, in few words, and never of a setting that failed."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from attndrift.analysis import Analysis, analyze
from attndrift.analysis.digest import FEWEST_ROWS, MOST_ROWS
from attndrift.results.tables import Tables
from benchmarks.synthetic import synthetic_tables

KEPT = "transfer_objects_zero_shot_retention_pct"
STUDIES: dict[str, dict[str, Any]] = {
    "three seeds": {"seeds": 3, "rates": 3},
    "two seeds": {"seeds": 2, "rates": 3},
    "one seed": {"seeds": 1, "rates": 4},
    "two datasets": {"seeds": 1, "rates": 2, "datasets": ("eurosat", "pets")},
    "one method": {"seeds": 3, "rates": 3, "methods": ("full",)},
    "one rate": {"seeds": 3, "rates": 1},
    "no transfer": {"seeds": 3, "rates": 2, "transfer": ()},
    "no history": {"seeds": 3, "rates": 2, "history": False},
}


def study(name: str) -> Tables:
    options = dict(STUDIES[name])
    history = options.pop("history", True)
    tables = synthetic_tables(layers=0, **{"datasets": ("eurosat",)} | options)
    return tables if history else Tables(tables.runs)


@functools.cache
def analysed(name: str) -> Analysis:
    return analyze(study(name))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", STUDIES)
def test_findings_are_short(name: str) -> None:
    analysis = analysed(name)
    first = analysis.digest
    assert 0 < len(first.findings) <= 5
    for finding in first.findings:
        text = finding.sentence
        for method in sorted(("cifar100", *analysis.data.methods), key=len, reverse=True):
            text = text.replace(method, "NAME")
        assert len(re.findall(r"[.?!](?: |$)", text)) <= 2, text
        assert len(re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text)) <= 4, text
        assert all(len(sentence.split()) <= 32 for sentence in re.split(r"(?<=[.?!]) ", finding.sentence)), text
        assert "excludes 0" not in text
        assert finding.table in analysis.tables
        assert all(row < len(analysis.tables[finding.table].rows) for row in finding.rows)
    assert len(first.verdict.split()) <= 40
    assert first.verdict.count(". ") == 0


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", STUDIES)
def test_table_has_six_to_ten_rows_and_one_best(name: str) -> None:
    analysis = analysed(name)
    rows = analysis.tables["overview"].rows
    own = [row for row in analysis.tables["configurations"].rows if row["dataset"] == rows[0]["dataset"]]
    own = [row for row in own if row["variant"] != "pretrained"]
    assert min(FEWEST_ROWS, len(own)) <= len(rows) <= MOST_ROWS
    assert sum(row["best"] for row in rows) == 1
    best = next(row for row in rows if row["best"])
    assert best["validation_accuracy"] == pytest.approx(max(100 * row["best_val_accuracy"] for row in own))
    assert len({row["configuration"] for row in rows}) == len(rows)
    missing = {row["variant"] for row in own} - {row["variant"] for row in rows}
    said = [note for note in analysis.tables["overview"].notes if "have no row here" in note]
    assert [int(note.split()[0]) for note in said] == ([len(missing)] if missing else [])


def test_intervals_are_over_seeds_where_there_are_three() -> None:
    for name, wanted in (("three seeds", "seeds"), ("two seeds", ""), ("one seed", "")):
        rows = analysed(name).tables["overview"].rows
        assert {row["over"] for row in rows} == {wanted}, name
        assert all((row["low"] is None) == (wanted == "") for row in rows)
    assert sum("One seed" in caveat for caveat in analysed("one seed").digest.caveats) == 1
    assert not any("One seed" in caveat for caveat in analysed("three seeds").digest.caveats)


def failing(method: str, rate: int) -> Tables:
    """Full and LoRA at three rates each, three seeds; ``method`` trains to nothing at its ``rate``-th rate but keeps all."""
    rows = []
    for kind, place, seed in ((k, p, s) for k in ("full", "lora") for p in range(3) for s in range(3)):
        failed = (kind, place) == (method, rate)
        accuracy = 0.11 if failed else 0.80 + 0.01 * place + 0.001 * seed
        rows.append(
            {
                "run_id": f"{kind}{place}{seed}", "dataset": "tiles", "model": "m", "selection": "validation", "method": kind,
                "lora_rank": 8 if kind == "lora" else None, "learning_rate": (1e-5, 1e-4, 1e-3)[place], "seed": seed,
                "best_val_accuracy": accuracy, "test_accuracy": accuracy,
                "transfer_objects_zero_shot_accuracy": 0.6 if failed else 0.4 + 0.001 * seed,
                "transfer_objects_zero_shot_pretrained": 0.6,
                "transfer_objects_zero_shot_retention_pct": 99.9 if failed else 66.0 + seed + 3 * place,
            }
        )  # fmt: skip
    return Tables(pd.DataFrame(rows))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("method", "rate"), [(m, r) for m in ("full", "lora") for r in range(3)])
def test_no_finding_is_made_of_a_setting_that_failed(method: str, rate: int) -> None:
    analysis = analyze(failing(method, rate))
    said = " ".join([analysis.digest.verdict, *(finding.sentence for finding in analysis.digest.findings)])
    assert "99.9" not in said
    assert not re.search(r"\b(?:2[5-9]|3\d)\.\d points", said), said
    assert "11.0%" not in said


def said_of(runs: pd.DataFrame) -> str:
    first = analyze(Tables(runs)).digest
    return " ".join([first.verdict, *first.caveats, *(finding.sentence for finding in first.findings)])


def test_a_tie_of_rates_is_said_with_what_the_other_one_retains() -> None:
    runs = failing("none", 0).runs
    runs.loc[runs["method"] == "full", "best_val_accuracy"] = 0.85
    said = said_of(runs)
    assert "full fine-tuning at 1e-5 (tied with 1e-4)" in said
    assert "At 1e-4 it validates as well and retains 70.0%." in said
    runs.loc[(runs["method"] == "full") & (runs["learning_rate"] == 1e-3), KEPT] = 20.0
    assert "At 1e-3 it validates as well and retains 20.0%." in said_of(runs), "the one that retains least"


def test_where_nothing_was_validated_test_accuracy_is_named() -> None:
    runs = failing("none", 0).runs
    for part in (slice(None), runs["method"] == "lora"):
        some = runs.copy()
        some.loc[part, "best_val_accuracy"] = np.nan
        said = said_of(some)
        assert "has the best test accuracy" in said
        assert "it is optimistic" in said
        assert "validates best" not in said


def test_several_runs_of_one_seed_give_no_interval() -> None:
    runs = failing("none", 0).runs
    again = pd.concat([runs.assign(run_id=runs["run_id"] + f"-{n}", seed=0) for n in range(2)], ignore_index=True)
    assert all(row["over"] == "" for row in analyze(Tables(again)).tables["overview"].rows)


def test_preservation_at_a_rate_that_does_not_suit_is_not_called_absent() -> None:
    runs = failing("none", 0).runs
    runs.loc[(runs["method"] == "full") & (runs["learning_rate"] == 1e-5), "best_val_accuracy"] = 0.60
    added = runs[(runs["method"] == "full") & (runs["learning_rate"] == 1e-5)].assign(loss="l2_sp:1")
    both = pd.concat([runs, added.assign(run_id=added["run_id"] + "-p")], ignore_index=True)
    assert "only at rates that do not suit" in said_of(both)
    assert "No preservation loss" in said_of(runs)


def test_no_signal_is_named_from_few_configurations() -> None:
    tables = synthetic_tables(layers=0, seeds=3, rates=4, methods=("full",), datasets=("eurosat",))
    assert "No signal can be ranked" in " ".join(one.sentence for one in analyze(tables).digest.findings)


def test_equal_tables_give_an_equal_first_screen_whatever_the_order() -> None:
    tables = study("one seed")
    order = np.random.default_rng(1).permutation(len(tables.runs))
    shuffled = Tables(tables.runs.iloc[order].reset_index(drop=True), tables.history, tables.layers)
    one, two = analysed("one seed"), analyze(shuffled)
    assert one.digest == two.digest
    assert one.tables["overview"] == two.tables["overview"]


def test_nothing_finished_is_said() -> None:
    runs = pd.DataFrame({"run_id": ["a"], "dataset": ["d"], "method": ["full"], "seed": [0], "status": ["diverged"]})
    first = analyze(Tables(runs)).digest
    assert first.verdict.startswith("No adapted run has finished")
    assert first.findings == []


def test_one_of_several_models_is_named_and_the_others_are_counted() -> None:
    one = synthetic_tables(layers=0, datasets=("eurosat",), rates=3, baseline=False).runs
    others = [one[one["learning_rate"] == one["learning_rate"].min()].assign(model=name) for name in ("beta", "gamma")]
    parts = [one.assign(model="alpha"), *others]
    runs = pd.concat([part.assign(run_id=part["run_id"] + part["model"]) for part in parts], ignore_index=True)
    first = analyze(Tables(runs)).digest
    assert first.verdict.startswith("On eurosat with alpha, ")
    (said,) = [caveat for caveat in first.caveats if "alpha" in caveat]
    assert said == "This is about alpha alone. Also run, and under all runs: beta (2 settings), gamma (2 settings)."
    alone = analysed("three seeds").digest
    assert alone.verdict.startswith("On eurosat, ")
    assert not any("alone" in caveat for caveat in alone.caveats)
