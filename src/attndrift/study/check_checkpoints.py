"""Whether the published checkpoints that a study measures can be had: without reading their weights."""

from __future__ import annotations

from collections.abc import Collection

from attndrift.study.check_findings import Check, Download
from attndrift.study.settings import Study

# Imports inside functions: these packages take time to load, which only who needs them pays.


def checkpoints_of(study: Study) -> list[str]:
    """The checkpoints that runs put in place of the image tower's weights."""
    return list(dict.fromkeys(run.settings.own["checkpoint"] for run in study.runs if run.settings.facts.replaces))


def check_checkpoints(found: Check, study: Study) -> None:
    """Add what is found of every checkpoint."""
    sources = checkpoints_of(study)
    if not sources:
        return
    from attndrift import hub_client
    from attndrift.models.errors import HubError, ModelError
    from attndrift.models.hub import convert_hint, resolve_model

    for source in sources:
        what = f"checkpoint {source}"
        try:
            resolved = resolve_model(source)
        except ModelError as error:
            reason = hub_client.why_unreachable()
            if isinstance(error, HubError) and error.reason in ("no route", "offline") and reason is not None:
                found.out_of_reach[what] = reason
            else:
                found.add(what, "problem", str(error).removeprefix(f"{source}: "))
            continue
        at = f"{resolved.commit} ({resolved.how})" if resolved.commit else "a folder"
        if not resolved.weights:
            found.add(what, "problem", f"{at}; holds no safetensors weights", convert_hint(source))
            continue
        found.add(what, "ok", at)
        if resolved.bytes_to_download:
            from huggingface_hub import constants

            found.downloads.append(Download(what, resolved.bytes_to_download, str(constants.HF_HUB_CACHE)))


def fetch_checkpoints(study: Study, wanted: Collection[str]) -> None:
    """Download those of ``wanted`` that are checkpoints, by what findings call them. Raises ``ValueError``."""
    for source in checkpoints_of(study):
        if f"checkpoint {source}" in wanted:
            from attndrift.models.hub import resolve_model

            resolved = resolve_model(source)
            resolved.fetch([*resolved.weights, *resolved.others])
