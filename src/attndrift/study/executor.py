"""One run, from its settings to its record."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from attndrift import metrics
from attndrift.data.pixels import PixelStore
from attndrift.drift.drift import Drift, Snapshot
from attndrift.drift.monitor import DriftMonitor, measure_drift
from attndrift.files import link_or_copy, new_folder, write_json, write_text
from attndrift.guard.budget import RETENTION, Budget, RetentionBudget
from attndrift.guard.guard import Guard
from attndrift.methods.checkpoint import load_adapted, save_adapted
from attndrift.methods.classifier import CLIPClassifier
from attndrift.methods.parameter_drift import projection_drift, weight_drift
from attndrift.methods.registry import AdaptationSettings, adapt
from attndrift.models.errors import CheckpointError, FingerprintError
from attndrift.models.evaluation import evaluation_mode
from attndrift.models.reference import at_commit
from attndrift.process_group import Processes
from attndrift.results.tables import TRANSFER_FIELDS
from attndrift.study import record as records
from attndrift.study.distributed import DistributedSession, SilentReporter
from attndrift.study.resources import Pretrained, StudyResources, Target, TransferSet, attention_maps
from attndrift.study.settings import FLOAT16_ON_CPU, NamedRun, RunSettings
from attndrift.study.training import states as resume
from attndrift.study.training.loop import fit
from attndrift.study.training.plan import FitResult, TrainingPlan, evaluation_steps, precision_of


def adaptation(settings: RunSettings) -> AdaptationSettings:
    """The part of a run's settings that decides which parameters are trained."""
    return AdaptationSettings(
        method=settings.method,
        lora_rank=settings.lora_rank or 8,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout if settings.lora_dropout is not None else 0.05,
        lora_targets=settings.lora_targets or "q,v",
        train_projection=settings.train_projection,
        freeze_layers=settings.freeze_layers,
        head=settings.head,
    )


def device_of(settings: RunSettings) -> torch.device:
    """``auto`` resolved: an accelerator where there is one.

    Raises ``ValueError`` for an accelerator that is not there, and for float16 on a CPU, where ``accelerate``
    would train in float32 without a word.
    """
    present = ["cpu"]
    if torch.cuda.is_available():
        present.append("cuda")
    if torch.backends.mps.is_available():
        present.append("mps")
    name: str = settings.device
    if name == "auto":
        name = "cuda" if "cuda" in present else present[-1]
    if name not in present:
        raise ValueError(
            f"`device` is {name!r}, which torch does not find on this machine; it has {', '.join(present)}"
        )
    if name == "cpu" and settings.precision == "float16":
        raise ValueError(FLOAT16_ON_CPU)
    return torch.device(name)


def split_accuracy(model: CLIPClassifier, store: PixelStore, labels: ArrayLike, settings: RunSettings) -> float:
    """Top-1 accuracy of the classifier on all images of a store; ``labels`` by position.

    Several processes (``torch.distributed``) share the images; each gets the accuracy on all of them.
    """
    wanted = torch.as_tensor(np.asarray(labels))
    processes, device = Processes.current(), next(model.parameters()).device
    mine = torch.arange(processes.rank, len(wanted), processes.count)
    correct = torch.tensor(0)
    with processes.agreeing(), evaluation_mode(model):
        for part in mine.split(settings.evaluation_batch_size):
            logits = model(pixel_values=store.fetch(part.tolist()).to(device)).logits.float().cpu()
            correct += (logits.argmax(-1) == wanted[part]).sum()
    return int(processes.sum(correct.reshape(1))) / len(wanted)


