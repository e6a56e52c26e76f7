"""WiSE-FT: weights between the pretrained and the trained ones."""

from __future__ import annotations

from typing import Any

from attndrift.study.outcomes.registry import Outcome, Trained, outcome


@outcome
class WiSEFT(Outcome):
    """The selected weights, drawn back towards the pretrained ones: theta = (1 - alpha) theta0 + alpha theta1."""

    name, label = "wise_ft", "WiSE-FT"
    source = "Wortsman et al. 2022"
    meaning = "the selected weights of the encoder, interpolated with the pretrained ones; the classifier stays"
    parameter, default, low, high = "alpha", 0.5, 0.0, 1.0

    def finish(self, value: float, run: Trained) -> Any:
        """The interpolated model; alpha 0 has the pretrained encoder, 1 the selected one."""
        # Imported here: the facts of an outcome are read without torch.
        from attndrift.methods.interpolation import interpolate_weights

        model = run.selected()
        end = {name: parameter.detach().clone() for name, parameter in model.backbone.named_parameters()}
        interpolate_weights(model.backbone, dict(run.pretrained.named_parameters()), end, value)
        return model
