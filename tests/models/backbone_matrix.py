"""What every backbone must be able to do, as a table: backbone x cell. Each cell takes its name, a source, and a folder.

``python tests/models/backbone_matrix.py [NAME=SOURCE ...]`` prints the table. A model is made from a config, or by the
scheme of a backbone (``open_clip:...``); :data:`CORE` and :data:`OTHER` name those of ``transformers``.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from attndrift import DriftMonitor
from attndrift.attention import observe
from attndrift.methods import HEADS, METHODS, AdaptationSettings, ImageClassifier, adapt, load_adapted, save_adapted
from attndrift.methods.registry import FROZEN
from attndrift.methods.targets import layers_named
from attndrift.models.backbone import BACKBONES, backbone_of
from attndrift.models.load import load_model, load_processor, load_shape
from attndrift.results.measures import MEASURES
from attndrift.retention.text_encoder import class_tokens
from attndrift.retention.zero_shot import TextFeatures
from attndrift.study.distributed import SilentReporter
from attndrift.study.executor import Executor
from attndrift.study.resources import StudyResources
from attndrift.study.settings import NamedRun, RunSettings

CORE = {
    "clip": "config:tiny",
    "siglip": "config:siglip-tiny",
    "dinov2": "config:dinov2-tiny",
    "dinov3": "config:dinov3-tiny",
    "vit": "config:vit-tiny",
}
"""The backbones whose cells are quick tests: sources by name."""
OTHER = {
    "metaclip2": "config:metaclip2-tiny",
    "dinov2-registers": "config:dinov2-registers-tiny",
}
CLASSES = ("cat", "dog", "owl")
TEMPLATES = ["a {class}"]
OWN: dict[str, dict[str, Any]] = {
    "vera": {"vera_rank": 8},
    "oft": {"oft_block_size": 8},
    "boft": {"boft_block_size": 8},
    "corda": {"reference": "tiles"},
}
"""Settings that a method needs on a model of 32 dimensions."""
RUN: dict[str, Any] = {
    "dataset": "digits", "train_per_class": 2, "validation_per_class": 1, "probe_size": 10, "test_limit": 10,
    "epochs": 2, "batch_size": 10, "learning_rate": 1e-3, "evaluations_per_epoch": 1, "map_images": 0, "threads": 1,
    "trackers": (), "transfer": ("tiles",), "transfer_limit": 20, "bank_limit": 20, "monitor_zero_shot_images": 10,
}  # fmt: skip

Cell = Callable[[str, str, Path], str]


@functools.lru_cache(maxsize=1)
def pretrained_model(source: str) -> nn.Module:
    """The model of a source, which no cell changes: a cell trains a copy of it."""
    return load_model(source)


@functools.lru_cache(maxsize=1)
def processors(source: str) -> tuple[Any, Any]:
    """The tokenizer, or None, and the image processor of a source."""
    return load_processor(source)


@functools.lru_cache(maxsize=1)
def text_features(source: str) -> Tensor:
    """Of the classes, by the text tower of the source: (classes, dimensions)."""
    return TextFeatures.of(pretrained_model(source), processors(source)[0], CLASSES, TEMPLATES).features


def pixels(source: str, images: int = 4) -> Tensor:
    """Images of the size that the model takes: (images, 3, side, side)."""
    side = load_shape(source).image_size
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(0))


def has_text(source: str) -> bool:
    """Whether the model has a text tower."""
    return backbone_of(pretrained_model(source)).text_encoder is not None


@functools.lru_cache(maxsize=1)
def targets(source: str) -> list[str]:
    """The layers of the blocks that adapters go into, in the image tower and in a text tower that is trained beside it."""
    found, view = [], backbone_of(pretrained_model(source))
    for name in ("q", "k", "v", "qkv", "out", "fc1", "fc2"):
        with contextlib.suppress(ValueError):
            for tower in filter(None, (view, view.text)):
                layers_named(tower, [name], setting="")
            found.append(name)
    return found


def own_settings(method: str, source: str) -> dict[str, Any]:
    """What a method needs on this model: places for its adapters, where its usual ones are not there."""
    usual = {name: field.default for name, field in METHODS[method].Settings.model_fields.items()}
    named = next((name for name in usual if name.endswith("_targets")), None)
    if named is None or set(usual[named].split(",")) <= set(targets(source)):
        return OWN.get(method, {})
    return {**OWN.get(method, {}), named: ",".join(targets(source)[-2:])}


def adapted(source: str, method: str, **settings: Any) -> tuple[ImageClassifier, nn.Module]:
    """A classifier that ``method`` has made trainable, and the pretrained model."""
    pretrained = pretrained_model(source)
    model = copy.deepcopy(pretrained)
    head = HEADS[settings.get("head", "trained")]
    given: dict[str, Any] = {"reference_images": pixels(source, 12)}
    if head.live:
        given["class_tokens"] = class_tokens(model, processors(source)[0], CLASSES, TEMPLATES)
    elif head.needs_text:
        given["text_features"] = text_features(source)
    if head.fits:
        given["fit_on"] = (torch.randn(9, backbone_of(model).dimensions), torch.arange(9) % 3)
    made = adapt(
        model, AdaptationSettings(method, **{**own_settings(method, source), **settings}), len(CLASSES), seed=0, **given
    )
    return made, pretrained


def step(model: ImageClassifier, images: Tensor, learning_rate: float = 0.05) -> set[str]:
    """Two steps of gradient descent; the names of the parameters that moved. Raises where a frozen one did."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trained = [value for value in model.parameters() if value.requires_grad]
    model.train()
    for _ in range(2):  # the first moves only one factor of a low-rank update
        loss = model(pixel_values=images, labels=torch.arange(len(images)) % len(CLASSES)).loss
        loss.backward()
        with torch.no_grad():
            for value in trained:
                if value.grad is not None:
                    value -= learning_rate * value.grad
                    value.grad = None
    model.eval()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert not moved & frozen, f"frozen parameters moved: {sorted(moved & frozen)[:3]}"
    assert moved, "nothing moved"
    return moved


