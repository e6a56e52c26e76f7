"""Training one run: every step from a batch to a saved state, in :meth:`TrainingLoop.run`.

Precision, accumulation, clipping and several processes are ``accelerate``'s. The order of the images and their flips
are functions of (seed, epoch, position) alone, so that a run that is killed and resumed ends with the weights and the
history, bit for bit on a CPU, of one that was not.

Several processes (``torch.distributed``) share every batch: each takes its part of the images, filled up with
copies that count for nothing, and the gradients are those of the whole batch. The first process alone writes.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, gather_object, set_seed
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from attndrift.data.shuffle import EpochBatchSampler, TrainingImages, training_loader
from attndrift.drift.drift import Drift
from attndrift.files import write_text
from attndrift.guard.events import GuardEvent
from attndrift.methods.registry import HEADS
from attndrift.models.evaluation import random_state, restore_random_state
from attndrift.process_group import DivergedError, Processes
from attndrift.study.leftovers import RESUME, SCRATCH
from attndrift.study.outcomes.registry import Follower, parse_outcome
from attndrift.study.steps import (
    epoch_count,
    evaluation_steps,
    spread_steps,
    steps_per_epoch,
    total_steps,
    warmup_steps,
)
from attndrift.study.training import states as resume
from attndrift.study.training.cuda_graph import CUDAGraphStep
from attndrift.study.training.loss import BatchLoss, TrainingLoss
from attndrift.study.training.metric_buffer import MetricBuffer, Progress
from attndrift.study.training.optimizer import optimizer_of
from attndrift.study.training.plan import SHOWN, FitResult, Reporter, TrainingPlan, precision_of
from attndrift.trackers import TRACKERS, TrackedRun, Writer, scalars

STATE_SHARE = 0.05
"""Of a training's time on an accelerator, at most this goes into resumable states."""


def fit(model: nn.Module, plan: TrainingPlan, folder: Path, reporter: Reporter) -> FitResult:
    """Train ``model`` as ``plan`` says, going on from the newest undamaged state in ``folder``.

    Writes ``history.jsonl``, ``tensorboard/`` and ``resume/`` below ``folder``; checkpoints go through
    ``plan.save_weights``. A divergence does not raise: it is returned, with the history up to it.
    """
    loop = TrainingLoop(model, plan, folder, reporter)
    status, problem, last_good_step = "finished", None, None
    try:
        run = TrackedRun(folder, loop.step, plan.run_id or folder.name, plan.study, plan.settings.to_json())
        with _trackers(plan.trackers if loop.processes.first else (), run) as writers:
            try:
                loop.run(writers)
            except DivergedError as error:
                raise error.at(loop.step)  # noqa: B904 -- the same error, with the step
    except DivergedError as error:
        last_good_step = resume.step_of(resume.newest(folder / RESUME, plan.settings, reporter.say))
        status, problem = "diverged", str(error)
        reporter.say(f"diverged: {error}; last good state: step {last_good_step}")
    else:
        # Once more, whole and synced: lines that were appended may still be on their way to the disk.
        loop.write_history()
    finally:
        loop.close()
    progress = loop.progress
    return FitResult(
        status, progress.history, progress.best_accuracy, progress.selected_epoch, progress.active_fractions,
        problem, last_good_step, loop.final_drift if status == "finished" else None, loop.followers,
    )  # fmt: skip


