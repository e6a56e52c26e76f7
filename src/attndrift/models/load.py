"""Loading models: any folder or hub name, the embedded model, or a model made from a config.

Weights come as ``safetensors`` and nothing is ever unpickled; code of a hub repository is never run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as hf_logging

from attndrift.files import read_json, sha256
from attndrift.models.backbone import (
    OBSERVED,
    BackboneSpec,
    FolderFormat,
    TextShape,
    VisionShape,
    not_trained,
    of_model_type,
    scheme_of,
)
from attndrift.models.errors import ModelError
from attndrift.models.from_config import architecture_of, config_of, random_model
from attndrift.models.hub import CONFIG, ModelLocation, convert_hint, resolve_model
from attndrift.models.shapes import misfit
from attndrift.models.weight_files import INDEX, WEIGHTS, of_another_type, stored_shapes

IMAGES = "image processor"
_PROCESSORS = {
    "tokenizer": {"tokenizer.json", "vocab.json"},
    IMAGES: {"preprocessor_config.json", "processor_config.json"},
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def load_config(source: str | Path) -> Any:
    """The configuration of a model that studies train, without its weights. Raises :class:`ModelError`."""
    made = config_of(str(source))
    if made is None:
        return _config(resolve_model(source))
    folder_format(made, source)
    return made


def _config(model: ModelLocation) -> Any:
    if CONFIG not in model.files:
        raise ModelError(f"{model.source}: not a model folder: it holds no config.json")
    try:
        folder = model.fetch([CONFIG])
        if "model_type" not in read_json(folder / CONFIG):
            raise ModelError(f"{model.source}: its {CONFIG} is of {not_trained(None)}")
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except ModelError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{model.source}: {_no_model(model)}: {_first_line(error)}") from error
    folder_format(config, model.source)
    return config


def folder_format(config: Any, source: str | Path) -> FolderFormat:
    """How models of this configuration are read. Raises :class:`ModelError` for one that no study trains."""
    found = of_model_type(config.model_type)
    if found is None:
        raise ModelError(f"{source}: {not_trained(config.model_type)}. {OBSERVED}")
    refused = found[1].refused(config)
    if refused is not None:
        raise ModelError(f"{source}: {refused}")
    return found[1]


def _no_model(model: ModelLocation) -> str:
    return "not a model folder" if model.commit is None else f"its files at commit {model.commit} cannot be used"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _refuse_pickles(folder: Path, source: str) -> None:
    if (folder / WEIGHTS).is_file():
        return
    if (folder / INDEX).is_file():
        _check_shards(folder / INDEX, source)
        return
    pickles = sorted(p.name for suffix in _PICKLES for p in folder.glob(suffix))
    if pickles:
        raise ModelError(
            f"{source}: holds {pickles[0]} but no .safetensors file with the model's weights. {convert_hint(source)}"
        )
    raise ModelError(f"{source}: not a model folder: it holds no model.safetensors")


def _check_shards(index: Path, source: str) -> None:
    """Raise :class:`ModelError` unless the files that ``index`` names are ``safetensors`` in its own folder."""
    try:
        content = read_json(index)
        shards = sorted({str(name) for name in content["weight_map"].values()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{source}: {index.name} is not an index of weights ({type(error).__name__})") from error
    for name in shards:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{source}: {index.name} names {name!r}; weights are read from .safetensors files in the model's own "
                "folder alone"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """No bar for reading local files, which takes a moment, and no report of what does not fit: that is an error here."""
    verbosity, bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bar:
            hf_logging.enable_progress_bar()


def load_model(source: str | Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """A model that studies train, in evaluation mode, with its own fused attention (sdpa).

    Args:
        source: ``embedded``, ``config:NAME`` or ``config:PATH`` (random weights, the same ones every
            time), a local folder, a name on the hub, ``NAME`` or ``NAME@REVISION``, or ``BACKBONE:REST``.
            The ``config.json`` of a folder says which backbone it is.
        dtype: of the weights; a float16 file loads as float32 by default.

    Raises :class:`ModelError` for what is not there, is of no registered backbone, has no ``safetensors``, or whose file
    does not hold every weight in its shape: ``transformers`` would fill in random ones and go on.
    """
    return load_reported(source, dtype=dtype)[0]


def load_reported(source: str | Path, *, dtype: torch.dtype = torch.float32) -> tuple[Any, list[str]]:
    """As :func:`load_model`, and the names of stored tensors that the model has no place for, a classifier's left out."""
    scheme = scheme_of(str(source))
    if scheme is not None:
        return _of_scheme(scheme, "load").eval(), []
    if config_of(str(source)) is not None:
        return random_model(load_config(source), dtype), []
    model = resolve_model(source)
    config = _config(model)
    folder = model.fetch([CONFIG, *model.weights])
    _refuse_pickles(folder, str(source))
    try:
        loaded, missing, strange = _read_weights(folder, config, dtype)
    # SafetensorError of a damaged file is an Exception of its own; a wrong shape is a RuntimeError.
    except Exception as error:
        _refuse_misfit(folder, config, str(source), error)
        if model.commit is None:
            raise ModelError(f"{source}: {_no_model(model)}: {_first_line(error)}") from error
        # Most likely the copy in the cache is damaged.
        try:
            loaded, missing, strange = _read_weights(model.fetch(model.weights, again=True), config, dtype)
        except Exception as again:
            raise ModelError(
                f"{source}: {_no_model(model)}: {_first_line(error)}. Loading them anew did not help "
                f"({_first_line(again)}); remove {folder} to start afresh"
            ) from error
    if missing:
        name = type(loaded).__name__
        other = of_another_type(stored_shapes(folder), config.model_type)
        if other is not None:
            raise ModelError(
                f"{source}: {other}: they lack {len(missing)} of its tensors, for instance `{missing[0]}`. {_OF_TWO}"
            )
        raise ModelError(
            f"{source}: its weights lack {len(missing)} of the model's tensors, for instance {missing[0]}; they would "
            f"be random. Its {CONFIG} is of a {name}; save the whole {name} with save_pretrained, and give that folder"
        )
    return loaded.eval(), strange