def methods(name: str, source: str, work: Path) -> str:
    """A step by every method, and by every head; by every method of the text tower where there is one."""
    images, texts = pixels(source), has_text(source)
    with torch.no_grad():
        before = backbone_of(pretrained_model(source)).embed(images)
    every = [one.name for one in METHODS if one.adapts and one.name != FROZEN]
    for method in every:
        model, _ = adapted(source, method)
        step(model, images)
        changed = not torch.allclose(model.embed(images), before, rtol=0, atol=1e-6 * float(before.abs().mean()))
        trained = METHODS[method].moves_encoder or bool(model.settings.projects and model.view.projection)
        assert changed == trained, method
    heads = [one.name for one in HEADS if texts or not (one.needs_text or one.live)]
    for head in heads:
        step(adapted(source, "full", head=head)[0], images)
    of_text = [one.name for one in METHODS if texts and one.on_text and one.name != FROZEN]
    for text in of_text:
        beside = text if METHODS[text].adapter_parameters else "full"
        model, pretrained = adapted(source, beside, head="live_text", text_tower=text, **own_settings(text, source))
        tower, first = backbone_of(model.backbone).text, backbone_of(pretrained).text
        assert tower is not None
        assert first is not None
        step(model, images)
        tokens = model.live_text.tokens[:, 0]
        assert not torch.allclose(tower.embed(tokens), first.embed(tokens), atol=1e-7), text
    return f"{len(every)} methods, {len(heads)} heads, {len(of_text)} of the text tower"


def observed(name: str, source: str, work: Path) -> str:
    """Attention of every layer sums to one, also beside gradients; embeddings are as without observing."""
    backbone, images = backbone_of(load_model(source)), pixels(source)
    plain = backbone.embed(images)
    with observe(backbone.model, gradients=True) as seen:
        embeddings = backbone.embed(images)
        sum(layer.exp().square().sum() for layer in seen.log_attention).backward()  # type: ignore[union-attr]
    torch.testing.assert_close(embeddings, plain)
    for layer in seen.attention:
        torch.testing.assert_close(layer.sum(-1), torch.ones_like(layer.sum(-1)), atol=1e-5, rtol=0)
    return f"{len(seen.attention)} layers of {len(backbone.blocks)} blocks"


def drift(name: str, source: str, work: Path) -> str:
    """What the monitor finds of a model that took a step, and of one that did not."""
    model, pretrained = adapted(source, "full")
    images = pixels(source, 6)
    none = DriftMonitor(model, images, reference=pretrained).measure()
    assert none.weight_drift == 0
    assert abs(none.cka_mean - 1) < 1e-5
    step(model, images)
    some = DriftMonitor(model, images, reference=pretrained).measure()
    assert some.weight_drift > 0
    assert some.cka_mean < 1
    return f"weights {some.weight_drift:.3f}, CKA {some.cka_mean:.3f}"


