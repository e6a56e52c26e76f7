"""Watching a study that others run: from its files alone, in a folder and in an object store."""

from __future__ import annotations

import io
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from made_runs import MadeRuns, study_of
from rich.console import Console
from typer.testing import CliRunner

from attndrift.cli.main import app
from attndrift.cli.progress import StudyConsole
from attndrift.cli.watch_table import sparkline, watch_table
from attndrift.compare.conditions import parse_condition
from attndrift.report.watch_page import curve, write_watch_page
from attndrift.study.collect import StudyFolderError
from attndrift.study.loading import parse_study
from attndrift.study.runner import run_study
from attndrift.study.storage import prepare_folder
from attndrift.study.watch import QUIET_SECONDS, StudyWatch, watched_columns

STUDY = parse_study(
    "name: w\nshared: {dataset: tiles, threads: 1, epochs: 4}\nruns: [{grid: {seed: [1, 2, 3]}}]\n", where="f"
)
FIRST, SECOND, THIRD = (run.run_id for run in STUDY.runs)


def _row(step: int, cka: float = 0.95, **more: Any) -> str:
    return json.dumps({"step": step, "epoch": step / 10, "cka_mean": cka, "entropy": 3.2, **more}) + "\n"


def _begin(folder: Path, run_id: str, text: str = "") -> Path:
    run = folder / "runs" / run_id
    run.mkdir(parents=True, exist_ok=True)
    (run / "settings.json").write_text("{}")
    (run / "history.jsonl").write_text(text)
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare_folder(STUDY, tmp_path / "w")
    return tmp_path / "w"


def test_runs_are_shown_as_they_go_on(folder: Path) -> None:
    watch = StudyWatch(str(folder), [parse_condition("cka_mean<0.9", watched_columns())])
    assert watch.read().counts() == {"waiting": 3}
    run = _begin(folder, FIRST, _row(0, 1.0))
    (first, *_) = watch.read().runs
    assert (first.status, first.epochs, first.total_epochs, first.crossed) == ("running", 0.0, 4, [])
    with (run / "history.jsonl").open("a") as file:
        file.write(_row(10, 0.85, val_accuracy=0.5, monitor_zero_shot_retention_pct=70.0) + _row(20)[:10])
    (first, *_) = watch.read().runs
    assert first.series["cka_mean"] == [1.0, 0.85], "a line that is half written is not read yet"
    assert first.series["val_accuracy"] == [0.5]
    assert first.crossed == ["cka_mean"]
    with (run / "history.jsonl").open("a") as file:
        file.write(_row(20)[10:])
    (first, *_) = watch.read().runs
    assert first.series["cka_mean"] == [1.0, 0.85, 0.95]
    assert (first.epochs, first.crossed) == (2.0, [])


def test_a_history_that_is_written_anew_is_read_anew(folder: Path) -> None:
    """A resumed run replaces the file by what its state knows, then goes on."""
    watch = StudyWatch(str(folder))
    run = _begin(folder, FIRST, _row(0) + _row(10) + _row(20))
    assert len(watch.read().runs[0].series["cka_mean"]) == 3
    (run / "new").write_text(_row(0) + _row(10, 0.5) + _row(20, 0.4) + _row(30, 0.3))
    (run / "new").replace(run / "history.jsonl")
    assert watch.read().runs[0].series["cka_mean"] == [0.95, 0.5, 0.4, 0.3]


def test_what_has_ended_says_how(folder: Path) -> None:
    watch = StudyWatch(str(folder))
    for name, status in ((FIRST, "finished"), (SECOND, "failed"), (THIRD, "diverged")):
        record = {"format": 2, "status": status, "run_id": name, "row": {"seed": 1}, "problem": f"it {status}"}
        (_begin(folder, name, _row(0)) / "record.json").write_text(json.dumps(record))
    found = watch.read()
    assert [run.status for run in found.runs] == ["finished", "failed", "diverged"]
    assert found.runs[1].problem == "it failed"
    assert found.done
    # The same command tries the failed run again.
    (folder / "runs" / SECOND / "record.json").unlink()
    assert not watch.read().done


def test_a_run_that_writes_nothing_any_more_is_quiet(folder: Path) -> None:
    run = _begin(folder, FIRST, _row(0))
    long_ago = time.time() - 2 * QUIET_SECONDS
    for path in run.iterdir():
        os.utime(path, (long_ago, long_ago))
    assert StudyWatch(str(folder)).read().runs[0].status == "quiet"