_OF_TWO = (
    f"Its weights and its {CONFIG} are of two models; put the {CONFIG} that was saved with the weights beside them"
)


def _refuse_misfit(folder: Path, config: Any, source: str, error: Exception) -> None:
    """Raise :class:`ModelError` where ``error`` comes of tensors whose shapes are not those of ``config``."""
    stored = stored_shapes(folder)
    try:
        with torch.device("meta"):
            wanted = build_model(config).state_dict()
        wrong = misfit(stored, wanted) or _misfit_as_read(folder, config)
    except Exception:  # damaged otherwise, which is told of ``error`` itself
        return
    if wrong is not None:
        other = of_another_type(stored, config.model_type)
        raise ModelError(f"{source}: {wrong}{f'; {other}' if other else ''}. {_OF_TWO}") from error


def _misfit_as_read(folder: Path, config: Any) -> str | None:
    """As :func:`misfit`, for tensors that ``transformers`` renames when it reads them. Nothing is read into memory."""
    architecture, options = architecture_of(config)
    with _quiet():
        _, report = architecture.from_pretrained(
            folder, device_map="meta", ignore_mismatched_sizes=True, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True, **options,
        )  # fmt: skip
    wrong = sorted(report["mismatched_keys"])
    return misfit({name: found for name, found, _ in wrong}, {name: own for name, _, own in wrong})


def _read_weights(folder: Path, config: Any, dtype: torch.dtype) -> tuple[Any, list[str], list[str]]:
    """The model in ``folder``, its tensors that no file there holds, and those of the files that it has no place for."""
    architecture, options = architecture_of(config)
    with _quiet():
        # A folder: nothing is asked of a hub, and nothing is converted by anybody.
        model, report = architecture.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
            output_loading_info=True,
            **options,
        )
    left_out = folder_format(config, folder).left_out
    bare = {name: name.removeprefix(f"{model.base_model_prefix}.") for name in report["unexpected_keys"]}
    strange = sorted(name for name, own in bare.items() if not own.startswith(left_out))
    return model, sorted(report["missing_keys"]), strange


def build_model(source: Any) -> Any:
    """A model of ``source`` with any weights, for counting; ``source`` may be a configuration of ``transformers``."""
    scheme = scheme_of(source) if isinstance(source, str) else None
    if scheme is not None:
        return _of_scheme(scheme, "build")
    config = load_config(source) if isinstance(source, (str, Path)) else source
    architecture, options = architecture_of(config)
    return architecture(config, **options)


def load_shape(source: str | Path) -> VisionShape:
    """The sizes of a model's image tower, without its weights. Raises :class:`ModelError`."""
    scheme = scheme_of(str(source))
    if scheme is not None:
        shape: VisionShape = _of_scheme(scheme, "shape")
        return shape
    config = load_config(source)
    folder = folder_format(config, source)
    return folder.shape(config, _whole_patches(source, config, load_processor(source)[1]) if folder.any_size else 0)


def refuse_cut_images(source: str | Path, image_processor: Any) -> None:
    """Raise :class:`ModelError` where a model that takes images of any size would drop pixels of the processor's."""
    if scheme_of(str(source)) is None:
        config = load_config(source)
        if folder_format(config, source).any_size:
            _whole_patches(source, config, image_processor)


