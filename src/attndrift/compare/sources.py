"""Either side of a comparison as one model, whatever was named: every tensor in place, or an error.

A side is a model folder, a hub name, ``embedded``, a run's folder or checkpoint, a ``peft`` adapter, or a model in
memory; the adapted side may also be a vision tower on its own. Adapters end up merged, so that both sides are
plain models that can be compared tensor by tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig

from attndrift.compare.adapter_source import ADAPTER_CONFIG, base_named_by, merged_adapter
from attndrift.compare.errors import CompareError
from attndrift.compare.model_files import check_unexpected_keys, read_object, weight_files
from attndrift.compare.object_source import from_object
from attndrift.compare.resolved import ResolvedModel
from attndrift.compare.tower_source import tower_on
from attndrift.files import refuse_links
from attndrift.formats import check_format
from attndrift.methods.adapters import ADAPTER_WEIGHTS, read_tensors
from attndrift.methods.checkpoint import DESCRIPTION, MERGED_TOLERANCE, check_fingerprint, load_adapted
from attndrift.models.backbone import folder_formats, scheme_of
from attndrift.models.errors import CheckpointError, FingerprintError, HubError, ModelError
from attndrift.models.hub import BY_BOT, CONFIG, resolve_model
from attndrift.models.load import load_image_processor, load_reported, state_hash
from attndrift.models.load import load_processor as load_tokenizer_and_image_processor
from attndrift.models.reference import CONFIG_PREFIX
from attndrift.sanitize import printable


def named(source: str | Path | nn.Module) -> str:
    """How a side is called in messages."""
    return type(source).__name__ if isinstance(source, nn.Module) else printable(source)


def resolve(
    source: str | Path | nn.Module,
    base: ResolvedModel | None = None,
    *,
    image_processor: Any = None,
    tokenizer: Any = None,
) -> ResolvedModel:
    """The side named ``source``; ``base`` is what adapters and towers are put onto (a copy of it).

    Args:
        image_processor, tokenizer: of a ``source`` that is the model itself.

    Raises :class:`CompareError`, :class:`~attndrift.models.ModelError` or
    :class:`~attndrift.models.CheckpointError` for what is not there, not whole, or has no place.
    """
    if not isinstance(source, (str, Path)):
        return from_object(source, base, image_processor, tokenizer)
    folder = Path(source)
    if str(source) == "embedded" or str(source).startswith(CONFIG_PREFIX) or not folder.is_dir():
        return _on_hub(str(source), base)
    checkpoint = _checkpoint_in(folder)
    if checkpoint is not None:
        return _from_checkpoint(folder, checkpoint, base)
    if (folder / ADAPTER_CONFIG).is_file():
        return _from_adapter(folder, base)
    if (folder / ADAPTER_WEIGHTS).is_file() and not (folder / CONFIG).is_file():
        raise CompareError(f"{printable(folder)}: holds {ADAPTER_WEIGHTS} without its {ADAPTER_CONFIG}")
    if (folder / CONFIG).is_file():
        return _from_config(str(folder), read_object(folder / CONFIG), base)
    raise CompareError(
        f"{printable(folder)}: neither a model folder ({CONFIG}), a run's folder or checkpoint ({DESCRIPTION}), nor "
        f"a peft adapter ({ADAPTER_CONFIG})"
    )


def _checkpoint_in(folder: Path) -> Path | None:
    """The checkpoint that ``folder`` is, or holds as a run's folder; None where it is neither."""
    if (folder / DESCRIPTION).is_file():
        return folder
    best = folder / "checkpoints" / "best"
    if (best / DESCRIPTION).is_file():
        refuse_links(folder, ["checkpoints", "settings.json"])
        return best
    runs = [folder / name for name in ("settings.json", "record.json") if (folder / name).is_file()]
    if runs:
        check_format("run", read_object(runs[0]), printable(folder))
        raise CompareError(
            f"{printable(folder)}: a run's folder without checkpoints/best: the run is not finished, or trained nothing. "
            "`attndrift show` says how it stands"
        )
    return None


def _on_hub(source: str, base: ResolvedModel | None) -> ResolvedModel:
    """``embedded``, a config, ``BACKBONE:REST``, or a name on a hub."""
    model = resolve_model(source, adapters=True)
    if model.commit is None:
        return _whole_model(source, base)
    if scheme_of(source) is not None:
        side = _whole_model(source, base)
    elif CONFIG in model.files:
        side = _from_config(source, read_object(model.fetch([CONFIG]) / CONFIG), base)
    else:
        # Without its weights it is an adapter all the same, and what is missing is said of it.
        wanted = [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if name in model.files]
        side = _from_adapter(model.fetch(wanted), base)
        side.source = printable(source)
    side.revision = model.commit
    side.notes.append(
        f"commit {model.commit}" + (" (the hub's own conversion)" if model.how.startswith(BY_BOT) else "")
    )
    return side


