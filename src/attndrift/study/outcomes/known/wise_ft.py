"""WiSE-FT: weights between the pretrained and the trained ones, at a given alpha or at one that a rule chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attndrift.study.outcomes.registry import Outcome, Trained, outcome

ALPHAS = tuple(step / 20 for step in range(21))
"""Where a rule looks."""


def interpolator(run: Trained) -> tuple[Any, Callable[[float], None]]:
    """The selected model, and what puts its encoder at an alpha; the classifier stays."""
    # Imported here: the facts of an outcome are read without torch.
    from attndrift.methods.interpolation import interpolate_weights

    model = run.selected()
    start = dict(run.pretrained.named_parameters())
    end = {name: parameter.detach().clone() for name, parameter in model.backbone.named_parameters()}
    return model, lambda alpha: interpolate_weights(model.backbone, start, end, alpha)


@outcome
class WiSEFT(Outcome):
    """The selected weights, drawn back towards the pretrained ones: theta = (1 - alpha) theta0 + alpha theta1."""

    name, label = "wise_ft", "WiSE-FT"
    source = "Wortsman et al. 2022"
    meaning = "the selected weights of the encoder, interpolated with the pretrained ones; the classifier stays"
    parameter, default, low, high = "alpha", 0.5, 0.0, 1.0

    def finish(self, value: float, run: Trained) -> Any:
        """The interpolated model; alpha 0 has the pretrained encoder, 1 the selected one."""
        model, put = interpolator(run)
        put(value)
        return model


@outcome
class ValidatedWiSEFT(Outcome):
    """WiSE-FT at the alpha nearest to the pretrained weights that validation accuracy allows."""

    name, label = "wise_ft_validated", "WiSE-FT by validation"
    source = "Wortsman et al. 2022, alpha chosen on validation images"
    meaning = "WiSE-FT at the smallest alpha within so many points of the best validation accuracy"
    parameter, default, low, high = "points given up", 1.0, 0.0, 100.0

    def finish(self, value: float, run: Trained) -> Any:
        """The model at the chosen alpha, of :data:`ALPHAS`."""
        model, put = interpolator(run)
        found = []
        for alpha in ALPHAS:
            put(alpha)
            found.append(run.validate(model))
        # Accuracies are ratios of whole numbers: a hair of room, so that rounding does not choose.
        enough = max(found) - value / 100 - 1e-12
        run.chosen["alpha"] = alpha = next(a for a, accuracy in zip(ALPHAS, found, strict=True) if accuracy >= enough)
        put(alpha)
        return model


@outcome
class UnlabelledWiSEFT(Outcome):
    """WiSE-FT at the alpha furthest from the pretrained weights that unlabelled images allow."""

    name, label = "wise_ft_unlabelled", "WiSE-FT by agreement"
    source = "this project: the zero-shot predictions of the pretrained model, no labels"
    meaning = "WiSE-FT at the largest alpha that keeps this share of the zero-shot predictions on the monitored images"
    parameter, default, low, high = "share of predictions kept", 0.9, 0.0, 1.0
    needs_unlabelled = True

    def finish(self, value: float, run: Trained) -> Any:
        """The model at the chosen alpha, of :data:`ALPHAS`; up to it, every one keeps the share."""
        model, put = interpolator(run)
        chosen = 0.0
        for alpha in ALPHAS[1:]:
            put(alpha)
            if run.agreement(model) < value:
                break
            chosen = alpha
        run.chosen["alpha"] = chosen
        put(chosen)
        return model
