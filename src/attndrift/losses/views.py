"""What losses look at in a forward pass of the image encoder: attention, hidden states, or embeddings.

A :class:`View` says it of any model, of the one in training as of its teacher: a list of tensors, images first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attndrift.attention.families import VisionTower, find_vision_tower
from attndrift.attention.observation import Observation
from attndrift.attention.observer import observe
from attndrift.losses.base import PreservationLossError
from attndrift.losses.hidden_layers import layer_numbers
from attndrift.losses.pretrained_weights import encoder_of
from attndrift.models.backbone import backbone_of
from attndrift.models.embedding import pooled
from attndrift.models.hooks import TemporaryHooks
from attndrift.models.parameters import task_classifiers


class Seen(Protocol):
    """What was seen of the last forward pass."""

    def read(self) -> list[Tensor]:
        """The tensors, (images, ...) each."""

    def forget(self) -> None:
        """Let go of them, with their part of the graph."""

    def hold(self) -> Any:
        """Them, for :meth:`restore`, whatever comes in between."""

    def restore(self, held: Any) -> None:
        """Look at an earlier forward pass again."""


class View(ABC):
    """What a loss looks at.

    Attributes:
        name: in the names of caches: equal for two views exactly where what they see is equal.
    """

    name = ""

    def tower(self, model: nn.Module) -> nn.Module:
        """The module whose forward passes count."""
        return find_vision_tower(model).module

    def encoder(self, model: nn.Module) -> nn.Module:
        """The module that a teacher runs, called as the tower is."""
        return self.tower(model)

    @abstractmethod
    def watch(self, model: nn.Module, *, check: bool) -> AbstractContextManager[Seen]:
        """See the forward passes within, with their gradients. ``check``: raise for attention that is not finite."""

    @abstractmethod
    def run(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, check: bool) -> list[Tensor]:
        """What is seen in one forward pass of an :meth:`encoder`, which is run here."""


class _SeenAttention:
    def __init__(self, observation: Observation) -> None:
        self._observation = observation
        self.query = observation.query

    def read(self) -> list[Tensor]:
        return self._observation.log_attention

    def forget(self) -> None:
        self._observation.forget()

    def hold(self) -> Any:
        return self._observation._held()

    def restore(self, held: Any) -> None:
        self._observation._put_back(held)


class AttentionView(View):
    """The logarithm of the attention: (images, heads, patches) a layer."""

    name = "attention"

    @contextmanager
    def watch(self, model: nn.Module, *, check: bool) -> Iterator[Seen]:
        """An observation with gradients."""
        with observe(model, gradients=True, check=check) as found:
            yield _SeenAttention(found)

    def run(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, check: bool) -> list[Tensor]:
        """An observed forward pass."""
        with observe(encoder, check=check) as found:
            encoder(*args, **kwargs)
        return found.log_attention


class _Record:
    """Tensors by their place, of one forward pass, filled in by hooks."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._now: dict[int, Tensor] = {}

    def start(self, *_: Any) -> None:
        if not _recomputed():
            self._now = {}

    def add(self, place: int, value: Tensor) -> None:
        if not _recomputed():
            self._now.setdefault(place, value)

    def read(self) -> list[Tensor]:
        if len(self._now) < self._count:
            raise PreservationLossError(
                f"saw {len(self._now)} of the {self._count} outputs that the loss compares: the forward pass did not go through "
                "the modules that are watched (call the model, not parts of it, and make the loss before torch.compile)"
            )
        return [self._now[place] for place in range(self._count)]

    def forget(self) -> None:
        self._now = {}

    def hold(self) -> Any:
        return self._now

    def restore(self, held: Any) -> None:
        self._now = held


def _recomputed() -> bool:
    """Whether this is gradient checkpointing, which runs a block a second time inside the backward pass."""
    return torch._C._current_graph_task_id() != -1


