"""Soups over seeds and rates: the mean of merged weights, measured like a run, rows of the table from then on."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from attndrift.cli.main import app
from attndrift.cli.progress import StudyConsole
from attndrift.files import LeftOutWarning
from attndrift.methods import load_adapted, weight_drift
from attndrift.models import load_model
from attndrift.results.tables import read_tables
from attndrift.study.collect import collect
from attndrift.study.executor import Executor
from attndrift.study.loading import parse_study
from attndrift.study.outcomes.registry import outcome_label
from attndrift.study.resources import StudyResources
from attndrift.study.runner import run_study
from attndrift.study.soups import make_soups

STUDY = """
name: soups
shared:
  model: "config:tiny"
  dataset: digits
  train_per_class: 3
  validation_per_class: 2
  probe_size: 20
  test_limit: 20
  epochs: 1
  batch_size: 15
  learning_rate: 1e-3
  head: text
  transfer: [objects]
  transfer_limit: 50
  monitor_zero_shot_images: 0
  evaluations_per_epoch: 1
  map_images: 0
  threads: 1
  trackers: []
  keep: best
runs:
  - {experiment: P, method: none}
  - {experiment: S, method: lora, grid: {seed: [0, 1, 2]}}
  - {experiment: R, method: full, grid: {learning_rate: [1e-3, 3e-3]}}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyResources]:
    folder = tmp_path_factory.mktemp("study") / "soups"
    resources = StudyResources(folder.parent / "cache")
    console = StudyConsole(console=Console(file=io.StringIO()))
    outcome = run_study(parse_study(STUDY, where="study"), folder, Executor(resources), console)
    assert set(outcome.statuses.values()) == {"finished"}, outcome
    return folder, resources


def _merged(folder: Path, name: str) -> torch.nn.Module:
    return load_adapted(folder / "runs" / name / "checkpoints" / "best", base=load_model("config:tiny"), merged=True)


def test_a_soup_is_the_mean_of_merged_weights_and_a_row(study: tuple[Path, StudyResources]) -> None:
    folder, resources = study
    (soup,) = make_soups(folder, "seed", resources=resources)
    assert len(soup["parents"]) == 3
    assert soup["used"] == soup["parents"]
    models = [_merged(folder, name) for name in soup["parents"]]
    mean = _merged(folder, soup["parents"][0])
    with torch.no_grad():
        for name, parameter in mean.named_parameters():
            parameter.copy_(torch.stack([dict(one.named_parameters())[name].double() for one in models]).mean(0))
    assert soup["row"]["weight_drift"] == pytest.approx(weight_drift(mean, load_model("config:tiny")), rel=1e-6)
    collect(folder)
    runs = read_tables(folder).runs.set_index("run_id")
    row = runs.loc[soup["run_id"]]
    assert row["outcome"] == "soup_seed:3"
    assert row["parent_run"] == soup["parents"][0]
    assert row["method"] == "lora"
    assert 0 <= row["test_accuracy"] <= 1
    assert 0 <= row["transfer_objects_zero_shot_accuracy"] <= 1
    assert runs["seed"].isna().sum() == 1
    assert outcome_label("soup_seed:3") == "soup of seeds, 3"


def test_a_greedy_soup_is_never_worse_on_validation_than_its_best_run(study: tuple[Path, StudyResources]) -> None:
    folder, resources = study
    (soup,) = make_soups(folder, "learning_rate", greedy=True, resources=resources)
    records = [json.loads((folder / "runs" / name / "record.json").read_text()) for name in soup["parents"]]
    assert soup["row"]["best_val_accuracy"] >= max(record["row"]["best_val_accuracy"] for record in records)
    assert soup["row"]["outcome"] == f"greedy_soup_learning_rate:{len(soup['used'])}"
    assert soup["row"]["learning_rate"] is None


def test_the_command_says_what_it_made_and_both_kinds_stay(study: tuple[Path, StudyResources]) -> None:
    folder, _ = study
    for arguments in (["--over", "seed"], ["--over", "seed", "--greedy"]):
        found = CliRunner().invoke(app, ["soup", str(folder), "--json", *arguments])
        assert found.exit_code == 0, found.output
        (soup,) = json.loads(found.stdout)["soups"]
        assert soup["run_id"] in set(read_tables(folder).runs["run_id"])
    kept = json.loads((folder / "runs" / soup["parents"][0] / "soups.json").read_text())["soups"]
    assert len(kept) == 2


def test_runs_that_differ_in_more_make_no_soup(study: tuple[Path, StudyResources], tmp_path: Path) -> None:
    folder, resources = study
    text = (folder / "study.json").read_text()
    content = json.loads(text)
    content["runs"] = content["runs"][:2]
    (folder / "study.json").write_text(json.dumps(content))
    try:
        with pytest.raises(ValueError, match="no two finished runs differ in `seed` alone"):
            make_soups(folder, "seed", resources=resources)
    finally:
        (folder / "study.json").write_text(text)


def test_a_damaged_file_of_soups_is_left_out_with_its_name(study: tuple[Path, StudyResources]) -> None:
    folder, _ = study
    (path,) = [*(folder / "runs").glob("*seed*/soups.json"), *(folder / "runs").glob("S_*s0/soups.json")][:1]
    whole = path.read_text()
    path.write_text('{"soups": [{"run_id": 3}]}')
    try:
        with pytest.warns(LeftOutWarning, match=r"soups\.json.*are left out"):
            collect(folder)
        assert "soup_seed:3" not in set(read_tables(folder).runs["outcome"].dropna())
    finally:
        path.write_text(whole)
