"""The callback of Lightning (``pip install attndrift[lightning]``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError as error:
        raise ImportError(
            "LightningDriftCallback needs Lightning, which is not installed: pip install attndrift[lightning]"
        ) from error
from tqdm.auto import tqdm

from attndrift.drift.alerts import Alert, AlertEvent
from attndrift.drift.drift import Drift
from attndrift.drift.monitor import DriftMonitor
from attndrift.drift.recording import Existing
from attndrift.drift.watch import DriftWatch
from attndrift.trackers import scalars

if TYPE_CHECKING:
    from attndrift.guard.guard import Guard


class LightningDriftCallback(Callback):
    """Measures drift during ``lightning.Trainer.fit`` and passes it to the trainer's loggers.

    ::

        monitor = DriftMonitor(module.clip, probe_images)
        Trainer(callbacks=[LightningDriftCallback(monitor, every=50)]).fit(module, loader)

    Measures at the start, every ``every`` optimiser steps and at the end. The means are also among the trainer's
    ``callback_metrics`` (``drift/cka_mean``, ...), for ``ModelCheckpoint`` and ``EarlyStopping``. A preservation loss needs no
    argument here: ``return loss + self.preserve()`` in ``training_step`` is all.

    Args:
        monitor, every, alerts, folder, run, existing, guard, echo: as for :class:`~attndrift.drift.DriftWatch`.

    Attributes:
        watch: the :class:`~attndrift.drift.DriftWatch` underneath.
        drift, alerts: (step, drift) of every measurement, and every alert that has fired.
    """

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
            monitor, every, alerts=alerts, folder=folder, run=run, existing=existing, guard=guard, echo=echo
        )
        self.guard = guard
        self._stored: dict[str, Any] | None = None
        self._measured = self._stepped = -1

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
        self.watch.watch_model(pl_module)
        if self.guard is not None:
            if self._stored is not None:
                self.guard.load_state_dict(self._stored)
            self.guard.start()
            self._stepped = trainer.global_step
        self.watch.describe(epochs=None if trainer.max_epochs in (None, -1) else float(trainer.max_epochs))
        self._measure(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure where a measurement is due; with gradient accumulation, once a step."""
        if self.guard is not None and trainer.global_step != self._stepped:
            self._stepped = trainer.global_step
            self.watch.guard_step(self._stepped, _epochs(trainer))
            trainer.should_stop = trainer.should_stop or self.guard.should_stop
        if self.watch.due(trainer.global_step) and trainer.global_step != self._measured:
            means = self._measure(trainer, pl_module)
            pl_module.log_dict(means, logger=False, on_step=True, on_epoch=False, batch_size=1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the last state and complete the tables."""
        self.watch.guard_finish(trainer.global_step, _epochs(trainer))
        if trainer.global_step != self._measured and not self.watch.should_stop:
            self._measure(trainer, pl_module)
        self.watch.finish()

    def state_dict(self) -> dict[str, Any]:
        """The guard's state, for Lightning's checkpoints."""
        return {} if self.guard is None else {"guard": self.guard.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the guard's state from a checkpoint; it goes on once the weights are loaded too."""
        self._stored = state_dict.get("guard")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Complete the tables of a training that ended with an error."""
        self.watch.finish(status="failed")

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        step = self._measured = trainer.global_step
        drift = self.watch.measure(step, _epochs(trainer))
        if self.watch.should_stop:
            trainer.should_stop = True
        if drift is None:
            return {}
        logged = scalars(drift.row())
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=step)
        return {name: value for name, value in logged.items() if name.startswith("drift/")}


def _epochs(trainer: Trainer) -> float:
    batches = trainer.num_training_batches
    if not isinstance(batches, int) or batches == 0:
        return float(trainer.current_epoch)
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed / batches
