"""The studies on which every printed interval and every kind of claim is tried: fixed, and older than the code they try.

The spreads between seeds are those of 39 published runs (CLIP ViT-B/32 on EuroSAT, three seeds a setting): retention on
CIFAR-100 in points, the standard deviation of runs that differ in their seed alone. There the seeds of one method move
together at all learning rates (correlation of the entropy changes 0.9 for LoRA, 0.5 for full fine-tuning; none for the
retention), so ``correlation`` is tried from 0 to 0.9.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ACCEPTED_COVERAGE = (0.92, 0.98)
"""Of intervals with a nominal level of 95%."""
ACCEPTED_FALSE_POSITIVES = 0.06
"""Of claims with a nominal level of 5%, where nothing is there to be found."""
LEVEL = 0.95
STUDIES = 4000
"""Studies a scenario: a rate of 95% is then known to 0.7 points (two standard errors)."""

SPREAD = {"full": (4.3, 2.3, 4.5, 0.6), "lora": (0.4, 0.7, 0.4, 1.1), "last_block": (0.35, 2.2, 0.35, 2.2)}
"""Spread of retention between seeds at each of four learning rates, in points (pooled: 3.3, 0.7, 1.6)."""
MEANS = {"full": (55.0, 41.2, 22.3, 3.7), "lora": (99.6, 98.2, 94.5, 86.4), "last_block": (98.0, 97.1, 90.0, 83.8)}
RATES = (3e-6, 1e-5, 3e-5, 1e-4)


@dataclass(frozen=True)
class SeedScenario:
    """Two methods at ``rates`` learning rates with ``seeds`` seeds; ``correlation`` is that of a seed over the rates.

    ``null``: both methods have the same means. ``tail``: degrees of freedom of the noise (0: normal).
    """

    seeds: int
    rates: int
    correlation: float = 0.0
    first: str = "full"
    second: str = "lora"
    null: bool = False
    tail: int = 0

    @property
    def name(self) -> str:
        kind = f"t{self.tail} noise, " if self.tail else ""
        return f"{kind}{self.first}/{self.second}, {self.rates} rates, {self.seeds} seeds, correlation {self.correlation:g}"

    def means(self, method: str) -> Floats:
        return np.array(MEANS[self.second if self.null else method][: self.rates])

    def draw(self, generator: np.random.Generator, studies: int = STUDIES) -> tuple[Floats, Floats]:
        """Retention of both methods: two arrays (studies, seeds, rates)."""
        return self._method(self.first, generator, studies), self._method(self.second, generator, studies)

    def _method(self, method: str, generator: np.random.Generator, studies: int) -> Floats:
        shape = (studies, self.seeds, self.rates)
        own, shared = self._noise(generator, shape), self._noise(generator, (studies, self.seeds, 1))
        noise = np.sqrt(1 - self.correlation) * own + np.sqrt(self.correlation) * shared
        return self.means(method) + noise * np.array(SPREAD[method][: self.rates])

    def _noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        if not self.tail:
            return generator.standard_normal(shape)
        return generator.standard_t(self.tail, shape) / np.sqrt(self.tail / (self.tail - 2))


SEED_SCENARIOS = tuple(
    SeedScenario(seeds, rates, correlation, tail=tail)
    for seeds in (3, 5, 8)
    for rates in (1, 2, 4)
    for correlation in (0.0, 0.5, 0.9)
    for tail in (0, 5)
    if rates > 1 or correlation == 0
)
NULL_SCENARIOS = tuple(
    SeedScenario(seeds, 4, correlation, first, second, null=True)
    for seeds in (3, 5)
    for correlation in (0.0, 0.9)
    for first, second in (("full", "lora"), ("lora", "last_block"))
)


@dataclass(frozen=True)
class ImageScenario:
    """One set of ``n`` images before and after training: right before, right after, and right both times."""

    n: int
    before: float
    after: float
    both: float

    @property
    def name(self) -> str:
        return f"n = {self.n}, {self.before:g} before, {self.after:g} after, both {self.both:g}"

    def draw(self, generator: np.random.Generator, studies: int = STUDIES) -> NDArray[np.int64]:
        """Counts (studies, 4): right both times, before only, after only, never."""
        shares = [self.both, self.before - self.both, self.after - self.both]
        return generator.multinomial(self.n, [*shares, 1 - sum(shares)], size=studies)


IMAGE_SCENARIOS = (
    ImageScenario(1000, 0.60, 0.55, 0.50),
    ImageScenario(1000, 0.60, 0.60, 0.58),
    ImageScenario(1000, 0.60, 0.25, 0.22),
    ImageScenario(1000, 0.60, 0.04, 0.03),
    ImageScenario(2700, 0.97, 0.96, 0.95),
    ImageScenario(10000, 0.60, 0.52, 0.49),
    ImageScenario(10000, 0.60, 0.02, 0.015),
)


@dataclass(frozen=True)
class RankScenario:
    """A signal and the retention of ``n`` independent configurations, bivariate normal with ``correlation``."""

    n: int
    correlation: float

    @property
    def name(self) -> str:
        return f"{self.n} configurations, correlation {self.correlation:g}"

    @property
    def spearman(self) -> float:
        """Spearman's rho of the population: 6/pi asin(r/2)."""
        return float(6 / np.pi * np.arcsin(self.correlation / 2))

    def draw(self, generator: np.random.Generator, studies: int = STUDIES) -> tuple[Floats, Floats]:
        first, noise = generator.standard_normal((2, studies, self.n))
        return first, self.correlation * first + np.sqrt(1 - self.correlation**2) * noise


