"""What a run has before it trains: its settings, the images, the pretrained model and what that makes of the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from attndrift.drift.drift import Snapshot
from attndrift.methods.registry import HEADS
from attndrift.models.backbone import backbone_of
from attndrift.models.reference import at_commit
from attndrift.process_group import Processes
from attndrift.retention.text_encoder import class_tokens
from attndrift.study.dataset_splits import templates_of
from attndrift.study.pretrained import Pretrained
from attndrift.study.pretrained_results import PretrainedResults
from attndrift.study.reference_images import ReferenceSet
from attndrift.study.resources import StudyResources
from attndrift.study.run_images import Target, TransferSet
from attndrift.study.settings import NamedRun, RunSettings
from attndrift.study.text_needs import text_problem
from attndrift.study.used_inputs import inputs_of, places_of


@dataclass(frozen=True)
class RunInputs:
    """The inputs of one run; those that other runs of the study share are made once.

    Attributes:
        transfer: the zero-shot sets.
        absent: those that are out of reach, and why.
        reference: the reference images of its losses, where one needs them.
        results: what the pretrained model comes to on the run's images.
        baseline: the pretrained model on the probe images.
    """

    run: NamedRun
    resources: StudyResources
    device: torch.device
    pretrained: Pretrained
    target: Target
    transfer: list[TransferSet]
    absent: dict[str, str]
    reference: ReferenceSet | None
    results: PretrainedResults
    baseline: Snapshot

    @classmethod
    def load(cls, run: NamedRun, resources: StudyResources, device: torch.device, reporter: Any) -> RunInputs:
        """Load or make everything. Raises what the model, the images and the settings are refused with."""
        settings = run.settings
        reporter.phase("images")
        pretrained = resources.pretrained(at_commit(settings.model, run.model_revision), device)
        problem = text_problem(settings) if backbone_of(pretrained.model).text_encoder is None else None
        if problem is not None:
            raise ValueError(problem)
        target = resources.target(settings, pretrained)
        transfer, absent = resources.transfer_sets(settings, target, pretrained)
        for name, reason in absent.items():
            reporter.say(f"transfer set {name} is left out: {reason}")
        for item in transfer:
            if item.dropped:
                reporter.say(
                    f"transfer set {item.name}: {len(item.dropped)} of {len(item.dropped) + len(item.evaluation.part)} images "
                    "are left out, as near-duplicates of training images (`duplicates: drop`)"
                )
            for whose, (count, every) in item.compared.items():
                reporter.say(
                    f"transfer set {item.name}: near-duplicates were looked for among {count:,} of {every:,} {whose}"
                )
        reference = resources.reference(settings, target, pretrained, transfer)
        reporter.say(target.splits.who_gets_what)
        if reference is not None:
            reporter.say(f"reference: {len(reference.part)} training images of {reference.name}")
        processes = Processes.current()
        with processes.agreeing():
            if processes.first:
                others = [item.dataset for item in transfer] + ([reference.dataset] if reference else [])
                places = places_of([target.dataset, *others])
                reporter.inputs(inputs_of(settings, pretrained, target, transfer, reference), places)
        reporter.phase("the pretrained model")
        results = resources.results(settings, target, pretrained)
        return cls(run, resources, device, pretrained, target, transfer, absent, reference, results, results.baseline())

    @property
    def settings(self) -> RunSettings:
        """Of the run."""
        return self.run.settings

    def class_tokens(self) -> torch.Tensor | None:
        """Token ids of the class prompts (classes, templates, tokens), for a head that encodes them at every pass."""
        if not HEADS[self.settings.head].live:
            return None
        names, templates = self.target.class_names, templates_of(self.target.dataset, self.settings)
        return class_tokens(self.pretrained.model, self.pretrained.tokenizer, names, templates)
