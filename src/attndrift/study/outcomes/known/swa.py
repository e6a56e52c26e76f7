"""SWA: the plain mean of the trained weights at regular steps, the start among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attndrift.study.outcomes.known._averaged import Averaged, averaged_model
from attndrift.study.outcomes.registry import Outcome, Trained, outcome


class Mean(Averaged):
    """The mean at the start and after every so many steps."""

    def __init__(self, model: Any, every: int) -> None:
        super().__init__(model)
        self.every, self.count = every, 1

    def after_step(self, step: int) -> None:
        """Count the weights of this step, where it is one of those."""
        if step % self.every == 0:
            self.count += 1
            self.move(1 / self.count)

    def state_dict(self) -> dict[str, Any]:
        """The mean, and of how many."""
        return super().state_dict() | {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a mean back."""
        super().load_state_dict(state)
        self.count = int(state["count"])


@outcome
class SWA(Outcome):
    """The mean of everything that is trained; of adapters, of the merged weights."""

    name, label = "swa", "SWA"
    source = "Izmailov et al. 2018; with the start among them, as ZSCL (Zheng et al. 2023)"
    meaning = "the mean of the trained weights at the start and after every so many steps; adapters merged"
    parameter, default, low, high = "number of steps between two weights", 100, 1, 1e9

    def follow(self, value: float, model: Any) -> Mean:
        """Begin with the weights as they are."""
        return Mean(model, int(value))

    def finish(self, value: float, run: Trained) -> Any:
        """The model after the last step with the mean in place of its own weights."""
        return averaged_model(run)
