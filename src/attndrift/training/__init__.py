"""One run's training, on ``transformers.Trainer``: exact resumption, regularizers, validation, history."""

from attndrift.training.fit import FitResult, TrainingPlan, fit

__all__ = ["FitResult", "TrainingPlan", "fit"]
