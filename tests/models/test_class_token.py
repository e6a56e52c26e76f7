"""A last block that computes the class token alone: the same embeddings, gradients and attention."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attndrift.attention import observe
from attndrift.methods import AdaptationSettings, ImageClassifier, adapt, load_adapted
from attndrift.methods import save_adapted as save
from attndrift.models import load_model, prune_last_block_to_cls


def _pixels(images: int = 5) -> Tensor:
    return torch.randn(images, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def _classifier(clip: nn.Module, method: str) -> ImageClassifier:
    return adapt(
        copy.deepcopy(clip), AdaptationSettings(method, **({"lora_rank": 4} if method == "lora" else {})), 10, seed=3
    )


@pytest.mark.parametrize("method", ["full", "lora"])
def test_embeddings_gradients_and_attention_are_those_of_the_whole_block(method: str) -> None:
    whole = _classifier(load_model("embedded"), method).eval()
    alone = _classifier(prune_last_block_to_cls(load_model("embedded")), method).eval()
    labels = torch.arange(5)
    seen = []
    for model in (whole, alone):
        with observe(model, gradients=True) as observation:
            output = model(pixel_values=_pixels(), labels=labels)
            (output.loss + sum(layer.exp().square().sum() for layer in observation.log_attention)).backward()
        seen.append((output.logits.detach(), [layer.detach() for layer in observation.attention]))
    torch.testing.assert_close(seen[1][0], seen[0][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen[1][1], seen[0][1], rtol=1e-5, atol=1e-7)
    expected = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_it_computes_one_token_behind_the_last_keys_and_values() -> None:
    clip = prune_last_block_to_cls(load_model("embedded")).eval()
    shapes: dict[str, torch.Size] = {}
    block = clip.vision_model.encoder.layers[-1]
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1"):
        block.get_submodule(name).register_forward_hook(
            lambda _module, _args, output, name=name: shapes.__setitem__(name, output.shape)
        )
    with torch.no_grad():
        clip.vision_model(pixel_values=_pixels())
    assert {name: shape[1] for name, shape in shapes.items()} == {
        "self_attn.q_proj": 1, "self_attn.k_proj": 50, "self_attn.v_proj": 50, "self_attn.out_proj": 1, "mlp.fc1": 1,
    }  # fmt: skip


def test_checkpoints_know_no_difference(tmp_path: Path) -> None:
    whole = load_model("embedded").eval()
    alone = prune_last_block_to_cls(copy.deepcopy(whole))
    model = _classifier(alone, "lora").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    save(model, tmp_path / "c", base_source="embedded", probe_pixels=_pixels(), pretrained=alone, class_names=list("abcdefghij"))  # fmt: skip
    with torch.no_grad():
        wanted = model.embed(_pixels())
        for base in (whole, alone):
            found = load_adapted(tmp_path / "c", base=copy.deepcopy(base)).eval().embed(_pixels())
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_an_untouched_copy_that_is_not_trained_computes_the_same_to_the_last_bit(tiny_clip: Path) -> None:
    clip = prune_last_block_to_cls(load_model(tiny_clip)).eval()
    copied = adapt(copy.deepcopy(clip), AdaptationSettings(method="linear_probe"), 10, seed=3).eval()
    side = clip.config.vision_config.image_size
    pixels = torch.randn(20, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(copied.embed(pixels), clip.get_image_features(pixel_values=pixels).pooler_output)
