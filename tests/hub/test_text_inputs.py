"""Texts as people have them: tokenizers of two libraries, features as numbers, class names; what is missing is said at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hub_models import open_clip_folder, tokenizer_files
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizerFast

from attndrift import Budget, evaluate_zero_shot
from attndrift.retention.zero_shot import TextFeatures

NAMES = ["annual crop", "forest", "sea_lake", "river", "highway"]
IMAGES = torch.randn(20, 3, 28, 28, generator=torch.Generator().manual_seed(0))
LABELS = np.arange(20) % 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizerFast:
    folder = tmp_path_factory.mktemp("tokenizer")
    for name, content in tokenizer_files().items():
        (folder / name).write_bytes(content)
    return CLIPTokenizerFast.from_pretrained(folder, pad_token="<|endoftext|>", eos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def open_clip_tokenizer() -> Any:
    """open_clip's own, loaded by its path: importing the package needs torchvision."""
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", open_clip_folder() / "tokenizer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


@pytest.fixture
def clip() -> CLIPModel:
    """A small CLIP that knows CLIP's 49,408 tokens."""
    torch.manual_seed(0)
    small = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3}
    text = small | {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    vision = small | {"image_size": 28, "patch_size": 7}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()


class LikeOpenClip(nn.Module):
    """A CLIP with the interface of open_clip's: takes texts of 77 tokens, no more and no fewer."""

    context_length, vocab_size = 77, 49408

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.inner = clip

    def encode_image(self, images: Tensor) -> Tensor:
        return self.inner.get_image_features(pixel_values=images).pooler_output

    def encode_text(self, tokens: Tensor) -> Tensor:
        assert tokens.shape[1] == 77
        return self.inner.get_text_features(input_ids=tokens).pooler_output


class Wrapper(nn.Module):
    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.somewhere = nn.ModuleDict({"model": clip})
        self.head = nn.Linear(16, 3)

    def embed(self, images: Tensor) -> Tensor:
        inner: Any = self.somewhere["model"]
        return inner.get_image_features(pixel_values=images).pooler_output


def _adapted(clip: CLIPModel) -> nn.Module:
    return get_peft_model(clip, LoraConfig(r=2, target_modules=["q_proj"]))


MODELS: dict[str, Callable[[CLIPModel], nn.Module]] = {
    "CLIP": lambda clip: clip,
    "with the interface of open_clip": LikeOpenClip,
    "wrapped": Wrapper,
    "adapted": _adapted,
    "adapted and wrapped": lambda clip: Wrapper(_adapted(clip)),
}


def _tokenizers(hf: Any, open_clip: Any) -> dict[str, Any]:
    processor = CLIPProcessor(CLIPImageProcessorPil(), hf)
    return {
        "transformers": hf,
        "a processor": processor,
        "open_clip": open_clip,
        "a function": lambda texts: hf(texts, padding="max_length", max_length=77, return_tensors="pt"),
        "a function with options": lambda texts, **options: hf(texts, **options),
        "a function to numbers": lambda texts: open_clip(texts),
    }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "kind",
    ["transformers", "a processor", "open_clip", "a function", "a function with options", "a function to numbers"],
)
def test_a_tokenizer_of_either_library_gives_the_same_features(
    kind: str, model: str, clip: CLIPModel, tokenizer: Any, open_clip_tokenizer: Any
) -> None:
    prompts = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
    with torch.no_grad():
        # One prompt at a time: nothing is padded.
        rows = [clip.get_text_features(**tokenizer([text], return_tensors="pt")).pooler_output[0] for text in prompts]
    wanted = nn.functional.normalize(torch.stack(rows), dim=-1)
    chosen = _tokenizers(tokenizer, open_clip_tokenizer)[kind]
    made = MODELS[model](clip)
    torch.testing.assert_close(TextFeatures.of(made, chosen, NAMES).features, wanted, atol=1e-5, rtol=1e-4)
    budget = Budget.retention(0.5, IMAGES, _recognised(made, wanted), NAMES, tokenizer=chosen)
    assert budget.against(made).read(made).value == pytest.approx(100)


def _recognised(model: nn.Module, features: Tensor) -> np.ndarray[Any, Any]:
    """Labels that the model gets right."""
    return evaluate_zero_shot(model, IMAGES, LABELS, text_features=features).predictions


@pytest.mark.parametrize("model", ["ViT-B-32", "coca_ViT-B-32"])
def test_models_of_open_clip(model: str, tokenizer: Any) -> None:
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip(
            "open_clip is not installed (pip install 'attndrift[open-clip]'): a module with its interface is tested"
        )
    import open_clip  # of the extra

    made = open_clip.create_model(model).eval()
    theirs = open_clip.get_tokenizer(model)
    with torch.no_grad():
        wanted = made.encode_text(theirs([f"a photo of a {name.replace('_', ' ')}." for name in NAMES]), normalize=True)
    for kind in (theirs, tokenizer):
        torch.testing.assert_close(TextFeatures.of(made, kind, NAMES).features, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "form",
    [
        lambda rows: rows,
        lambda rows: rows * torch.tensor([[3.0], [0.5], [1], [7], [1]]),
        lambda rows: rows.numpy(),
        lambda rows: rows.double(),
        lambda rows: rows.clone().requires_grad_(),
        lambda rows: rows.tolist(),
    ],
    ids=["a tensor", "not normalised", "numpy", "float64", "in a graph", "lists"],
)
def test_features_may_be_numbers(form: Callable[[Tensor], Any], clip: CLIPModel, tokenizer: Any) -> None:
    text = TextFeatures.of(clip, tokenizer, NAMES)
    wanted = evaluate_zero_shot(clip, IMAGES, LABELS, text_features=text)
    for names in (None, NAMES):
        found = evaluate_zero_shot(clip, IMAGES, LABELS, names, text_features=form(text.features))
        np.testing.assert_array_equal(found.predictions, wanted.predictions)
    labels = wanted.predictions
    meter = Budget.retention(0.5, IMAGES, labels, text_features=form(text.features)).against(clip)
    assert (meter.accuracy, meter.text.class_names[1]) == (1.0, "class 1")


