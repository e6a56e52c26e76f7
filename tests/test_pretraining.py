"""The parts of the pretraining script: its loss, its order, its optimiser, and the patches it leaves out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import pretrain_embedded as script
from pretraining import captions, network, pictures
from pretraining.optimiser import Trainer, orthogonal


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return captions.train_tokenizer(["red striped heart", "maple tree"], merges=200)


@pytest.fixture(scope="module")
def model(tokenizer: CLIPTokenizer) -> CLIPModel:
    torch.manual_seed(0)
    return network.build(tokenizer, width=32, depth=2, heads=4).eval()


def unit(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 8, generator=generator, dtype=torch.float64), dim=1)


def test_all_images_of_a_class_are_positives_of_its_caption() -> None:
    images, texts, scale = unit(4, 0), unit(3, 1), torch.tensor(5.0, dtype=torch.float64)
    image_class, text_class = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 2])
    none, coarse = torch.full((4,), -1), torch.zeros(3, dtype=torch.bool)
    loss, right = script.contrast(images, texts, scale, image_class, text_class, none, coarse)
    logits = (scale * images @ texts.T).numpy()
    rows = np.log(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    columns = np.log(np.exp(logits) / np.exp(logits).sum(axis=0, keepdims=True))
    to_text = -(rows[0, 0] + rows[1, 0] + rows[2, 1] + rows[3, 2]) / 4
    to_image = -((columns[0, 0] + columns[1, 0]) / 2 + columns[2, 1] + columns[3, 2]) / 3
    assert float(loss) == pytest.approx((to_text + to_image) / 2, rel=1e-6)
    assert right == pytest.approx(float((logits.argmax(axis=1) == np.array([0, 0, 1, 2])).mean()))


def test_a_finer_caption_of_the_same_class_counts_neither_for_nor_against() -> None:
    images, scale = unit(2, 0), torch.tensor(5.0, dtype=torch.float64)
    image_class, text_class = torch.tensor([0, 1]), torch.tensor([0, 1, 0, 0])
    own, fine = torch.tensor([2, -1]), torch.tensor([False, False, True, True])
    losses = []
    for seed in (1, 2):
        texts = torch.cat([unit(3, 7), unit(1, seed)]).requires_grad_()
        # Only image 0 has the class of the last caption, so moving that one must not move its loss.
        loss, _ = script.contrast(images[:1], texts, scale, image_class[:1], text_class, own[:1], fine)
        loss.backward()
        losses.append(float(loss.detach()))
        assert texts.grad is not None
        assert float(texts.grad[3].abs().sum()) == 0
        assert float(texts.grad[2].abs().sum()) > 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    # For an image of another class it is a negative like any other.
    texts = torch.cat([unit(3, 7), unit(1, 1)]).requires_grad_()
    script.contrast(images, texts, scale, image_class, text_class, own, fine)[0].backward()
    assert texts.grad is not None
    assert float(texts.grad[3].abs().sum()) > 0


def test_every_picture_comes_once_an_epoch_and_a_step_needs_no_history() -> None:
    order = script.Order(3, 10, 4)
    seen = torch.cat([order.at(step) for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert torch.equal(script.Order(3, 10, 4).at(3), order.at(3))


def test_search_terms_are_read_from_image_ids() -> None:
    assert captions.search_term("sugar_maple_s_000123") == "sugar maple"
    assert captions.search_term("manual-skunk038") == "skunk"


def test_muon_steps_are_near_orthogonal() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 32, 32), (2, 64, 16), (2, 16, 64)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=generator)))
        # The iteration's fixed coefficients leave singular values between about 0.7 and 1.2.
        assert float(values[:, : min(shape[1:]) * 3 // 4].min()) > 0.5
        assert float(values.max()) < 1.4


def test_all_patches_give_the_models_own_embedding(model: CLIPModel) -> None:
    pixels = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = network.embed_images(model, pixels)
        theirs = torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
        some = network.embed_images(model, pixels, keep=10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, some, atol=1e-4)


def test_texts_are_embedded_as_the_model_does(model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    texts = ["a photo of a maple tree.", "heart"]
    with torch.no_grad():
        ours = network.embed_texts(model, tokenizer, texts)
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        theirs = model.get_text_features(**tokens).pooler_output
    torch.testing.assert_close(ours, torch.nn.functional.normalize(theirs, dim=-1), rtol=1e-4, atol=1e-5)


def test_augmentation_keeps_size_and_range_and_is_seeded() -> None:
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, again, other = (
        pictures.augment(images, torch.Generator().manual_seed(seed), smallest=0.4) for seed in (1, 1, 2)
    )
    assert first.shape == (6, 3, 56, 56)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    black, white = pictures.normalise(torch.zeros(1, 3, 1, 1)), pictures.normalise(torch.ones(1, 3, 1, 1))
    assert bool(((first >= black - 1e-5) & (first <= white + 1e-5)).all())


def test_a_trainer_continues_from_its_state(model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    import copy

    def make() -> Trainer:
        return Trainer(model, muon=True, weight_decay=0.1, fast=copy.deepcopy(model).bfloat16())

    def step(trainer: Trainer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        trainer.gradients = [torch.randn(p.shape, generator=generator) for p in trainer.master]
        trainer.step(rate=1e-3, matrix_rate=1e-3)

    straight, broken, resumed = make(), make(), make()
    for seed in (0, 1, 2):
        step(straight, seed)
    step(broken, 0)
    step(broken, 1)
    resumed.load({name: tensor.clone() for name, tensor in broken.state().items()}, broken.steps)
    step(resumed, 2)
    for name, tensor in straight.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name
    assert not torch.equal(straight.master[0], make().master[0])
