"""One run, step by step: from its settings to its record."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from attndrift.drift.drift import Drift
from attndrift.drift.monitor import DriftMonitor
from attndrift.guard.budget import Budget, RetentionBudget
from attndrift.guard.guard import Guard
from attndrift.methods.adaptation import adapt
from attndrift.methods.classifier import ImageClassifier
from attndrift.methods.registry import HEADS
from attndrift.methods.settings import AdaptationSettings
from attndrift.metrics.registry import METRICS
from attndrift.models.hub import resolve_model
from attndrift.models.load import state_hash
from attndrift.results.measures import measure_of_metric
from attndrift.study.distributed import SilentReporter
from attndrift.study.evaluation import accuracy, drift_of, monitor_of, monitored_accuracy
from attndrift.study.guard_budget import retention_budget
from attndrift.study.loss_context import loss_context
from attndrift.study.outcomes.registry import Trained
from attndrift.study.outcomes.rows import outcome_records
from attndrift.study.phases import PhaseReporter
from attndrift.study.resolved import adaptation, device_of
from attndrift.study.resources import StudyResources
from attndrift.study.run_folder import RunFolder
from attndrift.study.run_inputs import RunInputs
from attndrift.study.run_record import baseline_columns, run_record, sizes
from attndrift.study.settings import NamedRun
from attndrift.study.steps import evaluation_steps
from attndrift.study.training.loop import fit
from attndrift.study.training.plan import FitResult, TrainingPlan, only_value
from attndrift.study.transfer_measurement import measure_transfer


def execute_run(run: NamedRun, folder: Path, resources: StudyResources, reporter: Any) -> dict[str, Any]:
    """Execute ``run`` in ``folder`` and return its record, which is not written yet."""
    with _no_bars(), _threads(run.settings.threads):
        phases = PhaseReporter(reporter)
        inputs = RunInputs.load(run, resources, device_of(run.settings), phases)
        files = RunFolder(folder, inputs, phases.say)
        files.write_splits()
        execution = _Execution(inputs, files, phases)
        return execution.adapted() if run.settings.facts.adapts else execution.untrained()


class MeasuredOutcome(NamedTuple):
    """Measures models that were made of finished runs: columns and details of each, and validation accuracy alone."""

    columns: Callable[[ImageClassifier], tuple[dict[str, Any], dict[str, Any]]]
    validate: Callable[[ImageClassifier], float]


def measured_outcome(inputs: RunInputs, folder: Path) -> MeasuredOutcome:
    """What measures models of a run with these inputs as an outcome of the run itself; ``folder`` is the run's."""

    def columns(model: ImageClassifier) -> tuple[dict[str, Any], dict[str, Any]]:
        phases = PhaseReporter(SilentReporter())
        with _no_bars(), _threads(inputs.settings.threads):
            return _Execution(inputs, RunFolder(folder, inputs, phases.say), phases)._outcome_columns(model)

    def validate(model: ImageClassifier) -> float:
        with _threads(inputs.settings.threads):
            return accuracy(model, inputs, "validation")

    return MeasuredOutcome(columns, validate)


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


def _published(inputs: RunInputs) -> ImageClassifier:
    """The model with published weights in its image tower, and the class prompts as its classifier."""
    settings = inputs.settings
    text = inputs.resources.text(settings, inputs.pretrained, inputs.target.dataset)
    asked = AdaptationSettings(settings.method, head="cosine", **adaptation(settings).own)
    model = adapt(
        inputs.pretrained.copy(), asked, len(inputs.target.class_names), settings.seed, text_features=text.features
    )
    return model.to(inputs.device)


def _no_drift(inputs: RunInputs) -> Drift:
    """The drift of the pretrained model from itself, of all that a run measures."""
    drift = inputs.results.no_drift()
    if not inputs.settings.trains_text:
        return drift
    of_text = {metric.name: metric.pretrained for metric in METRICS if metric.needs in ("texts", "text weights")}
    return replace(drift, numbers={**drift.numbers, **of_text})


