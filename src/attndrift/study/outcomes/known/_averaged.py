"""What the averages of a training share: what is averaged, how it is kept, and the model that it makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attndrift.study.outcomes.registry import Trained


class Averaged:
    """An average of the weights that a model trains, on their device; under adapters, of the merged weights."""

    def __init__(self, model: Any) -> None:
        # Imported here: the facts of an outcome are read without torch.
        from attndrift.methods.effective_weights import EffectiveWeights

        self._live = EffectiveWeights(model)
        self.values = {name: value.clone() for name, value in self._live.read()}

    def move(self, share: float) -> None:
        """Move the average by ``share`` of the way towards the weights as they are."""
        for name, value in self._live.read():
            self.values[name].lerp_(value, share)

    def state_dict(self) -> dict[str, Any]:
        """The average."""
        return {"values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put an average back."""
        for name, value in state["values"].items():
            self.values[name].copy_(value)


def averaged_model(run: Trained) -> Any:
    """The model after the last step, adapters merged, with the average in place of the weights that were trained."""
    import torch  # the facts of an outcome are read without it

    model = run.last()
    model.model = model.settings.with_adapters.merge(model.model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in run.follower.values.items():
            parameters[name].copy_(value)
    return model
