"""EMA: an exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attndrift.study.outcomes.registry import Outcome, Trained, outcome


class Average:
    """The average of a model's trained parameters so far, on their device."""

    def __init__(self, model: Any, decay: float) -> None:
        self.decay = decay
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.values = {name: p.detach().clone() for name, p in self._live.items()}

    def after_step(self, step: int) -> None:
        """Move the average towards the weights. Early ones count for less: the decay grows to its value."""
        decay = min(self.decay, step / (step + 9))
        for name, parameter in self._live.items():
            self.values[name].lerp_(parameter.detach(), 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """The average."""
        return {"values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put an average back."""
        for name, value in state["values"].items():
            self.values[name].copy_(value)


@outcome
class EMA(Outcome):
    """The exponential moving average of everything that is trained, after every step."""

    name, label = "ema", "EMA"
    source = "Polyak and Juditsky 1992; the decay grows as in TensorFlow's averages"
    meaning = "the average of the trained weights over the steps, later ones counting more"
    parameter, default, low, high = "decay", 0.999, 0.0, 0.999999

    def follow(self, value: float, model: Any) -> Average:
        """Begin with the weights as they are."""
        return Average(model, value)

    def finish(self, value: float, run: Trained) -> Any:
        """The model after the last step with the averaged weights in place of its own."""
        # Imported here: the facts of an outcome are read without torch.
        import torch

        model = run.last()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in run.follower.values:
                    parameter.copy_(run.follower.values[name])
        return model