class Executor:
    """Runs the runs of a study in this process; they share one resources. A context manager.

    Pickled, it is one with an empty resources and the same cache on disk.

    ``session``: of the processes that train each run together, where there are several.
    """

    def __init__(self, resources: StudyResources | None = None, session: DistributedSession | None = None) -> None:
        self.resources = resources or StudyResources()
        self.session = session

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.resources.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _executor, (self.resources.cache,)

    def __call__(self, run: NamedRun, folder: Path, reporter: Any) -> dict[str, Any]:
        """Execute ``run`` in ``folder`` and return its record; where there are more processes, with them."""

        def execute() -> dict[str, Any]:
            return self._execute(run, folder, reporter)

        return execute() if self.session is None else self.session.run_main(run, folder, execute)

    def run_worker(self) -> None:
        """Take part in every run of the main process, until it has no more."""
        assert self.session is not None

        def execute(run: NamedRun, folder: Path) -> None:
            self._execute(run, folder, SilentReporter())

        self.session.run_worker(execute)

    def _execute(self, run: NamedRun, folder: Path, reporter: Any) -> dict[str, Any]:
        with _no_bars(), _threads(run.settings.threads):
            return _Run(run, folder, self.resources, reporter).execute()


def _executor(cache: Path) -> Executor:
    return Executor(StudyResources(cache))


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    # A study has its own progress; a bar for each file of weights would break its lines.
    before = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if before:
            enable_progress_bar()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    # The number of threads changes the order of sums, so it is a setting and not an accident.
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    """The steps of one run, in order."""

    def __init__(self, run: NamedRun, folder: Path, resources: StudyResources, reporter: Any) -> None:
        self.run, self.folder, self.resources, self.reporter = run, folder, resources, reporter
        self.settings = run.settings
        self.device = device_of(run.settings)
        self.processes = Processes.current()
        self.started = time.monotonic()
        self.phases: dict[str, float] = {}
        self._in_phase: tuple[str, float] | None = None

    def execute(self) -> dict[str, Any]:
        settings = self.settings
        self._phase("images")
        self.pretrained: Pretrained = self.resources.pretrained(
            at_commit(settings.model, self.run.model_revision), self.device
        )
        self.target: Target = self.resources.target(settings, self.pretrained)
        self.transfer, self.absent = self.resources.transfer_sets(settings, self.target, self.pretrained)
        for name, reason in self.absent.items():
            self.reporter.say(f"transfer set {name} is left out: {reason}")
        if self.processes.first:
            write_json(self.folder / "splits.json", self.target.splits.to_json())
        self._phase("the pretrained model")
        self.baseline: Snapshot = self.resources.baseline(settings, self.target, self.pretrained)
        if settings.method == "none":
            return self._pretrained_row()
        return self._adapted()

    def _phase(self, what: str) -> None:
        self._end_phase()
        self._in_phase = what, time.monotonic()
        self.reporter.phase(what)
        self.reporter.say(what)

    def _end_phase(self) -> None:
        if self._in_phase is not None:
            what, begun = self._in_phase
            self.phases[what] = self.phases.get(what, 0.0) + time.monotonic() - begun
            self._in_phase = None

    # -- the pretrained model -------------------------------------------------------------------

    def _pretrained_row(self) -> dict[str, Any]:
        drift = self.resources.no_drift(self.settings, self.target, self.pretrained)
        model = self.pretrained.clip
        row = {"step": 0, "epoch": 0.0, **drift.row()}
        self._write_history([row])
        transfer: dict[str, Any] = {}
        details: dict[str, Any] = {}
        for item in self.transfer:
            before = self.resources.pretrained_transfer(self.settings, item, self.pretrained)
            columns, detail = self._transfer_columns(item, before, before)
            transfer |= columns
            details[item.name] = detail
        self._write_maps(None, drift)
        totals = sum(p.numel() for p in model.parameters())
        values = {
            "trainable_parameters": 0,
            "total_parameters": totals,
            "n_probe": len(self.target.splits.probe),
        }
        return self._record("finished", values | drift.columns("runs") | transfer, details)

    # -- an adapted model ----------------------------------------------------------------------

    def _adapted(self) -> dict[str, Any]:
        settings, target = self.settings, self.target
        model = adapt(
            self.pretrained.copy(), adaptation(settings), len(target.class_names), settings.seed,
            text_features=self._target_text_features(),
        ).to(self.device)  # fmt: skip
        monitor = DriftMonitor(
            model,
            lambda: target.probe_batches(settings.evaluation_batch_size),
            reference=self.baseline,
            embed=model.embed,
            weight_drift=lambda: self._weight_drifts(model),
        )
        self.guard = self._guard(model, monitor)
        result = self._train(model, monitor)
        values = self._sizes(model) | {
            "best_val_accuracy": result.best_accuracy,
            "selected_epoch": result.selected_epoch,
            "loss_active_fraction": result.active_fraction,
            "guard_outcome": None if self.guard is None else self.guard.summary()["outcome"],
        }
        if result.status == "diverged":
            self._keep_last_good(model, result)
            self._clean_up()
            record = self._record("diverged", values | self._baseline(), {}, problem=result.problem)
            return record | {"last_good_step": result.last_good_step}
        return self._conclude(model, result, values)

    def _train(self, model: CLIPClassifier, monitor: DriftMonitor) -> FitResult:
        settings, target = self.settings, self.target
        monitored = self.transfer[0] if self.transfer and settings.monitor_zero_shot_images else None
        zero = self.resources.no_drift(settings, target, self.pretrained)
        first: dict[str, Any] = {"step": 0, "epoch": 0.0, **zero.row()}
        if monitored is not None:
            before = self.resources.pretrained_transfer(settings, monitored, self.pretrained, monitor=True)
            first["monitor_zero_shot_accuracy"] = before.accuracy
            first["monitor_zero_shot_retention_pct"] = monitored.retention(before.accuracy, before.accuracy)
        reference = None
        if settings.losses.get("attention_preservation"):
            self._phase("pretrained attention of the training images")
            reference = self.resources.teacher(settings, target, self.pretrained)
        plan = TrainingPlan(
            settings=settings,
            images=target.train,
            labels=torch.from_numpy(target.splits.train.labels),
            monitor=monitor,
            validate=lambda: self._accuracy(model, "validation"),
            monitor_zero_shot=(lambda: self._monitor_zero_shot(monitored, model)) if monitored else None,
            monitored_retention=(lambda value: monitored.retention(value, before.accuracy))
            if monitored
            else (lambda _: None),
            baseline=first,
            save_weights=lambda name: self._save(model, name),
            pretrained_entropy=self.baseline.structure.layers("entropy"),
            reference=reference,
            device=self.device,
            guard=self.guard,
        )
        self._phase("training")
        return fit(model, plan, self.folder, self.reporter)

    def _guard(self, model: CLIPClassifier, monitor: DriftMonitor) -> Guard | None:
        settings, n_train = self.settings, len(self.target.splits.train)
        if settings.guard is None:
            return None
        if settings.guard != RETENTION:
            limits = {"at_least": settings.guard_at_least, "at_most": settings.guard_at_most}
            budget: Budget | RetentionBudget = Budget(settings.guard, **limits)
        else:
            # Of a set that is out of reach there is nothing to keep, and the run would not be what it is called.
            if settings.transfer[0] in self.absent:
                raise ValueError(f"`guard`: {self.absent[settings.transfer[0]]}")
            item = self.transfer[0]
            assert item.guard_part is not None
            assert item.guard_store is not None
            budget = Budget.retention(
                (settings.guard_at_least or 0.0) / 100, item.guard_store, item.guard_part.labels, text_features=item.text,
                confidence=settings.guard_confidence, batch_size=settings.evaluation_batch_size,
            )  # fmt: skip
        self._phase("the guard's probe")
        steps = evaluation_steps(settings, n_train, settings.guard_checks_per_epoch)
        return Guard(
            monitor, budget, steps, first=math.ceil(settings.guard_from * steps[-1]),
            head=model.classifier, validate=lambda: self._accuracy(model, "validation"), echo=self.reporter.say,
        )  # fmt: skip

    def _monitor_zero_shot(self, monitored: TransferSet, model: CLIPClassifier) -> float:
        return monitored.evaluate(
            model, self.pretrained, self.settings, limit=self.settings.monitor_zero_shot_images
        ).accuracy

    def _conclude(self, model: CLIPClassifier, result: FitResult, values: dict[str, Any]) -> dict[str, Any]:
        settings = self.settings
        if settings.keep != "best":
            self._keep_final(model, result)
        selected = self._selected().to(self.device)
        self._phase("test")
        if settings.selection == "test":
            # One split selects and reports: that is the selection, and the report warns of it. Structure,
            # representation, weights and transfer are those of the last epoch, as in the original study.
            values["test_accuracy"] = result.best_accuracy
            measured = model
        else:
            values["test_accuracy"] = self._accuracy(selected, "test")
            measured = selected
        if measured is model and self.guard is None and result.final_drift is not None:
            drift = result.final_drift  # nothing has changed the model since
        else:
            drift = self._measure(measured)
        transfer, details = self._transfer(measured, drift)
        self._write_maps(measured, drift)
        self._clean_up()
        record = self._record("finished", values | drift.columns("runs") | transfer, details)
        record["measured_checkpoint"] = "final" if settings.selection == "test" else "selected"
        record["embedding_distance"] = drift.embedding_distance
        if self.guard is not None:
            record["guard"] = self.guard.summary() | {"events": [event.to_json() for event in self.guard.events]}
        return record

    def _measure(self, model: CLIPClassifier) -> Drift:
        batches = self.target.probe_batches(self.settings.evaluation_batch_size)
        drifts = partial(self._weight_drifts, model)
        return measure_drift(self.baseline, model, batches, drifts, model.embed, processes=self.processes)

    def _keep_final(self, model: CLIPClassifier, result: FitResult) -> None:
        """Save the last epoch's weights; where they are the selected ones, as a copy of that checkpoint."""
        best, final = (self.folder / "checkpoints" / name for name in ("best", "final"))
        # A guard may have changed the weights since; and what somebody has removed cannot be copied.
        if result.selected_epoch != self.settings.epochs or self.guard is not None or not best.is_dir():
            self._save(model, "final")
        elif self.processes.first:
            with new_folder(final) as target:
                # Nothing changes a checkpoint's files, so one may have two names.
                shutil.copytree(best, target, dirs_exist_ok=True, copy_function=link_or_copy)

    def _selected(self) -> CLIPClassifier:
        """The checkpoint of the selected epoch, proved to be what was saved."""
        self.processes.wait()  # until the first one has written it
        try:
            best, sha256 = self.folder / "checkpoints" / "best", self.pretrained.sha256
            return load_adapted(best, base=self.pretrained.copy(), base_sha256=sha256)
        except FingerprintError:
            raise
        except CheckpointError as error:
            # Its epoch lies behind the resumable states, so that only training again can bring it back.
            if self.processes.first:
                resume.clear(self.folder / "resume")
            raise CheckpointError(f"{error}. Run the study again: this run is then trained anew") from error

    def _target_text_features(self) -> Tensor | None:
        if self.settings.head != "text":
            return None
        return self.resources.text_features(self.settings, self.pretrained, self.target.class_names)

    def _weight_drifts(self, model: CLIPClassifier) -> tuple[float, float]:
        tower, projection = self.pretrained.squared_norms
        return (
            weight_drift(model, self.pretrained.clip, tower),
            projection_drift(model, self.pretrained.clip, projection),
        )

    def _accuracy(self, model: CLIPClassifier, part: str) -> float:
        store = self.target.validation if part == "validation" else self.target.test
        return split_accuracy(model, store, getattr(self.target.splits, part).labels, self.settings)

    def _save(self, model: CLIPClassifier, name: str) -> None:
        if not self.processes.first:
            return
        fingerprint = self.resources.fingerprint(self.settings, self.target, self.pretrained)
        save_adapted(
            model,
            self.folder / "checkpoints" / name,
            base_source=self.pretrained.source,
            probe_pixels=fingerprint.pixels,
            pretrained=self.pretrained.clip,
            pretrained_embeddings=fingerprint.embeddings,
            pretrained_sha256=self.pretrained.sha256,
            class_names=self.target.class_names,
        )

    def _keep_last_good(self, model: CLIPClassifier, result: FitResult) -> None:
        """Keep the trained weights of the last state before the divergence."""
        if not self.processes.first:
            return
        state = resume.newest(self.folder / "resume", self.reporter.say)
        if state is not None:
            with new_folder(self.folder / "checkpoints" / "last-good") as target:
                for name in ("model.safetensors", resume.PROGRESS):
                    shutil.copy2(state / name, target / name)

    def _clean_up(self) -> None:
        if not self.processes.first:
            return
        resume.clear(self.folder / "resume")
        keep = {"best": {"best"}, "best+final": {"best", "final"}}.get(self.settings.keep)
        folder = self.folder / "checkpoints"
        for path in list(folder.iterdir()) if folder.is_dir() else []:
            # Hidden ones are what a killed process left half written.
            if path.name.startswith(".") or (keep is not None and path.name not in keep | {"last-good"}):
                shutil.rmtree(path)

    # -- what is recorded ----------------------------------------------------------------------

    def _transfer(self, model: CLIPClassifier, drift: Drift) -> tuple[dict[str, Any], dict[str, Any]]:
        columns: dict[str, Any] = {}
        details: dict[str, Any] = {}
        for item in self.transfer:
            self._phase("the pretrained model")
            before = self.resources.pretrained_transfer(self.settings, item, self.pretrained)
            self._phase(f"zero-shot transfer to {item.name}")
            after = item.evaluate(model, self.pretrained, self.settings, weight_drift=drift.weight_drift)
            values, detail = self._transfer_columns(item, before, after)
            columns |= values
            details[item.name] = detail
        return columns, details

    def _transfer_columns(self, item: TransferSet, before: Any, after: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        kept = item.retention(after.accuracy, before.accuracy)
        columns = {
            f"transfer_{item.name}_zero_shot_accuracy": after.accuracy,
            f"transfer_{item.name}_zero_shot_pretrained": before.accuracy,
            f"transfer_{item.name}_zero_shot_retention_pct": kept,
            f"transfer_{item.name}_zero_shot_n": after.n,
        }
        detail = {
            "adapted": after.to_json(),
            "pretrained": before.to_json(),
            "retention_pct": kept,
            "hash": item.part.hash,
            "skipped": item.skipped,
        }
        if self.processes.first:
            np.savez_compressed(
                self.folder / f"transfer_{item.name}.npz",
                n=np.int64(after.n),
                adapted=np.packbits(after.correct),
                pretrained=np.packbits(before.correct),
            )
        return columns, detail

    def _sizes(self, model: CLIPClassifier) -> dict[str, Any]:
        splits = self.target.splits
        return {
            "n_train": len(splits.train),
            "n_validation": len(splits.validation),
            "n_test": len(splits.test),
            "n_probe": len(splits.probe),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "total_parameters": sum(p.numel() for p in model.parameters()),
        }

    def _baseline(self) -> dict[str, Any]:
        """What the table ``runs`` says of the pretrained model alone."""
        columns = self.resources.no_drift(self.settings, self.target, self.pretrained).columns("runs")
        return {name: value for name, value in columns.items() if name.endswith("_baseline")}

    def _record(
        self, status: str, values: dict[str, Any], transfer: dict[str, Any], problem: str | None = None
    ) -> dict[str, Any]:
        self._end_phase()
        settings = self.settings
        trains = settings.method != "none"
        row = {
            "experiment": settings.experiment,
            "selection": settings.selection,
            "model": settings.model,
            "model_revision": self.pretrained.description.get("revision"),
            "dataset": settings.dataset,
            "method": settings.method,
            "learning_rate": settings.learning_rate if trains else None,
            "seed": settings.seed,
            "data_seed": settings.data_seed,
            "epochs": settings.epochs if trains else None,
            "batch_size": settings.batch_size if trains else None,
            "weight_decay": settings.weight_decay if trains else None,
            "lora_rank": settings.lora_rank,
            "lora_alpha": settings.lora_alpha,
            "lora_targets": settings.lora_targets,
            "train_projection": settings.train_projection if trains else None,
            "freeze_layers": settings.freeze_layers if settings.method == "full" else None,
            "loss": settings.loss,
            "head": settings.head if trains else None,
            "parent_run": None,
            "guard": settings.guard,
            "guard_at_least": settings.guard_at_least,
            "guard_at_most": settings.guard_at_most,
            "status": status,
            **values,
            **{f"transfer_{name}_zero_shot_{field}": None for name in self.absent for field in TRANSFER_FIELDS},
        }
        precision = precision_of(settings, self.device)
        repeats = records.determinism(str(self.device), settings.threads, self.processes.count, precision)
        width = self.baseline.hidden.shape[-1]
        images = self.baseline.hidden.shape[1]
        return {
            "status": status,
            "run_id": self.run.run_id,
            "problem": problem,
            "settings": settings.to_json(),
            "settings_hash": settings.hash,
            "row": row,
            "nulls": self._nulls(row),
            "transfer": transfer,
            "cka_chance_level": metrics.cka_chance_level(images, width),
            "versions": records.versions(),
            "hardware": records.hardware(str(self.device), settings.threads),
            "processes": self.processes.count,
            "precision": precision,
            "deterministic": not repeats["not_bit_for_bit"],
            "determinism": repeats,
            "hashes": {"model": self.pretrained.description, "data": self.target.splits.hash},
            "data": self.target.dataset.source,
            "preprocessing": self.pretrained.preprocessing,
            "time": {
                "seconds": round(time.monotonic() - self.started, 3),
                "phases": {what: round(seconds, 3) for what, seconds in self.phases.items()},
            },
        }

    def _nulls(self, row: dict[str, Any]) -> dict[str, str]:
        """Why a value that a reader would expect is null."""
        reasons = {f"transfer_{name}_zero_shot_accuracy": reason for name, reason in self.absent.items()}
        for item in self.transfer:
            if (
                f"transfer_{item.name}_zero_shot_accuracy" in row
                and row[f"transfer_{item.name}_zero_shot_retention_pct"] is None
            ):
                reasons[f"transfer_{item.name}_zero_shot_retention_pct"] = (
                    "the pretrained accuracy is below twice chance: there is nothing to retain"
                )
        return reasons

    def _write_history(self, rows: list[dict[str, Any]]) -> None:
        if not self.processes.first:
            return
        write_text(self.folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def _write_maps(self, model: CLIPClassifier | None, drift: Drift) -> None:
        """Attention maps of a few probe images before and after, for figures and report."""
        count = min(self.settings.map_images, len(self.target.splits.probe))
        if count == 0 or not self.processes.first:
            return
        before = self.resources.pretrained_maps(self.settings, self.target, self.pretrained)
        pixels = self.target.probe.fetch(range(count))
        after = before if model is None else attention_maps(model, model.embed, pixels)
        side = math.isqrt(before.shape[-1])
        grid = (side, side) if side * side == before.shape[-1] else (1, before.shape[-1])
        part = self.target.splits.probe
        temporary = self.folder / ".maps.npz"
        np.savez_compressed(
            temporary,
            images=self.target.probe.fetch_uint8(range(count)).permute(0, 2, 3, 1).numpy(),
            before=before,
            after=after,
            labels=part.labels[:count],
            class_names=np.asarray(self.target.class_names),
            grid=np.asarray(grid, dtype=np.int64),
            ids=np.asarray(part.ids[:count]),
        )
        temporary.replace(self.folder / "maps.npz")
