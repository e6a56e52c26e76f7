"""Checkpoints that prove what they hold: the trained tensors, and a fingerprint of what the model made of images.

A loaded model must reproduce the embeddings that were recorded when it was saved. A model whose
adapters did not load embeds like the pretrained one, and raises here instead of being evaluated.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from attndrift.files import is_inside, new_folder, read_json, refuse_links, sha256, write_json
from attndrift.formats import check_format, numbered
from attndrift.methods.adaptation import blank
from attndrift.methods.adapters import read_tensors, same_names
from attndrift.methods.classifier import ImageClassifier, unwrap
from attndrift.methods.parameter_drift import TextWeights, projection_drift, weight_drift
from attndrift.methods.registry import HEADS
from attndrift.methods.settings import AdaptationSettings
from attndrift.models.backbone import backbone_of
from attndrift.models.embedding import image_embeddings
from attndrift.models.errors import CheckpointError, FingerprintError
from attndrift.models.evaluation import evaluation_mode
from attndrift.models.load import load_model, state_hash
from attndrift.models.shapes import misfit
from attndrift.registry import UnknownNameError

DESCRIPTION = "checkpoint.json"
WEIGHTS = "model.safetensors"
FINGERPRINT = "fingerprint.safetensors"
START = "start.safetensors"
"""What rebuilds weights that the method has decomposed."""
TOKENS = "classifier.tokens"
"""Of the class prompts, in the file of weights: what the text side of a fingerprint is proved with."""
_TEXTS = {"texts", "pretrained_texts"}
_FIELDS = {"format", "base", "settings", "class_names", "drift", "files"}
TOLERANCE = 1e-5
MERGED_TOLERANCE = 1e-4
"""Merging adds B A to W in float32 and rounds once more (measured: 1e-6 of the scale)."""
ROUNDING = 1e-6
"""A weight drift below this is that of float32: an adapter that does nothing yet may round its weight."""


def fingerprint_embeddings(model: nn.Module, pixels: Tensor) -> Tensor:
    """Embeddings of normalised images as the CPU makes them in float32: (images, dimensions).

    Accelerators convolve in reduced precision by default, so that a fingerprint taken on one would not
    be reproduced to 1e-5 on a CPU.
    """
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in model.parameters()):
        model = copy.deepcopy(model).to("cpu", torch.float32)
    with evaluation_mode(model), torch.autocast("cpu", enabled=False):
        return image_embeddings(model, pixels.float().cpu()).float().contiguous()


def _prompts(model: ImageClassifier, pretrained: nn.Module | None = None) -> Tensor:
    """Features of the class prompts as the CPU makes them in float32, by the model's text tower or the pretrained one's."""
    live = copy.deepcopy(model.live_text)
    backbone = model.backbone if pretrained is None else unwrap(pretrained)
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in backbone.parameters()):
        backbone = copy.deepcopy(backbone).to("cpu", torch.float32)
    text = backbone_of(backbone).text
    assert live is not None
    assert text is not None
    with evaluation_mode(backbone), torch.autocast("cpu", enabled=False):
        return live.cpu().features(text)


def _text_moved(model: ImageClassifier, pretrained: nn.Module) -> float:
    """Weight drift of the text tower and its projection, which text features depend on."""
    found = TextWeights.of(backbone_of(pretrained)).drift(model.view)
    return found["text_weight_drift"] + found["text_projection_drift"]


def _stored(model: ImageClassifier, settings: AdaptationSettings) -> dict[str, Tensor]:
    """What the file of weights holds: what is trained, the classifier in any case, without what the method itself saves."""
    apart = settings.with_adapters.adapter_parameters
    found = {n: p for n, p in model.named_parameters() if p.requires_grad and not (apart and apart in n)}
    return found | {f"classifier.{n}": value for n, value in model.classifier.state_dict().items()}


def save_adapted(
    model: ImageClassifier,
    folder: Path,
    *,
    base_source: str,
    probe_pixels: Tensor,
    pretrained: nn.Module,
    class_names: Sequence[str],
    pretrained_embeddings: Tensor | None = None,
    pretrained_sha256: str | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint, whole or not at all; an older one at ``folder`` is replaced.

    Args:
        base_source: what :func:`load_model` loads the backbone from.
        probe_pixels: a few normalised images (images, 3, height, width) for the fingerprint.
        pretrained: the pretrained backbone.
        class_names: in the order of the classifier's outputs.
        pretrained_embeddings: :func:`fingerprint_embeddings` of ``pretrained`` and ``probe_pixels``, where somebody has
            them; computed otherwise.
        pretrained_sha256: :func:`~attndrift.models.load.state_hash` of ``pretrained``, where somebody has it.
        extra: more for ``checkpoint.json``, plain values.

    Raises:
        ValueError: class names that are not as many as the classes, or ``extra`` with a reserved name.
        CheckpointError: the embeddings are not finite; nothing is written.
    """
    settings = model.settings
    if not isinstance(settings, AdaptationSettings):
        raise TypeError("the model was not made by attndrift.methods.adapt: it does not know how it was adapted")
    if len(class_names) != model.classifier.out_features:
        raise ValueError(
            f"class_names: {len(class_names)} names for a classifier of {model.classifier.out_features} classes"
        )
    clash = sorted(set(extra or {}) & _FIELDS)
    if clash:
        raise ValueError(f"extra: {clash[0]!r} is a field of every checkpoint; choose another name")
    fingerprint = {
        "pixels": probe_pixels.float().cpu().contiguous(),
        "embeddings": fingerprint_embeddings(model, probe_pixels),
        "pretrained_embeddings": (
            fingerprint_embeddings(pretrained, probe_pixels) if pretrained_embeddings is None else pretrained_embeddings
        ),
    }
    if settings.trains_text:
        fingerprint |= {"texts": _prompts(model), "pretrained_texts": _prompts(model, pretrained)}
    if not all(bool(torch.isfinite(value).all()) for value in fingerprint.values()):
        raise CheckpointError(f"{folder}: not saved: the model's embeddings, or the images given, are not finite")
    with new_folder(folder) as target:
        weights = {name: value.detach().cpu().contiguous() for name, value in _stored(model, settings).items()}
        save_file(weights, target / WEIGHTS)
        save_file(fingerprint, target / FINGERPRINT)
        if model.start:
            save_file({name: value.cpu().contiguous() for name, value in model.start.items()}, target / START)
        settings.with_adapters.save(model.model, target)
        files = sorted(p for p in target.rglob("*") if p.is_file())
        write_json(
            target / DESCRIPTION,
            numbered(
                "checkpoint",
                {
                    "base": {"source": base_source, "weights_sha256": pretrained_sha256 or state_hash(pretrained)},
                    "settings": settings.to_json(),
                    "class_names": list(class_names),
                    "drift": {
                        "weight": weight_drift(model, pretrained),
                        "projection": projection_drift(model, pretrained),
                        **({"text": _text_moved(model, pretrained)} if settings.trains_text else {}),
                    },
                    "files": {str(p.relative_to(target)): sha256(p) for p in files},
                    **(extra or {}),
                },
            ),
        )


