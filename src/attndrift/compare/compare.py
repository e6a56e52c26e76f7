"""Two models, measured against each other on the same images."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPModel

from attndrift import metrics
from attndrift.attention.errors import ObservationError
from attndrift.attention.observer import observe
from attndrift.compare.errors import CompareError
from attndrift.compare.image_folder import batches, open_images, pictures, some_pictures
from attndrift.compare.retention import check_zero_shot, measure_zero_shot
from attndrift.compare.sources import ResolvedModel, resolve, same_pixels
from attndrift.data.pixels import PixelStore
from attndrift.drift.drift import Snapshot, relative_change_pct
from attndrift.drift.snapshot import take_snapshot
from attndrift.metrics.registry import METRICS, structure_metrics
from attndrift.models.embedding import image_embeddings
from attndrift.models.evaluation import evaluation_mode
from attndrift.process_group import DivergedError
from attndrift.retention.zero_shot import InertModelError
from attndrift.sanitize import printable
from attndrift.version import __version__

TOP_HEADS = 5
"""Heads that are reported for each metric."""

SUMMARY: Final[dict[str, str]] = {
    **{
        f"{name}_{what}": f"{words}, {unit or METRICS[name].unit or METRICS[name].range}"
        for name in structure_metrics()
        for what, words, unit in (
            ("base", f"{name} of BASE, mean over images, heads and layers", ""),
            ("adapted", f"{name} of ADAPTED, mean over images, heads and layers", ""),
            ("change_pct", f"change of the mean {name}", "percent"),
            ("last_layer_change_pct", f"change of {name} in the last block", "percent"),
        )
    },
    "cka_mean": "linear CKA of the class token's hidden states, mean over blocks, 0..1",
    "cka_last": "linear CKA in the last block, 0..1",
    "cka_debiased_mean": "debiased linear CKA, mean over blocks, at most 1; chance is 0",
    "cka_debiased_last": "debiased linear CKA in the last block, at most 1; chance is 0",
    "embedding_drift": "1 - mean cosine of the image embeddings, 0..2",
    "embedding_distance": "mean L2 distance of the image embeddings over the mean norm of BASE's",
    "weight_drift": "norm(dW) / norm(W0) over the vision transformer",
    "projection_drift": "norm(dW) / norm(W0) of the visual projection",
    "text_drift": "norm(dW) / norm(W0) over the text transformer and its projection",
    "zero_shot_base_accuracy": "zero-shot accuracy of BASE, 0..1",
    "zero_shot_adapted_accuracy": "zero-shot accuracy of ADAPTED, 0..1",
    "zero_shot_change_points": "change of the zero-shot accuracy, percentage points",
    "retention_pct": "100 x zero-shot accuracy of ADAPTED / BASE, percent",
    "retention_low_pct": "lower end of the retention's 95% interval, percent",
}
"""Every value that a comparison ends in, and that a condition may name: what it is, and its unit."""
ZERO_SHOT = frozenset(name for name in SUMMARY if name.startswith(("zero_shot", "retention")))


@dataclass(frozen=True)
class MapPictures:
    """Attention in the last block, mean over heads, on ``k`` of the images.

    ``images`` (k, height, width, 3) uint8 as BASE sees them; ``base`` and ``adapted`` (k, rows, columns),
    shares that sum to 1; ``names`` (k,) of the files.
    """

    images: NDArray[np.uint8]
    base: NDArray[np.float64]
    adapted: NDArray[np.float64]
    names: list[str]


@dataclass(frozen=True)
class Comparison:
    """What two models differ in.

    Attributes:
        base, adapted: the two sides, as plain values.
        images: folder, number of images, names of those skipped with the reason, names in the maps.
        summary: every name of ``SUMMARY``; None where it could not be measured.
        reasons: why a value is None, by name.
        cka_chance: plain CKA of unrelated representations of as many images and dimensions.
        layers: a row a block (``layer`` counts from 1): each metric's base, adapted and change, and both CKAs.
        heads: a row for each of the heads that changed most, five a metric.
        weights: a row a module: its drift and number of parameters.
        zero_shot: see :func:`~attndrift.compare.retention.measure_zero_shot`, or None.
        maps: attention maps of a few images.
        notes: what a reader has to know.
    """

    base: dict[str, Any]
    adapted: dict[str, Any]
    images: dict[str, Any]
    summary: dict[str, float | None]
    reasons: dict[str, str]
    cka_chance: float
    layers: list[dict[str, Any]]
    heads: list[dict[str, Any]]
    weights: list[dict[str, Any]]
    zero_shot: dict[str, Any] | None
    maps: MapPictures
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the maps."""
        return {
            "format": 1,
            "attndrift": __version__,
            "base": self.base,
            "adapted": self.adapted,
            "images": self.images,
            "summary": self.summary,
            "reasons": self.reasons,
            "cka_chance": self.cka_chance,
            "layers": self.layers,
            "heads": self.heads,
            "weights": self.weights,
            "zero_shot": self.zero_shot,
            "notes": self.notes,
        }


