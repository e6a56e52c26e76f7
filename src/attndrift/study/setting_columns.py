"""The columns of the table ``runs`` that a run's settings alone decide: nothing here imports torch."""

from __future__ import annotations

from typing import Any

from attndrift.study.optimisation import optimisation_text
from attndrift.study.settings import RunSettings
from attndrift.study.trained_parts import parts_text


def setting_columns(settings: RunSettings) -> dict[str, Any]:
    """Columns of ``runs`` by name; ``epochs`` is null where the training is counted in steps."""
    trains = settings.facts.adapts
    return {
        "experiment": settings.experiment,
        "selection": settings.selection,
        "model": settings.model,
        "dataset": settings.dataset,
        "method": settings.method,
        "learning_rate": settings.learning_rate if trains else None,
        "seed": settings.seed,
        "data_seed": settings.data_seed,
        "epochs": settings.epochs if trains and settings.steps is None else None,
        "optimisation": optimisation_text(settings) if trains else None,
        "batch_size": settings.batch_size if trains else None,
        "weight_decay": settings.weight_decay if trains else None,
        **settings.own,
        "train_projection": settings.train_projection if trains else None,
        "freeze_layers": settings.freeze_layers if settings.facts.freezes_blocks else None,
        "trained_parts": parts_text(settings) if trains else None,
        "loss": settings.loss,
        "head": settings.head if trains else None,
        "guard": settings.guard,
        "guard_at_least": settings.guard_at_least,
        "guard_at_most": settings.guard_at_most,
    }
