"""A classifier that is fitted to the pretrained embeddings first; then everything is trained (LP-FT)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from attndrift.methods.registry import Head, head
from attndrift.own_settings import OwnSettings, setting


class FittedSettings(OwnSettings):
    """How it is fitted."""

    lp_c: Annotated[float, Field(gt=0)] = setting(
        0.316, "inverse penalty of the logistic regression that fits the head, as `C` of scikit-learn", label="C="
    )
    lp_steps: Annotated[int, Field(ge=0, le=1_000_000)] = setting(
        0, "full-batch steps of AdamW that fit the head instead; 0: logistic regression to its optimum", label="steps="
    )
    lp_learning_rate: Annotated[float, Field(gt=0, le=10)] = setting(
        1e-2, "rate of these steps of AdamW", label="head rate "
    )


@head
class Fitted(Head):
    """Linear, fitted to the training images' pretrained embeddings before the first step, then trained with the rest."""

    name, label, order = "lp_ft", "LP-FT head", 3
    source = "Kumar et al. 2022"
    starts = "a linear probe of the pretrained embeddings of the training images"
    Settings = FittedSettings
    fits = True

    def make(self, backbone: Any, n_classes: int, seed: int, settings: Any, text_features: Any) -> Any:
        """A linear layer from ``seed`` alone, to be fitted."""
        # Imported here: the facts of a head are read without torch.
        from attndrift.methods.classifier import new_classifier

        return new_classifier(backbone.dimensions, n_classes, seed)

    def fit(self, layer: Any, embeddings: Any, labels: Any, settings: Any) -> None:
        """Logistic regression, or the steps that the settings ask for."""
        # Imported here: the facts of a head are read without torch.
        from attndrift.methods.linear_probe import fit_by_steps, fit_logistic_regression

        if settings.lp_steps:
            fit_by_steps(layer, embeddings, labels, steps=settings.lp_steps, learning_rate=settings.lp_learning_rate)
        else:
            fit_logistic_regression(layer, embeddings, labels, c=settings.lp_c)
