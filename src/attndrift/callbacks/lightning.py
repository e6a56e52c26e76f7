"""The callback of Lightning (``pip install "attndrift[lightning]"``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attndrift.extras import install_line

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import Checkpoint
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
        from pytorch_lightning.callbacks import Checkpoint
    except ImportError as error:
        raise ImportError(
            f"LightningDriftCallback needs Lightning, which is not installed: {install_line('lightning')}"
        ) from error
from tqdm.auto import tqdm

from attndrift.drift.alerts import Alert, AlertEvent
from attndrift.drift.drift import Drift
from attndrift.drift.monitor import DriftMonitor
from attndrift.drift.watch import DriftWatch
from attndrift.models.pickling import Picklable
from attndrift.trackers import scalars

if TYPE_CHECKING:
    from attndrift.drift.recording import Existing
    from attndrift.guard.guard import Guard


class LightningDriftCallback(Picklable, Callback):
    """Measures drift during ``lightning.Trainer.fit`` and passes it to the trainer's loggers.

    ::

        monitor = DriftMonitor(module.clip, probe_images)
        Trainer(callbacks=[LightningDriftCallback(monitor, every=50)]).fit(module, loader)

    Measures at the start, every ``every`` optimiser steps and at the end; what other callbacks put into the model at the
    end, as an average of its weights, is measured too. The means are also among the trainer's ``callback_metrics``
    (``drift/cka_mean``, ...), for ``ModelCheckpoint`` and ``EarlyStopping``. A preservation loss needs no argument here:
    ``return loss + self.preserve()`` in ``training_step`` is all.

    The loggers get a measurement under the step that Lightning logs the same batch under, which counts batches from 0.
    ``drift/optimizer_step`` beside it is the step of the tables, which counts optimizer steps that are done.

    Args:
        monitor, every, alerts, folder, run, existing, guard, echo: as for :class:`~attndrift.drift.DriftWatch`.

    Attributes:
        watch: the :class:`~attndrift.drift.DriftWatch` underneath.
        drift, alerts: (step, drift) of every measurement, and every alert that has fired.
    """

    _left_out = ("_trainer",)

    def __init__(
        self,
        monitor: DriftMonitor,
        every: int | Collection[int] = 100,
        *,
        alerts: Sequence[Alert] = (),
        folder: str | os.PathLike[str] | None = None,
        run: Mapping[str, Any] | None = None,
        existing: Existing = "refuse",
        guard: Guard | None = None,
        echo: Callable[[str], Any] | None = tqdm.write,
    ) -> None:
        self.watch = DriftWatch(
            monitor, every, alerts=alerts, folder=folder, run=run, existing=existing, guard=guard,
            on_drift=self._log, echo=echo,
        )  # fmt: skip
        self.guard = guard
        self._stored: dict[str, Any] | None = None
        self._trainer: Trainer | None = None
        self._stepped, self._counted = -1, 1

    @property
    def drift(self) -> list[tuple[int, Drift]]:
        """(step, drift) of every measurement so far."""
        return self.watch.drift

    @property
    def alerts(self) -> list[AlertEvent]:
        """Every alert that has fired so far."""
        return self.watch.alerts

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure where training starts from."""
        self._trainer, self._stepped = trainer, trainer.global_step
        _move_last(trainer, self)
        self.watch.watch_model(pl_module)
        if self.guard is not None and self._stored is not None:
            self.guard.load_state_dict(self._stored)
        self.watch.record.describe(epochs=None if trainer.max_epochs in (None, -1) else float(trainer.max_epochs))
        self.watch.start(trainer.global_step, _epochs(trainer))
        self._stop(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure where a measurement is due; with gradient accumulation, once a step."""
        if trainer.global_step == self._stepped:
            return
        self._stepped = trainer.global_step
        # Lightning counts a batch after its callbacks were called.
        self._counted = 0
        drift = self.watch.step(trainer.global_step, _epochs(trainer))
        self._counted = 1
        if drift is not None:
            pl_module.log_dict(scalars(drift.values()), logger=False, on_step=True, on_epoch=False, batch_size=1)
        self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the last state and complete the tables."""
        self.watch.finish(trainer.global_step, _epochs(trainer))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Measure the state that remains, where the module itself has replaced the weights since."""
        if self._trainer is not None and self.watch.record.status == "finished":
            self.watch.finish(trainer.global_step, _epochs(trainer))
        self._trainer = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the tables, so that a training that is resumed from this checkpoint finds all its rows."""
        self.watch.record.write()

    def state_dict(self) -> dict[str, Any]:
        """The guard's state, for Lightning's checkpoints."""
        return {} if self.guard is None else {"guard": self.guard.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the guard's state from a checkpoint; it goes on once the weights are loaded too."""
        self._stored = state_dict.get("guard")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Complete the tables of a training that ended with an error."""
        self.watch.finish(status="failed")

    def _stop(self, trainer: Trainer) -> None:
        stopped = self.watch.should_stop or (self.guard is not None and self.guard.should_stop)
        trainer.should_stop = trainer.should_stop or stopped

    def _log(self, step: int, epoch: float | None, drift: Drift) -> None:
        if self._trainer is None:
            return
        batches = self._trainer.fit_loop.epoch_loop._batches_that_stepped
        logged = scalars(drift.row()) | {"drift/optimizer_step": float(step)}
        for logger in self._trainer.loggers:
            logger.log_metrics(logged, step=max(0, batches - self._counted))


def _move_last(trainer: Trainer, callback: Callback) -> None:
    """Call ``callback`` after the others, and before those that save checkpoints, which may ask for what it has measured."""
    others = [one for one in trainer.callbacks if one is not callback]
    count = sum(not isinstance(one, Checkpoint) for one in others)
    # A new list: the trainer is going through the present one.
    trainer.callbacks = [*others[:count], callback, *others[count:]]


def _epochs(trainer: Trainer) -> float:
    batches = trainer.num_training_batches
    if not isinstance(batches, int) or batches == 0:
        return float(trainer.current_epoch)
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed / batches
