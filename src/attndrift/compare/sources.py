"""Either side of a comparison as one CLIP model, whatever was named: every tensor in place, or an error.

A side is a model folder, a hub name, ``embedded``, a run's folder or checkpoint, or a ``peft`` adapter;
the adapted side may also be a vision tower on its own. Adapters end up merged, so that both sides are
plain models that can be compared tensor by tensor.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPModel, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from attndrift.compare.errors import CompareError
from attndrift.files import read_json
from attndrift.formats import check_format
from attndrift.methods.adapters import ADAPTER_WEIGHTS, load_adapter, read_tensors
from attndrift.methods.checkpoint import DESCRIPTION, MERGED_TOLERANCE, check_fingerprint, load_adapted
from attndrift.methods.classifier import seeded
from attndrift.models.errors import CheckpointError, HubError, ModelError
from attndrift.models.hub import BY_BOT, CONFIG, convert_hint, resolve_model
from attndrift.models.load import load_clip, state_hash
from attndrift.models.load import load_processor as load_tokenizer_and_image_processor
from attndrift.models.reference import CONFIG_PREFIX
from attndrift.models.weight_files import INDEX, WEIGHTS
from attndrift.sanitize import printable

ADAPTER_CONFIG = "adapter_config.json"
_TOWER = "clip_vision_model"
_TOWER_PARTS = ("embeddings.", "encoder.", "post_layernorm.", "pre_layrnorm.")
_TOWER_SETTINGS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "hidden_act",
    "layer_norm_eps",
)  # fmt: skip
"""What decides, beside its weights, what a tower computes."""

_LORA_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)(?:\..+)?")
_LORA_SETTINGS = ("r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out", "bias", "lora_bias", "modules_to_save")
_LORA_UNKNOWN = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config",
    "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config",
)  # fmt: skip
"""Settings under which an adapter computes something else than W + scale B A."""

_PIXEL_SETTINGS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "do_pad", "pad_size",
)  # fmt: skip


@dataclass
class ResolvedModel:
    """One side of a comparison.

    Attributes:
        source: as it was named, in printable characters.
        kind: ``model``, ``checkpoint``, ``adapter`` or ``vision tower``.
        clip: the model, adapters merged, float32, in evaluation mode.
        image_processor, tokenizer: the model's own, or those of the model that it was put onto; the
            tokenizer is None where there is none.
        trained_on: name of the registered dataset that a run was trained on, None where it is not known.
        notes: what a reader has to know about how it was put together.
        revision: the commit, where it is from a hub.
    """

    source: str
    kind: str
    clip: CLIPModel
    image_processor: Any
    tokenizer: Any
    trained_on: str | None = None
    notes: list[str] = field(default_factory=list)
    revision: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return {
            "source": self.source,
            "kind": self.kind,
            "revision": self.revision,
            "weights_sha256": state_hash(self.clip),
            "notes": list(self.notes),
        }


def resolve(source: str | Path, base: ResolvedModel | None = None) -> ResolvedModel:
    """The side named ``source``; ``base`` is what adapters and towers are put onto (a copy of it).

    Raises :class:`CompareError`, :class:`~attndrift.models.ModelError` or
    :class:`~attndrift.models.CheckpointError` for what is not there, not whole, or has no place.
    """
    folder = Path(source)
    if str(source) == "embedded" or str(source).startswith(CONFIG_PREFIX) or not folder.is_dir():
        return _named(str(source), base)
    checkpoint = _checkpoint_in(folder)
    if checkpoint is not None:
        return _from_checkpoint(folder, checkpoint, base)
    if (folder / ADAPTER_CONFIG).is_file():
        return _from_adapter(folder, base)
    if (folder / ADAPTER_WEIGHTS).is_file() and not (folder / "config.json").is_file():
        raise CompareError(f"{printable(folder)}: holds {ADAPTER_WEIGHTS} without its {ADAPTER_CONFIG}")
    if (folder / "config.json").is_file():
        config = _object(folder / "config.json")
        if config.get("model_type") == _TOWER:
            return _from_tower(str(folder), config, base)
        return _whole_model(str(folder), base)
    raise CompareError(
        f"{printable(folder)}: neither a model folder (config.json), a run's folder or checkpoint ({DESCRIPTION}), nor "
        f"a peft adapter ({ADAPTER_CONFIG})"
    )


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises :class:`CompareError` where it is anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise CompareError(f"{printable(path)}: not a JSON object; the file was changed or belongs to something else")
    return value


def _checkpoint_in(folder: Path) -> Path | None:
    """The checkpoint that ``folder`` is, or holds as a run's folder; None where it is neither."""
    if (folder / DESCRIPTION).is_file():
        return folder
    best = folder / "checkpoints" / "best"
    if (best / DESCRIPTION).is_file():
        return best
    runs = [folder / name for name in ("settings.json", "record.json") if (folder / name).is_file()]
    if runs:
        check_format("run", _object(runs[0]), printable(folder))
        raise CompareError(
            f"{printable(folder)}: a run's folder without checkpoints/best: the run is not finished, or trained nothing. "
            "`attndrift show` says how it stands"
        )
    return None


