"""The command line: what it prints, how it exits, and that asking for help costs nothing."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
from typer.testing import CliRunner

from attndrift.cli import catalogue
from attndrift.cli import main as cli
from attndrift.cli.main import app
from attndrift.study.loading import parse_study
from attndrift.study.storage import prepare_folder

runner = CliRunner()

STUDY = """
name: small
shared:
  model: {model}
  dataset: digits
  train_per_class: 4
  validation_per_class: 2
  probe_size: 10
  test_limit: 20
  epochs: 1
  batch_size: 20
  transfer: [objects]
  transfer_limit: 100
  threads: 1
runs:
  - {{experiment: E1, method: none}}
  - {{experiment: E2, method: full}}
"""


def _attndrift(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The whole command, entry point included, in this process: another would import everything again."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["attndrift", *arguments]),
        mock.patch.dict(os.environ),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    code = ended.value.code
    return subprocess.CompletedProcess(arguments, code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


@pytest.fixture
def study(tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTNDRIFT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "small.yaml"
    path.write_text(STUDY.format(model=tiny_clip))
    return path


COMMANDS = [
    "baseline",
    "calibrate",
    "run",
    "check",
    "convert",
    "collect",
    "import",
    "analyze",
    "demo",
    "list",
    "show",
    "watch",
    "interpolate",
    "soup",
    "verify",
    "figures",
    "report",
    "compare",
    "fetch",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Example:" in result.output
    assert f"attndrift {command}" in result.output


def test_every_command_is_listed_here() -> None:
    assert {command.name for command in app.registered_commands if command.name} | {"demo"} >= {"import", "list"}
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    groups = {group.typer_instance.info.name for group in app.registered_groups if group.typer_instance}
    assert names | groups == set(COMMANDS)


COMPUTING = {"torch", "transformers", "pandas", "numpy", "scipy", "matplotlib"}
QUICK = {
    # What -> code, and the libraries that it must not import.
    "import": ("import attndrift, attndrift.cli.main", COMPUTING),
    "list": ("import attndrift.cli.catalogue as c\nfor kind in c.KINDS.values(): kind()", COMPUTING),
    "show": ("import attndrift.cli.showing", COMPUTING),
    "analyze": ("import attndrift.analysis.storing, attndrift.cli.reporting", {"torch", "transformers", "matplotlib"}),
    "figures": ("from attndrift.figures.registry import FIGURES; list(FIGURES)", {"torch", "transformers"}),
    "report": ("from attndrift.report.registry import SECTIONS; list(SECTIONS)", {"torch", "transformers"}),
}


def test_a_quick_command_imports_no_library_that_it_does_not_need() -> None:
    """One process for all: each of them may import no more than the one after it, so that none hides another's libraries."""
    allowed = [COMPUTING - heavy for _, heavy in QUICK.values()]
    assert all(before <= after for before, after in itertools.pairwise(allowed))
    steps = ["import sys"]
    for what, (code, heavy) in QUICK.items():
        steps += [
            code,
            f"found = set({sorted(heavy)!r}) & set(sys.modules)",
            f"if found: sys.exit(f'{what}: {{found}}')",
        ]
    command = [sys.executable, "-c", "\n".join(steps)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr


def test_a_study_runs_collects_analyses_and_is_shown(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    ran = _attndrift("run", str(study), "--output", str(folder), "--json")
    assert ran.returncode == 0, ran.stderr
    assert set(json.loads(ran.stdout)["runs"].values()) == {"finished"}
    assert {"runs.parquet", "history.parquet", "layers.parquet"} <= {p.name for p in folder.iterdir()}
    again = _attndrift("run", str(study), "--output", str(folder), "--json")
    assert set(json.loads(again.stdout)["runs"].values()) == {"kept"}
    changed = _attndrift("run", str(study), "--output", str(folder), "--set", "epochs=2")
    assert changed.returncode == 1
    assert "`epochs` was 1, now 2" in changed.stderr
    assert "Traceback" not in changed.stderr
    analysed = runner.invoke(app, ["analyze", str(folder)])
    assert analysed.exit_code == 0, analysed.output
    assert (folder / "analysis.json").is_file()
    shown = runner.invoke(app, ["show", str(next((folder / "runs").glob("E2_*"))), "--json"])
    assert json.loads(shown.output)["row"]["status"] == "finished"
    listed = json.loads(runner.invoke(app, ["show", str(folder), "--json"]).output)
    assert [run["status"] for run in listed] == ["finished", "finished"]
    for width in ("70", "200"):
        printed = runner.invoke(app, ["show", str(folder)], env={"COLUMNS": width}).output
        assert f"{listed[1]['run_id']}" in printed, "names are never broken"
        assert f"{listed[1]['test_accuracy']:.1%}" in printed
    for path in folder.glob("runs/*/*"):
        os.utime(path, (0, 0))  # What changed a moment ago is read again.
    collected = runner.invoke(app, ["collect", str(folder), "--json"])
    assert json.loads(collected.output) | {"history": 0, "layers": 0, "read": []} == {
        "runs": 2, "history": 0, "layers": 0, "without_record": [], "read": [],
    }  # fmt: skip
    assert json.loads(runner.invoke(app, ["collect", str(folder), "--json"]).output)["read"] == []


def test_a_report_of_no_finished_run_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    prepare_folder(parse_study("name: s\nshared: {dataset: tiles}\nruns: [{seed: 1}]\n", where="s"), tmp_path / "s")
    run_id = json.loads((tmp_path / "s" / "study.json").read_text())["runs"][0]["run_id"]
    (tmp_path / "s" / "runs" / run_id).mkdir(parents=True)
    record = {
        "format": 2,
        "status": "failed",
        "run_id": run_id,
        "row": {"dataset": "tiles", "method": "full", "seed": 1},
    }
    (tmp_path / "s" / "runs" / run_id / "record.json").write_text(
        json.dumps({**record, "row": {**record["row"], "status": "failed"}})
    )
    found = runner.invoke(app, ["report", str(tmp_path / "s")])
    assert isinstance(found.exception, ValueError)
    assert "no run has finished" in str(found.exception)
    assert "attndrift show" in str(found.exception)
    assert not (tmp_path / "s" / "report.html").exists()
    assert not (tmp_path / "s" / "figures").exists()
    listed = runner.invoke(app, ["show", str(tmp_path / "s")])
    assert "failed" in listed.output


def test_the_dry_run_counts_and_estimates_and_writes_nothing(study: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    result = runner.invoke(app, ["run", str(study), "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    baseline, full = json.loads(result.output)
    assert (full["n_train"], full["steps"]) == (40, 2)
    assert full["trainable_parameters"] > 0
    assert baseline["trainable_parameters"] == 0
    assert full["seconds"] > 0
    assert full["memory_bytes"] > 0
    assert full["disk_bytes"] > 0
    printed = runner.invoke(app, ["run", str(study), "--dry-run"])
    assert "E2_digits_full_lr1e-5_s42" in printed.output.replace("\n", "")
    assert "estimated on this machine" in printed.output
    assert set(tmp_path.iterdir()) <= before | {tmp_path / "cache"}


def test_only_and_limit_choose_runs(study: Path) -> None:
    only = json.loads(runner.invoke(app, ["run", str(study), "--dry-run", "--json", "--only", "E2"]).output)
    assert [row["experiment"] for row in only] == ["E2"]
    limited = json.loads(runner.invoke(app, ["run", str(study), "--dry-run", "--json", "--limit", "1"]).output)
    assert [row["experiment"] for row in limited] == ["E1"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "colapse-21"], "there is no study file or preset `colapse-21`; did you mean `collapse-21`?"),
        (["run", "collapse-21", "--set", "epochs"], "key=value"),
        (["run", "collapse-21", "--dataset", "pets"], "OLD=NEW"),
        (["run", "collapse-21", "--only", "E99"], "there is no run `E99`"),
        (["collect", "."], "not a study folder"),
        (["show", "."], "not the folder of a run"),
        (["analyze", "."], "no runs.parquet here"),
        (["list", "nothing"], "there is no kind of names `nothing`; `attndrift list` shows all of them"),
        (["run", "collapse-21", "--limit", "0"], "--limit"),
        (["run", "collapse-21", "--engine", "spark"], "there is no engine `spark`"),
        (["fetch", "studies", "here"], "that is a folder, which needs no fetching"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_not_zero(arguments: list[str], expected: str) -> None:
    result = _attndrift(*arguments)
    assert result.returncode != 0
    assert expected in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr


def test_facts_read_from_source_are_those_of_the_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ["families", "figures", "sections"]
    read = {kind: catalogue.KINDS[kind]() for kind in kinds}
    monkeypatch.setattr(catalogue, "source_facts", lambda *args, **kwargs: None)
    for kind in kinds:
        registered = catalogue.KINDS[kind]()
        assert sorted(read[kind], key=lambda row: row["name"]) == sorted(registered, key=lambda row: row["name"])


def test_everything_with_a_name_is_listed() -> None:
    found = json.loads(runner.invoke(app, ["list", "--json"]).output)
    kinds = {
        "models",
        "datasets",
        "metrics",
        "methods",
        "heads",
        "losses",
        "outcomes",
        "figures",
        "launchers",
        "presets",
    }
    assert kinds <= set(found)
    assert all(rows and all(row["name"] for row in rows) for rows in found.values())
    assert {"eurosat", "pets", "cifar10", "cifar100", "objects", "tiles", "critters", "digits"} <= {
        row["name"] for row in found["datasets"]
    }
    runs = {row["name"]: row["runs"] for row in found["presets"]}
    assert runs["collapse-21"] == 23
    assert (runs["matched-rate-80"], runs["dose-response-84"]) == (80, 84)


def _planned(study: Path, *arguments: str, exit_code: int = 0) -> list[dict[str, object]]:
    result = runner.invoke(app, ["run", str(study), "--dry-run", "--json", *arguments])
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def test_the_dry_run_says_which_runs_cannot_be_and_goes_on(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study.write_text(
        study.read_text()
        + "  - {method: full, freeze_layers: 9, transfer: [nowhere]}\n"
        + "  - {method: full, seed: 1, transfer: [nowhere]}\n"
        + "  - {method: full, seed: 2, device: cuda}\n"
        + "  - {method: full, seed: 3, precision: float16}\n"
    )
    for device in ("cuda", "backends.mps"):
        monkeypatch.setattr(f"torch.{device}.is_available", lambda: False)
    _, full, frozen, nowhere, cuda, half = _planned(study, exit_code=1)
    assert "freeze_layers is 9; the model has 3 blocks" in str(frozen["note"])
    assert "there is no dataset `nowhere`" in str(nowhere["note"])
    assert "it has cpu" in str(cuda["note"])
    assert "on a CPU it is float32" in str(half["note"])
    assert full["note"] == ""
    assert cuda["seconds"] is None
    assert cuda["trainable_parameters"] == nowhere["trainable_parameters"] == full["trainable_parameters"]
    assert "at hand" in runner.invoke(app, ["run", str(study), "--dry-run"]).output.replace("\n", " ")


def test_the_dry_run_counts_classes_that_have_no_test_images(study: Path) -> None:
    assert _planned(study, "--set", "test_limit=3")[1]["total_parameters"] == _planned(study)[1]["total_parameters"]


@pytest.mark.slow
def test_the_dry_run_says_what_the_checkpoints_take(study: Path, tmp_path: Path) -> None:
    study.write_text(study.read_text() + "  - {method: linear_probe, keep: all}\n")
    planned = {str(row["run_id"]): row for row in _planned(study)}
    folder = tmp_path / "out"
    assert runner.invoke(app, ["run", str(study), "--output", str(folder)]).exit_code == 0
    for run, row in planned.items():
        kept = [path.stat().st_size for path in (folder / "runs" / run).glob("checkpoints/**/*") if path.is_file()]
        assert row["disk_bytes"] == pytest.approx(sum(kept), rel=0.15)
