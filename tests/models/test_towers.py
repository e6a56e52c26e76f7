"""Which part of both towers is trained: counts, what a step moves, the live heads and losses, checkpoints, drift, the guard."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPModel

from attndrift import Budget, DriftMonitor, Guard
from attndrift.drift import TextDrift
from attndrift.files import sha256
from attndrift.losses import L2SP
from attndrift.methods import AdaptationSettings, ImageClassifier, adapt, load_adapted, save_adapted
from attndrift.methods.frozen_blocks import blocks_named, in_one_spelling
from attndrift.methods.live_text import contrastive_loss
from attndrift.models import FingerprintError, load_model, load_processor
from attndrift.retention.text_encoder import class_tokens
from attndrift.retention.zero_shot import TextFeatures

NAMES, TEMPLATES = ("cat", "dog", "striped horse"), ("a photo of a {class}.", "one {class}")
PIXELS = torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3
TOKENIZER = load_processor("config:tiny")[0]

BLOCK, TEXT_BLOCK = 8_544, 8_544  # both towers have width 32 and an MLP of 64
VISION, TEXT = r"vision_model\.", r"text_model\."

# What each trains, as the beginnings of the parameters' names, and what of these stays.
TRAINED: dict[str, tuple[AdaptationSettings, str, str]] = {
    "everything": (
        AdaptationSettings("full", head="contrastive", text_tower="full", train_temperature=True), "", "",
    ),
    "text alone": (AdaptationSettings("frozen", head="live_text", text_tower="full"), "text_", ""),
    "text projection alone": (
        AdaptationSettings("frozen", head="live_text", train_text_projection=True), "text_projection", "",
    ),
    "temperature alone": (AdaptationSettings("frozen", head="live_text", train_temperature=True), "logit_scale", ""),
    "frozen blocks of both": (
        AdaptationSettings(
            "full", head="contrastive", text_tower="full", freeze_blocks="last:1,1", text_freeze_blocks="first:1"
        ),
        "vision_model text_ visual_projection",
        "vision_model.encoder.layers.0. vision_model.encoder.layers.2. text_model.encoder.layers.0.",
    ),
    "last block of the text tower": (
        AdaptationSettings("full", head="live_text", text_tower="last_block", train_projection=False),
        "vision_model text_model.encoder.layers.1. text_model.final_layer_norm", "",
    ),
}  # fmt: skip
ADAPTERS: dict[str, AdaptationSettings] = {
    "lora in both": AdaptationSettings("lora", head="contrastive", text_tower="lora", lora_rank=2),
    "lora in the text tower": AdaptationSettings(
        "full", head="live_text", text_tower="lora", lora_targets="q,fc1,projection"
    ),
    "lora and biases": AdaptationSettings("lora", head="live_text", text_tower="bitfit", train_temperature=True),
    "dora beside a frozen tower": AdaptationSettings("frozen", head="contrastive", text_tower="dora"),
    "ia3 in both": AdaptationSettings("ia3", head="live_text", text_tower="ia3"),
    "vera in both": AdaptationSettings("vera", head="live_text", text_tower="vera", vera_rank=8),
    "pissa and norms": AdaptationSettings("pissa", head="contrastive", text_tower="ln_tuning"),
}
ALL = {name: settings for name, (settings, *_) in TRAINED.items()} | ADAPTERS


def _some(names: list[str], *fast: str) -> list[Any]:
    """All of them, those that are not ``fast`` marked as slow."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def _tokens(templates: tuple[str, ...] = TEMPLATES) -> Tensor:
    return class_tokens(load_model("config:tiny"), TOKENIZER, NAMES, templates)


TOKENS = _tokens()


def _model(settings: AdaptationSettings, tokens: Tensor = TOKENS) -> ImageClassifier:
    return adapt(load_model("config:tiny"), settings, len(NAMES), 3, class_tokens=tokens)


def _texts(model: ImageClassifier | CLIPModel) -> Tensor:
    """By the library's own method, with the mask of its tokenizer."""
    clip = model if isinstance(model, CLIPModel) else model.backbone
    given = TOKENIZER([f"a photo of a {name}." for name in NAMES], padding=True, return_tensors="pt")
    with torch.no_grad():
        return clip.eval().get_text_features(**given).pooler_output


