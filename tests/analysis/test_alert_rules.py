"""``attndrift calibrate``: alerts that a study's runs have taught, as a file that a training takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attndrift.cli.main import app
from attndrift.drift import read_alerts, watchable
from attndrift.results.tables import Tables, write_tables
from benchmarks.synthetic import synthetic_tables


@pytest.fixture(scope="module")
def tables() -> Tables:
    return synthetic_tables(seeds=2, rates=8, datasets=("eurosat",), evaluations=3, layers=2)


@pytest.fixture
def study(tables: Tables, tmp_path: Path) -> Path:
    write_tables(tables, tmp_path / "study")
    return tmp_path / "study"


def _called(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def test_the_alerts_of_a_study_are_those_that_a_training_takes(tables: Tables, study: Path) -> None:
    retention = tables.runs["transfer_cifar100_zero_shot_retention_pct"]
    done = _called(study, "--below", round(float(retention.median()), 1), "--every-signal")
    assert done.exit_code == 0, done.output
    written = json.loads((study / "alerts.json").read_text())["alerts"]
    alerts = read_alerts(study / "alerts.json", "stop")
    assert [(one.metric, one.below, one.above) for one in alerts] == [
        (row["metric"], row["below"], row["above"]) for row in written
    ]
    assert {one.action for one in alerts} == {"stop"}
    for one, row in zip(alerts, written, strict=True):
        beyond = one.below - 1 if one.below is not None else one.above + 1
        assert one.crossed(beyond, row["step"]) is not None
        assert one.crossed(beyond, row["step"] + 1) is None, "nothing was learned of later steps"
    assert {one.metric for one in alerts} <= set(watchable())
    for row in written:
        assert f"{row['held_out_caught']} of {row['n_damaged']} damaged configurations" in done.output.replace(
            "\n", " "
        )
        assert f"n = {row['n_configurations']}, 2 seeds" in done.output
    assert "another training may lose transfer" in done.output, "what it cannot promise"


def test_one_alert_a_dataset_and_none_where_nothing_was_lost(tables: Tables, study: Path, tmp_path: Path) -> None:
    half = round(float(tables.runs["transfer_cifar100_zero_shot_retention_pct"].median()), 1)
    found = json.loads(_called(study, "--below", half, "--output", tmp_path / "one.json", "--json").output)
    assert len(found["alerts"]) == len({(row["dataset"], row["transfer_set"]) for row in found["alerts"]}) > 0
    done = _called(study, "--below", 1, "--output", tmp_path / "none.json")
    assert done.exit_code == 1
    assert "No target has configurations on both sides of 1% retention" in done.output
    assert "try another --below" in done.output
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "holds no alerts; `attndrift calibrate STUDY` writes them"),
        ('{"alerts": []}', "holds no alerts"),
        ('{"alerts": [1]}', "holds no alerts"),
        ('{"alerts": [{"metric": "cka_mean", "below": 0.9}]}', "an alert without 'above'"),
        ('{"alerts": [{"metric": "cka_maen", "below": 0.9, "above": null}]}', "did you mean `cka_mean`"),
        ('{"alerts": [{"metric": "cka_mean", "below": "x", "above": null}]}', "alerts.json: "),
        ("{", "not JSON|alerts.json"),
    ],
)
def test_a_file_of_another_form_is_named(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "alerts.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said) as error:
        read_alerts(path)
    assert "alerts.json" in str(error.value)
