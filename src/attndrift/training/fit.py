"""Training one run on ``transformers.Trainer``.

Mixed precision, accumulation, clipping, the schedule, trackers and resumption are the trainer's.
Ours are the order of the images and their flips, functions of (seed, epoch, position) alone; the
regularizers; and the history. A run that is killed and resumed therefore ends with the weights and
the history, bit for bit on a CPU, of one that was not.

Several processes (``torch.distributed``) share every batch: each takes its part of the images, filled up with
copies that count for nothing, and the gradients are those of the whole batch. The first process alone writes.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from attndrift.data.order import EpochBatchSampler, Pixels, TrainingImages, training_loader
from attndrift.files import read_json, write_text
from attndrift.guarding import Guard
from attndrift.monitor import DivergedError, Drift, DriftCallback, DriftMonitor, evaluation_mode
from attndrift.monitor.processes import Processes
from attndrift.observing import observe
from attndrift.regularizers import attention_preservation_loss, entropy_floor_loss
from attndrift.study.settings import RunSettings
from attndrift.training import resume
from attndrift.training.progress import Progress, Tally
from attndrift.training.recorded import RecordedStep

WEIGHTS = "model.safetensors"
RANDOM = "random.safetensors"
STATE_SHARE = 0.05
"""Of a training's time on an accelerator, at most this goes into resumable states."""

LITTLE_ROOM = 1 << 20
"""Bytes: a disk with less is what a failed write of a state has met."""


class Reporter(Protocol):
    """Told how a run goes."""

    def step(self, done: int, total: int) -> None:
        """``done`` of ``total`` optimiser steps are done."""

    def say(self, message: str) -> None:
        """A line for the log."""

    def saved(self, step: int) -> None:
        """The resumable state of ``step`` is whole."""


Reference = Callable[[NDArray[np.int64], NDArray[np.bool_]], Tensor]
"""Pretrained log-attention (layers, images, heads, patches) of training images in their orientation."""


@dataclass
class TrainingPlan:
    """Everything that ``fit`` needs besides the model.

    Attributes:
        images, labels: the training set; position i of one belongs to position i of the other.
        monitor: measures structural drift on the probe set.
        validate: returns the validation accuracy of the live model.
        track: returns the zero-shot accuracy on the track subset, or None where there is none.
        track_pretrained: that of the pretrained model.
        baseline: the history row of the pretrained model, step 0.
        save_weights: writes the live model's checkpoint under a name (``best``, ``final``, ``epoch-3``).
        pretrained_entropy: (layers,), for the entropy floor.
        reference: pretrained attention of the training images, for attention preservation.
        guard: keeps the run within a budget; of the same monitor.
    """

    settings: RunSettings
    images: Pixels
    labels: Tensor
    monitor: DriftMonitor
    validate: Callable[[], float]
    track: Callable[[], float] | None
    track_retention: Callable[[float], float | None]
    baseline: dict[str, Any]
    save_weights: Callable[[str], None]
    pretrained_entropy: Tensor
    reference: Reference | None
    device: torch.device
    guard: Guard | None = None


@dataclass
class FitResult:
    """How training ended.

    Attributes:
        status: ``finished`` or ``diverged``.
        history: one row an evaluation, step 0 first.
        best_accuracy, selected_epoch: best validation accuracy and the epoch after which it was reached.
        active_fraction: how often the entropy floor was active; None without one.
        problem: why the run is called diverged.
        last_good_step: the step of the last state before a divergence; 0 is the pretrained model.
        final_drift: what was measured after the last step; None where that was in an earlier attempt, or never.
    """

    status: str
    history: list[dict[str, Any]]
    best_accuracy: float | None
    selected_epoch: int | None
    active_fraction: float | None
    problem: str | None = None
    last_good_step: int | None = None
    final_drift: Drift | None = field(default=None, compare=False)  # holds tensors