class TrainingLoop:
    """The training of one run; :meth:`run` is the loop, everything else is what one of its lines does.

    Attributes:
        step: optimiser steps done; ``total`` of them are to be done, in ``epochs`` epochs, the last of which may be a part.
        progress: what else the run knows so far.
        final_drift: what was measured after the last step.
        followers: what outcomes of the run keep of its steps, by the outcome's text.
    """

    def __init__(self, model: nn.Module, plan: TrainingPlan, folder: Path, reporter: Reporter) -> None:
        settings = plan.settings
        self.model, self.plan, self.settings = model, plan, settings
        self.folder, self.reporter = folder, reporter
        self.processes = Processes.current()
        # An earlier attempt's states are whole from here on, and no process looks at half of one.
        self.processes.wait()
        self.steps_per_epoch = steps_per_epoch(settings, len(plan.labels))
        self.total, self.epochs = total_steps(settings, len(plan.labels)), epoch_count(settings, len(plan.labels))
        self.measured_steps = frozenset(evaluation_steps(settings, len(plan.labels)))
        self.saved_steps = spread_steps(settings, len(plan.labels), settings.checkpoints_per_epoch)
        # Before the model is changed: a state of another version is refused here.
        self.state = resume.newest(folder / RESUME, plan.settings, reporter.say)
        set_seed(settings.seed)
        if self.processes.count > 1:
            torch.manual_seed(settings.seed + self.processes.rank)  # dropout masks of its own in each process

        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer = optimizer_of(model, self.trained, settings, fused=plan.device.type in ("cpu", "cuda"))
        self.accelerator = _accelerator(precision_of(settings, plan.device), plan.device)
        self.wrapped = self.accelerator.prepare_model(model)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        warm_up = warmup_steps(settings, len(plan.labels))
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, warm_up, self.total)

        share = (lambda positions: self.processes.share(positions, 0)) if self.processes.count > 1 else None
        self.images = TrainingImages(plan.images, plan.labels, settings.seed, flip=settings.flip, share=share)
        self.loader = training_loader(self.images, settings.batch_size // settings.gradient_accumulation)
        self.loss = TrainingLoss(model, self.wrapped, plan, self.processes)
        # float16 scales its loss by what the steps before have shown, and accumulated gradients must be added to.
        self.captures = (
            settings.cuda_graphs
            and plan.device.type == "cuda"
            and self.processes.count == 1
            and settings.gradient_accumulation == 1
            and self.accelerator.scaler is None
            # What a text tower does with its tokens has not been captured yet.
            and not HEADS[settings.head].live
        )
        self.graph: CUDAGraphStep[BatchLoss] | None = None

        asked = ((text, *parse_outcome(text)) for text in settings.outcomes)
        found = ((text, outcome.follow(value, model)) for text, outcome, value in asked)
        self.followers: dict[str, Follower] = {text: follower for text, follower in found if follower is not None}

        self.final_drift: Drift | None = None
        self._last_state: tuple[float, float] | None = None
        self._line = ""
        self.step = resume.step_of(self.state)
        self.progress = Progress([plan.baseline])
        if self.state is not None:
            self.progress = resume.read_progress(self.state)
            reporter.say(f"goes on from {self.state.name}")
        self.metrics = MetricBuffer(self.progress, plan.device, self.processes, self.loss.reporting)
        self.write_history()

    def run(self, writers: Sequence[Writer]) -> None:
        """Every step of the run, from the one after the state that it goes on from."""
        accelerator, optimizer, settings, guard = self.accelerator, self.optimizer, self.settings, self.plan.guard
        if self.state is not None:
            self.load_state(self.state)
        if not self.step:
            # Curves begin with the pretrained model.
            _log(writers, 0, scalars(self.plan.baseline))
        if guard is not None:
            guard.on_event = partial(_log_guard, writers)
            guard.start(self.step)
        for epoch in range(self.step // self.steps_per_epoch, self.epochs):
            # Once an epoch: to tell each of some hundred modules takes a millisecond, and what evaluates in between
            # leaves the modules as they were.
            self.model.train()
            for micro_batches in self.batches(epoch):
                # Forward and backward; the processes exchange their gradients once a step.
                for position, batch in enumerate(micro_batches, 1):
                    exchanged = position == len(micro_batches)
                    with nullcontext() if exchanged else accelerator.no_sync(self.wrapped):
                        losses = self.graph_step(batch) or self.eager_step(batch, len(micro_batches))
                    self.metrics.add(self.step, batch["total"], losses)

                # Clip, step, schedule.
                if settings.clip_norm:
                    accelerator.clip_grad_norm_(self.trained.values(), settings.clip_norm)
                optimizer.step()
                if not accelerator.optimizer_step_was_skipped:
                    self.schedule.step()
                optimizer.zero_grad()
                self.step += 1

                # Check the guard's budget, then measure. Flush the metrics first: a diverged training raises before the guard checks.
                measured, last = self.step in self.measured_steps, self.step == self.total
                if measured or (guard is not None and guard.due(self.step)):
                    self.metrics.flush()
                if guard is not None:
                    epochs = epoch + (self.step - epoch * self.steps_per_epoch) / self.steps_per_epoch
                    guard.step(self.step, epochs)
                    if last:
                        guard.finish(self.step, epochs)
                for follower in self.followers.values():
                    follower.after_step(self.step)
                row = self.measure() if measured else None
                self.reporter.step(self.step, self.total)

                # Validate, select, save.
                if row is not None:
                    if last or self.step % self.steps_per_epoch == 0:
                        self.validate(epoch + 1, row)
                    self.add_to_history(row, writers)
                if self.step in self.saved_steps and self.is_worth_a_state():
                    self.save_state()
                if last:  # of a training that is counted in steps, it may be in the middle of an epoch
                    return

    def batches(self, epoch: int) -> Iterator[list[dict[str, Any]]]:
        """The micro-batches of each step that is left of ``epoch``."""
        accumulated, done = self.settings.gradient_accumulation, self.step - epoch * self.steps_per_epoch
        cast(EpochBatchSampler, self.loader.batch_sampler).set_epoch(epoch, done * accumulated)
        self.images.set_epoch(epoch)
        batches = iter(self.loader)
        while micro_batches := list(islice(batches, accumulated)):
            yield micro_batches

    def eager_step(self, batch: Mapping[str, Any], micro_batches: int) -> BatchLoss:
        """Forward and backward pass, kernel by kernel."""
        local_batch_size = batch["own"]
        loss_scale = local_batch_size * self.processes.count / batch["total"]
        with self.accelerator.autocast():
            losses = self.loss(self.loss.inputs(batch), local_batch_size, loss_scale)
        self.accelerator.backward(losses.loss / micro_batches)
        return losses._replace(loss=losses.loss.detach())  # nothing holds the graph until the next step

    def graph_step(self, batch: Mapping[str, Any]) -> BatchLoss | None:
        """Forward and backward pass as a CUDA graph; None where there is none, or ``batch`` is a smaller last one."""
        size = self.settings.batch_size
        if not self.captures or batch["total"] < size:
            return None
        inputs = self.loss.inputs(batch)
        if self.graph is None:
            losses = partial(self.loss, local_batch_size=size, loss_scale=1.0)
            self.graph = CUDAGraphStep.if_there_is_room(self.wrapped, losses, inputs)
        if self.graph is None:
            self.captures = False
            self.reporter.say("the device has too little memory for a CUDA graph (`cuda_graphs`); every step is eager")
            return None
        return self.graph(inputs)

    def measure(self) -> dict[str, Any]:
        """The row of the history after this step: the training since the last one, and the drift."""
        drift = self.plan.monitor.measure(self.step)
        for name, value in drift.values().items():
            if value is not None and not math.isfinite(value):
                raise DivergedError(f"{name} is {value}").at(self.step)
        if self.step == self.total:
            self.final_drift = drift
        self._line = f"step {self.step}/{self.total}: {drift.line()}"
        row: dict[str, Any] = {"step": self.step, "epoch": self.step / self.steps_per_epoch} | self.metrics.row()
        return row | drift.row()

    def validate(self, epoch: int, row: dict[str, Any]) -> None:
        """Add the accuracies after ``epoch`` epochs to ``row``; keep the weights if they are the best so far."""
        progress, plan = self.progress, self.plan
        row["val_accuracy"] = accuracy = plan.validate()
        # A state that its guard has not checked may be outside the budget, and is no candidate.
        allowed = plan.guard is None or plan.guard.checked(self.step)
        if allowed and (progress.best_accuracy is None or accuracy > progress.best_accuracy):
            progress.best_accuracy, progress.selected_epoch = accuracy, epoch
            plan.save_weights("best")
        if self.settings.keep == "all":
            plan.save_weights(f"epoch-{epoch}")
        self._line += f", validation accuracy {accuracy:.4f}"
        if plan.monitor_zero_shot is not None:
            row["monitor_zero_shot_accuracy"] = monitored = plan.monitor_zero_shot()
            row["monitor_zero_shot_retention_pct"] = plan.monitored_retention(monitored)
            self._line += f", zero-shot {monitored:.4f}"

    def add_to_history(self, row: dict[str, Any], writers: Sequence[Writer]) -> None:
        """Add a finished row to the history, its file, the trackers and the log."""
        _log(writers, self.step, scalars(row))
        self.progress.history.append(row)
        if self.processes.first:
            with (self.folder / "history.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        self.reporter.say(self._line)
        shown = {name: float(row[name]) for name in SHOWN if row.get(name) is not None}
        self.reporter.evaluated(self.step, self.total, shown)

    def write_history(self) -> None:
        """Write the whole history, in one step."""
        if self.processes.first:
            text = "".join(json.dumps(row) + "\n" for row in self.progress.history)
            write_text(self.folder / "history.jsonl", text)

    def is_worth_a_state(self) -> bool:
        """Whether enough time has gone by since the last state for what one takes."""
        if self._last_state is None or self.processes.count > 1 or not _states_are_dear(self.plan.device):
            return True
        ended, taken = self._last_state
        return taken <= STATE_SHARE * (time.monotonic() - ended)

    def save_state(self) -> None:
        """Write the resumable state of this step. Raises :class:`DivergedError` for weights that are not finite."""
        self.metrics.flush()
        began = time.monotonic()
        # The last step may have produced NaN or infinity that nothing has checked yet. Do not save such weights.
        finite = torch.stack([torch.isfinite(weight).all() for weight in self.trained.values()]).tolist()
        for name, usable in zip(self.trained, finite, strict=True):
            if not usable:
                raise DivergedError(f"{name} is not finite").at(self.step)
        random_states = gather_object([random_state([self.plan.device])])
        if not self.processes.first:
            return
        scaler, guard = self.accelerator.scaler, self.plan.guard
        training = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": random_states,
            "outcomes": {text: follower.state_dict() for text, follower in self.followers.items()},
        }
        resume.write_tensors(self.folder / SCRATCH, self.trained, training)
        self.progress.guard = None if guard is None else guard.state_dict()
        resume.publish(self.folder / SCRATCH, self.folder / RESUME, self.step, self.progress, self.settings)
        ended = time.monotonic()
        self._last_state = ended, ended - began
        self.reporter.saved(self.step)

    def load_state(self, state: Path) -> None:
        """Put weights, optimizer, schedule, scaler, guard and random states back as they were."""
        resume.read_weights(state, self.trained)
        training = resume.read_training(state)
        self.optimizer.load_state_dict(training["optimizer"])
        self.schedule.load_state_dict(training["schedule"])
        if self.accelerator.scaler is not None and training["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(training["scaler"])
        if self.plan.guard is not None and self.progress.guard is not None:
            self.plan.guard.load_state_dict(self.progress.guard)
        for text, follower in self.followers.items():
            follower.load_state_dict(training["outcomes"][text])
        # If the number of processes has changed, each keeps its new random state. Only dropout is affected.
        if len(training["random"]) == self.processes.count:
            restore_random_state(training["random"][self.processes.rank])

    def close(self) -> None:
        """Leave the model as any other one, and nothing half written."""
        self.optimizer.zero_grad()
        self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        # Its mark: a model that has one is not prepared for another training.
        vars(self.model).pop("_is_accelerate_prepared", None)
        if self.processes.first:
            shutil.rmtree(self.folder / SCRATCH, ignore_errors=True)


@contextmanager
def _trackers(names: Sequence[str], run: TrackedRun) -> Iterator[list[Writer]]:
    """What the trackers write to; closed in the end. A divergence is passed on as an alert."""
    writers = [TRACKERS[name].open(run) for name in names]
    try:
        yield writers
    except BaseException as error:
        for writer in writers:
            if isinstance(error, DivergedError):
                with suppress(OSError):
                    writer.alert(error.step or run.step, f"{run.run_id} has diverged", str(error))
            # Ignore write errors here: the first exception is the one to report.
            with suppress(OSError):
                writer.close()
        raise
    for writer in writers:
        writer.close()


def _log(writers: Sequence[Writer], step: int, values: Mapping[str, float]) -> None:
    for writer in writers:
        writer.log(step, values)


def _log_guard(writers: Sequence[Writer], event: GuardEvent) -> None:
    _log(writers, event.step, event.scalars())
    if event.action != "kept":
        for writer in writers:
            writer.alert(event.step, f"guard: {event.action}", str(event))


def _accelerator(precision: str, device: torch.device) -> Accelerator:
    # A process may train runs of several precisions, and an accelerator refuses another one than the first had.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        device_placement=False,
        mixed_precision={"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[precision],
        # The loop divides the loss itself, by the size of the last, smaller group where that is one.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    # Shared by all accelerators of a process: another training that was interrupted may have left it False, and the
    # optimizer would do nothing.
    accelerator.sync_gradients = True
    return accelerator


def _states_are_dear(device: torch.device) -> bool:
    """Whether saving a state can take longer than an epoch: on an accelerator, where full-size models have states of 1 GB."""
    return device.type != "cpu"
