"""The registry of run outcomes: a class each, with its facts, what it does during the training, and the model it makes.

A study file names outcomes with their one number: ``outcomes: [wise_ft:0.5, ema:0.999]``. Each is evaluated as the run
itself is, without training anew, and is a row of the table ``runs`` with the run as its ``parent_run``. Nothing in this
module imports torch.

    @outcome
    class WiSEFT(Outcome):
        name, label, source = "wise_ft", "WiSE-FT", "Wortsman et al. 2022"
        ...
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Protocol, TypeVar

from attndrift.own_settings import spoken
from attndrift.registry import Registry


class Follower(Protocol):
    """What an outcome keeps while a run trains; saved and read with the run's resumable states."""

    def after_step(self, step: int) -> None:
        """The optimiser has done ``step`` steps. Must read no value, which an accelerator would be waited for."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""


@dataclass(frozen=True)
class Trained:
    """A run whose training is finished.

    Attributes:
        pretrained: the model before the training; not to be changed.
        last: the model after the last step, a copy that an outcome may change.
        selected: loads the checkpoint of the selected epoch, adapters merged into the weights.
        validate: accuracy of a model on the validation images.
        agreement: share of the monitored images of the first transfer set whose zero-shot prediction is that of the
            pretrained model; it needs no labels. Only outcomes that say :attr:`Outcome.needs_unlabelled` may ask.
        follower: what :meth:`Outcome.follow` returned.
        chosen: an outcome that chooses its own ``alpha`` writes it here; it is recorded.
    """

    pretrained: Any
    last: Callable[[], Any]
    selected: Callable[[], Any]
    validate: Callable[[Any], float]
    agreement: Callable[[Any], float]
    follower: Any = None
    chosen: dict[str, float] = field(default_factory=dict)


class Outcome(ABC):
    """One outcome. Subclasses give facts as class attributes, and :meth:`finish`.

    Attributes:
        name: in settings, tables and commands; ``label`` in tables and legends.
        source: where it comes from; ``meaning`` what it makes, in one phrase.
        parameter: what its number is, and ``default``, ``low`` and ``high`` of it.
        needs_unlabelled: whether it needs the images that a run monitors: a transfer set, and ``monitor_zero_shot_images``.
    """

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    source: ClassVar[str] = ""
    meaning: ClassVar[str] = ""
    parameter: ClassVar[str] = ""
    default: ClassVar[float] = 0.0
    low: ClassVar[float] = -math.inf
    high: ClassVar[float] = math.inf
    needs_unlabelled: ClassVar[bool] = False

    def follow(self, value: float, model: Any) -> Follower | None:
        """Called before the first step, with the model in training: what is told of every step, or None."""
        return None

    @abstractmethod
    def finish(self, value: float, run: Trained) -> Any:
        """The outcome's model, a ``ImageClassifier``."""


OUTCOMES: Registry[Outcome] = Registry("outcome", "attndrift.study.outcomes.known", group="attndrift.outcomes")
"""All outcomes: those of this package, those of installed packages, and those of this process."""

O = TypeVar("O", bound=Outcome)  # noqa: E741


def outcome(cls: type[O]) -> type[O]:
    """Register the class below as an outcome."""
    OUTCOMES.register(cls())
    return cls


def parse_outcome(text: str) -> tuple[Outcome, float]:
    """``wise_ft:0.5`` as the outcome and its number; the default where none is given.

    Raises ``ValueError`` for a name that no outcome has, and a number that is none or out of range.
    """
    name, colon, given = text.strip().partition(":")
    found = OUTCOMES[name.strip()]
    try:
        value = float(given) if colon else found.default
    except ValueError:
        value = math.nan
    if not found.low <= value <= found.high or not math.isfinite(value):
        raise ValueError(
            f"the {found.parameter} of `{found.name}` is {given!r}; it is a number from {found.low:g} to {found.high:g}"
        )
    return found, value


def canonical_outcomes(texts: Iterable[str]) -> tuple[str, ...]:
    """Outcomes in one spelling, by name and number. Raises ``ValueError`` as :func:`parse_outcome` does, and for two
    that are the same."""
    parsed = sorted((found.name, value) for found, value in map(parse_outcome, texts))
    found = tuple(f"{name}:{value:.12g}" for name, value in parsed)
    for one, other in pairwise(found):
        if one == other:
            raise ValueError(f"the outcome `{one}` is named twice")
    return found


_SOUPS = {
    "soup_seed": "soup of seeds",
    "soup_learning_rate": "soup of rates",
    "greedy_soup_seed": "greedy soup of seeds",
    "greedy_soup_learning_rate": "greedy soup of rates",
}
"""What is made of several runs, by :mod:`attndrift.study.soups`; the number says of how many."""


def outcome_label(text: str) -> str:
    """``WiSE-FT 0.5`` for ``wise_ft:0.5``; of one that is not known, its text."""
    name, _, value = text.partition(":")
    if name in _SOUPS:
        return f"{_SOUPS[name]}, {value}"
    return f"{OUTCOMES[name].label} {value}".rstrip() if name in OUTCOMES else text


def outcome_run(run_id: str, text: str) -> str:
    """The name of an outcome's row: that of its run, and what it is."""
    name, _, value = text.partition(":")
    return f"{run_id}_{name.replace('_', '-')}{spoken(float(value))}"
