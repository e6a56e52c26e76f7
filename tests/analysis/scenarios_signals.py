"""Populations that the statistics of signals are tried on: sizes, truths and what is allowed, fixed before the code.

A configuration has a true retention; a signal is a noisy function of it; runs of a configuration differ by their seeds.
Every statistic is of configuration means, so that the truth is computed from a very large sample of such means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

SIZES = (8, 10, 13, 24, 60)
"""Configurations with one target: two methods at four rates, ..., the published records, large studies."""
REPLICATES = 4000
COVERAGE = (0.92, 0.98)
FALSE_CLAIMS = 0.06
DAMAGED_BELOW = 50.0


@dataclass(frozen=True)
class Population:
    """Two signals of one retention: how strongly each goes with it, and with what they share beside it.

    ``first`` and ``second`` are latent correlations with the retention, ``shared`` is the part of their noise that is
    the same. ``shape``: ``smooth``; ``two methods``, half of the configurations far from the other half; ``ceiling``, a
    quarter retains exactly 100% with signals of exactly 0.
    """

    name: str
    first: float
    second: float
    shared: float = 0.0
    shape: Literal["smooth", "two methods", "ceiling"] = "smooth"


POPULATIONS = (
    Population("no signal", 0.0, 0.0),
    Population("no signal, noise shared", 0.0, 0.0, shared=0.8),
    Population("equal and moderate", 0.6, 0.6),
    Population("equal and strong, noise shared", 0.85, 0.85, shared=0.5),
    Population("one moderate, one strong", 0.85, 0.5),
    Population("one strong, one without relation", 0.9, 0.0),
    Population("nearly monotone", 0.97, 0.8),
    Population("two methods", 0.7, 0.7, shape="two methods"),
    Population("two methods, no signal", 0.0, 0.0, shape="two methods"),
    Population("ceiling", 0.8, 0.6, shape="ceiling"),
)

MEDIATED = (0.9, 0.7, 0.4)
"""A signal that is nothing but another one with noise: it adds nothing given the other. Latent correlations."""


def sample(population: Population, n: int, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Configuration means of ``n`` configurations: both signals, and the retention in percent."""
    latent = rng.standard_normal(n)
    if population.shape == "two methods":
        latent = np.where(np.arange(n) % 2 == 0, 1.0, -1.0) + 0.4 * latent
        latent /= np.sqrt(1.16)
    common = rng.standard_normal(n)
    signals = []
    for weight in (population.first, population.second):
        noise = np.sqrt(population.shared) * common + np.sqrt(1 - population.shared) * rng.standard_normal(n)
        signals.append(weight * latent + np.sqrt(1 - weight**2) * noise)
    retention = 100 * stats.norm.cdf(latent + 0.05 * rng.standard_normal(n))
    if population.shape == "ceiling":
        top = np.arange(n) % 4 == 0
        retention[top] = 100.0
        high = max(float(signal.max()) for signal in signals) + 1
        signals = [np.where(top, high, signal) for signal in signals]
    return signals[0], signals[1], retention


def sample_mediated(weight: float, n: int, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """A signal, the one that explains it, and the retention, which depends on the latter alone."""
    given = rng.standard_normal(n)
    signal = weight * given + np.sqrt(1 - weight**2) * rng.standard_normal(n)
    retention = 100 * stats.norm.cdf(0.8 * given + 0.6 * rng.standard_normal(n))
    return signal, given, retention
