"""Losses on hidden states, embeddings and logits: against float64, with every teacher, alone and summed, and what they refuse."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from attndrift.losses import (
    L2SP,
    LDIFS,
    LOSSES,
    AttentionPreservation,
    EmbeddingCosine,
    EmbeddingMSE,
    EmbeddingSimilarity,
    EmbeddingView,
    HiddenView,
    Lipsum,
    LogitDistillation,
    PreservationLoss,
    PreservationLossError,
    ReferenceDistillation,
    SummedLoss,
    TeacherCache,
)
from attndrift.losses.lipsum import random_texts
from attndrift.models import load_model, prune_last_block_to_cls

TEXTS, REFERENCES = 4, 7


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def clip() -> Any:
    torch.manual_seed(0)
    return load_model("config:tiny").eval()


@pytest.fixture
def images() -> Tensor:
    return drawn(5, 3, 28, 28, seed=1)


def text_features() -> Tensor:
    return drawn(TEXTS, 32, seed=2)


def reference_images() -> Tensor:
    return drawn(REFERENCES, 3, 28, 28, seed=9)


def moved(model: nn.Module) -> None:
    for seed, parameter in enumerate(model.vision_model.parameters()):
        with torch.no_grad():
            parameter.add_(0.05 * drawn(*parameter.shape, seed=seed))


def embed(model: Any, images: Tensor) -> Tensor:
    return model.get_image_features(pixel_values=images).pooler_output


def class_states(model: Any, images: Tensor, layers: list[int]) -> list[Tensor]:
    return [model.vision_model(images, output_hidden_states=True).hidden_states[layer][:, 0] for layer in layers]


def unit(states: Tensor) -> Tensor:
    return states / states.pow(2).sum(-1, keepdim=True).sqrt()


def logits(model: Any, embeddings: Tensor, texts: Tensor) -> Tensor:
    return model.logit_scale.detach().double().exp() * unit(embeddings) @ unit(texts.double()).T


def divergence(now: Tensor, before: Tensor, temperature: float) -> Tensor:
    p, q = (before / temperature).softmax(-1), (now / temperature).softmax(-1)
    return temperature**2 * (p * (p / q).log()).sum(-1).mean()


def ldifs(layers: list[int]) -> Callable[[Any, Any, Tensor], Tensor]:
    def expected(now: Any, before: Any, images: Tensor) -> Tensor:
        pairs = zip(class_states(now, images, layers), class_states(before, images, layers), strict=True)
        return torch.stack([2 - 2 * (unit(a) * unit(b)).sum(-1) for a, b in pairs]).mean()

    return expected


def ldifs_of_all_tokens(now: Any, before: Any, images: Tensor) -> Tensor:
    """The published form: channels over the tokens."""
    kinds = []
    for model in (now, before):
        states = torch.stack(model.vision_model(images, output_hidden_states=True).hidden_states)
        kinds.append(states / states.pow(2).sum(2, keepdim=True).sqrt())
    return (kinds[0] - kinds[1]).pow(2).mean()


def by_embedding(compare: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Any, Tensor], Tensor]:
    return lambda now, before, images: compare(embed(now, images), embed(before, images))


def by_logits(texts: Callable[[Any], Tensor], compare: Callable[[Tensor, Tensor], Tensor]) -> Any:
    return lambda now, before, images: compare(
        logits(before, embed(now, images), texts(before)), logits(before, embed(before, images), texts(before))
    )


def lipsum_texts(model: Any) -> Tensor:
    tokens = random_texts(model, 80, 8, seed=0)
    return model.get_text_features(input_ids=tokens).pooler_output


Case = tuple[Callable[..., PreservationLoss], Callable[[Any, Any, Tensor], Tensor]]
CASES: dict[str, Case] = {
    "ldifs": (LDIFS, ldifs([0, 1, 2, 3])),
    "ldifs of two layers": (lambda *a, **k: LDIFS(*a, ldifs_layers="1,3", **k), ldifs([1, 3])),
    "ldifs of all tokens": (lambda *a, **k: LDIFS(*a, ldifs_tokens="all", **k), ldifs_of_all_tokens),
    "embedding_mse": (EmbeddingMSE, by_embedding(lambda a, b: (a - b).pow(2).mean())),
    "embedding_cosine": (EmbeddingCosine, by_embedding(lambda a, b: (1 - (unit(a) * unit(b)).sum(-1)).mean())),
    "embedding_similarity": (
        EmbeddingSimilarity,
        by_embedding(lambda a, b: (unit(a) @ unit(a).T - unit(b) @ unit(b).T).pow(2).mean()),
    ),
    "logit_distillation": (
        lambda *a, **k: LogitDistillation(*a, text_features=text_features(), **k),
        by_logits(lambda model: text_features(), lambda a, b: divergence(a, b, 2.0)),
    ),
    "logit_distillation at 1": (
        lambda *a, **k: LogitDistillation(*a, text_features=text_features(), distillation_temperature=1.0, **k),
        by_logits(lambda model: text_features(), lambda a, b: divergence(a, b, 1.0)),
    ),
    "lipsum": (Lipsum, by_logits(lipsum_texts, lambda a, b: 0.5 * (a - b).pow(2).mean())),
}
WITH_CASES = pytest.mark.parametrize("case", CASES)


def test_every_built_in_loss_has_an_independent_reference() -> None:
    elsewhere = {"attention_preservation", "entropy_floor", "l2_sp", "ewc", "reference_distillation"}
    assert {case.partition(" ")[0] for case in CASES} | elsewhere == set(LOSSES.names())


@WITH_CASES
def test_value_and_gradient(clip: Any, images: Tensor, case: str) -> None:
    make, formula = CASES[case]
    before = copy.deepcopy(clip).double()
    preserve = make(clip, 0.5)
    embed(clip, images)
    assert preserve(clip).item() == 0, "the first step is at the pretrained model"
    moved(clip)
    embed(clip, images)
    (loss := preserve(clip)).backward()
    exact = copy.deepcopy(clip).double()
    exact.zero_grad()
    expected = 0.5 * formula(exact, before, images.double())
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert loss.item() > 1e-4
    for (name, p), q in zip(clip.vision_model.named_parameters(), exact.vision_model.parameters(), strict=True):
        if q.grad is not None and name.partition(".")[0] != "post_layernorm":
            torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-3, atol=1e-6, msg=name)


@WITH_CASES
def test_all_teachers_agree(clip: Any, images: Tensor, case: str) -> None:
    make, _ = CASES[case]
    second = copy.deepcopy(clip)
    probe = make(clip, 1.0)
    probe.close()
    cache = TeacherCache(clip, images, view=probe.view, batch_size=2)
    losses = {"copy": make(clip, 1.0), "second": make(clip, 1.0, second), "cache": make(clip, 1.0, cache)}
    moved(clip)
    numbers = [3, 0, 4]
    values = {}
    for name, preserve in losses.items():
        embed(clip, torch.stack([images[3], images[0], images[4].flip(-1)]))
        for other in losses.values():
            if other is not preserve:
                other.skip()
        named = {"index": numbers, "flipped": [False, False, True]} if name == "cache" else {}
        values[name] = preserve(**named).item()
    assert values["second"] == pytest.approx(values["copy"], rel=1e-6)
    assert values["cache"] == pytest.approx(values["copy"], rel=1e-4)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("projection", ["frozen", "trained", "a trained copy", "frozen, pissa"])
@WITH_CASES
def test_adapters_are_held_to_the_bare_model(clip: Any, images: Tensor, case: str, projection: str) -> None:
    make, formula = CASES[case]
    before = copy.deepcopy(clip).double()
    targets = r".*vision_model.*\.(q_proj|v_proj)"
    start = "pissa" if "pissa" in projection else True
    copies = ["visual_projection"] if projection == "a trained copy" else None
    model = get_peft_model(
        clip, LoraConfig(r=2, target_modules=targets, modules_to_save=copies, init_lora_weights=start)
    )
    if projection == "trained":
        clip.visual_projection.requires_grad_(True)
    preserve = make(model, 1.0)
    with torch.no_grad():
        for seed, p in enumerate(p for p in model.parameters() if p.requires_grad):
            p.add_(0.3 * drawn(*p.shape, seed=seed))
    embed(model.get_base_model(), images)
    (loss := preserve(model)).backward()
    merged = copy.deepcopy(model).merge_and_unload().double()
    assert loss.item() == pytest.approx(formula(merged, before, images.double()).item(), rel=1e-3)
    assert loss.item() > 1e-5
    lora = [p for n, p in model.named_parameters() if "lora" in n]
    assert all(p.grad is not None for p in lora)


def reference_distillation(clip: Any, weight: float = 1.0, **options: Any) -> ReferenceDistillation:
    return ReferenceDistillation(clip, weight, images=reference_images(), text_features=text_features(), **options)


def test_reference_distillation_is_the_divergence_on_reference_images(clip: Any, images: Tensor) -> None:
    before = copy.deepcopy(clip).double()
    preserve = reference_distillation(clip, 0.5)
    assert preserve(clip).item() == 0
    moved(clip)
    numbers = [9, 3, 20]
    (loss := preserve(clip, index=numbers)).backward()
    exact = copy.deepcopy(clip).double()
    exact.zero_grad()
    chosen = reference_images()[[9 % REFERENCES, 3, 20 % REFERENCES]].double()
    now, then = (logits(before, embed(model, chosen), text_features()) for model in (exact, before))
    expected = 0.5 * divergence(now, then, 2.0)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for p, q in zip(clip.vision_model.parameters(), exact.vision_model.parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-3, atol=1e-6)


def test_reference_images_come_in_turn_and_disturb_no_other_loss(clip: Any, images: Tensor) -> None:
    apr, preserve = AttentionPreservation(clip, 1.0), reference_distillation(clip, images_a_step=REFERENCES)
    moved(clip)
    whole = preserve(clip).item()
    first, second = preserve(clip, images=3).item(), preserve(clip, images=4).item()
    assert whole == pytest.approx((3 * first + 4 * second) / 7, rel=1e-5), "3 images, then the other 4"
    embed(clip, images)
    alone = apr(clip).item()
    embed(clip, images)
    preserve(clip)
    assert apr(clip).item() == pytest.approx(alone), "the training's own pass, and not that of the reference images"


EVERY: dict[str, Callable[[Any], PreservationLoss]] = {
    **{case: (lambda model, make=make: make(model, 0.0)) for case, (make, _) in CASES.items()},
    "reference_distillation": lambda model: reference_distillation(model, 0.0),
    "l2_sp": lambda model: L2SP(model, 0.0),
    "a sum": lambda model: SummedLoss(L2SP(model, 0.0), LDIFS(model, 0.0)),
}


@pytest.mark.parametrize("name", EVERY)
def test_weight_zero_trains_exactly_as_without(clip: Any, images: Tensor, name: str) -> None:
    def trained(held: bool) -> dict[str, Tensor]:
        torch.manual_seed(1)
        model = copy.deepcopy(clip).train()
        preserve = EVERY[name](model) if held else None
        optimizer = torch.optim.AdamW([*model.vision_model.parameters(), *model.visual_projection.parameters()], 1e-2)
        for _ in range(2):
            loss = embed(model, images).square().mean()
            if preserve is not None:
                loss = loss + preserve(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model.state_dict()

    without = trained(False)
    for key, value in trained(True).items():
        assert torch.equal(value, without[key]), key


def test_a_sum_is_a_loss_like_any_other(clip: Any, images: Tensor) -> None:
    parts = L2SP(clip, 0.5), LDIFS(clip, 0.1), EmbeddingCosine(clip, 2.0)
    total = SummedLoss(*parts)
    assert total.weights == {"l2_sp": 0.5, "ldifs": 0.1, "embedding_cosine": 2.0}
    moved(clip)
    embed(clip, images)
    loss = total(clip)
    assert loss.item() == pytest.approx(sum(part.weight * part.last.item() for part in parts), rel=1e-6)
    total.weight = 2.0
    embed(clip, images)
    assert total(clip).item() == pytest.approx(2 * loss.item(), rel=1e-6)
    assert total.weights["l2_sp"] == 1.0
    total.close()
    with pytest.raises(PreservationLossError, match="closed"):
        parts[1](clip)


def test_a_sum_names_images_to_those_parts_that_know_them(clip: Any, images: Tensor) -> None:
    cache = TeacherCache(clip, images, view=EmbeddingView(), flips=False)
    total = SummedLoss(EmbeddingMSE(clip, 1.0, cache), L2SP(clip, 1.0), LDIFS(clip, 1.0))
    assert total.needs_index
    embed(clip, images[[2, 1]])
    assert total(clip, index=[2, 1]).item() == pytest.approx(0, abs=1e-9)


Made = Callable[[Any], Any]
IMPOSSIBLE: dict[str, tuple[Made, str]] = {
    "two teachers": (
        lambda clip: SummedLoss(EmbeddingMSE(clip, 1, copy.deepcopy(clip)), LDIFS(clip, 1, copy.deepcopy(clip))),
        "`teacher`: embedding_mse and ldifs have different teachers",
    ),
    "two models": (
        lambda clip: SummedLoss(L2SP(clip, 1), LDIFS(copy.deepcopy(clip), 1)),
        "ldifs holds another model than l2_sp",
    ),
    "one loss twice": (lambda clip: SummedLoss(L2SP(clip, 1), L2SP(clip, 2)), "`l2_sp` is in the sum twice"),
    "a negative weight": (lambda clip: LDIFS(clip, -1), "weight is -1; it must be at least 0"),
    "no such layer": (
        lambda clip: LDIFS(clip, 1, ldifs_layers="0,9"),
        "`ldifs_layers` names layer 9; the model has 3 blocks",
    ),
    "tokens of another kind": (lambda clip: LDIFS(clip, 1, ldifs_tokens="patches"), "`ldifs_tokens` is 'patches'"),
    "a cache of something else": (
        lambda clip: LDIFS(clip, 1, TeacherCache(clip, reference_images(), view=EmbeddingView())),
        "the cache holds embedding, and the loss compares hidden-quarters",
    ),
    "texts of another width": (
        lambda clip: reference_distillation(clip).__class__(
            clip, 1, images=reference_images(), text_features=torch.ones(2, 5)
        ),
        "text_features have 5 dimensions, and the image embeddings 32",
    ),
    "no texts": (lambda clip: LogitDistillation(clip, 1, text_features=torch.ones(0, 32)), r"shape \(0, 32\)"),
    "no reference images": (
        lambda clip: ReferenceDistillation(clip, 1, images=torch.ones(0, 3, 28, 28), text_features=text_features()),
        "no reference images",
    ),
    "texts that are too long": (lambda clip: Lipsum(clip, 1, lipsum_tokens=90), "`lipsum_tokens` is 90; .* at most 75"),
    "a model without a backbone": (lambda clip: EmbeddingMSE(clip.vision_model, 1), "is no backbone"),
    "the model as its own teacher": (lambda clip: EmbeddingMSE(clip, 1, clip), "the model in training itself"),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_what_cannot_be_is_refused_and_leaves_no_hook(clip: Any, kind: str) -> None:
    make, message = IMPOSSIBLE[kind]
    with pytest.raises(ValueError, match=message):
        make(clip)


def test_texts_are_random_and_the_same_each_time(clip: Any) -> None:
    tokens = random_texts(clip, 50, 8)
    config = clip.config.text_config
    assert tokens.shape == (50, 10)
    assert torch.equal(tokens, random_texts(clip, 50, 8))
    assert not torch.equal(tokens, random_texts(clip, 50, 8, seed=1))
    assert (tokens[:, 0] == config.bos_token_id).all()
    assert (tokens[:, -1] == config.eos_token_id).all()
    assert not torch.isin(tokens[:, 1:-1], torch.tensor([config.bos_token_id, config.eos_token_id])).any()
    assert len(tokens[:, 1:-1].unique()) > 20


def test_hidden_states_of_any_observed_tower(clip: Any, images: Tensor) -> None:
    """LDIFS needs no registered backbone."""
    tower = clip.vision_model
    preserve = LDIFS(tower, 1.0)
    moved(clip)
    tower(images)
    assert preserve().item() > 1e-4
    assert len({HiddenView(*one).name for one in (("quarters",), ("0,3",), ("quarters", "all"))}) == 3


def test_all_tokens_of_a_last_block_that_has_one_are_refused(clip: Any, images: Tensor) -> None:
    prune_last_block_to_cls(clip)
    preserve = LDIFS(clip, 1.0, ldifs_tokens="all")
    with pytest.raises(PreservationLossError, match="`ldifs_tokens` is all, and the last block"):
        embed(clip, images)
    preserve.close()
    early = LDIFS(clip, 1.0, ldifs_tokens="all", ldifs_layers="0,2")
    embed(clip, images)
    assert early(clip).item() == 0


@WITH_CASES
def test_gradient_checkpointing_changes_nothing(clip: Any, images: Tensor, case: str) -> None:
    make, _ = CASES[case]
    preserve = make(clip, 1.0)
    moved(clip)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            clip.train().activation_checkpointing_enable({"use_reentrant": False})
        clip.zero_grad()
        embed(clip, images)
        preserve(clip).backward()
        gradients.append(clip.vision_model.encoder.layers[0].mlp.fc1.weight.grad.clone())
    torch.testing.assert_close(*gradients)
