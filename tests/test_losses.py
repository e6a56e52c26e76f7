"""The two preservation losses against float64 references, and as losses in a training loop on a tiny CLIP."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CLIPModel, CLIPVisionModelWithProjection

from attndrift.attention import observe
from attndrift.drift import DriftMonitor
from attndrift.losses import (
    AttentionCache,
    AttentionPreservation,
    EntropyFloor,
    PreservationLoss,
    PreservationLossError,
    attention_preservation_loss,
    canonical_losses,
    entropy_floor_loss,
    parse_losses,
    split_weight,
)
from attndrift.models import load_model


def _log_attention(seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(scale * torch.randn(5, 4, 49, generator=generator)).log_softmax(-1) for _ in range(3)]


def test_preservation_is_the_divergence_from_current_to_pretrained() -> None:
    current, pretrained = _log_attention(0), _log_attention(1)
    terms = []
    for a, b in zip(current, pretrained, strict=True):
        a64, b64 = a.double().exp(), b.double().exp()
        terms.append((a64 * (a64.log() - b64.log())).sum(-1).mean())
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(
        attention_preservation_loss(current, pretrained).double(), expected, rtol=1e-5, atol=1e-7
    )
    reverse = attention_preservation_loss(pretrained, current).double()
    assert abs(float(reverse - expected)) > 1e-3, "the direction matters"


def test_preservation_is_zero_on_the_pretrained_attention_and_so_is_its_gradient() -> None:
    logits = torch.randn(5, 4, 49, requires_grad=True)
    loss = attention_preservation_loss([logits.log_softmax(-1)], [logits.detach().log_softmax(-1)])
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-7)
    loss.backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-7


def test_preservation_takes_one_tensor_for_all_layers() -> None:
    current, pretrained = _log_attention(0), _log_attention(1)
    assert attention_preservation_loss(current, torch.stack(pretrained)) == attention_preservation_loss(
        current, pretrained
    )


def test_preservation_in_half_precision_is_computed_in_float32() -> None:
    current = [layer.half() for layer in _log_attention(0, scale=8.0)]
    loss = attention_preservation_loss(current, _log_attention(1, scale=8.0))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_shapes_that_do_not_belong_together_are_named() -> None:
    with pytest.raises(ValueError, match="reference has 2 layers, log_attention has 3"):
        attention_preservation_loss(_log_attention(0), _log_attention(1)[:2])
    with pytest.raises(ValueError, match=r"layer 1: reference has shape \(4, 4, 49\)"):
        attention_preservation_loss(_log_attention(0), [layer[:4] for layer in _log_attention(1)])


def test_the_floor_is_summed_over_layers_and_averaged_over_images_and_heads() -> None:
    log_attention = _log_attention(0, scale=3.0)
    floors = [3.9, 3.0, 1.0]
    expected, active = 0.0, 0.0
    for layer, floor in zip(log_attention, floors, strict=True):
        p = layer.double().exp()
        entropy = -(p * p.log()).sum(-1)
        expected += float((0.7 * floor - entropy).clamp(min=0).mean())
        active += float((entropy < 0.7 * floor).double().mean()) / 3
    loss, fraction = entropy_floor_loss(log_attention, floors)
    assert 0.01 < active < 0.99
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(fraction) == pytest.approx(active, abs=1e-6)


FLOORS = [3.9, 3.0, 3.5]


def _exact_divergence(probabilities: list[Tensor], pretrained: list[Tensor]) -> Tensor:
    terms = [(p * (p / q.double().exp()).log()).sum(-1).mean() for p, q in zip(probabilities, pretrained, strict=True)]
    return sum(terms, torch.zeros(())) / len(terms)


def _exact_floor(probabilities: list[Tensor], _: list[Tensor]) -> Tensor:
    terms = [
        (0.7 * floor + (p * p.log()).sum(-1)).clamp(min=0).mean()
        for p, floor in zip(probabilities, FLOORS, strict=True)
    ]
    return sum(terms, torch.zeros(()))


GRADIENTS = {
    "attention_preservation": (attention_preservation_loss, _exact_divergence),
    "entropy_floor": (lambda current, _: entropy_floor_loss(current, FLOORS)[0], _exact_floor),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_value_and_gradient_are_those_of_the_formula_in_float64(name: str) -> None:
    made, formula = GRADIENTS[name]
    logits = [(3.0 * layer).requires_grad_(True) for layer in _log_attention(0)]
    exact = [layer.detach().double().requires_grad_(True) for layer in logits]
    pretrained = _log_attention(1)
    loss = made([layer.log_softmax(-1) for layer in logits], pretrained)
    expected = formula([layer.softmax(-1) for layer in exact], pretrained)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for layer, reference in zip(logits, exact, strict=True):
        assert layer.grad is not None
        assert reference.grad is not None
        assert float(reference.grad.abs().max()) > 1e-4
        torch.testing.assert_close(layer.grad.double(), reference.grad, rtol=1e-4, atol=1e-8)


def test_layers_of_different_shapes_have_a_floor_each() -> None:
    first, second = _log_attention(0, scale=3.0)[:2]
    fewer = second[:, :2]
    loss, fraction = entropy_floor_loss([first, fewer], [3.9, 3.0])
    one, other = entropy_floor_loss([first], [3.9]), entropy_floor_loss([fewer], [3.0])
    torch.testing.assert_close(loss, one[0] + other[0])
    torch.testing.assert_close(fraction, (one[1] + other[1]) / 2)


def test_a_floor_that_is_not_reached_is_silent_and_says_so() -> None:
    uniform = [torch.full((2, 4, 49), 1 / 49).log()]
    loss, active = entropy_floor_loss(uniform, [3.7])
    assert float(loss) == 0.0
    assert float(active) == 0.0


def test_one_hot_attention_has_a_finite_gradient() -> None:
    logits = torch.full((1, 1, 49), -200.0)
    logits[..., 0] = 200.0
    logits.requires_grad_(True)
    loss = entropy_floor_loss([logits.log_softmax(-1)], [3.7])[0] + attention_preservation_loss(
        [logits.log_softmax(-1)], [torch.full((1, 1, 49), 1 / 49).log()]
    )
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.fixture
def clip() -> CLIPModel:
    torch.manual_seed(0)
    return load_model("config:tiny").eval()


@pytest.fixture
def images(clip: CLIPModel) -> Tensor:
    size = clip.config.vision_config.image_size
    return torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(1))


def _lora(clip: CLIPModel, dropout: float = 0.0) -> nn.Module:
    targets = r".*vision_model.*\.(q_proj|v_proj)"
    model = get_peft_model(clip, LoraConfig(r=2, lora_alpha=4, lora_dropout=dropout, target_modules=targets))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    return model


def _perturb(clip: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            if "vision_model" in name and "q_proj.weight" in name:
                parameter.mul_(3.0)


def _embed(model: nn.Module, images: Tensor) -> Tensor:
    return model.get_image_features(pixel_values=images).pooler_output  # type: ignore[operator]


def _log_attention_of(model: nn.Module, images: Tensor) -> list[Tensor]:
    with observe(model) as seen, torch.no_grad():
        _embed(model, images)
    return seen.log_attention


def test_the_loss_of_an_unchanged_model_is_zero_and_of_a_changed_one_the_divergence(
    clip: CLIPModel, images: Tensor
) -> None:
    before = _log_attention_of(clip, images)
    preserve = AttentionPreservation(clip, weight=0.5)
    _embed(clip, images)
    assert float(preserve().detach()) == pytest.approx(0.0, abs=1e-7)
    _perturb(clip)
    _embed(clip, images)
    loss = preserve()
    expected = 0.5 * attention_preservation_loss(_log_attention_of(clip, images), before)
    torch.testing.assert_close(loss.detach(), expected)
    assert float(expected) > 1e-5
    assert preserve.last is not None
    assert float(preserve.last) == pytest.approx(float(expected) / 0.5)


def test_all_teachers_agree(clip: CLIPModel, images: Tensor) -> None:
    """A second model, the frozen copy, a cache, a tower alone: one loss, and one gradient."""
    second = copy.deepcopy(clip)
    tower = CLIPVisionModelWithProjection(clip.config.vision_config)
    tower.vision_model.load_state_dict(clip.vision_model.state_dict())
    cache = AttentionCache(clip, images, batch_size=4)
    losses = {
        "copy": AttentionPreservation(clip, 1.0),
        "second": AttentionPreservation(clip, 1.0, teacher=second),
        "tower": AttentionPreservation(clip, 1.0, teacher=tower),
        "cache": AttentionPreservation(clip, 1.0, teacher=cache),
    }
    _perturb(clip)
    numbers = [3, 0, 5]
    gradients = {}
    for name, preserve in losses.items():
        clip.zero_grad()
        _embed(clip, images[numbers])
        for other in losses.values():
            if other is not preserve:
                other.skip()
        preserve(index=numbers if name == "cache" else None).backward()
        gradients[name] = clip.vision_model.encoder.layers[0].self_attn.q_proj.weight.grad.clone()
    for name, gradient in gradients.items():
        assert float(gradient.abs().max()) > 0, name
        torch.testing.assert_close(gradient, gradients["copy"], rtol=1e-4, atol=1e-8, msg=name)


def test_a_cache_knows_both_orientations(clip: CLIPModel, images: Tensor) -> None:
    preserve = AttentionPreservation(clip, 1.0, teacher=AttentionCache(clip, images))
    batch = torch.stack([images[2].flip(-1), images[4]])
    _embed(clip, batch)
    assert float(preserve(index=torch.tensor([2, 4]), flipped=torch.tensor([True, False])).detach()) < 1e-6
    _embed(clip, batch)
    assert float(preserve(index=[2, 4]).detach()) > 1e-5, "without the flip it is another image"
    for arguments, message in (
        ({}, "say which images"),
        ({"index": [1]}, "1 numbers for a batch of 2 images"),
    ):
        _embed(clip, batch)
        with pytest.raises(PreservationLossError, match=message):
            preserve(**arguments)
    _embed(clip, batch)
    with pytest.raises(IndexError, match="no image has number 6; the cache holds 0 to 5"):
        preserve(index=[6, 0])


def test_the_adapters_own_model_is_the_teacher_and_nothing_of_it_moves(clip: CLIPModel, images: Tensor) -> None:
    bare_attention = _log_attention_of(clip, images)
    model = _lora(clip, dropout=0.3).train()
    next(p for n, p in model.named_parameters() if "lora_A" in n).requires_grad_(False)
    preserve = AttentionPreservation(model, 1.0)
    torch.manual_seed(5)
    _embed(model, images)
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    loss = preserve()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == modes
    loss.backward()
    # The same by hand: the forward again, with the same dropout, against the bare model's attention.
    own = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    preserve.close()
    torch.manual_seed(5)
    with observe(model, gradients=True) as seen:
        _embed(model, images)
    expected = attention_preservation_loss(seen.log_attention, bare_attention)
    torch.testing.assert_close(loss, expected)
    expected.backward()
    assert own
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, dict(model.named_parameters())[name].grad, msg=name)


@pytest.mark.parametrize("kind", ["apr", "floor"])
def test_weight_zero_trains_exactly_as_without(clip: CLIPModel, images: Tensor, kind: str) -> None:
    def train(protected: bool) -> dict[str, Tensor]:
        torch.manual_seed(1)
        model = copy.deepcopy(clip).train()
        preserve: PreservationLoss | None = None
        if protected and kind == "apr":
            preserve = AttentionPreservation(model, weight=0.0)
        elif protected:
            preserve = EntropyFloor(model, weight=0.0, probe=images, fraction=1.0)
        optimizer = torch.optim.AdamW(model.vision_model.parameters(), 1e-2)
        for _ in range(2):
            loss = _embed(model, images).square().mean()
            if preserve is not None:
                loss = loss + preserve()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model.state_dict()

    without = train(False)
    for name, value in train(True).items():
        assert torch.equal(value, without[name]), name


def test_preservation_holds_the_attention(clip: CLIPModel, images: Tensor) -> None:
    def drift(weight: float) -> float:
        model = copy.deepcopy(clip)
        monitor = DriftMonitor(model, images)
        before = _log_attention_of(model, images)
        optimizer = torch.optim.SGD(model.vision_model.parameters(), 0.05)
        with AttentionPreservation(model, weight) as preserve:
            for _ in range(15):
                loss = -_embed(model, images).var(0).mean() + preserve()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        assert monitor.measure().weight_drift > 0  # type: ignore[operator]
        return float(attention_preservation_loss(_log_attention_of(model, images), before))

    assert drift(50.0) < 0.5 * drift(0.0)


def test_the_floor_comes_from_a_monitor_a_probe_or_given_values(clip: CLIPModel, images: Tensor) -> None:
    monitor = DriftMonitor(clip, images)
    entropy = monitor.reference.structure.layers("entropy")
    _perturb(clip)
    for arguments in ({"monitor": monitor}, {"pretrained_entropy": entropy}):
        with EntropyFloor(clip, 0.3, fraction=1.0, **arguments) as preserve:  # type: ignore[arg-type]
            assert preserve.active_fraction is None
            _embed(clip, images)
            loss = preserve()
        expected, active = entropy_floor_loss(_log_attention_of(clip, images), entropy, 1.0)
        torch.testing.assert_close(loss.detach(), 0.3 * expected)
        assert float(expected) > 0
        assert preserve.active_fraction == pytest.approx(float(active))


def test_the_floor_under_adapters_is_that_of_the_bare_model(clip: CLIPModel, images: Tensor) -> None:
    expected = DriftMonitor(clip, images).reference.structure.layers("entropy").tolist()
    model = _lora(clip)
    for arguments in ({"probe": images}, {"probe": images.split(4)}, {"monitor": DriftMonitor(model, images)}):
        with EntropyFloor(model, 1.0, **arguments) as preserve:  # type: ignore[arg-type]
            assert preserve.pretrained_entropy.tolist() == pytest.approx(expected, abs=1e-6)


def test_misuse_is_an_error_that_says_what_to_do(clip: CLIPModel, images: Tensor) -> None:
    preserve = AttentionPreservation(clip, 0.1)
    with pytest.raises(PreservationLossError, match=r"run model\(images\) first"):
        preserve()
    with torch.no_grad():
        _embed(clip, images)
    with pytest.raises(PreservationLossError, match="no_grad do not count"):
        preserve()
    _embed(clip, images)
    preserve()
    with pytest.raises(PreservationLossError, match="since the last call"):
        preserve()
    _embed(clip, images)
    _embed(clip, images)
    with pytest.raises(PreservationLossError, match="2 forward passes"):
        preserve()
    _embed(clip, images)
    preserve.skip()
    _embed(clip, images)
    with pytest.raises(PreservationLossError, match="index and flipped belong to a cache"):
        preserve(index=[0])
    preserve.close()
    preserve.close()
    _embed(clip, images)
    with pytest.raises(PreservationLossError, match="closed"):
        preserve()
    clip.requires_grad_(False)
    with AttentionPreservation(clip, 0.1) as frozen:
        _embed(clip, images)
        with pytest.raises(PreservationLossError, match="frozen"):
            frozen()


def test_a_forward_that_failed_and_a_measurement_do_not_count(clip: CLIPModel, images: Tensor) -> None:
    preserve = AttentionPreservation(clip, 0.1)
    monitor = DriftMonitor(clip, images)
    with pytest.raises(ValueError, match="size"):
        _embed(clip, images[..., :5])
    monitor.measure()
    _perturb(clip)
    _embed(clip, images)
    alone = float(preserve().detach())
    assert alone > 0
    _embed(clip, images)
    with torch.no_grad():
        _embed(clip, images[:1])
    monitor.measure()
    loss = preserve()
    assert float(loss.detach()) == alone, "what came between has no gradients and does not count"
    loss.backward()
    assert len(clip.vision_model._forward_hooks) > 0
    preserve.close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in clip.modules()), "the model is as it was"


def test_gradient_checkpointing_changes_no_gradient(clip: CLIPModel, images: Tensor) -> None:
    def gradient(checkpointing: bool) -> Tensor:
        model = copy.deepcopy(clip).train()
        preserve = AttentionPreservation(model, 1.0)
        _perturb(model)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        (_embed(model, images).square().mean() + preserve()).backward()
        return model.vision_model.encoder.layers[0].self_attn.k_proj.weight.grad

    torch.testing.assert_close(gradient(True), gradient(False))


def test_a_protected_model_can_be_copied_and_the_copy_is_not_protected(clip: CLIPModel, images: Tensor) -> None:
    preserve = AttentionPreservation(clip, 1.0)
    _perturb(clip)
    _embed(clip, images)
    first = preserve()
    first.backward()
    average = copy.deepcopy(clip)
    _embed(average, images)
    with pytest.raises(PreservationLossError, match="a copy of the model, is not seen"):
        preserve()
    _embed(clip, images)
    torch.testing.assert_close(preserve(), first)


# The compiler itself looks at .grad of what it is handed at a hook.
@pytest.mark.one_in(2)
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("before", [True, False])
def test_a_model_is_protected_when_it_is_compiled_afterwards_and_an_error_before(
    clip: CLIPModel, images: Tensor, before: bool
) -> None:
    class Embed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = clip

        def forward(self, pixels: Tensor) -> Tensor:
            return _embed(self.clip, pixels)

    model = Embed()
    preserve = AttentionPreservation(model, 1.0) if before else None
    compiled = torch.compile(model, backend="eager")
    compiled(images)
    if preserve is None:
        late = AttentionPreservation(compiled, 1.0)
        compiled(images)
        with pytest.raises(PreservationLossError, match="compiled before"):
            late()
        return
    preserve.skip()
    _perturb(clip)
    for _ in range(2):
        compiled(images)
        loss = preserve()
        model(images)
        torch.testing.assert_close(loss, preserve())
        assert float(loss.detach()) > 1e-5


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=8), st.integers(1, 7))
def test_a_cache_gives_what_the_model_gives(rows: list[tuple[int, bool]], batch_size: int) -> None:
    torch.manual_seed(0)
    clip = load_model("config:tiny").eval()
    size = clip.config.vision_config.image_size
    images = torch.randn(6, 3, size, size)
    cache = AttentionCache(clip, images, batch_size=batch_size)
    batch = torch.stack([images[n].flip(-1) if mirrored else images[n] for n, mirrored in rows])
    expected = torch.stack(_log_attention_of(clip, batch))
    torch.testing.assert_close(cache([n for n, _ in rows], [f for _, f in rows]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda clip: EntropyFloor(clip, 1.0, pretrained_entropy=[3.0], fraction=0.0), "must lie in"),
        (lambda clip: EntropyFloor(clip, -1.0, pretrained_entropy=[3.0]), "must be at least 0"),
        (lambda clip: EntropyFloor(clip, 1.0), "give exactly one"),
        (lambda clip: AttentionPreservation(clip, -1.0), "must be at least 0"),
        (lambda clip: AttentionPreservation(clip, float("nan")), "must be at least 0"),
        (lambda clip: AttentionPreservation(clip, 1.0, teacher=clip), "itself"),
        (lambda clip: AttentionPreservation(clip, 1.0, teacher=3), "teacher is a int"),
    ],
)
def test_impossible_settings_are_refused_and_leave_no_hooks(clip: CLIPModel, make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(clip)  # type: ignore[operator]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in clip.modules())


def test_losses_are_one_canonical_text() -> None:
    given = {"entropy_floor": 1e-2, "attention_preservation": 1}
    text = canonical_losses(given)
    assert text == "attention_preservation:1+entropy_floor:0.01"
    assert parse_losses(text) == given
    assert parse_losses(" entropy_floor:0.01 + attention_preservation:1 ") == given
    assert canonical_losses({}) is None
    assert parse_losses(None) == {}
    assert split_weight("entropy_floor:0.01") == ("entropy_floor", 0.01)
    assert split_weight(text) == (text, None)
    large = canonical_losses({"entropy_floor": 1e12, "attention_preservation": -0.0})
    assert parse_losses(large) == {"entropy_floor": 1e12, "attention_preservation": 0.0}
    assert parse_losses("entropy_floor:1e+2+attention_preservation:1") == {
        "entropy_floor": 100.0,
        "attention_preservation": 1.0,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("entropy_flor:1", "did you mean `entropy_floor`"),
        ("entropy_floor", "has no weight"),
        ("entropy_floor:-1", "at least 0"),
        ("entropy_floor:nan", "at least 0"),
        ("entropy_floor:much", "must be a number"),
        ("entropy_floor:1+entropy_floor:2", "named twice"),
    ],
)
def test_losses_that_cannot_be_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_losses(text)


@pytest.mark.parametrize("left", ["weight 0", "skipped"])
def test_a_model_can_be_copied_after_a_pass_that_did_not_count(clip: CLIPModel, images: Tensor, left: str) -> None:
    with AttentionPreservation(clip, 0.0 if left == "weight 0" else 1.0) as preserve:
        _embed(clip, images)
        if left == "weight 0":
            assert float(preserve()) == 0.0
        else:
            preserve.skip()
        copy.deepcopy(clip)
