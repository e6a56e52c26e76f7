"""What others do to a study folder while a driver is at work in it: other settings, and folders that go."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_runs import MadeRuns
from rich.console import Console

from attndrift.cli.progress import StudyConsole
from attndrift.cli.run_table import StudyTable
from attndrift.files import read_json, write_json
from attndrift.study.launchers.processes import ProcessLauncher
from attndrift.study.loading import parse_study
from attndrift.study.runner import StudyFolderConflict, run_study
from attndrift.study.settings import NamedRun, Study


def _study(epochs: tuple[int, ...] = (20, 20, 20)) -> Study:
    runs = "".join(f"  - {{seed: {seed}, epochs: {number}}}\n" for seed, number in enumerate(epochs, 1))
    return parse_study(f"name: three\nshared: {{dataset: tiles, threads: 1}}\nruns:\n{runs}", where="f")


IDS = [run.run_id for run in _study().runs]


def _console() -> StudyConsole:
    return StudyConsole(console=Console(file=io.StringIO()))


class Executor:
    """Finishes every run after ``during`` was called in one of them; notes the epochs that each was executed with."""

    def __init__(self, during: Callable[[Path], object] | None = None, at: int = 1) -> None:
        self.during, self.at = during, at
        self.epochs: dict[int, int] = {}

    def __call__(self, run: NamedRun, folder: Path, reporter: Any) -> dict[str, Any]:
        seed = run.settings.seed
        self.epochs[seed] = run.settings.epochs
        reporter.phase("counting")
        if self.during is not None and seed == self.at:
            self.during(folder)
        with (folder / "history.jsonl").open("w") as file:
            file.write('{"step": 0, "epoch": 0.0, "entropy": 3.5}\n')
        row = {"dataset": "tiles", "method": "full", "seed": seed, "status": "finished"}
        return {"status": "finished", "run_id": run.run_id, "row": row}


# -- other settings --------------------------------------------------------------------------------


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ((20, 5, 20), "_s2 other settings: `epochs` was 20, now 5"),  # not begun
        ((20, 20, 5), "_s3 other settings: `epochs` was 20, now 5"),
        ((5, 20, 20), "_s1 was started with other settings: `epochs` was 20, now 5"),  # under way
        ((5, 5, 5), "_s1 was started with other settings"),
        ((20, 20, 5, 7), "_s3 other settings"),  # and one more run
    ],
)
def test_a_second_driver_of_other_settings_is_refused_and_the_first_one_ends_its_study(
    tmp_path: Path, theirs: tuple[int, ...], said: str
) -> None:
    other = Executor()

    def second(_: Path) -> None:
        with pytest.raises(StudyFolderConflict, match=said):
            run_study(_study(theirs), tmp_path / "s", other, _console())

    outcome = run_study(_study(), tmp_path / "s", Executor(second), _console())
    assert outcome.count("finished") == 3
    assert other.epochs == {}
    assert [run["settings"]["epochs"] for run in read_json(tmp_path / "s" / "study.json")["runs"]] == [20, 20, 20]
    assert not list((tmp_path / "s").glob(".driver-*"))


def test_a_second_driver_of_the_same_settings_shares_the_study_and_may_add_runs(tmp_path: Path) -> None:
    other = Executor()
    first = Executor(lambda _: run_study(_study((20, 20, 20, 7)), tmp_path / "s", other, _console()))
    run_study(_study(), tmp_path / "s", first, _console())
    assert (first.epochs, other.epochs) == ({1: 20}, {2: 20, 3: 20, 4: 7})


def _in_study(run: str, **changes: Any) -> Callable[[Path], None]:
    """Another driver, whose lock this file system does not show, has written ``study.json``."""

    def change(folder: Path) -> None:
        path = folder.parent.parent / "study.json"
        content = read_json(path)
        for one in content["runs"]:
            if one["run_id"] == run:
                one["settings"] |= changes
        write_json(path, content)

    return change


def _begun(run: str) -> Callable[[Path], None]:
    """Another driver has begun a run with other settings, and saved a state of it."""

    def begin(folder: Path) -> None:
        there = folder.parent / run
        (there / "resume" / "step-3").mkdir(parents=True)
        content = read_json(folder / "settings.json")
        write_json(there / "settings.json", content | {"settings": content["settings"] | {"seed": 2, "epochs": 5}})

    return begin


def _done(run: str) -> Callable[[Path], None]:
    def end(folder: Path) -> None:
        _begun(run)(folder)
        content = {"format": 2, "status": "finished", "run_id": run, "row": {"seed": 2}}
        write_json(folder.parent / run / "record.json", content)

    return end


def _without(run: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        path = folder.parent.parent / "study.json"
        content = read_json(path)
        write_json(path, content | {"runs": [one for one in content["runs"] if one["run_id"] != run]})

    return remove


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "of a run not begun": (_in_study(IDS[1], epochs=5), "`epochs` was 5, now 20"),
    "of another kind": (_in_study(IDS[1], loss="l2_sp:0.5"), "`loss` was 'l2_sp:0.5', now"),
    "of a run with states": (_begun(IDS[1]), "`epochs` was 5, now 20"),
    "of a run that is done": (_done(IDS[1]), "`epochs` was 5, now 20"),
    "a run removed": (_without(IDS[1]), "has no run"),
    "no study any more": (lambda folder: (folder.parent.parent / "study.json").unlink(), "is gone"),
    "study of another form": (lambda folder: void((folder.parent.parent / "study.json").write_text("null")), "no run"),
}


def void(_: object) -> None: ...


@pytest.mark.parametrize("what", CHANGES)
def test_a_driver_stops_where_another_one_has_changed_the_study(tmp_path: Path, what: str) -> None:
    change, said = CHANGES[what]
    first = Executor(change)
    with pytest.raises(StudyFolderConflict, match=said):
        run_study(_study(), tmp_path / "s", first, _console())
    assert first.epochs == {1: 20}, "the run under way ends, and no other one begins"


def test_a_driver_of_several_processes_stops_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    table = StudyTable(console=Console(file=io.StringIO(), width=140))
    with pytest.raises(StudyFolderConflict, match="`epochs` was 5, now 20"):
        run_study(_study(), tmp_path / "s", ChangingRuns(tmp_path, pause=0.01), table, engine=ProcessLauncher(1))


class ChangingRuns(MadeRuns):
    """The first of its runs changes the second one in ``study.json``."""

    def __call__(self, run: NamedRun, folder: Path, reporter: Any) -> dict[str, Any]:
        _in_study(next(name for name in IDS if name != run.run_id), epochs=5)(folder)
        _in_study(next(name for name in reversed(IDS) if name != run.run_id), epochs=5)(folder)
        return super().__call__(run, folder, reporter)


def test_settings_may_change_where_no_driver_is_alive_and_the_run_has_not_begun(tmp_path: Path) -> None:
    def stop(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(_study(), tmp_path / "s", Executor(stop), _console())
    # A driver that was killed leaves its file, which nobody holds.
    (tmp_path / "s" / ".driver-00000000.lock").touch()
    second = Executor()
    run_study(_study((20, 5, 20)), tmp_path / "s", second, _console())
    assert second.epochs == {1: 20, 2: 5, 3: 20}
    assert not list((tmp_path / "s").glob(".driver-*"))


@pytest.mark.slow
@pytest.mark.ci("kill")
def test_the_command_of_the_second_driver_ends_with_exit_code_1(tiny_clip: Path, tmp_path: Path) -> None:
    def start(epochs: int) -> subprocess.Popen[str]:
        path = tmp_path / f"{epochs}.yaml"
        path.write_text(
            f"name: shared\nshared: {{model: '{tiny_clip}', dataset: digits, train_per_class: 4, validation_per_class: 1, "
            "probe_size: 10, test_limit: 10, batch_size: 20, monitor_zero_shot_images: 0, map_images: 1, threads: 1}\n"
            f"runs: [{{epochs: 60, seed: 1}}, {{epochs: {epochs}, seed: 2}}]\n"
        )
        command = [sys.executable, "-m", "attndrift", "run", str(path), "-o", str(tmp_path / "s")]
        environment = os.environ | {"ATTNDRIFT_CACHE": str(tmp_path / "cache")}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    first = start(2)
    while not list(tmp_path.glob("s/runs/*/settings.json")):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    second = start(3)
    said = " ".join(second.communicate(timeout=300)[0].split())
    assert second.returncode == 1, said
    assert "`epochs` was 2, now 3" in said
    said = first.communicate(timeout=300)[0]
    assert first.returncode == 0, said
    assert sorted(json.loads(p.read_text())["settings"]["epochs"] for p in tmp_path.glob("s/runs/*/record.json")) == [
        2,
        60,
    ]


# -- folders that go -------------------------------------------------------------------------------

GONE: dict[str, Callable[[Path], object]] = {
    "removed": shutil.rmtree,
    "moved": lambda folder: folder.rename(folder.parent.parent / "elsewhere"),
    "removed and made anew": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "replaced by a link": lambda folder: (folder.rename(folder.parent / ".aside"), folder.symlink_to(folder.parent)),
    "replaced by a file": lambda folder: (shutil.rmtree(folder), folder.touch(), folder.unlink()),
    "the folder of all runs": lambda folder: shutil.rmtree(folder.parent),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("how", GONE)
def test_a_run_whose_folder_goes_has_failed_and_the_others_go_on(tmp_path: Path, how: str) -> None:
    outcome = run_study(_study(), tmp_path / "s", Executor(GONE[how], at=2), _console())
    assert [outcome.statuses[name] for name in IDS[1:]] == ["failed", "finished"]
    if how == "replaced by a link":
        return
    record = read_json(tmp_path / "s" / "runs" / IDS[1] / "record.json")
    assert "was removed, moved or replaced while the run was under way" in record["problem"]
    again = run_study(_study(), tmp_path / "s", Executor(), _console())
    assert again.statuses[IDS[1]] == "finished"


def test_a_study_folder_that_goes_ends_the_study_and_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(StudyFolderConflict, match=r"study\.json is gone: the study folder was removed or moved"):
        run_study(_study(), tmp_path / "s", Executor(lambda folder: shutil.rmtree(folder.parent.parent)), _console())
    assert not (tmp_path / "s").exists()
