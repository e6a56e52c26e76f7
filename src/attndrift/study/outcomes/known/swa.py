"""SWA: the plain mean of the trained weights at regular steps, the start among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attndrift.study.outcomes.registry import Outcome, Trained, outcome


class Mean:
    """The mean of a model's trained parameters at its start and after every so many steps, on their device."""

    def __init__(self, model: Any, every: int) -> None:
        self.every, self.count = every, 1
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.values = {name: p.detach().clone() for name, p in self._live.items()}

    def after_step(self, step: int) -> None:
        """Count the weights of this step, where it is one of those."""
        if step % self.every == 0:
            self.count += 1
            for name, parameter in self._live.items():
                self.values[name].lerp_(parameter.detach(), 1 / self.count)

    def state_dict(self) -> dict[str, Any]:
        """The mean, and of how many."""
        return {"values": self.values, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a mean back."""
        self.count = int(state["count"])
        for name, value in state["values"].items():
            self.values[name].copy_(value)


@outcome
class SWA(Outcome):
    """The mean of everything that is trained, of adapters the mean of their parameters."""

    name, label = "swa", "SWA"
    source = "Izmailov et al. 2018; with the start among them, as ZSCL (Zheng et al. 2023)"
    meaning = "the mean of the trained weights at the start and after every so many steps"
    parameter, default, low, high = "number of steps between two weights", 100, 1, 1e9

    def follow(self, value: float, model: Any) -> Mean:
        """Begin with the weights as they are."""
        return Mean(model, int(value))

    def finish(self, value: float, run: Trained) -> Any:
        """The model after the last step with the mean in place of its own weights."""
        # Imported here: the facts of an outcome are read without torch.
        import torch

        model = run.last()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in run.follower.values:
                    parameter.copy_(run.follower.values[name])
        return model
