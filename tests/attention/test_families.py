"""Every family: what is observed equals its own eager maps, in every mode, and the model is left as it was.

One row of ``CASES`` a model class. Families of libraries that are not installed are skipped, saying so.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from attndrift.attention import ObservationError, find_vision_tower, observe
from attndrift.drift import DriftMonitor
from attndrift.models.embedding import image_embeddings
from timm_stand_in import Eva

IMAGES, WIDTH, LAYERS, HEADS, SIDE = 3, 24, 2, 3, 3
SIZE = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
VISION = SIZE | {"image_size": 12, "patch_size": 4}


@dataclass(frozen=True)
class Case:
    """A model class.

    ``maps`` are the model's own full maps, (images, heads, queries, tokens) a block, then the pooling
    head's if it has one; ``embedding`` says what the image embedding must be.
    """

    name: str
    family: str
    make: Callable[[], nn.Module]
    block: str
    prefix: int = 1
    queries: tuple[str, ...] = ("cls", "patches")
    pool_prefix: int = 0
    library: str = "transformers"
    lora: tuple[str, ...] = ("q_proj", "k_proj")
    checkpointing: bool = True
    embedding: Callable[[nn.Module, torch.Tensor], torch.Tensor] | None = None
    flexible: bool = False
    # A wrapper of a tower that has its own row: only its tower and its embedding are checked.
    wrapper: bool = False
    maps: Callable[..., list[torch.Tensor]] = field(default=lambda case, model, inputs: eager_maps(case, model, inputs))


def hf(name: str, **settings: Any) -> Callable[[], nn.Module]:
    """A model of transformers made from a tiny configuration."""

    def make() -> nn.Module:
        cls = getattr(transformers, name)
        config = cls.config_class
        if "vision_config" in config.sub_configs:
            text = SIZE | {"vocab_size": 40, "max_position_embeddings": 8, "projection_size": WIDTH}
            text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
            return cls(config(vision_config=VISION | settings, text_config=text, projection_dim=20))
        return cls(config(**VISION, **settings))

    return make


def timm_model(model: str = "vit_tiny_patch16_224", **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        size = {"img_size": 12, "patch_size": 4, "embed_dim": WIDTH, "depth": LAYERS, "num_heads": HEADS}
        return timm.create_model(model, num_classes=5, **(size | settings))

    return make


def open_clip_model(*, batch_first: bool = True, timm_tower: bool = False, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import open_clip
        from open_clip.transformer import Transformer

        vision = {"image_size": 12, "patch_size": 4, "width": WIDTH, "layers": LAYERS, "head_width": WIDTH // HEADS}
        if timm_tower:
            vision = {
                "image_size": 224,
                "timm_model_name": "vit_tiny_patch16_224",
                "timm_pool": "",
                "timm_proj": "linear",
            }
        text = {"context_length": 6, "vocab_size": 40, "width": WIDTH, "heads": HEADS, "layers": 1}
        model = open_clip.CLIP(16, vision | settings, text)
        if not batch_first:
            old, model.visual.transformer = (
                model.visual.transformer,
                Transformer(WIDTH, LAYERS, HEADS, batch_first=False),
            )
            model.visual.transformer.load_state_dict(old.state_dict())
        return model

    return make


def eager_maps(case: Case, model: nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """From ``output_attentions=True`` under eager attention; a pooling head's from torch's own module."""
    inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    inner.set_attn_implementation("eager")
    tower = find_vision_tower(inner).module
    pooled: list[torch.Tensor] = []
    handles = []
    if "probe" in case.queries:
        head = tower.head.attention

        def keep(module, args, kwargs):
            handle = handles.pop()
            handle.remove()
            kwargs = dict(kwargs) | {"need_weights": True, "average_attn_weights": False}
            pooled.append(module(*args, **kwargs)[1])

        handles.append(head.register_forward_pre_hook(keep, with_kwargs=True))
    torch.manual_seed(0)
    attentions = tower(**inputs, output_attentions=True).attentions
    assert len(attentions) == LAYERS
    return [*attentions, *pooled]


def softmax_outputs(case: Case, model: nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Every softmax that the unfused model computes."""
    from torch.overrides import TorchFunctionMode

    seen: list[torch.Tensor] = []

    class Softmax(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if getattr(function, "__name__", "") == "softmax":
                seen.append(result)
            return result

    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with Softmax():
        call(case, model, inputs)
    return seen


def multihead_maps(case: Case, model: nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """From ``torch.nn.MultiheadAttention``, asked for its weights."""
    seen: list[torch.Tensor] = []
    busy: list[bool] = []

    def keep(module, args, kwargs):
        if not busy:
            busy.append(True)
            kwargs = dict(kwargs) | {"need_weights": True, "average_attn_weights": False}
            seen.append(module(*args, **kwargs)[1])
            busy.clear()

    visual = model.visual if hasattr(model, "visual") else model.get_base_model().visual
    for module in visual.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_pre_hook(keep, with_kwargs=True)
    call(case, model, inputs)
    return seen


def normalised_maps(case: Case, model: nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """open_clip's own attention, written out: its unfused branch does not run."""
    seen: list[torch.Tensor] = []

    def keep(module, args, kwargs):
        q, k, _ = nn.functional.linear(args[0], module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
        q, k = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k))
        seen.append(torch.softmax(module.ln_q(q) * module.scale @ module.ln_k(k).mT, -1))

    for block in model.visual.transformer.resblocks:
        block.attn.register_forward_pre_hook(keep, with_kwargs=True)
    call(case, model, inputs)
    return seen


def hf_case(name: str, family: str, cls: str, block: str, **settings: Any) -> Case:
    fields = {key: settings.pop(key) for key in list(settings) if key in Case.__dataclass_fields__}
    return Case(name, family, hf(cls, **settings), block, **fields)


def timm_case(name: str, prefix: int, queries: tuple[str, ...], pool_prefix: int = 0, **settings: Any) -> Case:
    lora = settings.pop("lora", ("qkv",))
    eva = "rope" in str(settings) or any(part in settings.get("model", "") for part in ("eva", "pe_core", "dinov3"))
    return Case(
        f"timm-{name}",
        "eva" if eva else "timm",
        timm_model(**settings),
        "EvaBlock" if eva else "Block",
        prefix,
        queries,
        pool_prefix,
        library="timm",
        lora=lora,
        maps=softmax_outputs,
        embedding=lambda model, pixels: model.forward_head(model.forward_features(pixels), pre_logits=True),
    )


def open_clip_case(name: str, maps: Any = multihead_maps, **settings: Any) -> Case:
    fields = {key: settings.pop(key) for key in list(settings) if key in Case.__dataclass_fields__}
    return Case(
        f"open_clip-{name}",
        "open_clip",
        open_clip_model(**settings),
        "CustomResidualAttentionBlock" if maps is normalised_maps else "ResidualAttentionBlock",
        library="open_clip",
        # peft takes neither the custom module nor a pooling head of two widths.
        lora=() if maps is normalised_maps or "attentional_pool" in settings else ("attn",),
        maps=maps,
        # Its checkpointing hands the custom block more arguments than that takes.
        checkpointing=maps is not normalised_maps,
        embedding=lambda model, pixels: model.encode_image(pixels),
        **fields,
    )


def pooler(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=pixels).pooler_output


def class_token(name: str) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    return lambda model, pixels: getattr(model, name)(pixel_values=pixels).last_hidden_state[:, 0]


def with_mean(name: str, prefix: int) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    def embed(model, pixels):
        states = getattr(model, name)(pixel_values=pixels).last_hidden_state
        return torch.cat([states[:, 0], states[:, prefix:].mean(1)], 1)

    return embed


def features(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return model.get_image_features(pixel_values=pixels).pooler_output


SIGLIP = {"prefix": 0, "queries": ("probe", "patches")}
FLEXIBLE = SIGLIP | {"flexible": True, "num_patches": SIDE * SIDE}
REGISTERS = {"prefix": 5, "num_register_tokens": 4}

CASES = (
    hf_case("clip", "clip", "CLIPModel", "CLIPEncoderLayer", embedding=features),
    hf_case("siglip", "siglip", "SiglipModel", "SiglipEncoderLayer", **SIGLIP, embedding=features),
    hf_case(
        "siglip-vision", "siglip", "SiglipVisionModel", "SiglipEncoderLayer", **SIGLIP, embedding=pooler, wrapper=True
    ),
    hf_case(
        "siglip-headless",
        "siglip",
        "SiglipVisionModel",
        "SiglipEncoderLayer",
        prefix=0,
        queries=("patches",),
        vision_use_head=False,
        embedding=lambda model, pixels: model(pixel_values=pixels).last_hidden_state.mean(1),
    ),
    hf_case("siglip2", "siglip", "Siglip2Model", "Siglip2EncoderLayer", **FLEXIBLE),
    hf_case("vit", "vit", "ViTModel", "ViTLayer", embedding=pooler),
    hf_case(
        "vit-classifier", "vit", "ViTForImageClassification", "ViTLayer", embedding=class_token("vit"), wrapper=True
    ),
    hf_case(
        "deit", "deit", "DeiTModel", "DeiTLayer", prefix=2, queries=("cls", "distillation", "patches"), embedding=pooler
    ),
    hf_case("dinov2", "dinov2", "Dinov2Model", "Dinov2Layer", embedding=pooler),
    hf_case(
        "dinov2-classifier",
        "dinov2",
        "Dinov2ForImageClassification",
        "Dinov2Layer",
        embedding=with_mean("dinov2", 1),
        wrapper=True,
    ),
    hf_case(
        "dinov2-registers",
        "dinov2",
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersLayer",
        **REGISTERS,
        embedding=pooler,
    ),
    hf_case("dinov3", "dinov3", "DINOv3ViTModel", "DINOv3ViTLayer", **REGISTERS, embedding=pooler),
    hf_case("beit", "beit", "BeitModel", "BeitLayer", use_relative_position_bias=True, embedding=pooler),
    hf_case("beit-shared", "beit", "BeitModel", "BeitLayer", use_shared_relative_position_bias=True, embedding=pooler),
    hf_case(
        "beit-classifier",
        "beit",
        "BeitForImageClassification",
        "BeitLayer",
        use_relative_position_bias=True,
        embedding=lambda model, pixels: model.beit(pixel_values=pixels).pooler_output,
        wrapper=True,
    ),
    timm_case("vit", 1, ("cls", "patches")),
    timm_case("norms-registers", 5, ("cls", "patches"), qk_norm=True, reg_tokens=4),
    timm_case("average", 0, ("patches",), class_token=False, global_pool="avg"),
    timm_case("map", 0, ("probe", "patches"), class_token=False, global_pool="map"),
    timm_case("map-cls", 1, ("probe", "cls", "patches"), global_pool="map"),
    timm_case("distilled", 2, ("cls", "distillation", "patches"), model="deit_tiny_distilled_patch16_224"),
    # Where the bias stands apart, the weight of `qkv` is multiplied and not the layer called: no adapter in it takes part.
    timm_case("eva02", 1, ("cls", "patches"), model="eva02_tiny_patch14_224", lora=()),
    timm_case(
        "eva02-split",
        1,
        ("cls", "patches"),
        model="eva02_tiny_patch14_224",
        qkv_fused=False,
        lora=("q_proj", "k_proj"),
    ),
    timm_case("perception-encoder", 1, ("probe", "cls", "patches"), 1, model="vit_pe_core_tiny_patch16_384"),
    timm_case("dinov3", 5, ("cls", "patches"), model="vit_small_patch16_dinov3"),
    timm_case("dinov3-bias", 5, ("cls", "patches"), model="vit_small_patch16_dinov3_qkvb", lora=()),
    timm_case("rope-mixed", 1, ("cls", "patches"), model="vit_small_patch16_rope_mixed_224"),
    timm_case("rope-register", 1, ("patches",), model="vit_medium_patch16_rope_reg1_gap_256", lora=()),
    timm_case(
        "rope-grouped",
        1,
        ("cls", "patches"),
        model="vit_small_patch16_rope_224",
        lora=("q_proj", "k_proj"),
        qk_norm=True,
        qkv_fused=False,
        num_kv_heads=1,
    ),
    open_clip_case("clip"),
    open_clip_case("sequence-first", batch_first=False),
    open_clip_case("custom", normalised_maps, qk_norm=True),
    open_clip_case(
        "coca", queries=("probe", "cls", "patches"), pool_prefix=1, attentional_pool=True, attn_pooler_heads=2
    ),
)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def any_case(request: pytest.FixtureRequest) -> Case:
    needs(request.param.library)
    return request.param


@pytest.fixture(params=[case for case in CASES if not case.wrapper], ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    needs(request.param.library)
    return request.param


def needs(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f'{library} is not installed (pip install "attndrift[{library}]"), so its towers are not tested')


def make(case: Case) -> nn.Module:
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = case.make()
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            # Initial biases, position tables and layer scales are 0 or tiny, and attention nearly uniform: a
            # wrong row would then pass.
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (1.0 if "relative_position" in name else 0.1))
            if any(part in name for part in ("q_proj", "k_proj", "qkv", "in_proj", "attn_pool.q", "attn_pool.kv")):
                parameter.mul_(2)
    return model.eval()


def inputs_of(case: Case) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    if not case.flexible:
        return {"pixel_values": torch.randn(IMAGES, 3, 12, 12, generator=generator)}
    # The second image has 3 x 2 patches, and three of padding.
    mask = torch.ones(IMAGES, SIDE * SIDE, dtype=torch.long)
    mask[1, 6:] = 0
    return {
        "pixel_values": torch.randn(IMAGES, SIDE * SIDE, 48, generator=generator),
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([[SIDE, SIDE], [3, 2], [SIDE, SIDE]]),
    }


def call(case: Case, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    # In training BEiT drops paths and DINOv3 rescales its positions, at random.
    torch.manual_seed(0)
    if case.library == "timm":
        return model(inputs["pixel_values"])
    if case.library == "open_clip":
        return model.encode_image(inputs["pixel_values"])
    if hasattr(model, "get_image_features"):
        return model.get_image_features(**inputs).pooler_output
    output = model(**inputs)
    for name in ("logits", "pooler_output", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    raise AssertionError(type(output))


def rows(case: Case, maps: list[torch.Tensor], query: str, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What the query's rows must be, from full maps: one row a layer, (images, heads, tokens)."""
    if query == "probe":
        return [maps[LAYERS][:, :, 0]]
    maps = maps[:LAYERS]
    if query == "patches":
        if case.flexible:
            valid = inputs["pixel_attention_mask"][:, None, :, None].float()
            return [(full * valid).sum(2) / valid.sum(2) for full in maps]
        return [full[:, :, case.prefix :].mean(2) for full in maps]
    return [full[:, :, {"cls": 0, "distillation": 1}[query]] for full in maps]


def structure_loss(attention: list[torch.Tensor], mass: list[torch.Tensor]) -> torch.Tensor:
    total = torch.zeros(())
    for layer, (a, m) in enumerate(zip(attention, mass, strict=True)):
        weights = torch.sin(torch.arange(a[0].numel(), dtype=a.dtype)).view(a[0].shape)
        total = total + (layer + 1) * ((a * weights).sum() + (m**2).sum())
    return total


def state(model: nn.Module) -> dict[str, Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks += ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
    return {
        "hooks": [len(getattr(module, kind)) for module in model.modules() for kind in hooks],
        "training": [module.training for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "values": {name: value.clone() for name, value in model.state_dict().items()},
    }


def assert_restored(model: nn.Module, before: dict[str, Any]) -> None:
    after = state(model)
    assert after.pop("values").keys() == before["values"].keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before["values"][name]), name
    assert after == {key: value for key, value in before.items() if key != "values"}


def split(case: Case, query: str, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    prefix = case.pool_prefix if query == "probe" else case.prefix
    kept = row[..., prefix:]
    return kept / kept.sum(-1, keepdim=True), row[..., :prefix].sum(-1)


def assert_seen(case: Case, query: str, expected: list[torch.Tensor], observation: Any) -> None:
    assert observation.query == query
    assert observation.prefix_tokens == (case.pool_prefix if query == "probe" else case.prefix)
    for row, attention, logs, mass in zip(
        expected, observation.attention, observation.log_attention, observation.cls_mass, strict=True
    ):
        patches, dropped = split(case, query, row)
        torch.testing.assert_close(attention, patches, rtol=0, atol=1e-5)
        torch.testing.assert_close(logs.exp(), patches, rtol=0, atol=1e-5)
        torch.testing.assert_close(mass, dropped, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_equals_the_eager_maps_and_restores_the_model(case: Case, training: bool) -> None:
    model, inputs = make(case).train(training), inputs_of(case)
    with torch.no_grad():
        maps = case.maps(case, copy.deepcopy(model), inputs)
    # The reference can tell a query from its neighbour.
    assert (maps[0][:, :, 0] - maps[0][:, :, 1]).abs().max() > 0.02
    before, plain = state(model), call(case, model, inputs)
    outputs: list[torch.Tensor] = []
    handles = [
        module.register_forward_hook(lambda module, args, output: outputs.append(output))
        for module in find_vision_tower(model).module.modules()
        if type(module).__name__ == case.block
    ]
    call(case, model, inputs)
    for handle in handles:
        handle.remove()
    assert len(outputs) == LAYERS
    for query in (None, *case.queries):
        with observe(model, hidden=True, full_maps=True, query=query) as observation:
            during = call(case, model, inputs)
        query = query or case.queries[0]
        assert observation.family == case.family
        assert len(observation.layers) == (1 if query == "probe" else LAYERS)
        assert len(observation.cls_hidden) == len(observation.blocks) == LAYERS
        assert_seen(case, query, rows(case, maps, query, inputs), observation)
        for full, expected in zip(
            observation.full_maps, maps[LAYERS:] if query == "probe" else maps[:LAYERS], strict=True
        ):
            torch.testing.assert_close(full, expected, rtol=0, atol=1e-5)
        for states, hidden in zip(outputs, observation.cls_hidden, strict=True):
            states = states.transpose(0, 1) if case.name.endswith("sequence-first") else states
            if query in ("probe", "patches"):
                own = states[:, case.prefix :]
                expected = own.mean(1)
                if case.flexible:
                    valid = inputs["pixel_attention_mask"][..., None]
                    expected = (own * valid).sum(1) / valid.sum(1)
            else:
                expected = states[:, ("cls", "distillation").index(query)]
            torch.testing.assert_close(hidden, expected.detach(), rtol=0, atol=1e-6)
        assert_restored(model, before)
        assert torch.equal(plain, during)


def test_any_token_can_be_the_query(case: Case) -> None:
    model, inputs = make(case), inputs_of(case)
    with torch.no_grad():
        maps = case.maps(case, copy.deepcopy(model), inputs)
    for token in (case.prefix + 1, -2):
        with observe(model, query=token) as observation:
            call(case, model, inputs)
        assert_seen(case, f"token {token}", [full[:, :, token] for full in maps[:LAYERS]], observation)
    with observe(model, query=99), pytest.raises(ObservationError, match="there is no token 99"):
        call(case, model, inputs)
    with pytest.raises(ObservationError, match=rf"`{case.family}` has no `nobody`; it has {case.queries[0]}"):
        observe(model, query="nobody")


@pytest.mark.parametrize("checkpointed", [False, True], ids=["stored", "checkpointed"])
def test_gradients_equal_those_through_eager_maps(case: Case, checkpointed: bool) -> None:
    if checkpointed and not case.checkpointing:
        pytest.skip("the model has no gradient checkpointing that runs")
    inputs = inputs_of(case)
    for query in case.queries:
        model = make(case).train()
        other = copy.deepcopy(model)
        maps = case.maps(case, other, inputs)
        loss = structure_loss(*zip(*(split(case, query, row) for row in rows(case, maps, query, inputs)), strict=True))
        loss.backward()
        if checkpointed:
            if hasattr(model, "activation_checkpointing_enable"):
                model.activation_checkpointing_enable({"use_reentrant": False})
            elif case.library == "transformers":
                model.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                model.set_grad_checkpointing()
        with observe(model, gradients=True, query=query) as observation:
            output = call(case, model, inputs)
            got = structure_loss(observation.attention, observation.cls_mass)
        torch.testing.assert_close(got, loss, rtol=1e-5, atol=1e-5)
        # After the context, with the model's own graph in it: recomputation must not miss anything.
        (got + 0 * output.sum()).backward()
        expected = {
            name: p.grad for name, p in other.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
        }
        assert expected
        own = dict(model.named_parameters())
        for name, value in expected.items():
            torch.testing.assert_close(
                own[name].grad,
                value,
                rtol=0,
                atol=3e-5 * max(1.0, float(value.abs().max())),
                msg=lambda m, n=name: f"{n}: {m}",
            )


def test_adapters_count(case: Case) -> None:
    if not case.lora:
        pytest.skip("the model has no modules that peft can adapt")
    inputs = inputs_of(case)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=list(case.lora), init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        model = peft.get_peft_model(make(case), config).eval()
    with torch.no_grad():
        maps = case.maps(case, copy.deepcopy(model), inputs)
        with observe(model) as observation:
            call(case, model, inputs)
        active = observation.attention[0]
        query = case.queries[0]
        assert_seen(case, query, rows(case, maps, query, inputs), observation)
        with model.disable_adapter(), observe(model) as observation:
            call(case, model, inputs)
    assert (active - observation.attention[0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            case.name,
            # Compiling takes seconds a model.
            marks=() if case.name == "timm-map" else pytest.mark.slow,
        )
        for case in CASES
        if not case.wrapper
    ],
)
def test_compiled_while_observed(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    needs(case.library)
    torch._dynamo.reset()
    model, inputs = make(case), inputs_of(case)
    tower = find_vision_tower(model).module
    arguments = (inputs["pixel_values"],) if case.library != "transformers" else ()
    named = {} if arguments else inputs
    with torch.no_grad():
        with observe(model) as expected:
            tower(*arguments, **named)
        before = state(model)
        with observe(model) as observation:
            torch.compile(tower, backend="eager")(*arguments, **named)
        for one, other in zip(observation.attention, expected.attention, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    # torch notes on the model itself that it was compiled, and Lightning, once imported, with what arguments.
    for module in model.modules():
        for note in ("_is_torch_compile", "_compile_kwargs"):
            vars(module).pop(note, None)
    assert_restored(model, before)
    torch._dynamo.reset()


def test_monitored_with_its_own_embeddings(any_case: Case) -> None:
    case = any_case
    model = make(case)
    pixels = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    embedded = image_embeddings(model, pixels)
    assert embedded.shape[0] == 8
    assert embedded.dim() == 2
    if case.embedding is not None:
        torch.testing.assert_close(embedded, case.embedding(model, pixels), rtol=0, atol=1e-6)
    monitor = DriftMonitor(model, pixels, batch_size=5)
    assert monitor.measure().embedding_drift == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("q_proj", "qkv", "in_proj_weight")):
                parameter.mul_(1.5)
    drift = monitor.measure()
    assert drift.compared["cka"].shape == (LAYERS,)
    assert drift.weight_drift is not None
    assert drift.weight_drift > 0
    assert drift.entropy_change_pct != 0
    assert drift.embedding_drift > 0


TEXT = SIZE | {"vocab_size": 40, "max_position_embeddings": 8}
IDS = torch.tensor([[1, 7, 9, 30, 30, 30, 30, 30], [1, 4, 5, 6, 8, 11, 30, 12], [1, 30, 5, 5, 5, 5, 5, 5]])
PADDING = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0], [1] * 8, [0, 0, 1, 1, 1, 1, 1, 1]])


def text_model(name: str, **settings: Any) -> nn.Module:
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    model = cls(cls.config_class(**(TEXT | settings))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole", "padded"])
@pytest.mark.parametrize(
    ("name", "query", "tokens"),
    [
        # The first end of text; where padding has the same number, not the last.
        ("CLIPTextModel", "end_of_text", [3, 6, 1]),
        ("CLIPTextModel", "last", [7, 7, 7]),
        ("SiglipTextModel", "last", [7, 7, 7]),
        ("BertModel", "cls", [0, 0, 0]),
        ("RobertaModel", 2, [2, 2, 2]),
    ],
)
def test_text_encoders_with_their_masks(name, query, tokens, padding, implementation) -> None:
    settings = {"eos_token_id": 30, "bos_token_id": 1, "pad_token_id": 0}
    model = text_model(name, **(settings | ({"max_position_embeddings": 12} if name == "RobertaModel" else {})))
    inputs = {"input_ids": IDS} if padding is None else {"input_ids": IDS, "attention_mask": padding}
    other = copy.deepcopy(model)
    other.set_attn_implementation("eager")
    output = other(**inputs, output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation(implementation)
    before = state(model)
    with observe(model, query=query, hidden=True, full_maps=True) as observation:
        model(**inputs)
    assert_restored(model, before)
    assert observation.prefix_tokens == 0
    own = torch.tensor(tokens)
    # A row that may attend nothing at all (causal, behind left padding) means nothing.
    real = torch.ones(3, dtype=torch.bool) if padding is None else padding[torch.arange(3), own].bool()
    for layer, full in enumerate(output.attentions):
        row = full[torch.arange(3), :, own]
        torch.testing.assert_close(observation.attention[layer][real], row[real], rtol=0, atol=1e-5)
        assert torch.isfinite(observation.log_attention[layer]).all()
        expected = output.hidden_states[layer + 1][torch.arange(3), own]
        torch.testing.assert_close(observation.cls_hidden[layer][real], expected[real], rtol=0, atol=1e-5)
        torch.testing.assert_close(observation.full_maps[layer][1], full[1], rtol=0, atol=1e-5)
    if name == "CLIPTextModel" and padding is None and query == "end_of_text":
        assert observation.attention[0][0, :, 4:].abs().max() == 0
    with pytest.raises(ObservationError, match="rollout follows the class token"):
        observation.rollout()


def test_a_text_encoder_needs_its_query_named() -> None:
    model = hf("CLIPModel")()
    with pytest.raises(ObservationError, match=r"CLIPTextModel holds no vision .*query is named: `end_of_text`"):
        observe(model.text_model)
    with pytest.raises(ObservationError, match="`clip_text` has no `cls`; it has end_of_text, last"):
        observe(model.text_model, query="cls")
    with pytest.raises(ObservationError, match="decoder form"):
        observe(text_model("BertModel", is_decoder=True), query="cls")


def test_one_model_holds_one_vision_tower() -> None:
    for name in ("CLIPModel", "SiglipModel"):
        assert find_vision_tower(hf(name)()).name == "vision_model"


def test_models_that_cannot_be_observed_say_why() -> None:
    swin = transformers.SwinModel(
        transformers.SwinConfig(image_size=16, patch_size=2, embed_dim=12, depths=[1], num_heads=[2], window_size=2)
    )
    with pytest.raises(ObservationError, match=r"SwinModel holds no vision .*DINOv3.*timm.*inside windows"):
        observe(swin)


def test_timm_models_that_cannot_be_observed_say_why() -> None:
    needs("timm")
    import timm

    size = {"img_size": 28, "embed_dim": WIDTH, "depth": 1, "num_heads": HEADS}
    with pytest.raises(ObservationError, match="`Beit` adds a relative position bias"):
        observe(timm.create_model("beit_base_patch16_224", **(size | {"img_size": 32})))
    from timm.models.vision_transformer import ParallelScalingBlock

    parallel = timm_model(block_fn=ParallelScalingBlock)()
    with pytest.raises(ObservationError, match="its block 0 is a `ParallelScalingBlock`"):
        observe(parallel)
    differential = timm_model(attn_layer="diff", embed_dim=24, num_heads=2)()
    with pytest.raises(ObservationError, match="its block 0 is a `Block` with `DiffAttention`"):
        observe(differential)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("half", [False, True], ids=["pairs", "halves"])
def test_rotary_positions_of_timm_are_seen_without_timm(bias: bool, half: bool) -> None:
    torch.manual_seed(0)
    model = Eva(5, bias=bias, half=half).eval()
    for query, token in (("cls", 0), ("token", 4)):
        with torch.no_grad(), observe(model, full_maps=True, query=query if token == 0 else token) as observation:
            model(torch.randn(2, 3, 12, 12))
        assert observation.family == "eva"
        for block, attention, full in zip(model.blocks, observation.attention, observation.full_maps, strict=True):
            patches = block.attn.map[:, :, token, 1:]
            torch.testing.assert_close(attention, patches / patches.sum(-1, keepdim=True), rtol=0, atol=1e-6)
            torch.testing.assert_close(full, block.attn.map, rtol=0, atol=1e-6)


def test_open_clip_models_that_cannot_be_observed_say_why() -> None:
    needs("open_clip")
    with pytest.raises(
        ObservationError, match="`visual` of CLIP cannot be observed: its block 0 attends by scaled cosine"
    ):
        observe(open_clip_model(scaled_cosine_attn=True)())


def test_towers_of_open_clip_from_timm_are_those_of_timm() -> None:
    needs("open_clip")
    model = open_clip_model(timm_tower=True)().eval()
    with torch.no_grad(), observe(model) as observation:
        model.encode_image(torch.randn(1, 3, 224, 224))
    assert (observation.family, observation.query) == ("timm", "cls")
    assert observation.layers[0] == "visual.trunk.blocks.0.attn"
    assert observation.attention[0].shape == (1, 3, 196)


def test_what_a_model_puts_out_is_not_taken_for_its_embedding() -> None:
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = hf("ViTModel")()
            self.head = nn.Linear(WIDTH, 2)

        def forward(self, pixel_values):
            return self.head(self.vit(pixel_values=pixel_values).pooler_output)

    class OfOtherArguments(Logits):
        def forward(self, images, labels):
            return nn.functional.cross_entropy(super().forward(images), labels)

    pixels = torch.randn(2, 3, 12, 12)
    for model in (Logits(), OfOtherArguments(), hf("ViTForMaskedImageModeling", encoder_stride=4)()):
        model.eval()
        torch.testing.assert_close(image_embeddings(model, pixels), image_embeddings(model.vit, pixels))


def test_both_classifiers_of_a_distilled_model_are_looked_at() -> None:
    model = hf("DeiTForImageClassificationWithTeacher")().eval()
    pixels = torch.randn(2, 3, 12, 12)
    states = model.deit(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(image_embeddings(model, pixels), states[:, :2].flatten(1), rtol=0, atol=1e-6)


def test_images_are_cut_into_patches_as_the_processor_does() -> None:
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    from attndrift.models.embedding import _inputs

    model = hf("Siglip2Model", num_patches=9)()
    pixels = torch.randn(2, 3, 12, 8)
    inputs = _inputs(model, pixels)
    for image, patches in zip(pixels, inputs["pixel_values"], strict=True):
        expected = torch.from_numpy(convert_image_to_patches(image.numpy(), 4))
        torch.testing.assert_close(patches, expected, rtol=0, atol=0)
    assert inputs["spatial_shapes"].tolist() == [[3, 2], [3, 2]]
    with pytest.raises(ValueError, match="13 x 12 pixels cannot be cut"):
        image_embeddings(model, torch.randn(1, 3, 13, 12))
