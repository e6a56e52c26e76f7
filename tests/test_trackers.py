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

import pytest

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
            found[int(float(values["train/global_step"]))] = float(values["train/drift/cka_mean"])
    return found


def _from_mlflow(folder: Path) -> Logged:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "drift"]
    (run,) = client.search_runs([experiment.experiment_id])
    return {one.step: one.value for one in client.get_metric_history(run.info.run_id, "drift/cka_mean")}


def _from_trackio(folder: Path) -> Logged:
    def values(metric: str) -> dict[int, float]:
        asked = f"get metric --project drift --run drift --metric {metric} --json".split()
        environment = os.environ | {"TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "trackio.cli", *asked]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return {row["step"]: row["value"] for row in json.loads(done.stdout)["values"]}

    # Its own `step` counts what was logged; the trainer logs its steps beside.
    steps = values("train/global_step")
    return {int(steps[count]): value for count, value in values("train/drift/cka_mean").items()}


READERS: dict[str, Callable[[Path], Logged]] = {
    "wandb": _from_wandb,
    "mlflow": _from_mlflow,
    "trackio": _from_trackio,
}

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from training_loops import Classifier, trainer_of
from attndrift.models import load_clip
from attndrift.callbacks import DriftCallback
from attndrift.drift import DriftMonitor

folder, tracker = Path(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
model = Classifier(load_clip("config:tiny"))
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
    here = Path(__file__).parent
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true", "WANDB_PROJECT": "drift",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "MLFLOW_EXPERIMENT_NAME": "drift",
        "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    # In a process of its own: trackers leave threads, servers and settings behind.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), tracker],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    measured = {int(step): value for step, value in json.loads((tmp_path / "drift.json").read_text()).items()}
    assert list(measured) == [0, 2, 4, 6]
    assert READERS[tracker](tmp_path) == pytest.approx(measured, abs=1e-9)
