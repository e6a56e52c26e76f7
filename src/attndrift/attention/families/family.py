"""What describes a family of transformers: its blocks, the taps of its attention, and its queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from attndrift.registry import Registry

Parts = Mapping[str, Any]
"""What taps read. ``query`` and ``key``: (images, heads, tokens, head_dim), from which the row is computed
as soon as both are there; with ``project``, ``query`` is (images, 1, tokens, width) and still to be projected to heads
by it. ``bias``: what is added to the logits, a number tensor, or what may be attended,
a boolean one, (1 or images, 1 or heads, 1 or queries, tokens); None for nothing. ``causal``: whether later
tokens are hidden beside the bias. ``position``: what the family's ``rotate`` needs."""


@dataclass(frozen=True)
class Tap:
    """One submodule of an attention module that shows queries, keys, or what else decides the attention.

    Attributes:
        path: path of the submodule, from the attention module; "" is the attention module itself.
        read: (attention module, the submodule's positional inputs, its output) to :data:`Parts`, as views and
            without copying. A tap at the input is given its keyword arguments instead of the output.
        at: whether it reads when the submodule has put out or before it starts. Other parts of a layer must
            be read before its query and key are both there.
    """

    path: str
    read: Callable[[nn.Module, tuple[Any, ...], Any], Parts]
    at: Literal["output", "input"] = "output"


class Block(NamedTuple):
    """One transformer block: its path and its attention's path, both from the tower."""

    path: str
    attention_path: str


@dataclass(frozen=True)
class Pool:
    """An attention pooling head, whose own query looks at the tokens behind the last block.

    Attributes:
        attention_path: path of its attention module, from the tower.
        taps, scale: as those of a :class:`Family`.
        prefix_tokens: how many of the tokens that it sees precede the patches.
        token: which of its queries.
    """

    attention_path: str
    taps: tuple[Tap, ...]
    scale: Callable[[nn.Module], float]
    prefix_tokens: int = 0
    token: int = 0


@dataclass(frozen=True)
class Found:
    """A query that is found in what the tower is given: one token an image (or text).

    ``index`` is (tower, positional arguments, keyword arguments) to token indices, int64 (images,).
    """

    index: Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], Tensor]


@dataclass(frozen=True)
class MeanOfPatches:
    """The mean of the rows of all patch queries, those of padding left out."""


Query = int | Found | MeanOfPatches | Pool
"""Whose attention: of a token by its index, of a token found in the input, the mean of all patches, or of a
pooling head."""


@dataclass(frozen=True)
class Family:
    """How to see into one family of transformers.

    Attributes:
        name: name of the family.
        models: the classes that it covers, for people.
        classes: names of the tower's class, as :func:`is_a` takes them; subclasses count.
        blocks: the tower's blocks, from the input to the output.
        taps: the taps of every attention module, or a function from the attention module to them.
        scale: factor of the logits in an attention module.
        prefix_tokens: tokens before the patches: the class token, then registers; 0 for a text tower.
        queries: queries that can be observed, by name, or a function from the tower to them; the first is
            the default.
        recognises: whether a module of these classes is the tower itself, and not a wrapper of it.
        rotate: (queries or keys, what the taps read as ``position``) to rotated ones, for rotary positions
            that turn patches after the taps and leave the prefix as it is.
        refuses: why a tower that is recognised cannot be observed; None for one that can.
        valid: (tower, positional arguments, keyword arguments) to which tokens are no padding, bool (images,
            tokens), or None for all; None for a family that knows no padding.
        batch_first: whether the blocks hand on (images, tokens, width) and not (tokens, images, width).
    """

    name: str
    models: str
    classes: tuple[str, ...]
    blocks: Callable[[nn.Module], list[Block]]
    taps: tuple[Tap, ...] | Callable[[nn.Module], tuple[Tap, ...]]
    scale: Callable[[nn.Module], float]
    prefix_tokens: Callable[[nn.Module], int]
    queries: Mapping[str, Query] | Callable[[nn.Module], Mapping[str, Query]]
    recognises: Callable[[nn.Module], bool] = field(default=lambda module: True)
    rotate: Callable[[Tensor, Any], Tensor] | None = None
    refuses: Callable[[nn.Module], str | None] = field(default=lambda tower: None)
    valid: Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], Tensor | None] | None = None
    batch_first: Callable[[nn.Module], bool] = field(default=lambda tower: True)

    def __post_init__(self) -> None:
        given: object = self.classes  # written by hand, as all of an entry is
        if isinstance(given, str):
            raise TypeError(f"family `{self.name}`: classes is `{self.classes}`; give a tuple of names")

    def queries_of(self, tower: nn.Module) -> Mapping[str, Query]:
        """The queries of this tower, the default first."""
        return self.queries(tower) if callable(self.queries) else self.queries

    def taps_of(self, attention: nn.Module) -> tuple[Tap, ...]:
        """The taps of this attention module."""
        return self.taps(attention) if callable(self.taps) else self.taps


FAMILIES: Registry[Family] = Registry("attention family", "attndrift.attention.families", group="attndrift.families")
"""The families of vision transformers that can be observed."""

TEXT_FAMILIES: Registry[Family] = Registry(
    "text family", "attndrift.attention.families", group="attndrift.text_families"
)
"""The families of text encoders that can be observed where the query is named."""
