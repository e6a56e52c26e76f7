"""The registry of metrics: one :class:`Metric` a metric, a function and the facts that everything else reads.

A table has its columns, a figure its axis labels, an alert and a budget their names, the report and ``attndrift list``
their words from here. Nothing in this module imports torch.

    METRICS.register(Metric(name="top_share", compute=top_share, needs="attention", label="Largest share", ...))
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from attndrift.registry import Registry

Needs = Literal[
    "attention",
    "mean maps",
    "class token",
    "full maps",
    "hidden states",
    "layer inputs",
    "embeddings",
    "own embeddings",
    "own images and texts",
    "weights",
    "texts",
    "text weights",
    "labelled images",
]
"""What a metric is computed from:

- ``attention``: attention of the class token to the patches, (..., N), rows that sum to 1; gives (...).
- ``mean maps``: the mean map of each head over all images, (..., heads, N); gives (..., heads).
- ``hidden states``: class-token states of one block, pretrained and adapted, (images, width) each; gives a number.
- ``layer inputs``: what the linear layers of a block are given, on request; who measures gives the number of each block.
- ``embeddings``: image embeddings, pretrained and adapted, (images, dimensions) each; gives a number.
- ``own embeddings``: image embeddings of one model, (images, dimensions); gives a number, which the pretrained and the
  adapted model have each.
- ``own images and texts``: as that, of image embeddings and embeddings of class prompts, where there is a text tower.
- ``weights``: parameters by name, pretrained and adapted; who measures gives the number.
- ``texts``: embeddings of class prompts, pretrained and adapted, (texts, dimensions) each; gives a number, where the text
  side is trained.
- ``text weights``: as ``weights``, of the text side.
- ``labelled images``: images and labels that are not trained on, on request; who measures gives the number.
- ``class token`` and ``full maps``: what an observation itself holds; there is no column of their mean.
"""

_STRUCTURE = ("attention", "mean maps")
_OWN = ("own embeddings", "own images and texts")
_COMPARED = ("hidden states", "layer inputs", "embeddings", "weights", "texts", "text weights", "labelled images")


@dataclass(frozen=True)
class Metric:
    """One metric: its function, and what tables, figures, report and help have to know of it.

    Attributes:
        name: in tables, settings and commands.
        compute: the function, or ``module:name`` of it; None where who measures has the values. What it takes and
            gives: see :data:`Needs`.
        needs: what it is computed from.
        label: in tables and figures; ``short_label`` where there is less room.
        meaning: what it measures, in one phrase; ``source`` says where it comes from.
        unit: of its values; empty where they have none.
        low, high: the closed range of its values; None where it has no end. ``bounds`` is the range in words, where it
            depends on the number of patches.
        worse: the side on which an adapted model is harmed.
        digits: decimals in print.
        pretrained: its value for the pretrained model itself; None where it is measured.
        last_block: whether the last block has a column of its own beside the mean.
        headline: whether figures that show only a few metrics show it.
        analysed: whether the analysis takes it as an outcome and as a signal, where tables are.
        cost: what it takes beside the forward passes that are made anyway.
    """

    name: str
    compute: Callable[..., Any] | str | None
    needs: Needs
    label: str
    meaning: str
    source: str
    worse: Literal["lower", "higher"]
    unit: str = ""
    low: float | None = None
    high: float | None = None
    bounds: str = ""
    short_label: str = ""
    digits: int = 3
    pretrained: float | None = None
    last_block: bool = False
    headline: bool = False
    analysed: bool = True
    cost: str = "none"

    def __post_init__(self) -> None:
        if self.compared and self.pretrained is None and self.needs != "labelled images":
            raise ValueError(
                f"metric `{self.name}` compares with the pretrained model; give `pretrained`, its value there"
            )

    @property
    def function(self) -> Callable[..., Any]:
        """The function itself."""
        if not isinstance(self.compute, str):
            if self.compute is None:
                raise TypeError(f"metric `{self.name}` has no function: who measures it has its values")
            return self.compute
        module, _, name = self.compute.partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found

    @property
    def structural(self) -> bool:
        """Whether it measures the structure of attention: every block and head has a value."""
        return self.needs in _STRUCTURE

    @property
    def own(self) -> bool:
        """Whether it measures one model, so that its change is relative to the pretrained value."""
        return self.needs in (*_STRUCTURE, *_OWN)

    @property
    def compared(self) -> bool:
        """Whether it compares the adapted model with the pretrained one."""
        return self.needs in _COMPARED

    @property
    def per_layer(self) -> bool:
        """Whether every block has a value, in the table ``layers``."""
        return self.needs in (*_STRUCTURE, "class token", "hidden states", "layer inputs")

    @property
    def per_head(self) -> bool:
        """Whether every head has one."""
        return self.needs in (*_STRUCTURE, "class token")

    @property
    def range(self) -> str:
        """The range of its values in words."""
        low, high = ("" if end is None else f"{end:g}" for end in (self.low, self.high))
        return self.bounds or f"{low} .. {high}".strip()


METRICS: Registry[Metric] = Registry("metric", "attndrift.metrics.facts", group="attndrift.metrics")
"""All metrics: those of :mod:`attndrift.metrics.facts`, those of installed packages, and those of this process."""


def structure_metrics() -> tuple[str, ...]:
    """Names of the metrics of attention structure: those with ``_baseline``, ``_final`` and ``_change_pct`` columns."""
    return tuple(metric.name for metric in METRICS if metric.structural)


def layer_metrics() -> tuple[str, ...]:
    """Names of the metrics in the table ``layers``."""
    return tuple(metric.name for metric in METRICS if metric.per_layer)