def load_adapted(
    folder: Path, *, base: nn.Module | None = None, base_sha256: str | None = None, merged: bool = False
) -> ImageClassifier:
    """Load a checkpoint and prove that it is the model that was saved.

    Args:
        base: the backbone, unchanged (it is changed in place); None loads the recorded source.
        base_sha256: :func:`~attndrift.models.load.state_hash` of ``base``, where somebody has it.
        merged: add the adapters to the weights and remove them.

    Raises:
        CheckpointError: a file is missing or damaged, the backbone is another one, a tensor found no place.
        FormatError: the checkpoint is of another version.
        FingerprintError: the loaded model does not embed the recorded images as the saved one did, or has
            drifted in its weights and embeds exactly as the pretrained one.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        raise CheckpointError(f"{folder}: not a checkpoint (no {DESCRIPTION})")
    refuse_links(folder)
    description = _description(folder)
    for name, expected in description["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder}: {name} is missing")
        if sha256(path) != expected:
            raise CheckpointError(f"{folder}: {name} does not have its recorded checksum; it is damaged or was changed")
    try:
        settings = AdaptationSettings(**description["settings"])
        settings.facts, settings.text_facts  # noqa: B018 - raises for a method that is not installed here
    except (TypeError, ValueError, AttributeError, UnknownNameError) as error:
        raise CheckpointError(f"{folder / DESCRIPTION}: settings that this version does not know: {error}") from error
    pretrained = base if base is not None else load_model(description["base"]["source"])
    if (base_sha256 or state_hash(pretrained)) != description["base"]["weights_sha256"]:
        raise CheckpointError(
            f"{folder}: was trained from other weights than the backbone given ({description['base']['source']})"
        )
    start = read_tensors(folder / START) if START in description["files"] else None
    if settings.facts.rewrites_base and start is None:
        raise CheckpointError(f"{folder}: {START} is missing, without which method {settings.method} cannot be rebuilt")
    try:
        tokens = read_tensors(folder / WEIGHTS).get(TOKENS) if HEADS[settings.head].live else None
        model = blank(settings, pretrained, len(description["class_names"]), start, tokens)
    # Values of other types, of whoever wrote them.
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder / DESCRIPTION}: settings that this version does not know: {error}") from error
    _place(model, folder, settings)
    if merged:
        model.model = settings.with_adapters.merge(model.model)
    model.eval()
    check_fingerprint(model, folder, tolerance=MERGED_TOLERANCE if merged else TOLERANCE)
    return model


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Base(_Strict):
    source: str
    weights_sha256: str


class _Drift(_Strict):
    weight: float | None
    projection: float | None
    text: float | None = None


class _Description(_Strict):
    """What ``checkpoint.json`` must hold, whoever wrote it."""

    format: int
    base: _Base
    settings: dict[str, Any]
    class_names: list[str] = Field(min_length=1, max_length=1_000_000)
    drift: _Drift
    files: dict[str, str]


def _description(folder: Path) -> dict[str, Any]:
    description: dict[str, Any] = read_json(folder / DESCRIPTION)
    check_format("checkpoint", description, folder)
    absent = sorted(_FIELDS - set(description))
    if absent:
        raise CheckpointError(f"{folder / DESCRIPTION}: the field {absent[0]!r} is missing")
    try:
        _Description.model_validate(description)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])[:200]
        raise CheckpointError(f"{folder / DESCRIPTION}: the field {place!r}: {first['msg']}") from error
    unsealed = sorted({WEIGHTS, FINGERPRINT} - set(description["files"]))
    if unsealed:
        raise CheckpointError(f"{folder / DESCRIPTION}: no checksum of {unsealed[0]}")
    for name in description["files"]:
        if "\0" in name or not is_inside(folder / name, folder):
            raise CheckpointError(
                f"{folder / DESCRIPTION}: the field 'files': {name[:200]!r} lies outside the checkpoint"
            )
    return description


def _place(model: ImageClassifier, folder: Path, settings: AdaptationSettings) -> None:
    stored = read_tensors(folder / WEIGHTS)
    wanted = _stored(model, settings)
    same_names(set(stored), set(wanted), folder / WEIGHTS)
    wrong = misfit(stored, wanted)
    if wrong is not None:
        raise CheckpointError(f"{folder / WEIGHTS}: {wrong}. The checkpoint was saved from another model")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(stored[name])
    settings.with_adapters.load(model.model, folder)


def check_fingerprint(model: ImageClassifier, folder: Path, *, tolerance: float = TOLERANCE) -> None:
    """Raise :class:`FingerprintError` unless ``model`` embeds the recorded images, and texts, as the saved model did."""
    recorded = read_tensors(folder / FINGERPRINT)
    texts = _TEXTS if isinstance(model.settings, AdaptationSettings) and model.settings.trains_text else set[str]()
    same_names(set(recorded), {"pixels", "embeddings", "pretrained_embeddings", *texts}, folder / FINGERPRINT)
    try:
        now = fingerprint_embeddings(model, recorded["pixels"])
    except (RuntimeError, ValueError) as error:  # no images of this model's size
        raise CheckpointError(f"{folder / FINGERPRINT}: `pixels` cannot be embedded: {error}") from error
    drift = read_json(folder / DESCRIPTION)["drift"]
    moved = (drift["weight"] or 0.0) + (drift["projection"] or 0.0)
    _check_embeddings(folder, "images", now, recorded, ("embeddings", "pretrained_embeddings"), moved, tolerance)
    if texts:
        try:
            features, moved = _prompts(model), drift.get("text") or 0.0
        except (RuntimeError, ValueError, IndexError) as error:  # no tokens of this text tower
            raise CheckpointError(f"{folder / WEIGHTS}: `{TOKENS}` cannot be embedded: {error}") from error
        _check_embeddings(folder, "class prompts", features, recorded, ("texts", "pretrained_texts"), moved, tolerance)


def _check_embeddings(
    folder: Path,
    what: str,
    now: Tensor,
    recorded: Mapping[str, Tensor],
    names: tuple[str, str],
    moved: float,
    tolerance: float,
) -> None:
    """Raise unless ``now`` is what was recorded, and is not what the pretrained model makes where weights have ``moved``."""
    for name in names:
        if recorded[name].shape != now.shape or not recorded[name].is_floating_point():
            raise CheckpointError(
                f"{folder / FINGERPRINT}: `{name}` is {recorded[name].dtype} of shape {tuple(recorded[name].shape)}; its "
                f"{'pixels' if what == 'images' else what} give floats of shape {tuple(now.shape)}"
            )
    saved, pretrained = (recorded[name] for name in names)
    scale = float(saved.abs().max())
    difference = float((now - saved).abs().max()) / max(scale, 1e-30)
    if not difference <= tolerance:
        same = torch.allclose(now, pretrained, rtol=0, atol=tolerance * scale)
        hint = " It embeds them as the pretrained model does: what was trained did not load." if same else ""
        raise FingerprintError(
            f"{folder}: the loaded model embeds the recorded {what} differently from the saved one "
            f"(by {difference:.2g} of the largest value; allowed {tolerance:.0e}).{hint}"
        )
    if moved > ROUNDING and torch.equal(now, pretrained):
        raise FingerprintError(
            f"{folder}: weights have drifted by {moved:.3g}, yet the embeddings of the {what} are exactly the pretrained ones; "
            "what was trained does not take part in the forward pass"
        )
