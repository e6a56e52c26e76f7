"""A ``peft`` adapter as one side of a comparison: merged into a copy of the model that it belongs to."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attndrift.compare.errors import CompareError
from attndrift.compare.model_files import read_object
from attndrift.compare.resolved import ResolvedModel
from attndrift.compare.tower_source import tower_of
from attndrift.extras import importing
from attndrift.methods.adapters import ADAPTER_WEIGHTS, load_adapter, read_tensors
from attndrift.methods.classifier import seeded
from attndrift.models.errors import CheckpointError
from attndrift.sanitize import printable

if TYPE_CHECKING:
    from peft import LoraConfig

# Imports inside functions: these packages take time to load, which only who needs them pays.

ADAPTER_CONFIG = "adapter_config.json"

_TENSORS = {
    "LORA": re.compile(r"base_model\.model\.(.+)\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)(?:\..+)?"),
    "IA3": re.compile(r"base_model\.model\.(.+)\.ia3_l"),
    "OFT": re.compile(r"base_model\.model\.(.+)\.oft_R\.weight"),
    "LN_TUNING": re.compile(r"base_model\.model\.(.+)\.ln_tuning_layers\.(?:weight|bias)"),
}
"""Names of an adapter's own tensors by its type; the group is the module that it belongs to."""

_OFT_SETTINGS = (
    "coft",
    "eps",
    "block_share",
    "use_cayley_neumann",
    "num_cayley_neumann_terms",
    "fan_in_fan_out",
    "bias",
)
_LORA_SETTINGS = ("r", "lora_alpha", "use_rslora", "use_dora", "fan_in_fan_out", "bias", "lora_bias", "modules_to_save")
_LORA_UNKNOWN = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config",
    "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config",
)  # fmt: skip
"""Settings under which an adapter computes something else than W + scale B A."""


def base_named_by(folder: Path) -> str:
    """The model that an adapter was trained on, as its settings name it."""
    named = read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not named:
        raise CompareError(f"{printable(folder)}: an adapter that names no base model; as BASE give a whole model")
    return str(named)


def merged_adapter(folder: Path, base: ResolvedModel, *, under: str) -> ResolvedModel:
    """A ``peft`` adapter merged into a copy of ``base``, which ``under`` calls by its name in a note."""
    with importing("peft", "an adapter"):
        from peft import get_peft_model
    where = printable(folder)
    settings = read_object(folder / ADAPTER_CONFIG)
    kind = settings.get("peft_type")
    if kind not in _TENSORS:
        raise CompareError(f"{where}: an adapter of type {printable(kind)}; {', '.join(_TENSORS)} can be compared")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CompareError(
            f"{where}: holds no {ADAPTER_WEIGHTS}. Pickled weights can run code when they are read, so they are refused; "
            "save the adapter with safe_serialization=True"
        )
    tensors = read_tensors(folder / ADAPTER_WEIGHTS)
    names = adapter_places(tensors, base.model, kind)
    model = copy.deepcopy(base.model)
    config = _lora_config(settings, names, where) if kind == "LORA" else _other_config(kind, settings, names, tensors)
    try:
        with seeded(0), warnings.catch_warnings():
            # peft asks transformers under a name that it is about to drop; nothing to do with the adapters.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            # Its layers of norms are of no kind that it names.
            warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
            adapted: Any = get_peft_model(model, config)
        load_adapter(adapted, folder, names=names, text_tower=True, allow_zero=False)
        merged: nn.Module = adapted.merge_and_unload(safe_merge=True)
    except CheckpointError:
        raise
    except (ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{where}: the adapter does not fit the base model: {error}") from error
    _check_changed(merged, base.model, where)
    side = ResolvedModel(
        where,
        "adapter",
        merged.eval(),
        base.image_processor,
        base.tokenizer,
        notes=[f"an adapter merged into a copy of {under}"],
    )
    if any(old != new for old, new in names.items()):
        side.notes.append("saved under the keys of the image tower alone, which were mapped to those of BASE")
    return side


def adapter_places(stored: Iterable[str], model: nn.Module, kind: str = "LORA") -> dict[str, str]:
    """The name in ``model`` of every tensor of an adapter's file, also where its file is of the image tower alone.

    Raises :class:`CheckpointError` for a tensor whose module ``model`` does not have.
    """
    modules = {name for name, _ in model.named_modules()}
    places: dict[str, str] = {}
    tower = tower_of(model)
    for name in stored:
        plain = name.removeprefix("base_model.model.")
        place = plain if tower is None else tower.place(plain)
        match = _TENSORS[kind].fullmatch(f"base_model.model.{place}")
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
    from peft import LoraConfig
    from peft.utils.other import get_pattern_key

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
        match, placed = _TENSORS["LORA"].fullmatch(old), _TENSORS["LORA"].fullmatch(new)
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


def _other_config(
    kind: str, settings: Mapping[str, Any], names: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> Any:
    """Of an adapter that is no LoRA, with exactly those modules that its file has tensors for, under BASE's names."""
    from peft import IA3Config, LNTuningConfig, OFTConfig

    found = {new: old for old, new in names.items()}
    modules = {match.group(1): found[new] for new in found if (match := _TENSORS[kind].fullmatch(new))}
    if not modules:
        raise CheckpointError(f"{ADAPTER_WEIGHTS} holds no tensors of an adapter of type {kind}")
    targets = sorted(modules)
    if kind == "IA3":
        # Factors of inputs are a row, those of outputs a column.
        inputs = sorted(module for module, name in modules.items() if tensors[name].shape[0] == 1)
        return IA3Config(target_modules=targets, feedforward_modules=inputs)
    if kind == "LN_TUNING":
        return LNTuningConfig(target_modules=targets)
    values = {name: settings[name] for name in _OFT_SETTINGS if settings.get(name) is not None}
    size = {"r": settings["r"], "oft_block_size": 0} if settings.get("r") else {}
    size = size or {"oft_block_size": settings.get("oft_block_size", 32)}
    return OFTConfig(target_modules=targets, **size, **values)


def _check_changed(adapted: nn.Module, base: nn.Module, where: str) -> None:
    before = base.state_dict()
    if all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items()):
        raise CheckpointError(f"{where}: the adapter changes no weight by as much as float32 can tell")