def _images(model: ImageClassifier | CLIPModel) -> Tensor:
    with torch.no_grad():
        return (
            (model if isinstance(model, CLIPModel) else model.backbone).eval().get_image_features(PIXELS).pooler_output
        )


def _train(model: ImageClassifier, steps: int = 2, rate: float = 1e-2) -> ImageClassifier:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        model.train()(pixel_values=PIXELS, labels=LABELS).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("name", ALL)
def test_before_the_first_step_both_embeddings_are_the_pretrained_ones(name: str) -> None:
    pretrained = load_model("config:tiny")
    model = _model(ALL[name])
    exact = ALL[name].method != "pissa"  # whose weights are taken apart
    close = {"rtol": 0.0, "atol": 0.0 if exact else 1e-5}
    torch.testing.assert_close(_images(model), _images(pretrained), **close)
    torch.testing.assert_close(_texts(model), _texts(pretrained), rtol=0, atol=0)


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_moves_what_is_trained_and_nothing_else(name: str) -> None:
    settings, beginnings, but = TRAINED[name]
    model = _model(settings)
    start = {key: value.clone() for key, value in model.backbone.named_parameters()}
    _train(model, 1)
    moved = {key for key, value in model.backbone.named_parameters() if not torch.equal(value, start[key])}
    trained = tuple(beginnings.split()) or ("",)
    stays = tuple(but.split())
    wanted = {key for key in start if key.startswith(trained) and not (stays and key.startswith(stays))}
    # No text is as long as the tower allows, and a key's bias has no gradient.
    unseen = {key for key in wanted - moved if key.endswith("k_proj.bias")}
    assert moved == wanted - unseen
    assert {key for key, value in model.backbone.named_parameters() if value.requires_grad} == wanted
    if not stays and name == "everything":
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(v.numel() for v in start.values())


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_learn_in_the_tower_that_they_are_asked_for(name: str) -> None:
    settings = ADAPTERS[name]
    model, pretrained = _model(settings), load_model("config:tiny")
    places = [
        key
        for key, p in model.named_parameters()
        if p.requires_grad and settings.with_adapters.adapter_parameters in key
    ]
    both = settings.text_tower == settings.method
    assert any("text_model" in key for key in places) == (settings.text_tower not in ("bitfit", "ln_tuning"))
    assert any("vision_model" in key for key in places) == (both or settings.text_tower in ("bitfit", "ln_tuning"))
    _train(model)
    assert not torch.equal(_texts(model), _texts(pretrained))
    assert torch.equal(_images(model), _images(pretrained)) == (settings.method == "frozen")


@pytest.mark.parametrize(
    "name", _some([*ADAPTERS, "everything", "text alone"], "lora in both", "ia3 in both", "text alone")
)
def test_a_checkpoint_brings_both_towers_back_and_proves_it(name: str, tmp_path: Path) -> None:
    pretrained = load_model("config:tiny")
    model = _train(_model(ALL[name]))
    _save(model, tmp_path / "c", pretrained)
    loaded = load_adapted(tmp_path / "c", base=copy.deepcopy(pretrained))
    assert torch.equal(_texts(loaded), _texts(model))
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=PIXELS).logits, model(pixel_values=PIXELS).logits)
    merged = load_adapted(tmp_path / "c", base=copy.deepcopy(pretrained), merged=True)
    assert {key for key, _ in merged.backbone.named_parameters()} == {key for key, _ in pretrained.named_parameters()}
    torch.testing.assert_close(_texts(merged), _texts(model), rtol=1e-4, atol=1e-4)


def _save(model: ImageClassifier, folder: Path, pretrained: CLIPModel) -> None:
    save_adapted(
        model,
        folder,
        base_source="config:tiny",
        probe_pixels=PIXELS[:4],
        pretrained=pretrained,
        class_names=list(NAMES),
    )


def test_a_text_tower_that_did_not_load_is_no_checkpoint(tmp_path: Path) -> None:
    """Even where the image tower never moved, so that every image is embedded as it was."""
    pretrained = load_model("config:tiny")
    _save(_train(_model(ALL["text alone"])), tmp_path / "c", pretrained)
    stored = load_file(tmp_path / "c" / "model.safetensors")
    own = dict(pretrained.named_parameters())
    save_file({key: own[key[6:]].detach() if key.startswith("model.") else value for key, value in stored.items()},
              tmp_path / "c" / "model.safetensors")  # fmt: skip
    description = json.loads((tmp_path / "c" / "checkpoint.json").read_text())
    description["files"]["model.safetensors"] = sha256(tmp_path / "c" / "model.safetensors")
    (tmp_path / "c" / "checkpoint.json").write_text(json.dumps(description))
    with pytest.raises(FingerprintError, match=r"class prompts differently .*what was trained did not load"):
        load_adapted(tmp_path / "c", base=pretrained)


