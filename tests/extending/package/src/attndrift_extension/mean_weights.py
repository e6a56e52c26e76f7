"""An outcome: the plain mean of the trained weights over the last steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attndrift.study.outcomes.registry import Outcome, Trained, outcome


class Mean:
    """The mean of the trained weights from one step on."""

    def __init__(self, model: Any, first: int) -> None:
        self.first, self.count = first, 0
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.values = {name: p.detach().clone() for name, p in self._live.items()}

    def after_step(self, step: int) -> None:
        """Count the weights of this step."""
        if step >= self.first:
            self.count += 1
            for name, parameter in self._live.items():
                self.values[name].lerp_(parameter.detach(), 1 / self.count)

    def state_dict(self) -> dict[str, Any]:
        """The mean so far."""
        return {"values": self.values, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a mean."""
        self.count = state["count"]
        for name, value in state["values"].items():
            self.values[name].copy_(value)


@outcome
class MeanWeights(Outcome):
    """The mean of the weights, each step counting the same."""

    name, label = "mean_weights", "mean weights"
    source = "Izmailov et al. 2018"
    meaning = "the mean of the trained weights over the steps"
    parameter, default, low = "first step", 1, 1

    def follow(self, value: float, model: Any) -> Mean:
        """Begin with the first step."""
        return Mean(model, int(value))

    def finish(self, value: float, run: Trained) -> Any:
        """The last model with the mean in place of its weights."""
        model = run.last()
        for name, parameter in model.named_parameters():
            if name in run.follower.values:
                parameter.data.copy_(run.follower.values[name])
        return model
