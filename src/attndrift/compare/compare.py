"""Two models, measured against each other on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attndrift.attention.errors import ObservationError
from attndrift.compare.attention_maps import attention_maps
from attndrift.compare.comparison import Comparison, MapPictures
from attndrift.compare.differences import Difference, differences, refuse_other_shapes, same_pixels
from attndrift.compare.errors import CompareError
from attndrift.compare.image_folder import ImageFolder, open_images
from attndrift.compare.measures import measure_retention
from attndrift.compare.resolved import ResolvedModel
from attndrift.compare.retention import check_zero_shot, measure_zero_shot, refuse_trained_on
from attndrift.compare.sources import named, resolve
from attndrift.compare.summary import summarize
from attndrift.compare.weight_table import WeightTable, weight_table
from attndrift.drift.drift import Drift, Snapshot, compare_snapshots, relative_change_pct
from attndrift.drift.probe import FEWEST_IMAGES
from attndrift.drift.snapshot import take_snapshot
from attndrift.metrics.compared import finite
from attndrift.metrics.registry import structure_metrics
from attndrift.metrics.representation import cka_chance_level, cross_layer_cka
from attndrift.models.embedding import image_embeddings
from attndrift.models.evaluation import evaluation_mode
from attndrift.process_group import DivergedError
from attndrift.results.measures import unconverged
from attndrift.retention.zero_shot import InertModelError
from attndrift.sanitize import printable

TOP_HEADS = 5
"""Heads that are reported for each metric."""


def compare_models(
    base: str | Path | nn.Module,
    adapted: str | Path | nn.Module,
    images: str | Path,
    *,
    image_processor: Any = None,
    tokenizer: Any = None,
    zero_shot: str | None = None,
    zero_shot_limit: int | None = None,
    retention: str | None = None,
    retention_limit: int | None = None,
    cross_layer: bool = False,
    skip_unreadable: bool = False,
    batch_size: int = 64,
    cache: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Measure what ``adapted`` differs in from ``base``, on the images of a folder.

    Args:
        base, adapted: a folder, a name, or the model itself, see :mod:`attndrift.compare.sources`. A model is copied in
            float32 on the CPU and stays as it is.
        images: a folder of images, any depth.
        image_processor, tokenizer: of models that are given themselves; by default BASE's, and that of its backbone.
        zero_shot: a registered dataset for the zero-shot accuracy; ``zero_shot_limit`` images of it at most.
        retention: the same for every retention measure that both models allow: ``zero_shot``, ``knn``, ``linear_probe``, ...
        cross_layer: measure debiased CKA of every block with every block too.
        skip_unreadable: leave out (and list) images that cannot be decoded.
        batch_size: images a forward pass.
        cache: where pixels of the zero-shot images are kept; the usual cache folder by default.
        progress: told in words what is being done.

    Raises ``ValueError`` (in its kinds) for what cannot be compared: models of different shape, weights that did not load,
    weights that differ while embeddings are bit for bit equal, unreadable images.
    """
    say = progress or (lambda message: None)
    try:
        opened = open_images(images, skip_unreadable=skip_unreadable)
        if cross_layer:
            _refuse_few(opened)
        say(f"loading {named(base)}")
        first = resolve(base, image_processor=image_processor, tokenizer=tokenizer)
        say(f"loading {named(adapted)}")
        second = resolve(adapted, first, image_processor=image_processor, tokenizer=tokenizer)
        refuse_other_shapes(first, second)
        if zero_shot is not None:
            check_zero_shot(first, second, zero_shot)
        refuse_trained_on(first, second, *([retention] if retention else []))
        weights = weight_table(first.model, second.model)
        say(f"measuring both on {len(opened)} images")
        sides = [_measured(side, opened, batch_size) for side in (first, second)]
        shared = same_pixels(first.image_processor, second.image_processor)
        _refuse_inert(first, second, sides, weights.moved, None if shared else opened)
        numbers: dict[str, Any] = {**weights.numbers, **weights.text}
        drift = compare_snapshots(sides[0].snapshot, sides[1].snapshot, strict=False, **numbers)
        transfer, retained = _retained(
            first, second, weights.moved, (zero_shot, zero_shot_limit), (retention, retention_limit), say,
            batch_size=batch_size, cache=cache,
        )  # fmt: skip
    except (InertModelError, DivergedError, ObservationError, FloatingPointError) as error:
        raise CompareError(str(error)) from error
    summary, reasons = summarize(drift, transfer, retained, text_towers=bool(weights.text))
    differing = differences(first, second)
    return Comparison(
        base=first.to_json(),
        adapted=second.to_json(),
        images=opened.to_json(),
        differences=[one.to_json() for one in differing],
        summary=summary,
        reasons=reasons,
        cross_layer_cka=_cross_layer(sides) if cross_layer else None,
        cka_chance=cka_chance_level(len(opened), sides[0].snapshot.hidden.shape[-1]),
        layers=_layers(drift),
        heads=_heads(drift),
        weights=weights.rows,
        zero_shot=transfer,
        retention=retained,
        maps=_maps(first, sides, opened),
        notes=[*_notes(first, second, differing, weights, sides), *_retention_notes(second, transfer, retained)],
    )


