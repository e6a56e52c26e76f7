"""Loading CLIP: any folder or hub name, the embedded model, or a model made from a config.

Weights come as ``safetensors`` and nothing is ever unpickled; code of a hub repository is never run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import logging as hf_logging

from attndrift.files import read_json, sha256
from attndrift.models.backbone import BackboneSpec, TextShape, VisionShape, scheme_of
from attndrift.models.errors import ModelError
from attndrift.models.from_config import config_of, processor_for, random_clip
from attndrift.models.hub import CONFIG, ModelLocation, convert_hint, resolve_model
from attndrift.models.shapes import misfit
from attndrift.models.weight_files import INDEX, WEIGHTS

CLASSIFIER = "CLIPForImageClassification"
"""What exports a vision tower with a classifier, under the configuration of a whole CLIP."""
OTHER_FAMILIES = (
    "Load a model of another family (SigLIP, ViT, DINOv2, timm, open_clip) with its own library: "
    "DriftMonitor(adapted, pixels, reference=pretrained).measure() compares two of it, and attndrift.observe(model) shows "
    "its attention"
)
"""What can be done with a model that is no CLIP."""

_PROCESSORS = {
    "tokenizer": {"tokenizer.json", "vocab.json"},
    "image processor": {"preprocessor_config.json", "processor_config.json"},
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def load_config(source: str | Path) -> CLIPConfig:
    """The configuration of a CLIP model, without its weights. Raises :class:`ModelError`."""
    made = config_of(str(source))
    if made is not None:
        return made
    return _config(resolve_model(source))


def _config(model: ModelLocation) -> CLIPConfig:
    if CONFIG not in model.files:
        raise ModelError(f"{model.source}: not a model folder: it holds no config.json")
    try:
        config = AutoConfig.from_pretrained(model.fetch([CONFIG]), trust_remote_code=False)
    except ModelError:
        raise
    except (OSError, ValueError) as error:
        raise ModelError(f"{model.source}: {_no_model(model)}: {_first_line(error)}") from error
    if not isinstance(config, CLIPConfig):
        raise ModelError(
            f"{model.source}: a {type(config).__name__.removesuffix('Config')} model, not a CLIP model with both towers. "
            f"{OTHER_FAMILIES}"
        )
    return config


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


def load_clip(source: str | Path, *, dtype: torch.dtype = torch.float32) -> CLIPModel:
    """A CLIP model in evaluation mode, with its own fused attention (sdpa).

    Args:
        source: ``embedded``, ``config:NAME`` or ``config:PATH`` (random weights, the same ones every
            time), a local folder, or a name on the hub, ``NAME`` or ``NAME@REVISION``.
        dtype: of the weights; a float16 file loads as float32 by default.

    Raises :class:`ModelError` for what is not there, is not CLIP, has no ``safetensors``, or whose file
    does not hold every weight in its shape: ``transformers`` would fill in random ones and go on.
    """
    made = config_of(str(source))
    if made is not None:
        return random_clip(made, dtype)
    model = resolve_model(source)
    config = _config(model)
    _refuse_classifier(config, str(source))
    folder = model.fetch([CONFIG, *model.weights])
    _refuse_pickles(folder, str(source))
    try:
        clip, missing = _read_weights(folder, dtype)
    # SafetensorError of a damaged file is an Exception of its own; a wrong shape is a RuntimeError.
    except Exception as error:
        _refuse_misfit(folder, config, str(source), error)
        if model.commit is None:
            raise ModelError(f"{source}: {_no_model(model)}: {_first_line(error)}") from error
        # Most likely the copy in the cache is damaged.
        try:
            clip, missing = _read_weights(model.fetch(model.weights, again=True), dtype)
        except Exception as again:
            raise ModelError(
                f"{source}: {_no_model(model)}: {_first_line(error)}. Loading them anew did not help "
                f"({_first_line(again)}); remove {folder} to start afresh"
            ) from error
    if missing:
        raise ModelError(
            f"{source}: its weights lack {len(missing)} of the model's tensors, for instance {missing[0]}; they would "
            "be random. Save the whole CLIPModel with save_pretrained, both towers and projections, and give that folder"
        )
    return clip.eval()


def _refuse_classifier(config: CLIPConfig, source: str) -> None:
    if CLASSIFIER in (config.architectures or ()):
        raise ModelError(
            f"{source}: an export of {CLASSIFIER}, a vision tower and a classifier without text tower and projection. "
            f"`attndrift compare BASE {source}` compares its tower with the CLIP model that it was fine-tuned from. For "
            f"anything else, put the tower into that CLIPModel, clip.vision_model.load_state_dict("
            "classifier.vision_model.state_dict()), and save it whole"
        )


def _refuse_misfit(folder: Path, config: CLIPConfig, source: str, error: Exception) -> None:
    """Raise :class:`ModelError` where ``error`` comes of tensors whose shapes are not those of ``config``."""
    try:
        with torch.device("meta"):
            wanted = CLIPModel(config).state_dict()
        stored = {name: shape for path in sorted(folder.glob("*.safetensors")) for name, shape in _shapes(path).items()}
    except Exception:  # damaged otherwise, which is told of ``error`` itself
        return
    wrong = misfit(stored, wanted)
    if wrong is not None:
        raise ModelError(
            f"{source}: {wrong}. Its weights and its {CONFIG} are of two models; put the {CONFIG} that was saved with the "
            "weights beside them"
        ) from error


def _shapes(path: Path) -> dict[str, list[int]]:
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return {name: file.get_slice(name).get_shape() for name in names}


def _read_weights(folder: Path, dtype: torch.dtype) -> tuple[CLIPModel, list[str]]:
    """The model in ``folder``, and its tensors that no file there holds."""
    with _quiet():
        # A folder: nothing is asked of a hub, and nothing is converted by anybody.
        clip, report = CLIPModel.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    return clip, sorted(report["missing_keys"])


def load_model(source: str | Path) -> Any:
    """A model that studies train, in evaluation mode: CLIP as :func:`load_clip` has it, or ``BACKBONE:REST``.

    Raises :class:`ModelError`.
    """
    scheme = scheme_of(str(source))
    return load_clip(source) if scheme is None else _of_scheme(scheme, "load").eval()


def build_model(source: Any) -> Any:
    """A model of ``source`` with any weights, for counting; ``source`` may be a ``CLIPConfig``."""
    scheme = scheme_of(str(source)) if isinstance(source, (str, Path)) else None
    if scheme is not None:
        return _of_scheme(scheme, "build")
    return CLIPModel(source if isinstance(source, CLIPConfig) else load_config(source))


def load_shape(source: str | Path) -> VisionShape:
    """The sizes of a model's image tower, without its weights. Raises :class:`ModelError`."""
    scheme = scheme_of(str(source))
    if scheme is not None:
        shape: VisionShape = _of_scheme(scheme, "shape")
        return shape
    config = load_config(source)
    vision = config.vision_config
    return VisionShape(
        vision.image_size, vision.patch_size, vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size,
        config.projection_dim,
    )  # fmt: skip


