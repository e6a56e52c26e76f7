"""Whether the models of a study can be had, and are what a study trains: without reading their weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from attndrift import models
from attndrift.models.backbone import OBSERVED, not_trained, of_model_type, scheme_of
from attndrift.models.weight_files import damaged_weights, unlike_config
from attndrift.study.check_findings import Check, Download, listed
from attndrift.study.pinning import changed_revision
from attndrift.study.settings import NamedRun, Study

# Imports inside functions: these packages take time to load, which only who needs them pays.

_TOWERS = ("text_config", "vision_config")
_TOKENIZER = {"tokenizer.json", "vocab.json"}
_PROCESSOR = {"preprocessor_config.json", "processor_config.json"}


def sources_of(study: Study, found: Check) -> dict[tuple[str, str | None], list[NamedRun]]:
    """The runs by the model that they load: as it is named, and the commit that they go on with."""
    sources: dict[tuple[str, str | None], list[NamedRun]] = {}
    for run in study.runs:
        sources.setdefault((run.settings.model, found.commits.get(run.run_id)), []).append(run)
    return sources


def check_models(found: Check, study: Study, recorded: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Add what is found of every model, and return their configs, by model, where they can be told."""
    configs: dict[str, Mapping[str, Any]] = {}
    for (source, commit), runs in sources_of(study, found).items():
        # Said already, and there is no saying which commit is meant.
        if any(finding.what == f"model {source}" and finding.state == "problem" for finding in found.findings):
            continue
        config = _model(found, source, commit, runs, recorded)
        if config is not None:
            configs[source] = config
    return configs


def _model(
    found: Check,
    source: str,
    commit: str | None,
    runs: list[NamedRun],
    recorded: Mapping[str, Mapping[str, Any]],
) -> Mapping[str, Any] | None:
    """Add what is found of one model; its config, None where that cannot be told."""
    what = f"model {source}"
    folder = Path(source)
    if source == "embedded":
        found.add(what, "ok", "comes with the package")
        return _checked(_read_config(Path(models.__file__).parent / "embedded" / "config.json"))
    scheme = scheme_of(source)
    if scheme is not None:
        _of_scheme(found, what, source, scheme[0].name, commit)
        return None
    if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
        # A usual folder needs none of the imports below.
        if _damaged(found, what, "a folder", damaged_weights(folder), folder):
            return None
        return _model_files(found, what, {path.name for path in folder.iterdir()}, folder / "config.json", "a folder")
    from attndrift import hub_client
    from attndrift.models.errors import HubError, ModelError
    from attndrift.models.hub import resolve_model

    try:
        resolved = resolve_model(source, recorded_commit=commit)
        if resolved.how == "config":
            from attndrift.models.load import load_config

            made = load_config(source)
            found.add(what, "ok", "random weights, made from its config")
            return _checked(made.to_dict())
        if _other_commit(found, what, resolved.commit, runs, recorded):
            return None
        config = resolved.fetch(["config.json"]) / "config.json"
    except ModelError as error:
        reason = hub_client.why_unreachable()
        if isinstance(error, HubError) and error.reason in ("no route", "offline") and reason is not None:
            found.out_of_reach[what] = reason
        else:
            # The message ends with what to do.
            found.add(what, "problem", str(error).removeprefix(f"{source}: "))
        return None
    at = f"{resolved.commit} ({resolved.how})" if resolved.commit else "a folder"
    if not resolved.weights:
        found.add(what, "problem", f"{at}; holds no safetensors weights", f"attndrift convert {source} FOLDER")
        return None
    if _damaged(found, what, at, resolved.damaged_weights(), config.parent):
        return None
    content = _model_files(found, what, set(resolved.files), config, at)
    if resolved.bytes_to_download:
        from huggingface_hub import constants

        found.downloads.append(Download(what, resolved.bytes_to_download, str(constants.HF_HUB_CACHE)))

    return content


def _of_scheme(found: Check, what: str, source: str, backbone: str, commit: str | None) -> None:
    """Add what is found of a model that a backbone loads by itself, made without its weights."""
    from attndrift.extras import MissingExtraError
    from attndrift.models.errors import ModelError
    from attndrift.models.hub import resolve_model
    from attndrift.models.load import load_shape

    try:
        commit = resolve_model(source, recorded_commit=commit).commit
        load_shape(source)
    except (ModelError, MissingExtraError) as error:
        found.add(what, "problem", str(error).removeprefix(f"{source}: "))
        return
    found.add(what, "ok", f"made by the backbone `{backbone}`{f', commit {commit}' if commit else ''}")


def _other_commit(
    found: Check, what: str, commit: str | None, runs: list[NamedRun], recorded: Mapping[str, Mapping[str, Any]]
) -> bool:
    """Whether a run was begun with another commit than is asked for now; then it is a problem, and not downloaded."""
    for run in runs:
        changed = changed_revision(
            run.model_copy(update={"model_revision": commit}), recorded.get(run.run_id, {"model_revision": None})
        )
        if changed is not None:
            name = run.settings.model.partition("@")[0]
            found.add(
                what,
                "problem",
                f"run {run.run_id} was started with `model` {name!r} at commit {changed[0]}; now {run.settings.model!r} "
                f"asks for commit {changed[1]}",
                "name the model without a revision to go on with the recorded one, or use another folder (--output)",
            )
            return True
    return False


def _damaged(found: Check, what: str, at: str, damaged: Mapping[str, str], folder: Path) -> bool:
    """Whether files of weights are cut or missing; then it is a problem."""
    if not damaged:
        return False
    if at == "a folder":
        remedy = f"copy or save the model's weights again, into {folder}"
    else:
        remedy = f"remove {listed(str(folder / name) for name in damaged)}, and run again where the hub can be asked"
    found.add(what, "problem", f"{at}; {listed(f'{name} {wrong}' for name, wrong in damaged.items())}", remedy)
    return True


def _read_config(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _checked(config: Any) -> Mapping[str, Any]:
    """A config of which the parts of both towers are mappings."""
    return {**config, **{part: config[part] if isinstance(config.get(part), dict) else {} for part in _TOWERS}}


def _model_files(found: Check, what: str, files: set[str], config: Path, at: str) -> Mapping[str, Any] | None:
    try:
        content = _read_config(config)
        kind = content.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        found.add(what, "problem", f"{at}; its config.json cannot be read: {error}", "download or save it again")
        return None
    known = of_model_type(kind)
    if known is None:
        found.add(what, "problem", f"{at}; its config.json is of {not_trained(kind)}", OBSERVED)
        return _checked(content)
    needed = (("tokenizer", _TOKENIZER), ("image processor", _PROCESSOR))[0 if known[0].text_tower else 1 :]
    lacking = [name for name, names in needed if not names & files]
    refused = known[1].refused(SimpleNamespace(**{"architectures": None, **content}))
    unlike = unlike_config(config.parent, content)
    if refused is not None:
        detail, _, remedy = refused.partition(". ")
        found.add(what, "problem", f"{at}; {detail}", remedy)
    elif unlike is not None:
        found.add(what, "problem", f"{at}; {unlike}", "put the config.json that was saved with the weights beside them")
    elif lacking:
        detail = f"{at}; holds no {' and no '.join(lacking)}"
        found.add(what, "problem", detail, "save those of the model it came from beside it (save_pretrained)")
    else:
        found.add(what, "ok", f"{at}; safetensors, {', '.join(name for name, _ in needed)}")
    return _checked(content)