class HiddenView(View):
    """Hidden states at the input of the first block (0) or behind a block (1 to L).

    The class token's, (images, width), and without a class token the mean over the patches; or those of all tokens,
    (images, tokens, width).

    Args:
        layers: numbers between commas, such as ``0,3,6,9,12``, or ``quarters``: the input, and behind each quarter of the blocks.
        tokens: ``class`` or ``all``.
    """

    def __init__(self, layers: str, tokens: str = "class") -> None:
        self.layers, self.tokens = layers, tokens
        self.name = f"hidden-{'' if tokens == 'class' else 'all-'}{layers.replace(',', '-').replace(' ', '')}"

    @contextmanager
    def watch(self, model: nn.Module, *, check: bool = False) -> Iterator[Seen]:
        """Hooks on the blocks."""
        tower = find_vision_tower(model)
        blocks = tower.family.blocks(tower.module)
        numbers = layer_numbers(self.layers, len(blocks))
        record, hooks, pick = _Record(len(numbers)), TemporaryHooks(), _picker(tower, self.tokens)
        hooks.add(tower.module.register_forward_pre_hook(record.start))
        for place, number in enumerate(numbers):
            block = tower.module.get_submodule(blocks[max(number - 1, 0)].path)

            def behind(place: int, _: nn.Module, args: Any, output: Any) -> None:
                record.add(place, pick(output if isinstance(output, Tensor) else output[0]))

            def before(place: int, _: nn.Module, args: Any, kwargs: Any) -> None:
                record.add(place, pick(args[0] if args else kwargs["hidden_states"]))

            if number:
                hooks.add(block.register_forward_hook(partial(behind, place)))
            else:
                hooks.add(block.register_forward_pre_hook(partial(before, place), with_kwargs=True))
        try:
            yield record
        finally:
            hooks.remove()

    def run(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, check: bool) -> list[Tensor]:
        """A forward pass with hooks."""
        with self.watch(encoder) as found:
            encoder(*args, **kwargs)
            return found.read()


def _picker(tower: VisionTower, tokens: str) -> Callable[[Tensor], Tensor]:
    """Takes the class token's state, or the mean of the patches', from those of all tokens; or all of them."""
    query = next(iter(tower.family.queries_of(tower.module).values()))
    batch_first, prefix = tower.family.batch_first(tower.module), tower.family.prefix_tokens(tower.module)

    def pick(states: Tensor) -> Tensor:
        states = states if batch_first else states.transpose(0, 1)
        if tokens == "all":
            if states.shape[1] == 1:
                raise PreservationLossError(
                    "`ldifs_tokens` is all, and the last block computes the class token alone (prune_last_block_to_cls): leave "
                    "the last layer out of `ldifs_layers`, or keep the whole block"
                )
            return states
        return states[:, query] if isinstance(query, int) else states[:, prefix:].mean(1)

    return pick


class ImageEncoder(nn.Module):
    """A tower and its projection as one module, called as the tower is, that returns embeddings (images, dimensions)."""

    def __init__(self, tower: nn.Module, projection: nn.Module | None) -> None:
        super().__init__()
        self.tower, self.projection = tower, projection

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Image embeddings, not normalised."""
        found = pooled(self.tower, self.tower(*args, **kwargs))
        return found if self.projection is None else self.projection(found)


class EmbeddingView(View):
    """The image embedding, (images, dimensions), not normalised, of a model of a registered backbone."""

    name = "embedding"

    def encoder(self, model: nn.Module) -> nn.Module:
        """Tower and projection."""
        if isinstance(model, ImageEncoder):
            return model
        backbone = backbone_of(encoder_of(model))
        held = {id(part) for part in task_classifiers(backbone.tower) if any(True for _ in part.parameters())}
        inside = {id(backbone.tower.get_submodule(name.rpartition(".")[0])) for name in backbone.projection_in_tower}
        if held - inside:
            raise PreservationLossError(
                f"{type(backbone.tower).__name__} holds a classifier and puts out logits, which are no embeddings: make it with "
                "num_classes=0, and put the classifier behind it"
            )
        return ImageEncoder(backbone.tower, backbone.projection)

    @contextmanager
    def watch(self, model: nn.Module, *, check: bool = False) -> Iterator[Seen]:
        """A hook on the projection, or on the tower of a model without one."""
        encoder: Any = self.encoder(model)
        record, hooks = _Record(1), TemporaryHooks()
        last = encoder.tower if encoder.projection is None else encoder.projection
        hooks.add(encoder.tower.register_forward_pre_hook(record.start))
        hooks.add(last.register_forward_hook(lambda module, args, output: record.add(0, pooled(module, output))))
        try:
            yield record
        finally:
            hooks.remove()

    def run(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, check: bool) -> list[Tensor]:
        """A forward pass."""
        return [encoder(*args, **kwargs)]


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """(images, views, ...) of what a view saw."""
    return torch.stack(list(tensors), dim=1)