RANK_SCENARIOS = tuple(RankScenario(n, r) for n in (10, 13, 24, 60) for r in (0.0, 0.5, 0.8, 0.95))


@dataclass(frozen=True)
class BlockScenario:
    """Entropy change (percent) of early, middle and late blocks: ``dose`` is what late blocks lose a tenfold rate."""

    seeds: int
    dose: float

    @property
    def name(self) -> str:
        return f"{self.seeds} seeds, late blocks {self.dose:+g}% a tenfold rate"

    def draw(self, generator: np.random.Generator, studies: int = STUDIES) -> Floats:
        """(studies, seeds, rates, 3); one seed moves all blocks and rates together (0.2), and each alone (0.3)."""
        shape = (studies, self.seeds, len(RATES), 3)
        decades = np.log10(RATES) - np.log10(RATES).mean()
        change = np.zeros(shape[2:])
        change[:, 2] = self.dose * decades
        shared = 0.2 * generator.standard_normal((studies, self.seeds, 1, 1))
        return change + shared + 0.3 * generator.standard_normal(shape)


BLOCK_SCENARIOS = tuple(BlockScenario(seeds, dose) for seeds in (3, 5) for dose in (0.0, -2.0, -6.0))


@dataclass(frozen=True)
class ChoiceScenario:
    """A method whose rates are chosen from the numbers of the study itself; ``step`` is the fall of retention a rate.

    With a step of 0 every rate is as good, so that the best of four is chance alone: the hardest case.
    """

    seeds: int
    step: float
    spread: float

    @property
    def name(self) -> str:
        return f"best of 4 rates, {self.seeds} seeds, step {self.step:g}, spread {self.spread:g}"

    def draw(self, generator: np.random.Generator, studies: int = STUDIES) -> tuple[Floats, Floats, Floats]:
        """Validation accuracy (percent) and retention (studies, seeds, rates), and the true retention (rates,)."""
        shape = (studies, self.seeds, 4)
        true = 90.0 - self.step * np.arange(4)
        accuracy = 95.0 + 0.3 * self.step / 5 * np.arange(4) + 0.5 * generator.standard_normal(shape)
        return accuracy, true + self.spread * generator.standard_normal(shape), true


CHOICE_SCENARIOS = tuple(
    ChoiceScenario(seeds, step, spread) for seeds in (3, 5) for step in (0.0, 2.0, 10.0) for spread in (0.7, 3.3)
)


@dataclass(frozen=True)
class EquivalenceScenario:
    """A true difference exactly at the margin: every claim that it is smaller is false."""

    seeds: int
    margin: float
    spread: float

    @property
    def name(self) -> str:
        return f"true difference = margin = {self.margin:g}, {self.seeds} seeds, spread {self.spread:g}"

    def draw(self, generator: np.random.Generator, studies: int = STUDIES) -> Floats:
        """Paired differences (studies, seeds)."""
        return self.margin + self.spread * generator.standard_normal((studies, self.seeds))


EQUIVALENCE_SCENARIOS = tuple(
    EquivalenceScenario(seeds, 2.0, spread) for seeds in (3, 5, 10) for spread in (0.5, 1.0, 3.3)
)
