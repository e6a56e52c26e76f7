"""The drift in W&B, MLflow and Trackio, read back from where each of them keeps it; offline, and skipped where not installed."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attndrift.study.record import differing_settings
from attndrift.study.settings import RunSettings

Logged = dict[int, float]
"""CKA by step."""


def _records(path: Path) -> Iterator[bytes]:
    """The records of an offline file of W&B: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def _from_wandb(folder: Path) -> Logged:
    from wandb.proto import wandb_internal_pb2 as messages

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    found: Logged = {}
    for data in _records(path):
        record = messages.Record.FromString(data)
        if record.WhichOneof("record_type") != "history":
            continue
        values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if "train/drift/cka_mean" in values:
            step = values.get("train/global_step", values["_step"])
            found[int(float(step))] = float(values["train/drift/cka_mean"])
    return found


def _from_mlflow(folder: Path) -> Logged:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "drift"]
    (run,) = client.search_runs([experiment.experiment_id])
    name = next(name for name in run.data.metrics if name.endswith("drift/cka_mean"))
    return {one.step: one.value for one in client.get_metric_history(run.info.run_id, name)}


def _from_trackio(folder: Path) -> Logged:
    def asked(command: str) -> Any:
        environment = os.environ | {"TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1"}
        line = [sys.executable, "-m", "trackio.cli", *command.split(), "--json"]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    (run,) = asked("list runs --project drift")["runs"]
    run = run if isinstance(run, str) else run["name"]

    def values(metric: str) -> dict[int, float]:
        found = asked(f"get metric --project drift --run {run} --metric {metric}")["values"]
        return {row["step"]: row["value"] for row in found}

    logged = values("train/drift/cka_mean")
    if "train/global_step" not in asked(f"list metrics --project drift --run {run}")["metrics"]:
        return logged
    # The `step` of a trainer's rows counts what was logged; the trainer logs its steps beside.
    steps = values("train/global_step")
    return {int(steps[count]): value for count, value in logged.items()}


READERS: dict[str, Callable[[Path], Logged]] = {
    "wandb": _from_wandb,
    "mlflow": _from_mlflow,
    "trackio": _from_trackio,
}


def _environment(folder: Path) -> dict[str, str]:
    """Everything of a tracker in ``folder``, and nothing asked of a network."""
    here = Path(__file__).parent
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "WANDB_MODE": "offline", "WANDB_DIR": str(folder), "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip


SCRIPT = """
import json, sys
from pathlib import Path
import torch
from training_loops import Classifier, trainer_of
from attndrift.models import load_model
from attndrift.callbacks import DriftCallback
from attndrift.drift import DriftMonitor

folder, tracker = Path(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
model = Classifier(load_model("config:tiny"))
images = torch.randn(12, 3, 28, 28, generator=torch.Generator().manual_seed(1))
callback = DriftCallback(DriftMonitor(model, images), every=2, echo=None)
options = {"report_to": tracker, "run_name": "drift", "learning_rate": 1e-2, "project": "drift", "trackio_static_space_id": False}
trainer_of(model, images, folder / "trainer", callback, **options).train()
(folder / "drift.json").write_text(json.dumps({step: float(drift.cka_mean) for step, drift in callback.drift}))
"""


@pytest.mark.filterwarnings("ignore")  # what the trackers' own dependencies warn of is no concern of this test
@pytest.mark.parametrize("tracker", READERS)
def test_a_tracker_gets_the_drift_through_the_trainers_own_logging(tracker: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed (pip install {tracker}); the drift in it is not tested")
    environment = _environment(tmp_path) | {"WANDB_PROJECT": "drift", "MLFLOW_EXPERIMENT_NAME": "drift"}
    # In a process of its own: trackers leave threads, servers and settings behind.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), tracker],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    measured = {int(step): value for step, value in json.loads((tmp_path / "drift.json").read_text()).items()}
    assert list(measured) == [0, 2, 4, 6]
    assert READERS[tracker](tmp_path) == pytest.approx(measured, abs=1e-9)


STUDY = """
name: drift
shared:
  model: embedded
  dataset: tiles
  train_per_class: 4
  validation_per_class: 2
  probe_size: 20
  test_limit: 20
  epochs: 2
  batch_size: 20
  learning_rate: 1e-3
  transfer: [objects]
  transfer_limit: 100
  monitor_zero_shot_images: 100
  evaluations_per_epoch: 1
  map_images: 0
  threads: 1
runs:
  - {experiment: drift, method: full, guard: cka_mean, guard_at_least: 0.9999}
"""


def _from_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]} | {
        tag: [(one.step, 0.0) for one in events.Tensors(tag)] for tag in events.Tags()["tensors"]
    }


def _ran(folder: Path, report_to: str) -> tuple[Path, str]:
    """A study of one guarded run, through the command line, and what was printed."""
    (folder / "study.yaml").write_text(STUDY)
    command = ["run", "study.yaml", "--output", "out", "--report-to", report_to]
    done = subprocess.run(
        [sys.executable, "-m", "attndrift", *command],
        env=_environment(folder), cwd=folder, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    (run,) = (folder / "out" / "runs").iterdir()
    return run, done.stderr


@pytest.mark.slow
@pytest.mark.ci("study")
def test_tensorboard_has_retention_from_the_pretrained_model_on_and_what_the_guard_did(tmp_path: Path) -> None:
    run, printed = _ran(tmp_path, "tensorboard")
    logged = _from_tensorboard(run / "tensorboard")
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    for column in ("monitor_zero_shot_retention_pct", "val_accuracy"):
        known = [(row["step"], row[column]) for row in rows if row.get(column) is not None]
        assert dict(logged[f"train/{column}"]) == pytest.approx(dict(known))
    assert logged["train/monitor_zero_shot_retention_pct"][0] == (0, 100.0)
    assert logged["alert"], "the guard acted"
    assert "tensorboard --logdir out/runs" in printed
    lines = [line for line in printed.splitlines() if line.strip().startswith(f"{run.name}: step ")]
    assert len(lines) == len(rows) - 1, "without a terminal, one line an evaluation"
    assert all(word in lines[-1] for word in ("accuracy ", "retention ", "CKA "))


@pytest.mark.filterwarnings("ignore")  # as above
@pytest.mark.parametrize("tracker", READERS)
def test_a_whole_study_reports_to_a_tracker_grouped_by_its_name(tracker: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed (pip install {tracker}); studies in it are not tested")
    run, _ = _ran(tmp_path, tracker)
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert READERS[tracker](tmp_path) == pytest.approx({row["step"]: row["cka_mean"] for row in rows}, abs=1e-6)


def test_a_study_goes_on_with_other_trackers_and_with_no_other_setting_changed() -> None:
    begun = RunSettings(dataset="tiles", trackers=("tensorboard",))
    assert not differing_settings(begun.to_json(), begun.model_copy(update={"trackers": ("wandb", "mlflow")}))
    assert list(differing_settings(begun.to_json(), begun.model_copy(update={"epochs": 9}))) == ["epochs"]
