"""Every method, by one table: exact counts, a step, its checkpoint, merged weights, drift, interpolation, the guard, compare.

The table holds every method that is registered, and the settings under which it is another one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPModel

from attndrift import DriftMonitor
from attndrift.compare import resolve
from attndrift.guard import Budget, Guard
from attndrift.guard.interpolator import WeightInterpolator
from attndrift.methods import (
    METHODS,
    AdaptationSettings,
    ImageClassifier,
    adapt,
    count_parameters,
    load_adapted,
    projection_drift,
    save_adapted,
    weight_drift,
)
from attndrift.methods.interpolation import interpolate_weights
from attndrift.models import load_model

CLASSES = 5
PIXELS = torch.randn(8, 3, 28, 28, generator=torch.Generator().manual_seed(1))


class Sizes:
    """Of a model: its width w, MLP m, blocks b, tokens t, embedding d, and what a patch holds."""

    def __init__(self, w: int, m: int, b: int, t: int, d: int, patch: int, classes: int) -> None:
        self.w, self.m, self.b, self.t, self.d, self.patch = w, m, b, t, d, patch
        self.head = classes * (d + 1)
        self.projection = w * d
        self.block = 4 * (w * w + w) + 2 * w * m + m + w + 4 * w
        self.embeddings = patch * w + w + t * w + 2 * w  # with the norm before the blocks


TINY = Sizes(32, 64, 3, 17, 32, 3 * 49, CLASSES)
B32 = Sizes(768, 3072, 12, 50, 512, 3 * 32 * 32, 10)

Count = Callable[[Sizes], int]


def _lora(rank: int, targets: int = 2) -> Count:
    return lambda s: s.b * targets * rank * 2 * s.w + s.projection + s.head


TABLE: dict[str, tuple[AdaptationSettings, Count]] = {
    "full": (AdaptationSettings("full"), lambda s: s.embeddings + s.b * s.block + 2 * s.w + s.projection + s.head),
    "frozen": (
        AdaptationSettings("full", freeze_layers=2),
        lambda s: s.embeddings + (s.b - 2) * s.block + 2 * s.w + s.projection + s.head,
    ),
    "last_block": (AdaptationSettings("last_block"), lambda s: s.block + 2 * s.w + s.head),
    "linear_probe": (AdaptationSettings("linear_probe"), lambda s: s.head),
    "none": (AdaptationSettings("none"), lambda s: 0),
    "frozen but for its projection": (
        AdaptationSettings("frozen", train_projection=True),
        lambda s: s.projection + s.head,
    ),
    "bitfit": (AdaptationSettings("bitfit"), lambda s: s.b * (7 * s.w + s.m) + 2 * s.w + s.head),
    "ln_tuning": (AdaptationSettings("ln_tuning"), lambda s: (2 * s.b + 2) * 2 * s.w + s.head),
    "lora": (AdaptationSettings("lora"), _lora(8)),
    "lora on q,k,v": (AdaptationSettings("lora", lora_rank=2, lora_targets="q,k,v"), _lora(2, 3)),
    "lora on the MLP": (
        AdaptationSettings("lora", lora_rank=2, lora_targets="fc1,fc2,out"),
        lambda s: s.b * 2 * (2 * (s.w + s.m) + 2 * s.w) + s.projection + s.head,
    ),
    "lora of the last blocks": (
        AdaptationSettings("lora", lora_rank=2, lora_blocks=2),
        lambda s: 2 * 2 * 2 * 2 * s.w + s.projection + s.head,
    ),
    "lora with ranks": (
        AdaptationSettings("lora", lora_rank=2, lora_targets="q,fc1", lora_ranks="fc1=4", lora_alphas="q=3"),
        lambda s: s.b * (2 * 2 * s.w + 4 * (s.w + s.m)) + s.projection + s.head,
    ),
    "lora of the projection": (
        AdaptationSettings("lora", lora_rank=2, lora_targets="q,projection"),
        lambda s: s.b * 2 * 2 * s.w + 2 * (s.w + s.d) + s.head,
    ),
    "rslora": (AdaptationSettings("rslora"), _lora(8)),
    "dora": (AdaptationSettings("dora"), lambda s: _lora(8)(s) + 2 * s.b * s.w),
    "pissa": (AdaptationSettings("pissa"), _lora(8)),
    "pissa on the MLP": (
        AdaptationSettings("pissa", lora_rank=3, lora_targets="fc1,fc2"),
        lambda s: s.b * 2 * 3 * (s.w + s.m) + s.projection + s.head,
    ),
    "olora": (AdaptationSettings("olora"), _lora(8)),
    "corda": (AdaptationSettings("corda", reference="objects"), _lora(8)),
    "corda of most weight": (
        AdaptationSettings("corda", reference="objects", corda_mode="ipm", lora_rank=3, lora_targets="fc1,fc2"),
        lambda s: s.b * 2 * 3 * (s.w + s.m) + s.projection + s.head,
    ),
    "vera": (AdaptationSettings("vera", vera_rank=12), lambda s: s.b * 2 * (12 + s.w) + s.projection + s.head),
    "ia3": (AdaptationSettings("ia3"), lambda s: s.b * (2 * s.w + s.m) + s.projection + s.head),
    "ia3 on keys": (AdaptationSettings("ia3", ia3_targets="k"), lambda s: s.b * s.w + s.projection + s.head),
    "oft": (
        AdaptationSettings("oft", oft_block_size=16),
        lambda s: s.b * 2 * (s.w // 16) * 16 * 15 // 2 + s.projection + s.head,
    ),
    "boft": (AdaptationSettings("boft"), lambda s: s.b * 2 * (s.w * 4 + s.w) + s.projection + s.head),
    "osf": (
        AdaptationSettings("osf", osf_frozen_share=0.75),
        lambda s: s.b * 2 * (s.w // 4) * (2 * s.w + 1) + s.projection + s.head,
    ),
    "osf on the MLP": (
        AdaptationSettings("osf", osf_targets="fc1"),
        lambda s: s.b * (s.w // 2) * (s.w + s.m + 1) + s.projection + s.head,
    ),
}
TRAINED = [name for name, (settings, _) in TABLE.items() if settings.method != "none"]
MOVING = [name for name in TRAINED if METHODS[TABLE[name][0].method].moves_encoder]


def test_the_table_holds_every_method() -> None:
    # What is published needs a checkpoint: tests/study/test_published_checkpoints.py.
    assert {settings.method for settings, _ in TABLE.values()} == set(METHODS.names()) - {"published"}


def _model(name: str, clip: CLIPModel | None = None) -> ImageClassifier:
    clip = load_model("config:tiny") if clip is None else clip
    return adapt(clip, TABLE[name][0], CLASSES, seed=3, reference_images=PIXELS.flip(-1))


def _train(model: ImageClassifier, steps: int = 3) -> ImageClassifier:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        model.train()(pixel_values=PIXELS, labels=torch.arange(8) % CLASSES).loss.backward()
        optimizer.step()
    return model.eval()


def _save(model: ImageClassifier, folder: Path) -> Path:
    save_adapted(
        model, folder, base_source="config:tiny", probe_pixels=PIXELS, pretrained=load_model("config:tiny"),
        class_names=list("abcde"),
    )  # fmt: skip
    return folder


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", TABLE)
def test_trainable_parameters_are_those_of_the_closed_form(name: str) -> None:
    settings, expected = TABLE[name]
    for source, sizes, classes in (("config:tiny", TINY, CLASSES), ("config:vit-base-patch32", B32, 10)):
        trainable, _ = count_parameters(source, settings, classes)
        assert trainable == expected(sizes), source
    model = _model(name)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected(TINY)


@pytest.mark.parametrize("name", TABLE)
def test_adapting_leaves_embeddings_and_a_step_moves_what_is_trained(name: str) -> None:
    clip = load_model("config:tiny")
    model = _model(name, copy.deepcopy(clip))
    with torch.no_grad():
        before, now = (
            one.eval().get_image_features(pixel_values=PIXELS).pooler_output for one in (clip, model.backbone)
        )
    if METHODS[TABLE[name][0].method].rewrites_base:
        torch.testing.assert_close(now, before, rtol=1e-5, atol=2e-6)  # weights taken apart and put together
        assert weight_drift(model, clip) < 1e-7
    else:
        assert torch.equal(now, before)
        assert weight_drift(model, clip) == 0.0
    values = {n: p.detach().clone() for n, p in model.named_parameters()}
    if name not in TRAINED:
        return
    _train(model)
    for n, parameter in model.named_parameters():
        assert torch.equal(parameter.detach(), values[n]) != parameter.requires_grad, n
        if "text_model" in n or "text_projection" in n or "logit_scale" in n:
            assert not parameter.requires_grad, n


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[ImageClassifier, Path]]:
    made: dict[str, tuple[ImageClassifier, Path]] = {}

    def make(name: str) -> tuple[ImageClassifier, Path]:
        if name not in made:
            model = _train(_model(name))
            made[name] = model, _save(model, tmp_path_factory.mktemp("checkpoints") / "c")
        return made[name]

    return make


Made = Callable[[str], tuple[ImageClassifier, Path]]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", TRAINED)
def test_a_checkpoint_gives_back_the_model_without_decomposing(
    name: str, trained: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = trained(name)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("decomposed again")

    for decomposition in ("svd", "qr", "inv"):
        monkeypatch.setattr(torch.linalg, decomposition, refuse)
    loaded = load_adapted(folder)
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=PIXELS).logits, model(pixel_values=PIXELS).logits)
    again = _train(loaded, 2)  # its parameters are live: it trains on, bit for bit, as the model itself does
    other = _train(copy.deepcopy(model), 2)
    if TABLE[name][0].method != "osf":  # hooks project its gradients, and a copy has none
        values = dict(other.named_parameters())
        assert all(torch.equal(p, values[n]) for n, p in again.named_parameters())


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", MOVING)
def test_merged_weights_are_plain_and_give_the_same_model_and_drift(name: str, trained: Made) -> None:
    """Drift against the original weights, from the merged ones in float64."""
    model, folder = trained(name)
    clip = load_model("config:tiny")
    merged = load_adapted(folder, merged=True)
    plain = dict(clip.named_parameters())
    assert set(dict(merged.backbone.named_parameters())) == set(plain)
    with torch.no_grad():
        torch.testing.assert_close(merged.embed(PIXELS), model.embed(PIXELS), rtol=1e-4, atol=1e-5)
    for part, drift in (
        ("vision_model.", weight_drift(model, clip)),
        ("visual_projection.", projection_drift(model, clip)),
    ):
        pairs = [(p.double(), plain[n].double()) for n, p in merged.backbone.named_parameters() if n.startswith(part)]
        moved = sum(float((now - then).detach().square().sum()) for now, then in pairs)
        assert drift == pytest.approx(
            (moved / sum(float(then.detach().square().sum()) for _, then in pairs)) ** 0.5, rel=1e-4
        )


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", MOVING)
def test_merged_weights_are_interpolated_from_the_original_ones(name: str, trained: Made) -> None:
    _, folder = trained(name)
    clip = load_model("config:tiny")
    merged = load_adapted(folder, merged=True)
    whole = weight_drift(merged, clip)
    end = {n: p.detach().clone() for n, p in merged.backbone.named_parameters()}
    for alpha in (0.5, 0.0):
        interpolate_weights(merged.backbone, dict(clip.named_parameters()), end, alpha)
        assert weight_drift(merged, clip) == pytest.approx(alpha * whole, rel=1e-4)
    with torch.no_grad():
        assert torch.equal(merged.embed(PIXELS), clip.get_image_features(pixel_values=PIXELS).pooler_output)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("name", MOVING)
def test_a_guard_leads_back_to_the_pretrained_model_and_keeps_its_budget(name: str) -> None:
    clip = load_model("config:tiny")
    model = _model(name, copy.deepcopy(clip))
    monitor = DriftMonitor(model, PIXELS, reference=clip)
    interpolator = WeightInterpolator(monitor)
    guard = Guard(monitor, Budget("embedding_drift", at_most=0.01), every=2, head=model.classifier, echo=None)
    before = monitor.embeddings()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with guard:
        for step in range(1, 7):
            optimizer.zero_grad()
            model.train()(pixel_values=PIXELS, labels=torch.arange(8) % CLASSES).loss.backward()
            optimizer.step()
            guard.step(step)
    assert any(event.action == "rewound" for event in guard.events), guard.events
    drift = monitor.measure()
    assert 0 < drift.values()["embedding_drift"] <= 0.01
    assert drift.weight_drift is not None
    assert drift.weight_drift > 0
    end, ended = interpolator.state(), monitor.embeddings()
    interpolator.interpolate(0.0, end)
    if METHODS[TABLE[name][0].method].rewrites_base:
        torch.testing.assert_close(monitor.embeddings(), before, rtol=1e-5, atol=2e-6)
    else:
        assert torch.equal(monitor.embeddings(), before)
    interpolator.interpolate(1.0, end)
    assert torch.equal(monitor.embeddings(), ended)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", MOVING)
def test_compare_takes_the_checkpoint(name: str, trained: Made) -> None:
    model, folder = trained(name)
    side = resolve(folder, resolve("config:tiny"))
    with torch.no_grad():
        embeddings = side.model.get_image_features(pixel_values=PIXELS).pooler_output
        torch.testing.assert_close(embeddings, model.embed(PIXELS), rtol=1e-4, atol=1e-5)


ADAPTER_FOLDERS = ["lora with ranks", "lora of the last blocks", "rslora", "dora", "ia3", "ia3 on keys", "oft"]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ADAPTER_FOLDERS)
def test_compare_takes_the_adapter_that_peft_saved(name: str, trained: Made) -> None:
    _, folder = trained(name)
    base = load_model("config:tiny")
    side = resolve(folder / "adapter", resolve("config:tiny"))
    merged = load_adapted(folder, merged=True).backbone
    with torch.no_grad():  # the projection is not in the adapter
        wanted = base.visual_projection(merged.vision_model(PIXELS).pooler_output)
        torch.testing.assert_close(
            side.model.get_image_features(pixel_values=PIXELS).pooler_output, wanted, rtol=1e-4, atol=1e-5
        )


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_compare_takes_layer_norms_that_peft_tuned(tmp_path: Path) -> None:
    from peft import LNTuningConfig, get_peft_model

    config = LNTuningConfig(target_modules=r"vision_model\..*layer_norm1")
    adapted = get_peft_model(load_model("config:tiny"), config)
    with torch.no_grad():
        for n, p in adapted.named_parameters():
            if p.requires_grad:
                p += 0.1
                assert "layer_norm1" in n
        wanted = adapted.eval().get_image_features(pixel_values=PIXELS).pooler_output
        adapted.save_pretrained(tmp_path)
        side = resolve(tmp_path, resolve("config:tiny"))
        found = side.model.get_image_features(pixel_values=PIXELS).pooler_output
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


WRONG = [
    (AdaptationSettings("lora", lora_targets="q;v"), "lora_targets is 'q;v': .*is no name of a layer"),
    (AdaptationSettings("lora", lora_targets="q,qkv"), "lora_targets: CLIPModel has no layer 'qkv'.* fc1, fc2"),
    (AdaptationSettings("dora", lora_blocks=4), "lora_blocks|lora_targets: the last 4 blocks .* has 3"),
    (AdaptationSettings("lora", lora_ranks="fc1=4"), "`lora_ranks` names 'fc1', which `lora_targets`"),
    (AdaptationSettings("lora", lora_ranks="q=x"), "lora_ranks is 'q=x'"),
    (AdaptationSettings("ia3", ia3_targets="k,k"), "ia3_targets is 'k,k': names a layer twice"),
    (AdaptationSettings("ia3", ia3_targets="mlp"), "ia3_targets: CLIPModel has no layer 'mlp'"),
    (AdaptationSettings("oft", oft_block_size=5), "oft_block_size is 5; layer q has 32 inputs"),
    (AdaptationSettings("boft", boft_block_size=3), "boft_block_size is 3; layer q has 32 inputs"),
    (AdaptationSettings("osf", osf_frozen_share=0.01), "osf_frozen_share is 0.01; of the 32 directions"),
    (AdaptationSettings("osf", osf_frozen_share=1.0), "osf_frozen_share is 1.0"),
    (AdaptationSettings("vera", vera_rank=0), "vera_rank is 0"),
    (AdaptationSettings("vera", lora_rank=4), "lora_rank is 4 with method vera; it belongs to .*lora"),
    (AdaptationSettings("corda"), "`reference` must name a dataset"),
    (AdaptationSettings("corda", reference="objects", corda_mode="kmp"), "corda_mode is 'kmp'"),
    (AdaptationSettings("corda", reference="objects", lora_targets="q,projection"), "`lora_targets` names projection"),
    (AdaptationSettings("pissa", corda_mode="ipm"), "corda_mode is 'ipm' with method pissa; it belongs to corda"),
    (
        AdaptationSettings("ia3", freeze_layers=1),
        "freeze_layers is 1: needs method: .*full.*; this run has method: ia3",
    ),
]


@pytest.mark.parametrize(("settings", "expected"), WRONG, ids=lambda value: str(getattr(value, "own", ""))[:40])
def test_impossible_settings_are_named_before_anything_is_made(settings: AdaptationSettings, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        adapt(load_model("config:tiny"), settings, CLASSES, 0)
    with pytest.raises(ValueError, match=expected):
        count_parameters("config:tiny", settings, CLASSES)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_model_whose_base_was_rewritten_is_no_reference_of_its_own(start: Any) -> None:
    """Without its adapters such a model is not the pretrained one: the drift would be from the rest."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=r"vision_model\..*\.q_proj", init_lora_weights=start)
    clip = load_model("config:tiny")
    adapted = get_peft_model(copy.deepcopy(clip), config)
    with pytest.raises(ValueError, match=f"init_lora_weights='{start}'.* give the pretrained model as the reference"):
        DriftMonitor(adapted, PIXELS)
    drift = DriftMonitor(adapted, PIXELS, reference=clip).measure()
    assert drift.weight_drift is not None
    assert drift.weight_drift < 1e-6
    assert drift.values()["embedding_drift"] < 1e-6


