"""The rows of a run's outcomes: each made and measured as the run itself was, without training anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from attndrift.study.outcomes.registry import Follower, Trained, outcome_label, outcome_run, parse_outcome

Measure = Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]
"""From a model to its columns of the table ``runs``, and the details of its transfer."""

OF_THE_TRAINING = ("selected_epoch", "loss_active_fraction", "guard_outcome")
"""Columns that describe a training, which an outcome has none of."""


def outcome_records(
    record: Mapping[str, Any],
    trained: Trained,
    followers: Mapping[str, Follower],
    measure: Measure,
    say: Callable[[str], object],
) -> list[dict[str, Any]]:
    """What the record of a finished run says of its outcomes: ``run_id``, ``row`` and ``transfer`` of each.

    Args:
        record: of the run itself.
        trained: the run's models.
        followers: what outcomes kept of its steps, by their text.
        measure: columns of a model that is measured as the run's own was.
        say: is told which outcome is measured.

    A row holds what differs from the run's own: what was measured, ``parent_run`` and ``outcome``, and null for what
    describes a training.
    """
    found = []
    for text in record["settings"]["outcomes"]:
        outcome, value = parse_outcome(text)
        say(f"outcome {outcome_label(text)}")
        own_run = replace(trained, follower=followers.get(text), chosen={})
        values, transfer = measure(outcome.finish(value, own_run))
        name = outcome_run(record["run_id"], text)
        own = dict.fromkeys(OF_THE_TRAINING) | {"parent_run": record["run_id"], "outcome": text}
        own["outcome_alpha"] = own_run.chosen.get("alpha")
        found.append({"run_id": name, "row": values | own, "transfer": transfer})
    return found
