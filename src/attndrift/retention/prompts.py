"""Whether class names make prompts that a text encoder can take and tell apart: by their tokens, not by their letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attndrift.data.prompts import clean_class_name, fill

PROMPT_TOKENS = 77
"""Tokens that CLIP's text encoder takes, start and end included."""


@dataclass(frozen=True)
class PromptFaults:
    """What is wrong with the prompts of some class names.

    Attributes:
        empty: numbers of the classes whose name has no tokens.
        equal: pairs of names that have equal tokens in a template; the second class would never be predicted.
        long: prompts with more tokens than the text encoder takes, and how many they have.
        longest: tokens of the longest prompt.
    """

    empty: tuple[int, ...]
    equal: tuple[tuple[str, str], ...]
    long: tuple[tuple[str, int], ...]
    longest: int


def prompt_tokens(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """The tokens of each prompt, special ones included, without padding."""
    found = _tokenizer_in(tokenizer)(list(prompts))
    # Tokenizers of open_clip give a tensor.
    rows = found["input_ids"] if hasattr(found, "keys") else found
    return [[int(token) for token in row] for row in rows]


def _tokenizer_in(tokenizer: Any) -> Any:
    """The tokenizer in a processor of transformers; another one as it is."""
    return (
        tokenizer.tokenizer if any(base.__name__ == "ProcessorMixin" for base in type(tokenizer).__mro__) else tokenizer
    )


def prompt_faults(
    tokenizer: Any, class_names: Sequence[str], templates: Sequence[str], *, most: int | None = PROMPT_TOKENS
) -> PromptFaults:
    """Check the prompts that ``class_names`` make in ``templates``, of which an encoder takes ``most`` tokens each.

    Raises ``ValueError`` for a template that does not hold ``{class}`` exactly once.
    """
    nameless = set(range(len(class_names)))
    equal: dict[tuple[str, str], None] = {}
    long: list[tuple[str, int]] = []
    longest = 0
    inner = _tokenizer_in(tokenizer)
    end = getattr(inner, "eos_token_id", getattr(inner, "eot_token_id", None))
    for template in templates:
        prompts = [fill(template, name) for name in class_names]
        *rows, without = prompt_tokens(tokenizer, [*prompts, fill(template, "")])
        long += [
            (prompt, len(row))
            for prompt, row in zip(prompts, rows, strict=True)
            if most is not None and len(row) > most
        ]
        longest = max(longest, *(len(row) for row in rows))
        read = [_read(row, end) for row in rows]
        nameless &= {number for number, row in enumerate(read) if row == _read(without, end)}
        first: dict[tuple[int, ...], str] = {}
        for name, row in zip(class_names, read, strict=True):
            if row in first:
                equal[first[row], name] = None
            first.setdefault(row, name)
    named = [pair for pair in equal if all(clean_class_name(name) for name in pair)]
    return PromptFaults(tuple(sorted(nameless)), tuple(named), tuple(long), longest)


def _read(row: Sequence[int], end: int | None) -> tuple[int, ...]:
    """What a text encoder reads of a prompt: it takes the feature at the first end token, and nothing after it counts."""
    return tuple(row[: row.index(end, 1)]) if end in row[1:] else tuple(row)
