"""Class names whose prompts a model cannot tell apart, or cannot take: found by their tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import pytest
from transformers import CLIPModel

from attndrift.models import load_model, load_processor
from attndrift.retention.prompts import prompt_faults
from attndrift.retention.zero_shot import TextFeatures

CAFE = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"

EQUAL = {
    "case": ("Bass", "bass"),
    "case beyond ASCII": ("\N{LATIN CAPITAL LETTER A WITH RING ABOVE}l", "\N{LATIN SMALL LETTER A WITH RING ABOVE}l"),
    "composed and decomposed": (CAFE, unicodedata.normalize("NFD", CAFE)),
    "spaces": ("sea  lake", "sea lake"),
    "no-break space": ("sea\N{NO-BREAK SPACE}lake", "sea lake"),
    "line separator": ("sea\N{LINE SEPARATOR}lake", "sea lake"),
    "underscores": ("sea__lake", "sea_lake"),
    "digits are tokens of their own": ("route 66", "route 6 6"),
    "spaces around a hyphen": ("co-op", "co - op"),
    "a space before an apostrophe": ("farmer's field", "farmer 's field"),
    "what follows an end token": ("cat<|endoftext|>dog", "cat<|endoftext|>bird"),
}

DISTINCT = [("c++", "c#"), ("x2", "x\N{SUPERSCRIPT TWO}"), ("ss", "\N{LATIN SMALL LETTER SHARP S}"), ("bass", "basses")]


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    return load_model("embedded")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_processor("embedded")[0]


@pytest.mark.parametrize("kind", EQUAL)
@pytest.mark.parametrize("templates", [("a photo of a {class}.",), ("{class}", "the {class}, from above")])
def test_two_names_of_equal_tokens_are_refused(
    kind: str, templates: tuple[str, ...], clip: CLIPModel, tokenizer: Any
) -> None:
    names = ["forest", *EQUAL[kind]]
    assert prompt_faults(tokenizer, names, templates).equal == (EQUAL[kind],)
    with pytest.raises(ValueError, match=r"equal tokens; the two classes could not be told apart"):
        TextFeatures.of(clip, tokenizer, names, templates)


@pytest.mark.parametrize("pair", DISTINCT)
def test_names_of_other_tokens_are_two_classes(pair: tuple[str, str], clip: CLIPModel, tokenizer: Any) -> None:
    features = TextFeatures.of(clip, tokenizer, ["forest", *pair]).features
    assert not features[1].equal(features[2])


def test_letters_that_a_tokenizer_does_not_know_are_one_token() -> None:
    tiny = load_processor("config:tiny")[0]
    names = ["cat", "\N{DOG FACE}", "\N{CAT FACE}", "#", "@"]
    assert len(prompt_faults(tiny, names, ["a {class}"]).equal) == 3


class _DropsPunctuation:
    """A tokenizer that reads no punctuation, as that of some later models."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.eos_token_id = inner, inner.eos_token_id

    def __call__(self, texts: Sequence[str], **options: Any) -> Any:
        plain = ["".join(c for c in text if not unicodedata.category(c).startswith("P")) for text in texts]
        return self._inner(plain, **options)


def test_punctuation_that_a_tokenizer_drops_makes_no_class(clip: CLIPModel, tokenizer: Any) -> None:
    dropping = _DropsPunctuation(tokenizer)
    with pytest.raises(ValueError, match=r"'St\. Bernard' and 'St Bernard' have equal tokens"):
        TextFeatures.of(clip, dropping, ["pug", "St. Bernard", "St Bernard"])
    with pytest.raises(ValueError, match="number 1 is empty, or has no tokens"):
        TextFeatures.of(clip, dropping, ["pug", "!?"])


@pytest.mark.parametrize("name", ["", "  ", "_", "\N{IDEOGRAPHIC SPACE}", "\t\n", "\N{EM SPACE}_"])
def test_a_name_without_tokens_is_no_name(name: str, clip: CLIPModel, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="class_names: number 1 is empty"):
        TextFeatures.of(clip, tokenizer, ["forest", name, "river"])


@pytest.mark.parametrize("name", ["word " * 80, "x1" * 40, "\N{DOG FACE}" * 20, "-" * 3 + "7" * 80])
def test_a_prompt_that_is_too_long_is_named_with_its_length(name: str, clip: CLIPModel, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"too long: \d+ tokens, and the text encoder takes 77"):
        TextFeatures.of(clip, tokenizer, ["forest", name])
