"""W&B, MLflow and Trackio, through the tracker classes of ``accelerate``; the runs of a study are one group there.

Addresses, keys and offline modes are those of each library (``WANDB_MODE``, ``MLFLOW_TRACKING_URI``, ``TRACKIO_DIR``).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from attndrift.files import read_json, write_json
from attndrift.trackers import TRACKERS, TrackedRun, Tracker, Writer

# Imports inside functions: these packages take time to load, which only who needs them pays.

KNOWN_RUNS = "trackers.json"
"""Of a run: the names that services have given it, so that a training that goes on is not another run there."""


class ServiceWriter(Writer):
    """One run in a service. ``options``: of ``accelerate``'s tracker class called ``name``."""

    def __init__(self, name: str, run: TrackedRun, /, **options: Any) -> None:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"tracker `{name}`: the package is not installed; pip install {name}")
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self.name = name
        self._tracker = LOGGER_TYPE_TO_CLASS[name](**options)
        self._tracker.start()
        self._tracker.store_init_configuration({key: _plain(value) for key, value in run.settings.items()})

    @property
    def run(self) -> Any:
        """The run as the library has it."""
        return self._tracker.tracker

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the numbers of ``step``, under ``train/`` as in TensorBoard."""
        self._tracker.log({f"train/{name}": value for name, value in scalars.items()}, step=step)

    def alert(self, step: int, title: str, text: str) -> None:
        """An alert of the service; in MLflow, which has none, a tag of the run."""
        if self.name == "wandb":
            self.run.alert(title=title, text=f"step {step}: {text}")
            return
        library = importlib.import_module(self.name)
        if self.name == "mlflow":
            library.set_tag("alert", f"step {step}: {title}: {text}")
        elif hasattr(library, "alert"):  # an older Trackio has none
            library.alert(title=title, text=f"step {step}: {text}")

    def close(self) -> None:
        """End the run, and wait until all is sent."""
        self._tracker.finish()


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value, default=str)


def _open_wandb(run: TrackedRun) -> Writer:
    with _remembered("wandb", run) as known:
        name = known.setdefault("id", uuid.uuid4().hex[:12])
    folder = os.environ.get("WANDB_DIR", str(run.folder))
    return ServiceWriter(
        "wandb", run, run_name=os.environ.get("WANDB_PROJECT", run.study), name=run.run_id, group=run.study, id=name,
        resume="allow", dir=folder, reinit="finish_previous",
    )  # fmt: skip


def _open_mlflow(run: TrackedRun) -> Writer:
    with _remembered("mlflow", run) as known:
        writer = ServiceWriter(
            "mlflow", run, experiment_name=run.study, run_name=run.run_id, run_id=known.get("id"),
            tags={"study": run.study},
        )  # fmt: skip
        known["id"] = writer.run.info.run_id
    return writer


def _open_trackio(run: TrackedRun) -> Writer:
    return ServiceWriter(
        "trackio", run, run_name=os.environ.get("TRACKIO_PROJECT", run.study), name=run.run_id, group=run.study,
        resume="allow" if run.step else "never",
    )  # fmt: skip


class _remembered:
    """What is known of a run in a service: read, and written when the block ends. A new training knows nothing."""

    def __init__(self, service: str, run: TrackedRun) -> None:
        self._service, self._path = service, run.folder / KNOWN_RUNS
        self._all: dict[str, dict[str, str]] = {}
        if run.step:
            with suppress(OSError, ValueError, AttributeError):
                self._all = {key: dict(value) for key, value in read_json(self._path).items()}

    def __enter__(self) -> dict[str, str]:
        return self._all.setdefault(self._service, {})

    def __exit__(self, *_: object) -> None:
        write_json(self._path, self._all)


def _register(name: str, label: str, open: Callable[[TrackedRun], Writer], show: str = "") -> None:
    TRACKERS.register(Tracker(name, label, open, package=name, show=show))


_register("wandb", "Weights & Biases", _open_wandb)
_register("mlflow", "MLflow", _open_mlflow, "mlflow ui")
_register("trackio", "Trackio", _open_trackio, "trackio show --project {study}")