def _reference(images: NDArray[Any], texts: NDArray[Any], scale: float) -> tuple[float, NDArray[Any], NDArray[Any]]:
    """CLIP's loss and its gradients, in float64 without autograd."""
    n = len(images)
    lengths = [np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts)]
    z, t = images / lengths[0], texts / lengths[1]
    logits = scale * z @ t.T
    over_texts = np.exp(logits - logits.max(1, keepdims=True))
    over_images = np.exp(logits - logits.max(0, keepdims=True))
    over_texts, over_images = (
        over_texts / over_texts.sum(1, keepdims=True),
        over_images / over_images.sum(0, keepdims=True),
    )
    loss = -0.5 * (np.log(np.diag(over_texts)).mean() + np.log(np.diag(over_images)).mean())
    pull = scale * 0.5 * (over_texts + over_images - 2 * np.eye(n)) / n

    def through_norm(gradient: NDArray[Any], unit: NDArray[Any], length: NDArray[Any]) -> NDArray[Any]:
        return (gradient - (gradient * unit).sum(1, keepdims=True) * unit) / length

    return float(loss), through_norm(pull @ t, z, lengths[0]), through_norm(pull.T @ z, t, lengths[1])


@pytest.mark.parametrize(
    "classes", [[0, 1, 2, 3], [0, 0, 1, 1], [2, 2, 2, 2]], ids=["all differ", "pairs", "one class"]
)
def test_the_contrastive_loss_and_its_gradient_are_those_of_clip(classes: list[int]) -> None:
    """Each image's own text is its only positive; the texts of equal classes are equal, and count as negatives."""
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(4, 6, generator=generator, dtype=torch.float64).requires_grad_()
    texts = torch.randn(4, 6, generator=generator, dtype=torch.float64)[classes].requires_grad_()
    loss = contrastive_loss(images, texts, 7.0)
    loss.backward()
    wanted, of_images, of_texts = _reference(images.detach().numpy(), texts.detach().numpy(), 7.0)
    np.testing.assert_allclose(loss.item(), wanted, rtol=1e-12)
    assert images.grad is not None
    assert texts.grad is not None
    np.testing.assert_allclose(images.grad.numpy(), of_images, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(texts.grad.numpy(), of_texts, rtol=1e-9, atol=1e-12)
    # The same as targets that all of a class share (what FLYP's code offers besides).
    logits = (7.0 * normalize(images, dim=-1) @ normalize(texts, dim=-1).T).detach()
    shared = torch.tensor(classes)[:, None] == torch.tensor(classes)
    target = shared / shared.sum(1, keepdim=True, dtype=torch.float64)
    both = [torch.nn.functional.cross_entropy(one, target) for one in (logits, logits.T)]
    assert loss.item() == pytest.approx(0.5 * float(sum(both)), rel=1e-12)


@pytest.mark.parametrize("head", ["live_text", "contrastive"])
def test_a_live_head_is_the_zero_shot_classifier_of_the_text_tower_as_it_is(head: str) -> None:
    model = _train(_model(AdaptationSettings("full", head=head, text_tower="full", train_temperature=True)))
    features = TextFeatures.of(model, TOKENIZER, NAMES, TEMPLATES).features.double().numpy()
    images = _images(model).double().numpy()
    scale = np.exp(model.backbone.logit_scale.item())
    wanted = scale * images @ features.T / np.linalg.norm(images, axis=1, keepdims=True)
    with torch.no_grad():
        np.testing.assert_allclose(model(pixel_values=PIXELS).logits.numpy(), wanted, rtol=1e-4, atol=1e-4)
        with model.texts_encoded_once():
            again = model(pixel_values=PIXELS).logits
    np.testing.assert_allclose(again.numpy(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("templates", [TEMPLATES[:1], TEMPLATES], ids=["one template", "two templates"])
@pytest.mark.parametrize("count", [2, 8], ids=["few images", "many images"])
def test_the_contrastive_head_pairs_each_image_with_a_prompt_of_its_class(
    templates: tuple[str, ...], count: int
) -> None:
    tokens = _tokens(templates)
    model = _model(ALL["everything"], tokens).train()
    torch.manual_seed(6)
    found = model(pixel_values=PIXELS[:count], labels=LABELS[:count])
    torch.manual_seed(6)
    drawn = torch.randint(len(templates), (count,)).tolist() if len(templates) > 1 else [0] * count
    prompts = [templates[k].replace("{class}", NAMES[i]) for k, i in zip(drawn, LABELS.tolist(), strict=False)]
    given = TOKENIZER(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        texts = model.backbone.get_text_features(**given).pooler_output.double().numpy()
    wanted, _, _ = _reference(_images(model)[:count].double().numpy(), texts, np.exp(model.backbone.logit_scale.item()))
    assert found.loss.item() == pytest.approx(wanted, rel=1e-4)
    # A class without a text in the batch cannot be the nearest.
    assert set(found.logits.argmax(-1).tolist()) <= set(LABELS[:count].tolist())


def test_text_drift_is_measured_against_independent_formulas() -> None:
    pretrained = load_model("config:tiny")
    model = _model(ALL["everything"])
    drift = TextDrift(model, TOKENS[:, 0], reference=pretrained)
    own = TextDrift(model, TOKENS[:, 0])  # of the model as it was
    monitor = DriftMonitor(model, PIXELS, embed=model.embed, text=own)
    names = ("text_embedding_drift", "text_weight_drift", "text_projection_drift", "logit_scale_change")
    assert set(drift().values()) == {0.0}
    before, start = _texts(pretrained).double().numpy(), dict(pretrained.named_parameters())
    _train(model, 3)
    after, now = _texts(model).double().numpy(), dict(model.backbone.named_parameters())
    cosine = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)

    def moved(prefix: str) -> float:
        pairs = [(start[key].detach().double(), now[key].detach().double()) for key in start if key.startswith(prefix)]
        return float(
            sum((b - a).square().sum() for a, b in pairs).sqrt() / sum(a.square().sum() for a, _ in pairs).sqrt()
        )

    wanted = [1 - cosine.mean(), moved("text_model."), moved("text_projection."),
              now["logit_scale"].item() - start["logit_scale"].item()]  # fmt: skip
    measured = monitor.measure()
    for found in (drift(), own(), measured.values()):
        np.testing.assert_allclose([found[name] for name in names], wanted, rtol=1e-4)
    assert wanted[0] > 1e-4
    assert f"texts {wanted[0]:.4f}" in measured.line()


def test_what_is_measured_of_the_text_side_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for text, warned in ((False, True), (True, False)):
        model = _model(ALL["everything"])
        caplog.clear()
        with caplog.at_level(logging.WARNING, "attndrift"):
            monitor = DriftMonitor(model, PIXELS, text=TextDrift(model, TOKENS[:, 0]) if text else None)
            _train(model)
            drift = monitor.measure()
        assert ("text" in caplog.text) == warned, caplog.text
        assert (drift.text_embedding_drift is None) == warned


@pytest.mark.parametrize(
    "name",
    _some(["everything", "text alone", "lora in both", "dora beside a frozen tower"], "text alone", "lora in both"),
)
@pytest.mark.parametrize("metric", ["text_embedding_drift", "retention"])
def test_a_guard_rewinds_a_text_tower_by_its_live_features(name: str, metric: str) -> None:
    model = _model(ALL[name])
    text = TextDrift(model, TOKENS[:, 0])
    outside = TextDrift(_train(copy.deepcopy(model), 4, rate=2e-3), TOKENS[:, 0], reference=model)()[
        "text_embedding_drift"
    ]
    assert outside is not None
    monitor = DriftMonitor(model, PIXELS, embed=model.embed, text=text)
    limit = outside / 2
    budget: Any = Budget(metric, at_most=limit) if metric != "retention" else _agreement(model)
    guard = Guard(monitor, budget, every=1, echo=None)
    before = _texts(model)
    guard.start(0)
    _train(model, 4, rate=2e-3)
    assert text()["text_embedding_drift"] == outside
    event = guard.step(1)
    assert event is not None
    if metric == "retention":
        assert event.after[0].met, "what was right before is right again"
    else:
        assert event.action == "rewound"
        assert 0 < (text()["text_embedding_drift"] or 0.0) <= limit
    assert not torch.equal(_texts(model), before) or event.action == "infeasible"


def _agreement(model: ImageClassifier) -> Any:
    """All predictions of the pretrained model are to stay, which counts as retention where these are the labels."""
    features = TextFeatures.of(model, TOKENIZER, NAMES)
    labels = (normalize(_images(model), dim=-1) @ features.features.T).argmax(-1).numpy()
    return Budget.retention(1.0, PIXELS, labels, NAMES, tokenizer=TOKENIZER, confidence=0.5)


def test_l2_sp_holds_the_text_tower_where_it_is_asked_to() -> None:
    model = _model(ALL["everything"])
    preserve = L2SP(model, 1.0, whole=True)
    start = {key: value.detach().double().clone() for key, value in model.backbone.named_parameters()}
    _train(model, 1)
    wanted = sum(
        float((value.detach().double() - start[key]).square().sum()) for key, value in model.backbone.named_parameters()
    )
    assert float(preserve(model).detach()) == pytest.approx(wanted, rel=1e-5)


WRONG = [
    (
        AdaptationSettings("full", text_tower="full"),
        "text_tower is 'full': needs head: .*; head: trained has text features",
    ),
    (AdaptationSettings("full", text_tower="full", head="text"), "text_tower is 'full': needs head: .*computed once"),
    (AdaptationSettings("full", train_temperature=True, head="cosine"), "train_temperature is True: needs head"),
    (AdaptationSettings("linear_probe", text_tower="full", head="live_text"), "take method: frozen"),
    (AdaptationSettings("frozen"), "method is 'frozen': .*nothing else is trained"),
    (AdaptationSettings("frozen", head="live_text"), "method is 'frozen': .*nothing else is trained"),
    (
        AdaptationSettings("full", text_tower="pissa", head="live_text"),
        "text_tower is 'pissa': pissa cannot train a text",
    ),
    (AdaptationSettings("full", text_tower="linear_probe", head="live_text"), "linear_probe cannot train a text tower"),
    (
        AdaptationSettings("dora", text_tower="lora", head="live_text"),
        "lora and method: dora are two kinds of adapters",
    ),
    (AdaptationSettings("full", text_tower="ful", head="live_text"), "there is no method `ful`; did you mean `full`"),
    (AdaptationSettings("full", text_tower="full", head="live_text", lora_rank=2), "lora_rank is 2 with method full"),
    (
        AdaptationSettings("full", text_tower="full", head="live_text", text_freeze_blocks="3"),
        "text_freeze_blocks.*2 blocks",
    ),
    (
        AdaptationSettings("full", text_freeze_blocks="first:1"),
        "text_freeze_blocks is 'first:1': needs text_tower: .*full",
    ),
    (AdaptationSettings("full", freeze_blocks="last:4"), "freeze_blocks is 'last:4'; the tower has 3 blocks"),
    (AdaptationSettings("full", freeze_blocks="0"), "freeze_blocks is '0': .*names no blocks"),
    (AdaptationSettings("lora", freeze_blocks="1"), "freeze_blocks is '1': needs method: bitfit, full"),
]


@pytest.mark.parametrize(("settings", "expected"), WRONG, ids=range(len(WRONG)))
def test_what_cannot_be_is_refused_by_its_name_and_changes_nothing(settings: AdaptationSettings, expected: str) -> None:
    clip = load_model("config:tiny")
    text = torch.zeros(3, 32) + torch.eye(3, 32)
    with pytest.raises(ValueError, match=expected):
        adapt(clip, settings, 3, 0, text_features=text, class_tokens=TOKENS)
    assert all(p.requires_grad for p in clip.parameters()), "not even what is trained"


@pytest.mark.parametrize(
    ("text", "depth", "places"),
    [
        ("first:2", 3, {0, 1}),
        ("last:2,1", 4, {0, 2, 3}),
        ("2-3, 5", 6, {1, 2, 4}),
        ("first:3,last:3", 3, {0, 1, 2}),
        ("3", 3, {2}),
    ],
)
def test_blocks_are_named_from_either_end_and_by_number(text: str, depth: int, places: set[int]) -> None:
    assert blocks_named(text, depth, "freeze_blocks") == places
    assert blocks_named(in_one_spelling(text), depth, "freeze_blocks") == places