def _whole_patches(source: str | Path, config: Any, image_processor: Any) -> int:
    """The side in pixels of the images, which are whole patches."""
    side, patch = side_of(image_processor), int(config.patch_size)
    if side % patch:
        below = side // patch * patch
        sizes = " or ".join(str(one) for one in (below, below + patch) if one)
        raise ModelError(
            f"{source}: its image processor makes images of {side} pixels, no multiple of its `patch_size` {patch}: the "
            f"model would drop {side - below} pixels of every row and column. Give a size of {sizes} in "
            "preprocessor_config.json"
        )
    return side


def side_of(image_processor: Any) -> int:
    """The side in pixels of the square images that a processor of ``transformers`` makes. Raises :class:`ModelError`."""
    size = image_processor.crop_size if getattr(image_processor, "do_center_crop", False) else image_processor.size
    sides = {size.get(name) for name in ("height", "width")} if size else set()
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise ModelError(
            f"the image processor makes images of no one square size ({size}); give `crop_size` with `do_center_crop`, or "
            "`size` with height and width, in preprocessor_config.json"
        )
    return side


def load_text_shape(source: str | Path) -> TextShape | None:
    """The sizes of a model's text tower, without its weights; None where only the model itself could tell.

    Raises :class:`ModelError`.
    """
    if scheme_of(str(source)) is not None:
        return None
    config = load_config(source)
    shape = folder_format(config, source).text_shape
    return None if shape is None else shape(config)


def has_text_tower(source: str | Path) -> bool:
    """Whether a model has a text tower, told without its weights. Raises :class:`ModelError`."""
    scheme = scheme_of(str(source))
    if scheme is not None:
        return scheme[0].text_tower
    return folder_format(load_config(source), source).text_shape is not None


def _of_scheme(scheme: tuple[BackboneSpec, str], what: str) -> Any:
    spec, rest = scheme
    make = getattr(spec, what)
    if make is None:
        raise ModelError(f"{spec.name}:{rest}: the backbone `{spec.name}` has no `{what}`, which a study needs")
    return make(rest)


def load_processor(source: str | Path) -> tuple[Any, Any]:
    """The tokenizer (None without text tower) and the image processor of a model. Raises :class:`ModelError`."""
    scheme = scheme_of(str(source))
    if scheme is not None:
        found: tuple[Any, Any] = _of_scheme(scheme, "processor")
        return found
    config = load_config(source)
    format_of = folder_format(config, source)
    if config_of(str(source)) is not None:
        return format_of.make_processor(config)
    model = resolve_model(source)
    wanted = dict(_PROCESSORS) if format_of.text_shape is not None else {IMAGES: _PROCESSORS[IMAGES]}
    missing = {what: files for what, files in wanted.items() if not files & set(model.files)}
    if missing:
        said = " and no ".join(f"{what} ({' or '.join(sorted(files))})" for what, files in missing.items())
        raise ModelError(
            f"{source}: holds no {said}; save {'those' if len(missing) > 1 else 'that'} of the model it was made from "
            "beside it in a folder, and give the folder"
        )
    folder = model.fetch(model.others)
    try:
        tokenizer = None
        if format_of.text_shape is not None:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return tokenizer, _image_processor(folder, format_of)
    # Each tokenizer backend has errors of its own.
    except Exception as error:
        raise ModelError(f"{source}: its tokenizer or image processor cannot be loaded: {error}") from error


def load_image_processor(source: str | Path) -> Any:
    """The image processor of a model in a folder or on a hub, whatever else it lacks. Raises as ``transformers`` does."""
    model, config = resolve_model(source), load_config(source)
    return _image_processor(model.fetch(model.others), folder_format(config, source))


def _image_processor(folder: Path, format_of: FolderFormat) -> Any:
    """The image processor that a folder names, in its form without torchvision; else that of its backbone."""
    named = ""
    for file in sorted(_PROCESSORS[IMAGES]):
        if (folder / file).is_file():
            content = read_json(folder / file)
            named = named or str((content.get("image_processor") or content).get("image_processor_type") or "")
    bare = named.removesuffix("Pil").removesuffix("Fast")
    found = getattr(transformers, f"{bare}Pil", None) if bare else None
    return (found or getattr(transformers, format_of.image_processor)).from_pretrained(folder)


def state_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and values of a model's parameters and buffers."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def describe(source: str | Path, model: torch.nn.Module | None = None) -> dict[str, Any]:
    """What a record says of a backbone: where it came from, and the hashes of its weights.

    Returns ``source``; ``weights_sha256``, of the weights in memory, where ``model`` is given; ``files``,
    SHA-256 by file name, for a local folder; ``revision``, the commit, for a model of a hub.
    Raises :class:`ModelError` for a source that is not there.
    """
    described: dict[str, Any] = {"source": str(source)}
    if model is not None:
        described["weights_sha256"] = state_hash(model)
    found = resolve_model(source)
    if found.how == "config":
        return described
    if found.commit is None:
        files = sorted(Path(found.location).glob("*.safetensors"))
        return described | {"files": {path.name: sha256(path) for path in files}}
    return described | {"revision": found.commit}
