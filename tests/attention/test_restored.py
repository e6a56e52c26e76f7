"""The model is left exactly as it was found, whatever happened; silence and half a look are errors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from attndrift.attention import FAMILIES, ObservationError, find_vision_tower, observe
from attndrift.attention import families as families_module


def snapshot(tiny, model):
    inner = tiny.transformer(model)
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return {
        "hooks": tiny.hook_count(model),
        "implementation": inner.config._attn_implementation,
        "vision": getattr(inner.config, "vision_config", inner.config)._attn_implementation,
        "config": inner.config.to_dict(),
        "functions": sorted(ALL_ATTENTION_FUNCTIONS.valid_keys()),
        "training": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "state": {name: value.clone() for name, value in model.state_dict().items()},
    }


def assert_as_before(tiny, model, before) -> None:
    after = snapshot(tiny, model)
    states = before["state"], after["state"]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    for key in before.keys() - {"state"}:
        assert before[key] == after[key], key


@pytest.mark.parametrize("adapters", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_restored_after_use(tiny, pixels, adapters, training) -> None:
    model = tiny.make("clip", adapters).train(training)
    # Hooks of the user's own, and gradient settings, are none of ours.
    model.register_forward_hook(lambda module, args, output: None)
    next(model.parameters()).requires_grad_(False)
    before = snapshot(tiny, model)
    output = tiny.call(model, pixels)
    with observe(model, gradients=True, hidden=True, full_maps=True) as observation:
        assert tiny.hook_count(model) > before["hooks"]
        during = tiny.call(model, pixels)
        _ = observation.attention, observation.rollout()
    assert_as_before(tiny, model, before)
    assert torch.equal(output, during)
    assert torch.equal(output, tiny.call(model, pixels))


def test_outputs_and_gradients_in_training_are_bit_equal(tiny, pixels) -> None:
    model = tiny.make("classifier", True, lora_dropout=0.2).train()
    other = copy.deepcopy(model)
    torch.manual_seed(0)
    plain = tiny.call(other, pixels)
    plain.square().sum().backward()
    torch.manual_seed(0)
    with observe(model, gradients=True) as observation:
        seen = tiny.call(model, pixels)
        seen.square().sum().backward()
        _ = observation.attention
    assert torch.equal(plain, seen)
    for one, two in zip(other.parameters(), model.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        assert one.grad is None or torch.equal(one.grad, two.grad)


def test_restored_after_an_exception_in_the_body(tiny, pixels) -> None:
    model = tiny.make("clip")
    before = snapshot(tiny, model)
    with pytest.raises(KeyError, match="of the user"), observe(model) as observation:  # noqa: PT012
        tiny.call(model, pixels)
        raise KeyError("of the user")
    assert_as_before(tiny, model, before)
    assert observation.attention[0].shape[0] == 5


def test_an_exception_in_the_forward(tiny, pixels) -> None:
    model = tiny.make("vision")
    before = snapshot(tiny, model)
    with observe(model) as observation:
        tiny.call(model, pixels)

        def fail(module, args):
            raise ZeroDivisionError("of the model")

        handle = model.encoder.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError, match="of the model"):
            tiny.call(model, pixels)
        handle.remove()
        with pytest.raises(ObservationError, match="the last forward pass did not finish"):
            _ = observation.attention
        tiny.call(model, pixels[:2])
        assert observation.attention[0].shape[0] == 2
    assert_as_before(tiny, model, before)


def test_restored_when_attaching_fails(tiny, monkeypatch) -> None:
    model = tiny.make("vision")
    before = snapshot(tiny, model)
    monkeypatch.setattr(
        type(model.encoder.layers[2].self_attn.k_proj),
        "register_forward_hook",
        lambda *args, **kwargs: (_ for _ in ()).throw(RuntimeError("no hooks here")),
    )
    with pytest.raises(RuntimeError, match="no hooks here"), observe(model):
        pass
    assert_as_before(tiny, model, before)


def test_nested_contexts(tiny, pixels) -> None:
    model = tiny.make("clip").train()
    before = snapshot(tiny, model)
    with observe(model, gradients=True) as outer:
        with observe(model, hidden=True) as inner:
            tiny.call(model, pixels)
        tiny.call(model, pixels[:2])
        assert outer.forwards == 2
        assert inner.forwards == 1
        assert outer.attention[0].requires_grad
        assert not inner.attention[0].requires_grad
    torch.testing.assert_close(outer.attention[0].detach(), inner.attention[0][:2], rtol=0, atol=1e-6)
    assert_as_before(tiny, model, before)


def test_several_models_at_once(tiny, pixels) -> None:
    one, two = tiny.make("vision"), tiny.make("vision", True)
    with observe(one) as first, observe(two) as second:
        tiny.call(one, pixels)
        tiny.call(two, pixels[:2])
    assert first.attention[0].shape[0] == 5
    assert second.attention[0].shape[0] == 2


def test_reading_before_any_forward(tiny, pixels) -> None:
    model = tiny.make("clip")
    with observe(model, hidden=True, full_maps=True) as observation:
        for read in ("attention", "log_attention", "cls_mass", "cls_hidden", "full_maps"):
            with pytest.raises(ObservationError, match="no forward pass has gone through the vision tower"):
                getattr(observation, read)
        # The text tower alone is no look at an image.
        model.get_text_features(input_ids=torch.tensor([[1, 5, 2]]))
        with pytest.raises(ObservationError, match="no forward pass"):
            _ = observation.attention
    tiny.call(model, pixels)
    with pytest.raises(ObservationError, match="no forward pass"):
        _ = observation.attention


def test_a_projection_called_past_its_hooks_is_an_error(tiny, pixels) -> None:
    model = tiny.make("classifier")
    attention = tiny.attentions(model)[1]
    linear = attention.k_proj
    name = r"clip\.vision_model\.encoder\.layers\.1\.self_attn"
    with observe(model) as observation:
        attention.__dict__["k_proj"] = linear.forward
        with pytest.raises(ObservationError, match=rf"{name}\.k_proj: was replaced"):
            tiny.call(model, pixels)
        with pytest.raises(ObservationError, match="did not finish"):
            _ = observation.attention
        del attention.__dict__["k_proj"]
        linear._call_impl = linear.forward
        with pytest.raises(ObservationError, match=rf"saw the attention of 2 of 3 layers .*`{name}`"):
            tiny.call(model, pixels)
        with pytest.raises(ObservationError, match="saw the attention of 2 of 3 layers"):
            _ = observation.attention
        del linear._call_impl
        tiny.call(model, pixels)
        assert len(observation.attention) == tiny.LAYERS


def test_a_skipped_layer_is_an_error(tiny, pixels) -> None:
    model = tiny.make("vision")
    with observe(model) as observation:
        model.encoder.layers[2].forward = lambda states, *args, **kwargs: states
        with pytest.raises(ObservationError, match=r"saw the attention of 2 of 3 layers .*layers\.2\.self_attn"):
            tiny.call(model, pixels)
        with pytest.raises(ObservationError, match="saw the attention of 2 of 3 layers"):
            _ = observation.cls_mass


def test_a_layer_that_runs_twice_is_an_error(tiny, pixels) -> None:
    model = tiny.make("vision")
    layer = model.encoder.layers[0]
    with observe(model):
        model.encoder.layers[2].forward = lambda states, *args, **kwargs: layer(states, None)
        with pytest.raises(ObservationError, match=r"layers\.0\.self_attn: ran twice"):
            tiny.call(model, pixels)


def test_adapters_added_under_the_observation_are_an_error(tiny, pixels) -> None:
    from peft.tuners.lora import Linear

    model = tiny.make("vision")
    attention = model.encoder.layers[1].self_attn
    adapted = tiny.attentions(tiny.make("vision", True))[1].q_proj
    assert isinstance(adapted, Linear)
    with observe(model):
        attention.q_proj = adapted
        with pytest.raises(ObservationError, match=r"layers\.1\.self_attn\.q_proj: was replaced"):
            tiny.call(model, pixels)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_do_not_sum_to_one_are_an_error(tiny, pixels, value) -> None:
    model = tiny.make("vision")
    with torch.no_grad():
        model.encoder.layers[1].self_attn.k_proj.bias[:] = value
    with observe(model) as observation:
        tiny.call(model, pixels)
        for read in ("attention", "log_attention", "cls_mass"):
            with pytest.raises(ObservationError, match=r"layers\.1\.self_attn: attention rows do not sum to 1"):
                getattr(observation, read)


def test_the_tower_is_found(tiny) -> None:
    names = {
        "clip": "vision_model",
        "vision": "",
        "projection": "vision_model",
        "classification": "vision_model",
        "classifier": "clip.vision_model",
    }
    for kind, name in names.items():
        family, tower, found = find_vision_tower(tiny.make(kind))
        assert (family.name, found) == ("clip", name)
        assert type(tower).__name__ == "CLIPVisionModel"
    _, _, found = find_vision_tower(tiny.make("clip", True))
    assert found == "base_model.model.vision_model"
    wrapped = nn.ModuleDict({"ddp": nn.Sequential(tiny.make("clip", True))})
    assert find_vision_tower(wrapped).name == "ddp.0.base_model.model.vision_model"
    assert find_vision_tower(tiny.make("clip").vision_model).name == ""


def test_models_that_cannot_be_observed(tiny) -> None:
    text = tiny.make("clip").text_model
    for model, name in (
        (nn.Linear(2, 2), "Linear"),
        (text, "CLIPTextModel"),
        (nn.Sequential(), "Sequential"),
    ):
        for function in (find_vision_tower, observe):
            with pytest.raises(ObservationError, match=rf"{name} holds no vision .*can be are: .*CLIPModel"):
                function(model)
    with pytest.raises(ObservationError, match=r"expected a torch\.nn\.Module to observe, got str"):
        observe("openai/clip-vit-base-patch32")


def test_several_towers_are_named(tiny) -> None:
    pair = nn.ModuleDict({"live": tiny.make("clip"), "frozen": tiny.make("vision")})
    with pytest.raises(
        ObservationError, match=r"holds 2 vision transformers: `live\.vision_model` .*, `frozen` .*submodule"
    ):
        observe(pair)
    with observe(pair["live"]):
        pass
    shared = tiny.make("clip")
    assert find_vision_tower(nn.ModuleDict({"a": shared, "b": shared})).name == "a.vision_model"


def test_the_query_is_checked(tiny, pixels) -> None:
    model = tiny.make("vision")
    with pytest.raises(ObservationError, match="query: the family `clip` has no `probe`; it has cls"):
        observe(model, query="probe")
    with observe(model, query="cls") as observation:
        tiny.call(model, pixels)
    assert observation.query == "cls"


class TinyTower(nn.Module):
    """A tower of another family: fused qkv, no head split in the projection, two register tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn": FusedAttention()}) for _ in range(2))

    def forward(self, states):
        for block in self.blocks:
            states = states + block["attn"](states)
        return states


class FusedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, states):
        q, k, v = self.qkv(states).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_a_family_is_one_entry() -> None:
    def read(attention, args, output):
        q, k, _ = output.unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return {"query": q, "key": k}

    family = families_module.Family(
        name="fused",
        models="TinyTower",
        classes=("TinyTower",),
        blocks=lambda tower: [families_module.Block(f"blocks.{i}", f"blocks.{i}.attn") for i in range(2)],
        taps=(families_module.Tap("qkv", read),),
        scale=lambda attention: 0.5,
        prefix_tokens=lambda tower: 3,
        queries={"cls": 0, "register": 1},
    )
    FAMILIES.register(family)
    torch.manual_seed(0)
    tower, states = TinyTower(), torch.randn(3, 10, 8)
    for query, token in (("cls", 0), ("register", 1)):
        with observe(tower, query=query, full_maps=True) as observation:
            tower(states)
        q, k, _ = tower.blocks[0]["attn"].qkv(states).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        full = torch.softmax(q @ k.mT / 2, -1)
        row = full[:, :, token]
        torch.testing.assert_close(
            observation.attention[0], row[..., 3:] / row[..., 3:].sum(-1, keepdim=True), rtol=0, atol=1e-6
        )
        torch.testing.assert_close(observation.cls_mass[0], row[..., :3].sum(-1), rtol=0, atol=1e-6)
        assert observation.rollout().shape == (3, 7)