def checkpoint(name: str, source: str, work: Path) -> str:
    """A checkpoint is loaded from its source, and proved by its fingerprint."""
    model, pretrained = adapted(source, "lora", lora_rank=2)
    step(model, pixels(source))
    folder = work / "checkpoint"
    save_adapted(
        model, folder, base_source=source, probe_pixels=pixels(source), pretrained=pretrained, class_names=CLASSES
    )
    again = load_adapted(folder)
    torch.testing.assert_close(again.embed(pixels(source)), model.embed(pixels(source)))
    return "fingerprint holds"


def adapters(name: str, source: str, work: Path) -> str:
    """Adapters sit in the image tower alone, on every role, and merge to the same embeddings."""
    places = targets(source)
    model, _ = adapted(source, "lora", lora_rank=2, lora_targets=",".join(places))
    tower = set(model.view.tower.modules())
    layers = [part for part in model.modules() if hasattr(part, "lora_A")]
    assert all(part in tower for part in layers)
    assert len(layers) == len(places) * len(model.view.blocks), f"{len(layers)} layers have adapters"
    step(model, pixels(source))
    expected = model.embed(pixels(source))
    model.model = model.settings.with_adapters.merge(model.model)
    torch.testing.assert_close(model.embed(pixels(source)), expected, atol=1e-4, rtol=1e-4)
    return f"{len(layers)} layers, merged"


class _Reporter(SilentReporter):
    def __init__(self, *, stops: bool = False) -> None:
        self.stops = stops

    def inputs(self, found: Any, places: Any) -> None: ...

    def evaluated(self, step: int, total: int, values: object) -> None: ...

    def saved(self, step: int) -> None:
        if self.stops:
            raise KeyboardInterrupt


def run(name: str, source: str, work: Path) -> str:
    """A run of a study, with retention: interrupted and continued, it ends with the same bytes."""
    measures = tuple(one.name for one in MEASURES if has_text(source) or not one.needs_text)
    resources = StudyResources(work / "cache")

    def execute(folder: str, reporter: _Reporter) -> Mapping[str, Any]:
        settings = RunSettings(model=source, method="full", measures=measures, **RUN)
        (work / folder).mkdir(exist_ok=True)
        return Executor(resources)(NamedRun(run_id="run", settings=settings), work / folder, reporter)

    whole = execute("whole", _Reporter())
    with contextlib.suppress(KeyboardInterrupt):
        execute("run", _Reporter(stops=True))
    again = execute("run", _Reporter())
    assert again["row"] == whole["row"]
    files = sorted(path.relative_to(work / "whole") for path in (work / "whole/checkpoints").rglob("*.safetensors"))
    assert files
    for file in files:
        assert (work / "whole" / file).read_bytes() == (work / "run" / file).read_bytes(), file
    for measure in measures:
        assert whole["row"][f"transfer_tiles_{measure}_accuracy"] is not None, measure
    return f"resumed, {' '.join(measures)}"


def compared(name: str, source: str, work: Path) -> str:
    """``compare`` of the pretrained model and one that took a step, both in memory."""
    from attndrift.compare import compare_models

    model, pretrained = adapted(source, "full")
    step(model, pixels(source))
    folder = work / "images"
    folder.mkdir()
    for index in range(4):
        values = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{index}.png")
    tokenizer, processor = processors(source)
    found = compare_models(pretrained, model.backbone, folder, image_processor=processor, tokenizer=tokenizer)
    assert found.summary["weight_drift"] > 0
    assert found.summary["cka_mean"] < 1
    return f"weights {found.summary['weight_drift']:.3f}"


CELLS: dict[str, Cell] = {
    "methods": methods,
    "observe": observed,
    "drift": drift,
    "checkpoint": checkpoint,
    "adapters": adapters,
    "run": run,
    "compare": compared,
}
"""By the name of the column."""


def print_table(sources: Mapping[str, str], cells: Mapping[str, Cell] = CELLS) -> int:
    """Print a row for every backbone; the number of cells that failed."""
    failed = 0
    for name, source in sources.items():
        print(f"{name} ({source})")
        for column, cell in cells.items():
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as work:
                try:
                    said, mark = cell(name, source, Path(work)), "ok"
                except Exception as error:
                    said, mark = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}", "FAILED"
                    failed += 1
            print(f"  {column:<11} {mark:<7} {time.perf_counter() - start:5.1f} s  {said}", flush=True)
    return failed


if __name__ == "__main__":
    chosen = dict(text.partition("=")[::2] for text in sys.argv[1:]) or {**CORE, **OTHER}
    known = [spec.name for spec in BACKBONES]
    print(f"registered: {', '.join(known)}")
    sys.exit(min(1, print_table(chosen)))
