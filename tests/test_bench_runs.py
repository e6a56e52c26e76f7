"""The bench of runs an hour: its numbers belong together."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from attndrift.bench import runs as bench
from attndrift.cli import app

SMALL = ["bench", "runs", "--model", "config:tiny", "--images", "40", "--batch", "8", "--device", "cpu"]


def test_of_one_and_of_two_at_once(tmp_path) -> None:
    output = tmp_path / "runs.json"
    done = CliRunner().invoke(
        app,
        [*SMALL, "--method", "lora", "--jobs", "1", "--jobs", "2", "--set", "threads=1", "--output", str(output)],
    )
    assert done.exit_code == 0, done.output
    found = json.loads(output.read_text())
    (title, rows), *others = found["tables"].items()
    assert not others
    assert "40 images, threads 1" in title
    assert [(row["runs"], row["at once"]) for row in rows] == [("lora", 1), ("lora", 2)]
    for row in rows:
        whole = row["before training s"] + row["first epoch s"] + 19 * row["later epoch s"]
        assert row["run of 20 epochs s"] == pytest.approx(whole)
        assert row["runs an hour"] == pytest.approx(row["at once"] * 3600 / whole)
        assert row["images/s of all"] == pytest.approx(row["at once"] * 40 / row["later epoch s"])
        assert 0 <= row["of them all at work, %"] <= 100 + 1e-6
        assert 0 < row["fastest"] <= row["later epoch s"] <= row["slowest"]
    assert rows[0]["of them all at work, %"] == pytest.approx(100), "one is always all there are"
    (ratio,) = found["ratios"]
    assert ratio["ratio"] == pytest.approx(rows[0]["runs an hour"] / rows[1]["runs an hour"])
    assert any("2 epochs were trained" in note for note in found["notes"])


def test_times_are_of_all_steps_and_epochs() -> None:
    from attndrift.study.settings import RunSettings

    settings = RunSettings(
        **{"model": "config:tiny", "dataset": "eurosat", "protocol": "seed", "epochs": 3, "batch_size": 8, "threads": 1,
           "track_size": 0, "device": "cpu"} | bench.METHODS["full"]
    )  # fmt: skip
    times = bench.train_one(bench.Training(settings.model_dump_json(), 20, 10, "cpu"), bench._Alone())
    assert len(times.steps) == 9
    assert len(times.epochs) == 3
    moments = [times.began, *times.steps]
    assert moments == sorted(moments)
    assert all(times.steps[3 * place + 2] <= end for place, end in enumerate(times.epochs))
    assert times.memory is None


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--method", "linear"], "--method linear: choose from full, lora"), (["--set", "epochz=3"], "epochz")],
)
def test_what_it_cannot_do(options, words) -> None:
    done = CliRunner().invoke(app, [*SMALL, *options])
    assert done.exit_code != 0
    assert words in done.output + str(done.exception)


def test_a_process_that_fails_is_told_of() -> None:
    with pytest.raises(RuntimeError, match=r"bench runs: .*ValidationError"):
        bench.train_at_once(bench.Training("{}", 8, 8, "cpu"), 2)
