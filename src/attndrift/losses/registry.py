"""The registry of preservation losses: one :class:`Loss` a loss, its class and the facts that everything else reads.

Settings, grids, run names, the dry run, tables, legends and the report know a loss from here. Nothing in this module
imports torch.

    LOSSES.register(Loss(name="l2_sp", make=L2SP, label="L2-SP", short_label="L2-SP", meaning="...", source="..."))
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from attndrift.own_settings import OwnSettings, departed
from attndrift.registry import Registry

Needs = Literal["attention", "registered backbone", "text tower", "reference images"]
"""What a loss needs: a model whose attention can be observed; one of a registered backbone; one with a text tower;
images of another dataset, which a study names by ``reference``."""


@dataclass(frozen=True)
class Loss:
    """One preservation loss.

    Attributes:
        name: in settings, tables and commands.
        make: its class, a :class:`~attndrift.losses.base.PreservationLoss`, or ``module:name`` of it.
        label: in sentences; ``short_label`` in tables and legends.
        meaning: what is added to the task's loss, in one phrase; ``source`` says where it comes from.
        formula: the same in symbols: w weights, a attention, h hidden states, z embeddings, l zero-shot logits; a 0 marks
            pretrained values.
        Settings: settings of its own, which a study file names beside the others.
        needs: see :data:`Needs`.
        teacher: what the model is held to. The losses of one run have one teacher.
        cached_passes: forward passes a training image that are made once; ``step_passes`` in every step.
        reference_passes: forward passes a reference image that are made once.
        check: told its own settings and the adapted model, without weights (on torch's ``meta`` device); raises
            ValueError for what cannot be.
        reports_active: whether it counts how often it was active (``last_active``).
    """

    name: str
    make: Any
    label: str
    short_label: str
    meaning: str
    source: str
    formula: str = ""
    Settings: type[OwnSettings] = OwnSettings
    needs: tuple[Needs, ...] = ()
    teacher: str = "the pretrained model"
    cached_passes: float = 0.0
    step_passes: float = 0.0
    reference_passes: float = 0.0
    check: Callable[[Any, Any], None] | None = None
    reports_active: bool = False

    @property
    def cost(self) -> str:
        """What it costs beyond the training, in words."""
        parts = (
            (self.cached_passes, "a training image, once"),
            (self.reference_passes, "a reference image, once"),
            (self.step_passes, "an image, in every step"),
        )
        said = [f"{count:g} forward pass{'' if count == 1 else 'es'} {when}" for count, when in parts if count]
        return "; ".join(said) or "no forward pass"

    @property
    def needed(self) -> str:
        """What it needs, in words."""
        return ", ".join(self.needs) or "nothing"

    @property
    def cls(self) -> Any:
        """The class itself."""
        if not isinstance(self.make, str):
            return self.make
        module, _, name = self.make.partition(":")
        return getattr(importlib.import_module(module), name)

    def run_name(self, weight: str, settings: OwnSettings) -> str:
        """The part of a run's folder name."""
        return "-".join([f"{self.name.replace('_', '-')}{weight}", *departed(settings)])


LOSSES: Registry[Loss] = Registry("loss", "attndrift.losses.facts", group="attndrift.losses")
"""All losses: those of :mod:`attndrift.losses.facts`, those of installed packages, and those of this process."""


def short_label_of(name: str) -> str:
    """A loss's label in tables and legends; of one that is not known, its name."""
    return LOSSES[name].short_label if name in LOSSES else name
