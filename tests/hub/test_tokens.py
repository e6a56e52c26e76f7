"""The prompts of every registered dataset become the tokens that CLIP was trained with.

What is compared with is open_clip's own tokenizer, which goes back to CLIP's authors: another implementation, in Python,
of the same vocabulary.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from computer import Computer
from hub_models import B32, open_clip_folder, tokenizer_files
from hub_server import Hub

from attndrift.data.registry import DATASETS

CONTEXT = 77
START, END = 49406, 49407

TOKENIZE = """
import json, sys
from attndrift.data import load_dataset
from attndrift.data.prompts import TEMPLATES, prompts_for
from attndrift.models import load_processor

model, long_texts, datasets = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
tokenizer, _ = load_processor(model)
found = {}
for name in datasets:
    names = load_dataset(name).class_names
    for ensemble in TEMPLATES:
        found[f"{name}, {ensemble}"] = [text for texts in prompts_for(names, ensemble) for text in texts]
found["long"] = long_texts
whole = {key: tokenizer(texts)["input_ids"] for key, texts in found.items()}
cut = {
    key: tokenizer(texts, padding="max_length", truncation=True, max_length=77)["input_ids"] for key, texts in found.items()
}
json.dump({"texts": found, "whole": whole, "cut": cut}, sys.stdout)
"""

LONG = [
    # Exactly as long as a text may be, one token longer, and far longer; then what a tokenizer may stumble over.
    " ".join(["dog"] * (CONTEXT - 2)),
    " ".join(["dog"] * (CONTEXT - 1)),
    "a photo of a " + " and a ".join(["brushland or shrubland"] * 40) + ".",
    "A Photo of  a Golden   Retriever's tail, don't you see?",
    "naïve façade, 日本語, 🙂 100% 3x4!",
]


@pytest.fixture(scope="module")
def open_clip_tokenizer() -> ModuleType:
    """open_clip's ``tokenizer.py``, loaded by its path: importing the package needs torchvision."""
    path = open_clip_folder() / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.ci("hub")
def test_tokens_of_all_class_prompts_are_those_of_open_clip(
    hub: Hub, tmp_path: Path, open_clip_tokenizer: ModuleType
) -> None:
    held = {name for kind, name in hub.repositories if kind == "datasets"}
    names = [spec.name for spec in DATASETS if spec.hub is None or spec.hub in held]
    assert {"cifar10", "cifar100", "eurosat", "pets", "digits", "objects"} <= set(names)
    found = json.loads(Computer(tmp_path, hub.endpoint).python(TOKENIZE, B32, json.dumps(LONG), json.dumps(names)))
    reference = open_clip_tokenizer.SimpleTokenizer()
    assert {key.partition(",")[0] for key in found["texts"]} == set(names) | {"long"}
    for key, texts in found["texts"].items():
        expected = reference(texts, context_length=CONTEXT).tolist()
        for text, whole, cut, theirs in zip(texts, found["whole"][key], found["cut"][key], expected, strict=True):
            length = theirs.index(END) + 1
            # open_clip pads with 0, transformers with the end token; the model reads neither.
            assert cut == theirs[:length] + [END] * (CONTEXT - length), text
            assert set(theirs[length:]) <= {0}
            assert whole == [START, *reference.encode(text), END], text
            assert key == "long" or len(whole) <= CONTEXT, text
    lengths = [len(tokens) for tokens in found["whole"]["long"]]
    assert lengths[0] == CONTEXT
    assert lengths[1] == CONTEXT + 1
    assert lengths[2] > 2 * CONTEXT
    assert [tokens[-1] for tokens in found["cut"]["long"]] == [END] * len(LONG)


def test_the_double_holds_the_vocabulary_of_the_released_models() -> None:
    """Bytes of the files of openai/clip-vit-base-patch32 on the hub."""
    sizes = {name: len(content) for name, content in tokenizer_files().items()}
    assert sizes == {"vocab.json": 862_328, "merges.txt": 524_657, "tokenizer.json": 2_224_041}
