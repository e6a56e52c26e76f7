"""What of a run needs a text tower, for a model without one: said by name before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attndrift.losses.registry import LOSSES
from attndrift.methods.registry import HEADS
from attndrift.models.backbone import of_model_type, scheme_of
from attndrift.results.measures import MEASURES, measure_of_metric
from attndrift.study.outcomes.registry import parse_outcome
from attndrift.study.set_descriptions import measures_of
from attndrift.study.settings import RunSettings


def text_problem(settings: RunSettings) -> str | None:
    """The first setting of a run that needs a text tower, and what needs none; None where nothing does."""
    head = HEADS[settings.head]
    if head.needs_text or head.live:
        others = [one.name for one in HEADS if not (one.needs_text or one.live)]
        return _said("head", head.name, others)
    losses = [name for name in settings.losses if "text tower" in LOSSES[name].needs]
    if losses:
        return _said("loss", losses[0], [one.name for one in LOSSES if "text tower" not in one.needs])
    asked = [name for one in settings.transfer for name in measures_of(settings, one)]
    guarded = measure_of_metric(settings.guard) if settings.guard else None
    measures = [name for name in [*asked, *filter(None, [guarded])] if MEASURES[name].needs_text]
    if measures:
        return _said("measures", measures[0], [one.name for one in MEASURES if not one.needs_text])
    outcomes = [text for text in settings.outcomes if parse_outcome(text)[0].needs_unlabelled]
    return _said("outcomes", outcomes[0], []) if outcomes else None


def _said(field: str, name: str, others: list[str]) -> str:
    possible = f"; {', '.join(others)} need none" if others else ""
    return f"`{field}`: {name} needs a text tower, which `model` does not have{possible}"


def lacks_text_tower(source: str, config: Mapping[str, Any] | None) -> bool:
    """Whether a model is known to have no text tower, from its source or its config, None where that is not known."""
    scheme = scheme_of(source)
    if scheme is not None:
        return not scheme[0].text_tower
    found = None if config is None else of_model_type(config.get("model_type"))
    return found is not None and not found[0].text_tower