def load_text_shape(source: str | Path) -> TextShape | None:
    """The sizes of a model's text tower, without its weights; None where only the model itself could tell.

    Raises :class:`ModelError`.
    """
    if scheme_of(str(source)) is not None:
        return None
    text = load_config(source).text_config
    return TextShape(text.hidden_size, text.num_hidden_layers, text.intermediate_size)


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
    made = config_of(str(source))
    if made is not None:
        return processor_for(made)
    model = resolve_model(source)
    missing = {what: files for what, files in _PROCESSORS.items() if not files & set(model.files)}
    if missing:
        said = " and no ".join(f"{what} ({' or '.join(sorted(files))})" for what, files in missing.items())
        raise ModelError(
            f"{source}: holds no {said}; save {'those' if len(missing) > 1 else 'that'} of the model it was made from "
            "beside it in a folder, and give the folder"
        )
    folder = model.fetch(model.others)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return tokenizer, CLIPImageProcessorPil.from_pretrained(folder)
    # Each tokenizer backend has errors of its own.
    except Exception as error:
        raise ModelError(f"{source}: its tokenizer or image processor cannot be loaded: {error}") from error


def state_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and values of a model's parameters and buffers."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def describe(source: str | Path, model: CLIPModel | None = None) -> dict[str, Any]:
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