class _Execution:
    """The steps of one run, in order."""

    def __init__(self, inputs: RunInputs, files: RunFolder, reporter: PhaseReporter) -> None:
        self.inputs, self.files, self.reporter = inputs, files, reporter
        self.settings, self.target = inputs.settings, inputs.target

    def untrained(self) -> dict[str, Any]:
        """The run of a model that nothing is trained of: the pretrained one, or weights that somebody published."""
        inputs, drift = self.inputs, self.inputs.results.no_drift()
        self.files.write_history([{"step": 0, "epoch": 0.0, **drift.row()}])
        model = _published(inputs) if self.settings.facts.replaces else None
        if model is None:
            values: dict[str, Any] = {
                "trainable_parameters": 0,
                "total_parameters": sum(p.numel() for p in inputs.pretrained.model.parameters()),
                "n_probe": len(self.target.splits.probe),
            }
        else:
            self.reporter.phase("test")
            values = sizes(model, inputs) | {"test_accuracy": accuracy(model, inputs, "test")}
            drift = drift_of(model, inputs)
        transfer, details = self._transfer(model, drift)
        self.files.write_maps(model)
        record = self._record("finished", values | drift.columns("runs") | transfer, details)
        if model is not None:
            source = str(self.settings.own["checkpoint"])
            weights = {"revision": resolve_model(source).commit, "weights_sha256": state_hash(model.model)}
            record["checkpoint"] = {"source": source} | weights
        return record

    def adapted(self) -> dict[str, Any]:
        """A run that adapts the model, trains it and measures what came of it."""
        inputs = self.inputs
        start = self.files.read_start() if self.settings.facts.rewrites_base else None
        model = adapt(
            inputs.pretrained.copy(), adaptation(self.settings), len(self.target.class_names), self.settings.seed,
            text_features=self._text_features(), class_tokens=inputs.class_tokens(), fit_on=self._fit_on(), start=start,
            reference_images=self._reference_images() if start is None else None,
        ).to(inputs.device)  # fmt: skip
        if start is None:
            self.files.write_start(model.start)
        monitor = monitor_of(model, inputs)
        guard = self._guard(model, monitor)
        plan = self._plan(model, monitor, guard)
        self.reporter.phase("training")
        result = fit(model, plan, self.files.folder, self.reporter)
        values = sizes(model, inputs) | {
            "best_val_accuracy": result.best_accuracy,
            "selected_epoch": result.selected_epoch,
            "loss_active_fraction": only_value(result.active_fractions),
            "guard_outcome": None if guard is None else guard.summary()["outcome"],
        }
        if result.status == "diverged":
            self.files.save_last_good()
            record = self._record("diverged", values | baseline_columns(inputs), {}, problem=result.problem)
            return record | {"last_good_step": result.last_good_step}
        return self._measured(model, result, guard, values)

    def _text_features(self) -> Tensor | None:
        if not HEADS[self.settings.head].needs_text:
            return None
        return self.inputs.resources.text(self.settings, self.inputs.pretrained, self.target.dataset).features

    def _reference_images(self) -> Tensor | None:
        """Images that the method looks at before it starts, where it does."""
        reference = self.inputs.reference if self.settings.facts.needs_reference else None
        return None if reference is None else reference.pixels

    def _fit_on(self) -> tuple[Tensor, Tensor] | None:
        """Pretrained embeddings of the training images and their labels, for a head that is fitted to them first."""
        if not HEADS[self.settings.head].fits:
            return None
        self.reporter.phase("the head's fit")
        return self.inputs.results.training_embeddings(), torch.from_numpy(self.target.splits.train.labels)

    def _guard(self, model: ImageClassifier, monitor: DriftMonitor) -> Guard | None:
        settings, n_train = self.settings, len(self.target.splits.train)
        if settings.guard is None:
            return None
        measure = measure_of_metric(settings.guard)
        if measure is None:
            limits = {"at_least": settings.guard_at_least, "at_most": settings.guard_at_most}
            budget: Budget | RetentionBudget = Budget(settings.guard, **limits)
        else:
            budget = retention_budget(measure, self.inputs)
        self.reporter.phase("the guard's probe")
        steps = evaluation_steps(settings, n_train, settings.guard_checks_per_epoch)
        return Guard(
            monitor, budget, steps, first=math.ceil(settings.guard_from * steps[-1]),
            head=model.classifier if isinstance(model.classifier, nn.Linear) and HEADS[settings.head].trained else None,
            validate=lambda: accuracy(model, self.inputs, "validation"), echo=self.reporter.say,
        )  # fmt: skip

    def _plan(self, model: ImageClassifier, monitor: DriftMonitor, guard: Guard | None) -> TrainingPlan:
        settings, inputs, target = self.settings, self.inputs, self.target
        monitored = next((item for item in inputs.transfer if item.monitor is not None), None)
        first: dict[str, Any] = {"step": 0, "epoch": 0.0, **_no_drift(self.inputs).row()}
        if monitored is not None:
            before = inputs.results.transfer(monitored, monitored.monitor)
            first["monitor_zero_shot_accuracy"] = before.accuracy
            first["monitor_zero_shot_retention_pct"] = monitored.retention(before.accuracy, before.accuracy, before.n)
        return TrainingPlan(
            settings=settings,
            images=target.train,
            labels=torch.from_numpy(target.splits.train.labels),
            monitor=monitor,
            validate=lambda: accuracy(model, inputs, "validation"),
            monitor_zero_shot=(lambda: monitored_accuracy(monitored, model, inputs)) if monitored else None,
            monitored_retention=(lambda value: monitored.retention(value, before.accuracy, before.n))
            if monitored
            else (lambda _: None),
            baseline=first,
            save_weights=lambda name: self.files.save_checkpoint(model, name),
            context=loss_context(inputs, self.reporter.phase),
            device=inputs.device,
            guard=guard,
            trackers=self.settings.trackers,
            run_id=inputs.run.run_id,
            study=self.files.study_name(),
        )

    def _measured(
        self, model: ImageClassifier, result: FitResult, guard: Guard | None, values: dict[str, Any]
    ) -> dict[str, Any]:
        """The record of a run that has finished its training: the selected checkpoint measured."""
        if self.settings.keep != "best":
            self.files.save_final(model, result, guarded=guard is not None)
        selected = self.files.load_selected()
        self.reporter.phase("test")
        if self.settings.selection == "test":
            # The test split selects the checkpoint and gives the reported accuracy too; the report warns of it. All other
            # numbers are those of the last epoch, as in the original study.
            values["test_accuracy"] = result.best_accuracy
            measured = model
        else:
            values["test_accuracy"] = accuracy(selected, self.inputs, "test")
            measured = selected
        if measured is model and guard is None and result.final_drift is not None:
            drift = result.final_drift  # nothing has changed the model since
        else:
            drift = drift_of(measured, self.inputs)
        transfer, details = self._transfer(measured, drift)
        self.files.write_maps(measured)
        record = self._record("finished", values | drift.columns("runs") | transfer, details)
        record["measured_checkpoint"] = "final" if self.settings.selection == "test" else "selected"
        record["embedding_distance"] = drift.embedding_distance
        record["loss_active_fractions"] = result.active_fractions
        if guard is not None:
            record["guard"] = guard.summary() | {"events": [event.to_json() for event in guard.events]}
        trained = Trained(
            pretrained=self.inputs.pretrained.model,
            last=lambda: copy.deepcopy(model),
            selected=lambda: self.files.load_selected(merged=True),
            validate=lambda one: accuracy(one, self.inputs, "validation"),
            agreement=self._agreement,
        )
        record["outcomes"] = outcome_records(
            record, trained, result.followers, self._outcome_columns, self.reporter.phase
        )
        return record

    def _agreement(self, model: ImageClassifier) -> float:
        """The share of the monitored images whose zero-shot prediction is that of the pretrained model."""
        inputs = self.inputs
        item = next((one for one in inputs.transfer if one.monitor is not None), None)
        if item is None or item.monitor is None:
            raise ValueError(
                f"`outcomes`: there are no images to monitor: {next(iter(inputs.absent.values()), 'no set')}"
            )
        now = item.watch(model, inputs.pretrained, self.settings, item.monitor)
        return float((now.predictions == inputs.results.transfer(item, item.monitor).predictions).mean())

    def _outcome_columns(self, model: ImageClassifier) -> tuple[dict[str, Any], dict[str, Any]]:
        """Columns and details of a model that was made of the trained one."""
        drift = drift_of(model, self.inputs)
        validated = accuracy(model, self.inputs, "validation")
        tested = validated if self.settings.selection == "test" else accuracy(model, self.inputs, "test")
        transfer, details = self._transfer(model, drift, keep=False)
        return {"best_val_accuracy": validated, "test_accuracy": tested} | drift.columns("runs") | transfer, details

    def _transfer(
        self, model: ImageClassifier | None, drift: Drift, *, keep: bool = True
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        return measure_transfer(self.inputs, self.reporter, model, drift, self.files.write_transfer if keep else None)

    def _record(
        self, status: str, values: dict[str, Any], transfer: dict[str, Any], problem: str | None = None
    ) -> dict[str, Any]:
        return run_record(self.inputs, status, values, transfer, self.reporter.seconds(), problem)