class _RunTrainer(Trainer):
    """The trainer of a study: our batches, our loss, and only the trained weights in a checkpoint."""

    plan: TrainingPlan
    progress: Progress
    place: Path
    say: Callable[[str], None]
    saving_began: float

    def setup(self, plan: TrainingPlan, progress: Progress) -> None:
        settings = plan.settings
        self.plan, self.progress = plan, progress
        self.processes = Processes.current()
        share = (lambda positions: self.processes.share(positions, 0)) if self.processes.count > 1 else None
        self.images = TrainingImages(plan.images, plan.labels, settings.seed, flip=settings.flip, share=share)
        self.loader = training_loader(self.images, settings.batch_size // settings.gradient_accumulation)
        self.sampler = cast(EpochBatchSampler, self.loader.batch_sampler)
        self.tally = Tally(progress, plan.device, self.processes)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.pretrained_entropy = plan.pretrained_entropy.to(plan.device)
        # float16 scales its loss by what the steps before have shown, and accumulated gradients must be added to.
        self.records = (
            settings.cuda_graphs
            and plan.device.type == "cuda"
            and self.processes.count == 1
            and settings.gradient_accumulation == 1
            and precision_of(settings, plan.device) != "float16"
        )
        self.recorded: RecordedStep | None = None

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self.loader

    def start_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)
        self.images.set_epoch(epoch)
        # Once, and not at every step as `Trainer` does: to tell each of some hundred modules takes a millisecond. What
        # evaluates in between leaves the modules as they were.
        self.model.train()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As ``Trainer`` does it where no model is split."""
        if not self.records or inputs["total"] < self.plan.settings.batch_size:
            return self._asked_step(model, inputs)
        # The last batch of an epoch, if it is smaller, is asked for anew.
        batch = self._tensors_of(inputs)
        if self.recorded is None:
            self.recorded = RecordedStep.if_there_is_room(model, partial(self._recordable, model), batch)
        if self.recorded is None:
            self.records = False
            self.say("the device has too little memory to keep a recorded step (`cuda_graphs`); each is asked for anew")
            return self._asked_step(model, inputs)
        loss, counted, hits, *active = self.recorded(batch)
        self.tally.add(self.state.global_step, inputs["total"], counted, hits, active[0] if active else None)
        return loss.detach()

    def _asked_step(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        loss = loss / self.current_gradient_accumulation_steps  # it is the mean over a micro-batch
        self.accelerator.backward(loss)
        return loss.detach()

    def _clip_grad_norm(self, model: nn.Module) -> Tensor | None:
        # What is trained is a list; to go through the parameters of a model is to go through its modules.
        return self.accelerator.clip_grad_norm_(self.trained, self.args.max_grad_norm)

    def _tensors_of(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """What a batch's losses are made of."""
        own = inputs["own"]
        tensors = {"pixel_values": inputs["pixel_values"], "labels": inputs["labels"]}
        if self.protected and self.plan.settings.regularizer == "apr" and own:
            assert self.plan.reference is not None
            tensors["reference"] = self.plan.reference(inputs["positions"][:own], inputs["flipped"][:own])
        return tensors

    def _recordable(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Of a whole batch of this process alone: the loss, what the tally counts, and the floor's activity if there is one."""
        loss, _, counted, hits, active = self._losses(model, batch, len(batch["labels"]), 1.0)
        return (loss, counted.detach(), hits) if active is None else (loss, counted.detach(), hits, active)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        own, share = inputs["own"], inputs["own"] * self.processes.count / inputs["total"]
        loss, output, counted, hits, active = self._losses(model, self._tensors_of(inputs), own, share)
        self.tally.add(self.state.global_step, inputs["total"], counted, hits, active)
        return (loss, output) if return_outputs else loss

    @property
    def protected(self) -> bool:
        """Whether attention is held back."""
        return bool(self.plan.settings.regularizer and self.plan.settings.regularizer_weight)

    def _losses(
        self, model: nn.Module, batch: Mapping[str, Tensor], own: int, share: float
    ) -> tuple[Tensor, Any, Tensor, Tensor, Tensor | None]:
        """The loss, the model's output, the loss that is counted, the hits and the entropy floor's activity.

        Nothing here looks at a value, which an accelerator would have to be waited for: that is the tally's to do.
        """
        labels = batch["labels"]
        with observe(self.model, gradients=True, check=False) if self.protected else nullcontext() as seen:
            output = model(pixel_values=batch["pixel_values"], labels=labels)
        loss = output.loss if self.processes.count == 1 else self._share_of_loss(output.logits, labels, own, share)
        counted, active = loss, None
        if seen is not None:
            task = loss
            added, active = self._regularization(seen.log_attention, batch.get("reference"), own, share)
            loss = task + added
            # Attention that is not finite must not hide what the task's loss was.
            counted = torch.where(task.isfinite(), loss, task)
        hits = (output.logits[:own].detach().argmax(-1) == labels[:own]).sum()
        return loss, output, counted, hits, active

    @staticmethod
    def _share_of_loss(logits: Tensor, labels: Tensor, own: int, share: float) -> Tensor:
        """This process's part of the batch's mean loss, so scaled that the mean over the processes is that mean."""
        if own == 0:  # fewer images than processes: the copy takes part in the passes, and counts for nothing
            return 0.0 * logits.float().sum()
        return share * nn.functional.cross_entropy(logits[:own].float(), labels[:own])

    def _regularization(
        self, log_attention: Sequence[Tensor], reference: Tensor | None, own: int, share: float
    ) -> tuple[Tensor, Tensor | None]:
        """The weighted loss on the attention of our own images, and the entropy floor's activity, scaled alike."""
        settings = self.plan.settings
        floor = settings.regularizer == "entropy_floor"
        if own == 0:
            nothing = log_attention[0].new_zeros(())
            return nothing, nothing if floor else None
        if self.processes.count > 1:
            log_attention = [layer[:own] for layer in log_attention]
        active = None
        if floor:
            loss, below = entropy_floor_loss(log_attention, self.pretrained_entropy, settings.entropy_floor_fraction)
            active = share * below
        else:
            assert reference is not None
            loss = attention_preservation_loss(log_attention, reference)
        return share * ((settings.regularizer_weight or 0.0) * loss), active

    def _trained(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # The last step may have left the finite numbers unseen: such weights are no state to go back to.
        trained = self._trained()
        finite = torch.stack([torch.isfinite(p).all() for p in trained.values()]).tolist()
        unusable = [name for name, usable in zip(trained, finite, strict=True) if not usable]
        if unusable:
            raise DivergedError(f"{unusable[0]} is not finite after step {self.state.global_step}")
        if not self.processes.first:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({n: p.contiguous().cpu() for n, p in trained.items()}, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        stored = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        trained = self._trained()
        if set(stored) != set(trained):
            differing = sorted(set(stored) ^ set(trained))[:3]
            raise ValueError(f"{resume_from_checkpoint}: its weights are of another run ({', '.join(differing)}, ...)")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(stored[name])

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.tally.settle()  # here, where all processes are
        self.saving_began = time.monotonic()
        try:
            super()._save_checkpoint(model, trial)
        except RuntimeError as error:
            # torch says at which byte its writer stopped, not why.
            if shutil.disk_usage(self.place).free < LITTLE_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.place)) from error
            raise

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _tensors_only(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        # Without one of its own (float16 alone has one) the trainer would open the file all the same.
        if self.accelerator.scaler is None:
            return
        with _tensors_only(checkpoint):
            super()._load_scaler(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        if self.processes.count == 1:
            super()._save_rng_state(output_dir)
            return
        # What a process draws here is dropout alone; the first one writes what all are at.
        states = {f"cpu.{rank}": state for rank, state in enumerate(self.processes.gather(torch.get_rng_state()))}
        if self.args.device.type == "cuda":
            drawn = self.processes.gather(torch.cuda.get_rng_state())
            states |= {f"cuda.{rank}": state for rank, state in enumerate(drawn)}
        if self.processes.first:
            save_file(states, Path(output_dir) / RANDOM)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self.processes.count == 1 or checkpoint is None:
            with _tensors_only(checkpoint):
                super()._load_rng_state(checkpoint)
            return
        path = Path(checkpoint) / RANDOM
        stored = load_file(path) if path.is_file() else {}
        # Of another number of processes: each goes on with a state of its own, which dropout alone shows.
        if sum(name.startswith("cpu.") for name in stored) != self.processes.count:
            return
        torch.set_rng_state(stored[f"cpu.{self.processes.rank}"])
        if self.args.device.type == "cuda" and f"cuda.{self.processes.rank}" in stored:
            torch.cuda.set_rng_state(stored[f"cuda.{self.processes.rank}"])


class StateError(ValueError):
    """A resumable state that holds what no state holds."""


@contextmanager
def _tensors_only(checkpoint: str | None) -> Iterator[None]:
    """``transformers`` reads a state with ``weights_only=True``, which refuses everything that could run code."""
    try:
        yield
    except UnpicklingError as error:
        raise StateError(
            f"{checkpoint}: holds something else than tensors and numbers, which reading it could run; it is not read. "
            "No run wrote it: remove the folder `resume` of this run, and it is trained anew"
        ) from error


class _RunCallback(TrainerCallback):
    """History, validation, best weights and resumable states of one run."""

    def __init__(self, trainer: _RunTrainer, plan: TrainingPlan, folder: Path, reporter: Reporter) -> None:
        self.trainer, self.plan, self.folder, self.reporter = trainer, plan, folder, reporter
        self.steps_per_epoch = math.ceil(len(trainer.loader) / plan.settings.gradient_accumulation)
        self.total = self.steps_per_epoch * plan.settings.epochs
        self.save_steps = _spread(self.steps_per_epoch, plan.settings.checkpoints_per_epoch, plan.settings.epochs)
        self.measured_steps = frozenset(evaluation_steps(plan.settings, len(plan.labels)))
        self._pending: dict[str, Any] | None = None
        self._saved: tuple[float, float] | None = None
        self.final_drift: Drift | None = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.start_epoch(state.global_step // self.steps_per_epoch)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before any callback measures the state after this step: it is none if the training has diverged."""
        step, guard = state.global_step + 1, self.plan.guard
        if step in self.measured_steps or (guard is not None and guard.due(step)):
            self.trainer.tally.settle()

    def on_drift(self, step: int, epoch: float, drift: Drift) -> None:
        """Begin the history row of ``step``: what was measured, and training since the last row."""
        values = drift.row()
        for name, value in values.items():
            if value is not None and not math.isfinite(value):
                raise DivergedError(f"{name} is {value} after step {step}")
        row: dict[str, Any] = {"step": step, "epoch": step / self.steps_per_epoch} | self.trainer.tally.row()
        self._pending = row | values | {"layers": drift.layers()}
        self._line = drift.line()
        if step == self.total:
            self.final_drift = drift

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        self.reporter.step(step, self.total)
        if self._pending is not None:
            row, self._pending = self._pending, None
            text = f"step {step}/{self.total}: {self._line}"
            if step % self.steps_per_epoch == 0:
                text += self._end_of_epoch(step // self.steps_per_epoch, row)
            self.trainer.log({k: row[k] for k in ("train_loss", "train_accuracy", "val_accuracy") if k in row})
            self.trainer.progress.history.append(row)
            if self.trainer.processes.first:
                with (self.folder / "history.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            self.reporter.say(text)
        if step in self.save_steps and self._is_worth_a_state():
            control.should_save = True

    def _is_worth_a_state(self) -> bool:
        """Whether enough time has gone by since the last state for what one takes."""
        if self._saved is None or self.trainer.processes.count > 1 or not _states_are_dear(self.plan.device):
            return True
        ended, taken = self._saved
        return taken <= STATE_SHARE * (time.monotonic() - ended)

    def _end_of_epoch(self, epoch: int, row: dict[str, Any]) -> str:
        progress, settings = self.trainer.progress, self.plan.settings
        row["val_accuracy"] = accuracy = self.plan.validate()
        guard = self.plan.guard
        # A state that its guard has not checked may be outside the budget, and is no candidate.
        allowed = guard is None or guard.checked(epoch * self.steps_per_epoch)
        if allowed and (progress.best_accuracy is None or accuracy > progress.best_accuracy):
            progress.best_accuracy, progress.selected_epoch = accuracy, epoch
            self.plan.save_weights("best")
        if settings.keep == "all":
            self.plan.save_weights(f"epoch-{epoch}")
        text = f", validation accuracy {accuracy:.4f}"
        if self.plan.track is not None:
            row["transfer_track_accuracy"] = track = self.plan.track()
            row["transfer_track_retention_pct"] = self.plan.track_retention(track)
            text += f", zero-shot track {track:.4f}"
        return text

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.trainer.processes.first:
            return
        scratch = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        resume.publish(scratch, self.folder / "resume", state.global_step, self.trainer.progress.to_json())
        ended = time.monotonic()
        self._saved = ended, ended - self.trainer.saving_began
        self.reporter.saved(state.global_step)


def _states_are_dear(device: torch.device) -> bool:
    """Whether an epoch can take less time than its state: on an accelerator, whose full-size models have states of a gigabyte."""
    return device.type != "cpu"


def _spread(steps_per_epoch: int, times: int, epochs: int) -> frozenset[int]:
    """Steps after which something happens ``times`` times an epoch, epoch ends always among them."""
    within = {max(1, round(steps_per_epoch * (i + 1) / times)) for i in range(times)} | {steps_per_epoch}
    return frozenset(epoch * steps_per_epoch + step for epoch in range(epochs) for step in within)


def evaluation_steps(settings: RunSettings, n_train: int, times: int | None = None) -> list[int]:
    """Optimiser steps after which something is done ``times`` an epoch; by default, the structure is measured."""
    micro_batches = math.ceil(n_train / (settings.batch_size // settings.gradient_accumulation))
    steps_per_epoch = math.ceil(micro_batches / settings.gradient_accumulation)
    return sorted(_spread(steps_per_epoch, times or settings.evaluations_per_epoch, settings.epochs))


def precision_of(settings: RunSettings, device: torch.device) -> str:
    """``auto`` resolved: bfloat16 or float16 on an accelerator that has it, float32 elsewhere."""
    if settings.precision != "auto":
        return settings.precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "float32"


def fit(model: nn.Module, plan: TrainingPlan, folder: Path, reporter: Reporter) -> FitResult:
    """Train ``model`` as ``plan`` says, going on from the newest undamaged state in ``folder``.

    Writes ``history.jsonl``, ``tensorboard/`` and ``resume/`` below ``folder``; checkpoints go through
    ``plan.save_weights``. A divergence does not raise: it is returned, with the history up to it.
    """
    settings = plan.settings
    precision = precision_of(settings, plan.device)
    processes = Processes.current()
    scratch = folder / ".trainer"
    if processes.first:
        shutil.rmtree(scratch, ignore_errors=True)
    # An earlier attempt's states are whole from here on, and no process looks at half of one.
    processes.wait()
    micro_batch = settings.batch_size // settings.gradient_accumulation
    n_batches = math.ceil(len(plan.labels) / micro_batch)
    total = math.ceil(n_batches / settings.gradient_accumulation) * settings.epochs
    arguments = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=math.ceil(micro_batch / processes.count),
        gradient_accumulation_steps=settings.gradient_accumulation,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(settings.warmup * total),
        max_grad_norm=settings.clip_norm,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        seed=settings.seed,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        use_cpu=plan.device.type == "cpu",
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,  # every trained parameter takes part in every loss
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = plan.device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(trained, settings.learning_rate, weight_decay=settings.weight_decay, fused=fused)
    progress = Progress()
    trainer = _RunTrainer(model=model, args=arguments, optimizers=(optimizer, None))
    trainer.remove_callback(PrinterCallback)  # a study has its own log
    trainer.place, trainer.say = folder, reporter.say
    if processes.count > 1:
        torch.manual_seed(settings.seed + processes.rank)  # dropout masks of its own in each process
    state = resume.newest(folder / "resume", reporter.say)
    if state is not None:
        progress.__dict__.update(read_json(state / resume.PROGRESS))
        reporter.say(f"goes on from {state.name}")
    else:
        progress.history.append(plan.baseline)
    trainer.setup(plan, progress)
    if processes.first:
        _write_history(folder, progress)
    callback = _RunCallback(trainer, plan, folder, reporter)
    steps = evaluation_steps(settings, len(plan.labels))
    # The baseline is history's first row already, and a study has its own log.
    DriftCallback(
        plan.monitor, steps, guard=plan.guard, on_drift=callback.on_drift, at_start=False, at_end=False, echo=None
    ).attach(trainer)
    trainer.add_callback(callback)
    with _tensorboard(folder / "tensorboard", _step_of(state)) if processes.first else nullcontext() as board:
        if board is not None:
            trainer.add_callback(board)
        try:
            with _cleared_by(optimizer, model):
                trainer.train(resume_from_checkpoint=str(state) if state else None)
        except DivergedError as error:
            last = resume.newest(folder / "resume", reporter.say)
            step = _step_of(last)
            reporter.say(f"diverged: {error}; last good state: step {step}")
            return _result("diverged", progress, str(error), step)
        finally:
            if processes.first:
                shutil.rmtree(scratch, ignore_errors=True)
    # Once more, whole and synced: lines that were appended may still be on their way to the disk.
    if processes.first:
        _write_history(folder, progress)
    return replace(_result("finished", progress), final_drift=callback.final_drift)


@contextmanager
def _cleared_by(optimizer: torch.optim.Optimizer, model: nn.Module) -> Iterator[None]:
    """``Trainer`` has the model drop its gradients after each step. The optimiser has a list of the parameters that have one,
    where the model would go through all its modules."""

    # No method of the optimiser, which a copy of the model would be made with a copy of.
    def zero_grad(set_to_none: bool = True) -> None:
        optimizer.zero_grad(set_to_none)

    model.zero_grad = zero_grad  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.zero_grad


def _write_history(folder: Path, progress: Progress) -> None:
    write_text(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in progress.history))


def _result(status: str, progress: Progress, problem: str | None = None, step: int | None = None) -> FitResult:
    return FitResult(
        status,
        progress.history,
        progress.best_accuracy,
        progress.selected_epoch,
        progress.active_fraction,
        problem,
        step,
    )


def _step_of(state: Path | None) -> int:
    """The step of a resumable state; 0 without one."""
    return int(state.name.removeprefix("step-")) if state else 0


@contextmanager
def _tensorboard(folder: Path, done: int) -> Iterator[TensorBoardCallback | None]:
    if not done:
        shutil.rmtree(folder, ignore_errors=True)
    # What was logged after the state that training goes on from is logged again: readers drop the first.
    writer = SummaryWriter(str(folder), purge_step=done + 1 if done else None)
    with _said_once():
        try:
            yield TensorBoardCallback(tb_writer=writer)
        except BaseException:
            # What cannot be written now is not what went wrong first.
            with suppress(OSError):
                writer.close()
            raise
        writer.close()


@contextmanager
def _said_once() -> Iterator[None]:
    """TensorBoard writes in a thread. What goes wrong there it raises again where something is logged next."""
    before = threading.excepthook

    def hook(ended: threading.ExceptHookArgs) -> None:
        if not isinstance(ended.thread, _AsyncWriterThread):
            before(ended)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def predict(
    forward: Callable[[Tensor], Tensor],
    model: nn.Module,
    images: Pixels,
    positions: Sequence[int],
    batch_size: int,
    device: torch.device,
) -> Tensor:
    """``forward`` of the images at ``positions`` in evaluation mode, joined, float32 on the CPU: (positions, ...)."""
    outputs = []
    with evaluation_mode(model):
        for start in range(0, len(positions), batch_size):
            outputs.append(forward(images.fetch(positions[start : start + batch_size]).to(device)).float().cpu())
    return torch.cat(outputs)