def _retained(
    first: ResolvedModel,
    second: ResolvedModel,
    moved: float,
    zero_shot: tuple[str | None, int | None],
    retention: tuple[str | None, int | None],
    say: Callable[[str], object],
    **options: Any,
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """What is left of zero-shot accuracy, and of every measure, each on a dataset with so many images at most."""
    transfer, rows = None, list[dict[str, Any]]()
    if zero_shot[0] is not None:
        say(f"zero-shot accuracy on {printable(zero_shot[0])}")
        transfer = measure_zero_shot(first, second, zero_shot[0], weight_drift=moved, limit=zero_shot[1], **options)
    if retention[0] is not None:
        say(f"retention on {printable(retention[0])}")
        rows = measure_retention(first, second, retention[0], limit=retention[1], **options)
    return transfer, rows


@dataclass(frozen=True)
class _Measured:
    """One side on the images: its state, and the last block's maps of a few of them (images, rows, columns)."""

    snapshot: Snapshot
    maps: NDArray[Any]


def _measured(side: ResolvedModel, images: ImageFolder, batch_size: int) -> _Measured:
    snapshot = take_snapshot(side.model, images.batches(side.image_processor, batch_size))
    maps = attention_maps(side.model, images.pixels(side.image_processor, images.in_maps))
    return _Measured(snapshot, maps[-1])


def _refuse_inert(
    first: ResolvedModel, second: ResolvedModel, sides: Sequence[_Measured], moved: float, images: ImageFolder | None
) -> None:
    """Raise where weights differ and embeddings do not; ``images`` are given where the two saw different pixels."""
    if moved == 0:
        return
    before, after = (side.snapshot.embeddings for side in sides)
    if images is not None:
        pixels = images.pixels(first.image_processor, images.in_maps)
        with evaluation_mode(first.model), evaluation_mode(second.model):
            before, after = (image_embeddings(side.model, pixels) for side in (first, second))
    if torch.equal(before, after):
        raise InertModelError(
            f"the weights differ by {moved:.3g}, yet the embeddings of {len(before)} images are bit for bit equal: what was "
            "adapted does not take part in the forward pass, so nothing measured would be ADAPTED's"
        )


def _layers(drift: Drift) -> list[dict[str, Any]]:
    """A row a block: the table ``layers`` of both states, and of what compares them.

    A model that is observed in its pooling head alone (SigLIP) has its attention in the row of the last block.
    """
    found = drift.layers()
    rows: list[dict[str, Any]] = [{"layer": layer + 1} for layer in range(_blocks(drift))]
    for name in structure_metrics():
        before, after = drift.reference.layers(name).tolist(), found[name]["layer"]
        for row in rows:
            row |= dict.fromkeys((f"{name}_baseline", f"{name}_final", f"{name}_change_pct"))
        for row, one, two in zip(rows[-len(after) :], before, after, strict=True):
            row |= {f"{name}_baseline": one, f"{name}_final": two}
            row[f"{name}_change_pct"] = relative_change_pct(two, one)
    for name in drift.compared:
        for row, value in zip(rows, found[name]["layer"], strict=True):
            row[name] = value
    return rows


def _blocks(drift: Drift) -> int:
    found = drift.layers()
    return max(len(found[name]["layer"]) for name in (structure_metrics()[0], *drift.compared))


def _maps(first: ResolvedModel, sides: Sequence[_Measured], images: ImageFolder) -> MapPictures:
    names = [images.names[place] for place in images.in_maps]
    return MapPictures(images.pictures(first.image_processor), sides[0].maps, sides[1].maps, names)


def _refuse_few(images: ImageFolder) -> None:
    """Raise where debiased CKA has no value."""
    if len(images) < FEWEST_IMAGES:
        raise CompareError(
            f"--cross-layer-cka: debiased CKA needs at least {FEWEST_IMAGES} images, and there are {len(images)}; "
            "give about a hundred"
        )


def _cross_layer(sides: Sequence[_Measured]) -> list[list[float | None]]:
    """Debiased CKA of each block of BASE, a row, with each block of ADAPTED; None where it has no value."""
    values = cross_layer_cka(*(side.snapshot.hidden for side in sides))
    return [[finite(value) for value in row] for row in values.tolist()]


def _heads(drift: Drift) -> list[dict[str, Any]]:
    """For each metric the heads whose value changed most, by the size of the relative change."""
    rows: list[dict[str, Any]] = []
    for name in structure_metrics():
        found = list(_changes(name, drift.reference.heads(name), drift.structure.heads(name), _blocks(drift)))
        rows += sorted(found, key=lambda row: -abs(row["change_pct"]))[:TOP_HEADS]
    return rows


def _changes(name: str, before: Tensor, after: Tensor, blocks: int) -> Iterator[dict[str, Any]]:
    for layer in range(before.shape[0]):
        for head in range(before.shape[1]):
            one, two = float(before[layer, head]), float(after[layer, head])
            change = relative_change_pct(two, one)
            if change is not None:
                yield {
                    "metric": name,
                    "layer": blocks - before.shape[0] + layer + 1,
                    "head": head + 1,
                    "base": one,
                    "adapted": two,
                    "change_pct": change,
                }


def _notes(
    first: ResolvedModel,
    second: ResolvedModel,
    differing: Sequence[Difference],
    weights: WeightTable,
    sides: Sequence[_Measured],
) -> list[str]:
    notes = [f"BASE: {note}." for note in first.notes] + [f"ADAPTED: {note}." for note in second.notes]
    if first.view.text_encoder is None:
        notes.append("The two have no text tower, so there is no zero-shot accuracy and nothing of texts.")
    counting = [str(one) for one in differing if one.counts]
    equal = torch.equal(*(side.snapshot.embeddings for side in sides))
    if counting:
        notes.append(f"The two differ beside their weights: {'; '.join(counting)}.")
    if weights.moved > 0:
        return notes
    if counting or not equal:
        cause = "" if counting else ", and no setting that is looked at differs"
        notes.append(f"The two have equal vision weights, so no difference here comes of the vision weights{cause}.")
    elif (weights.text and not any(weights.text.values())) or first.view.text is None:
        notes.append("The two have equal weights and settings: every difference is 0 because nothing differs.")
    else:
        notes.append("The two have equal vision weights and settings; their text towers have other weights, or shapes.")
    return notes


def _retention_notes(
    adapted: ResolvedModel, transfer: Mapping[str, Any] | None, retained: list[dict[str, Any]]
) -> list[str]:
    notes = []
    if transfer is not None and adapted.trained_on is None:
        notes.append(
            "What ADAPTED was trained on is not known; if it was the zero-shot dataset, its accuracy is not zero-shot."
        )
    fits = [(row, unconverged(row["base_detail"], row["adapted_detail"], ("BASE", "ADAPTED"))) for row in retained]
    return notes + [f"{row['measure']} on {row['dataset']}: {said}." for row, said in fits if said is not None]
