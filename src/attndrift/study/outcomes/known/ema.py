"""EMA: an exponential moving average of the trained weights."""

from __future__ import annotations

from typing import Any

from attndrift.study.outcomes.known._averaged import Averaged, averaged_model
from attndrift.study.outcomes.registry import Outcome, Trained, outcome


class Average(Averaged):
    """The average so far."""

    def __init__(self, model: Any, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    def after_step(self, step: int) -> None:
        """Move the average towards the weights. Early ones count for less: the decay grows to its value."""
        self.move(1 - min(self.decay, step / (step + 9)))


@outcome
class EMA(Outcome):
    """The exponential moving average of everything that is trained, after every step; of adapters, of the merged weights."""

    name, label = "ema", "EMA"
    source = "Polyak and Juditsky 1992; the decay grows as in TensorFlow's averages"
    meaning = "the average of the trained weights over the steps, later ones counting more; adapters merged"
    parameter, default, low, high = "decay", 0.999, 0.0, 0.999999

    def follow(self, value: float, model: Any) -> Average:
        """Begin with the weights as they are."""
        return Average(model, value)

    def finish(self, value: float, run: Trained) -> Any:
        """The model after the last step with the averaged weights in place of its own."""
        return averaged_model(run)
