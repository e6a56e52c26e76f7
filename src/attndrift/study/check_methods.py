"""Whether the model of each run has a place for what its method trains, and its losses can see it: asked of a model without weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attndrift.data.errors import some
from attndrift.losses.registry import LOSSES
from attndrift.methods.registry import HEADS
from attndrift.study.check_findings import Check
from attndrift.study.model_sizes import ModelSizes
from attndrift.study.settings import Study, named_measures
from attndrift.study.text_needs import lacks_text_tower

# Imports inside functions: these packages take time to load, which only who needs them pays.


def check_methods(found: Check, study: Study, configs: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Add a problem for every method and loss that its model cannot take; nothing for a model that is a problem itself.

    ``configs``: of the models, by model, where they are known.
    """
    if found.out_of_reach or any(finding.what.startswith("hub ") for finding in found.problems):
        return  # one fault, which is said once
    bad = {finding.what for finding in found.problems}
    asked: dict[str, Any] = {}
    runs: dict[str, list[str]] = {}
    for run in study.runs:
        settings = run.settings
        # What trains whole parts always finds them; adapters and blocks may have no place.
        asks = settings.facts.requires or settings.freeze_layers or settings.freeze_blocks or HEADS[settings.head].live
        asks = asks or any(LOSSES[one].check for one in settings.losses)
        asks = asks or lacks_text_tower(settings.model, (configs or {}).get(settings.model))
        if f"model {settings.model}" in bad or not asks:
            continue
        from attndrift.study.resolved import adaptation

        key = (
            f"{settings.model} {adaptation(settings)} {list(settings.losses)} {settings.own} {named_measures(settings)}"
        )
        asked[key] = settings
        runs.setdefault(key, []).append(run.run_id)
    sizes = ModelSizes()
    for key, settings in asked.items():
        try:
            sizes.parameters(settings, 2)
        except (ValueError, NotImplementedError) as error:
            names = runs[key]
            what = f"run {names[0]}" if len(names) == 1 else f"{len(names)} runs ({some(names, 3)})"
            found.add(what, "problem", str(error), "correct the settings, or leave it out with --only")
        except (OSError, ImportError):
            pass  # the model, or a package, which is said with it
    sizes.keep()
