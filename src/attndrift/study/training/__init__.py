"""One run's training: an explicit loop on ``accelerate``, with exact resumption."""

from attndrift.study.training.loop import fit
from attndrift.study.training.plan import FitResult, TrainingPlan, precision_of

__all__ = ["FitResult", "TrainingPlan", "fit", "precision_of"]