FEATURES = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "class_names and text_features are missing: give text_features, or class_names and a tokenizer"),
        ({"tokenizer": "yes"}, "class_names and text_features are missing"),
        ({"class_names": NAMES}, r"tokenizer: is missing, and class_names need .* open_clip.get_tokenizer.* or give text_f"),
        ({"class_names": NAMES, "tokenizer": "openai/clip-vit-base-patch32"}, "tokenizer: a str is none"),
        ({"class_names": "forest", "tokenizer": "yes"}, "class_names: expected a list of texts, got the text 'forest'"),
        ({"class_names": [0, 1], "tokenizer": "yes"}, "class_names: expected a list of texts, got 0"),
        ({"class_names": [], "tokenizer": "yes"}, "class_names: must not be empty"),
        ({"class_names": NAMES, "tokenizer": "yes", "templates": "a {class}"}, "templates: expected a list of texts"),
        ({"class_names": NAMES, "tokenizer": "yes", "templates": ["a {}"]}, "must hold {class} exactly once"),
        ({"class_names": NAMES, "tokenizer": "yes", "templates": [str.lower]}, "templates: expected a list of texts"),
        ({"class_names": ["a", ""], "tokenizer": "yes"}, "class_names: number 1 is empty"),
        ({"class_names": NAMES[:4], "tokenizer": "yes"}, "labels: 4 is outside the 4 class names"),
        ({"text_features": FEATURES[0]}, r"shape \(16,\); expected \(classes, dimensions\)"),
        ({"text_features": FEATURES.T, "class_names": NAMES}, r"\(16, 5\) for 5 class names; .* turn them: text_features.T"),
        ({"text_features": FEATURES, "class_names": NAMES[:4]}, r"\(5, 16\) for 4 class names"),
        ({"text_features": FEATURES * float("nan")}, "not finite"),
        ({"text_features": FEATURES * 0}, "only zeros"),
        ({"text_features": FEATURES, "labels": LABELS[:9]}, "labels: 9 for 20 images"),
        ({"text_features": FEATURES, "labels": LABELS / 4}, "labels: expected indices into the class names, whole numbers"),
        ({"text_features": FEATURES, "labels": [NAMES[i] for i in LABELS]}, "labels: expected indices into the class names"),
        ({"text_features": FEATURES, "labels": np.eye(5, dtype=int)[LABELS]}, "labels: expected one label an image"),
        ({"text_features": FEATURES[:3]}, "labels: 4 is outside the 3 class names"),
        ({"text_features": FEATURES, "batch_size": 0}, "batch_size is 0"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_when_the_budget_is_made(
    arguments: dict[str, Any], message: str, tokenizer: Any
) -> None:
    given = {"images": IMAGES, "labels": LABELS} | arguments
    given |= {"tokenizer": tokenizer} if given.get("tokenizer") == "yes" else {}
    with pytest.raises(ValueError, match=message):
        Budget.retention(0.9, **given)


def test_what_only_the_model_can_tell_is_said_by_it(clip: CLIPModel, tokenizer: Any) -> None:
    turned = Budget.retention(0.9, IMAGES, LABELS, text_features=torch.randn(16, 12))
    with pytest.raises(ValueError, match=r"have 12 dimensions, the image embeddings 16; turn them: text_features\.T"):
        turned.against(clip)
    named = Budget.retention(0.9, IMAGES, LABELS, NAMES, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"has no text encoder .* give text_features"):
        named.against(clip.vision_model)
    letters = Budget.retention(0.9, IMAGES, LABELS, NAMES, tokenizer=lambda texts: [len(text) for text in texts])
    with pytest.raises(TypeError, match="tokenizer: a function yields a list"):
        letters.against(clip)


@pytest.mark.parametrize("words", [73, 74, 90])
@pytest.mark.parametrize("model", ["CLIP", "with the interface of open_clip"])
def test_a_prompt_that_open_clip_would_cut_is_refused(
    model: str, words: int, clip: CLIPModel, open_clip_tokenizer: Any
) -> None:
    names = ["cat", " ".join(["dog"] * words)]
    made = MODELS[model](clip)
    if words == 73:
        assert TextFeatures.of(made, open_clip_tokenizer, names, ["{class} it"]).features.shape == (2, 16)
    with pytest.raises(ValueError, match=rf"too long: {words + 6} tokens, and the text encoder takes 77"):
        TextFeatures.of(made, open_clip_tokenizer, names, ["a photo of {class} it"])
