"""Whether the model of each run has a place for what its method trains: asked of a model without weights."""

from __future__ import annotations

from typing import Any

from attndrift.data.errors import some
from attndrift.study.check_findings import Check
from attndrift.study.settings import Study

# Imports inside functions: these packages take time to load, which only who needs them pays.


def check_methods(found: Check, study: Study) -> None:
    """Add a problem for every method that its model cannot take; nothing for a model that is a problem itself."""
    if found.out_of_reach or any(finding.what.startswith("hub ") for finding in found.problems):
        return  # one fault, which is said once
    bad = {finding.what for finding in found.problems}
    asked: dict[str, Any] = {}
    runs: dict[str, list[str]] = {}
    for run in study.runs:
        settings = run.settings
        # What trains whole parts always finds them; adapters and blocks may have no place.
        if f"model {settings.model}" in bad or not (settings.facts.requires or settings.freeze_layers):
            continue
        from attndrift.study.resolved import adaptation

        key = f"{settings.model} {adaptation(settings)}"
        asked[key] = settings
        runs.setdefault(key, []).append(run.run_id)
    for key, settings in asked.items():
        from attndrift.methods.adaptation import count_parameters
        from attndrift.study.resolved import adaptation

        try:
            count_parameters(settings.model, adaptation(settings), 2)
        except (ValueError, NotImplementedError) as error:
            names = runs[key]
            what = f"run {names[0]}" if len(names) == 1 else f"{len(names)} runs ({some(names, 3)})"
            found.add(what, "problem", str(error), "correct the settings, or leave it out with --only")
        except (OSError, ImportError):
            pass  # the model, or a package, which is said with it
