"""Captions of the pretraining pictures, and the tokenizer that is trained on them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Regex as TokenizerRegex
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

CONTEXT = 77
_PLAIN = "a photo of a {}."
_TEMPLATES = (
    "a photo of the {}.",
    "a photo of one {}.",
    "a small photo of a {}.",
    "a blurry photo of a {}.",
    "a bright photo of a {}.",
    "a dark photo of a {}.",
    "a close photo of a {}.",
    "a low resolution photo of a {}.",
    "a picture of a {}.",
    "a picture with a {} in it.",
    "an image of a {}.",
    "this is a {}.",
    "there is a {} here.",
    "the {}.",
    "{}",
)
# Words of other prompts count among the merges too; the network never sees them.
_OTHER_WORDS = (
    "a centered satellite photo of the {}, annual crop land, forest, brushland or shrubland, highway or road,"
    " industrial buildings or commercial buildings, pasture land, permanent crop land, residential buildings or"
    " homes or apartments, river, lake or sea, herbaceous vegetation. a type of pet, a breed of dog or cat,"
    " high contrast, black and white, low contrast, bad, good, big, animal, drawing, digit, number zero one two"
    " three four five six seven eight nine."
)
_PIECES = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def spoken(name: str) -> str:
    """A class name or search term as it is spoken."""
    return re.sub(r"\s+", " ", name.replace("_", " ")).strip()


def search_term(image_id: str) -> str:
    """The search term that an image of CIFAR-100 was collected under.

    >>> search_term("sugar_maple_s_000123")
    'sugar maple'
    """
    return spoken(re.sub(r"_s_\d+$", "", re.sub(r"^manual-([a-z_]+)\d+$", r"\1", image_id)))


def caption(generator: np.random.Generator, name: str, *, plain: float = 0.4) -> str:
    """``name`` in a template: the usual one with probability ``plain``, else any of the others."""
    if generator.random() < plain:
        return _PLAIN.format(name)
    return _TEMPLATES[int(generator.integers(len(_TEMPLATES)))].format(name)


def train_tokenizer(names: Iterable[str], *, merges: int = 1400) -> CLIPTokenizer:
    """A byte-level BPE in the form of CLIP's own: any text can be encoded, frequent words are one token.

    The vocabulary is laid out as CLIP's: 256 bytes, 256 bytes that end a word, the merges, start, end.
    The end token has the largest id, so both ways in which a text tower finds it agree.
    """
    text = [template.format(name) for name in names for template in (_PLAIN, *_TEMPLATES)]
    text += [_OTHER_WORDS] * 4
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(TokenizerRegex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    learner.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=merges + 600,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]["merges"][:merges]
    pairs = [tuple(pair) if not isinstance(pair, str) else tuple(pair.split(" ")) for pair in learned]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    tokens += [left + right for left, right in pairs]
    tokens = list(dict.fromkeys(tokens))
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=pairs,
        model_max_length=CONTEXT,
    )


def load_tokenizer(folder: Path, names: Sequence[str]) -> CLIPTokenizer:
    """The tokenizer kept in ``folder``, trained now if there is none."""
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(names).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)