def test_the_tensors_of_a_start_are_the_decomposition() -> None:
    """PiSSA's factors against numpy's SVD in float64."""
    import numpy as np

    clip = load_model("config:tiny")
    model = _model("pissa", copy.deepcopy(clip))
    names = [name.removesuffix(".lora_A") for name in model.start if name.endswith("lora_A")]
    assert len(names) == 6
    for name in names:
        weight: Tensor = clip.get_submodule(name.removeprefix("base_model.model.")).weight
        u, s, v = np.linalg.svd(weight.detach().double().numpy(), full_matrices=False)
        scale = 2.0  # alpha is twice the rank
        product = scale * (model.start[f"{name}.lora_B"].double() @ model.start[f"{name}.lora_A"].double())
        np.testing.assert_allclose(product.numpy(), (u[:, :8] * s[:8]) @ v[:8], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["corda", "corda of most weight"])
def test_the_start_of_corda_is_the_decomposition_by_the_inputs_of_the_layers(name: str) -> None:
    """In float64 with numpy: the singular vectors of W C, brought back by the inverse of C, at one end of the values."""
    import numpy as np

    clip = load_model("config:tiny")
    model = _model(name, copy.deepcopy(clip))
    rank, last = TABLE[name][0].own.get("lora_rank", 8), name == "corda"
    names = [found.removesuffix(".lora_A") for found in model.start if found.endswith("lora_A")]
    assert len(names) == 6
    for found in names:
        layer = clip.get_submodule(found.removeprefix("base_model.model."))
        covariance: Any = 0.0
        for image in PIXELS.flip(-1):
            seen: list[Tensor] = []
            hook = layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
            with torch.no_grad():
                clip.eval().get_image_features(pixel_values=image[None])
            hook.remove()
            tokens = seen[0][0].double().numpy()
            tokens = tokens / abs(tokens.max())
            covariance = covariance + tokens.T @ tokens / len(PIXELS)
        damped = covariance + 0.01 * np.diag(covariance).mean() * np.eye(len(covariance))
        u, s, v = np.linalg.svd(layer.weight.detach().double().numpy() @ damped, full_matrices=False)
        chosen = slice(-rank, None) if last else slice(rank)
        expected = (u[:, chosen] * s[chosen]) @ v[chosen] @ np.linalg.inv(damped)
        scale = 2.0  # alpha is twice the rank
        product = scale * (model.start[f"{found}.lora_B"].double() @ model.start[f"{found}.lora_A"].double())
        np.testing.assert_allclose(product.numpy(), expected, rtol=2e-2, atol=2e-3 * abs(expected).max())


def test_corda_asks_for_images_and_leaves_the_model_as_it_was_without_them() -> None:
    clip = load_model("config:tiny")
    before = copy.deepcopy(clip.state_dict())
    for images in (None, torch.ones(0, 3, 28, 28)):
        with pytest.raises(ValueError, match="method is 'corda'; give reference_images"):
            adapt(clip, TABLE["corda"][0], CLASSES, 0, reference_images=images)
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
