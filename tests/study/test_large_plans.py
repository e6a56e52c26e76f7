"""A study of many runs is planned from what its runs share."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from attndrift.study.loading import parse_study
from attndrift.study.plan import plan, print_plan

TEXT = "name: many\nshared: {dataset: tiles, model: embedded}\nruns:\n  - {grid: {method: [full, lora], seed: SEEDS}}\n"


def test_a_large_dry_run_prints_the_first_runs_and_counts_the_others() -> None:
    study = parse_study(TEXT.replace("SEEDS", str(list(range(125)))), where="many")
    planned = plan(study)
    printed = StringIO()
    print_plan(study, planned, Console(file=printed, width=120))
    assert [row.run_id for row in planned] == [run.run_id for run in study.runs]
    # One count a method, and not the count of another one's.
    assert len({row.trainable_parameters for row in planned[:125]}) == 1
    assert planned[0].trainable_parameters > planned[125].trainable_parameters
    assert sum(run.run_id in printed.getvalue().split() for run in study.runs) == 200
    assert "and 50 more runs; --json lists them all" in printed.getvalue()
