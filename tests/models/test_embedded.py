"""The model in the package: its form and size, its tokenizer, and that it can do what its card says."""

from __future__ import annotations

import functools
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor

import attndrift
from attndrift.data.generated import GENERATED

FOLDER = Path(attndrift.__file__).parent / "models" / "embedded"
# Measured on exactly these pictures: 0.910 (of 300) and 0.535 (of 1,000); libraries may round differently.
OBJECTS_BOUND = 0.88
CIFAR100_BOUND = 0.51


@pytest.fixture(scope="module")
def model() -> CLIPModel:
    return CLIPModel.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor() -> CLIPProcessor:
    return CLIPProcessor.from_pretrained(FOLDER)


@functools.cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


def zero_shot(model: CLIPModel, processor: CLIPProcessor, images: list[Image.Image], names: list[str]) -> np.ndarray:
    prompts = [f"a photo of a {name}." for name in names]
    inputs = processor(text=prompts, images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        return model(**inputs).logits_per_image.argmax(dim=1).numpy()


def test_the_folder_is_small_and_the_weights_are_half_precision() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    with safe_open(FOLDER / "model.safetensors", framework="pt") as stored:
        kinds = {stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
    assert kinds == {"F16"}


def test_its_form_is_that_of_a_small_vit_with_50_tokens(model: CLIPModel) -> None:
    vision = model.config.vision_config
    assert (vision.image_size, vision.patch_size) == (56, 8)
    assert vision.num_hidden_layers >= 8
    assert vision.num_attention_heads >= 4
    assert model.vision_model.embeddings.position_embedding.num_embeddings == 50
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_it_knows_drawn_objects_that_pretraining_never_saw(model: CLIPModel, processor: CLIPProcessor) -> None:
    drawn = GENERATED["objects"]
    images = [Image.fromarray(drawn.draw(2, index)) for index in range(300)]
    best = zero_shot(model, processor, images, list(drawn.class_names))
    assert np.mean(best == np.arange(300) % 100) >= OBJECTS_BOUND


@pytest.mark.slow
@pytest.mark.data
def test_it_knows_photographs_that_pretraining_never_saw(model: CLIPModel, processor: CLIPProcessor) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    data = os.environ.get("ATTNDRIFT_DATA")
    if not data:
        pytest.skip("needs CIFAR-100: ATTNDRIFT_DATA is not set")
    files = sorted((Path(data) / "cifar100" / "data").glob("test-*.parquet"))
    if not files:
        pytest.skip(f"needs CIFAR-100: none in {data}")
    table = pq.read_table(files[0]).slice(0, 1000)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    names = [name.replace("_", " ") for name in features["fine_label"]["names"]]
    images = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in table["img"].to_pylist()]
    best = zero_shot(model, processor, images, names)
    assert np.mean(best == np.asarray(table["fine_label"])) >= CIFAR100_BOUND


def test_attention_differs_between_heads_and_images(model: CLIPModel, processor: CLIPProcessor) -> None:
    eager = CLIPModel.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager").eval()
    images = [Image.fromarray(GENERATED["objects"].draw(2, index)) for index in range(8)]
    pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        layers = eager.vision_model(pixels, output_attentions=True).attentions
    rows = torch.stack([layer[:, :, 0, 1:] for layer in layers])
    rows = rows / rows.sum(dim=-1, keepdim=True)
    entropy = -(rows * rows.log()).sum(dim=-1)
    assert rows.shape == (8, 8, 4, 49)
    # Neither uniform nor collapsed: structure that a study can see change.
    assert float(entropy.mean()) < 0.97 * np.log(49)
    assert float(entropy.mean()) > 0.2 * np.log(49)
    assert float(rows.std(dim=1).mean()) > 1e-3
    assert float(rows.std(dim=2).mean()) > 1e-3


def test_pictures_of_any_size_become_56_pixels(processor: CLIPProcessor) -> None:
    for size in ((32, 32), (64, 64), (90, 50)):
        pixels = processor.image_processor(images=Image.new("RGB", size, (255, 0, 0)), return_tensors="pt")
        assert tuple(pixels["pixel_values"].shape) == (1, 3, 56, 56)
        red = (1 - torch.tensor(0.48145466)) / 0.26862954
        torch.testing.assert_close(pixels["pixel_values"][0, 0].mean(), red, rtol=1e-5, atol=1e-5)


def test_the_tokenizer_agrees_with_the_text_tower(model: CLIPModel) -> None:
    tokenizer = _tokenizer()
    text = model.config.text_config
    assert len(tokenizer) == text.vocab_size
    # The text tower reads the first end token; the largest id makes the older rule (argmax) agree with it.
    assert text.eos_token_id == tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.model_max_length == text.max_position_embeddings == 77
    alone = tokenizer(["a photo of a rose."], return_tensors="pt")
    padded = tokenizer(
        ["a photo of a rose.", "a photo of a white checkered square in a field."], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        first = model.get_text_features(**alone).pooler_output[0]
        second = model.get_text_features(**padded).pooler_output[0]
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["objects", "cifar100 style"])
def test_words_that_pretraining_used_are_single_tokens(name: str) -> None:
    tokenizer = _tokenizer()
    words = {word for title in GENERATED["objects"].class_names for word in title.split()}
    if name != "objects":
        words = {"photo", "of", "maple", "tree", "lawn", "mower", "sweet", "pepper"}
    assert {word for word in words if len(tokenizer.tokenize(word)) != 1} == set()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.from_regex(r"[a-zà-öø-ÿ]{1,12}", fullmatch=True), min_size=1, max_size=4))
def test_any_word_can_be_written_and_read_back(words: list[str]) -> None:
    tokenizer = _tokenizer()
    text = " ".join(words)
    numbers = tokenizer(text)["input_ids"]
    assert numbers[0] == tokenizer.bos_token_id
    assert numbers[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in numbers[1:-1]
    assert tokenizer.decode(numbers, skip_special_tokens=True) == text