def compare_models(
    base: str | Path,
    adapted: str | Path,
    images: str | Path,
    *,
    zero_shot: str | None = None,
    zero_shot_limit: int | None = None,
    skip_unreadable: bool = False,
    batch_size: int = 64,
    seed: int = 0,
    cache: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Measure what ``adapted`` differs in from ``base``, on the images of a folder.

    Args:
        base, adapted: see :mod:`attndrift.compare.sources`.
        images: a folder of images, any depth.
        zero_shot: a registered dataset for the zero-shot accuracy; ``zero_shot_limit`` images of it at most.
        skip_unreadable: leave out (and list) images that cannot be decoded.
        batch_size: images a forward pass.
        seed: of the bootstrap.
        cache: where pixels of the zero-shot images are kept; the usual cache folder by default.
        progress: told in words what is being done.

    Raises ``ValueError`` (in its kinds) for what cannot be compared: models of different shape, weights
    that did not load, weights that differ while embeddings are bit for bit equal, unreadable images.
    """
    say = progress or (lambda message: None)
    try:
        opened = open_images(Path(images), skip_unreadable=skip_unreadable)
        say(f"loading {printable(base)}")
        first = resolve(base)
        say(f"loading {printable(adapted)}")
        second = resolve(adapted, first)
        _check_shapes(first, second)
        if zero_shot is not None:
            check_zero_shot(first, second, zero_shot)
        weights, drift, reasons = _weights(first.clip, second.clip)
        with tempfile.TemporaryDirectory(prefix="attndrift-compare-") as temporary:
            shared = same_pixels(first.image_processor, second.image_processor)
            store = opened.store(first.image_processor, Path(temporary))
            own = store if shared else opened.store(second.image_processor, Path(temporary))
            say(f"measuring both on {len(store)} images")
            snapshots = [
                take_snapshot(side.clip, batches(pixels, batch_size))
                for side, pixels in ((first, store), (second, own))
            ]
            _refuse_inert(first.clip, second.clip, snapshots, store if not shared else None, drift, batch_size)
            maps = _maps(first.clip, second.clip, store, own, opened.names)
        measured, layers, more = _representations(*snapshots)
        transfer = None
        if zero_shot is not None:
            say(f"zero-shot accuracy on {printable(zero_shot)}")
            transfer = measure_zero_shot(
                first, second, zero_shot, weight_drift=_moved(drift), limit=zero_shot_limit, seed=seed,
                batch_size=batch_size, cache=cache,
            )  # fmt: skip
    except (InertModelError, DivergedError, ObservationError, FloatingPointError) as error:
        raise CompareError(str(error)) from error
    summary: dict[str, float | None] = {**dict.fromkeys(SUMMARY), **measured, **drift}
    summary |= _transfer_summary(transfer)
    reasons |= more | _transfer_reasons(transfer)
    notes = _notes(first, second, shared, summary)
    width = first.clip.config.vision_config.hidden_size
    return Comparison(
        base=first.to_json(),
        adapted=second.to_json(),
        images=opened.to_json(maps.names),
        summary=summary,
        reasons={name: reasons[name] for name in SUMMARY if summary[name] is None and name in reasons},
        cka_chance=metrics.cka_chance_level(len(store), width),
        layers=layers,
        heads=_heads(*snapshots),
        weights=weights,
        zero_shot=transfer,
        maps=maps,
        notes=notes,
    )


def _check_shapes(first: ResolvedModel, second: ResolvedModel) -> None:
    """Raise where hidden states, heads, patches or embeddings of the two do not correspond."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    for name in (*names, "projection_dim"):
        one, two = (
            getattr(side.clip.config if name == "projection_dim" else side.clip.config.vision_config, name)
            for side in (first, second)
        )
        if one != two:
            raise CompareError(
                f"BASE ({first.source}) has {name} {one} and ADAPTED ({second.source}) {two}; only a model and its "
                "fine-tuned forms can be compared layer by layer"
            )


def _module_of(name: str) -> str:
    """The row of the table of weights that a vision parameter belongs to."""
    parts = name.split(".")
    if parts[0] == "embeddings":
        return "embeddings"
    if parts[0] == "encoder":
        kind = {"self_attn": "attention", "mlp": "MLP"}.get(parts[3])
        return f"block {int(parts[2]) + 1} {kind}" if kind else "layer norms"
    return "layer norms"


def _weights(
    base: CLIPModel, adapted: CLIPModel
) -> tuple[list[dict[str, Any]], dict[str, float | None], dict[str, str]]:
    """Rows of drift by module, the three drifts of the summary, and why one of them is None."""
    before = {name: value.detach() for name, value in base.vision_model.named_parameters()}
    after = {name: value.detach() for name, value in adapted.vision_model.named_parameters()}
    groups: dict[str, list[str]] = {}
    for name in before:
        groups.setdefault(_module_of(name), []).append(name)
    rows = [
        _row(module, {n: before[n] for n in names}, {n: after[n] for n in names if n in after})
        for module, names in groups.items()
    ]
    rows.sort(key=lambda row: row["module"] == "layer norms")
    whole = _row("vision transformer", before, after)
    projection = _row(
        "projection",
        {"weight": base.visual_projection.weight.detach()},
        {"weight": adapted.visual_projection.weight.detach()},
    )
    drift = {"weight_drift": whole["drift"], "projection_drift": projection["drift"]}
    reasons = {}
    texts = [
        {n: p.detach() for n, p in clip.named_parameters() if n.startswith(("text_model.", "text_projection."))}
        for clip in (base, adapted)
    ]
    rows += [projection, whole]
    if {n: p.shape for n, p in texts[0].items()} == {n: p.shape for n, p in texts[1].items()}:
        text = _row("text transformer and projection", *texts)
        rows.append(text)
        drift["text_drift"] = text["drift"]
    else:
        drift["text_drift"] = None
        reasons["text_drift"] = "the text towers of the two models have different shapes"
    return rows, drift, reasons


def _row(module: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "module": module,
        "drift": metrics.weight_drift(before, after),
        "parameters": sum(value.numel() for value in before.values()),
    }


def _moved(drift: Mapping[str, float | None]) -> float:
    """How far the weights that embed images have moved."""
    return (drift["weight_drift"] or 0.0) + (drift["projection_drift"] or 0.0)


def _refuse_inert(
    base: CLIPModel,
    adapted: CLIPModel,
    snapshots: list[Snapshot],
    store: PixelStore | None,
    drift: Mapping[str, float | None],
    batch_size: int,
) -> None:
    """Raise where weights differ and embeddings do not; ``store`` is given where the two saw different pixels."""
    moved = _moved(drift)
    if moved == 0:
        return
    before, after = snapshots[0].embeddings, snapshots[1].embeddings
    if store is not None:
        pixels = next(batches(store, batch_size))
        with evaluation_mode(base), evaluation_mode(adapted):
            before, after = image_embeddings(base, pixels), image_embeddings(adapted, pixels)
    if torch.equal(before, after):
        raise InertModelError(
            f"the weights differ by {moved:.3g}, yet the embeddings of {len(before)} images are bit for bit equal: what was "
            "adapted does not take part in the forward pass, so nothing measured would be ADAPTED's"
        )


def _maps(base: CLIPModel, adapted: CLIPModel, store: PixelStore, own: PixelStore, names: list[str]) -> MapPictures:
    chosen = some_pictures(len(store))
    maps = []
    for clip, pixels in ((base, store), (adapted, own)):
        with evaluation_mode(clip), observe(clip) as seen:
            image_embeddings(clip, pixels.fetch(chosen))
            maps.append(seen.attention[-1].double().mean(1).cpu().numpy())
    side = math.isqrt(maps[0].shape[1])
    shape = (len(chosen), side, side)
    return MapPictures(
        images=pictures(store, chosen),
        base=maps[0].reshape(shape),
        adapted=maps[1].reshape(shape),
        names=[names[int(index)] for index in chosen],
    )


def _cka(before: Tensor, after: Tensor, *, debiased: bool) -> tuple[float | None, str | None]:
    needed = 4 if debiased else 2
    if len(before) < needed:
        return None, f"it needs at least {needed} images, there are {len(before)}"
    try:
        return float(metrics.linear_cka(before, after, debiased=debiased)), None
    except ValueError as error:  # all images alike: undefined, and no other measure is
        return None, str(error)


def _representations(
    base: Snapshot, adapted: Snapshot
) -> tuple[dict[str, float | None], list[dict[str, Any]], dict[str, str]]:
    """Values of the summary, a row a layer, and why a value is None."""
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    layers: list[dict[str, Any]] = [{"layer": index + 1} for index in range(len(base.hidden))]
    for name in structure_metrics():
        before, after = base.structure.mean(name), adapted.structure.mean(name)
        for row, one, two in zip(
            layers, base.structure.layers(name).tolist(), adapted.structure.layers(name).tolist(), strict=True
        ):
            row |= {f"{name}_base": one, f"{name}_adapted": two, f"{name}_change_pct": relative_change_pct(two, one)}
        values |= {f"{name}_base": before, f"{name}_adapted": after}
        changes = {
            f"{name}_change_pct": relative_change_pct(after, before),
            f"{name}_last_layer_change_pct": layers[-1][f"{name}_change_pct"],
        }
        values |= changes
        reasons |= {key: "the value of BASE is 0" for key, change in changes.items() if change is None}
    for kind, debiased in (("cka", False), ("cka_debiased", True)):
        found = [_cka(one, two, debiased=debiased) for one, two in zip(base.hidden, adapted.hidden, strict=True)]
        for row, (value, _) in zip(layers, found, strict=True):
            row[kind] = value
        numbers = [value for value, _ in found if value is not None]
        values[f"{kind}_mean"] = math.fsum(numbers) / len(numbers) if len(numbers) == len(found) else None
        values[f"{kind}_last"] = found[-1][0]
        why = next((reason for _, reason in found if reason is not None), None)
        if why is not None:
            reasons |= {f"{kind}_mean": why, f"{kind}_last": found[-1][1] or why}
    values["embedding_drift"] = float(metrics.embedding_drift(base.embeddings, adapted.embeddings))
    distance = (adapted.embeddings - base.embeddings).double().norm(dim=1).mean()
    values["embedding_distance"] = float(distance / base.embeddings.double().norm(dim=1).mean())
    return values, layers, reasons


def _heads(base: Snapshot, adapted: Snapshot) -> list[dict[str, Any]]:
    """For each metric the heads whose value changed most, by the size of the relative change."""
    rows: list[dict[str, Any]] = []
    for name in structure_metrics():
        found = list(_changes(name, base.structure.heads(name), adapted.structure.heads(name)))
        rows += sorted(found, key=lambda row: -abs(row["change_pct"]))[:TOP_HEADS]
    return rows


def _changes(name: str, before: Tensor, after: Tensor) -> Iterator[dict[str, Any]]:
    for layer in range(before.shape[0]):
        for head in range(before.shape[1]):
            one, two = float(before[layer, head]), float(after[layer, head])
            change = relative_change_pct(two, one)
            if change is not None:
                yield {
                    "metric": name,
                    "layer": layer + 1,
                    "head": head + 1,
                    "base": one,
                    "adapted": two,
                    "change_pct": change,
                }


def _transfer_reasons(transfer: Mapping[str, Any] | None) -> dict[str, str]:
    """Why numbers of the zero-shot accuracy are missing."""
    if transfer is None:
        return dict.fromkeys(sorted(ZERO_SHOT), "no --zero-shot dataset was given")
    reason = transfer["retention_reason"]
    return dict.fromkeys(("retention_pct", "retention_low_pct"), reason) if reason else {}


def _transfer_summary(transfer: Mapping[str, Any] | None) -> dict[str, float | None]:
    if transfer is None:
        return {}
    interval = transfer["retention_pct_interval"]
    return {
        "zero_shot_base_accuracy": transfer["base_accuracy"],
        "zero_shot_adapted_accuracy": transfer["adapted_accuracy"],
        "zero_shot_change_points": transfer["change_points"],
        "retention_pct": transfer["retention_pct"],
        "retention_low_pct": None if interval is None else interval["low"],
    }


def _notes(first: ResolvedModel, second: ResolvedModel, shared: bool, summary: Mapping[str, float | None]) -> list[str]:
    notes = [f"BASE: {note}." for note in first.notes] + [f"ADAPTED: {note}." for note in second.notes]
    if not shared:
        notes.append("The two have different image processors; each saw the images as its own makes them.")
    if summary["weight_drift"] == 0 and summary["projection_drift"] == 0:
        notes.append("The two have equal vision weights: every difference is 0 because nothing differs.")
    if summary["zero_shot_base_accuracy"] is not None and second.trained_on is None:
        notes.append(
            "What ADAPTED was trained on is not known; if it was the zero-shot dataset, its accuracy is not zero-shot."
        )
    return notes