def _named(source: str, base: ResolvedModel | None) -> ResolvedModel:
    """``embedded``, a config, or a name on a hub."""
    model = resolve_model(source, adapters=True)
    if model.commit is None:
        return _whole_model(source, base)
    if CONFIG in model.files:
        config = _object(model.fetch([CONFIG]) / CONFIG)
        side = _from_tower(source, config, base) if config.get("model_type") == _TOWER else _whole_model(source, base)
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


def _whole_model(source: str, base: ResolvedModel | None) -> ResolvedModel:
    clip = load_clip(source)
    if not source.startswith(CONFIG_PREFIX):
        check_unexpected_keys(source, clip)
    side = ResolvedModel(printable(source), "model", clip, None, None)
    _own_processor(side, source, base)
    return side


def check_unexpected_keys(source: str, clip: CLIPModel) -> None:
    """Raise for tensors in a model's files that the model has no place for, such as adapters not merged."""
    held = set(clip.state_dict())
    for path in weight_files(source):
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{printable(path)}: cannot be read: {error}") from error
        strangers = sorted(name for name in names if name not in held and not name.endswith("position_ids"))
        if strangers:
            raise CheckpointError(
                f"{printable(source)}: {len(strangers)} tensors of {path.name} have no place in a CLIPModel, for "
                f"instance {printable(strangers[0])}; what they would change is not in the model. Give the adapter's own folder, or "
                "merge it before saving"
            )


