"""The presets that compare methods: what they hold, and that each of their runs goes through on generated images."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from attndrift.cli.progress import StudyConsole
from attndrift.losses import LOSSES
from attndrift.methods import METHODS
from attndrift.results.tables import read_tables
from attndrift.study.executor import Executor
from attndrift.study.loading import load_study, parse_overrides
from attndrift.study.plan import plan
from attndrift.study.resources import StudyResources
from attndrift.study.runner import run_study

SMALL = parse_overrides(
    ["epochs=1", "train_per_class=4", "validation_per_class=2", "probe_size=20", "test_limit=50", "transfer_limit=600",
     "monitor_zero_shot_images=20", "reference_images=20", "map_images=0", "trackers=[]"]
)  # fmt: skip


def test_preservation_36_has_twelve_ways_at_three_strengths_on_equal_terms() -> None:
    pretrained, *runs = load_study("preservation-36").runs
    assert pretrained.settings.method == "none"
    assert set(Counter(run.settings.experiment for run in runs).values()) == {3}
    assert len(runs) == 36
    settings = [run.settings for run in runs]
    assert [one.guard_at_least for one in settings if one.guard] == [95, 90, 80]
    wise = {text for one in settings for text in one.outcomes if text.startswith("wise_ft:")}
    assert wise == {"wise_ft:0.25", "wise_ft:0.5", "wise_ft:0.75"}
    assert {"l2_sp", "ewc", "ldifs", "lipsum", "attention_preservation"} < {
        name for one in settings for name in one.losses
    }
    shared = ("epochs", "batch_size", "train_per_class", "probe_size", "test_limit", "transfer", "seed", "data_seed")
    for name in shared:
        assert len({getattr(one, name) for one in settings}) == 1, name
    demo = load_study("demo").runs[2].settings
    for name in ("epochs", "batch_size", "train_per_class", "validation_per_class", "probe_size", "test_limit"):
        assert getattr(settings[0], name) == getattr(demo, name), name


def test_adapters_10_has_ten_adapters_beside_full_fine_tuning() -> None:
    runs = [run.settings.method for run in load_study("adapters-10").runs]
    assert runs[:2] == ["none", "full"]
    adapters = runs[2:]
    assert len(adapters) == len(set(adapters)) == 10
    assert all(METHODS[name].requires == ("peft",) for name in adapters)


@pytest.mark.parametrize("name", ["preservation-36", "adapters-10"])
def test_every_run_of_the_preset_can_be_planned(name: str) -> None:
    study = load_study(name, seeds=[0, 1, 2])
    planned = plan(study, elsewhere=True)
    assert {row.note for row in planned} == {""}
    assert {row.steps for row in planned if row.method != "none"} == {60}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["preservation-36", "adapters-10"])
def test_the_preset_runs_on_generated_images(name: str, tmp_path: Path) -> None:
    study = load_study(name, overrides=SMALL)
    with Executor(StudyResources(tmp_path / "cache")) as execute:
        outcome = run_study(study, tmp_path / name, execute, StudyConsole(console=Console(file=io.StringIO())))
    assert set(outcome.statuses.values()) == {"finished"}, outcome
    rows = read_tables(tmp_path / name).runs
    trained = rows[rows["method"] != "none"]
    assert trained["test_accuracy"].notna().all()
    assert trained["transfer_objects_zero_shot_accuracy"].notna().all()
    assert len(rows) == len(study.runs) + sum(len(run.settings.outcomes) for run in study.runs)
    if name == "preservation-36":
        assert set(",".join(trained["loss"].dropna()).replace(",", ":").split(":")) >= {"l2_sp", "ldifs", "lipsum"}
        assert {text.partition(":")[0] for text in trained["loss"].dropna()} < set(LOSSES.names())
