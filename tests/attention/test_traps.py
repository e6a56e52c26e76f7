"""What transformers 5 and peft do behind one's back, each of which observing must not fall for."""

from __future__ import annotations

import copy

import pytest
import torch

from attndrift.attention import ObservationError, find_vision_tower, observe


def test_output_attentions_under_sdpa_is_empty(tiny, pixels) -> None:
    """Why observing exists: the library answers with an empty tuple, and code goes on with nothing."""
    model = tiny.make("vision")
    assert model.config._attn_implementation == "sdpa"
    output = model(pixel_values=pixels, output_attentions=True)
    assert output.attentions is not None
    assert len(output.attentions) == 0
    with observe(model) as observation:
        model(pixel_values=pixels)
    assert len(observation.attention) == tiny.LAYERS


def test_asking_for_output_attentions_while_observed(tiny, pixels) -> None:
    model = tiny.make("clip")
    with observe(model) as observation:
        tiny.call(model, pixels)
        quiet = observation.attention
        model.get_image_features(pixel_values=pixels, output_attentions=True, output_hidden_states=True)
        for one, other in zip(observation.attention, quiet, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert model.config._attn_implementation == "sdpa"


def test_the_model_is_not_made_eager(tiny, pixels, monkeypatch) -> None:
    """Neither in its settings nor in the function that runs."""
    model = tiny.make("clip")
    calls = []
    original = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: (calls.append(1), original(*args, **kwargs))[1],
    )
    with observe(model):
        tiny.call(model, pixels)
        assert model.config._attn_implementation == "sdpa"
        assert model.config.vision_config._attn_implementation == "sdpa"
    assert len(calls) == tiny.LAYERS


@pytest.mark.parametrize("adapters", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_text_features_keep_their_padding_mask(tiny, implementation, adapters) -> None:
    """An attention function registered without a mask function loses it, and left-padded text moves."""
    model = tiny.make("clip", adapters)
    tiny.transformer(model).set_attn_implementation(implementation)
    ids = torch.tensor([[3, 3, 3, 1, 9, 8, 2], [1, 5, 6, 7, 8, 9, 2]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])

    def features(attention_mask):
        return model.get_text_features(input_ids=ids, attention_mask=attention_mask).pooler_output

    expected, without = features(mask), features(None)
    assert (expected[0] - without[0]).abs().max() > 1e-3
    with observe(model):
        assert torch.equal(features(mask), expected)
        assert torch.equal(features(None), without)
    assert torch.equal(features(mask), expected)


def test_a_joint_forward_sees_the_image_tower_only(tiny, pixels) -> None:
    model = tiny.make("clip")
    ids = torch.tensor([[1, 5, 6, 7, 2]])
    with observe(model) as observation:
        joint = model(input_ids=ids, pixel_values=pixels)
        after_joint = observation.attention
        tiny.call(model, pixels)
        for one, other in zip(after_joint, observation.attention, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        seen = observation.attention
        # A text forward afterwards neither clears nor changes what was seen.
        model.get_text_features(input_ids=ids)
        assert all(one is other for one, other in zip(observation.attention, seen, strict=True))
    assert torch.equal(joint.logits_per_image, model(input_ids=ids, pixel_values=pixels).logits_per_image)
    assert all("text" not in name for name in observation.layers)


def test_layers_are_named_from_the_tree(tiny) -> None:
    """``layer_idx`` does not exist or is None on CLIP's attention."""
    model = tiny.make("classifier", True)
    assert all(getattr(attention, "layer_idx", None) is None for attention in tiny.attentions(model))
    with observe(model) as observation:
        pass
    prefix = "clip.base_model.model.vision_model.encoder.layers"
    assert observation.layers == [f"{prefix}.{i}.self_attn" for i in range(tiny.LAYERS)]


def test_adapters_on_the_vision_tower_alone_and_on_both(tiny, pixels) -> None:
    """``target_modules=["q_proj", ...]`` on CLIPModel adapts the text tower too."""
    model = tiny.make("clip", True)
    assert any("text_model" in name and "lora_A" in name for name, _ in model.named_parameters())
    tower = find_vision_tower(model)
    assert not any("text_model" in name for name, _ in tower.module.named_parameters())
    maps, _, _ = tiny.eager_maps(model, pixels)
    # Taken out of the peft model, the tower keeps its adapters.
    with observe(tower.module) as observation:
        tower.module(pixel_values=pixels)
    torch.testing.assert_close(observation.attention[-1], tiny.patch_rows(maps[-1]), rtol=0, atol=1e-5)


def test_a_tower_that_is_not_flattened_is_found(tiny, pixels) -> None:
    """Earlier versions 5 have the tower inside CLIPVisionModel, as a CLIPVisionTransformer."""
    inner = tiny.make("vision")

    class CLIPVisionTransformer(type(inner)):
        pass

    class CLIPVisionModel(torch.nn.Module):
        def __init__(self, tower):
            super().__init__()
            self.vision_model = tower

        def forward(self, pixel_values):
            return self.vision_model(pixel_values=pixel_values)

    tower = copy.deepcopy(inner)
    tower.__class__ = CLIPVisionTransformer
    model = CLIPVisionModel(tower)
    assert find_vision_tower(model).name == "vision_model"
    with observe(model) as observation, observe(inner) as expected:
        model(pixel_values=pixels)
        inner(pixel_values=pixels)
    for one, other in zip(observation.attention, expected.attention, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_data_parallel_replicas_are_refused(tiny, pixels) -> None:
    model = tiny.make("vision")
    with observe(model):
        replica = copy.copy(model)
        with pytest.raises(ObservationError, match="DataParallel"):
            replica(pixel_values=pixels)


@pytest.mark.slow
def test_a_model_compiled_while_observed(tiny, pixels) -> None:
    torch._dynamo.reset()
    model = tiny.make("vision")
    with torch.no_grad(), observe(model) as expected:
        tiny.call(model, pixels)
    with torch.no_grad(), observe(model) as observation:
        fast = torch.compile(model, backend="eager")
        fast(pixel_values=pixels)
    for one, other in zip(observation.attention, expected.attention, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    # Code that was compiled with the hooks must not go on recording.
    with torch.no_grad():
        fast(pixel_values=pixels[:2])
    assert observation.forwards == 1
    assert observation.attention[0].shape[0] == 5
    torch._dynamo.reset()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kind", ["classifier", "vision"])
def test_a_model_compiled_before_is_refused_or_seen_never_silent(tiny, pixels, kind) -> None:
    torch._dynamo.reset()
    model = tiny.make(kind)
    fast = torch.compile(model, backend="eager")

    def look():
        with observe(fast) as observation:
            fast(pixel_values=pixels)
            return observation.attention

    with torch.no_grad():
        fast(pixel_values=pixels)
        with pytest.raises(ObservationError, match="compile"):
            look()
    torch._dynamo.reset()