@pytest.mark.parametrize("line", ["null", "[1]", "{", '{"step": "x"}', '{"step": -1, "epoch": null, "layers": 3}'])
def test_a_damaged_history_is_a_problem_of_its_run_alone(folder: Path, line: str) -> None:
    _begin(folder, FIRST, line + "\n")
    _begin(folder, SECOND, _row(0))
    first, second, _ = StudyWatch(str(folder)).read().runs
    assert "history.jsonl:1" in first.problem
    assert (second.problem, second.series["cka_mean"]) == ("", [0.95])


def test_a_study_in_an_object_store_is_watched_while_it_runs(folder: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(folder / "study.json"), "/bucket/w/study.json")
    with StudyWatch("memory://bucket/w") as watch:
        assert watch.read().counts() == {"waiting": 3}
        base = f"/bucket/w/runs/{FIRST}"
        store.pipe_file(f"{base}/settings.json", b"{}")
        store.pipe_file(f"{base}/history.jsonl", _row(0, 1.0).encode())
        assert watch.read().runs[0].series["cka_mean"] == [1.0]
        store.pipe_file(f"{base}/history.jsonl", (_row(0, 1.0) + _row(10, 0.7)).encode())
        assert watch.read().runs[0].series["cka_mean"] == [1.0, 0.7]
    with pytest.raises(StudyFolderError, match="no study there"):
        StudyWatch("memory://bucket/nothing")


def test_the_table_fits_its_terminal_and_keeps_names_whole(folder: Path) -> None:
    rows = "".join(
        _row(
            step, 1 - step / 100, val_accuracy=step / 50, monitor_zero_shot_retention_pct=90.0, entropy_change_pct=-1.0
        )
        for step in range(0, 50, 10)
    )
    _begin(folder, FIRST, rows)
    study = StudyWatch(str(folder), [parse_condition("cka_mean<0.5", ["cka_mean"])]).read()
    for width in (60, 80, 120, 200):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(watch_table(study, console))
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= width
        assert FIRST in text
        assert "accuracy" in text
        assert "!" not in text
    assert "▁" in text


def test_sparklines_and_curves_keep_the_order_of_values() -> None:
    assert sparkline([3.0, 1.0, 2.0], 8) == "█▁▄"
    assert sparkline([1.0] * 20, 5) == "▁" * 5
    drawn = curve([0.0, 1.0], threshold=0.5)
    assert drawn is not None
    (_, low), (_, high) = (map(float, point.split(",")) for point in drawn["points"].split())
    assert high < drawn["threshold"] < low, "up is less in SVG"
    assert curve([1.0]) is None


def test_the_page_asks_nothing_of_the_network_and_escapes_what_it_shows(folder: Path, tmp_path: Path) -> None:
    _begin(folder, FIRST, _row(0, 1.0) + _row(10, 0.8))
    study = StudyWatch(str(folder), [parse_condition("cka_mean<0.9", ["cka_mean"])]).read()
    study.runs[1].problem = "<script>alert(1)</script>"
    page = tmp_path / "deep" / "watch.html"
    write_watch_page(study, page, every=7, thresholds={"cka_mean": 0.9})
    text = page.read_text()
    assert '<meta http-equiv="refresh" content="7">' in text
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"(?:src|href)=|https?:", text)
    assert text.count("<polyline") == 1
    assert text.count("<line ") == 1
    assert list(page.parent.iterdir()) == [page]
    for run in study.runs:
        run.status = "finished"
    write_watch_page(study, page, every=7)
    assert "refresh" not in page.read_text()


def test_the_command_watches_a_study_to_its_end(tmp_path: Path) -> None:
    console = StudyConsole(console=Console(file=io.StringIO()))
    with ThreadPoolExecutor(1) as threads:
        driver = threads.submit(run_study, study_of(1, "w"), tmp_path / "s", MadeRuns(tmp_path, pause=0.2), console)
        while not (tmp_path / "s" / "study.json").exists():
            assert not driver.done() or driver.result()
            time.sleep(0.02)
        found = CliRunner().invoke(
            app, ["watch", str(tmp_path / "s"), "--every", "1", "--html", str(tmp_path / "w.html")]
        )
        assert driver.result().count("finished") == 1
    assert found.exit_code == 0, found.output
    assert "w: 1 finished" in found.output
    assert "all runs have ended" in (tmp_path / "w.html").read_text()


def test_an_unknown_signal_gets_one_near_match(folder: Path) -> None:
    found = CliRunner().invoke(app, ["watch", str(folder), "--once", "--threshold", "cka<0.9"])
    assert isinstance(found.exception, ValueError)
    assert str(found.exception).endswith("there is no number `cka`; did you mean `cka_mean`?")