def _from_config(source: str, config: dict[str, Any], base: ResolvedModel | None) -> ResolvedModel:
    """A whole model, its image tower, or its image tower with a classifier, as ``config`` says."""
    for tower in (folder.tower for _, folder in folder_formats() if folder.tower is not None):
        if config.get("model_type") == tower.model_type or tower.classifier in (config.get("architectures") or ()):
            values = AutoConfig.for_model(tower.model_type).from_dict(dict(config.get("vision_config", config)))
            return tower_on(base, _tensors(source), values, source)
    return _whole_model(source, base)


def _tensors(source: str) -> Iterator[tuple[str, Tensor]]:
    for path in weight_files(source):
        yield from read_tensors(path).items()


def _from_adapter(folder: Path, base: ResolvedModel | None) -> ResolvedModel:
    if base is not None:
        return merged_adapter(folder, base, under="BASE")
    source = base_named_by(folder)
    base = _whole_model(source, None) if Path(source).is_dir() else _on_hub(source, None)
    return merged_adapter(folder, base, under=f"{printable(source)}, the model that it names")


def _whole_model(source: str, base: ResolvedModel | None) -> ResolvedModel:
    model, strange = load_reported(source)
    check_unexpected_keys(source, model, strange)
    side = ResolvedModel(printable(source), "model", model, None, None)
    _own_processor(side, source, base)
    return side


def _own_processor(side: ResolvedModel, source: str, base: ResolvedModel | None) -> None:
    """Give ``side`` the tokenizer and image processor of ``source``, or those of ``base`` where it has none."""
    model = resolve_model(source)
    made = model.how == "config" or scheme_of(source) is not None
    if made or any(n in model.files for n in ("preprocessor_config.json", "processor_config.json")):
        try:
            side.tokenizer, side.image_processor = load_tokenizer_and_image_processor(source)
            return
        except HubError:
            raise
        except ModelError:
            try:
                side.image_processor = load_image_processor(source)
            # What is in the files is read by transformers, which raises whatever their shape leads to.
            except Exception as error:
                raise CompareError(
                    f"{printable(source)}: its image processor (preprocessor_config.json or processor_config.json) cannot be "
                    f"read: {type(error).__name__}: {printable(error)[:300]}"
                ) from error
    if side.image_processor is None:
        if base is None:
            # Both at once: the tokenizer is asked for later, and by --zero-shot alone.
            lacks = not {"tokenizer.json", "vocab.json"} & set(model.files)
            also = " and no tokenizer (tokenizer.json), which --zero-shot needs" if lacks else ""
            raise CompareError(
                f"{printable(source)}: holds no image processor (preprocessor_config.json){also}; save the model's own beside "
                "it: AutoProcessor.from_pretrained(MODEL).save_pretrained(FOLDER)"
            )
        side.image_processor = base.image_processor
        side.notes.append("it has no image processor of its own: BASE's is used")
    if base is not None and base.tokenizer is not None:
        side.tokenizer = base.tokenizer
        side.notes.append("it has no tokenizer of its own: BASE's is used")


def _from_checkpoint(folder: Path, checkpoint: Path, base: ResolvedModel | None) -> ResolvedModel:
    recorded = read_object(checkpoint / DESCRIPTION).get("base")
    if not isinstance(recorded, dict) or "source" not in recorded:
        raise CheckpointError(f"{printable(checkpoint / DESCRIPTION)}: does not say which model it was trained from")
    where, trained_from = printable(checkpoint), printable(recorded["source"])
    own = base is not None and recorded.get("weights_sha256") == state_hash(base.model)
    try:
        try:
            model = load_adapted(checkpoint, base=copy.deepcopy(base.model) if own and base is not None else None)
        except FingerprintError:
            if not own:
                raise
            # BASE has the weights that it was trained from, and is another function of them.
            own = False
            model = load_adapted(checkpoint)
    except ModelError as error:
        raise CompareError(
            f"{where}: was trained from {trained_from}, which cannot be loaded, and BASE is another model: {error}"
        ) from error
    adapted: Any = model.model
    if hasattr(adapted, "merge_and_unload"):
        model.model = adapted.merge_and_unload()
        check_fingerprint(model, checkpoint, tolerance=MERGED_TOLERANCE)
    side = ResolvedModel(printable(folder), "checkpoint", model.backbone.eval(), None, None, _dataset_of(checkpoint))
    if own and base is not None:
        side.image_processor, side.tokenizer = base.image_processor, base.tokenizer
    else:
        _own_processor(side, str(recorded["source"]), base)
        if base is not None:
            side.notes.append(f"trained from {trained_from}, which is another model than BASE")
    return side


def _dataset_of(checkpoint: Path) -> str | None:
    """The registered dataset that the run of ``checkpoint`` was trained on."""
    settings = checkpoint.absolute().parent.parent / "settings.json"
    if not settings.is_file():
        return None
    values = read_object(settings)
    values = values.get("settings", values)
    name = values.get("dataset") if isinstance(values, dict) else None
    return str(name) if name is not None and values.get("source") is None else None
