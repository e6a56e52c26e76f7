"""The sum of several preservation losses of one model, which is a preservation loss itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from attndrift.losses.base import Batch, PreservationLoss


class SummedLoss(PreservationLoss):
    """The sum of losses: ``SummedLoss(L2SP(model, 0.5), LDIFS(model, 0.1))``.

    Attributes:
        parts: the losses, in their order.
        weight: a factor of them all, 1 at first; raising it raises each part's weight by as much.
        last: the weighted sum of the last call; each part has its own.

    Raises:
        ValueError: losses of different models, of one name, or beside different teachers.
    """

    def __init__(self, first: PreservationLoss, *others: PreservationLoss) -> None:
        flat = [first, *others]
        for part in others:
            if part.model is not first.model:
                raise ValueError(f"{part.name} holds another model than {first.name}; make both from the same model")
        names = [part.name for part in flat]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the loss `{twice}` is in the sum twice; give it the sum of the weights")
        teachers = [part for part in flat if _second_model(part) is not None]
        for part in teachers[1:]:
            if _second_model(part) is not _second_model(teachers[0]):
                raise ValueError(
                    f"`teacher`: {teachers[0].name} and {part.name} have different teachers; give both the same model, or caches of it"
                )
        super().__init__(first.model, 1.0)
        self.parts = flat
        self.name = "+".join(names)

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of every part, by its name."""
        return {part.name: self.weight * part.weight for part in self.parts}

    @property
    def needs_index(self) -> bool:
        """Whether a part needs the numbers of the images."""
        return any(getattr(part, "needs_index", False) for part in self.parts)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See the forward passes within, for every part."""
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.watching())
            yield

    def value(self, batch: Batch) -> Tensor:
        """The weighted sum of the parts."""
        if batch.reference is not None:
            raise TypeError("a sum takes no reference; say which images these are, preserve(index=..., flipped=...)")
        asked: dict[str, Any] = {"images": batch.images}
        terms = []
        for part in self.parts:
            named = {"index": batch.index, "flipped": batch.flipped} if getattr(part, "needs_index", False) else {}
            terms.append(part(**asked, **named))
        return torch.stack([term.to(terms[0]) for term in terms]).sum()

    def _holds(self, model: Any) -> bool:
        return any(part._holds(model) for part in self.parts)

    def skip(self) -> None:
        """Leave the forward passes since the last call out, for every part."""
        for part in self.parts:
            part.skip()

    def close(self) -> None:
        """Stop watching the model, for every part."""
        for part in self.parts:
            part.close()
        super().close()


def _second_model(loss: PreservationLoss) -> object:
    """The model that a loss was given as its teacher; None where it has its own frozen copy, or a cache."""
    from torch import nn  # here: the facts of a loss are read without torch

    teacher = getattr(loss, "teacher", None)
    return teacher if isinstance(teacher, nn.Module) else None
