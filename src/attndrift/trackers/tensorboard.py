"""Scalars for TensorBoard, written by whoever logs them.

``SummaryWriter`` writes in a thread, where a full disk is said twice: by the thread as it dies, and again where
something is logged next. Here a write that fails is an error where it happens.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attndrift.trackers import TRACKERS, Tracker, Writer

# Imports inside functions: these packages take time to load, which only who needs them pays.


class ScalarWriter(Writer):
    """One event file of a run in ``folder``.

    ``step``: of the state that training goes on from, 0 for a new training. What earlier files hold of later steps is
    then dropped by whoever reads them, as it is logged again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        # Here, so that a list of trackers needs no TensorBoard.
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        if not step:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        # Readers go through the files by name.
        path = folder / f"events.out.tfevents.{time.time_ns():020d}.attndrift"
        self._records = RecordWriter(path.open("wb"))
        self._write(file_version="brain.Event:2")
        if step:
            self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write ``scalars`` of ``step`` by name, under ``train/``. Raises OSError where that cannot be done."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=f"train/{name}", simple_value=value) for name, value in scalars.items()]
        self._write(step=step, summary=Summary(value=values))

    def alert(self, step: int, title: str, text: str) -> None:
        """Write a text, which TensorBoard shows under Text."""
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        tensor = TensorProto(dtype=DT_STRING, string_val=[f"{title}: {text}".encode()])
        kind = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        self._write(step=step, summary=Summary(value=[Summary.Value(tag="alert", metadata=kind, tensor=tensor)]))

    def close(self) -> None:
        """Write what is left, and close the file. Raises OSError where that cannot be done."""
        self._records.close()

    def _write(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **event).SerializeToString())
        self._records.flush()


TRACKERS.register(
    Tracker(
        "tensorboard",
        "TensorBoard",
        lambda run: ScalarWriter(run.folder / "tensorboard", run.step),
        show="tensorboard --logdir {runs}",
    )
)