def weight_files(source: str) -> list[Path]:
    """The ``safetensors`` files of a model in a folder or on a hub, shards too. Raises :class:`ModelError`."""
    model = resolve_model(source)
    if not model.weights:
        raise ModelError(f"{printable(source)}: holds no {WEIGHTS}. {convert_hint(printable(source))}")
    folder = model.fetch(model.weights)
    if model.weights == [WEIGHTS]:
        return [folder / WEIGHTS]
    shards = _object(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelError(f"{printable(source)}: {INDEX} has no weight_map; download it again")
    found = []
    for name in sorted({str(name) for name in shards.values()}):
        if name not in model.files:
            raise ModelError(f"{printable(source)}: {INDEX} names {printable(name)}, which is not there")
        found.append(model.fetch([name]) / name)
    return found


def _own_processor(side: ResolvedModel, source: str, base: ResolvedModel | None) -> None:
    """Give ``side`` the tokenizer and image processor of ``source``, or those of ``base`` where it has none."""
    model = resolve_model(source)
    if model.how == "config" or any(n in model.files for n in ("preprocessor_config.json", "processor_config.json")):
        try:
            side.tokenizer, side.image_processor = load_tokenizer_and_image_processor(source)
            return
        except HubError:
            raise
        except ModelError:
            side.image_processor = CLIPImageProcessorPil.from_pretrained(str(model.fetch(model.others)))
    if side.image_processor is None:
        if base is None:
            raise CompareError(
                f"{printable(source)}: holds no image processor (preprocessor_config.json); save the model's own beside it"
            )
        side.image_processor = base.image_processor
        side.notes.append("it has no image processor of its own: BASE's is used")
    if base is not None and base.tokenizer is not None:
        side.tokenizer = base.tokenizer
        side.notes.append("it has no tokenizer of its own: BASE's is used")


def same_pixels(first: Any, second: Any) -> bool:
    """Whether two image processors make the same pixels of every image."""

    def settings(processor: Any) -> str:
        values = processor.to_dict()
        return json.dumps([values.get(name) for name in _PIXEL_SETTINGS], default=str, sort_keys=True)

    return first is second or settings(first) == settings(second)


def _from_checkpoint(folder: Path, checkpoint: Path, base: ResolvedModel | None) -> ResolvedModel:
    recorded = _object(checkpoint / DESCRIPTION).get("base")
    if not isinstance(recorded, dict) or "source" not in recorded:
        raise CheckpointError(f"{printable(checkpoint / DESCRIPTION)}: does not say which model it was trained from")
    own = base is not None and recorded.get("weights_sha256") == state_hash(base.clip)
    try:
        model = load_adapted(checkpoint, base=copy.deepcopy(base.clip) if own and base is not None else None)
    except ModelError as error:
        raise CompareError(
            f"{printable(checkpoint)}: was trained from {printable(recorded.get('source'))}, which cannot be loaded, and "
            f"BASE has other weights: {error}"
        ) from error
    clip: Any = model.clip
    if hasattr(clip, "merge_and_unload"):
        model.clip = clip.merge_and_unload()
        check_fingerprint(model, checkpoint, tolerance=MERGED_TOLERANCE)
    side = ResolvedModel(printable(folder), "checkpoint", model.backbone.eval(), None, None, _dataset_of(checkpoint))
    if own and base is not None:
        side.image_processor, side.tokenizer = base.image_processor, base.tokenizer
    else:
        _own_processor(side, str(recorded["source"]), base)
        if base is not None:
            side.notes.append(f"trained from {printable(recorded['source'])}, whose weights are not those of BASE")
    return side


def _dataset_of(checkpoint: Path) -> str | None:
    """The registered dataset that the run of ``checkpoint`` was trained on."""
    settings = checkpoint.absolute().parent.parent / "settings.json"
    if not settings.is_file():
        return None
    values = _object(settings)
    values = values.get("settings", values)
    name = values.get("dataset") if isinstance(values, dict) else None
    return str(name) if name is not None and values.get("source") is None else None


def _from_tower(source: str, config: Mapping[str, Any], base: ResolvedModel | None) -> ResolvedModel:
    """A vision tower's weights in a copy of ``base``; its text tower, and mostly its projection, are BASE's."""
    if base is None:
        raise CompareError(
            f"{printable(source)}: a vision tower without text tower and projection; as BASE give the whole CLIPModel that "
            "it was fine-tuned from"
        )
    own, whole = CLIPVisionConfig.from_dict(dict(config)), base.clip.config.vision_config
    different = [n for n in _TOWER_SETTINGS if getattr(own, n) != getattr(whole, n)]
    if different:
        name = different[0]
        raise CompareError(
            f"{printable(source)}: a vision tower with {name} {getattr(own, name)}; BASE has {getattr(whole, name)}, so it was "
            "fine-tuned from another model"
        )
    stored: dict[str, Tensor] = {}
    for path in weight_files(source):
        for name, value in read_tensors(path).items():
            place = _tower_place(name)
            if place in stored:
                raise CheckpointError(f"{printable(source)}: two tensors have one place, {printable(place)}")
            stored[place] = value
    clip = copy.deepcopy(base.clip)
    _put(clip, stored, printable(source))
    side = ResolvedModel(printable(source), "vision tower", clip.eval(), base.image_processor, base.tokenizer)
    parts = "text tower" if "visual_projection.weight" in stored else "text tower and projection"
    side.notes.append(f"a vision tower put into a copy of BASE: {parts}, tokenizer and image processor are BASE's")
    return side


def _tower_place(name: str) -> str:
    """Where a tower's tensor belongs in a CLIPModel, from either layout of ``CLIPVisionModel``.

    Up to version 4 of ``transformers`` the tower lay under ``vision_model.``; since 5 it is flattened.
    """
    if name.startswith(_TOWER_PARTS):
        return f"vision_model.{name}"
    return name.removeprefix("vision_model.") if name.startswith("vision_model.vision_model.") else name


def _put(clip: CLIPModel, stored: dict[str, Tensor], where: str) -> None:
    """Copy ``stored`` over the vision parameters of ``clip``, every tensor accounted for, or raise."""
    projection = "visual_projection.weight"
    places = {n: p for n, p in clip.named_parameters() if n.startswith("vision_model.") or n == projection}
    positions = stored.pop("vision_model.embeddings.position_ids", None)
    held = clip.vision_model.embeddings.position_ids
    if positions is not None and not torch.equal(positions.reshape(-1).long(), held.reshape(-1).long()):
        raise CheckpointError(f"{where}: its position_ids do not count up; the positions would be mixed up")
    missing = sorted(set(places) - set(stored) - {projection})
    strangers = sorted(set(stored) - set(places))
    if missing or strangers:
        examples = [f"missing {missing[0]}"] if missing else []
        examples += [f"without a place {printable(strangers[0])}"] if strangers else []
        raise CheckpointError(
            f"{where}: {len(missing)} tensors of the vision tower are missing and {len(strangers)} have no place in it "
            f"({', '.join(examples)})"
        )
    with torch.no_grad():
        for name, value in stored.items():
            if value.shape != places[name].shape:
                raise CheckpointError(
                    f"{where}: {name} has shape {tuple(value.shape)}, in BASE {tuple(places[name].shape)}"
                )
            places[name].copy_(value)


def _from_adapter(folder: Path, base: ResolvedModel | None) -> ResolvedModel:
    """A ``peft`` LoRA merged into a copy of ``base`` (of the model that it names, as BASE itself)."""
    where = printable(folder)
    settings = _object(folder / ADAPTER_CONFIG)
    if settings.get("peft_type") != "LORA":
        kind = printable(settings.get("peft_type"))
        raise CompareError(f"{where}: an adapter of type {kind}; LORA is what can be compared")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CompareError(
            f"{where}: holds no {ADAPTER_WEIGHTS}. Pickled weights can run code when they are read, so they are refused; "
            "save the adapter with safe_serialization=True"
        )
    if base is None:
        named = settings.get("base_model_name_or_path")
        if not named:
            raise CompareError(f"{where}: an adapter that names no base model; as BASE give a whole model")
        base = _named(named, None) if not Path(named).is_dir() else _whole_model(named, None)
        under = f"an adapter merged into a copy of {printable(named)}, the model that it names"
    else:
        under = "an adapter merged into a copy of BASE"
    tensors = read_tensors(folder / ADAPTER_WEIGHTS)
    names = adapter_places(tensors, base.clip)
    model = copy.deepcopy(base.clip)
    config = _lora_config(settings, names, where)
    try:
        with seeded(0), warnings.catch_warnings():
            # peft asks transformers under a name that it is about to drop; nothing to do with the adapters.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            adapted: Any = get_peft_model(model, config)
        load_adapter(adapted, folder, names=names, text_tower=True, allow_zero=False)
        merged: CLIPModel = adapted.merge_and_unload(safe_merge=True)
    except CheckpointError:
        raise
    except (ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{where}: the adapter does not fit the base model: {error}") from error
    _check_changed(merged, base.clip, where)
    side = ResolvedModel(where, "adapter", merged.eval(), base.image_processor, base.tokenizer, notes=[under])
    if any(old != new for old, new in names.items()):
        side.notes.append("saved under the keys of a bare CLIPVisionModel, which were mapped to those of BASE")
    return side


def adapter_places(stored: Iterable[str], clip: CLIPModel) -> dict[str, str]:
    """The name in ``clip`` of every tensor of an adapter's file, from either layout of ``CLIPVisionModel``.

    Raises :class:`CheckpointError` for a tensor whose module ``clip`` does not have.
    """
    modules = {name for name, _ in clip.named_modules()}
    places: dict[str, str] = {}
    for name in stored:
        plain = name.removeprefix("base_model.model.")
        place = _tower_place(plain)
        match = _LORA_TENSOR.fullmatch(f"base_model.model.{place}")
        # A trained bias belongs to the layer that the adapter wraps.
        module = match.group(1) if match else place.rpartition(".")[0].removesuffix(".base_layer")
        if plain == name or module not in modules:
            raise CheckpointError(
                f"{ADAPTER_WEIGHTS}: {printable(name)} has no place in the base model, so the adapter would do nothing there; it "
                "was saved from another kind of model"
            )
        places[name] = f"base_model.model.{place}"
    return places


def _lora_config(settings: Mapping[str, Any], names: Mapping[str, str], where: str) -> LoraConfig:
    """The adapter's settings with exactly those modules that its file has tensors for, under BASE's names.

    Names of modules alone (``q_proj``) would reach into the text tower, and patterns of one layout do
    not match in the other; ranks and scales are therefore taken under the file's own names.
    """
    strange = [name for name in _LORA_UNKNOWN if settings.get(name)]
    if strange:
        raise CompareError(f"{where}: an adapter with {strange[0]}, which is not plain LoRA and cannot be compared")
    start = settings.get("init_lora_weights", True)
    if not isinstance(start, bool) and start != "gaussian":
        raise CompareError(
            f"{where}: an adapter initialised by {printable(start)}, which changes the base weights too; convert it to plain LoRA "
            "when saving it (path_initial_model_for_weight_conversion)"
        )
    ranks: dict[str, int] = {}
    scales: dict[str, float] = {}
    for old, new in names.items():
        match, placed = _LORA_TENSOR.fullmatch(old), _LORA_TENSOR.fullmatch(new)
        if match is None or placed is None:
            continue
        for patterns, default, found in (
            ("rank_pattern", "r", ranks),
            ("alpha_pattern", "lora_alpha", scales),
        ):
            given = settings.get(patterns) or {}
            found[placed.group(1)] = given.get(get_pattern_key(list(given), match.group(1)), settings.get(default, 8))
    if not ranks:
        raise CheckpointError(f"{where}: {ADAPTER_WEIGHTS} holds no LoRA tensors")
    values = {name: settings[name] for name in _LORA_SETTINGS if settings.get(name) is not None}
    return LoraConfig(
        **values,
        target_modules=sorted(ranks),
        rank_pattern=ranks,
        alpha_pattern=scales,
        lora_dropout=0.0,
    )


def _check_changed(adapted: CLIPModel, base: CLIPModel, where: str) -> None:
    before = base.state_dict()
    if all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items()):
        raise CheckpointError(f"{where}: the adapter changes no weight by as much as float32 can tell")
